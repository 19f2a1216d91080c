"""A run in storage: stages under a root that has moved, and verdicts of this gate on this version."""

import shutil

import pytest

from stylegan import storage
from stylegan.config.file import build
from stylegan.data.shardset import ShardSet
from stylegan.pipeline.run import Run
from stylegan.registry.gate import Verdict

SHARDS = ShardSet(uri="x", fingerprint="f", num_images=100, resolutions=(4, 8), label_names=(), num_rejected=0)
VERDICT = Verdict(promote=True, reasons=("better",), champion=None, challenger="3")


def run_at(root, **sections) -> Run:
    tree = {"name": "t", "storage": {"root": str(root)}, "data": {"source": "digits", "resolution": 8}}
    return Run(build(tree | sections), SHARDS)


@pytest.fixture
def trained(tmp_path) -> Run:
    """A run whose only stage is finished."""
    run = run_at(tmp_path / "root")
    (stage,) = run.stages
    record = {"uri": f"{run.stage_uri(stage)}/checkpoint-000001000", "run_id": run.run_id, "resolution": 8}
    record |= {"nimg": 1000, "digest": run.stage_key(stage)}
    storage.write_json(f"{record['uri']}/checkpoint.json", record)
    storage.write_json(f"{run.stage_uri(stage)}/done.json", record)
    return run


def test_a_finished_stage_is_found_where_its_root_is_now(trained, tmp_path):
    (stage,) = trained.stages
    assert trained.find_stage(stage).nimg == 1000
    shutil.move(tmp_path / "root", tmp_path / "moved")
    moved = run_at(tmp_path / "moved")
    assert moved.find_stage(stage).uri.startswith(str(tmp_path / "moved"))
    assert trained.find_stage(stage) is None


def test_a_stage_whose_checkpoint_is_gone_is_not_finished(trained):
    (stage,) = trained.stages
    storage.delete(trained.find_stage(stage).uri)
    assert trained.find_stage(stage) is None


def test_a_job_names_the_folder_and_key_of_its_stage(trained):
    (stage,) = trained.stages
    job = trained.job(stage, None)
    assert (job.uri, job.key, job.run_id) == (trained.stage_uri(stage), trained.stage_key(stage), trained.run_id)
    assert job.uri.endswith(f"/stages/0008-{job.key}")


def test_a_verdict_is_that_of_this_gate_on_this_version(tmp_path):
    run = run_at(tmp_path)
    assert run.find_verdict("3") == (None, False)
    run.write_verdict(VERDICT, applied=False)
    assert run.find_verdict("3") == (VERDICT, False)
    run.write_verdict(VERDICT, applied=True)
    assert run.find_verdict("3") == (VERDICT, True)
    assert run.find_verdict("4") == (None, False)
    stricter = run_at(tmp_path, registry={"gate": {"min_improvement": 0.1}})
    assert stricter.run_id == run.run_id
    assert stricter.find_verdict("3") == (None, False)
