"""Recorded steps with the kernels, which read the same memory each time and nothing of the host, equal the steps."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is missing: `make test-kernels` installs it beside torch's CPU build")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("`make test-kernels` interprets the kernels", allow_module_level=True)

from contents import assert_same
from tape import Launches, RefusingRecorder, TapeRecorder

from stylegan.config.file import build
from stylegan.networks import kernels, ops
from stylegan.training.graphs import WARM_UPS, StepRunner
from stylegan.training.schedule import stages
from stylegan.training.state import start_stage

BATCH, STEPS = 2, WARM_UPS + 2


def train(recorder):
    """Make steps of a stage at 8x8 in half precision, and return the state and how they were made."""
    config = build(
        {
            "name": "t",
            "data": {"source": "digits", "resolution": 8},
            "model": {"latent_size": 4, "mapping_layers": 1, "mapping_fmaps": 4, "fmap_base": 16, "fmap_max": 4},
            "training": {"start_resolution": 8, "batch": BATCH, "precision": "bf16"},
            "evaluation": {"metrics": ["fid"]},
        }
    )
    (stage,) = stages(config)
    state, paths = start_stage(config, stage, num_labels=0, previous=None), []
    runner, data = StepRunner(config, stage, state, path="fused", recorder=recorder), torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        reals = torch.randint(0, 256, (BATCH, 3, 8, 8), dtype=torch.uint8, generator=data)
        paths.append(runner.step(reals, None))
        state.nimg += BATCH
    return state, paths


def test_replays_equal_the_steps(monkeypatch):
    """To the last bit, with other images, latents, noise and weights in each step."""
    assert ops.load_kernels(torch.device("cpu")) is kernels
    for name in [name for name in vars(kernels) if name.endswith("_kernel")]:
        monkeypatch.setattr(kernels, name, Launches(getattr(kernels, name)))
    expected, eager = train(RefusingRecorder)
    state, paths = train(TapeRecorder)
    assert set(eager) == {"fused"}
    assert paths.count("graph") >= 2
    assert_same(state.state_dict(), expected.state_dict())
