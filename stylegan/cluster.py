"""Ray: the session, the check before a launch, sharding, one TorchTrainer per stage, and parallel maps.

Only this file and spare.py import ray. Checkpoints and curves go to storage straight from rank 0 (training/loop.py), with or without
Ray, so there is one way to resume. What Ray adds is the workers, their restart after a failure, and the barrier between them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from stylegan import storage
from stylegan.config import Config, RayConfig, RayStageOverride, StorageConfig
from stylegan.config_file import build as build_config
from stylegan.data.shards import ShardSet, write_shards
from stylegan.data.shardset import shard_size
from stylegan.data.sources import Source
from stylegan.errors import ConfigError, DivergedError, StepError, UnavailableError, UserError
from stylegan.patience import use_settings
from stylegan.progress import Progress
from stylegan.training.job import StageJob
from stylegan.training.loop import train_stage
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import Checkpoint

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 128  # tasks under way in a parallel map: their results wait in Ray's memory

# Ray's defaults poll every 2 s and start spare workers: on one machine that doubles the cost of a short stage.
RAY_ENV = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "45",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # its future default, which a warning announces at every start
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextlib.contextmanager
def session() -> Iterator[None]:
    """A lazy Ray session: Ray starts (or is joined) at its first use inside, and is left at the end if it was started here."""
    import ray

    before = ray.is_initialized()
    try:
        yield
    finally:
        if not before and ray.is_initialized():
            ray.shutdown()


def connect(ray_config: RayConfig) -> None:
    """Start Ray on this machine, or join `ray_config.address`; does nothing in a process that has Ray already.

    Raises:
        StepError: nothing answers at the address.
    """
    import ray

    if ray.is_initialized():
        return
    for name, value in RAY_ENV.items():
        os.environ.setdefault(name, value)
    check_address(ray_config)
    try:
        dashboard = None if ray_config.address else False
        ray.init(
            address=ray_config.address, include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise StepError(
            f"ray.address={ray_config.address or 'unset'}: Ray did not start or join ({type(error).__name__}: {reason}); "
            "check that the head runs the same Ray version and, for a cluster with tokens, RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH"
        ) from error


def check_address(ray_config: RayConfig) -> None:
    """Whether something answers at `ray.address`: a closed port would otherwise cost minutes of retries.

    Raises:
        StepError: nothing does.
    """
    address = ray_config.address
    if address is None or "://" in address or ":" not in address:  # `auto` and ray:// are looked up by Ray itself
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise StepError(
            f"ray.address={address}: nothing answers there ({error}); start the head with `ray start --head --port=...`, "
            "correct ray.address, or leave it unset to start Ray on this machine"
        ) from None


def check_resources(config: Config, stages: Iterable[Stage]) -> None:
    """Whether the cluster can ever place the workers of these stages.

    Raises:
        ConfigError: it cannot; the line says what was asked and what the cluster has.
    """
    import ray

    connect(config.ray)
    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for stage in stages:
        need = config.workers_at(stage.resolution)
        bundle = _bundle(config.ray, need)
        count = need.workers or 1
        if sum(_fits(node, bundle) for node in nodes) < count:
            raise ConfigError(
                f"ray: stage {stage.name} asks for {count} worker(s) with {_describe(bundle)} each, but the cluster has "
                f"{describe()}; lower ray.workers or ray.cpus_per_worker / gpus_per_worker, or add nodes"
            )


def describe() -> str:
    """The nodes of the cluster that this process has joined, and what they hold."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    return f"{len(nodes)} node(s): " + "; ".join(_describe(dict(node["Resources"])) for node in nodes)


def _bundle(ray_config: RayConfig, need: RayStageOverride) -> dict[str, float]:
    bundle = {"CPU": need.cpus_per_worker or 0, "GPU": need.gpus_per_worker or 0} | ray_config.resources_per_worker
    return {name: float(amount) for name, amount in bundle.items() if amount}


def _fits(node: dict[str, float], bundle: dict[str, float]) -> int:
    """How many bundles one node can hold."""
    return min(math.floor(node.get(name, 0) / amount + 1e-9) for name, amount in bundle.items())


def _describe(resources: dict[str, float]) -> str:
    shown = {
        name: amount for name, amount in resources.items() if not name.startswith("node:") and "memory" not in name
    }
    return (
        ", ".join(f"{amount:g} {name}" for name, amount in sorted(shown.items()) if "internal" not in name) or "nothing"
    )


def train(job: StageJob) -> Checkpoint:
    """Train one stage as a Ray Train run with its own workers; returns the record of its last checkpoint.

    Raises:
        ConfigError: the cluster can never hold the workers.
        StepError: a worker failed more often than ray.max_failures allows, or met something it cannot work with.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    config = job.config
    need = config.workers_at(job.stage.resolution)
    check_resources(config, [job.stage])
    use_gpu = bool(need.gpus_per_worker)
    trainer = TorchTrainer(
        _worker,
        train_loop_config=_as_plain(job),
        scaling_config=ScalingConfig(
            num_workers=need.workers or 1,
            use_gpu=use_gpu,
            resources_per_worker=_bundle(config.ray, need),
            placement_strategy="PACK",
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name=f"{job.run_id}-{job.stage.resolution:04d}-{job.key}",
            failure_config=FailureConfig(max_failures=config.ray.max_failures, controller_failure_limit=1),
            **_ray_storage(config.storage.root),
        ),
    )
    try:
        with _quiet():
            result = trainer.fit()
    except TrainingFailedError as error:
        raise _explain(job.stage, error) from error
    if "diverged" in result.return_value:
        raise StepError(f"train {job.stage.name}: {result.return_value['diverged']}")
    return Checkpoint.model_validate(result.return_value)


def _ray_storage(root: str) -> dict[str, Any]:
    """Ray keeps a few small files of its own beside ours; on object stores through the same fsspec credentials as everything else."""
    folder = storage.join(storage.absolute(root), "ray")
    if storage.is_local(folder):
        return {"storage_path": folder}
    import pyarrow.fs

    filesystem, path = storage.filesystem(folder)
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))}


def _as_plain(job: StageJob) -> dict[str, Any]:
    return {
        "config": job.config.model_dump(mode="json"),
        "stage": vars(job.stage),
        "shards": job.shards.model_dump(mode="json"),
        "key": job.key,
        "run_id": job.run_id,
        "uri": job.uri,
        "previous": job.previous.model_dump(mode="json") if job.previous else None,
    }


def _worker(plain: dict[str, Any]) -> dict[str, Any]:
    """The train function: runs on every worker, again after each failure."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    config = build_config(plain["config"])
    job = StageJob(
        config=config,
        stage=Stage(**plain["stage"]),
        shards=ShardSet.model_validate(plain["shards"]),
        key=plain["key"],
        run_id=plain["run_id"],
        uri=plain["uri"],
        previous=Checkpoint.model_validate(plain["previous"]) if plain["previous"] else None,
    )
    cpus = config.workers_at(job.stage.resolution).cpus_per_worker or 1
    torch.set_num_threads(max(int(cpus), 1))
    try:
        return train_stage(job, device=get_device(), on_checkpoint=ray.train.report).model_dump(mode="json")
    except DivergedError as error:  # the same on every rank; handed back, since Ray would only start it again
        return {"diverged": str(error)}


def _explain(stage: Stage, failure: Exception) -> UserError:
    """What a worker said, if one knew what was wrong; anything else (a lost node, no memory) may work another time.

    When one rank fails the others lose their connection to it, so all are looked at.
    """
    failures = list(getattr(failure, "worker_failures", {}).values()) or [failure]
    causes = [getattr(cause, "_base_exc", cause) for cause in failures]
    told = sorted(
        (cause for cause in causes if isinstance(cause, UserError)),
        key=lambda cause: isinstance(cause, UnavailableError),
    )
    if told:
        return type(told[0])(f"train {stage.name}: {told[0]}")
    lines = [line.strip() for line in str(causes[0]).splitlines() if line.strip()]
    return UnavailableError(
        f"train {stage.name}: a worker failed: {type(causes[0]).__name__}: {lines[-1] if lines else 'no message'}"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray Train announces every state change at INFO."""
    logger = logging.getLogger("ray.train")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def parallel_map(function: Callable[[T], R], items: Iterable[T], config: Config) -> Iterator[R]:
    """`map` over Ray tasks, results in order; as many at once as the cluster has room for, at most `AHEAD` before the one that is due.

    A task whose worker dies is done again, it alone. Results are dropped once they are handed out.

    Args:
        function: picklable, importable on the workers.
        items: small picklable requests.
        config: gives the resources of a task (those of a worker of the last stage).
    """
    import ray

    check_resources(config, stages(config)[-1:])
    need = config.workers_at(config.data.resolution)
    cpus, gpus = need.cpus_per_worker or 1, need.gpus_per_worker or 0
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, resources=config.ray.resources_per_worker, max_retries=3)(_call)
    yield from _in_order(lambda item: task.remote(function, item, cpus, config.storage), items)


def shard(source: Source, config: Config) -> ShardSet:
    """The shards of a listing below `storage.root`, made by the map of `cpu_map`. Raises as `write_shards`."""
    use_settings(config.storage)
    num_images = len(source.images)
    progress = Progress("shard", num_images)
    progress.update(0)  # the rate counts from here
    return write_shards(
        source, config.data, config.storage.root, pmap=cpu_map(config, num_images), progress=progress.reach
    )


def cpu_map(config: Config, num_images: int) -> Callable[[Callable[[T], R], Iterable[T]], Iterator[R]]:
    """The map that chunks of `num_images` images are sharded or checked with: Ray tasks of one CPU and no GPU, whatever training needs.

    Plain `map` for a set of one chunk, as Ray takes longer to start, unless there is a cluster to do it; and if the workers of a
    cluster could not see the images, which are on this machine (or in memory) although storage is not.
    """
    source, address = config.data.source, config.ray.address
    alone = address is None and num_images <= shard_size(config.data)
    unseen = address is not None and storage.is_local(source) and not storage.is_local(config.storage.root)
    return map if alone or unseen or source.startswith("memory://") else partial(_map_on_cpus, config)


def _map_on_cpus(config: Config, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    import ray

    rest = iter(items)
    first = list(islice(rest, 2))
    if not first or (len(first) == 1 and config.ray.address is None):
        yield from map(function, first)
        return
    connect(config.ray)

    def call(
        shared: Callable[[T], R], item: T
    ) -> R:  # pickled by value: a worker need not import this file, and torch with it
        use_settings(config.storage)
        return shared(item)

    task = ray.remote(num_cpus=1, num_gpus=0, max_retries=3)(call)
    # The function goes there once: it may carry where all members of an archive lie, and Ray refuses tasks of 95 MiB.
    yield from _in_order(partial(task.remote, ray.put(function)), chain(first, rest))


def _in_order(submit: Callable[[T], Any], items: Iterable[T]) -> Iterator[Any]:
    pending: deque[Any] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) >= AHEAD:
            yield result_of(pending.popleft())
    while pending:
        yield result_of(pending.popleft())


def result_of(reference: Any) -> Any:
    """The result of a task or of a call of an actor. Raises what was raised there, UnavailableError if it was lost."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise type(error.cause)(str(error.cause)) from error
        raise
    except ray.exceptions.RayError as error:
        raise UnavailableError(
            f"a Ray task was lost ({type(error).__name__}); give its node more memory or lower ray.workers, then run again"
        ) from error


def _call(function: Callable[[T], R], item: T, cpus: float, settings: StorageConfig) -> R:
    import torch

    use_settings(settings)
    torch.set_num_threads(max(int(cpus), 1))
    return function(item)
