"""Estimates how fast a stage trains and how much memory a worker needs, before the stage runs.

The speed is that of a finished stage of the same networks in the same storage. Without one it is counted. On CPUs of
this machine these are the operations at the speed of a core, which a quarter of a second measures, and the time in which
a step is started, block by block. On GPUs it is what one H200 has reached; for other kinds of GPU that is scaled by the
figures of their datasheets.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stylegan import storage
from stylegan.config.sections import ModelConfig, TrainingConfig
from stylegan.config.tree import Config
from stylegan.errors import DamagedError
from stylegan.networks.classifier import Classifier
from stylegan.networks.discriminator import make_discriminator
from stylegan.networks.generator import Generator
from stylegan.networks.normalisation import Normalisation
from stylegan.networks.style_transfer import StyleTransfer, shape_of
from stylegan.networks.vgg import VGG16Maps
from stylegan.records import Record, digest
from stylegan.training.gpus import MEASURED, Kind, Target, target
from stylegan.training.hardware import COMPUTE_DTYPES
from stylegan.training.schedule import Stage

# What a step costs per image, in forward passes of G or of D. A backward pass counts as two forward passes; a backward
# pass for the gradient of the image alone counts as one.
# Passes of a D step, and of an update of G, which every `d_steps`-th step has.
G_PASSES, G_UPDATE_PASSES = 1, 3  # fakes for D; forward and backward
D_PASSES, D_UPDATE_PASSES = 3 + 3, 2  # reals and fakes; the way through D to G
PENALTY_PASSES = 3  # the gradient at the images, and the backward pass through it
DECODER_PASSES, ENCODER_PASSES = (
    3,
    2 + 2,
)  # of a style transfer; its encoder sees three images and passes one gradient on
OWN_IMAGES_PASSES = 3  # forward and backward, for a penalty at images that have no scores yet

# What one NVIDIA H200 has reached in training (torch 2.11, 32x32 to 1024x1024, batches of 8 to 64, plain operations), by
# `training.precision`. A step takes its operations divided by the first, the numbers in its layer outputs times passes
# times the second, and the host's time to start its kernels. This meets the measured steps within a third. On another
# kind of GPU the first is scaled by the peak of its datasheet, the second by the bandwidth of its memory.
GPU_FLOPS = {"fp32": 27e12, "tf32": 260e12, "bf16": 510e12, "fp16": 510e12}  # per second, in convolutions
GPU_SECONDS = {
    "fp32": 5.3e-12,
    "tf32": 5.3e-12,
    "bf16": 4.2e-12,
    "fp16": 4.2e-12,
}  # per number and pass, for all the rest
GPU_HOST_SECONDS = 0.03  # per step

# The peak of memory on that GPU is met within 10 % by this: weights, their average, gradients and Adam's two moments in
# four bytes each, and these many copies of the layer outputs of G and D, in the bytes of `training.precision`. A gradient
# penalty in an update of its own needs fewer, because the graph of the first update is gone by then.
GPU_COPIES, GPU_COPIES_LAZY = 2.2, 1.88
GPU_CONTEXT_GIB = 0.5  # an allowance for what CUDA itself takes, beside the tensors

# Seconds in which a core starts the operations of one block (a resolution) of G and D, however small they are. Small
# stages on CPUs take hardly anything else.
BLOCK_SECONDS = 0.03
# Operations for an image in the published networks, where an evaluation uses them.
PUBLIC_FLOPS = 1.2e10

# Layer outputs in memory at the peak (R1's graph of the reals), relative to those of one forward pass of G and D.
ACTIVATION_COPIES = 4


@dataclass(frozen=True)
class Cost:
    """Speed of a stage and memory of its workers; `basis` says in words what the speed is known from."""

    images_per_second: float | None  # over all workers, as `curves.mean_speed`; None: unknown
    memory_gib: float  # of one worker
    basis: str = ""
    measured: bool = False  # whether the speed is that of a finished stage


def stage_cost(config: Config, stage: Stage, *, stored: bool = True) -> Cost:
    """Estimate the speed and the memory of a stage.

    Args:
        stored: whether to look for the speed of a finished stage in storage.
    """
    memory = stage_memory(config, stage)
    speed = measured_speed(config, stage) if stored else None
    if speed is not None:
        return Cost(speed, memory, "finished stages", measured=True)
    if config.workers_at(stage.resolution).gpus_per_worker:
        gpu = target(config, stage.resolution)
        if gpu.kind is None:  # it may be ten times slower than those that are known
            return Cost(None, memory)
        basis = _gpu_basis(gpu, gpu.kind)
    elif runs_here(config, stage.resolution):
        basis = "the speed of this machine's cores"
        slower = _core_flops(torch.float32) / _core_flops(_dtype(config))
        if slower >= 2:  # cores without instructions for this type
            basis += f", which compute {config.training.precision} about {slower:.0f} times slower than fp32 (training.precision)"
    else:  # CPUs of other machines
        return Cost(None, memory)
    return Cost(1 / counted_seconds(config, stage), memory, basis)


def _gpu_basis(gpu: Target, kind: Kind) -> str:
    """Return in words what times on a GPU are from."""
    if gpu.known == "assumed":
        return (
            f"what one {MEASURED.name} has reached (measured); other GPUs take longer, yours is not known here: name it, such as "
            "ray.accelerator_type=A100"
        )
    if kind is MEASURED:
        return f"what one {MEASURED.name} has reached (measured)"
    return (
        f"datasheets (estimated, nothing was measured on {gpu.name}): what one {MEASURED.name} has reached, scaled by the peaks "
        f"and the memory bandwidth of {kind.name}"
    )


def micro_batch(config: Config, stage: Stage) -> int:
    """Return the number of images whose layer outputs one worker holds at a time, with the fewest workers."""
    fewest = config.worker_counts_at(stage.resolution)[0]
    return stage.batch // fewest // config.parts_at(stage.resolution, fewest)


def stage_memory(config: Config, stage: Stage) -> float:
    """Estimate the peak of memory of one worker, in GiB: on its GPU if it has one, otherwise on the machine."""
    return stage_memory_for(config, stage, micro_batch(config, stage))


def stage_memory_for(config: Config, stage: Stage, images: int) -> float:
    """Estimate what `stage_memory` does for another number of images at a time."""
    _, _, parameters, activations = _counts(config, stage.resolution)
    if not config.workers_at(stage.resolution).gpus_per_worker:
        return 4 * (5 * parameters + ACTIVATION_COPIES * images * activations) / 2**30
    training = config.training
    together = training.penalty_interval == 1 and _active_penalties(training)
    copies = GPU_COPIES if together else GPU_COPIES_LAZY
    if training.rotation:  # one more graph of D, about half of all layer outputs, for its turned images
        copies += 4 * training.rotation.fraction / 2
    width = 4 if _dtype(config) == torch.float32 else 2
    return GPU_CONTEXT_GIB + (4 * 5 * parameters + width * copies * images * activations) / 2**30


def host_memory(config: Config, stage: Stage) -> float:
    """Estimate the memory of the machine, in GiB, that the tensors of one worker take: on GPUs only its checkpoint."""
    if not config.workers_at(stage.resolution).gpus_per_worker:
        return stage_memory(config, stage)
    _, _, parameters, _ = _counts(config, stage.resolution)
    return 4 * 5 * parameters / 2**30  # weights, their average, gradients and Adam's two moments


def runs_here(config: Config, resolution: int) -> bool:
    """Return whether a stage runs on the cores of this machine, whose speed can be measured."""
    return not config.workers_at(resolution).gpus_per_worker and not config.ray.address


def counted_seconds(config: Config, stage: Stage) -> float:
    """Return the seconds for which all workers train on an image of a stage, from counted operations."""
    need = config.workers_at(stage.resolution)
    if need.gpus_per_worker:
        kind = target(config, stage.resolution).kind or MEASURED
        return _gpu_seconds(config, stage, kind) / min(need.gpus_per_worker, 1) / stage.batch
    blocks = config.transfer.depth + 1 if config.transfer else stage.resolution.bit_length() - 2
    flops = step_flops(config, stage.resolution)
    worker_flops = _worker_flops(config, stage.resolution)
    return BLOCK_SECONDS * blocks / stage.batch + flops / (worker_flops * config.most_workers_at(stage.resolution))


def _gpu_seconds(config: Config, stage: Stage, kind: Kind) -> float:
    """Estimate the duration of a step on one GPU of a kind for each worker."""
    share = stage.batch // config.most_workers_at(stage.resolution)
    _, _, _, activations = _counts(config, stage.resolution)
    precision = config.training.precision
    passes = _passes_G(config.training) + _passes_D(config.training)
    convolutions = step_flops(config, stage.resolution) * share / _gpu_flops(kind, precision)
    slower = MEASURED.bandwidth / kind.bandwidth
    rest = passes * activations * share * GPU_SECONDS[precision] * slower
    return convolutions + rest + GPU_HOST_SECONDS * config.parts_at(stage.resolution)


def _gpu_flops(kind: Kind, precision: str) -> float:
    """Return the operations per second that convolutions reach; in single precision where a GPU lacks another one."""
    used = precision if precision in kind.tflops else "fp32"
    return GPU_FLOPS[used] * kind.tflops[used] / MEASURED.tflops[used]


def gpu_hours(config: Config, stage: Stage, seconds: float) -> float:
    """Return the hours of GPUs that a stage reserves in that time; 0 for a stage on CPUs."""
    need = config.workers_at(stage.resolution)
    return config.most_workers_at(stage.resolution) * (need.gpus_per_worker or 0) * seconds / 3600


def counted_evaluation(config: Config, resolution: int, images: int) -> float:
    """Return the seconds in which one worker generates images and measures them, from counted operations."""
    flops_G, _, _, _ = _counts(config, resolution)
    # The networks of an evaluation that are not public are about as large as a generator.
    flops = flops_G + max(flops_G, PUBLIC_FLOPS if config.evaluation.features == "inception" else 0)
    return images * flops / _worker_flops(config, resolution)


def _worker_flops(config: Config, resolution: int) -> float:
    """Return the operations per second of one worker; metrics on GPUs compute in single precision."""
    need = config.workers_at(resolution)
    if need.gpus_per_worker:
        return _gpu_flops(target(config, resolution).kind or MEASURED, "fp32") * need.gpus_per_worker
    return (need.cpus_per_worker or 1) * _core_flops(_dtype(config))


def _dtype(config: Config) -> torch.dtype:
    return COMPUTE_DTYPES[config.training.precision] or torch.float32


class Speed(Record):
    """The entries of done.json from which later plans read the speed of a finished stage; the others are digests."""

    img_per_sec: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    model: str
    ray: str
    work: str


def speed_record(config: Config, images_per_second: float) -> dict[str, object]:
    """Return the entries of a `Speed` in done.json."""
    return Speed(img_per_sec=images_per_second, **_speed_digests(config)).model_dump()


def _speed_digests(config: Config) -> dict[str, str]:
    """Return digests of the settings that decide the speed of a stage, apart from its resolution."""
    training = config.training
    work: list[object] = [
        training.precision,
        training.compile,
        training.penalty_interval,
        _active_penalties(training),
        training.rotation,
    ]
    if training.max_batch_per_worker or training.cuda_graphs != "auto":  # speeds of version 0.1 stay known
        work += [training.max_batch_per_worker, training.cuda_graphs]
    if training.d_steps > 1:
        work.append(training.d_steps)
    model: object = config.model.identity()
    if config.transfer:
        model, work = [config.transfer.depth, config.evaluation.features], [config.transfer.batch]
    return {"model": digest(model), "ray": digest(config.ray.speed_settings()), "work": digest(work)}


def measured_speed(config: Config, stage: Stage) -> float | None:
    """Return the images per second of a finished stage with these networks and this launch, None if none is stored."""
    folder = storage.join(storage.absolute(config.storage.root), "stages")
    wanted = _speed_digests(config)
    for name in storage.names(folder):
        if not name.startswith(f"{stage.resolution:04d}-"):
            continue
        try:
            speed = storage.read_json(storage.join(folder, name, "done.json"), Speed, cure="delete it")
        except (FileNotFoundError, DamagedError):
            continue  # of another stage, whose own run reports the damage
        if speed.model_dump(include=set(wanted)) == wanted:
            return speed.img_per_sec or None  # a stage without images has the speed 0
    return None


def step_flops(config: Config, resolution: int) -> float:
    """Count the operations of a step per image, on average over the steps."""
    flops_G, flops_D, _, _ = _counts(config, resolution)
    if config.transfer:
        return DECODER_PASSES * flops_G + ENCODER_PASSES * flops_D
    return _passes_G(config.training) * flops_G + _passes_D(config.training) * flops_D


def _passes_G(training: TrainingConfig) -> float:
    """Count the passes of an image through G in a step, on average over the steps."""
    return G_PASSES + G_UPDATE_PASSES / training.d_steps


def _passes_D(training: TrainingConfig) -> float:
    """Count the passes of an image through D in a step, on average over the steps."""
    passes = D_PASSES + D_UPDATE_PASSES / training.d_steps

    # The gradient penalties of every `penalty_interval`-th step.
    for penalty in _active_penalties(training):
        penalty_passes = PENALTY_PASSES
        if penalty == "gp" or training.penalty_interval > 1:
            penalty_passes += OWN_IMAGES_PASSES
        passes += penalty_passes / training.penalty_interval

    # Turned reals (forward and backward) and turned fakes (the way through D to G), each in four directions.
    if training.rotation:
        passes += (3 + D_UPDATE_PASSES / training.d_steps) * 4 * training.rotation.fraction
    return passes


def _active_penalties(training: TrainingConfig) -> list[str]:
    weights = {"r1": training.r1_gamma, "r2": training.r2_gamma, "gp": training.gp_weight}
    return [name for name, weight in weights.items() if weight]


def _counts(config: Config, resolution: int) -> tuple[float, float, int, int]:
    """Count as `_count_forward_pass`; of a style transfer the decoder stands for G and the encoder for D."""
    if config.transfer is None:
        return _count_forward_pass(config.model, resolution, config.data.channels)
    published = config.evaluation.features == "inception"
    return _count_transfer(published, config.data.channels, config.transfer.depth, resolution)


@lru_cache(maxsize=32)
def _count_transfer(
    published: bool, channels: Literal[1, 3], depth: int, resolution: int
) -> tuple[float, float, int, int]:
    """Count what decoder and encoder of a style transfer take for one image; returns as `_count_forward_pass`."""
    with torch.device("meta"):
        of = VGG16Maps() if published else Classifier(resolution=resolution, channels=channels, num_classes=2)
        network = StyleTransfer(shape_of(of, channels=channels, depth=depth, resolution=resolution))
        sizes = _output_sizes(network)
        with FlopCounterMode(display=False) as encoding:
            *_, deepest = network.encoder.maps(torch.empty(1, channels, resolution, resolution))
        with FlopCounterMode(display=False) as decoding:
            network.decoder(deepest)
    parameters = sum(p.numel() for p in network.decoder.parameters())
    return decoding.get_total_flops(), encoding.get_total_flops(), parameters, sum(sizes)


@lru_cache(maxsize=32)
def _count_forward_pass(model: ModelConfig, resolution: int, channels: int) -> tuple[float, float, int, int]:
    """Count what a forward pass of one image takes.

    Returns:
        Operations of G, operations of D, parameters of both, and floats in the layer outputs of both.
    """
    with torch.device("meta"):  # shapes only: nothing is allocated or computed
        # Classes cost next to nothing: one stands for those of a resnet, whose normalisations need some.
        labels = torch.zeros(1, dtype=torch.int64) if model.is_resnet and model.conditional else None
        num_labels = 0 if labels is None else 1
        G = Generator(model, resolution=resolution, channels=channels, num_labels=num_labels)
        D = make_discriminator(model, resolution=resolution, channels=channels, num_labels=num_labels)
        z, images = torch.empty(1, model.latent_size), torch.empty(1, channels, resolution, resolution)
        sizes = _output_sizes(G, D)
        with FlopCounterMode(display=False) as counter_G:
            G(z, labels)
        with FlopCounterMode(display=False) as counter_D:
            D(images, labels)
    parameters = sum(p.numel() for network in (G, D) for p in network.parameters())
    return counter_G.get_total_flops(), counter_D.get_total_flops(), parameters, sum(sizes)


def _output_sizes(*networks: nn.Module) -> list[int]:
    """Return a list that receives the number of floats in every layer output of these networks."""
    sizes: list[int] = []
    for name, module in chain.from_iterable(network.named_modules() for network in networks):
        parts = {part for part, _ in module.named_children()} - {"parametrizations"}  # those make weights
        if "parametrizations" not in name and (not parts or isinstance(module, Normalisation)):
            module.register_forward_hook(
                lambda _m, _i, out: sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            )
    return sizes


@lru_cache
def _core_flops(dtype: torch.dtype) -> float:
    """Measure the operations per second of one core: the rate of a middle-sized convolution and its gradients.

    Cores without instructions for a type are slow in one direction above all.
    """
    x = torch.randn(2, 64, 32, 32, dtype=dtype, requires_grad=True)
    weight = torch.randn(64, 64, 3, 3, dtype=dtype, requires_grad=True)

    def seconds() -> float:
        start = time.perf_counter()
        y = F.conv2d(x, weight, padding=1)
        torch.autograd.grad(y, (x, weight), torch.ones_like(y))
        return time.perf_counter() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads would wait for each other while another program runs
    try:
        seconds()  # the first pass also sets up torch
        best, deadline = seconds(), time.perf_counter() + 0.25
        while time.perf_counter() < deadline:
            best = min(best, seconds())
    finally:
        torch.set_num_threads(threads)
    return 3 * 2 * x.numel() * 64 * 9 / best
