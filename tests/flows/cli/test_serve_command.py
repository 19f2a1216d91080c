"""The command that serves a model: its mistakes as one line, its line when it is ready, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import torch
from command_line import TREE, fail

from stylegan.config.sections import ModelConfig
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator
from stylegan.serving.server import bind


@pytest.fixture
def untrained(tmp_path):
    """A folder with an untrained 8x8 generator."""
    torch.manual_seed(0)
    generator = Generator(ModelConfig(**TREE["model"]), resolution=8, channels=1)
    (tmp_path / "generator.safetensors").write_bytes(save_generator(generator, ()))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines can reach it, which needs a token"),
        (["--token", "short"], "--token: must be 8 to 200 letters"),
        (["--port", "70000"], "--port 70000: must be from 0"),
        (["--port", "x"], "x"),
        (["--device", "tpu"], "tpu"),
        (["--set", "seed=1"], "--set needs --config"),
    ],
)
def test_mistakes_are_one_line(capsys, untrained, options, says, monkeypatch):
    monkeypatch.delenv("STYLEGAN_SERVE_TOKEN", raising=False)
    assert says in fail(capsys, 2, "serve", untrained, *options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_one_line(capsys, untrained):
    assert "--device cuda: torch finds no GPU here" in fail(capsys, 2, "serve", untrained, "--device", "cuda")


def test_no_model_and_a_port_in_use_are_one_line(capsys, tmp_path, untrained):
    assert "no such model" in fail(capsys, 2, "serve", str(tmp_path / "nothing"), "--port", "0")
    with bind("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}: is in use" in fail(capsys, 2, "serve", untrained, "--port", port)


@pytest.fixture
def server(untrained, tmp_path):
    """A server in a process of its own: (process, the record that it has printed)."""
    command = [sys.executable, "-m", "flows.cli.main", "serve", untrained, "--port", "0", "--json"]
    with open(tmp_path / "stderr", "wb") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env=os.environ | {"STYLEGAN_SERVE_TOKEN": "correct-horse-battery"},
        )
    yield process, json.loads(process.stdout.readline())
    process.kill()
    process.wait()


def get(record, path):
    request = urllib.request.Request(
        f"{record['url']}{path}", headers={"Authorization": "Bearer correct-horse-battery"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_server_answers_what_is_under_way(server, untrained, tmp_path, number):
    process, record = server
    assert (record["checkpoint_uri"], record["device"], record["alias"]) == (untrained, "cpu", None)
    assert get(record, "image.png").startswith(b"\x89PNG")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(record["url"], timeout=60)

    # Each request draws 64 images, one after the other; the signal comes in the middle of them.
    answers, body = [], json.dumps({"images": [{"seed": seed, "size": 512} for seed in range(64)]}).encode()

    def ask(number):
        request = urllib.request.Request(
            f"{record['url']}images",
            body.replace(b'"seed": ', b'"seed": %d' % (number + 1)),
            {"Authorization": "Bearer correct-horse-battery", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answers.append(len(json.load(answer)["images"]))

    asking = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in asking:
        thread.start()
    time.sleep(0.15)
    os.kill(process.pid, number)
    assert process.wait(15) == 128 + number
    for thread in asking:
        thread.join()
    assert answers == [64] * 4
    assert process.stdout.read() == b""
    assert (tmp_path / "stderr").read_text() == (
        "stylegan: serving ends; requests under way are answered, and a second signal ends at once\n"
    )
