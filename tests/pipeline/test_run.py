"""A run in storage: stages under a root that has moved, and verdicts of this gate on this version."""

import json
import shutil

import pytest

from stylegan import storage
from stylegan.config.file import build
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.errors import DamagedError, StepError
from stylegan.evaluation.quick import rows_name
from stylegan.evaluation.report import Report
from stylegan.pipeline.run import Run, find_run
from stylegan.registry.gate import Verdict

SHARDS = ShardSet(uri="x", fingerprint="f", num_images=100, resolutions=(4, 8), label_names=(), num_rejected=0)
VERDICT = Verdict(promote=True, reasons=("better",), champion=None, challenger="3")


def run_at(root, shards=SHARDS, **sections) -> Run:
    tree = {"name": "t", "storage": {"root": str(root)}, "data": {"source": "digits", "resolution": 8}}
    return Run(build(tree | sections), shards)


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


STAGES = {"training": {"start_resolution": 4}}
LABELLED = SHARDS.model_copy(update={"label_names": ("a", "b"), "images_fingerprint": "i"})


def checkpoint(run: Run, number: int, *, done: bool = True) -> None:
    """Write the records of a checkpoint of a stage, as its end or on the way there."""
    stage = run.stages[number]
    record = {"uri": f"{run.stage_uri(stage)}/checkpoint-000001000", "run_id": "r", "resolution": stage.resolution}
    record |= {"nimg": 1000, "digest": run.stage_key(stage)}
    storage.write_json(f"{record['uri']}/checkpoint.json", record)
    if done:
        storage.write_json(f"{run.stage_uri(stage)}/done.json", record)


@pytest.mark.parametrize("done", [True, False])
def test_a_stage_with_a_checkpoint_needs_nothing_below_it(tmp_path, done):
    run = run_at(tmp_path, **STAGES)
    assert [run.is_needed(stage) for stage in run.stages] == [True, True]
    checkpoint(run, 1, done=done)
    assert [run.is_needed(stage) for stage in run.stages] == [False, True]
    assert run.is_needed(run.stages[0], target=run.stages[0])


def test_stages_of_version_0_1_go_on_under_their_keys(tmp_path):
    """Labels were part of them; they stay where they are, unless there is more under the key without labels."""
    former = run_at(tmp_path, **STAGES, shards=LABELLED.model_copy(update={"images_fingerprint": None}))
    fresh = run_at(tmp_path, **STAGES, shards=LABELLED)
    assert {former.stage_key(stage) for stage in former.stages}.isdisjoint(map(fresh.stage_key, fresh.stages))
    checkpoint(former, 0)
    found = run_at(tmp_path, **STAGES, shards=LABELLED)
    assert found.keys == former.keys
    assert found.find_stage(found.stages[0]) is not None
    checkpoint(fresh, 1)
    assert run_at(tmp_path, **STAGES, shards=LABELLED).keys == fresh.keys


def test_a_job_names_the_folder_and_key_of_its_stage(trained):
    (stage,) = trained.stages
    job = trained.job(stage, None)
    assert (job.uri, job.key, job.run_id) == (trained.stage_uri(stage), trained.stage_key(stage), trained.run_id)
    assert job.uri.endswith(f"/stages/0008-{job.key}")


def test_a_verdict_is_that_of_this_gate_on_this_version(tmp_path):
    run = run_at(tmp_path)
    assert (run.find_verdict("3"), run.judged_version()) == (None, None)
    run.write_verdict(VERDICT, ("m-3", ""))
    found = run.find_verdict("3")
    assert (found.verdict, found.models, run.judged_version()) == (VERDICT, ("m-3", ""), "3")
    assert run.find_verdict("4") is None
    stored = storage.read_bytes(f"{run.uri}/verdict.json")
    storage.write_bytes(f"{run.uri}/verdict.json", stored.replace(b'"challenger": "3"', b'"challenger": "4"'))
    with pytest.raises(DamagedError, match=r"verdict.json: is damaged .* version 4, .* on 3\); delete it"):
        run.find_verdict("3")
    assert run.judged_version() is None
    storage.write_bytes(f"{run.uri}/verdict.json", stored)
    stricter = run_at(tmp_path, registry={"gate": {"min_improvement": 0.1}})
    assert stricter.run_id == run.run_id
    assert (stricter.find_verdict("3"), stricter.judged_version()) == (None, None)


@pytest.mark.parametrize("wrong", [{"checkpoint_uri": "0008-other/checkpoint-000001000"}, {"dataset_fingerprint": "g"}])
def test_the_report_of_another_run_is_not_taken_for_its_own(trained, tmp_path, wrong):
    (stage,) = trained.stages
    report = Report(
        protocol="p", dataset_fingerprint="f", checkpoint_uri=trained.find_stage(stage).uri, metrics={"fid_x": 1.0}
    )
    storage.write_json(f"{trained.uri}/report.json", report.model_dump(mode="json"))
    shutil.move(tmp_path / "root", tmp_path / "moved")
    moved = run_at(tmp_path / "moved")
    assert moved.find_report() == report
    storage.write_json(f"{moved.uri}/report.json", report.model_copy(update=wrong).model_dump(mode="json"))
    with pytest.raises(DamagedError, match=r"report.json: is damaged \(.* another run\); delete it and run the same"):
        moved.find_report()


def test_a_config_has_a_run_once_its_images_are_sharded(tiny_config, tmp_path, image_folder):
    config = tiny_config(tmp_path / "root", data={"source": str(image_folder), "resolution": 8})
    with pytest.raises(StepError, match=r"^tiny: its images are not sharded yet.* `.*stylegan train CONFIG` first"):
        find_run(config)
    shards = write_shards(open_source(config.data), config.data, config.storage.root)
    assert find_run(config).run_id == Run(config, shards).run_id


def test_curves_and_grids_of_a_run_are_in_the_order_of_training(tmp_path):
    run = run_at(tmp_path, **STAGES, snapshots={"metrics_kimg": {4: 0, 8: 1}})
    assert (run.curves(), run.samples(run.stages[0])) == ([], [])
    low, high = run.stages
    quick = rows_name(run.config, 8, run.shards)
    files = {"stats.jsonl": (low, [1000, 2000]), quick: (high, [2500, 3000])}
    for name, (stage, images) in [*files.items(), ("stats.jsonl", (high, [2200, 3000]))]:
        rows = [json.dumps({"nimg": nimg, "resolution": stage.resolution, "metrics": {name: 1.0}}) for nimg in images]
        storage.write_bytes(f"{run.stage_uri(stage)}/{name}", "\n".join([*rows, ""]).encode())
    assert [row["nimg"] for row in run.curves()] == [1000, 2000, 2200, 2500, 3000, 3000]
    assert {name for row in run.curves() for name in row["metrics"]} == {"stats.jsonl", quick}

    for name in ("000002", "000001", "reals"):
        storage.write_bytes(f"{run.stage_uri(low)}/samples/{name}.png", b"")
    assert [storage.name(uri) for uri in run.samples(low)] == ["000001.png", "000002.png"]
