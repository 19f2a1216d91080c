"""Recorded steps: a replay equals the step itself, whatever changes from step to step, and who cannot record goes on."""

import logging
from functools import cache

import pytest
import torch
from contents import assert_same, curves, train_killed, training_state
from ranks import in_double, on_two_ranks
from tape import RefusingRecorder, TapeRecorder

from stylegan.config.file import build
from stylegan.errors import StepError
from stylegan.networks import convolution, layers
from stylegan.training import distributed, graphs
from stylegan.training.curves import PATHS, read_rows
from stylegan.training.graphs import WARM_UPS, StepRunner, why_not_recordable
from stylegan.training.loop import train_stage
from stylegan.training.schedule import stages
from stylegan.training.state import newest_checkpoint, start_stage

BATCH = 8
VARIANTS = {
    "r1": {},
    "conditional": {"conditional": True},
    "lazy": {"r1_gamma": 3, "r2_gamma": 3, "penalty_interval": 3, "loss": "hinge"},
    "wgan-gp": {"loss": "wgan", "r1_gamma": 0, "gp_weight": 10, "drift_weight": 0.001},
    "rotation": {"rotation": {"fraction": 0.5, "decay_kimg": 0.112}, "mirror": True, "conditional": True},
    "bf16": {"precision": "bf16"},
    "in parts": {"max_batch_per_worker": 4, "mirror": True, "spectral": True},
    "fused resampling": {},
    "several updates of D": {"d_steps": 2, "penalty_interval": 2},
    "resnet": {
        "resnet": "self_modulated",
        "rotation": {"fraction": 0.5},
        "mirror": True,
        "spectral": True,
        "d_steps": 2,
    },
    "conditional resnet": {"resnet": None, "conditional": True, "loss": "wgan", "r1_gamma": 0, "gp_weight": 10},
}


STYLEGAN = {"latent_size": 8, "mapping_layers": 2, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8}


def make(*, conditional=False, spectral=False, **variant):
    """Return a runner's config, stage and state at the start of a fade, which the stage of a resnet does not have.

    With `resnet`, its normalisation.
    """
    model, training = STYLEGAN, {"start_resolution": 4, "fade_kimg": 0.08, "stable_kimg": 0.048}
    if "resnet" in variant:
        model = {"architecture": "resnet", "width": 0.02, "latent_size": 8, "norm": variant.pop("resnet")}
        training = {"stable_kimg": 0.128}
    config = build(
        {
            "name": "t",
            "data": {"source": "digits", "resolution": 32 if "architecture" in model else 8, "channels": 1},
            "model": model | {"conditional": conditional, "spectral_norm": spectral},
            "training": {"batch": BATCH} | training | variant,
            "evaluation": {"metrics": ["fid"]},
        }
    )
    stage = stages(config)[-1]
    state = start_stage(config, stage, num_labels=3 if conditional else 0, previous=None)
    state.nimg = stage.start_nimg
    return config, stage, state


LABELS = torch.arange(20) % 3


@pytest.fixture(autouse=True)
def as_on_gpus(monkeypatch):
    """Keep the matrices of four-tap kernels, which only GPUs do: they come from the host."""
    monkeypatch.setattr(convolution, "_shifts", cache(convolution._shifts))


def train(recorder, steps, **variant):
    """Make steps, across the end of the fade if there are enough, and return the state and how they were made."""
    config, stage, state = make(**variant)
    labels = LABELS if config.model.conditional else None
    runner = StepRunner(config, stage, state, labels, recorder=recorder)
    data, paths = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        if stage.resets_optimizers(state.nimg):
            runner.reset_optimizers()
        side = stage.resolution
        reals = torch.randint(0, 256, (BATCH, 1, side, side), dtype=torch.uint8, generator=data)
        own = distributed.own_share(BATCH, config.model.group)
        paths.append(runner.step(reals[own], labels if labels is None else labels[own]))
        state.nimg += BATCH
        state.steps += 1
    return state, paths


@pytest.mark.parametrize("variant", VARIANTS)
def test_replays_equal_the_steps(variant, monkeypatch):
    """Over a fade, its end and after it: images, labels, latents, styles, noise, alpha and weights all change."""
    if variant == "fused resampling":  # as from 128x128 on
        monkeypatch.setattr(layers, "FUSED_FROM", 8)
    options = VARIANTS[variant]
    expected, _ = train(RefusingRecorder, 16, **options)
    state, paths = train(TapeRecorder, 16, **options)
    assert_same(state.state_dict(), expected.state_dict())
    if variant == "r1":
        assert paths == (["eager"] * WARM_UPS + ["graph"] * (10 - WARM_UPS)) + ["eager"] * WARM_UPS + ["graph"] * 4
    assert paths.count("graph") >= 4


def train_share():
    """Train with this rank's share of each batch, in three kinds of steps, and return the weights and the paths."""
    convolution._shifts = cache(convolution._shifts)  # in a process of its own, which has no fixtures
    recorder, weights, replays = TapeRecorder if distributed.world_size() > 1 else RefusingRecorder, {}, []
    for variant in ("lazy", "resnet"):
        state, paths = train(recorder, 12, **VARIANTS[variant])
        weights |= {f"{variant} {name}": network.state_dict() for name, network in state.networks().items()}
        replays.append(paths.count("graph"))
    return weights, replays


def test_replays_on_two_ranks_train_like_one(tmp_path):
    """The means over ranks are a part of what is recorded."""
    expected, _ = in_double(train_share)  # the fixture undoes what it sets in this process
    for weights, replays in on_two_ranks(train_share, tmp_path):
        assert min(replays) >= 4
        for network, values in expected.items():
            for name, value in values.items():
                torch.testing.assert_close(
                    weights[network][name], value, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
                )


def test_a_recorded_step_changes_nothing_before_it_is_replayed():
    config, stage, state = make()
    runner = StepRunner(config, stage, state, recorder=TapeRecorder)
    runner.reset_optimizers()
    for _ in range(WARM_UPS):
        runner.step(torch.zeros(BATCH, 1, 8, 8, dtype=torch.uint8), None)
        state.nimg += BATCH
    before = {name: value.clone() for name, value in state.G.state_dict().items()}
    replays = []

    class Silent(TapeRecorder):
        def record(self, function):
            super().record(function)
            return lambda: replays.append(1)

    runner._recorder = Silent()
    runner.step(torch.zeros(BATCH, 1, 8, 8, dtype=torch.uint8), None)
    assert len(replays) == 2
    assert_same(dict(state.G.state_dict()), before)


def test_a_stage_goes_on_without_recording_and_says_why(caplog):
    with caplog.at_level(logging.WARNING):
        _, paths = train(RefusingRecorder, 5)
    assert paths == ["eager"] * 5
    (line,) = caplog.messages
    assert "RuntimeError: operation not permitted when stream is capturing" in line
    assert "training.cuda_graphs=false" in line


def test_who_insists_on_recording_gets_an_error():
    config, stage, state = make()
    insisting = config.model_copy(update={"training": config.training.model_copy(update={"cuda_graphs": True})})
    runner = StepRunner(insisting, stage, state, recorder=RefusingRecorder)
    runner.reset_optimizers()
    reals = torch.zeros(BATCH, 1, 8, 8, dtype=torch.uint8)
    for _ in range(WARM_UPS):
        runner.step(reals, None)
    with pytest.raises(
        StepError, match=r"training.cuda_graphs=true: a step could not be recorded \(RuntimeError: .*auto"
    ):
        runner.step(reals, None)


def test_why_steps_are_not_recorded(monkeypatch):
    training = make()[0].training
    off = training.model_copy(update={"cuda_graphs": False})
    gpu = torch.device("cuda")
    assert why_not_recordable(training, torch.device("cpu")) == "steps on a cpu are not recorded"
    assert why_not_recordable(off, gpu) == "training.cuda_graphs is false"
    assert why_not_recordable(training, gpu) is None
    monkeypatch.setattr(graphs.distributed, "world_size", lambda: 2)
    for backend, known in (("gloo", "the workers communicate by gloo"), ("nccl", None)):
        monkeypatch.setattr(graphs.dist, "get_backend", lambda backend=backend: backend)
        reason = why_not_recordable(training, gpu)
        assert reason is None if known is None else reason.startswith(known)


def test_a_stage_of_recorded_steps_resumes_exactly(job, monkeypatch):
    """Killed and resumed, which begins with steps that are not replayed, it ends with the same weights and curves."""
    monkeypatch.setattr(graphs, "cuda_recorder", lambda training, device: TapeRecorder())
    longer = {"fade_kimg": 0.048, "stable_kimg": 0.048, "penalty_interval": 2}
    previous = train_stage(job(4, "one", training=longer))
    whole, broken = (job(8, name, previous, training=longer) for name in ("one", "two"))
    end = train_stage(whole)
    train_killed(broken, monkeypatch)
    assert newest_checkpoint(broken.uri).nimg < broken.stage.end_nimg
    again = train_stage(broken)
    assert_same(training_state(again.uri), training_state(end.uri))
    assert curves(broken.uri) == curves(whole.uri)
    paths = {row["metrics"]["time/path"] for row in read_rows(f"{whole.uri}/stats.jsonl")}
    assert paths == {float(PATHS.index("eager")), float(PATHS.index("graph"))}
