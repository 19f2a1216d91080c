"""Check that a cluster has the resources that the workers of a stage ask for, and that its GPUs can do the work."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from stylegan.cluster.node_check import Look, NodeFacts, look_at
from stylegan.cluster.session import connect
from stylegan.config.sections import RayConfig, RayStageOverride
from stylegan.config.tree import Config
from stylegan.errors import ConfigError
from stylegan.training.faults import check_gpus, check_named, unfit
from stylegan.training.gpus import ACCELERATOR, cuda_problem, gpus_here, triton_cure
from stylegan.training.schedule import Stage

logger = logging.getLogger("stylegan")


def check_resources(config: Config, stages: Iterable[Stage]) -> str | None:
    """Check that the workers of these stages can be placed when nothing else runs on the cluster.

    A cluster may still get nodes, for `ray.wait_s`, up to what its autoscaler allows; a Ray on this machine gets none.

    Args:
        config: that of the run.
        stages: the stages.

    Returns:
        a line on the stages that will have to wait for nodes; None if there are none.

    Raises:
        ConfigError: they never can; the line says what was asked and what the cluster has.
    """
    import ray

    connect(config.ray)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    grows = config.ray.address is not None and config.ray.wait_s > 0
    limits = _limits() if grows else None
    waiting = []
    for stage in stages:
        need = config.workers_at(stage.resolution)
        bundle, count = worker_bundle(config.ray, need), config.worker_counts_at(stage.resolution)[0]
        if sum(_count_fitting(dict(node["Resources"]), bundle) for node in nodes if _has_labels(node, need)) >= count:
            continue
        asked = f"stage {stage.name} asks for {describe_workers(bundle, dict(need.label_selector or {}), count)}, but"
        cure = "lower ray.workers or ray.cpus_per_worker / gpus_per_worker, or add nodes"
        if limits and any(limits.get(name, 0) < amount * count for name, amount in bundle.items() if name in limits):
            raise ConfigError(f"ray: {asked} the cluster grows to {_describe(dict(limits))} at most; {cure}")
        if not grows:
            raise ConfigError(f"ray: {asked} the cluster has {describe_cluster()}; {cure}")
        waiting.append(
            f"{asked} the cluster has {describe_cluster()} now; it will wait for nodes, up to {config.ray.wait_s:g} s "
            "(ray.wait_s)"
        )
    more = f" (and so will {len(waiting) - 1} more stage(s))" if len(waiting) > 1 else ""
    return f"{waiting[0]}{more}" if waiting else None


def _limits() -> dict[str, float] | None:
    """Return the resources that the cluster may grow to; None without an autoscaler, and by Ray Client, which does not
    know it."""
    from ray._private.state import state
    from ray.util.client import ray as client

    found = None if client.is_connected() else state.get_max_resources_from_cluster_config()
    return dict(found) if found else None


def count_runs(config: Config, stages: Iterable[Stage]) -> int:
    """Return how many runs of a config the cluster can hold at the same time, each with its fewest workers; at least one.

    Room that it does not have yet counts if its autoscaler may bring it.
    """
    import ray

    connect(config.ray)
    grows = config.ray.address is not None and config.ray.wait_s > 0
    return runs_in([node for node in ray.nodes() if node["Alive"]], config, stages, _limits() if grows else None)


def runs_in(
    nodes: Sequence[dict[str, Any]], config: Config, stages: Iterable[Stage], limits: dict[str, float] | None = None
) -> int:
    """Return what `count_runs` does, for a cluster of these nodes, which grows to `limits`."""
    runs = []
    for stage in stages:
        need = config.workers_at(stage.resolution)
        bundle = worker_bundle(config.ray, need)
        places = sum(_count_fitting(dict(node["Resources"]), bundle) for node in nodes if _has_labels(node, need))
        if limits and all(name in limits for name in bundle):
            places = max(places, _count_fitting(limits, bundle))
        runs.append(places // config.worker_counts_at(stage.resolution)[0])
    return max(min(runs), 1)


def check_gpu_nodes(config: Config, stages: Sequence[Stage], seen: Sequence[NodeFacts] = ()) -> None:
    """Check that torch can use the GPUs where these stages train, and that they can train them.

    Those of a Ray on this machine are looked at from here, those of a cluster by a task on each node that has some. A node
    that does not answer is taken to be in order.

    Args:
        config: that of the run.
        stages: the stages.
        seen: nodes that were looked at a moment ago, and need not be again.

    Raises:
        ConfigError: too few GPUs can, or the workers of a stage could get GPUs of different models; the line says what to
            change.
    """
    import ray

    stages = [stage for stage in stages if config.workers_at(stage.resolution).gpus_per_worker]
    if not stages:
        return
    check_named(config, stages)
    if config.ray.address is None:
        here = Look(problem=cuda_problem(expected=True), devices=gpus_here(), triton=triton_cure())
        if here.problem:
            raise ConfigError(f"ray.gpus_per_worker: {here.problem}")
        check_gpus(config, stages, here.devices)
        _warn_of_triton([here])
        return
    connect(config.ray)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    known = {facts.node_id: facts.look for facts in seen}
    new = [node for node in nodes if node["NodeID"] not in known]
    known |= dict(zip((node["NodeID"] for node in new), look_at(new), strict=True))
    looks = [known[node["NodeID"]] for node in nodes]
    for stage in stages:
        need = config.workers_at(stage.resolution)
        bundle, places, reasons = worker_bundle(config.ray, need), 0, []
        models: dict[str, str | None] = {}
        for node, look in zip(nodes, looks, strict=True):
            room = _count_fitting(dict(node["Resources"]), bundle) if _has_labels(node, need) else 0
            if why := _unfit(config, stage, look):
                reasons.append(f"{why} (node {node['NodeManagerAddress']})")
            elif room:
                places += room
                models |= {device.name: _accelerator(node) for device in look.devices}
        if reasons and places < config.worker_counts_at(stage.resolution)[0]:
            raise ConfigError(f"train {stage.name}: {reasons[0]}")
        if len(models) > 1 and config.most_workers_at(stage.resolution) > 1:
            raise ConfigError(_mixed(stage, models))
    _warn_of_triton(looks)


def _has_labels(node: dict[str, Any], need: RayStageOverride) -> bool:
    from ray._raylet import node_labels_match_selector

    return bool(node_labels_match_selector(node.get("Labels") or {}, dict(need.label_selector or {})))


def _accelerator(node: dict[str, Any]) -> str | None:
    """Return the model of a node's GPUs as Ray names it."""
    names = (name.removeprefix(ACCELERATOR) for name in node["Resources"] if name.startswith(ACCELERATOR))
    return next(names, None)


def _mixed(stage: Stage, models: dict[str, str | None]) -> str:
    """Return the line about GPUs of several models, which are given with their names by Ray."""
    kinds = dict.fromkeys(filter(None, models.values()))
    cure = " or ".join(f"ray.accelerator_type={kind}" for kind in kinds)
    if len(kinds) < 2:
        cure = "ray.label_selector to labels that only nodes with one of them have"
    return (
        f"train {stage.name}: its workers could get GPUs of different models ({' and '.join(models)}), and all would wait for "
        f"the slowest at every step; set {cure}"
    )


def _unfit(config: Config, stage: Stage, look: Look) -> str | None:
    """Return why no GPU of a node can train a stage; None if one can, or if nothing is seen of them."""
    reasons = [unfit(config, stage, device) for device in look.devices]
    return look.problem or (reasons[0] if reasons and all(reasons) else None)


def _warn_of_triton(looks: Sequence[Look]) -> None:
    cures = [look.triton for look in looks if look.triton]
    if cures:
        logger.warning(
            "Triton is missing%s, so steps on GPUs are made of plain operations and take longer: `%s`",
            "" if len(looks) == 1 else f" on {len(cures)} of {len(looks)} nodes",
            cures[0],
        )


def describe_workers(bundle: dict[str, float], labels: dict[str, str], count: int) -> str:
    """Return a number of workers and what each asks for, for people."""
    wanted = ", ".join(f"{name}={value}" for name, value in labels.items())
    where = f" on nodes with {wanted}" if wanted else ""
    return f"{count} worker(s) with {_describe(bundle)} each{where}"


def describe_cluster(*, free: bool = False) -> str:
    """Return the nodes of the cluster that this process has joined, and their resources, for people.

    Args:
        free: also say what of them nobody uses now.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    kinds = Counter(_describe(dict(node["Resources"])) for node in nodes)
    text = f"{len(nodes)} node(s): " + "; ".join(f"{n} x {kind}" if n > 1 else kind for kind, n in kinds.items())
    return f"{text} (free: {_describe(ray.available_resources())})" if free else text


def worker_bundle(ray_config: RayConfig, need: RayStageOverride) -> dict[str, float]:
    """Return the Ray resources of one worker; resources of amount zero are left out."""
    bundle = {"CPU": need.cpus_per_worker or 0, "GPU": need.gpus_per_worker or 0} | ray_config.resources_per_worker
    if need.accelerator_type and need.gpus_per_worker:
        bundle |= {f"accelerator_type:{need.accelerator_type}": 0.001}  # as Ray's own `accelerator_type` option does
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
