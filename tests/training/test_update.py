"""Updates in half precision: the loss is scaled, gradients are not."""

import pytest
import torch

from stylegan.config.file import build
from stylegan.config.sections import TrainingConfig
from stylegan.training.schedule import stages
from stylegan.training.state import start_stage
from stylegan.training.update import SCALE_GROWTH, loss_scale, update

CONFIG = build(
    {
        "name": "t",
        "data": {"source": "digits", "resolution": 8, "channels": 1},
        "model": {"latent_size": 8, "mapping_layers": 1, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8},
        "training": {"start_resolution": 8, "batch": 4},
    }
)
# The settings that need a GPU. Only the scaling is tested here; the networks compute in fp32.
HALF = CONFIG.training.model_copy(update={"precision": "fp16"})


def state():
    return start_stage(CONFIG, stages(CONFIG)[0], num_labels=0, previous=None)


@pytest.mark.parametrize("training", [CONFIG.training, HALF], ids=["fp32", "fp16"])
def test_scaled_losses_move_weights_alike(training: TrainingConfig):
    """Adam divides the gradients by the scale before it computes their moments."""
    one, two = state(), state()
    images = torch.randn(4, 1, 8, 8)
    update(one, "D", [one.D(images).mean()], CONFIG.training)
    update(two, "D", [two.D(images).mean()], training)
    for (name, a), b in zip(one.D.named_parameters(), two.D.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
        if a in one.opt_D.state:  # without a fade the coarse path has no gradient
            torch.testing.assert_close(one.opt_D.state[a]["exp_avg_sq"], two.opt_D.state[b]["exp_avg_sq"])


def test_scale_grows_slowly_and_falls_at_an_overflow():
    s = state()
    images = torch.randn(4, 1, 8, 8)
    before = float(s.log2_scale["D"])
    update(s, "D", [s.D(images).mean()], HALF)
    assert float(s.log2_scale["D"]) == pytest.approx(before + SCALE_GROWTH, abs=1e-5)
    weights = [p.clone() for p in s.D.parameters()]
    update(s, "D", [s.D(images).mean() * torch.inf], HALF)
    assert float(s.log2_scale["D"]) == pytest.approx(before + SCALE_GROWTH - 1, abs=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(weights, s.D.parameters(), strict=True))
    assert float(s.log2_scale["G"]) == before
    assert loss_scale(s, "D", CONFIG.training) is None
    assert float(loss_scale(s, "D", HALF)) == pytest.approx(2.0 ** float(s.log2_scale["D"]))
