"""Training on a GPU: recorded steps equal eager ones, the host never waits, memory does not grow, and resume is exact."""

import pytest
import torch
from contents import assert_same, train_killed, training_state

from stylegan.config.file import build
from stylegan.training.background import Background
from stylegan.training.curves import PATHS, Curves, read_rows
from stylegan.training.graphs import WARM_UPS, StepRunner
from stylegan.training.hardware import tuned
from stylegan.training.job import StageJob
from stylegan.training.loop import train_stage
from stylegan.training.schedule import stages
from stylegan.training.state import start_stage
from stylegan.training.update import CHECK_EVERY, DivergenceCheck

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = torch.device("cuda:0")
BATCH, RESOLUTION = 16, 32


def configured(**training):
    return build(
        {
            "name": "t",
            "data": {"source": "digits", "resolution": RESOLUTION},
            "model": {"latent_size": 32, "mapping_layers": 2, "mapping_fmaps": 32, "fmap_base": 512, "fmap_max": 64},
            "training": {"start_resolution": 16, "batch": BATCH, "fade_kimg": 0.32, "stable_kimg": 1.6} | training,
            "ray": {"gpus_per_worker": 1},
        }
    )


def start(config):
    stage = stages(config)[-1]
    state = start_stage(config, stage, num_labels=0, previous=None, device=DEVICE)
    state.nimg = stage.start_nimg
    return stage, state


def images(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (BATCH, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8, generator=generator).to(DEVICE)


@pytest.fixture
def deterministic(monkeypatch):
    """Make kernels give the same bits each time.

    Only convolutions have others. With torch.use_deterministic_algorithms, D's scores of classes would have a backward
    pass that copies from the host in some versions, which no graph can contain.
    """
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def train(config, steps):
    stage, state = start(config)
    paths = []
    with tuned(config.training, DEVICE):
        torch.backends.cudnn.benchmark = False  # the fastest kernel may be another one each time
        runner = StepRunner(config, stage, state)
        for number in range(steps):
            if stage.resets_optimizers(state.nimg):
                runner.reset_optimizers()
            paths.append(runner.step(images(number), None))
            state.nimg += BATCH
    return state, paths


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("variant", [{}, {"penalty_interval": 4}, {"max_batch_per_worker": 8}, {"rotation": {}}])
def test_recorded_steps_equal_eager_ones(deterministic, precision, variant):
    """Across the end of a fade, to the last bit."""
    graph, paths = train(configured(precision=precision, cuda_graphs=True, **variant), 32)
    eager, _ = train(configured(precision=precision, cuda_graphs=False, **variant), 32)
    assert paths.count("graph") >= 32 - 6 * WARM_UPS
    assert_same(graph.state_dict(), eager.state_dict())


def test_the_host_never_waits_for_the_gpu(tmp_path):
    """Over twenty steps with a point of the curves and checks for divergence, once every kind of step is recorded."""
    config = configured(cuda_graphs=True, penalty_interval=4, fade_kimg=0)
    stage, state = start(config)
    job = StageJob.model_construct(config=config, stage=stage, uri=str(tmp_path), key="k", run_id="r", previous=None)
    batches = [images(number) for number in range(4)]
    with tuned(config.training, DEVICE), Background() as background, Curves(job, state, background) as curves:
        runner, divergence = StepRunner(config, stage, state), DivergenceCheck(state)
        runner.reset_optimizers()
        try:
            for number in range(60):
                if number == 20:
                    torch.cuda.synchronize()
                    torch.cuda.set_sync_debug_mode("error")
                with curves.steps:
                    curves.took(runner.step(batches[number % 4], None))
                state.nimg += BATCH
                state.steps += 1
                if number % CHECK_EVERY == 0:
                    divergence.check()
                if number % 10 == 9:
                    curves.add_point()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        metrics = curves.newest()()
    assert metrics["time/path"] == PATHS.index("graph")
    assert metrics["time/img_per_sec"] > 0


def test_memory_does_not_grow():
    config = configured(cuda_graphs=True, penalty_interval=4, fade_kimg=0)
    stage, state = start(config)
    used = []
    with tuned(config.training, DEVICE):
        runner = StepRunner(config, stage, state)
        runner.reset_optimizers()
        for number in range(120):
            runner.step(images(number), None)
            state.nimg += BATCH
            if number in (40, 119):
                torch.cuda.synchronize()
                used.append(torch.cuda.memory_reserved())
    assert used[0] == used[1]


def test_a_killed_stage_resumes_exactly(job, deterministic, monkeypatch):
    """Killed at any checkpoint, it ends with the weights of an uninterrupted stage on the same GPU."""
    training = {"fade_kimg": 0.048, "stable_kimg": 0.096, "penalty_interval": 2}
    previous = train_stage(job(4, "one", training=training), device=DEVICE)
    whole, broken = (job(8, name, previous, training=training) for name in ("one", "two"))
    end = train_stage(whole, device=DEVICE)
    train_killed(broken, monkeypatch, DEVICE)
    again = train_stage(broken, device=DEVICE)
    assert_same(training_state(again.uri), training_state(end.uri))
    assert PATHS.index("graph") in {row["metrics"]["time/path"] for row in read_rows(f"{whole.uri}/stats.jsonl")}
