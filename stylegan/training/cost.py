"""How long a stage takes and how much memory a worker needs, before it runs.

Speed comes from finished stages of the same networks in the same storage; where there are none, from counted operations and
a quarter-second measurement of this machine (rough, and only where no GPU is asked for).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from stylegan import storage
from stylegan.config.sections import ModelConfig, TrainingConfig
from stylegan.config.tree import Config
from stylegan.networks.discriminator import Discriminator
from stylegan.networks.generator import Generator
from stylegan.records import digest
from stylegan.training.hardware import FEATURES
from stylegan.training.schedule import Stage

# Forward passes that one image costs; a backward pass counts as two forward ones, one that stops at the image as one.
G_PASSES = 1 + 3  # fakes for D; forward and backward
D_PASSES = 3 + 3 + 2  # reals, fakes, and the way through D to G
PENALTY_PASSES = (
    3  # slope at the images, and backward through it; images of its own cost a forward and a backward pass more
)
ACTIVATION_COPIES = 4  # layer outputs kept at the peak (R1's graph of the reals), relative to one forward pass of both


@dataclass(frozen=True)
class Cost:
    """`images_per_second` over all workers (None: unknown), `memory_gib` of one worker."""

    images_per_second: float | None
    memory_gib: float


def stage_cost(config: Config, stage: Stage) -> Cost:
    """Speed and memory of a stage."""
    workers = config.workers_at(stage.resolution)
    _, _, parameters, activations = _count(config.model, stage.resolution, config.data.channels)
    share = stage.batch // (workers.workers or 1)
    memory = (
        4 * (5 * parameters + ACTIVATION_COPIES * share * activations) / 2**30
    )  # weights, average, gradients, Adam's two moments
    speed = measured_speed(config, stage)
    if speed is None and not workers.gpus_per_worker and not config.ray.address:
        cores = (workers.cpus_per_worker or 1) * (workers.workers or 1)
        speed = (
            _core_flops(FEATURES[config.training.precision] or torch.float32)
            * cores
            / step_flops(config, stage.resolution)
        )
    return Cost(speed, memory)


def speed_record(config: Config, images_per_second: float) -> dict[str, object]:
    """What a finished stage leaves for later plans, beside its checkpoint's record."""
    return {"img_per_sec": images_per_second, **_speed_digests(config)}


def _speed_digests(config: Config) -> dict[str, object]:
    """What the speed of a stage depends on, apart from its resolution."""
    training = config.training
    work = [training.precision, training.compile, training.penalty_interval, _penalties(training), training.rotation]
    return {"model": digest(config.model), "ray": digest(config.ray), "work": digest(work)}


def measured_speed(config: Config, stage: Stage) -> float | None:
    """Images per second of a finished stage with these networks and this launch, from storage."""
    folder = storage.join(storage.absolute(config.storage.root), "stages")
    for name in storage.names(folder):
        if not name.startswith(f"{stage.resolution:04d}-"):
            continue
        try:
            done = storage.read_json(storage.join(folder, name, "done.json"))
        except FileNotFoundError:
            continue
        if done | _speed_digests(config) == done:
            return float(done["img_per_sec"]) or None
    return None


def step_flops(config: Config, resolution: int) -> float:
    """Operations of a D and a G step per image, on average over the steps."""
    training = config.training
    of_g, of_d, _, _ = _count(config.model, resolution, config.data.channels)
    passes = float(D_PASSES)
    for penalty in _penalties(training):
        own_images = penalty == "gp" or training.penalty_interval > 1
        passes += (PENALTY_PASSES + 3 * own_images) / training.penalty_interval
    if training.rotation:
        passes += (3 + 2) * 4 * training.rotation.fraction
    return G_PASSES * of_g + passes * of_d


def _penalties(training: TrainingConfig) -> list[str]:
    weights = {"r1": training.r1_gamma, "r2": training.r2_gamma, "gp": training.gp_weight}
    return [name for name, weight in weights.items() if weight]


@lru_cache(maxsize=32)
def _count(model: ModelConfig, resolution: int, channels: int) -> tuple[float, float, int, int]:
    """Operations of a forward pass of G and of D per image, their parameters, and floats of their layer outputs per image."""
    with torch.device("meta"):
        G = Generator(model, resolution=resolution, channels=channels)
        D = Discriminator(model, resolution=resolution, channels=channels)
        z, images = torch.empty(1, model.latent_size), torch.empty(1, channels, resolution, resolution)
        sizes: list[int] = []
        for module in [*G.modules(), *D.modules()]:
            if not list(module.children()):
                module.register_forward_hook(
                    lambda _m, _i, out: sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
                )
        with FlopCounterMode(display=False) as of_g:
            G(z)
        with FlopCounterMode(display=False) as of_d:
            D(images)
    parameters = sum(p.numel() for network in (G, D) for p in network.parameters())
    return of_g.get_total_flops(), of_d.get_total_flops(), parameters, sum(sizes)


@lru_cache
def _core_flops(dtype: torch.dtype) -> float:
    """Operations a second of a middle-sized convolution on one core, halved for all that is not a convolution."""
    x, weight = torch.randn(8, 64, 32, 32, dtype=dtype), torch.randn(64, 64, 3, 3, dtype=dtype)
    threads, deadline, best = torch.get_num_threads(), time.perf_counter() + 0.25, math.inf
    torch.set_num_threads(1)  # several would wait for each other wherever another program runs
    try:
        while time.perf_counter() < deadline:
            start = time.perf_counter()
            F.conv2d(x, weight, padding=1)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 2 * x.numel() * 64 * 9 / best / 2
