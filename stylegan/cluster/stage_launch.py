"""Train one stage as a Ray Train run: its workers, their restart after a failure, and the barrier between them.

Checkpoints and curves go to storage straight from rank 0 (`training/loop.py`), with or without Ray, so there is one way
to resume.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any, TypeVar

from stylegan import storage
from stylegan.cluster.resources import check_resources, worker_bundle
from stylegan.config.tree import Config
from stylegan.errors import DivergedError, ExhaustedError, StepError, UnavailableError, UserError
from stylegan.training import distributed
from stylegan.training.job import StageJob
from stylegan.training.loop import train_stage
from stylegan.training.schedule import Stage
from stylegan.training.state import Checkpoint
from stylegan.training.stop import StageStopped

R = TypeVar("R")
STOP_SECONDS = 5.0  # for the last checkpoint of a stage that is interrupted
POLL_SECONDS = 0.3  # between two looks of a worker for a request to stop

logger = logging.getLogger("stylegan")


def launch_stage(job: StageJob) -> Checkpoint:
    """Train one stage with its own workers and return the record of its last checkpoint.

    The workers are started again, as often as ray.max_failures allows, after a failure that may not come again. Ray
    itself starts none again: it would not tell a lost worker from a mistake.

    What interrupts this call (a KeyboardInterrupt, a SystemExit) is raised after the workers have written a checkpoint of
    the state so far, if they do so within `STOP_SECONDS`.

    Raises:
        ConfigError: the cluster can never hold the workers.
        StepError: a worker met something it cannot work with.
        ExhaustedError: storage did not answer, or workers were lost more often than ray.max_failures allows.
    """
    from ray.train import TrainingFailedError

    check_resources(job.config, [job.stage])
    for attempt in count():
        try:
            return _fit(job)
        except TrainingFailedError as error:
            failure = _explain(job.stage, error)
            if not isinstance(failure, UnavailableError) or isinstance(failure, ExhaustedError):
                raise failure from error
            if attempt >= job.config.ray.max_failures:
                raise ExhaustedError(str(failure)) from error
            logger.warning("%s; starting its workers again, from the newest checkpoint", failure)
    raise AssertionError("unreachable")


def _fit(job: StageJob) -> Checkpoint:
    """Train with one set of workers. Raises TrainingFailedError if one fails, StepError if training diverges."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    config = job.config
    need = config.workers_at(job.stage.resolution)
    use_gpu = bool(need.gpus_per_worker)
    stop_key = f"stylegan-stop-{uuid.uuid4().hex}"
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "stop_key": stop_key},
        scaling_config=ScalingConfig(
            num_workers=config.most_workers_at(job.stage.resolution),
            use_gpu=use_gpu,
            resources_per_worker=worker_bundle(config.ray, need),
            placement_strategy="PACK",
        ),
        torch_config=TorchConfig(
            backend=backend(config, job.stage.resolution), timeout_s=distributed.timeout(config.storage.patience_s)
        ),
        run_config=RunConfig(
            name=f"{job.run_id}-{job.stage.resolution:04d}-{job.key}",
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=1),
            **_ray_storage(config.storage.root),
        ),
    )
    with _quiet_ray_train():
        result = _interruptible(trainer.fit, on_interrupt=partial(_request_stop, stop_key))
    if "diverged" in result.return_value:
        raise StepError(f"train {job.stage.name}: {result.return_value['diverged']}")
    return Checkpoint.model_validate(result.return_value)


def backend(config: Config, resolution: int) -> str:
    """Return how the ranks of a stage communicate: on GPUs by "nccl", but it refuses two ranks on one, so there by "gloo"."""
    gpus = config.workers_at(resolution).gpus_per_worker or 0
    return "gloo" if gpus == 0 or (gpus < 1 and config.most_workers_at(resolution) > 1) else "nccl"


def _ray_storage(root: str) -> dict[str, Any]:
    """Return where Ray keeps a few small files of its own: below the root, with the credentials of everything else."""
    import pyarrow.fs

    folder = storage.join(storage.absolute(root), "ray")
    if storage.is_local(folder):  # with a file system, Ray takes the path as it is and not for a URL
        return {"storage_path": folder, "storage_filesystem": pyarrow.fs.LocalFileSystem()}
    filesystem, path = storage.filesystem(folder)
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))}


def _interruptible(function: Callable[[], R], *, on_interrupt: Callable[[], None]) -> R:
    """Call a function on another thread, so that signals interrupt this one at once and Ray installs no handler for them.

    What interrupts is raised again after `on_interrupt` was called, and `function` has ended or `STOP_SECONDS` are over.
    """
    outcome: Future[R] = Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, name="stage-launch", daemon=True).start()
    try:
        return outcome.result()
    except BaseException:
        if not outcome.done():
            with contextlib.suppress(Exception):  # what interrupts is more important
                on_interrupt()
                outcome.result(timeout=STOP_SECONDS)
        raise


def _request_stop(key: str) -> None:
    """Ask the workers that look for this key to stop."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, b"stop")


@contextlib.contextmanager
def _stop_requests(key: str) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns at once whether a worker is asked to stop; only that of rank 0 is ever called."""
    import ray.train
    from ray.experimental.internal_kv import _internal_kv_exists

    if ray.train.get_context().get_world_rank() > 0:
        yield lambda: False
        return
    asked, over = threading.Event(), threading.Event()

    def look() -> None:
        while not over.wait(POLL_SECONDS):
            with contextlib.suppress(Exception):  # the head of the cluster may be away for a moment
                if _internal_kv_exists(key):
                    asked.set()
                    return

    threading.Thread(target=look, name="stop-requests", daemon=True).start()
    try:
        yield asked.is_set
    finally:
        over.set()


def _train_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    """Train on one worker; Ray calls it on each, and again after each failure."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    job: StageJob = loop_config["job"]
    cpus = job.config.workers_at(job.stage.resolution).cpus_per_worker or 1
    torch.set_num_threads(max(int(cpus), 1))
    try:
        with _stop_requests(loop_config["stop_key"]) as stop:
            record = train_stage(job, device=get_device(), on_checkpoint=ray.train.report, stop=stop)
        return record.model_dump(mode="json")
    except StageStopped:
        return {}  # nobody waits for a record any more
    except DivergedError as error:  # the same on every rank; returned, since Ray would restart a failed worker
        return {"diverged": str(error)}


def _explain(stage: Stage, failure: Exception) -> UserError:
    """Return the error of the rank that knew the cause; without one, an error that may not come again.

    When one rank fails the others only lose their connection to it, so the errors of all ranks are searched.
    """
    failures = list(getattr(failure, "worker_failures", {}).values()) or [failure]
    causes = [getattr(cause, "_base_exc", cause) for cause in failures]
    known = sorted(
        (cause for cause in causes if isinstance(cause, UserError)),
        key=lambda cause: isinstance(cause, UnavailableError),
    )
    if known:
        return type(known[0])(f"train {stage.name}: {known[0]}")
    lines = [line.strip() for line in str(causes[0]).splitlines() if line.strip()]
    reason = lines[-1] if lines else "no message"
    return UnavailableError(f"train {stage.name}: a worker failed: {type(causes[0]).__name__}: {reason}")


@contextlib.contextmanager
def _quiet_ray_train() -> Iterator[None]:
    """Silence Ray Train's INFO lines, one for every change of its state."""
    logger = logging.getLogger("ray.train")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
