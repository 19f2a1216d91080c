"""The error of a failed stage; the launches themselves are tested in tests/integration/test_ray.py."""

from ray.train import WorkerGroupError

from stylegan.cluster.stage_launch import _explain
from stylegan.config.file import build
from stylegan.errors import StepError, UnavailableError
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
