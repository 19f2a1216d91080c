"""The command line: exit codes, one line for every mistake, clean standard output."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile

import fsspec
import pytest
import yaml
from PIL import Image

from flows.cli.main import main
from stylegan.errors import StepError

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
    line = fail(capsys, 1, "shard", write(tmp_path / "junk.zip", data={"max_rejected": 9, "duplicates": "keep"}))
    assert "8 of 8 images cannot be used (8 unreadable)" in line
    assert not list((tmp_path / "root").glob("datasets/*/manifest.json"))
    (rejected,) = (tmp_path / "root").glob("datasets/*/rejected.jsonl")
    assert len(rejected.read_text().splitlines()) == 8


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


@pytest.fixture
def labelled(draw_images, tmp_path):
    """A folder of the classes `a` (5 images, one of them twice) and `b [0]` (4, and a file that is cut)."""
    source = draw_images(tmp_path / "images", [f"a/{i}.png" for i in range(5)] + [f"b [0]/{i}.png" for i in range(4)])
    (source / "a" / "twin.png").write_bytes((source / "a" / "0.png").read_bytes())
    (source / "b [0]" / "cut.png").write_bytes((source / "a" / "1.png").read_bytes()[:70])
    return source


def test_shard_prints_what_the_set_holds_and_what_was_left_out(capsys, write, labelled, tmp_path):
    """Counts by class, rejects by kind with their paths, and where the files are; the same again from storage."""
    config = write(labelled, data={"max_rejected": 1})
    for first in ("done", "taken from storage"):
        assert main(["shard", config]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{first}: 9 images, fingerprint ")
        cells = [
            [cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")
        ]
        assert cells == [
            ["a", "5"],
            ["b [0]", "4"],
            ["duplicate", "1", "a/twin.png"],
            ["truncated", "1", "b [0]/cut.png"],
        ]
        places = dict(line.split(maxsplit=1) for line in out.splitlines() if str(tmp_path / "root") in line)
        assert set(places) == {"rejected", "preview", "shards"}
        assert all(os.path.exists(place) for place in places.values())
    assert "originals   24x20 to 24x20, median 24x20\n" in out


def test_verify_proves_a_set_or_names_the_damage(capsys, write, labelled, tmp_path):
    """By config or by URI; a flipped byte is a line that names the tar, and the exit code 1."""
    config = write(labelled, data={"max_rejected": 1})
    assert "not sharded yet; run `stylegan shard" in fail(capsys, 1, "shard", config, "--verify")
    assert main(["shard", config]) == 0
    (tar,) = (tmp_path / "root").glob("datasets/*/r0008/*.tar")
    uri = str(tar.parents[1])
    capsys.readouterr()
    for target in (config, uri):
        assert main(["shard", "--verify", target]) == 0
        assert capsys.readouterr().out == f"whole: 9 images in 2 tars of {target} are what their manifest says\n"
    content = bytearray(tar.read_bytes())
    content[1600] ^= 1
    tar.write_bytes(content)
    assert main(["shard", uri, "--verify"]) == 1
    captured = capsys.readouterr()
    problems = captured.out.splitlines()
    assert problems
    assert all(str(tar) in line for line in problems)
    assert f"stylegan: shard --verify {uri}: {len(problems)} problem(s)" in captured.err
    assert main(["shard", uri, "--verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == problems
    assert "is for a config" in fail(capsys, 2, "shard", uri, "--verify", "--set", "seed=1")
    assert main(["shard", "--verify", str(tmp_path)]) == 1


def test_plan_tells_what_has_changed(capsys, write, labelled):
    """New, changed and deleted images since the newest set of this source."""
    config = write(labelled, data={"max_rejected": 1})
    assert main(["shard", config]) == 0
    (labelled / "b [0]" / "0.png").rename(labelled / "a" / "9.png")
    Image.new("RGB", (9, 9), "red").save(labelled / "a" / "1.png")
    capsys.readouterr()
    assert main(["plan", config, "--json"]) == 0
    step = json.loads(capsys.readouterr().out)["steps"][0]
    assert step["reason"].startswith("1 new, 1 changed, 1 deleted since ")
    assert (step["state"], step["images"]) == ("run", 2)


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

    from stylegan.config.sections import ModelConfig
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


def imported(capsys, source, out):
    """The record of an import that works."""
    assert main(["import-weights", str(source), "--out", str(out), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_import_weights_makes_a_model_for_every_verb(capsys, tmp_path):
    """Sampling takes the average Gs; G and D lie beside it; the same import again repairs what is missing."""
    import official_tf as tf

    from stylegan.networks.weights import load_discriminator, load_generator

    given = tf.arguments(8, 1, label_size=3)
    (tmp_path / "official.pkl").write_bytes(tf.write(given))
    record = imported(capsys, tmp_path / "official.pkl", tmp_path / "out")
    assert (record["resolution"], record["channels"], record["num_labels"]) == (8, 1, 3)
    assert sorted([*record["files"], "import.json"]) == sorted(os.listdir(tmp_path / "out"))
    for name, seed in (("generator", 0), ("G", 10)):
        network, label_names = load_generator((tmp_path / "out" / f"{name}.safetensors").read_bytes())
        assert label_names == ("0", "1", "2")
        assert network.w_avg.tolist() == tf.generator_variables(given, seed)[""]["dlatent_avg"].tolist()
    assert load_discriminator((tmp_path / "out" / "D.safetensors").read_bytes())[0].num_labels == 3
    options = ["--seeds", "0-3", "--psi", "0.7", "--label", "2", "--out", str(tmp_path / "grid.png")]
    assert main(["sample", str(tmp_path / "out"), *options]) == 0
    capsys.readouterr()
    assert Image.open(tmp_path / "grid.png").size == (128, 128)
    (tmp_path / "out" / "generator.safetensors").unlink()
    assert imported(capsys, tmp_path / "official.pkl", tmp_path / "out") == record
    assert (tmp_path / "out" / "generator.safetensors").exists()


def test_import_weights_overwrites_nothing_else(capsys, tmp_path):
    import official_tf as tf

    for seed in (0, 1):
        (tmp_path / f"{seed}.pkl").write_bytes(tf.write(tf.arguments(8), seed=seed))
    imported(capsys, tmp_path / "0.pkl", tmp_path / "out")
    before = (tmp_path / "out" / "generator.safetensors").read_bytes()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "training.pt").write_bytes(b"mine")
    for target in ("out", "checkpoint", "0.pkl"):
        assert "holds something else" in fail(
            capsys, 2, "import-weights", str(tmp_path / "1.pkl"), "--out", str(tmp_path / target)
        )
    assert (tmp_path / "out" / "generator.safetensors").read_bytes() == before
    assert os.listdir(tmp_path / "checkpoint") == ["training.pt"]


def test_import_weights_of_what_is_none(capsys, tmp_path):
    """One line each, and no folder."""
    out = ["--out", str(tmp_path / "out")]
    (tmp_path / "text.pkl").write_text("<html>404 Not Found</html>")
    assert "gone.pkl: no such file" in fail(capsys, 2, "import-weights", str(tmp_path / "gone.pkl"), *out)
    line = fail(capsys, 1, "import-weights", str(tmp_path / "text.pkl"), *out)
    assert "text.pkl: these 26 bytes are no official network pickle" in line
    assert "storage: cannot" in fail(capsys, 1, "import-weights", str(tmp_path), *out)
    assert "out" in fail(capsys, 2, "import-weights", str(tmp_path / "text.pkl"))
    assert not (tmp_path / "out").exists()


def test_weights_go_from_bucket_to_bucket(capsys, s3_server, tmp_path):
    import fsspec
    import official_tf as tf

    bucket = s3_server()
    with fsspec.open(f"{bucket}/official.pkl", "wb") as file:
        file.write(tf.write(tf.arguments(8)))
    assert imported(capsys, f"{bucket}/official.pkl", f"{bucket}/imported")["uri"] == f"{bucket}/imported"
    assert main(["export", f"{bucket}/imported", "--out", f"{bucket}/exports/generator.safetensors", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    with (
        fsspec.open(record["path"], "rb") as exported,
        fsspec.open(f"{bucket}/imported/generator.safetensors", "rb") as original,
    ):
        assert exported.read() == original.read()
    with fsspec.open(f"{bucket}/other.pkl", "wb") as file:
        file.write(tf.write(tf.arguments(8), seed=1))
    assert "holds something else" in fail(
        capsys, 2, "import-weights", f"{bucket}/other.pkl", "--out", f"{bucket}/imported"
    )


def test_export_writes_the_sampled_generator(capsys, tmp_path):
    """The ONNX file draws the imported network's images, and its end decides on the format."""
    import numpy as np
    import official_tf as tf
    import onnxruntime

    given = tf.arguments(8)
    (tmp_path / "official.pkl").write_bytes(tf.write(given))
    imported(capsys, tmp_path / "official.pkl", tmp_path / "out")
    target = tmp_path / "exports" / "g.onnx"
    assert main(["export", str(tmp_path / "out"), "--out", str(target), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["format"], record["resolution"], record["num_bytes"]) == ("onnx", 8, target.stat().st_size)
    assert record["max_difference"] <= 1e-4
    z = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    (images,) = onnxruntime.InferenceSession(target).run(None, {"z": z, "psi": np.array(0.7, np.float32)})
    np.testing.assert_allclose(
        images, tf.generate(given, tf.generator_variables(given), z, psi=0.7), rtol=1e-4, atol=1e-4
    )
    assert "g.pt: must end in .safetensors or .onnx" in fail(
        capsys, 2, "export", str(tmp_path / "out"), "--out", "g.pt"
    )
    assert "no such model" in fail(capsys, 2, "export", str(tmp_path / "exports"), "--out", str(target))


def test_promote_without_a_registry(capsys, monkeypatch, write):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "no MLflow registry is named" in fail(capsys, 2, "promote", "m")
    assert "m" in fail(capsys, 2, "rollback", "m", "--config", write())


def test_json_on_a_terminal_still_goes_to_standard_output(tmp_path, write, draw_images):
    """Progress bars on standard error must not swallow what a shell redirects to a file."""
    source = draw_images(tmp_path / "images", [f"{i}.png" for i in range(8)])
    master, terminal = os.openpty()
    with open(tmp_path / "out", "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.main", "shard", write(source), "--json"], stdout=out, stderr=terminal
        )
        assert process.wait(60) == 0
    os.close(terminal)
    assert "shard" in os.read(master, 65536).decode()
    os.close(master)
    assert json.loads((tmp_path / "out").read_text())["num_images"] == 8


def test_doctor_says_where_weights_are_and_where_they_go(capsys, write, tmp_path, monkeypatch):
    """One file is there, the others are not: each has a line; one that can be fetched is no failure."""
    from flows.cli.doctor import weight_checks
    from stylegan.config.file import load
    from stylegan.evaluation.features import public_weights as weights
    from stylegan.evaluation.features.public_weights import WeightFile

    monkeypatch.setenv("STYLEGAN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "here.pth").write_bytes(b"weights")
    sha = hashlib.sha256(b"weights").hexdigest()
    with fsspec.open("memory://doctor/vgg16.pth", "wb") as file:
        file.write(b"weights")
    for kind, url in (
        ("inception", "memory://doctor/here.pth"),
        ("vgg16", "memory://doctor/vgg16.pth"),
        ("lpips", "memory://doctor/no.pth"),
    ):
        monkeypatch.setitem(weights.KNOWN, kind, WeightFile(url.rpartition("/")[2], url, sha, 2_000_000))
    config = write(
        evaluation={"features": "inception", "metrics": ["fid", "ppl_wend"]}, registry={"gate": {"metric": "fid"}}
    )
    folder = tmp_path / "weights"
    here, fetched, gone = [check for _, check in weight_checks(load(config))]
    assert here(load(config)) == f"inception: {folder}/here.pth, 0 kB"
    assert fetched(load(config)) == (
        f"vgg16: not on this machine yet; `run` downloads memory://doctor/vgg16.pth (2 MB) to {folder}/vgg16.pth"
    )
    with pytest.raises(
        StepError,
        match=rf"^lpips: .* no way to memory://doctor/no.pth; get it by other means and put it at {folder}/no.pth$",
    ):
        gone(load(config))
    assert os.listdir(folder) == ["here.pth"]
    assert "lpips weights: cannot download memory://doctor/no.pth" in fail(capsys, 2, "train", config)
    assert not list((tmp_path / "root").glob("datasets/*"))


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
