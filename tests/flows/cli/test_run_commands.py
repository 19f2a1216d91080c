"""Commands on a config: what they refuse, and the plan."""

import json
import zipfile

from command_line import fail
from PIL import Image

from flows.cli.main import main


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
    line = fail(capsys, 2, "shard", write(source, storage={"root": str(tmp_path / "file" / "root")}))
    assert f"{tmp_path}/file is not a folder" in line
    assert (tmp_path / "file").read_text() == "in the way"


def test_steps_out_of_order_say_what_to_run_first(capsys, write):
    config = write()
    for verb in ("evaluate", "register"):
        line = fail(capsys, 1, verb, config, "--set", "seed=2")
        assert f"stylegan train {config} --set seed=2` first" in line


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


def test_a_plan_of_assumed_images_says_so(capsys, write, tmp_path):
    config = write(tmp_path / "of another machine")
    assert "--images N` plans for N images" in fail(capsys, 2, "plan", config)
    assert main(["plan", config, "--images", "5000"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "5,000 images assumed; what is done already, and the run id, are not known" in shown
    assert "times are from the speed of this machine's cores" in shown
    assert main(["plan", config, "--images", "5000", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["assumed_images"], plan["steps"][0]["images"]) == (5000, 5000)
    assert "--images 0: must be at least 1" in fail(capsys, 2, "plan", config, "--images", "0")


def test_a_plan_for_gpus_fits_a_terminal_of_80_columns_and_adds_up_its_price(capsys, monkeypatch, write, tmp_path):
    """What does not fit beside the numbers is below them; the price is that of the GPU-hours, in all and for each step."""
    config = write(tmp_path / "of another machine", data={"resolution": 1024}, training={"start_resolution": 4})
    ray = ["-s", "ray.address=1.2.3.4:5", "-s", "ray.gpus_per_worker=1", "-s", "ray.workers={min: 1, max: 4}"]
    ray += ["-s", "model.mbstd_group=1", "-s", "ray.stages={1024: {accelerator_type: H100}}"]
    arguments = ["plan", config, "--images", "70000", "--price-per-gpu-hour", "2.5", *ray]
    monkeypatch.setenv("COLUMNS", "80")
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    table, _, below = shown.partition("\nshard: ")
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "…" not in table
    assert "1-4 H100" in table
    assert "train 4x4 to 1024x1024: waits for shard" in below
    assert "at 2.5 per GPU-hour" in below
    assert "times are for the most workers of a range" in below
    assert main([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert abs(plan["cost"] - 2.5 * plan["gpu_hours"]) < 1e-9
    assert sum(step["cost"] or 0 for step in plan["steps"]) == plan["cost"]
    line = fail(capsys, 2, "plan", config, "--price-per-gpu-hour", "-1")
    assert "--price-per-gpu-hour -1: must be from 0 to 1,000,000" in line
