"""The background thread: its order, failures and end; and host copies, which later changes do not reach."""

import logging
import threading

import pytest
import torch

from stylegan.errors import ExhaustedError, StepError
from stylegan.training.background import Background, HostCopy


def fail(text):
    raise StepError(text)


def diverge_after(jobs):
    with Background() as background:
        for job in jobs:
            background.submit(job)
        raise ZeroDivisionError


def test_jobs_are_done_in_order_by_one_thread_before_the_block_ends():
    done = []
    with Background() as background:
        for number in range(5):
            background.submit(lambda number=number: done.append((number, threading.current_thread().name)))
    assert [number for number, _ in done] == [0, 1, 2, 3, 4]
    assert len({name for _, name in done}) == 1
    assert threading.current_thread().name not in done[0]


@pytest.mark.parametrize("call", ["check", "wait", "submit", "end of the block"])
def test_failure_of_a_job_is_raised_by_the_next_call(call):
    def run_block():
        with Background() as background:
            job = background.submit(lambda: fail("full"))
            assert isinstance(job.exception(), StepError)  # waits until the job has failed
            if call == "submit":
                background.submit(lambda: None)
            elif call != "end of the block":
                getattr(background, call)()
            passed.append(call)

    passed = []
    with pytest.raises(StepError, match="full"):
        run_block()
    assert passed == (["end of the block"] if call == "end of the block" else [])


def test_failure_of_training_comes_first_and_that_of_a_job_is_logged(caplog):
    with caplog.at_level(logging.WARNING, logger="stylegan"), pytest.raises(ZeroDivisionError):
        diverge_after([lambda: fail("full")])
    assert "full" in caplog.text


def test_what_was_submitted_is_done_when_training_fails():
    """A good checkpoint that is being written is not lost when the next step diverges."""
    done = []
    with pytest.raises(ZeroDivisionError):
        diverge_after([lambda number=number: done.append(number) for number in range(3)])
    assert done == [0, 1, 2]


def test_only_the_newest_content_of_a_file_is_written():
    """Contents that are overtaken while they wait are left out; other jobs are not, and keep their order."""
    done, go = [], threading.Event()
    with Background() as background:
        background.submit(lambda: (go.wait(10), done.append("first")), destination="curves")
        for number in range(3):
            background.submit(lambda number=number: done.append(f"curves {number}"), destination="curves")
            background.submit(lambda number=number: done.append(f"grid {number}"))
        background.check()
        go.set()
    assert done == ["first", "grid 0", "grid 1", "curves 2", "grid 2"]


def test_a_store_that_was_waited_for_in_vain_is_not_tried_again(caplog):
    """The jobs behind the one that waited fail at once, with its error, which is raised once."""
    tried, go = [], threading.Event()

    def outage():
        tried.append(1)
        go.wait(10)
        raise ExhaustedError("away")

    def run_block():
        with Background() as background:
            for _ in range(4):
                background.submit(outage)
            go.set()

    with pytest.raises(ExhaustedError, match="away"):
        run_block()
    assert tried == [1]
    assert "away" not in caplog.text


def test_copy_keeps_its_values_when_the_original_changes():
    weight = torch.nn.Parameter(torch.ones(2, 3))
    original = {"net": {"w": weight}, "adam": [{"betas": (0.0, 0.99), "step": torch.tensor(3.0)}], "nimg": 7}
    copy = HostCopy(original, torch.device("cpu"))
    with torch.no_grad():
        weight.zero_()
        original["adam"][0]["step"] += 1
        original["nimg"] = 8
    copied = copy.get()
    assert torch.equal(copied["net"]["w"], torch.ones(2, 3))
    assert not copied["net"]["w"].requires_grad
    assert copied["adam"] == [{"betas": (0.0, 0.99), "step": torch.tensor(3.0)}]
    assert copied["nimg"] == 7
