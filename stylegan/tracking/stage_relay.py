"""Carry a stage's curves, quick metrics and sample grids from storage into MLflow while it trains."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable
from itertools import count
from types import TracebackType

from stylegan import storage
from stylegan.errors import StepError, one_line
from stylegan.tracking.runs import TrackedRun
from stylegan.training.curves import STATS, Row, growing_rows

logger = logging.getLogger("stylegan")
POLL_SECONDS = 2.0  # between two reads of what was added to the curves
RARELY = 15  # polls between two looks at quick metrics and grids, which come seldom and cost a listing


class StageRelay:
    """Copies a stage's curves, quick metrics and sample grids from storage into MLflow, at intervals and once at the end.

    Around a stage that is already finished it copies everything at once, in the sweep at the end.

        with StageRelay(run, stage_uri):
            train(...)
    """

    def __init__(
        self,
        run: TrackedRun,
        stage_uri: str,
        *,
        quick: str | None = None,
        poll_seconds: float = POLL_SECONDS,
        on_rows: Callable[[list[Row]], None] | None = None,
    ) -> None:
        self.run, self.stage_uri, self.poll_seconds = run, stage_uri, poll_seconds
        self._rows = growing_rows(storage.join(stage_uri, STATS))
        # `quick` is the name of the file of quick metrics in the stage's folder; None: there is none.
        self._quick = growing_rows(storage.join(stage_uri, quick)) if quick else None
        self.on_rows = on_rows or (lambda rows: None)  # called with all rows of the stage at every sweep
        self._left_out: set[int] = set()  # kimg of grids that cannot be logged
        self._stop = threading.Event()
        # The thread logs in the context of the flow run that started it, if there is one.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._poll,), name="stage-relay", daemon=True
        )

    def __enter__(self) -> StageRelay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self.sweep()
        except StepError:
            if error is None:  # otherwise the stage's own failure is the one to report
                raise

    def sweep(self) -> None:
        """Copy what is new. Raises StepError if storage or MLflow refuses."""
        self._copy_rows()
        self._copy_rest()

    def _copy_rows(self) -> None:
        rows = self._rows.read()
        self.on_rows(list(rows))
        self.run.log_rows(rows)

    def _copy_rest(self) -> None:
        if self._quick:
            self.run.log_quick(self._quick.read())
        folder = storage.join(self.stage_uri, "samples")
        for name in storage.names(folder):
            kimg, _, kind = name.partition(".")
            if kind == "png" and kimg.isdigit() and int(kimg) not in self.run.sample_steps | self._left_out:
                self._log_sample(int(kimg), storage.join(folder, name))

    def _log_sample(self, kimg: int, uri: str) -> None:
        """Log one grid. A picture that cannot be logged is left out: it is for people, and must not end the relay."""
        try:
            self.run.log_sample(kimg, storage.read_bytes(uri), uri)
        except StepError:
            raise  # storage or MLflow is away for a moment
        except Exception as error:
            self._left_out.add(kimg)
            logger.warning("%s is left out of MLflow: %s", uri, one_line(error))

    def _poll(self) -> None:
        for number in count(1):
            if self._stop.wait(self.poll_seconds):
                return
            try:
                self._copy_rows()
                if number % RARELY == 0:
                    self._copy_rest()
            except (StepError, OSError):
                continue  # storage or MLflow is away for a moment: the next poll or the last sweep catches up
