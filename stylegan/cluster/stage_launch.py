"""Train one stage as a Ray Train run: its workers, and their restart when some are lost, must go, or may be more.

Checkpoints and curves go to storage straight from rank 0 (`training/loop.py`), with or without Ray, so there is one way
to resume.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any, TypeVar

from stylegan import storage
from stylegan.cluster.head import HEAD_SECONDS, head_answers, lost_head, node_answers
from stylegan.cluster.nodes import draining, lost_of, named
from stylegan.cluster.notices import Board, Notice, watched
from stylegan.cluster.resources import worker_bundle
from stylegan.cluster.room import ask_of_stage, is_placed, placed, wait_for_workers
from stylegan.config.tree import Config
from stylegan.errors import DivergedError, ExhaustedError, LostHeadError, Stopped, UnavailableError, UserError
from stylegan.training import distributed
from stylegan.training.job import StageJob
from stylegan.training.loop import train_stage
from stylegan.training.schedule import Stage
from stylegan.training.state import Checkpoint, newest_checkpoint
from stylegan.training.stop import StageStopped
from stylegan.transfer.loop import train_transfer

R = TypeVar("R")
OnEvent = Callable[[str, int, int], None]
OnNodes = Callable[[Collection[str]], None]
LOOK_SECONDS = 2.0  # between two looks at the cluster while a stage trains
GROW_SECONDS = 60.0  # that workers train at least before more take their place, which costs some seconds

logger = logging.getLogger("stylegan")


def launch_stage(
    job: StageJob, *, on_event: OnEvent = lambda *_: None, on_nodes: OnNodes = lambda _: None
) -> Checkpoint:
    """Train one stage with its own workers and return the record of its last checkpoint.

    The stage waits for room in the cluster (room.py). It has as many workers as there is room for, of the numbers that
    the config allows, and they are started again, always from the newest checkpoint,

    - after a failure that may not come again, such as a lost node, as often as `ray.max_failures` allows;
    - when a node of theirs is going to be taken away, or there is room for more of them. They write a checkpoint first,
      so nothing is lost.

    Ray Train itself starts none again: it would not tell a lost worker from a mistake. Nor is it Ray that makes a group
    larger: it would choose numbers that do not divide the batch, and lose the work since the newest checkpoint.

    What interrupts this call (a KeyboardInterrupt, a SystemExit) is raised after the workers have written a checkpoint of
    the state so far, if they do so in time for `ray.stop_grace_s`.

    Args:
        job: what to train.
        on_event: called with what happened to the workers, a number, and the images from which they go on: `worker_lost`
            and `preempted` with how many workers, `resized` with how many there are now, `head_lost` with 1 before the
            error is raised.
        on_nodes: called with the ids of the nodes that have the workers, each time that these have started.

    Raises:
        ConfigError: the cluster can never hold the workers.
        StepError: a worker met something it cannot work with.
        ExhaustedError: storage did not answer, workers were lost more often than ray.max_failures allows, or there was
            no room for them for ray.wait_s.
        LostHeadError: the cluster is lost; the same call on the next one goes on from the newest checkpoint.
        Stopped: a worker was sent SIGTERM; the stage has a checkpoint of this moment.
    """
    try:
        return _launch(job, on_event, on_nodes)
    except LostHeadError:
        on_event("head_lost", 1, _resumed_at(job))
        raise


def _launch(job: StageJob, on_event: OnEvent, on_nodes: OnNodes) -> Checkpoint:
    """Do what `launch_stage` does on one cluster."""
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    failures, before, name = 0, None, f"train {job.stage.name}"
    while True:
        count = wait_for_workers(job.config, job.stage)
        if before is not None and count != before:
            logger.info("%s: goes on with %d worker(s)", name, count)
            on_event("resized", count, _resumed_at(job))
        before, board = count, Board()
        try:
            outcome = _fit(job, count, board, on_nodes)
            nodes = board.nodes() if isinstance(outcome, Notice) else {}
        except (TrainingFailedError, RayError) as error:
            failures += _failed(job, error, board, count, failures, on_event)
            continue
        finally:
            if head_answers():
                with contextlib.suppress(Exception):
                    board.clear()
        if not isinstance(outcome, Notice):
            return outcome
        if outcome.reason == "signal" and not draining().keys() & nodes.keys():
            raise Stopped(
                f"{name}: the worker of {outcome.detail} was sent SIGTERM, so the run is stopped at {_newest(job)}; run "
                "the same command again to go on",
                signal.SIGTERM,
            )
        if outcome.reason == "grow":
            logger.info("%s: there is room for more workers; they start again from %s", name, _newest(job))
        else:  # one that is idle may have gone since
            gone = outcome.detail.split() if outcome.reason == "drain" else draining()
            _tell_preempted(job, {node: number for node, number in nodes.items() if node in gone}, on_event)


def _failed(job: StageJob, error: Exception, board: Board, count: int, failures: int, on_event: OnEvent) -> bool:
    """Tell why workers have failed, from which new ones can go on; return whether it counts as a failure.

    Raises:
        UserError: new workers could not go on, or there were as many failures before as ray.max_failures allows.
    """
    if not head_answers():  # its node may have had the workers, too
        raise _head_lost(job) from error
    name, allowed = f"train {job.stage.name}", job.config.ray.max_failures
    if _found_no_room(error):
        what = f"{name}: somebody else has taken the room for its workers"
    else:
        failure = _explain(job.stage, error)
        if not isinstance(failure, UnavailableError) or isinstance(failure, ExhaustedError):
            raise failure from error
        nodes, going = board.nodes(), draining()
        lost = lost_of(nodes)
        leaving = {node: number for node, number in nodes.items() if node in going}
        if _was_preempted(error) or (leaving and not lost):
            _tell_preempted(job, leaving, on_event)
            return False
        on_event("worker_lost", sum(lost.values()) or 1, _resumed_at(job))
        what = f"{name}: lost {named(lost, count)}" if lost else str(failure)
    if failures >= allowed:
        raise ExhaustedError(f"{what}; ray.max_failures={allowed} allows no more") from error
    logger.warning("%s; its workers start again from %s", what, _newest(job))
    return True


def _fit(job: StageJob, count: int, board: Board, on_nodes: OnNodes) -> Checkpoint | Notice:
    """Train with one set of workers; return the last checkpoint, or the notice that has stopped them.

    Raises:
        TrainingFailedError: a worker failed.
        DivergedError: training diverged.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from stylegan.cluster.stoppable import StoppableTorchConfig

    config = job.config
    need = config.workers_at(job.stage.resolution)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "board": board},
        scaling_config=ScalingConfig(
            num_workers=count,
            use_gpu=bool(need.gpus_per_worker),
            resources_per_worker=worker_bundle(config.ray, need),
            placement_strategy="PACK",
            label_selector=need.label_selector or None,
        ),
        torch_config=StoppableTorchConfig(
            backend=backend(config, job.stage.resolution), timeout_s=distributed.timeout(config.storage.patience_s)
        ),
        run_config=RunConfig(
            name=f"{job.run_id}-{job.stage.resolution:04d}-{job.key}",
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            **_ray_storage(config.storage.root),
        ),
    )
    outcome: Future[Any] = Future()
    with _quiet_ray_train(), _looking_after(job, count, board, outcome, on_nodes):
        result = _interruptible(
            trainer.fit, outcome, on_interrupt=partial(board.post, "stop"), patience=_checkpoint_seconds(config)
        )
    if "diverged" in result.return_value:
        raise DivergedError(f"train {job.stage.name}: {result.return_value['diverged']}")
    if not result.return_value:
        return board.read() or Notice("stop")
    return Checkpoint.model_validate(result.return_value)


@contextlib.contextmanager
def _looking_after(job: StageJob, count: int, board: Board, outcome: Future[Any], on_nodes: OnNodes) -> Iterator[None]:
    """Look at the cluster while the workers of a stage train.

    Workers are stopped if a node of theirs is going to be taken away, or there is room for more of them. If the head of
    the cluster is gone, that is the outcome: Ray itself would end this process after a minute, without a word.
    """
    larger = [other for other in job.config.worker_counts_at(job.stage.resolution) if other > count]
    begun, over, demands = time.monotonic(), threading.Event(), contextlib.ExitStack()

    def look() -> None:
        answered, demand = time.monotonic(), None
        nodes: dict[str, int] = {}
        while not over.wait(LOOK_SECONDS):
            if head_answers():
                answered = time.monotonic()
            elif time.monotonic() - answered > HEAD_SECONDS or not node_answers():
                with contextlib.suppress(InvalidStateError):
                    outcome.set_exception(_head_lost(job))
                return
            else:
                continue
            with contextlib.suppress(Exception):  # it may still go away
                if sum(nodes.values()) < count:  # they do not move
                    nodes = board.nodes()
                    if sum(nodes.values()) == count:
                        on_nodes(nodes)
                if leaving := draining().keys() & nodes.keys():
                    board.post("drain", " ".join(sorted(leaving)))
                elif larger and demand is None and sum(nodes.values()) == count:  # earlier it would take their own room
                    demand = demands.enter_context(placed(ask_of_stage(job.config, job.stage), larger[0] - count))
                elif demand and time.monotonic() - begun > GROW_SECONDS and is_placed(demand, 0):
                    board.post("grow")

    watch = threading.Thread(target=look, name="cluster-watch", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join(LOOK_SECONDS)
        if head_answers():
            demands.close()


def _head_lost(job: StageJob) -> UnavailableError:
    return lost_head(job.config.ray.address, f"train {job.stage.name}", f"goes on from {_newest(job)}")


def _checkpoint_seconds(config: Config) -> float:
    """Return how long an interrupted stage may take for its last checkpoint: the rest of the run has to end, too."""
    return max(config.ray.stop_grace_s - 4, config.ray.stop_grace_s / 2)


def _resumed_at(job: StageJob) -> int:
    """Return the image count from which workers that start now go on."""
    newest = newest_checkpoint(job.uri)
    return newest.nimg if newest else job.stage.start_nimg


def _newest(job: StageJob) -> str:
    return f"{_resumed_at(job) / 1000:g} kimg"


def _tell_preempted(job: StageJob, leaving: dict[str, int], on_event: OnEvent) -> None:
    on_event("preempted", sum(leaving.values()) or 1, _resumed_at(job))
    logger.warning(
        "train %s: %s will be taken away; its workers go on elsewhere, from %s",
        job.stage.name,
        named(leaving) if leaving else "a node",
        _newest(job),
    )


def _found_no_room(error: Exception) -> bool:
    """Return whether Ray Train could not place the workers in time, by an error of its own in a private module."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def _was_preempted(error: Exception) -> bool:
    """Return whether workers were lost because their node was taken away after a notice."""
    failures = getattr(error, "worker_failures", {}).values()
    return type(error).__name__ == "PreemptionError" or any(getattr(each, "preempted", False) for each in failures)


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


def _interruptible(
    function: Callable[[], R], outcome: Future[R], *, on_interrupt: Callable[[], None], patience: float
) -> R:
    """Call a function on another thread, so that signals interrupt this one at once and Ray installs no handler for them.

    What interrupts is raised again after `on_interrupt` was called, and `function` has ended or `patience` seconds are over.

    Args:
        function: what is called.
        outcome: receives what it returns or raises, unless somebody else decides the outcome before.
        on_interrupt: asks the function to end.
        patience: seconds.
    """

    def call() -> None:
        with contextlib.suppress(InvalidStateError):
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
                outcome.result(timeout=patience)
        raise


def _train_worker(loop_config: dict[str, Any]) -> dict[str, Any]:
    """Train on one worker; Ray calls it on each, and again after each failure."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    job: StageJob = loop_config["job"]
    rank = ray.train.get_context().get_world_rank()
    cpus = job.config.workers_at(job.stage.resolution).cpus_per_worker or 1
    torch.set_num_threads(max(int(cpus), 1))
    try:
        with watched(loop_config["board"], rank) as stop:
            train = train_transfer if job.config.transfer else train_stage
            record = train(job, device=get_device(), on_checkpoint=ray.train.report, stop=stop)
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
