"""The error of a failed stage; the launches themselves are tested in tests/integration/test_ray.py."""

import signal
import threading
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from stylegan.cluster import stage_launch
from stylegan.cluster.notices import Board
from stylegan.cluster.stage_launch import _explain, _interruptible, backend, launch_stage
from stylegan.config.file import build
from stylegan.config.tree import Config
from stylegan.errors import ExhaustedError, StepError, UnavailableError
from stylegan.training import distributed
from stylegan.training.schedule import stages

STAGE = stages(build({"name": "t", "data": {"source": "digits", "resolution": 8}}))[0]


def explained(*failures):
    return _explain(STAGE, WorkerGroupError("failed", dict(enumerate(failures))))


def test_the_line_of_the_rank_that_knew_is_kept():
    """Rank 0 only lost its connection, rank 1 had the reason."""
    error = explained(RuntimeError("connection closed by peer"), StepError("shard 3 is damaged"))
    assert type(error) is StepError
    assert str(error) == "train 8x8: shard 3 is damaged"


def test_an_outage_may_work_later_and_a_mistake_wins_over_it():
    assert type(explained(UnavailableError("away"))) is UnavailableError
    assert type(explained(UnavailableError("away"), StepError("wrong"))) is StepError


def test_a_lost_worker_may_work_later():
    error = explained(RuntimeError("line one\nout of memory"))
    assert type(error) is UnavailableError
    assert "out of memory" in str(error)


@pytest.fixture
def attempts(monkeypatch):
    """Return attempts(*failures, max_failures=2): a launch whose fits fail in turn, each by the error of a worker.

    Returns how many fits there were, and the record or the error.
    """

    def launch(*failures, max_failures=2):
        fits, config = (
            [],
            build({"name": "t", "data": {"source": "digits", "resolution": 8}, "ray": {"max_failures": max_failures}}),
        )

        def fit(job, *_):
            fits.append(job)
            if len(fits) <= len(failures):
                failure = failures[len(fits) - 1]
                raise failure if isinstance(failure, TrainingFailedError) else WorkerGroupError("failed", {0: failure})
            return "record"

        monkeypatch.setattr(stage_launch, "wait_for_workers", lambda *_: 1)
        monkeypatch.setattr(stage_launch, "draining", dict)
        monkeypatch.setattr(stage_launch, "head_answers", lambda: True)
        monkeypatch.setattr(Board, "clear", lambda _: None)
        monkeypatch.setattr(Board, "nodes", lambda _: {})
        monkeypatch.setattr(stage_launch, "newest_checkpoint", lambda _: None)
        monkeypatch.setattr(stage_launch, "_fit", fit)
        try:
            result = launch_stage(SimpleNamespace(config=config, stage=STAGE, uri=""))
        except StepError as error:
            result = error
        return len(fits), result

    return launch


@pytest.mark.parametrize("error", [StepError("shard 3 is damaged"), ExhaustedError("s3://b was away for 600 s")])
def test_what_would_come_again_is_not_tried_again(attempts, error):
    """Neither a mistake nor a store for which a worker has waited already."""
    fits, failure = attempts(error)
    assert (fits, type(failure), str(failure)) == (1, type(error), f"train 8x8: {error}")


def test_lost_workers_are_started_again_as_often_as_the_config_allows(attempts):
    lost = RuntimeError("out of memory")
    assert attempts(lost, lost) == (3, "record")
    for allowed in (0, 2):
        fits, failure = attempts(*[lost] * 5, max_failures=allowed)
        assert (fits, type(failure)) == (allowed + 1, ExhaustedError)
    assert attempts(lost, StepError("wrong"))[0] == 2


def test_room_that_somebody_else_takes_counts_as_a_failure(attempts):
    """Otherwise a launch would go on for ever where Ray Train never gets the room that was there."""
    taken = ControllerError(WorkerGroupStartupTimeoutError(1))
    assert attempts(taken, taken) == (3, "record")
    fits, failure = attempts(*[taken] * 5)
    assert (fits, type(failure)) == (3, ExhaustedError)
    assert str(failure).startswith("train 8x8: somebody else has taken the room for its workers; ray.max_failures=2")


@pytest.mark.parametrize(
    ("workers", "gpus", "library"), [(4, 0, "gloo"), (1, 1, "nccl"), (4, 1, "nccl"), (2, 0.5, "gloo"), (1, 0.5, "nccl")]
)
def test_workers_that_share_a_gpu_do_without_nccl(workers, gpus, library):
    """NCCL refuses two ranks on one GPU."""
    ray = {"workers": workers, "gpus_per_worker": gpus}
    config = Config.model_validate(
        {"name": "x", "data": {"source": "digits", "resolution": 8}, "training": {"batch": 32}, "ray": ray}
    )
    assert backend(config, 4) == library


def test_ranks_wait_longer_for_each_other_than_one_may_wait_for_storage():
    assert distributed.timeout(7200) > 7200 + dist.default_pg_timeout.total_seconds() - 1


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_launch_asks_for_a_checkpoint_and_waits_for_it(interrupt):
    asked, order = threading.Event(), []

    def train():
        asked.wait(30)
        order.append("checkpoint")

    def request():
        order.append("request")
        asked.set()

    def raise_it(_number, _frame):
        raise interrupt

    before = signal.signal(signal.SIGALRM, raise_it)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(interrupt):
            _interruptible(train, Future(), on_interrupt=request, patience=30)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert order == ["request", "checkpoint"]


def test_an_error_of_a_launch_is_raised_without_a_request():
    with pytest.raises(ZeroDivisionError):
        _interruptible(lambda: 1 / 0, Future(), on_interrupt=lambda: pytest.fail("asked to stop"), patience=1)
