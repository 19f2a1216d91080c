"""The command line: exit codes, one line for every mistake, clean standard output."""

import json
import os
import subprocess
import sys
import zipfile

import pytest
import yaml
from PIL import Image

from flows.cli import main

TREE = {
    "name": "t",
    "data": {"resolution": 8, "channels": 1},
    "model": {"latent_size": 8, "mapping_layers": 1, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8},
    "training": {"start_resolution": 8, "batch": 4},
    "evaluation": {"metrics": []},
}


@pytest.fixture
def write(tmp_path):
    """write(source, **sections): a config file on that source with its storage below tmp_path."""

    def make(source="digits", **sections):
        tree = TREE | {"storage": {"root": str(tmp_path / "root")}} | sections
        tree["data"] = TREE["data"] | {"source": str(source)} | sections.get("data", {})
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tree))
        return str(path)

    return make


def fail(capsys, code, *arguments):
    """The one line on standard error of a command that fails with this code and prints nothing else."""
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("stylegan: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.mark.parametrize("verb", ["plan", "run", "shard", "train", "evaluate", "register"])
def test_missing_config_is_bad_usage_for_every_verb(capsys, verb):
    assert "nowhere.yaml: no such config file" in fail(capsys, 2, verb, "nowhere.yaml")


def test_usage_mistakes(capsys, write):
    assert "dance" in fail(capsys, 2, "dance")
    assert "CONFIG" in fail(capsys, 2, "plan")
    assert "--until 9: no such stage; the stages are 8" in fail(capsys, 2, "train", write(), "--until", "9")
    assert "must be key.path=value" in fail(capsys, 2, "plan", write(), "--set", "seed")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.btach=4", "unknown key training.btach; did you mean training.batch?"),
        ("data.resolution=24", "data.resolution=24: must be a power of two from 4 to 1024; the nearest is 16"),
        ("ray.workers=3", "not divisible by its 3 workers; use a multiple of 3"),
        ("model.conditional=true", "model.conditional=true needs labels"),
        ("evaluation.features=classifier", "needs class labels"),
    ],
)
def test_config_mistakes_name_key_value_and_cure(capsys, write, draw_images, tmp_path, override, says):
    source = draw_images(tmp_path / "flat", [f"{i}.png" for i in range(8)])
    config = write(source, evaluation={"metrics": ["fid"], "features": "rotation"})
    assert says in fail(capsys, 2, "shard", config, "--set", override)


def test_bad_sources(capsys, write, tmp_path):
    assert "data.source=" in fail(capsys, 2, "shard", write(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in fail(capsys, 1, "shard", write(tmp_path / "empty"))
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 not a zip")
    assert "broken.zip" in fail(capsys, 1, "shard", write(tmp_path / "broken.zip"))
    with zipfile.ZipFile(tmp_path / "junk.zip", "w") as archive:
        for name in "abcdefgh":
            archive.writestr(f"{name}.png", b"not an image")
    assert "cannot be read" in fail(capsys, 1, "shard", write(tmp_path / "junk.zip", data={"max_rejected": 9}))
    assert not list((tmp_path / "root").glob("datasets/*"))


def test_fewer_images_than_a_batch(capsys, write, draw_images, tmp_path):
    source = draw_images(tmp_path / "few", ["a.png", "b.png", "c.png"])
    assert "holds 3 images, fewer than the largest batch of 4" in fail(capsys, 1, "shard", write(source))


def test_label_file_that_names_a_missing_image(capsys, write, draw_images, tmp_path):
    source = draw_images(tmp_path / "labelled", [f"{i}.png" for i in range(8)])
    (source / "dataset.json").write_text(json.dumps({"labels": [["0.png", 1], ["gone.png", 0]]}))
    assert "gone.png" in fail(capsys, 1, "shard", write(source))


def test_store_that_refuses_writes(capsys, write, tmp_path, draw_images):
    """A path below a regular file cannot be written by anybody, root included."""
    (tmp_path / "file").write_text("in the way")
    source = draw_images(tmp_path / "images", [f"{i}.png" for i in range(8)])
    line = fail(capsys, 1, "shard", write(source, storage={"root": str(tmp_path / "file" / "root")}))
    assert "storage: cannot" in line
    assert (tmp_path / "file").read_text() == "in the way"


def test_server_addresses_where_nobody_is(capsys, write):
    assert "tracking.uri=http://127.0.0.1:9" in fail(capsys, 1, "train", write(tracking={"uri": "http://127.0.0.1:9"}))
    assert "sqlite:///" in fail(capsys, 2, "train", write(tracking={"uri": "/some/folder"}))


def test_steps_out_of_order_say_what_to_run_first(capsys, write):
    assert "run `stylegan train`" in fail(capsys, 1, "evaluate", write())
    assert "run `stylegan train`" in fail(capsys, 1, "register", write())


def test_shard_prints_its_record_as_one_json_line(capsys, write, draw_images, tmp_path):
    source = draw_images(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(5)])
    assert main(["shard", write(source), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert (record["num_images"], record["label_names"], record["resolutions"]) == (10, ["a", "b"], [4, 8])


def test_plan_touches_nothing(capsys, write, tmp_path):
    assert main(["plan", write(), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [step["state"] for step in plan["steps"]] == ["run"] * 5
    assert plan["run_id"] is None
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(("seeds", "says"), [("3-1", "rising ranges"), ("x", "numbers"), ("0-99999", "at most")])
def test_bad_seeds(capsys, seeds, says):
    assert says in fail(capsys, 2, "sample", "somewhere", "--seeds", seeds)


def test_sample_of_no_model(capsys, write, tmp_path):
    assert "no such model" in fail(capsys, 2, "sample", str(tmp_path))
    assert "no such model" in fail(capsys, 2, "sample", "t-0000", "--config", write())


def test_sample_draws_the_same_seed_the_same_way_in_any_grid(tmp_path):
    import torch

    from stylegan.config import ModelConfig
    from stylegan.networks.generator import Generator
    from stylegan.networks.weights import save_generator

    model = ModelConfig(**TREE["model"])
    torch.manual_seed(0)
    (tmp_path / "generator.safetensors").write_bytes(save_generator(Generator(model, resolution=8, channels=3), ()))
    for seeds, name in (("0-3", "four.png"), ("2", "one.png")):
        assert main(["sample", str(tmp_path), "--seeds", seeds, "--out", str(tmp_path / name)]) == 0
    four, one = Image.open(tmp_path / "four.png"), Image.open(tmp_path / "one.png")
    assert (four.size, one.size) == ((128, 128), (64, 64))
    assert list(four.crop((0, 64, 64, 128)).getdata()) == list(one.getdata())
    assert main(["sample", str(tmp_path), "--label", "x"]) == 2


def test_promote_without_a_registry(capsys, monkeypatch, write):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "no MLflow registry is named" in fail(capsys, 2, "promote", "m")
    assert "m" in fail(capsys, 2, "rollback", "m", "--config", write())


def test_json_on_a_terminal_still_goes_to_standard_output(tmp_path, write, draw_images):
    """Progress bars on standard error must not swallow what a shell redirects to a file."""
    source = draw_images(tmp_path / "images", [f"{i}.png" for i in range(8)])
    master, terminal = os.openpty()
    with open(tmp_path / "out", "wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "flows.cli", "shard", write(source), "--json"], stdout=out, stderr=terminal)
        assert process.wait(60) == 0
    os.close(terminal)
    assert "shard" in os.read(master, 65536).decode()
    os.close(master)
    assert json.loads((tmp_path / "out").read_text())["num_images"] == 8


def test_doctor_says_what_works_and_what_does_not(capsys, write, draw_images, tmp_path, monkeypatch):
    """Everything but the tracking server is there; nothing is left behind in storage."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    source = draw_images(tmp_path / "images", [f"{i}.png" for i in range(8)])
    assert main(["doctor", write(source, tracking={"uri": "http://127.0.0.1:9"})]) == 1
    captured = capsys.readouterr()
    states = dict(line.split()[1::-1] for line in captured.out.splitlines())
    assert states == {"storage": "ok", "data": "ok", "metrics": "ok", "mlflow": "FAIL", "prefect": "ok", "ray": "ok"}
    assert "tracking.uri=http://127.0.0.1:9" in captured.out
    assert not (tmp_path / "root").exists()
