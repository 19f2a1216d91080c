"""Check that a cluster has the resources that the workers of a stage ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable

from stylegan.cluster.session import connect
from stylegan.config.sections import RayConfig, RayStageOverride
from stylegan.config.tree import Config
from stylegan.errors import ConfigError
from stylegan.training.schedule import Stage


def check_resources(config: Config, stages: Iterable[Stage]) -> None:
    """Check that the cluster can place the workers of these stages when nothing else runs on it.

    Raises:
        ConfigError: it never can; the line says what was asked and what the cluster has.
    """
    import ray

    connect(config.ray)
    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for stage in stages:
        need = config.workers_at(stage.resolution)
        bundle = worker_bundle(config.ray, need)
        count = need.workers or 1
        if sum(_count_fitting(node, bundle) for node in nodes) < count:
            raise ConfigError(
                f"ray: stage {stage.name} asks for {count} worker(s) with {_describe(bundle)} each, but the cluster has "
                f"{describe_cluster()}; lower ray.workers or ray.cpus_per_worker / gpus_per_worker, or add nodes"
            )


def describe_cluster() -> str:
    """Return the nodes of the cluster that this process has joined, and their resources, for people."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    return f"{len(nodes)} node(s): " + "; ".join(_describe(dict(node["Resources"])) for node in nodes)


def worker_bundle(ray_config: RayConfig, need: RayStageOverride) -> dict[str, float]:
    """Return the Ray resources of one worker; resources of amount zero are left out."""
    bundle = {"CPU": need.cpus_per_worker or 0, "GPU": need.gpus_per_worker or 0} | ray_config.resources_per_worker
    return {name: float(amount) for name, amount in bundle.items() if amount}


def _count_fitting(node: dict[str, float], bundle: dict[str, float]) -> int:
    """Return how many bundles one node can hold."""
    return min(math.floor(node.get(name, 0) / amount + 1e-9) for name, amount in bundle.items())


def _describe(resources: dict[str, float]) -> str:
    shown = {
        name: amount
        for name, amount in sorted(resources.items())
        if not name.startswith("node:") and "memory" not in name and "internal" not in name
    }
    return ", ".join(f"{amount:g} {name}" for name, amount in shown.items()) or "nothing"
