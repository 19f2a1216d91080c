"""Uploaded pictures: projected one at a time in a process of their own, cancelled, limited, and drawn."""

import io
import os
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
from PIL import Image
from served_models import write_model

from stylegan.data.decode import UnreadableImage
from stylegan.serving import projections
from stylegan.serving.models import ProjectionMeans
from stylegan.serving.projections import MOST_WAITING


def distance(a, b):
    """The mean absolute difference of pixels. Real networks are tested with the verb `project`."""
    return (a - b).abs().mean((1, 2, 3))


def convert(data):
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if picture.width < 4:
        raise UnreadableImage("too small")
    words = "" if picture.size == (16, 16) else "converted"
    return np.ascontiguousarray(np.array(picture.resize((16, 16))).transpose(2, 0, 1)), words


def means(found, generator):
    return ProjectionMeans(convert, distance)


@pytest.fixture
def client(open_app, found):
    """A client of an app that can project."""
    return open_app(found, means_of=means)


def upload(client, data, **query):
    answer = client.post("/projections", params=query, content=data)
    assert answer.status_code == 202, answer.text
    assert answer.json()["url"] == f"/projections/{answer.json()['id']}"
    return answer.json()["id"]


def wait(client, name, *states, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        told = client.get(f"/projections/{name}").json()
        if told["state"] in states:
            return told
        time.sleep(0.1)
    raise AssertionError(told)


def children():
    """Return the processes that project."""
    found = []
    for one in psutil.Process(os.getpid()).children():
        with suppress(psutil.Error):  # it ends in this moment
            found += [one] if "spawn_main" in " ".join(one.cmdline()) else []
    return found


def projecting():
    """Return the process that projects as soon as there is one."""
    deadline = time.monotonic() + 60
    while not (found := children()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (process,) = found
    return process


def pixels(answer):
    return np.array(Image.open(io.BytesIO(answer.content))).astype(float)


def test_what_was_found_is_drawn_edited_mixed_and_taken_away(client, tmp_path, found):
    drawn = client.get("/image.png?seed=5&noise=none")
    name = upload(client, drawn.content, space="w", steps=60)
    assert len(name) > 20
    told = wait(client, name, "done", "failed")
    assert (told["state"], told["step"], told["steps"], told["space"]) == ("done", 60, 60, "w")
    assert told["psnr"] > 10
    assert told["image"] == f"/image.png?w={name}"
    again = client.get(told["image"])
    assert 10 * np.log10(255**2 / np.square(pixels(again) - pixels(drawn)).mean()) == pytest.approx(told["psnr"])
    assert (pixels(client.get(f"/image.png?w={name}&edit=smile:3")) != pixels(again)).any()
    assert (pixels(client.get(f"/image.png?w={name}&mix=4&crossover=2")) != pixels(again)).any()

    # The file is that of `stylegan sample --w`, which draws the same.
    from flows.cli.main import main

    (tmp_path / "w.npz").write_bytes(client.get(f"/projections/{name}/w.npz").content)
    out = tmp_path / "out.png"
    assert main(["sample", found.checkpoint_uri, "--w", str(tmp_path / "w.npz"), "--out", str(out)]) == 0
    assert out.read_bytes() == client.get(f"/image.png?w={name}&size=64").content


def test_one_runs_the_next_waits_and_a_dropped_one_ends_at_once(client):
    data = client.get("/image.png?seed=5").content
    first, second = upload(client, data, steps=1000), upload(client, data, steps=5)
    process = projecting()
    assert client.get(f"/projections/{first}").json()["state"] == "running"
    assert client.get(f"/projections/{second}").json()["state"] == "waiting"
    answer = client.get(f"/image.png?w={first}")
    assert (answer.status_code, "wait until it is done" in answer.json()["detail"]) == (422, True)
    assert client.get(f"/projections/{first}/w.npz").status_code == 409
    deadline = time.monotonic() + 30
    while process.nice() != projections.NICE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.nice() == projections.NICE
    assert client.delete(f"/projections/{first}").status_code == 204
    wait(client, second, "done")
    assert not process.is_running()
    for call in (client.get, client.delete):
        assert call(f"/projections/{first}").status_code == 404
    deadline = time.monotonic() + 30  # what is done has a moment left to end its process
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children() == []


def test_a_full_queue_says_when_to_come_again(client):
    data = client.get("/image.png?seed=5").content
    names = [upload(client, data, steps=1000)]
    wait(client, names[0], "running")
    names += [upload(client, data) for _ in range(MOST_WAITING)]
    answer = client.post("/projections", content=data)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, str(projections.RETRY_AFTER))
    client.delete(f"/projections/{names[-1]}")
    names[-1] = upload(client, data)
    for name in names:
        assert client.delete(f"/projections/{name}").status_code == 204


@pytest.mark.parametrize(
    ("data", "query", "says"),
    [
        (b"", {}, "the body is empty"),
        (b"GIF89a....", {}, "the body: must be a PNG, JPEG or WebP file"),
        (b"II*\0....", {}, "the body: must be a PNG, JPEG or WebP file"),
        (b"\x89PNG", {"steps": 1001}, "steps=1001: must be a whole number from 1 to 1000"),
        (b"\x89PNG", {"space": "z"}, "space=z: must be w or w+"),
    ],
)
def test_what_cannot_be_projected_is_one_sentence(client, data, query, says):
    answer = client.post("/projections", params=query, content=data)
    assert (answer.status_code, answer.json()["detail"][: len(says)]) == (422, says)


def test_an_unreadable_picture_and_a_model_without_a_network_are_one_sentence(client, open_app, found):
    small = io.BytesIO()
    Image.new("RGB", (2, 2)).save(small, "PNG")
    answer = client.post("/projections", content=small.getvalue())
    assert (answer.status_code, answer.json()["detail"]) == (422, "the picture: too small; send another one")
    answer = open_app(found).post("/projections", content=small.getvalue())
    assert answer.json()["detail"] == "this model cannot project pictures: there is no network to compare images with"


def test_a_process_that_dies_fails_its_projection_alone(client):
    data = client.get("/image.png?seed=5").content
    first, second = upload(client, data, steps=1000), upload(client, data, steps=5)
    projecting().kill()
    assert "has ended" in wait(client, first, "failed")["message"]
    assert wait(client, second, "done")["step"] == 5


def test_a_projection_that_takes_too_long_is_ended(client, monkeypatch):
    monkeypatch.setattr(projections, "PATIENCE", 0.5)
    name = upload(client, client.get("/image.png?seed=5").content, steps=1000)
    assert "took longer than 0.5 s" in wait(client, name, "failed")["message"]


def test_latents_of_another_version_are_refused_and_old_ones_are_forgotten(client, tmp_path, monkeypatch):
    data = client.get("/image.png?seed=5").content
    monkeypatch.setattr(projections, "MOST_KEPT", 1)
    names = []
    for _ in range(2):
        names.append(upload(client, data, steps=2))
        wait(client, names[-1], "done")
    assert [client.get(f"/projections/{name}").status_code for name in names] == [404, 200]
    other = write_model(tmp_path / "other", seed=1)
    client.models.find = lambda: other
    client.models.look()
    answer = client.get(f"/image.png?w={names[-1]}")
    assert answer.status_code == 422
    assert "is of version 1, and version 2 is served now" in answer.json()["detail"]


def test_what_a_server_leaves_behind_ends(client):
    """The process of a projection ends with its server, also in the middle."""
    upload(client, client.get("/image.png?seed=5").content, steps=1000)
    process = projecting()
    client.__exit__()
    client.__exit__ = lambda *_: None
    assert psutil.wait_procs([process], timeout=10)[1] == []
