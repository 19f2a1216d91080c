"""A stage whose number of workers changes while it trains: the same weights as with one number, but for rounding."""

from functools import partial

import torch
from contents import training_state
from ranks import in_double, on_two_ranks

from stylegan.training.loop import train_stage
from stylegan.training.state import newest_checkpoint
from stylegan.training.stop import StageStopped


def train(job, *, steps=None):
    """Train the stage, or only so many steps of it; return the image count."""
    calls = 0

    def asked():
        nonlocal calls
        calls += 1
        return calls > steps

    try:
        return train_stage(job, stop=asked if steps else None).nimg
    except StageStopped as stopped:
        return int(str(stopped).split("stopped at ")[1].split()[0])


def test_the_number_of_workers_may_change_at_any_checkpoint(job, tmp_path):
    """One worker, then two, then one: through the end of the fade, with the same images and random numbers.

    The tolerance is for biases before an instance norm: their gradient is rounding alone, of which Adam makes a step.
    """
    training = {"batch": 8, "fade_kimg": 0.032, "stable_kimg": {4: 0.016, 8: 0.04}, "penalty_interval": 2}
    training |= {"max_batch_per_worker": 4, "rotation": {"fraction": 0.25}}
    below = in_double(partial(train_stage, job(4, "below", training=training)))
    whole, changing = (job(8, name, previous=below, training=training) for name in ("whole", "changing"))
    assert in_double(partial(train, whole)) == whole.stage.end_nimg == 88
    assert in_double(partial(train, changing, steps=2)) == 32
    (tmp_path / "two").mkdir()
    assert on_two_ranks(partial(train, changing, steps=1), tmp_path / "two") == [64, 64]
    assert in_double(partial(train, changing)) == 88
    expected, found = (training_state(newest_checkpoint(stage.uri).uri) for stage in (whole, changing))
    for name in ("G", "D", "G_ema"):
        for key, value in expected[name].items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-6, atol=1e-6)
