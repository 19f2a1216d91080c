"""Collects the points of the curves of a stage and writes them to {stage_uri}/stats.jsonl, one JSON object a line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import TypedDict

from stylegan import storage
from stylegan.errors import DivergedError
from stylegan.training import distributed
from stylegan.training.background import Background, HostCopy
from stylegan.training.job import StageJob
from stylegan.training.schedule import OF_G, PENALTIES

STATS = "stats.jsonl"
SPEED = "time/img_per_sec"
# How a step is made, as the metric `time/path` counts it from 0: of the steps of a point, the slowest way. `eager`: torch's
# own operations; `compiled`: element-wise ones fused by torch.compile; `fused`: by the kernels for GPUs; `graph`: these,
# replayed as a CUDA graph.
PATHS = ("eager", "compiled", "fused", "graph")
# Between two writes of the file pass at least WRITE_SECONDS, and so many that on average no more than WRITE_BYTES are
# written in a second: an object store only takes whole files, and the file grows.
WRITE_SECONDS, WRITE_BYTES = 2.0, 50_000


class Row(TypedDict):
    """A point of a curve: values by metric at an image count, counted over all stages."""

    nimg: int
    resolution: int
    metrics: dict[str, float]


class Counted(Protocol):
    """The part of a state that the curves need: an image count, and what the next point is made of."""

    nimg: int
    device: torch.device
    sums: dict[str, Tensor]
    steps: int
    measured: dict[str, float]

    def clear_sums(self) -> None:
        """Begin the sums for another point of the curves."""


class Curves:
    """The training curves of a stage. Each point holds the means over the steps since the last point.

    Every rank keeps all points, and rank 0 also writes them to `stats.jsonl`. Put `with curves.steps:` around the
    optimizer steps, so that a point shows the share of time spent elsewhere, and `with curves.waits:` around the wait
    for a batch. On a GPU a point is complete when its values have arrived in host memory; who reads it earlier waits.
    """

    def __init__(self, job: StageJob, state: Counted, background: Background) -> None:
        self.job, self.state, self.background = job, state, background
        self.uri = storage.join(job.uri, STATS)
        # Points beyond the checkpoint that training resumes from are dropped: training makes them again.
        self._points = [_Point.of(row) for row in read_rows(self.uri) if row["nimg"] <= state.nimg]
        self.steps = Stopwatch(state.device)
        self.waits = Stopwatch(torch.device("cpu"))
        self._clock = Clock(state.device)  # since the last point
        self._point_time = self._write_time = time.monotonic()  # of the last point, and of the last write
        self._point_nimg = state.nimg  # image count of the last point
        self._paths: set[str] = set()  # of the steps since the last point

    def __enter__(self) -> Curves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, DivergedError):  # the last points show how training diverged
            self.write()

    @property
    def rows(self) -> list[Row]:
        """All points; waits until the last one is complete."""
        return [point.row for point in self._points]

    def took(self, path: str) -> None:
        """Note how a step was made, one of PATHS."""
        self._paths.add(path)

    def add_point(self, corrupt: int = 0) -> None:
        """Turn the running sums into a point and start new ones. Every rank must call this.

        Args:
            corrupt: number of samples found damaged so far.
        """
        # Means over the steps and over ranks; a penalty, or a loss of G, counts only the steps that computed it.
        state, stage = self.state, self.job.stage
        counts = dict.fromkeys(sorted(state.sums), state.steps)
        counts |= {name: stage.num_penalties(state.nimg, state.steps) for name in PENALTIES if name in counts}
        counts |= {name: stage.num_G_updates(state.nimg, state.steps) for name in OF_G if name in counts}
        names = [name for name, count in counts.items() if count]
        means = [state.sums[name] / counts[name] for name in names]
        distributed.mean_(means)
        seconds, steps, waits = self._clock.read(), self.steps.read(), self.waits.read()
        values = HostCopy(torch.stack(means), state.device)  # it comes last: when it is there, the times are, too

        # The point.
        images, self._point_nimg = state.nimg - self._point_nimg, state.nimg
        others = self._progress() | state.measured | ({"data/corrupt": float(corrupt)} if corrupt else {})
        if self._paths:
            others["time/path"] = float(min(PATHS.index(path) for path in self._paths))

        def row() -> Row:
            measured = dict(zip(names, values.get().tolist(), strict=True))
            metrics = measured | others | _speed(images, seconds(), steps(), waits())
            return {"nimg": nimg, "resolution": resolution, "metrics": metrics}

        nimg, resolution = state.nimg, stage.resolution
        num_bytes = (len(self._points) + 1) * len(self._points[-1].line if self._points else "")
        self._points.append(_Point(row))

        # Start new sums.
        state.clear_sums()
        self._paths, self._point_time = set(), time.monotonic()

        # Write the file, unless it was written just before.
        if self._point_time - self._write_time > max(WRITE_SECONDS, num_bytes / WRITE_BYTES):
            self.write()

    def write(self) -> None:
        """Write all points to storage in the background (rank 0)."""
        self._write_time, content = self._point_time, self.content()
        if distributed.rank() == 0:
            self.background.submit(lambda: storage.write_bytes(self.uri, content()), destination=self.uri)

    def content(self) -> Callable[[], bytes]:
        """Freeze the points so far; the returned function renders the file later, on any thread."""
        points = tuple(self._points)
        return lambda: "".join(point.line for point in points).encode()

    def newest(self) -> Callable[[], dict[str, float]]:
        """Return a function that gives the metrics of the last point, an empty dict before the first one."""
        point = self._points[-1] if self._points else None
        return lambda: dict(point.row["metrics"]) if point else {}

    def mean_speed(self) -> float:
        """Return the speed over all points of the stage, as `mean_speed` defines it."""
        return mean_speed(self.rows)

    def _progress(self) -> dict[str, float]:
        stage, nimg = self.job.stage, self.state.nimg
        return {
            "progress/kimg": nimg / 1000,
            "progress/alpha": stage.alpha(nimg),
            "progress/resolution": float(stage.resolution),
            "progress/lr": stage.learning_rate,
            "progress/batch": float(stage.batch),
        }


class _Point:
    """A point of the curves, whose values may still be on their way from the GPU."""

    def __init__(self, compute: Callable[[], Row]) -> None:
        self._compute = compute

    @classmethod
    def of(cls, row: Row) -> _Point:
        """Return a point that was read."""
        return cls(lambda: row)

    @cached_property
    def row(self) -> Row:
        """The point; waits until its values have arrived. Any thread may read it."""
        row = self._compute()
        self._compute = lambda: row  # what was measured on the GPU is free now
        return row

    @cached_property
    def line(self) -> str:
        """The point as a line of the file."""
        return json.dumps(self.row) + "\n"


def _speed(images: int, seconds: float, steps: float, waits: float) -> dict[str, float]:
    """Return the speed of this rank over the steps of a point.

    Args:
        images: that D was shown.
        seconds: since the point before.
        steps: seconds of them in optimizer steps.
        waits: seconds of them in which the host waited for a batch; on CUDA the GPU may be busy meanwhile.
    """
    seconds = max(seconds, 1e-9)
    speed = max(images / seconds, 1e-9)
    return {
        SPEED: speed,
        "time/sec_per_kimg": 1000 / speed,
        "time/overhead": max(1 - steps / seconds, 0.0),
        "time/data_wait": waits / seconds,
    }


class Clock:
    """Measures the time from one reading to the next. On CUDA the GPU measures it, so that no reading has to wait."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last = self._now()

    def _now(self) -> torch.cuda.Event | float:
        if not self._cuda:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> Callable[[], float]:
        """Start again from zero. The returned function gives the seconds until now, once the GPU has come here."""
        last, self._last = self._last, self._now()
        return partial(_seconds_between, last, self._last)


class Stopwatch:
    """Adds up the time spent in `with` blocks. On CUDA it uses events of the GPU, so that no block has to wait."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._blocks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self._cuda:
            self._blocks.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._blocks[-1][0].record()
        else:
            self._start = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cuda:
            self._blocks[-1][1].record()
        else:
            self._seconds += time.monotonic() - self._start

    def read(self) -> Callable[[], float]:
        """Start again from zero. The returned function gives the seconds until now, once the GPU has come here."""
        seconds, blocks = self._seconds, self._blocks
        self._seconds, self._blocks = 0.0, []
        return lambda: seconds + sum(_seconds_between(start, end) for start, end in blocks)


def _seconds_between(start: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)  # type: ignore[arg-type]
    return start.elapsed_time(end) / 1000


def mean_speed(rows: Sequence[Row]) -> float:
    """Return the images per second of training over points of a stage that have a time, 0 without any.

    This is the one meaning of img/s for training: real images shown to D, by all workers together, per second of the
    clock between two points of the curves. Waits for data, probes, sample grids and what a checkpoint delays the steps
    are in it. The start of the workers and what comes after the last step are not. A point's `time/img_per_sec` is its
    own; a stage's (`plan`, the terminal, the table at the end of a run) is this mean, each point counting once.
    """
    name = "time/sec_per_kimg"
    seconds = [row["metrics"][name] for row in rows if name in row["metrics"]]
    return 1000 * len(seconds) / sum(seconds) if any(seconds) else 0.0


def clock(rows: Sequence[Row], *, start_nimg: int = 0) -> list[float]:
    """Return for each point the seconds of training until then, from the images and the speed of the points alone.

    What was trained twice, after a kill, counts once; waits between stages and for a cluster do not count. A point
    without a speed, such as one of quick metrics, takes no time: its images count with the next one that has a speed.

    Args:
        rows: points in the order of their image counts, over any number of stages.
        start_nimg: the image count at which the first stage of the rows begins.
    """
    times, seconds, last = list[float](), 0.0, start_nimg
    for row in rows:
        speed = row["metrics"].get(SPEED, 0.0)
        if speed > 0:
            seconds += max(row["nimg"] - last, 0) / speed
            last = row["nimg"]
        times.append(seconds)
    return times


def train_seconds(rows: Sequence[Row], *, start_nimg: int = 0) -> float:
    """Return the seconds of training of all points, as `clock` counts them."""
    return clock(rows, start_nimg=start_nimg)[-1] if rows else 0.0


def read_rows(uri: str) -> list[Row]:
    """Read a file of points, such as `stats.jsonl`, which may still grow; return an empty list if it does not exist.

    Raises:
        DamagedError: a line is not a point.
        StepError: storage refuses.
    """
    return growing_rows(uri).read()


def growing_rows(uri: str) -> storage.GrowingLines[Row]:
    """Return a reader of a file of points that reads only what was added since its last call."""
    cure = "delete it and run the same command again; the points that it held are lost, MLflow keeps those that it has"
    return storage.GrowingLines(uri, Row, cure=cure)
