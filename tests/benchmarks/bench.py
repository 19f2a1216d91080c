"""`make bench-training`: compares the training core with its yardstick, plain.py, and with the machine's own peak.

Each variant has a process of its own, with the allocator that it would normally have, so that its peak memory can be
measured. The variants take turns, one step each, round after round. Only the ratios within one run count: absolute
times depend on the machine and on its load. `--device cuda` puts all variants, the yardstick too, on one GPU;
`bench_gpu` measures more of it. `--architecture resnet` measures the pair of Miyato et al. 2018 against plain_resnet.py,
`--rotation` as well that of SS-GAN.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F
from benchmarks.plain import Draws, PlainDiscriminator, PlainGenerator, PlainTraining
from benchmarks.plain_resnet import PlainResNetDiscriminator, PlainResNetGenerator, PlainResNetTraining
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from stylegan.config.file import build
from stylegan.config.tree import Config
from stylegan.networks.generator import random_noise
from stylegan.networks.resnet import SHAPES, widths
from stylegan.training.cost import step_flops
from stylegan.training.distributed import select_device
from stylegan.training.graphs import StepRunner
from stylegan.training.hardware import set_precision, tuned
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import TrainState, start_stage

# Name -> settings of `training`; None for the yardstick.
VARIANTS: dict[str, dict[str, object] | None] = {
    "plain": None,
    "fp32": {},
    "fp32 compiled": {"compile": True},
    "bf16 compiled": {"precision": "bf16", "compile": True},
    "bf16 compiled lazy": {"precision": "bf16", "compile": True, "penalty_interval": 16},
}
EXACT, FAST = "fp32 compiled", "bf16 compiled lazy"
Step = Callable[[], object]


def require_device(device: str) -> None:
    """End the program with one line and exit code 2 if it is to use a GPU, and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        print(
            f"--device cuda: torch {torch.__version__} finds no GPU here; run it on a machine with one, or give "
            "--device cpu",
            file=sys.stderr,
        )
        raise SystemExit(2)


def make_config(
    resolution: int,
    fmap_max: int,
    batch: int,
    training: dict[str, object],
    *,
    device: str = "cpu",
    model: dict[str, object] | None = None,
) -> Config:
    """Return the configuration of a run of one stage, with R1 in every step unless `training` says otherwise.

    `model` takes the place of a StyleGAN with `fmap_max`.
    """
    return build(
        {
            "name": "bench",
            "data": {"source": "digits", "resolution": resolution},
            "model": model or {"fmap_max": fmap_max},
            "training": {"start_resolution": resolution, "batch": batch, **training},
            "ray": {"gpus_per_worker": int(device == "cuda")},
        }
    )


def config_of(options: argparse.Namespace, training: dict[str, object]) -> Config:
    """Return the configuration that the options ask for, with more settings of `training`."""
    sizes, device = (options.resolution, options.fmap_max, options.batch), options.device
    if options.architecture == "stylegan":
        return make_config(*sizes, training, device=device)
    model = {"architecture": "resnet", "latent_size": 128, "spectral_norm": True, "width": options.width}
    published = {"loss": "hinge", "r1_gamma": 0, "learning_rate": 0.0002, "adam_beta1": 0, "adam_beta2": 0.9}
    rotation = {"rotation": {} if options.rotation else None}
    return make_config(*sizes, published | rotation | training, device=device, model=model)


def variants_of(options: argparse.Namespace) -> dict[str, dict[str, object] | None]:
    """Return the variants to measure; without a penalty none is lazy."""
    lazy = options.architecture == "stylegan"
    return {name: settings for name, settings in VARIANTS.items() if lazy or "lazy" not in name}


@contextlib.contextmanager
def plain_kernels(*, tf32: bool) -> Iterator[None]:
    """Let the yardstick search for its fastest kernels on a GPU, as the product does; without TF32 unless it is asked for."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, tf32, tf32
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def some_images(config: Config, device: torch.device) -> Tensor:
    """Return a batch of random images."""
    resolution = config.data.resolution
    shape = (config.batch_at(resolution), 3, resolution, resolution)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)


def plain_steps(config: Config, device: torch.device) -> tuple[Step, Step]:
    """Return a training step and an inference step of the yardstick."""
    resolution, batch = config.data.resolution, config.batch_at(config.data.resolution)
    G = PlainGenerator(config.model, resolution=resolution, channels=3).to(device)
    D = PlainDiscriminator(config.model, resolution=resolution, channels=3).to(device)
    training = PlainTraining(G, D, learning_rate=0.001)
    images = some_images(config, device)

    def train() -> None:
        training.d_step(images.float() / 127.5 - 1, None, Draws.random(G, batch))
        training.g_step(None, Draws.random(G, batch))

    return train, torch.no_grad()(lambda: G(Draws.random(G, batch)))


def plain_resnet_steps(config: Config, device: torch.device) -> tuple[Step, Step]:
    """Return a training step and an inference step of the yardstick of the `resnet` pair."""
    sizes = {"resolution": config.data.resolution, "channels": 3}
    G = PlainResNetGenerator(config.model, **sizes).to(device)
    D = PlainResNetDiscriminator(config.model, **sizes, rotation=config.training.rotation is not None).to(device)
    training, images = PlainResNetTraining(G, D), some_images(config, device)
    training.G_ema.eval()

    def draw() -> Tensor:
        return torch.randn(len(images), config.model.latent_size, device=device)

    def train() -> None:
        training.d_step(images.float() / 127.5 - 1, None, draw())
        training.g_step(None, draw())

    return train, torch.no_grad()(lambda: training.G_ema(draw()))


def training_step(config: Config, stage: Stage, state: TrainState) -> Callable[[Tensor], None]:
    """Return a function of a batch that makes a step of D and one of G, as the loop of a stage does."""

    runner = StepRunner(config, stage, state)

    def step(images: Tensor) -> None:
        runner.step(images, None)
        state.nimg += stage.batch
        state.steps += 1

    return step


def own_steps(config: Config, device: torch.device) -> tuple[Step, Step]:
    """Return a training step and an inference step of the product."""
    stage = stages(config)[-1]
    state = start_stage(config, stage, num_labels=0, previous=None, device=device)
    images = some_images(config, device)
    step = training_step(config, stage, state)
    set_precision(state.G_ema, config.training.precision)
    state.G_ema.eval()

    def train() -> None:
        step(images)

    def infer() -> None:
        z = torch.randn(stage.batch, config.model.latent_size, device=device)
        state.G_ema(z, noise=random_noise(None, device))

    return train, torch.no_grad()(infer)


def serve(connection: Connection, name: str, options: argparse.Namespace) -> None:
    """Run one variant in its process and answer requests.

    The answer to ("train" | "infer", steps) is the seconds per step, the answer to ("end", 0) the peak memory in MiB.
    """
    torch.set_num_threads(options.threads)
    device = select_device(options.device)
    settings = VARIANTS[name]
    config = config_of(options, settings or {})
    with contextlib.ExitStack() as stack:
        if settings is None:
            stack.enter_context(plain_kernels(tf32=False))
            make = plain_resnet_steps if config.model.is_resnet else plain_steps
            train, infer = make(config, device)
        else:
            stack.enter_context(tuned(config.training, device))
            train, infer = own_steps(config, device)
        while True:
            what, steps = connection.recv()
            if what == "end":
                connection.send(peak_memory(device))
                return
            connection.send(timed(train if what == "train" else infer, steps, device))


def peak_memory(device: torch.device) -> float:
    """Return the most memory that this process has had, in MiB; on a GPU that of its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(step: Step, steps: int, device: torch.device) -> float:
    """Return the seconds per step. On a GPU a step counts until its work is done, not only queued."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / steps


def ask(connection: Connection, what: str, steps: int) -> float:
    """Send a request to a variant and return its answer."""
    connection.send((what, steps))
    return float(connection.recv())


def measure(options: argparse.Namespace) -> None:
    """Measure all variants in turns, and print a table."""
    # Start the processes.
    context = multiprocessing.get_context("spawn")
    turns: dict[str, Connection] = {}
    for name in variants_of(options):
        here, there = context.Pipe()
        context.Process(target=serve, args=(there, name, options), daemon=True).start()
        turns[name] = here

    # Measure training, then inference.
    seconds: dict[tuple[str, str], list[float]] = {}
    for what in ("train", "infer"):
        for connection in turns.values():
            ask(connection, what, 2)  # the first steps compile and fill caches
        for _ in range(options.rounds):
            for name, connection in turns.items():
                # A lazy step computes R1 once in sixteen steps, so a whole interval is measured.
                steps = 16 if "lazy" in name and what == "train" else 4 if what == "infer" else 1
                seconds.setdefault((what, name), []).append(ask(connection, what, steps))
    peaks = {name: ask(connection, "end", 0) for name, connection in turns.items()}
    report(options, seconds, peaks)


def report(options: argparse.Namespace, seconds: dict[tuple[str, str], list[float]], peaks: dict[str, float]) -> None:
    """Print a table with one row per variant, then the share of the machine's peak that training reaches.

    A row contains images per second (median, minimum and maximum), ratios to the yardstick of the same round, and
    memory.
    """
    width = f"fmap_max {options.fmap_max}" if options.architecture == "stylegan" else f"resnet, width {options.width:g}"
    width += ", rotation" if options.rotation else ""
    size = f"{options.resolution}x{options.resolution}, {width}, batch {options.batch}"
    print(f"\n{size}, {options.threads} thread(s), {options.rounds} rounds\n")
    print("| variant | train img/s (min-max) | ratio | infer img/s | ratio | peak MiB |\n|---|---|---|---|---|---|")
    for name, peak in peaks.items():
        cells = [name]
        for what in ("train", "infer"):
            rates = [options.batch / s for s in seconds[what, name]]
            ratio = statistics.median(p / s for p, s in zip(seconds[what, "plain"], seconds[what, name], strict=True))
            spread = f" ({min(rates):.1f}-{max(rates):.1f})" if what == "train" else ""
            cells += [f"{statistics.median(rates):.1f}{spread}", f"{ratio:.2f}"]
        print("| " + " | ".join([*cells, f"{peak:.0f}"]) + " |")

    # Share of the peak.
    config = config_of(options, {})
    flops = step_flops(config, options.resolution) * options.batch
    peak_flops = {
        precision: convolution_peak(options, dtype) for precision, dtype in (("fp32", None), ("bf16", torch.bfloat16))
    }
    print()
    for precision, peak in peak_flops.items():
        name = f"{precision} compiled"
        rate = flops / statistics.median(seconds["train", name])
        print(
            f"{name}: {rate / 1e9:.0f} GFLOP/s of {peak / 1e9:.0f} measured for its largest convolution: "
            f"{rate / peak:.0%}"
        )


def convolution_peak(options: argparse.Namespace, dtype: torch.dtype | None) -> float:
    """Measure the operations per second of the 3x3 forward convolution at the finest resolution, best of ten."""
    torch.set_num_threads(options.threads)
    side = options.resolution
    width = min(int(8192 / (side / 2)), options.fmap_max)
    if options.architecture == "resnet":
        width = widths(config_of(options, {}).model, SHAPES[side].generator)[-1]
    with plain_kernels(tf32=False):
        return convolution_speed((options.batch, width, side, side), dtype, torch.device(options.device))


def convolution_speed(shape: tuple[int, int, int, int], dtype: torch.dtype | None, device: torch.device) -> float:
    """Return the operations per second of a 3x3 convolution that keeps the shape [N, C, H, W], best of ten."""
    x = torch.randn(shape, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(shape[1], shape[1], 3, 3, dtype=dtype, device=device)
    if device.type == "cuda":
        weight = weight.to(memory_format=torch.channels_last)
    step = partial(F.conv2d, x, weight, padding=1)
    timed(step, 1, device)
    return 2 * x.numel() * shape[1] * 9 / min(timed(step, 3, device) for _ in range(10))


def top_operations(options: argparse.Namespace) -> None:
    """Print the operations that take most of the time of the bf16 compiled variant, on a GPU the kernels."""
    torch.set_num_threads(options.threads)
    device = select_device(options.device)
    settings = {"precision": "bf16", "compile": True}
    config = config_of(options, settings)
    on_gpu = device.type == "cuda"
    with tuned(config.training, device):
        train, _ = own_steps(config, device)
        for _ in range(2):
            train()
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
            train()
            if on_gpu:
                torch.cuda.synchronize()
    # Microseconds, number of calls and name.
    rows = [
        (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count, event.key)
        for event in profiler.key_averages()
    ]
    total = sum(spent for spent, _, _ in rows)
    print("\nbf16 compiled, share of time:")
    for spent, count, name in sorted(rows, reverse=True)[: options.top]:
        print(f"  {spent / total:5.1%}  {count:5d} x  {name[:70]}")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description="Benchmark of the training core against the plain version.")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--architecture", default="stylegan", choices=["stylegan", "resnet"])
    parser.add_argument("--fmap-max", type=int, default=128, help="of StyleGAN")
    parser.add_argument("--width", type=float, default=1.0, help="of the resnet")
    parser.add_argument("--rotation", action="store_true", help="train the resnet with the rotation loss")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--top", type=int, default=12, help="number of operations to list by their share of time; 0 for no list"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of all variants")
    options = parser.parse_args()
    if options.rotation and options.architecture != "resnet":
        parser.error("--rotation: the yardstick of StyleGAN has no rotation loss; add --architecture resnet")
    require_device(options.device)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {options.device}")
    measure(options)
    if options.top:
        top_operations(options)


if __name__ == "__main__":
    main()
