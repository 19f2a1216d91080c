"""Models by what people call them: the forms that `sample`, `export` and `evaluate` take."""

import shutil
from pathlib import Path

import pytest

from stylegan import storage
from stylegan.config.file import build, dump
from stylegan.config.sections import ModelConfig
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.errors import ConfigError, DamagedError, StepError
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator
from stylegan.pipeline.run import Run
from stylegan.verbs.find_model import find_model, look_up, run_config

TINY = ModelConfig(latent_size=8, mapping_layers=1, mapping_fmaps=8, fmap_base=64, fmap_max=8)


@pytest.fixture
def run(tmp_path):
    """Config and folder of a run with a finished stage of 4x4 images and, as after `stylegan train`, no report."""
    tree = {
        "name": "t",
        "storage": {"root": str(tmp_path / "root")},
        "data": {"source": "digits", "resolution": 4, "channels": 1},
    }
    config = build(tree | {"training": {"start_resolution": 4, "batch": 4}, "evaluation": {"num_images": 10}})
    run = Run(config, write_shards(open_source(config.data), config.data, config.storage.root))
    (stage,) = run.stages
    checkpoint = {"uri": f"{run.stage_uri(stage)}/checkpoint-000001000", "run_id": run.run_id}
    checkpoint |= {"resolution": 4, "nimg": 1000, "digest": run.stage_key(stage)}
    storage.write_bytes(
        f"{checkpoint['uri']}/generator.safetensors", save_generator(Generator(TINY, resolution=4, channels=1), ())
    )
    storage.write_json(f"{checkpoint['uri']}/checkpoint.json", checkpoint)
    storage.write_json(f"{run.stage_uri(stage)}/done.json", checkpoint)
    storage.write_bytes(f"{run.uri}/config.yaml", dump(config).encode())
    return config, run.uri, checkpoint["uri"]


def test_a_run_has_its_last_checkpoint(run):
    """By its id with the config or the root, and by its folder, from wherever."""
    config, folder, checkpoint = run
    name = storage.name(folder)
    by_id = find_model(config, name)
    assert (by_id.kind, by_id.name, by_id.checkpoint_uri, by_id.run_uri) == ("run", name, checkpoint, folder)
    assert find_model(None, name, root=config.storage.root) == find_model(None, folder) == by_id


def test_a_checkpoint_leads_to_its_run(run, tmp_path):
    """Also by a relative path; a copy elsewhere belongs to none."""
    _, folder, checkpoint = run
    found = find_model(None, checkpoint)
    assert (found.kind, found.checkpoint_uri, found.run_uri) == ("checkpoint", checkpoint, folder)
    shutil.copytree(checkpoint, tmp_path / "copy")
    assert find_model(None, str(tmp_path / "copy")).run_uri is None


def test_a_root_that_has_moved_is_followed(run, tmp_path):
    """The report names the checkpoint where it was; the run's config says a root that is no more."""
    _, folder, checkpoint = run
    report = {"protocol": "p", "dataset_fingerprint": "f", "checkpoint_uri": checkpoint, "metrics": {}}
    storage.write_json(f"{folder}/report.json", report)
    shutil.move(tmp_path / "root", tmp_path / "moved")
    found = find_model(None, folder.replace("/root/", "/moved/"))
    assert found.checkpoint_uri == checkpoint.replace("/root/", "/moved/")
    assert run_config(str(found.run_uri)).storage.root == str(tmp_path / "moved")
    assert run_config(str(found.run_uri), ["seed=3"]).seed == 3


def test_all_settings_of_storage_are_those_of_the_run_or_overridden(run):
    config, folder, _ = run
    patient = config.model_copy(update={"storage": config.storage.model_copy(update={"patience_s": 7, "cache_gb": 2})})
    storage.write_bytes(f"{folder}/config.yaml", dump(patient).encode())
    assert run_config(folder).storage == patient.storage
    changed = run_config(folder, ["storage.patience_s=9", "storage.root=/elsewhere"]).storage
    assert (changed.patience_s, changed.cache_gb, changed.root) == (9, 2, "/elsewhere")


def test_a_run_without_a_checkpoint_says_how_to_go_on(run):
    config, folder, checkpoint = run
    shutil.rmtree(Path(checkpoint).parent)
    with pytest.raises(
        StepError, match=r"no checkpoint of its last stage, 4x4, yet; run its config again, which goes on"
    ):
        find_model(config, storage.name(folder))


def test_a_checkpoint_that_is_gone_is_named(run):
    config, folder, _ = run
    report = {"protocol": "p", "dataset_fingerprint": "f", "checkpoint_uri": "s/gone", "metrics": {}}
    storage.write_json(f"{folder}/report.json", report)
    with pytest.raises(StepError, match=r"its checkpoint s/gone is gone; run its config again"):
        find_model(config, storage.name(folder))


def test_what_is_no_model_is_told_with_all_that_was_tried(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert look_up(None, "digits") is None
    with pytest.raises(ConfigError) as caught:
        find_model(None, "t-0123")
    line = str(caught.value)
    assert "\n" not in line
    for part in ("t-0123: no such model", f"no run in {tmp_path}/stylegan-data/runs", "no checkpoint", "no version"):
        assert part in line
    assert look_up(None, "faces/12") is None  # a folder that is not there, as long as there is no registry
    with pytest.raises(ConfigError, match="no MLflow registry is named"):
        find_model(None, "faces@champion")


@pytest.mark.parametrize("uri", ["https://me:CANARY@host/checkpoint", "https://host/checkpoint?sig=CANARY"])
def test_a_model_whose_url_holds_a_secret_is_refused(uri):
    """Its URI would be kept with evaluations and printed."""
    with pytest.raises(ConfigError, match=r"^MODEL=.*carries credentials") as caught:
        look_up(None, uri)
    assert "CANARY" not in str(caught.value)


def test_a_stored_config_that_is_wrong_names_its_line(run):
    run_uri = run[1]
    uri = f"{run_uri}/config.yaml"
    storage.write_bytes(uri, storage.read_bytes(uri).replace(b"seed: 0\n", b"seed: '0'\n", 1))
    with pytest.raises(
        DamagedError, match=rf"^{uri}: is damaged \({uri}: line 2: seed='0': must be a whole number; write 0\)"
    ):
        run_config(run_uri)
