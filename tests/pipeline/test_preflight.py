"""Mistakes that can be known before the first step end a run there: nothing is listed, sharded or written."""

import os
import tempfile
from pathlib import Path

import pytest

from stylegan import retry
from stylegan.cluster.session import ray_session
from stylegan.errors import ConfigError, StepError
from stylegan.pipeline import steps
from stylegan.pipeline.plan import make_plan
from stylegan.pipeline.preflight import try_writing
from stylegan.pipeline.steps import Pipeline
from stylegan.tracking.connection import connect, resolve_uri
from stylegan.training.schedule import stages


def start(config):
    """Begin a run of this config."""
    with Pipeline(config):
        pass


def test_the_checks_wait_as_long_as_the_config_says_and_leave_no_settings(make_config, monkeypatch):
    """A dead bucket is waited for by storage.patience_s, not by the default; a check that fails changes nothing."""
    monkeypatch.delenv("STYLEGAN_PATIENCE", raising=False)
    seen = []

    def check(config):
        seen.append(retry.patience())
        raise StepError("away")

    monkeypatch.setattr(steps, "check_places", check)
    with pytest.raises(StepError, match="away"):
        start(make_config(storage={"root": make_config().storage.root, "patience_s": 3}))
    assert seen == [3]
    assert "STYLEGAN_PATIENCE" not in os.environ


@pytest.mark.parametrize("begin", [start, make_plan, lambda config: Pipeline(config).shard()])
def test_a_root_that_is_a_file_is_refused(tmp_path, tiny_config, begin):
    (tmp_path / "file").write_text("notes")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for root in ("file", "file/below", "gone"):
        with pytest.raises(
            ConfigError, match=rf"storage\.root={tmp_path}/{root}: .* is not a folder; give another path"
        ):
            begin(tiny_config(tmp_path / root))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "gone"]


def test_a_root_without_permission_is_refused(tiny_config):
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to anybody else
        os.chmod(folder, 0o555)
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(StepError, match=rf"storage\.root={folder}/new: no permission to write {folder}"):
                start(tiny_config(f"{folder}/new"))
        finally:
            os.seteuid(user)


def test_a_deleted_experiment_ends_a_run_before_sharding(make_config, tmp_path):
    config = make_config()
    client = connect(resolve_uri(config))
    client.delete_experiment(client.create_experiment("stylegan"))
    with pytest.raises(StepError, match=r"tracking\.experiment=stylegan: this experiment was deleted in MLflow"):
        start(config)
    assert not (tmp_path / "datasets").exists()


def test_workers_that_the_cluster_cannot_hold_end_a_run_before_sharding(make_config, tmp_path):
    """Sharding alone asks for no worker: its set may be trained elsewhere."""
    config = make_config(ray={"cpus_per_worker": 999}, evaluation={"metrics": []})
    with ray_session(), pytest.raises(ConfigError, match=r"stage 8x8 asks for 1 worker\(s\) with 999 CPU each"):
        Pipeline(config).shard(then=stages(config))
    assert not (tmp_path / "datasets").exists()
    assert Pipeline(config).shard().record.num_images == 1797


def test_trying_to_write_leaves_nothing(tmp_path):
    for root in (tmp_path, tmp_path / "new"):
        try_writing(str(root))
    assert list(Path(tmp_path).iterdir()) == []
