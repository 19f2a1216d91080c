"""Find room in the cluster for the workers of a stage, and wait for it: nodes may come, and others may go.

Ray itself is asked, by a placement group of the workers: it knows labels, shares of GPUs and nodes that are being taken
away, and one that has to wait is what an autoscaler looks at to bring nodes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from stylegan.cluster.head import head_answers, is_lost, lost_head
from stylegan.cluster.resources import check_resources, describe_cluster, describe_workers, worker_bundle
from stylegan.cluster.session import is_shared
from stylegan.config.sections import RayConfig
from stylegan.config.tree import Config
from stylegan.errors import ExhaustedError
from stylegan.progress import duration
from stylegan.training.schedule import Stage

logger = logging.getLogger("stylegan")
LINE_SECONDS = 30.0  # between two lines of a stage that waits
SHARED_WAIT_S = 7 * 86_400.0  # for the other runs of a sweep on this machine
POLL_SECONDS = 0.1  # between two questions whether a placement group is reserved
SETTLE_SECONDS = 2.0  # in which Ray places what there is room for; it tries again about once a second


class Ask(NamedTuple):
    """Say what one worker asks for.

    - `bundle`: amounts of Ray's resources by name.
    - `labels`: those that its node must have.
    - `purpose`: what it is for, as lines begin.
    """

    bundle: dict[str, float]
    labels: dict[str, str]
    purpose: str

    def describe(self, count: int) -> str:
        """Return so many of these workers in words."""
        return describe_workers(self.bundle, self.labels, count)


def ask_of_stage(config: Config, stage: Stage, purpose: str | None = None) -> Ask:
    """Return what one worker of a stage asks for."""
    need = config.workers_at(stage.resolution)
    return Ask(worker_bundle(config.ray, need), dict(need.label_selector or {}), purpose or f"train {stage.name}")


def wait_for_workers(config: Config, stage: Stage) -> int:
    """Return the largest number of workers of a stage that there is room for, after waiting until there is some.

    Raises:
        ConfigError: there can never be room.
        ExhaustedError: there was none for `ray.wait_s`.
    """
    counts = config.worker_counts_at(stage.resolution)
    check_resources(config, [stage])
    settings = config.ray
    if is_shared() and settings.address is None:  # those who have the room are runs that end
        settings = settings.model_copy(update={"wait_s": SHARED_WAIT_S})
    elif settings.address is None and len(counts) == 1:
        return counts[0]  # this machine has what it has, and nobody else uses this Ray
    return wait_for_room(settings, ask_of_stage(config, stage), counts)


def wait_for_room(ray_config: RayConfig, ask: Ask, counts: tuple[int, ...] = (1,)) -> int:
    """Return the largest number of workers that the cluster has room for, after waiting until there is one.

    Args:
        ray_config: says how long is waited.
        ask: what each of them asks for.
        counts: the numbers that are allowed, ascending.

    Raises:
        ExhaustedError: there was no room for `ray.wait_s`; the line says what the cluster has.
        LostHeadError: the cluster is lost.
    """
    begun, told = time.monotonic(), False
    while True:
        count, wait, waits = _largest(ask, counts[1:]), SETTLE_SECONDS, False
        with placed(ask, counts[0]) if count is None else contextlib.nullcontext() as demand:
            # One demand for all of the time: an autoscaler may count one that takes its place besides the former.
            while demand and not is_placed(demand, wait):
                if is_lost():
                    raise lost_head(ray_config.address, ask.purpose, "goes on")
                told, waits, waited = True, True, time.monotonic() - begun
                wait = min(LINE_SECONDS, ray_config.wait_s - waited)
                if waited >= ray_config.wait_s:
                    raise ExhaustedError(
                        f"{ask.purpose}: waited {duration(waited)} for room for {ask.describe(counts[0])} (ray.wait_s="
                        f"{ray_config.wait_s:g}); the cluster has {describe_cluster(free=True)}; add nodes, lower "
                        "ray.workers, or raise ray.wait_s, and run the same command again"
                    )
                logger.info(
                    "%s: waiting for room for %s, for at most another %s (ray.wait_s); the cluster has %s",
                    ask.purpose,
                    ask.describe(counts[0]),
                    duration(ray_config.wait_s - waited),
                    describe_cluster(free=True),
                )
        if not waits or len(counts) == 1:  # otherwise there may be room for more by now
            if told:
                logger.info("%s: there is room for %d worker(s) now", ask.purpose, count or counts[0])
            return count or counts[0]


def _largest(ask: Ask, counts: tuple[int, ...]) -> int | None:
    """Return the largest of these numbers of workers that fits now."""
    for count in reversed(counts):
        with placed(ask, count) as group:
            if is_placed(group, SETTLE_SECONDS):
                return count
    return None


def is_placed(group: Any, seconds: float) -> bool:
    """Wait until Ray has reserved a placement group, at most so many seconds; return whether it has.

    Its own `wait` counts whole seconds. The head is looked at before each question, which would wait for a lost one.
    """
    from ray.util.placement_group import placement_group_table

    end = time.monotonic() + seconds
    while head_answers() and placement_group_table(group)["state"] != "CREATED":
        if time.monotonic() >= end:
            return False
        time.sleep(POLL_SECONDS)
    return head_answers()


@contextlib.contextmanager
def placed(ask: Ask, count: int) -> Iterator[Any]:
    """Ask Ray to reserve room for so many workers while the block lasts; yield its placement group."""
    from ray.util.placement_group import placement_group, remove_placement_group

    labels = [ask.labels] * count if ask.labels else None
    group = placement_group([ask.bundle] * count, strategy="PACK", bundle_label_selector=labels)
    try:
        yield group
    finally:
        if head_answers():
            remove_placement_group(group)
