"""Find room in the cluster for the workers of a stage, and wait for it: nodes may come, and others may go.

Ray itself is asked, by a placement group of the workers: it knows labels, shares of GPUs and nodes that are being taken
away, and one that has to wait is what an autoscaler looks at to bring nodes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from stylegan.cluster.resources import check_resources, describe_cluster, describe_workers, worker_bundle
from stylegan.config.tree import Config
from stylegan.errors import ExhaustedError
from stylegan.progress import duration
from stylegan.training.schedule import Stage

logger = logging.getLogger("stylegan")
LINE_SECONDS = 30.0  # between two lines of a stage that waits
SILENT_SECONDS = 2.0  # before its first line: the workers of the stage before may just be ending
SETTLE_SECONDS = 2.0  # in which Ray places what there is room for; it tries again about once a second


def wait_for_room(
    config: Config, stage: Stage, *, counts: tuple[int, ...] | None = None, purpose: str | None = None
) -> int:
    """Return the largest number of workers that the cluster has room for now, after waiting until there is one.

    Args:
        config: gives the resources of the workers.
        stage: the stage that they are for.
        counts: the numbers that are allowed, ascending; unset those that the config allows for the stage.
        purpose: what they are for, as lines begin; unset is the training of the stage.

    Raises:
        ConfigError: there can never be room.
        ExhaustedError: there was none for `ray.wait_s`; the line says what the cluster has.
    """
    counts, purpose = counts or config.worker_counts_at(stage.resolution), purpose or f"train {stage.name}"
    check_resources(config, [stage])
    if config.ray.address is None and len(counts) == 1:
        return counts[0]  # this machine has what it has, and nobody else uses this Ray
    begun, told = time.monotonic(), False
    while True:
        if count := _largest(config, stage, counts):
            if told:
                logger.info("%s: there is room for %d worker(s) now", purpose, count)
            return count
        with placed(config, stage, counts[0]) as demand:
            wait = SILENT_SECONDS
            while not is_placed(demand, min(wait, begun + config.ray.wait_s - time.monotonic())):
                told, wait, waited = True, LINE_SECONDS, time.monotonic() - begun
                asked = describe_workers(config, stage, counts[0])
                if waited >= config.ray.wait_s:
                    raise ExhaustedError(
                        f"{purpose}: waited {duration(waited)} for room for {asked} (ray.wait_s="
                        f"{config.ray.wait_s:g}); the cluster has {describe_cluster(free=True)}; add nodes, lower "
                        "ray.workers, or raise ray.wait_s, and run the same command again"
                    )
                logger.info(
                    "%s: waiting for room for %s, for at most another %s (ray.wait_s); the cluster has %s",
                    purpose,
                    asked,
                    duration(config.ray.wait_s - waited),
                    describe_cluster(free=True),
                )


def _largest(config: Config, stage: Stage, counts: tuple[int, ...]) -> int | None:
    """Return the largest of these numbers of workers that fits now."""
    for count in reversed(counts):
        with placed(config, stage, count) as group:
            if is_placed(group, SETTLE_SECONDS):
                return count
    return None


def is_placed(group: Any, seconds: float) -> bool:
    """Wait until Ray has reserved a placement group, at most so many seconds; return whether it has.

    Its own `wait` counts whole seconds.
    """
    from ray.util.placement_group import placement_group_table

    end = time.monotonic() + seconds
    while placement_group_table(group)["state"] != "CREATED":
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def placed(config: Config, stage: Stage, count: int) -> Iterator[Any]:
    """Ask Ray to reserve so many workers of a stage while the block lasts; yield its placement group."""
    from ray.util.placement_group import placement_group, remove_placement_group

    need = config.workers_at(stage.resolution)
    bundles, labels = [worker_bundle(config.ray, need)] * count, [dict(need.label_selector or {})] * count
    group = placement_group(bundles, strategy="PACK", bundle_label_selector=labels if need.label_selector else None)
    try:
        yield group
    finally:
        remove_placement_group(group)
