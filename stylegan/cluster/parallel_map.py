"""`map` over Ray tasks, with results in order: for evaluation on the workers of training, for sharding on plain CPUs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from stylegan import storage
from stylegan.cluster.head import is_lost, lost_head
from stylegan.cluster.resources import check_resources, worker_bundle
from stylegan.cluster.room import Ask, ask_of_stage, wait_for_room
from stylegan.cluster.session import connect
from stylegan.config.sections import StorageConfig
from stylegan.config.tree import Config
from stylegan.data.loading.loader import LoaderSettings
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet, shard_size
from stylegan.data.sources.base import Source
from stylegan.errors import ExhaustedError, StepError, UserError
from stylegan.progress import Progress
from stylegan.retry import storage_settings
from stylegan.training.schedule import stages

T = TypeVar("T")
R = TypeVar("R")
LOOK_SECONDS = 2.0  # between two looks at the cluster while a result is waited for
AHEAD = 128  # tasks submitted before the oldest result is taken: results wait in Ray's memory


def parallel_map(function: Callable[[T], R], items: Iterable[T], config: Config) -> Iterator[R]:
    """Map over Ray tasks with the resources of a training worker, at most `AHEAD` before the result that is due.

    A task whose worker dies is repeated, it alone. Results are dropped once they are yielded. Without room for one worker
    it is waited for, as `wait_for_room` says.

    Args:
        function: picklable, importable on the workers.
        items: small picklable requests.
        config: gives the resources of a task (those of a worker of the last stage).
    """
    import ray

    last = stages(config)[-1]
    check_resources(config, [last])
    if config.ray.address is not None:
        wait_for_room(config.ray, ask_of_stage(config, last, "evaluate"))
    need = config.workers_at(config.data.resolution)
    cpus, gpus = need.cpus_per_worker or 1, need.gpus_per_worker or 0
    bundle = worker_bundle(config.ray, need)
    resources = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU")}
    # By default Ray ends a process that had a GPU after one task, and each chunk of an evaluation would load torch, CUDA
    # and all networks again.
    options: dict[str, Any] = {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "resources": resources,
        "max_retries": 3,
        "max_calls": 0,
    }
    if need.label_selector:
        options["label_selector"] = dict(need.label_selector)
    task = ray.remote(**options)(_call)
    yield from _in_order(lambda item: task.remote(function, item, cpus, config.storage), items, config.ray.address)


def evaluation_means(config: Config) -> dict[str, Any]:
    """Return by what means an evaluation is carried out, as arguments of `evaluate`, `evaluate_images` and `redraw`."""
    return {
        "root": storage.absolute(config.storage.root),
        "pmap": partial(_on_ray, config),
        "device": "cuda" if config.workers_at(config.data.resolution).gpus_per_worker else "cpu",
        "loading": LoaderSettings.of(config),
    }


def _on_ray(config: Config, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    return parallel_map(function, items, config)


def shard_in_parallel(source: Source, config: Config) -> ShardSet:
    """Write the shards of a listing below `storage.root` with the map of `cpu_map`. Raises as `write_shards`."""
    num_images = len(source.images)
    progress = Progress("shard", num_images, step=(0, 0))
    progress.update(0)  # the rate counts from here
    with storage_settings(config.storage):
        return write_shards(
            source, config.data, config.storage.root, pmap=cpu_map(config, num_images), progress=progress.reach
        )


def cpu_map(config: Config, num_images: int) -> Callable[[Callable[[T], R], Iterable[T]], Iterator[R]]:
    """Return the map for chunks of `num_images` images: Ray tasks of one CPU and no GPU, whatever training needs.

    It is plain `map` for a set of one chunk, as Ray takes longer to start, unless there is a cluster to do it. It is
    also plain `map` if the workers of a cluster could not read the images: these are in memory, or on this machine
    although storage is not.
    """
    source, address = config.data.source, config.ray.address
    one_chunk = address is None and num_images <= shard_size(config.data)
    unreachable = address is not None and storage.is_local(source) and not storage.is_local(config.storage.root)
    if one_chunk or unreachable or source.startswith("memory://"):
        return map
    return partial(_map_on_cpus, config)


def _map_on_cpus(config: Config, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    import ray

    rest = iter(items)
    first = list(islice(rest, 2))
    if not first or (len(first) == 1 and config.ray.address is None):
        yield from map(function, first)
        return
    connect(config.ray)
    if config.ray.address is not None:
        wait_for_room(config.ray, Ask({"CPU": 1.0}, {}, "shard"))

    def call(shared: Callable[[T], R], item: T) -> R:  # pickled by value: a worker need not import this file and torch
        with storage_settings(config.storage):
            return shared(item)

    task = ray.remote(num_cpus=1, num_gpus=0, max_retries=3)(call)
    # The function is sent once: it may carry the places of all members of an archive, and Ray refuses tasks of 95 MiB.
    yield from _in_order(partial(task.remote, ray.put(function)), chain(first, rest), config.ray.address)


def _in_order(submit: Callable[[T], Any], items: Iterable[T], address: str | None) -> Iterator[Any]:
    """Submit items ahead of the results, and yield the results in the order of the items."""
    pending: deque[Any] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) >= AHEAD:
            yield result_of(pending.popleft(), address)
    while pending:
        yield result_of(pending.popleft(), address)


def result_of(reference: Any, address: str | None = None) -> Any:
    """Return the result of a task or of an actor's call, on the cluster of `ray.address`.

    Raises what was raised there, ExhaustedError if the task was lost, which Ray has started again as often as it may, and
    LostHeadError if the whole cluster was: Ray itself would wait for a minute, then end this process.
    """
    import ray

    while not ray.wait([reference], timeout=LOOK_SECONDS)[0]:
        if is_lost():
            raise lost_head(address, "a Ray task", "goes on")
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise type(error.cause)(str(error.cause)) from error
        raise
    except ray.exceptions.OutOfMemoryError as error:  # after RAY_task_oom_retries
        raise StepError(
            "a Ray task was killed again and again because the memory of its node was short; give the node more memory, "
            "or raise ray.cpus_per_worker, so that fewer tasks run at the same time"
        ) from error
    except ray.exceptions.RayError as error:
        if is_lost():
            raise lost_head(address, "a Ray task", "goes on") from error
        raise ExhaustedError(
            f"a Ray task was lost ({type(error).__name__}); give its node more memory or lower ray.workers, then run again"
        ) from error


def _call(function: Callable[[T], R], item: T, cpus: float, settings: StorageConfig) -> R:
    """Run on a worker: apply the storage settings and thread count of the driver's config, then call the function."""
    import torch

    torch.set_num_threads(max(int(cpus), 1))
    with storage_settings(settings):
        return function(item)
