"""Log the progress of long work: of one piece of it, and of the whole run that it is a part of.

The logger `stylegan` receives a line every few seconds, the logger `stylegan-progress` every update, for progress bars.

How the time that a whole run still takes is estimated. A step that is under way knows what is left of it: the rest of
its images at the speed measured so far. The plan has two numbers for every step after it: seconds that are known
(starting workers, stages whose speed is in storage) and seconds that were only counted from operations. Counted seconds
may be far off, but their ratios are not: they are multiplied by one factor, the measured over the counted seconds of all
work of this run so far. A sum over all of it, and not the newest speed, keeps the estimate from jumping. While nothing
is measured, the factor is 1 where the plan has measured this machine; elsewhere (GPUs, clusters) there is no estimate.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

logger = logging.getLogger("stylegan")
bars = logging.getLogger("stylegan-progress")  # not below `stylegan`: its records are for a terminal only
EVERY_SECONDS = 10  # between two lines about the same work
SHORTEST = 0.1  # seconds: a speed over less says nothing (results of parallel work come in bursts)
OVERHEAD = 1e-3  # of a step in the bar of the whole run, in seconds, where nothing is known of it


@dataclass(frozen=True)
class CourseStep:
    """A step of a whole run and what it is expected to take.

    Attributes:
        name: of the step.
        state: whether storage has it already, nothing needs it, or it runs.
        known: seconds that do not depend on the speed of the machine, or are known from an earlier run.
        counted: seconds of the work whose progress is shown, counted from operations.
        beside: counted seconds of what the step does after that work.
        unknown: whether the main work of the step has no estimate at all before it is under way.
    """

    name: str
    state: str = "run"
    known: float = 0.0
    counted: float = 0.0
    beside: float = 0.0
    unknown: bool = False


class Course:
    """The steps of a whole run: which of them is under way, and about how long the rest takes (see above).

    Without steps, as for a command that is one step, it shows nothing.
    """

    def __init__(self) -> None:
        self._steps: tuple[CourseStep, ...] = ()
        self._present = -1  # position of the step under way
        self._begun = 0.0  # time at which it began
        self._share = 0.0  # of its work that is done
        self._pace: float | None = None  # seconds that all of its work takes at the measured speed; None: not measured
        self._finished: list[tuple[float, float]] = []  # counted and measured seconds of the work of earlier steps
        self._guess: float | None = None  # the factor while nothing is measured

    def plan(self, name: str, steps: Sequence[CourseStep], *, measured_here: bool) -> None:
        """Set the steps, and log what will run.

        Args:
            name: of the run.
            steps: all of them, in order.
            measured_here: whether counted seconds are those of this machine.
        """
        self._steps, self._guess = tuple(steps), 1.0 if measured_here else None
        running = [step.name for step in steps if step.state == "run"]
        rest = [step.name for step in steps if step.state != "run"]
        if not running:
            logger.info("%s: %d steps, all taken from storage", name, len(steps))
            return
        kept = f", {len(rest)} taken from storage ({', '.join(rest)})" if rest else ""
        line = f"{name}: {len(steps)} steps{kept}; to do: {', '.join(running)}"
        left, blank = self._left(), [step.name for step in steps if step.state == "run" and step.unknown]
        if left:
            line += f"; about {duration(left)}" + (f" after {', '.join(blank)}" if blank else "")
        logger.info("%s", line)

    def begin(self, name: str) -> None:
        """Begin the step of a name, if the run has one; the step before it is over."""
        names = [step.name for step in self._steps]
        if name not in names:
            return
        position = names.index(name)
        if position != self._present:
            self._finished += self._measured()
            self._present, self._share, self._pace, self._begun = position, 0.0, None, time.monotonic()
        if self.whole:
            bars.info("whole run: %s", self.whole[1], extra={"whole": self.whole})

    def reach(self, share: float, pace: float) -> None:
        """Set the share of the present step's work that is done, and the seconds that all of the work takes."""
        self._share, self._pace = min(max(share, 0.0), 1.0), pace

    def end(self) -> None:
        """Take the bar of the whole run off the terminal."""
        if self._steps:
            self._steps, self._present = (), -1
            bars.info("whole run: over", extra={"whole": None})

    @property
    def text(self) -> str:
        """About how long the rest takes, for a line of progress; empty where that is not known."""
        left = self._left() if self._present >= 0 else None
        return f"whole run about {duration(left)} left" if left else ""

    @property
    def whole(self) -> tuple[float, str] | None:
        """The share of the whole run that is done, and a text, for a bar; None outside of a whole run."""
        if self._present < 0:
            return None
        # The share is that of the plan, which does not move back when the estimate of the time changes.
        costs = [0.0 if step.state != "run" else OVERHEAD + _expected(step, 1.0) for step in self._steps]
        done = sum(costs[: self._present]) + self._share * costs[self._present]
        left = self._left()
        about = f", about {duration(left)} left" if left else ""
        return done / (sum(costs) or 1.0), f"step {self._present + 1} of {len(self._steps)}{about}"

    def _measured(self) -> list[tuple[float, float]]:
        """Return counted and measured seconds of the present step's work so far, as a list of one or none."""
        if self._present < 0 or self._pace is None:
            return []
        counted, measured = self._steps[self._present].counted * self._share, self._pace * self._share
        return [(counted, measured)] if counted and measured else []

    def _left(self) -> float | None:
        """Return the seconds until the end of the run, None where they are not known."""
        parts = self._finished + self._measured()
        counted = sum(part[0] for part in parts)
        factor = sum(part[1] for part in parts) / counted if counted else self._guess

        seconds = 0.0
        for position, step in enumerate(self._steps):
            if position < self._present or step.state != "run":
                continue
            if position == self._present and self._pace is not None:
                step = CourseStep(step.name, known=self._pace * (1 - self._share), beside=step.beside)
            if factor is None and step.counted + step.beside:
                return None
            expected = _expected(step, factor or 1.0)
            if position == self._present and self._pace is None:
                expected = max(expected - (time.monotonic() - self._begun), 0.0)
            seconds += expected
        return seconds


def _expected(step: CourseStep, factor: float) -> float:
    """Return the seconds that a step takes."""
    return step.known + factor * (step.counted + step.beside)


course: ContextVar[Course | None] = ContextVar("course", default=None)  # of the run that this context belongs to


class Progress:
    """A counter of one piece of work, which logs how much is done, the speed, and the time that is left.

    Every record carries `progress = (name, done, total, text)` and `whole` (see `Course.whole`), so that a handler can
    draw bars instead of lines.

    Args:
        name: of the work.
        total: how much it is.
        unit: of what. `img/s` of training is defined at `curves.mean_speed`; that of other work is its images per
            second since the first update.
        part: `(2, 3)` if this is the second of three.
        step: None for work beside that of a step. Otherwise `(before, after)`: how much work in the same unit the
            present step of the whole run has before this and after this.
        begun: how much of this work was done earlier.
    """

    def __init__(
        self,
        name: str,
        total: float,
        unit: str = "img",
        *,
        part: tuple[int, int] | None = None,
        step: tuple[float, float] | None = None,
        begun: float = 0.0,
    ) -> None:
        self.name = f"{name} ({part[0]} of {part[1]})" if part and part[1] > 1 else name
        self.total, self.unit, self.step, self.begun = total, unit, step, begun
        # (time, done) at the first update, from which the speed counts: resumed work starts above zero.
        self.first: tuple[float, float] | None = None
        self.last_line = 0.0
        self.last_done = -1.0

    def reach(self, done: float, total: float) -> None:
        """Log as `update` does, for work whose total becomes known while it is done."""
        self.total = total
        self.update(done)

    def update(self, done: float, detail: str = "", *, rate: float | None = None) -> None:
        """Log that `done` of `total` is reached, followed by `detail`; do nothing if `done` is as before.

        Args:
            done: how much of the work is done.
            detail: more about it.
            rate: the speed, if it is measured elsewhere.
        """
        if done == self.last_done:
            return

        # Speed and remaining time.
        now, self.last_done = time.monotonic(), done
        if self.first is None:
            self.first, self.last_line = (now, done), now
        seconds = now - self.first[0]
        if rate is None:
            rate = (done - self.first[1]) / seconds if seconds >= SHORTEST else 0
        parts = [f"{done:,.0f} of {self.total:,.0f} {self.unit}"]
        if rate > 0:
            parts.append(f"{rate:,.0f} {self.unit}/s")
        if done >= self.total:
            parts.append("done")
        elif rate > 0:
            parts.append(f"{duration((self.total - done) / rate)} left")

        # The whole run.
        run = course.get()
        if run and self.step and rate > 0:
            before, after = self.step
            work = before + self.total - self.begun + after
            run.reach((before + done - self.begun) / work if work > 0 else 1.0, work / rate)
        whole, words = (run.whole, run.text) if run else (None, "")
        text = ", ".join(parts)
        line = "; ".join(part for part in (text, ", ".join(word for word in (words, detail) if word)) if part)
        shown = ", ".join(part for part in (text, detail) if part)

        # Every update for bars; a line every few seconds, and at the end.
        extra = {"progress": (self.name, done, self.total, shown), "whole": whole}
        bars.info("%s: %s", self.name, line, extra=extra)
        if done >= self.total or now - self.last_line >= EVERY_SECONDS:
            self.last_line = now
            logger.info("%s: %s", self.name, line, extra=extra)


@dataclass(frozen=True)
class Reached:
    """Say what a line of `Progress` shows.

    Attributes:
        name: of the work.
        done: how much is done.
        total: how much it is.
        unit: of both.
        rate: the speed, in units per second; None if it is not known.
        left: how long the work goes on, as `duration` writes it; None if it is not known.
        whole: how long the whole run goes on, in the same way.
    """

    name: str
    done: int
    total: int
    unit: str
    rate: int | None
    left: str | None
    whole: str | None


_LINE = re.compile(
    r"(?P<name>\S.*?): (?P<done>[\d,]+) of (?P<total>[\d,]+) (?P<unit>[^\s,;]+)(?:, (?P<rate>[\d,]+) [^\s,;]+/s)?"
    r"(?:, done|, (?P<left>[\d.]+ \w+) left)?(?:$|[,;])(?:.*?\bwhole run about (?P<whole>[\d.]+ \w+) left)?"
)


def newest_line(log: str) -> Reached | None:
    """Return what the last line of `Progress` in a log says; None if it has none."""
    for line in reversed(log.splitlines()):
        found = _LINE.match(line)
        if found:
            done, total, rate = (
                int(found[key].replace(",", "")) if found[key] else None for key in ("done", "total", "rate")
            )
            return Reached(found["name"], done or 0, total or 0, found["unit"], rate, found["left"], found["whole"])
    return None


def duration(seconds: float) -> str:
    """Return a number of seconds as people write it: `45 s`, `3 min`, `2.5 h`, `4.1 d`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} d"
