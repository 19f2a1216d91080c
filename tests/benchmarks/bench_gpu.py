r"""`make bench-gpu`: measures training on one GPU: speed, memory, and where the time goes.

The yardstick is plain.py on the same GPU. All variants of one size take turns, each in a process of its own, whole
intervals of the gradient penalty at a time. The most important sizes come first: when the time is up, the rest is left
out and listed. The table is written again after every size. Exit code 0 if all floors hold that were measured on this
kind of GPU, 1 if one is missed by more than a tenth, 2 without a GPU.

It needs neither Ray, Prefect nor MLflow. On a machine that has torch for its GPU, these are enough:

    pip install numpy pydantic ruamel.yaml pillow safetensors fsspec
    cd tests && PYTHONPATH=..:. python -m benchmarks.bench_gpu

The tests that need a GPU take these as well:

    pip install pytest pytest-timeout hypothesis pyarrow platformdirs braceexpand google-crc32c
    python -m pytest tests/training/test_cuda.py tests/networks/test_{kernels,replay,against_plain}.py \
        tests/evaluation/test_work.py tests/data/loading/test_loader.py

`--device cpu` with tiny sizes shows that it works. It has no floors and no profile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from benchmarks.bench import (
    convolution_speed,
    make_config,
    own_steps,
    peak_memory,
    plain_kernels,
    plain_steps,
    require_device,
    timed,
)
from torch.profiler import ProfilerActivity, profile

from stylegan.config.sections import TrainingConfig
from stylegan.networks import ops
from stylegan.training.cost import step_flops
from stylegan.training.distributed import select_device
from stylegan.training.hardware import COMPUTE_DTYPES, tuned

ROOT = Path(__file__).parents[2]
INTERVAL = 16  # steps between two penalties of the lazy variants
WARM_UP = 4  # intervals, or steps of other variants: every kind of step has then been recorded
ROUND_SECONDS = 0.6  # least length of a turn
SIZE_SECONDS = 40.0  # a size is not begun with less time left
ANSWER_SECONDS = 180.0  # the longest that one answer may take: the first one compiles all kernels


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: in the table.
        training: settings of `training`; None for the yardstick.
        kernels: whether the project's own kernels may be used.
        precision: that of the convolutions.
    """

    name: str
    training: dict[str, Any] | None
    kernels: bool = True

    @property
    def precision(self) -> str:
        """The precision of its convolutions."""
        return "tf32" if self.training is None else str(self.training.get("precision", "fp32"))

    @property
    def interval(self) -> int:
        """The number of steps after which everything has happened that happens in a step."""
        return int((self.training or {}).get("penalty_interval", 1))

    def missing(self) -> str | None:
        """Return what this version of the project lacks for the variant, None if nothing: older ones can be measured too."""
        unknown = sorted((self.training or {}).keys() - TrainingConfig.model_fields.keys())
        if unknown:
            return f"this version has no training.{unknown[0]}"
        return None if self.kernels or hasattr(ops, "kernels_enabled") else "this version has no kernels of its own"


LAZY = {"precision": "bf16", "penalty_interval": INTERVAL}
PLAIN, MAIN, TF32 = "plain, tf32", "bf16 lazy", "tf32"
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(PLAIN, None),
        Variant(MAIN, LAZY),
        Variant(TF32, {"precision": "tf32"}),
        Variant("bf16 lazy, no graphs", LAZY | {"cuda_graphs": False}),
        Variant("bf16 lazy, no kernels", LAZY, kernels=False),
        Variant("bf16 lazy, neither", LAZY | {"cuda_graphs": False}, kernels=False),
        Variant("bf16 lazy, compile", LAZY | {"compile": True}),
        Variant("fp16 lazy", LAZY | {"precision": "fp16"}),
        Variant("fp32", {}),
    )
}
Size = tuple[int, int]  # resolution and batch
# What is measured, the most important first.
PLAN: list[tuple[Size, list[str]]] = [
    ((256, 32), [PLAIN, MAIN, TF32]),
    ((1024, 8), [PLAIN, MAIN]),
    ((32, 64), [PLAIN, MAIN]),
    ((64, 64), [PLAIN, MAIN]),
    ((16, 128), [PLAIN, MAIN]),
    ((8, 128), [PLAIN, MAIN]),
    ((256, 32), [name for name in VARIANTS if name not in (PLAIN, MAIN, TF32)]),
    ((32, 64), [name for name in VARIANTS if name not in (PLAIN, MAIN, "fp32")]),
    ((1024, 8), ["bf16 lazy, no graphs", "bf16 lazy, neither", "bf16 lazy, compile", TF32]),
    ((128, 32), [PLAIN, MAIN]),
    ((512, 16), [PLAIN, MAIN]),
    ((8, 128), ["bf16 lazy, no graphs", "bf16 lazy, no kernels", TF32]),
]

# Floors in images per second on one H200, with fmap_max 512, and what other GPUs must reach of them.
SPEED_FLOORS: dict[tuple[Size, str], float] = {
    ((256, 32), MAIN): 650,
    ((1024, 8), MAIN): 160,
    ((64, 64), MAIN): 1900,
    ((32, 64), MAIN): 3500,
    ((16, 128), MAIN): 8000,
    ((8, 128), MAIN): 8000,
    ((256, 32), TF32): 330,
}
SHARES_OF_FLOOR = {"H200": 1.0, "H100": 0.8}
CONVOLUTIONS_FLOOR = {(256, 32): 0.6, (1024, 8): 0.6}  # least share of the kernels' time, of MAIN
IDLE_CEILING = 0.1  # most time that the GPU may be idle, of MAIN at every size
TOLERANCE = 0.1  # a floor that is missed by less is no error


# --- what the profiler saw --------------------------------------------------------------------------------------------

# Parts of the names of kernels that convolve or multiply matrices: those of cuDNN, CUTLASS and cuBLAS.
PRODUCTS = re.compile(r"gemm|gemv|conv(?!ert)|xmma|wgrad|dgrad|fprop|cutlass|nvjet|winograd|implicit", re.IGNORECASE)
# Kernels of the same libraries that only pass over memory: filters of one channel each, and changes of layout and type.
PASSES = re.compile(r"depthwise|grouped_direct|nchwtonhwc|nhwctonchw|tensor_?transform|convert|triton_", re.IGNORECASE)
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
Interval = tuple[float, float]  # start and end, in microseconds


def is_convolution(name: str) -> bool:
    """Return whether a kernel convolves. Products of matrices count too, since convolutions of one pixel are products."""
    return bool(PRODUCTS.search(name)) and not PASSES.search(name)


def covered(intervals: Iterable[Interval]) -> float:
    """Return the length of the union of intervals, which may overlap and come in any order."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


@dataclass(frozen=True)
class Work:
    """What a GPU did in a step, on average.

    Attributes:
        kernel_ms: the sum of the times of all kernels.
        convolutions: share of the convolutions in that.
        busy_ms: time in which at least one kernel or copy ran.
        launches: times that the host started something: a kernel, or a whole graph.
        kernels: number of kernels.
    """

    kernel_ms: float
    convolutions: float
    busy_ms: float
    launches: float
    kernels: float

    @classmethod
    def of(cls, events: Iterable[dict[str, Any]], steps: int) -> Work:
        """Summarise the events of so many steps, as torch's profiler writes them into a trace."""
        spent = {True: 0.0, False: 0.0}
        intervals, launches, kernels = list[Interval](), 0, 0
        for event in events:
            category, name = event.get("cat"), str(event.get("name"))
            if category in ON_GPU:
                intervals.append((event["ts"], event["ts"] + event["dur"]))
            if category == "kernel":
                spent[is_convolution(name)] += event["dur"]
                kernels += 1
            elif category in ("cuda_runtime", "cuda_driver") and "Launch" in name:
                launches += 1
        total = sum(spent.values())
        return cls(
            kernel_ms=total / steps / 1000,
            convolutions=spent[True] / total if total else 0.0,
            busy_ms=covered(intervals) / steps / 1000,
            launches=launches / steps,
            kernels=kernels / steps,
        )

    def idle(self, step_ms: float) -> float:
        """Return the share of a step in which the GPU is idle; `step_ms` was measured without the profiler."""
        return max(1 - self.busy_ms / step_ms, 0.0)


def profiled(step: Callable[[], object], steps: int) -> Work:
    """Profile steps on the GPU."""
    with profile(activities=[ProfilerActivity.CUDA]):  # sets the profiler up, which takes time of its first step
        step()
        torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        return Work.of(json.loads(path.read_text(errors="replace"))["traceEvents"], steps)


# --- one variant, in a process of its own -----------------------------------------------------------------------------


def serve(connection: Connection, variant: Variant, size: Size, options: argparse.Namespace) -> None:
    """Answer requests (what, steps) with (answer, None), or (None, reason) after an error.

    The answers to "warm up" and "train" are the seconds of a step, to "profile" a dict of `Work`, to "memory" the peaks
    in MiB: of tensors, and of what torch has reserved for them.
    """
    # The profiler's library must not be loaded anew between two sessions while graphs are replayed (pytorch#75504).
    os.environ |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}
    try:
        torch.set_num_threads(options.threads)
        device = select_device(options.device)
        settings = variant.training or {}
        config = make_config(size[0], options.fmap_max, size[1], settings, device=options.device)
        with contextlib.ExitStack() as stack:
            if variant.training is None:
                stack.enter_context(plain_kernels(tf32=True))
                step, _ = plain_steps(config, device)
            else:
                stack.enter_context(tuned(config.training, device))
                stack.enter_context(ops.kernels_enabled(variant.kernels))
                step, _ = own_steps(config, device)
            while True:
                what, steps = connection.recv()
                if what == "memory":
                    reserved = torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else math.nan
                    connection.send(((peak_memory(device), reserved), None))
                elif what == "profile":
                    connection.send((asdict(profiled(step, steps)), None))
                else:
                    connection.send((timed(step, steps, device), None))
    except (EOFError, BrokenPipeError):  # the driver needs no more answers
        pass
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        with contextlib.suppress(OSError):
            connection.send((None, line[:200]))


class Turn:
    """A variant of one size: its process, and what it has answered."""

    def __init__(self, variant: Variant, size: Size, options: argparse.Namespace) -> None:
        self.variant, self.size = variant, size
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        arguments = (there, variant, size, options)
        self.process: BaseProcess = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        there.close()
        self.steps, self.seconds = 1, list[float]()

    def ask(self, what: str, steps: int, deadline: float) -> Any:
        """Send a request and return its answer. Raises Failure if there is none, or none before the deadline."""
        seconds = min(deadline - time.monotonic(), ANSWER_SECONDS)
        with contextlib.suppress(OSError):  # after an error its process has ended, and the reason waits
            self.connection.send((what, steps))
        try:
            if not self.connection.poll(max(seconds, 0)):
                raise Failure("the time was up" if seconds < ANSWER_SECONDS else f"no answer in {ANSWER_SECONDS:.0f} s")
            answer, reason = self.connection.recv()
        except (EOFError, OSError):
            raise Failure(f"its process ended (exit code {self.process.exitcode})") from None
        if reason:
            raise Failure(reason)
        return answer

    def warm_up(self, deadline: float) -> None:
        """Make every kind of step, and choose how many of them a turn has."""
        interval = self.variant.interval
        self.ask("warm up", max(WARM_UP - 1, 1) * interval, deadline)
        seconds = self.ask("warm up", interval, deadline)
        self.steps = interval * math.ceil(ROUND_SECONDS / (interval * seconds))

    def measure(self, deadline: float) -> None:
        """Take a turn."""
        self.seconds.append(self.ask("train", self.steps, deadline))

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Failure(Exception):
    """A variant that gives no answer; the message is the reason."""


# --- all variants -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What was measured of a variant at a size."""

    size: Size
    variant: str
    rates: tuple[float, ...]  # images per second of each turn
    tflops: float
    memory_mib: tuple[float, float]  # of tensors, and reserved by torch, which the GPU must have
    work: Work | None = None  # None without a profile

    @property
    def rate(self) -> float:
        """The median of the images per second."""
        return statistics.median(self.rates)

    @property
    def step_ms(self) -> float:
        """Milliseconds of a step."""
        return 1000 * self.size[1] / self.rate


@dataclass
class Measured:
    """All results of a run, with what was left out and why."""

    results: dict[tuple[Size, str], Result] = field(default_factory=dict)
    left_out: dict[tuple[Size, str], str] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)  # precision -> TFLOP/s of its convolutions


def measure_size(
    size: Size, names: Sequence[str], options: argparse.Namespace, measured: Measured, deadline: float
) -> None:
    """Measure variants of one size in turns. What fails, or is not done in time, is left out with the reason."""
    turns: dict[str, Turn] = {}
    try:
        for name in names:
            missing = VARIANTS[name].missing()
            if missing:
                measured.left_out[size, name] = missing
            else:
                turns[name] = Turn(VARIANTS[name], size, options)

        def each(work: Callable[[Turn], None]) -> None:
            for name, turn in list(turns.items()):
                try:
                    work(turn)
                except Failure as failure:
                    turns.pop(name).close()
                    if not turn.seconds:  # otherwise the turns until now count
                        measured.left_out[size, name] = str(failure)
                    else:
                        keep(turn, (math.nan, math.nan), None)

        def keep(turn: Turn, memory: tuple[float, float], work: Work | None) -> None:
            rates = tuple(size[1] / seconds for seconds in turn.seconds)
            settings = turn.variant.training or {}
            config = make_config(size[0], options.fmap_max, size[1], settings, device=options.device)
            tflops = step_flops(config, size[0]) * statistics.median(rates) / 1e12
            measured.results[size, turn.variant.name] = Result(size, turn.variant.name, rates, tflops, memory, work)

        def finish(turn: Turn) -> None:
            memory = turn.ask("memory", 0, deadline)
            work = None
            if options.device == "cuda":
                work = Work(**turn.ask("profile", turn.variant.interval, deadline))
            keep(turn, memory, work)

        each(lambda turn: turn.warm_up(deadline))
        for _ in range(options.rounds):
            each(lambda turn: turn.measure(deadline))
        each(finish)
    finally:
        for turn in turns.values():
            turn.close()


def serve_peaks(connection: Connection, options: argparse.Namespace) -> None:
    """Send the TFLOP/s of convolutions in each precision."""
    torch.set_num_threads(options.threads)
    device, peaks = torch.device(options.device), {}
    shape = (32, 512, 64, 64) if options.device == "cuda" else (4, 32, 16, 16)
    for precision, dtype in COMPUTE_DTYPES.items():
        if options.device == "cuda" or precision in ("fp32", "bf16"):
            with plain_kernels(tf32=precision == "tf32"):
                peaks[precision] = convolution_speed(shape, dtype, device) / 1e12
    connection.send(peaks)


def measure_peaks(options: argparse.Namespace) -> dict[str, float]:
    """Return the TFLOP/s that 3x3 convolutions reach alone in each precision, 512 channels of 64x64, batch 32."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve_peaks, args=(there, options), daemon=True)
    process.start()
    there.close()
    peaks: dict[str, float] = here.recv() if here.poll(ANSWER_SECONDS) else {}
    process.join(5)
    if process.is_alive():
        process.kill()
    return peaks


def measure(options: argparse.Namespace) -> Measured:
    """Measure the plan until the time is up, and write the table after each size."""
    deadline = time.monotonic() + 60 * options.minutes
    measured = Measured()
    with contextlib.suppress(EOFError):
        measured.peaks = measure_peaks(options)
    for size, names in plan(options):
        left = deadline - time.monotonic()
        if left < min(SIZE_SECONDS, 30 * options.minutes):
            measured.left_out |= {(size, name): "the time was up" for name in names}
            continue
        print(f"{title(size)}: {', '.join(names)} ({left:.0f} s left)", file=sys.stderr, flush=True)
        measure_size(size, names, options, measured, deadline)
        write(options, measured)
    return measured


def plan(options: argparse.Namespace) -> list[tuple[Size, list[str]]]:
    """Return the sizes and variants that the options ask for, the most important first."""
    wanted = [name for name in VARIANTS if options.variants is None or name in options.variants]
    if options.sizes is not None:
        known = [size for size in options.sizes if options.variants is None and size in dict(PLAN)]
        others = [(size, wanted) for size in options.sizes if size not in known]
        return [(size, names) for size, names in PLAN if size in known] + others
    return [(size, chosen) for size, names in PLAN if (chosen := [name for name in names if name in wanted])]


# --- floors -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floor:
    """A figure that is asked for, and what was measured; None if it was not."""

    what: str
    wanted: float
    measured: float | None
    kind: str = "img/s"  # or "convolutions", "idle"

    @property
    def held(self) -> bool:
        """Whether it holds, or is missed by no more than the tolerance."""
        if self.measured is None:
            return False
        if self.kind == "idle":
            return self.measured <= self.wanted * (1 + TOLERANCE)
        return self.measured >= self.wanted * (1 - TOLERANCE)


def share_of_floor(device: str) -> float | None:
    """Return what a GPU must reach of the floors of an H200, by its name; None if nothing is known of it."""
    return next((share for name, share in SHARES_OF_FLOOR.items() if re.search(rf"\b{name}\b", device)), None)


def floors(measured: Measured, device: str, fmap_max: int) -> list[Floor]:
    """Return the floors of the variants that were to be measured; none for other GPUs or other networks."""
    share = share_of_floor(device)
    if share is None or fmap_max != 512:
        return []
    asked, found = measured.results.keys() | measured.left_out.keys(), list[Floor]()
    for (size, name), speed in SPEED_FLOORS.items():
        if (size, name) in asked:
            result = measured.results.get((size, name))
            found.append(Floor(f"{title(size)}, {name}", speed * share, result.rate if result else None))
    for size, name in sorted(asked, reverse=True):
        if name == MAIN:
            result = measured.results.get((size, name))
            work = result.work if result else None
            if size in CONVOLUTIONS_FLOOR:
                value = work.convolutions if work else None
                found.append(Floor(f"{title(size)}, {name}", CONVOLUTIONS_FLOOR[size], value, "convolutions"))
            value = work.idle(result.step_ms) if work and result else None
            found.append(Floor(f"{title(size)}, {name}", IDLE_CEILING, value, "idle"))
    return found


# --- the table --------------------------------------------------------------------------------------------------------


def title(size: Size) -> str:
    """Return the words for a size."""
    return f"{size[0]}x{size[0]}, batch {size[1]}"


def table(measured: Measured) -> str:
    """Return the results as a Markdown table, sizes from the largest to the smallest, the yardstick first."""
    lines = [
        "| size | variant | img/s (min-max) | ratio | ms/step | TFLOP/s (of peak) | peak MiB | kernel ms | convolutions "
        "| idle | launches | kernels |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = list(VARIANTS)
    for size, name in sorted(measured.results, key=lambda key: (-key[0][0], -key[0][1], order.index(key[1]))):
        result, plain = measured.results[size, name], measured.results.get((size, PLAIN))
        peak = measured.peaks.get(VARIANTS[name].precision)
        share = f" ({result.tflops / peak:.0%})" if peak else ""
        work = result.work
        cells = [
            title(size),
            name,
            f"{digits(result.rate)} ({digits(min(result.rates))}-{digits(max(result.rates))})",
            f"{result.rate / plain.rate:.2f}" if plain else "",
            digits(result.step_ms),
            f"{digits(result.tflops)}{share}",
            " / ".join(f"{mib:,.0f}" for mib in result.memory_mib if not math.isnan(mib)),
            digits(work.kernel_ms) if work else "",
            f"{work.convolutions:.0%}" if work else "",
            f"{work.idle(result.step_ms):.0%}" if work else "",
            f"{work.launches:,.0f}" if work else "",
            f"{work.kernels:,.0f}" if work else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def digits(value: float) -> str:
    """Return a number with three digits or more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def report(options: argparse.Namespace, measured: Measured, facts: dict[str, str]) -> str:
    """Return the whole section for RESULTS.md."""
    peaks = ", ".join(f"{precision} {digits(peak)}" for precision, peak in measured.peaks.items()) or "not measured"
    parts = [
        f"## Training on one {facts['device']}",
        f"`{facts['command']}`, {', '.join(facts[name] for name in ('driver', 'torch', 'date', 'commit'))}; `fmap_max` "
        f"{options.fmap_max}, {options.rounds} turns of whole penalty intervals, median. D and G step, Adam and the "
        f'average of G; R1 in every step unless "lazy": every {INTERVAL}th. "ratio": to plain PyTorch (`plain.py`) on '
        f'the same GPU. Convolutions alone reach {peaks} TFLOP/s. "idle": share of a step without any kernel or copy. '
        '"launches": kernels and graphs that the host starts in a step. "peak": of tensors / reserved by torch.',
        table(measured),
    ]
    held = floors(measured, facts["device"], options.fmap_max)
    if held:
        rows = ["| floor | wanted | measured | |", "|---|---|---|---|", *map(_floor_row, held)]
        parts.append("\n".join(rows))
    else:
        parts.append("There are no floors for this device and `fmap_max`.")
    if measured.left_out:
        lines = [f"- {title(size)}, {name}: {reason}" for (size, name), reason in measured.left_out.items()]
        parts.append("\n".join(["Left out:", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _floor_row(floor: Floor) -> str:
    if floor.kind == "img/s":
        wanted, found = f"{floor.wanted:,.0f} img/s", None if floor.measured is None else f"{floor.measured:,.0f}"
    else:
        words = "idle at most" if floor.kind == "idle" else "convolutions at least"
        wanted, found = f"{words} {floor.wanted:.0%}", None if floor.measured is None else f"{floor.measured:.0%}"
    return f"| {floor.what} | {wanted} | {found or 'not measured'} | {'held' if floor.held else '**missed**'} |"


def facts_of(options: argparse.Namespace) -> dict[str, str]:
    """Return on what, with what and when it is measured."""
    if options.device == "cuda":
        device, driver = torch.cuda.get_device_name(), f"driver {driver_version()}"
    else:
        device, driver = platform.processor() or platform.machine(), "no driver"
    command = f"python -m benchmarks.bench_gpu {shlex.join(options.arguments)}".strip()
    return {
        "device": device,
        "driver": driver,
        "torch": f"torch {torch.__version__}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": f"commit {commit()}",
        "command": command,
    }


def driver_version() -> str:
    """Return the version of NVIDIA's driver; "unknown" if neither nvidia-smi nor the kernel tells it."""
    asked = answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    if asked:
        return asked[0].strip()
    with contextlib.suppress(OSError):
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text())
        return found[0] if found else "unknown"
    return "unknown"


def commit() -> str:
    """Return the commit of this checkout, with a plus if files were changed; "unknown" outside of git."""
    name = answer("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD").strip()
    changed = answer("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no").strip()
    return (name + ("+" if changed else "")) or "unknown"


def answer(*command: str) -> str:
    """Return what a command prints; nothing if it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def write(options: argparse.Namespace, measured: Measured) -> str:
    """Write the table to its file, and return it."""
    text = report(options, measured, options.facts)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_name(f"{options.out.name}.part")
    partial.write_text(text)
    os.replace(partial, options.out)
    return text


def size_of(text: str) -> Size:
    """Parse RESOLUTION:BATCH."""
    try:
        resolution, batch = map(int, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not RESOLUTION:BATCH, such as 256:32") from None
    if resolution not in (4, 8, 16, 32, 64, 128, 256, 512, 1024) or batch < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: RESOLUTION is a power of two from 4 to 1024, BATCH at least 1")
    return resolution, batch


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="bench_gpu", description="Benchmark of training on one GPU.")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: only to see that it works")
    parser.add_argument("--minutes", type=float, default=8.0, help="most time; what is not done by then is left out")
    parser.add_argument("--sizes", type=size_of, nargs="+", metavar="RESOLUTION:BATCH", help="default: 8:128 to 1024:8")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="NAME", help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--fmap-max", type=int, default=512, help="floors are for 512")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench-gpu.md", help="file of the table")
    options = parser.parse_args(arguments)
    options.arguments = list(arguments)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line, and return its exit code."""
    options = parsed(sys.argv[1:] if arguments is None else arguments)
    require_device(options.device)
    options.facts = facts_of(options)
    measured = measure(options)
    print(write(options, measured))
    print(f"written to {options.out}", file=sys.stderr)
    missed = [floor for floor in floors(measured, options.facts["device"], options.fmap_max) if not floor.held]
    for floor in missed:
        print(f"missed: {_floor_row(floor)}", file=sys.stderr)
    return int(bool(missed) or not measured.results)


if __name__ == "__main__":
    sys.exit(main())
