"""The inventory of a storage root."""

import subprocess
import sys

import pytest
import yaml

from stylegan import storage
from stylegan.errors import ConfigError
from stylegan.pipeline.inventory import roots_here, take_inventory, with_models
from stylegan.pipeline.lock import hold, run_lock

DATA = {"source": "digits", "resolution": 8}


def fill(root):
    """Write what five runs leave behind: finished, evaluated, trained, under way and just started."""

    def put(path, value):
        storage.write_json(storage.join(root, path), value)

    manifest = {"fingerprint": "f", "num_images": 1797, "resolutions": [4, 8], "label_names": ["a", "b"]}
    put("datasets/0123456789/manifest.json", manifest)
    put("datasets/0123456789/card.json", {"source": "digits"})
    put("datasets/newest-1.json", {"key": "0123456789"})
    storage.write_bytes(storage.join(root, "datasets/9876543210/chunks/0.parquet"), b"half")
    for number, run in enumerate(("done", "measured", "trained", "under-way", "new")):
        config = yaml.safe_dump({"name": run, "storage": {"root": "elsewhere"}, "data": DATA})
        storage.write_bytes(storage.join(root, f"runs/{run}-1/config.yaml"), config.encode())
        folder, nimg = f"stages/0008-{number:010d}", 1000 * (number + 1)
        record = {"uri": "x", "run_id": f"{run}-1", "resolution": 8, "nimg": nimg, "digest": "d"}
        if run != "new":
            put(f"{folder}/checkpoint-{nimg:09d}/checkpoint.json", record)
            storage.write_bytes(storage.join(root, f"{folder}/checkpoint-{nimg:09d}/training.pt"), b"x" * 10_000)
        if run in ("done", "measured", "trained"):
            put(f"{folder}/done.json", record)
        if run in ("done", "measured"):
            metrics = {"recall_classifier": 0.4, "fid_classifier": "NaN" if number else 2.5}
            uri = f"/old/{folder}/checkpoint-{nimg:09d}"
            put(f"runs/{run}-1/report.json", {"checkpoint_uri": uri, "dataset_fingerprint": "f", "metrics": metrics})
    put("runs/done-1/verdict.json", {"key": "k", "applied": True, "verdict": {}})
    storage.write_bytes(storage.join(root, "mlartifacts/1/model"), b"x" * 500)


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path, monkeypatch):
    """A filled root, in a folder or a bucket."""
    monkeypatch.chdir(tmp_path)  # where the embedded MLflow of a bucket is
    uri = request.getfixturevalue("s3_server")() + "/root" if request.param == "s3" else str(tmp_path / "root")
    fill(uri)
    return uri


def test_runs_sets_and_sizes_of_a_root(root):
    found = take_inventory(root)
    runs = {run.run_id: run for run in found.runs}
    states = {
        "done-1": "finished",
        "measured-1": "evaluated",
        "trained-1": "trained",
        "under-way-1": "in 8x8",
        "new-1": "started",
    }
    assert {run_id: run.state for run_id, run in runs.items()} == states
    assert {run.num_images for run in found.runs} == {1797}
    assert (runs["done-1"].kimg, runs["under-way-1"].kimg, runs["new-1"].kimg) == (1, 4, None)
    assert list(runs["done-1"].metrics.items()) == [("fid_classifier", 2.5), ("recall_classifier", 0.4)]
    assert runs["done-1"].num_bytes > 10_000 > runs["new-1"].num_bytes > 0
    assert [(one.key, one.num_images, one.source) for one in sorted(found.sets, key=lambda one: one.key)] == [
        ("0123456789", 1797, "digits"),
        ("9876543210", None, ""),
    ]
    assert found.num_bytes["MLflow"] == 500
    assert sum(found.num_bytes.values()) == sum(facts.num_bytes for facts in storage.files(root).values())
    assert (found.free_bytes is None) == root.startswith("s3")
    assert not any(record.damaged for record in (*found.runs, *found.sets, *found.stages))
    assert with_models(found).models == ()


def test_a_store_is_listed_once(tmp_path, monkeypatch):
    fill(str(tmp_path / "root"))
    asked = []
    for name in ("names", "exists", "size", "files"):
        real = getattr(storage, name)
        monkeypatch.setattr(storage, name, lambda uri, name=name, real=real: (asked.append(name), real(uri))[1])
    take_inventory(str(tmp_path / "root"))
    assert asked == ["exists", "files"]


def test_damaged_records_are_named_and_end_nothing(tmp_path):
    root = tmp_path / "root"
    fill(str(root))
    for path in ("runs/done-1/report.json", "datasets/0123456789/manifest.json", "stages/0008-0000000002/done.json"):
        (root / path).write_bytes((root / path).read_bytes()[:20])
    (root / "runs/new-1/config.yaml").write_bytes(b"[")
    found = take_inventory(str(root))
    assert {run.run_id: run.damaged for run in found.runs if run.damaged} == {
        "done-1": "report.json",
        "new-1": "config.yaml",
        "trained-1": "0008-0000000002/done.json",
    }
    assert {one.key: one.damaged for one in found.sets if one.damaged} == {"0123456789": "manifest.json"}


def test_a_registry_that_does_not_answer_is_named(tmp_path):
    root = tmp_path / "root"
    fill(str(root))
    config = {"name": "done", "data": DATA, "tracking": {"uri": "http://127.0.0.1:9"}}
    (root / "runs/done-1/config.yaml").write_text(yaml.safe_dump(config))
    found = with_models(take_inventory(str(root)))
    assert len(found.runs) == 5
    assert (found.tracking_uri, found.models) == ("http://127.0.0.1:9", ())
    assert "does not answer" in found.no_models


def test_roots_that_a_person_in_a_folder_means(tmp_path, monkeypatch):
    """Folders in which something was made, and places that a config names; no other folder, no other YAML file."""
    fill(str(tmp_path / "faces-data"))
    fill(str(tmp_path / "far" / "away"))
    (tmp_path / "datasets" / "other").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    (tmp_path / "other.yaml").write_text("a: [1")
    for name, root in (("near", "faces-data"), ("far", "far/away"), ("none", "none"), ("bucket", "s3://bucket/x")):
        tree = {"name": name, "storage": {"root": root}, "data": DATA}
        (tmp_path / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(tmp_path)
    here = roots_here()
    assert set(here.local) == {str(tmp_path / "faces-data"), str(tmp_path / "far" / "away")}
    assert here.elsewhere == {"s3://bucket/x": "configs/bucket.yaml"}
    monkeypatch.chdir(tmp_path / "faces-data")
    assert roots_here().local == (str(tmp_path / "faces-data"),)
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        take_inventory(str(tmp_path / "nowhere"))


def test_neither_networks_nor_mlflow_are_imported(tmp_path):
    fill(str(tmp_path / "root"))
    script = (
        "import sys; from stylegan.pipeline.inventory import roots_here, take_inventory;"
        "print(len(take_inventory(roots_here().local[0]).runs), {'torch', 'mlflow'} & sys.modules.keys())"
    )
    out = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=tmp_path)
    assert out.strip() == "5 set()"


def test_a_run_that_a_process_works_on_is_shown_as_running(tmp_path):
    fill(tmp_path)
    with hold(str(tmp_path), run_lock("under-way-1"), run_id="under-way-1", what="stylegan run"):
        states = {run.run_id: run.state for run in take_inventory(str(tmp_path)).runs}
    assert [run_id for run_id, state in states.items() if state.startswith("running, ")] == ["under-way-1"]
    assert not any(run.state.startswith("running") for run in take_inventory(str(tmp_path)).runs)
