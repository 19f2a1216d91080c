"""Log the progress of long work.

The logger `stylegan` receives a line every few seconds, the logger `stylegan-progress` every update, for progress bars.
"""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("stylegan")
bars = logging.getLogger("stylegan-progress")  # not below `stylegan`: its records are for a terminal only
EVERY_SECONDS = 10  # between two lines about the same work
SHORTEST = 0.1  # seconds: a speed over less says nothing (results of parallel work come in bursts)


class Progress:
    """A counter of one piece of work, which logs how much is done, the speed, and the time that is left.

    Every record carries `progress = (name, done, total, text)`, so that a handler can draw a bar instead of a line.
    """

    def __init__(self, name: str, total: float, unit: str = "img") -> None:
        self.name, self.total, self.unit = name, total, unit
        # (time, done) at the first update, from which the speed counts: resumed work starts above zero.
        self.first: tuple[float, float] | None = None
        self.last_line = 0.0
        self.last_done = -1.0

    def reach(self, done: float, total: float) -> None:
        """Log as `update` does, for work whose total becomes known while it is done."""
        self.total = total
        self.update(done)

    def update(self, done: float, detail: str = "") -> None:
        """Log that `done` of `total` is reached, followed by `detail`; do nothing if `done` is as before."""
        if done == self.last_done:
            return

        # Speed and remaining time.
        now, self.last_done = time.monotonic(), done
        if self.first is None:
            self.first, self.last_line = (now, done), now
        seconds = now - self.first[0]
        rate = (done - self.first[1]) / seconds if seconds >= SHORTEST else 0
        parts = [f"{done:,.0f} of {self.total:,.0f} {self.unit}"]
        if rate > 0:
            parts.append(f"{rate:,.0f} {self.unit}/s")
        if done >= self.total:
            parts.append("done")
        elif rate > 0:
            parts.append(f"{duration((self.total - done) / rate)} left")
        if detail:
            parts.append(detail)
        text = ", ".join(parts)

        # Every update for bars; a line every few seconds, and at the end.
        extra = {"progress": (self.name, done, self.total, text)}
        bars.info("%s: %s", self.name, text, extra=extra)
        if done >= self.total or now - self.last_line >= EVERY_SECONDS:
            self.last_line = now
            logger.info("%s: %s", self.name, text, extra=extra)


def duration(seconds: float) -> str:
    """Return a number of seconds as people write it: `45 s`, `3 min`, `2.5 h`, `4.1 d`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} d"
