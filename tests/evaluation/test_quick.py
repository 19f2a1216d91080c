"""Quick metrics of the checkpoints of a stage, by a worker in this process; tests/integration has them on Ray."""

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stylegan import storage
from stylegan.config.file import build
from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.errors import UnavailableError
from stylegan.evaluation import quick
from stylegan.evaluation.engine import evaluate
from stylegan.evaluation.metrics.numerics import Estimate
from stylegan.evaluation.quick import QuickMetrics, quick_evaluation, rows_name, with_quick
from stylegan.training.job import StageJob
from stylegan.training.schedule import stages
from stylegan.training.state import Checkpoint, checkpoint_uri


class Here:
    """A worker that measures in this process, after it has called `before`."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.before, self.requests = before, list[Any]()
        self.started, self.closed = threading.Event(), threading.Event()

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        self.requests.append(item)
        self.started.set()
        self.before()
        return function(item)

    def close(self) -> None:
        self.closed.set()


class Slow(Here):
    """A worker that measures until it is closed."""

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        self.requests.append(item)
        self.started.set()
        assert self.closed.wait(20)
        raise UnavailableError("closed")


def configured(**changes: dict[str, Any]) -> Config:
    """Return a config in which 4x4 ends at 6 kimg, and 8x8 fades in until 10 and ends at 16."""
    tree: dict[str, Any] = {
        "name": "t",
        "data": {"source": "x", "resolution": 8, "channels": 1},
        "training": {"start_resolution": 4, "stable_kimg": 6, "fade_kimg": 4, "batch": 100},
        "model": {"mbstd_group": 1},
        "snapshots": {"metrics": ["fid", "pr"], "metrics_kimg": 2, "metrics_images": 120},
    }
    return build(tree | {name: tree.get(name, {}) | value for name, value in changes.items()})


@pytest.fixture
def make_job(tmp_path: Path, shards: ShardSet) -> Callable[..., StageJob]:
    """Return `make_job(resolution, **sections)`, which makes a stage with a folder of its own."""

    def make(resolution: int = 8, **sections: dict[str, Any]) -> StageJob:
        config = configured(**sections)
        stage = next(stage for stage in stages(config) if stage.resolution == resolution)
        uri = str(tmp_path / f"stage-{resolution}")
        return StageJob(config=config, stage=stage, shards=shards, key="k", run_id="r", uri=uri, previous=None)

    return make


@pytest.fixture
def save(checkpoint: Callable[..., str]) -> Callable[[StageJob, int], str]:
    """Return `save(job, nimg)`, which writes a checkpoint with generator and record only, and returns its URI."""

    def write(job: StageJob, nimg: int) -> str:
        uri, resolution = checkpoint_uri(job.uri, nimg), job.stage.resolution
        made = storage.read_bytes(f"{checkpoint(resolution=resolution)}/generator.safetensors")
        storage.write_bytes(f"{uri}/generator.safetensors", made)
        record = Checkpoint(uri=uri, run_id="r", resolution=resolution, nimg=nimg, digest="k")
        storage.write_json(f"{uri}/checkpoint.json", record.model_dump())
        return uri

    return write


def rows(job: StageJob) -> list[dict]:
    """Read the rows of a stage."""
    path = Path(job.uri, str(rows_name(job.config, job.stage.resolution, job.shards)))
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_marks_and_the_end_of_a_stage_are_measured_once(
    make_job: Callable[..., StageJob], save: Any, root: str
) -> None:
    """8.1 and 13 kimg pass a multiple of 2 kimg, 6.5 and 8.9 do not, 16 is the end. A later process repeats nothing."""
    job = make_job()
    for nimg in (6500, 8100, 8900, 13000, 16000):
        save(job, nimg)
        for _ in range(2):
            QuickMetrics(job, Here(), root=root).measure_if_due()
    assert [row["nimg"] for row in rows(job)] == [8100, 13000, 16000]
    assert not Path(job.uri, "measuring").exists()


def test_values_are_those_of_an_evaluation_in_the_middle_of_the_fade(
    make_job: Callable[..., StageJob], save: Any, root: str, shards: ShardSet
) -> None:
    job = make_job()
    uri = save(job, 8000)
    QuickMetrics(job, Here(), root=root).measure_if_due()
    (row,) = rows(job)
    evaluation = quick_evaluation(job.config, 8)
    half, whole = (evaluate(uri, shards, evaluation, root=root, alpha=alpha).metrics for alpha in (0.5, 1.0))
    keys = {f"{metric}_classifier" for metric in ("fid", "precision", "recall", "density", "coverage")}
    assert row == {"nimg": 8000, "resolution": 8, "metrics": {f"quick/{key}": half[key] for key in keys}}
    assert half["fid_classifier"] != whole["fid_classifier"]


def test_rows_take_no_intervals_that_nobody_reads(
    make_job: Callable[..., StageJob], save: Any, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jackknife takes most of the time of precision and recall."""
    monkeypatch.setattr(Estimate, "from_jackknife", None)
    job = make_job()
    save(job, 8000)
    QuickMetrics(job, Here(), root=root).measure_if_due()
    assert [row["nimg"] for row in rows(job)] == [8000]


def test_a_lower_stage_is_measured_at_its_resolution_and_says_so(
    make_job: Callable[..., StageJob], save: Any, root: str, shards: ShardSet
) -> None:
    job = make_job(4)
    uri = save(job, 6000)
    QuickMetrics(job, Here(), root=root).measure_if_due()
    (row,) = rows(job)
    alone = evaluate(uri, shards.up_to(4), quick_evaluation(job.config, 4), root=root)
    assert row["metrics"]["quick/fid_classifier_4x4"] == alone.metrics["fid_classifier"]
    assert all(name.endswith("_classifier_4x4") for name in row["metrics"])


def test_a_checkpoint_may_go_while_it_is_measured(make_job: Callable[..., StageJob], save: Any, root: str) -> None:
    job = make_job()
    uri = save(job, 8000)
    QuickMetrics(job, Here(before=lambda: storage.delete(uri)), root=root).measure_if_due()
    assert [row["nimg"] for row in rows(job)] == [8000]


def test_a_checkpoint_without_generator_is_left_out(
    make_job: Callable[..., StageJob], save: Any, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job()
    storage.delete(f"{save(job, 8000)}/generator.safetensors")
    with caplog.at_level(logging.INFO, "stylegan"):
        QuickMetrics(job, Here(), root=root).measure_if_due()
    assert "no quick metrics of the checkpoint at 8 kimg, which is not kept any more" in caplog.text
    assert rows(job) == []


def test_failures_are_one_warning_and_later_marks_are_tried_again(
    make_job: Callable[..., StageJob], save: Any, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    job, errors = make_job(), [RuntimeError("first\nline"), ValueError("second")]

    def fail() -> None:
        if errors:
            raise errors.pop(0)

    metrics = QuickMetrics(job, Here(before=fail), root=root)
    for nimg in (8000, 10000, 12000):
        save(job, nimg)
        metrics.measure_if_due()
        metrics.measure_if_due()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning == "train 8x8: quick metrics failed, training goes on: first line"
    assert [row["nimg"] for row in rows(job)] == [12000]
    assert not Path(job.uri, "measuring").exists()


def test_what_cannot_be_measured_is_told_and_the_rest_is_kept(
    make_job: Callable[..., StageJob], save: Any, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    """60 images are too few for a Frechet distance of 64 features."""
    job = make_job(snapshots={"metrics_images": 60})
    save(job, 8000)
    QuickMetrics(job, Here(), root=root).measure_if_due()
    assert "quick metric fid_classifier is skipped: " in caplog.text
    (row,) = rows(job)
    assert set(row["metrics"]) == {
        f"quick/{name}_classifier" for name in ("precision", "recall", "density", "coverage")
    }


def test_a_block_measures_while_it_runs_and_waits_for_its_end(
    make_job: Callable[..., StageJob], save: Any, root: str
) -> None:
    """Of the checkpoints during a measurement only the last is measured; the worker is closed at the end."""
    job, go = make_job(), threading.Event()
    worker = Here(before=lambda: go.wait(20))
    with QuickMetrics(job, worker, root=root, poll_seconds=0.01):
        save(job, 8000)
        assert worker.started.wait(20)
        save(job, 12000)
        save(job, 16000)
        go.set()
    assert [row["nimg"] for row in rows(job)] == [8000, 16000]
    assert worker.closed.is_set()


def test_a_last_measurement_that_takes_too_long_is_dropped(
    make_job: Callable[..., StageJob],
    save: Any,
    root: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(quick, "LEAST_SECONDS", 0.1)
    job = make_job()
    with caplog.at_level(logging.INFO, "stylegan"), QuickMetrics(job, Slow(), root=root, poll_seconds=0.01):
        save(job, 16000)
    assert "train 8x8: the quick metrics under way are dropped" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert rows(job) == []


def test_a_failure_of_the_stage_is_not_held_up(make_job: Callable[..., StageJob], save: Any, root: str) -> None:
    """The running measurement is dropped and the end of the stage is not measured; waiting would take a minute."""
    job, worker = make_job(), Slow()

    def stage() -> None:
        save(job, 8000)
        assert worker.started.wait(20)
        save(job, 16000)
        raise KeyError("the stage")

    start = time.monotonic()
    with pytest.raises(KeyError, match="the stage"), QuickMetrics(job, worker, root=root, poll_seconds=0.01):
        stage()
    assert time.monotonic() - start < 20
    assert len(worker.requests) == 1


def test_off_is_off(make_job: Callable[..., StageJob], save: Any, root: str) -> None:
    job, worker = make_job(8, snapshots={"metrics_kimg": {4: 2, 8: 0}}), Here()
    with QuickMetrics(job, worker, root=root, poll_seconds=0.01):
        save(job, 16000)
    assert worker.requests == []
    assert rows_name(job.config, 8) is None
    assert rows_name(job.config, 4)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"evaluation": {"ppl_samples": 7}}, True),
        ({"snapshots": {"metrics_kimg": 3}}, True),
        ({"snapshots": {"metrics": ["pr", "fid"]}}, True),
        ({"snapshots": {"metrics": ["fid"]}}, False),
        ({"snapshots": {"metrics_images": 121}}, False),
        ({"evaluation": {"features": "rotation"}}, False),
        ({"evaluation": {"seed": 1}}, False),
    ],
)
def test_rows_of_other_settings_are_kept_apart(change: dict[str, Any], same: bool) -> None:
    assert (rows_name(configured(**change), 8) == rows_name(configured(), 8)) == same


def test_networks_of_quick_metrics_are_needed_too() -> None:
    config = configured(evaluation={"metrics": ["ppl_wend"]}, registry={"gate": {"metric": "ppl_wend"}})
    assert with_quick(config).metrics == ("ppl_wend", "fid", "pr")


def test_quick_metrics_leave_the_gpus_alone_unless_they_are_told_to_use_one(
    make_job: Callable[..., StageJob], save: Any, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU they are measured in single precision, so they are the same whatever the evaluation on GPUs has."""
    seen = []

    def note(uri: str, shards: ShardSet, evaluation: Any, **means: Any) -> Any:
        seen.append((evaluation.precision, means["device"]))
        return evaluate(uri, shards, evaluation.model_copy(update={"precision": "fp32"}), **(means | {"device": "cpu"}))

    monkeypatch.setattr(quick, "evaluate", note)
    monkeypatch.setattr(quick.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quick.torch.cuda, "device_count", lambda: 3)
    chosen = []
    monkeypatch.setattr(quick.torch.cuda, "set_device", chosen.append)
    gpu, names = {"ray": {"gpus_per_worker": 1}, "evaluation": {"precision": "bf16"}}, []
    for number, snapshots in enumerate(({}, {"metrics_device": "cuda"}), start=1):
        job = make_job(snapshots=snapshots, **gpu)
        save(job, 8000 * number)
        QuickMetrics(job, Here(), root=root).measure_if_due()
        names.append(rows_name(job.config, 8, job.shards))
    assert seen == [("fp32", "cpu"), ("bf16", "cuda")]
    assert chosen == [2]  # Ray gives the first GPUs to training
    assert names[0] == rows_name(make_job().config, 8, job.shards)
    assert names[1] != names[0]


def test_a_machine_without_a_gpu_is_named_and_training_goes_on(
    make_job: Callable[..., StageJob], save: Any, root: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(quick.torch.cuda, "is_available", lambda: False)
    job = make_job(snapshots={"metrics_device": "cuda"}, ray={"gpus_per_worker": 1})
    save(job, 8000)
    QuickMetrics(job, Here(), root=root).measure_if_due()
    assert rows(job) == []
    assert "training goes on: snapshots.metrics_device=cuda: torch can use no GPU on " in caplog.text
    assert "set snapshots.metrics_device=cpu" in caplog.text
