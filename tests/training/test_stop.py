"""A stage that is asked to stop: its checkpoint, the agreement of the ranks, and how it goes on."""

import pytest
import torch
from contents import assert_same, curves, pictures, training_state
from ranks import on_two_ranks

from stylegan.training import distributed, stop
from stylegan.training.loop import train_stage
from stylegan.training.state import checkpoints, newest_checkpoint
from stylegan.training.stop import StageStopped, StopRequests


def after(calls):
    """Return a function that asks to stop at its call of this number."""
    made = []

    def asked():
        made.append(1)
        return len(made) > calls

    return asked


def test_a_stopped_stage_goes_on_bit_identically(job):
    """It stops where no checkpoint is due, in the fade and after it, and at its very start, where nothing is to be saved."""
    previous = train_stage(job(4, "below"))
    whole, torn = job(8, "whole", previous=previous), job(8, "torn", previous=previous)
    expected = train_stage(whole)
    with pytest.raises(StageStopped, match="train 8x8: stopped at 16 images"):
        train_stage(torn, stop=lambda: True)
    assert checkpoints(torn.uri) == []
    for nimg in (28, 44, 52):
        reached = newest_checkpoint(torn.uri).nimg if checkpoints(torn.uri) else 16
        with pytest.raises(StageStopped):
            train_stage(torn, stop=after((nimg - reached) // 4))
        assert newest_checkpoint(torn.uri).nimg == nimg
    resumed = train_stage(torn, stop=lambda: False)
    assert resumed.nimg == expected.nimg
    assert_same(training_state(resumed.uri), training_state(expected.uri))
    assert curves(torn.uri) == curves(whole.uri)
    assert pictures(torn.uri) == pictures(whole.uri)


def test_a_finished_stage_does_not_stop(job):
    stage = job(4, "one")
    assert train_stage(stage, stop=after(4)).nimg == stage.stage.end_nimg


def answers_on_this_rank():
    """Return after how many steps this rank stops; only rank 0 is asked, and the ranks differ in speed."""
    stop.LOOK_SECONDS = 0.02 * (1 + distributed.rank())
    requests = StopRequests(after(3) if distributed.rank() == 0 else lambda: pytest.fail("asked"), torch.device("cpu"))
    steps = 0
    while not requests.arrived():
        distributed.barrier()
        steps += 1
    return steps


def test_all_ranks_stop_at_the_same_step(tmp_path):
    first, second = on_two_ranks(answers_on_this_rank, tmp_path)
    assert first == second > 3


def test_ranks_that_nobody_can_stop_exchange_nothing(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "of_first_rank", lambda values: pytest.fail("exchanged"))
    assert not StopRequests(None, torch.device("cpu")).arrived()
