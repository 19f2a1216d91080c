"""Collects the points of the curves of a stage and writes them to {stage_uri}/stats.jsonl, one JSON object a line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import torch
from typing_extensions import TypedDict

from stylegan import storage
from stylegan.errors import DivergedError
from stylegan.training import distributed
from stylegan.training.background import Background
from stylegan.training.job import StageJob
from stylegan.training.schedule import PENALTIES
from stylegan.training.state import TrainState

STATS = "stats.jsonl"
SPEED = "time/img_per_sec"
# Between two writes of the file pass at least WRITE_SECONDS, and so many that on average no more than WRITE_BYTES are
# written in a second: an object store only takes whole files, and the file grows.
WRITE_SECONDS, WRITE_BYTES = 2.0, 50_000


class Row(TypedDict):
    """A point of a curve: values by metric at an image count, counted over all stages."""

    nimg: int
    resolution: int
    metrics: dict[str, float]


class Curves:
    """The training curves of a stage. Each point holds the means over the steps since the last point.

    Every rank keeps all points, and rank 0 also writes them to `stats.jsonl`. Put `with curves.steps:` around the
    optimizer steps, so that a point shows the share of time spent elsewhere, and `with curves.waits:` around the wait
    for a batch.
    """

    def __init__(self, job: StageJob, state: TrainState, background: Background) -> None:
        self.job, self.state, self.background = job, state, background
        self.uri = storage.join(job.uri, STATS)
        # Points beyond the checkpoint that training resumes from are dropped: training makes them again.
        self.rows = [row for row in read_rows(self.uri) if row["nimg"] <= state.nimg]
        self._lines = [json.dumps(row) + "\n" for row in self.rows]
        self.steps = Stopwatch(state.device)
        self.waits = Stopwatch(torch.device("cpu"))
        self._point_time = self._write_time = time.monotonic()  # of the last point, and of the last write
        self._point_nimg = state.nimg  # image count of the last point

    def __enter__(self) -> Curves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, DivergedError):  # the last points show how training diverged
            self.write()

    def add_point(self, corrupt: int = 0) -> None:
        """Turn the running sums into a point and start new ones. Every rank must call this.

        Args:
            corrupt: number of samples found damaged so far.
        """
        # Means over the steps and over ranks; a penalty counts only the steps that computed it.
        state = self.state
        names, num_penalties = sorted(state.sums), self.job.stage.num_penalties(state.nimg, state.steps)
        means = [state.sums[name] / (num_penalties if name in PENALTIES else state.steps) for name in names]
        distributed.mean_(means)
        values = torch.stack(means).tolist()

        # The point.
        metrics = dict(zip(names, values, strict=True)) | state.measured | self._progress() | self._speed()
        if corrupt:
            metrics["data/corrupt"] = float(corrupt)
        self.rows.append({"nimg": state.nimg, "resolution": self.job.stage.resolution, "metrics": metrics})
        self._lines.append(json.dumps(self.rows[-1]) + "\n")

        # Start new sums.
        state.sums, state.steps, state.measured = {}, 0, {}

        # Write the file, unless it was written just before.
        num_bytes = sum(map(len, self._lines))
        if self._point_time - self._write_time > max(WRITE_SECONDS, num_bytes / WRITE_BYTES):
            self.write()

    def write(self) -> None:
        """Write all points to storage in the background (rank 0)."""
        self._write_time, content = self._point_time, self.content()
        if distributed.rank() == 0:
            self.background.submit(lambda: storage.write_bytes(self.uri, content()), destination=self.uri)

    def content(self) -> Callable[[], bytes]:
        """Freeze the lines so far; the returned function renders the file later, on any thread."""
        lines = tuple(self._lines)
        return lambda: "".join(lines).encode()

    def newest(self) -> dict[str, float]:
        """Return the metrics of the last point, an empty dict before the first one."""
        return dict(self.rows[-1]["metrics"]) if self.rows else {}

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

    def _speed(self) -> dict[str, float]:
        """Return the speed of this rank since the last point.

        Call this after the means were read: reading them waits for the GPU, so all steps are done by now.
        """
        now = time.monotonic()
        seconds, images = max(now - self._point_time, 1e-9), self.state.nimg - self._point_nimg
        self._point_time, self._point_nimg = now, self.state.nimg
        speed = max(images / seconds, 1e-9)
        return {
            SPEED: speed,
            "time/sec_per_kimg": 1000 / speed,
            # On CUDA the GPU times the steps and the CPU times the whole: by two clocks the difference may fall below
            # zero.
            "time/overhead": max(1 - self.steps.read() / seconds, 0.0),
            # A share of the time; on CUDA the GPU may be busy during the wait.
            "time/data_wait": self.waits.read() / seconds,
        }


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

    def read(self) -> float:
        """Return the seconds since the last call and start again from zero. The GPU must have finished the blocks."""
        seconds = self._seconds + sum(start.elapsed_time(end) for start, end in self._blocks) / 1000
        self._seconds, self._blocks = 0.0, []
        return seconds


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
