"""The points of the curves of a stage, in {stage_uri}/stats.jsonl: one JSON object a line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import TracebackType

import torch

from stylegan import storage
from stylegan.errors import DivergedError
from stylegan.training import distributed
from stylegan.training.background import Background
from stylegan.training.job import StageJob
from stylegan.training.schedule import PENALTIES
from stylegan.training.state import TrainState

STATS = "stats.jsonl"
WRITE_SECONDS = 2.0  # between two writes of the file: an object store takes whole files only


class Curves:
    """The points of a stage: means since the last one; on rank 0 also in `stats.jsonl`.

    `with curves.steps:` goes around the optimizer steps, so that a point can tell the share of time that went elsewhere;
    `with curves.waits:` around the wait for a batch.
    """

    def __init__(self, job: StageJob, state: TrainState, background: Background) -> None:
        self.job, self.state, self.background = job, state, background
        self.uri = storage.join(job.uri, STATS)
        self.rows = [row for row in read_rows(self.uri) if row["nimg"] <= state.nimg]
        self._lines = [json.dumps(row) + "\n" for row in self.rows]
        self.steps = Stopwatch(state.device)
        self.waits = Stopwatch(torch.device("cpu"))
        self.clock = self.written = time.monotonic()
        self.nimg = state.nimg

    def __enter__(self) -> Curves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, DivergedError):  # the last points tell how it came
            self.write()

    def add_point(self, corrupt: int = 0) -> None:
        """Close the running means into a point. Called on every rank; `corrupt` samples were found damaged so far."""
        state = self.state
        names, penalties = sorted(state.sums), self.job.stage.num_penalties(state.nimg, state.steps)
        means = [state.sums[name] / (penalties if name in PENALTIES else state.steps) for name in names]
        distributed.mean_(means)
        metrics = (
            dict(zip(names, torch.stack(means).tolist(), strict=True))
            | state.measured
            | self._progress()
            | self._speed()
        )
        metrics |= {"data/corrupt": float(corrupt)} if corrupt else {}
        self.rows.append({"nimg": state.nimg, "resolution": self.job.stage.resolution, "metrics": metrics})
        self._lines.append(json.dumps(self.rows[-1]) + "\n")
        state.sums, state.steps, state.measured = {}, 0, {}
        if self.clock - self.written > WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Bring storage up to date, in the background (rank 0)."""
        self.written, content = self.clock, self.content()
        if distributed.rank() == 0:
            self.background.submit(lambda: storage.write_bytes(self.uri, content()))

    def content(self) -> Callable[[], bytes]:
        """Gives the file as it is to be now, whenever and in whatever thread it is called."""
        lines = tuple(self._lines)
        return lambda: "".join(lines).encode()

    def newest(self) -> dict[str, float]:
        """The metrics of the last point, empty before the first."""
        return dict(self.rows[-1]["metrics"]) if self.rows else {}

    def mean_speed(self) -> float:
        """Images per second over the points of the stage."""
        seconds = [row["metrics"]["time/sec_per_kimg"] for row in self.rows]
        return 1000 * len(seconds) / sum(seconds) if seconds else 0.0

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
        """Of this rank, since the last point; the means were read just now, so all steps are done."""
        now = time.monotonic()
        seconds, images = max(now - self.clock, 1e-9), self.state.nimg - self.nimg
        self.clock, self.nimg = now, self.state.nimg
        speed = max(images / seconds, 1e-9)
        overhead = max(1 - self.steps.read() / seconds, 0.0)  # two clocks on CUDA
        times = {"time/img_per_sec": speed, "time/sec_per_kimg": 1000 / speed, "time/overhead": overhead}
        return times | {
            "time/data_wait": self.waits.read() / seconds
        }  # share of the time; on CUDA the GPU may be busy meanwhile


class Stopwatch:
    """Adds up the time spent in `with` blocks; on CUDA by events on the GPU, so that no block waits for it."""

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
        """Seconds since the last reading. The GPU must have done the blocks."""
        seconds = self._seconds + sum(start.elapsed_time(end) for start, end in self._blocks) / 1000
        self._seconds, self._blocks = 0.0, []
        return seconds


def read_rows(uri: str) -> list[dict]:
    """Read the points of a `stats.jsonl`, which may still grow; none if it is not there."""
    try:
        return storage.read_json_lines(uri)
    except FileNotFoundError:
        return []
