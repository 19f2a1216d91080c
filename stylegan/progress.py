"""Progress of long work, as log records: lines every few seconds to `stylegan`, every update to `stylegan-progress`, for bars."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("stylegan")
bars = logging.getLogger("stylegan-progress")  # not below `stylegan`: its records are for a terminal only
EVERY_SECONDS = 10  # between two plain lines of the same work


class Progress:
    """Counts one piece of work up to `total` and logs how far it is, how fast, and how long it still takes.

    Every record carries `progress = (name, done, total, text)`, so that a handler can draw a bar instead of printing it.
    """

    def __init__(self, name: str, total: float, unit: str = "img") -> None:
        self.name, self.total, self.unit = name, total, unit
        self.first: tuple[float, float] | None = (
            None  # (time, done) at the first update: resumed work starts above zero
        )
        self.last_line = 0.0
        self.last_done = -1.0

    def reach(self, done: float, total: float) -> None:
        """`update` for work that learns on its way how much it is."""
        self.total = total
        self.update(done)

    def update(self, done: float, detail: str = "") -> None:
        """Tell that `done` of `total` is reached; `detail` is shown behind it."""
        if done == self.last_done:
            return
        now, self.last_done = time.monotonic(), done
        if self.first is None:
            self.first, self.last_line = (now, done), now
        rate = (done - self.first[1]) / max(now - self.first[0], 1e-9)
        parts = [f"{done:,.0f} of {self.total:,.0f} {self.unit}"]
        if rate > 0 and now > self.first[0]:
            parts += [
                f"{rate:,.0f} {self.unit}/s",
                f"{duration((self.total - done) / rate)} left" if done < self.total else "done",
            ]
        text = ", ".join([*parts, detail] if detail else parts)
        extra = {"progress": (self.name, done, self.total, text)}
        bars.info("%s: %s", self.name, text, extra=extra)
        if done >= self.total or now - self.last_line >= EVERY_SECONDS:
            self.last_line = now
            logger.info("%s: %s", self.name, text, extra=extra)


def duration(seconds: float) -> str:
    """Seconds for people: `45 s`, `3 min`, `2.5 h`, `4.1 d`."""
    for limit, divisor, unit in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}" if divisor < 3600 else f"{seconds / divisor:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"
