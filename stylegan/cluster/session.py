"""The Ray session of a command: start Ray on this machine or join a cluster, and leave it at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from stylegan.cluster.environment import OF_OTHERS, environment, of_own_ray, read_again
from stylegan.cluster.head import find_head, head_answers, is_lost
from stylegan.config.sections import RayConfig
from stylegan.errors import ExhaustedError, StepError, UserError, one_line
from stylegan.places import use_place
from stylegan.progress import duration

# Ray's defaults poll every 2 s and start spare workers: on one machine that doubles the cost of a short stage.
RAY_ENV = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "45",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # its future default, which a warning announces at every start
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more for each stage; stage_launch.py looks at the nodes itself
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": "2",  # of a task that Ray kills because memory is short; by default it is repeated for ever
}


# Address of a Ray that another process of the same command has started on this machine: the processes of a sweep share one,
# or each would take every CPU and GPU for its own.
SHARED = "STYLEGAN_SHARED_RAY"
REJOIN_SECONDS = 2.0  # between two looks for a cluster that takes the place of a lost one
POLL_REST_SECONDS = 0.2  # also a part of the time that it takes to leave a cluster
_own_ray: dict[str, str | None] = {}  # the variables with which this process has started a Ray of its own

logger = logging.getLogger("stylegan")

# What the sessions of this process have set in its environment; the outermost session takes it back.
_settings = contextlib.ExitStack()


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Open a lazy session: Ray is started or joined at its first use inside, and left at the end if it was started here.

    Then the environment of this process is as it was before.
    """
    before = is_open()
    try:
        yield
    finally:
        if not before:
            _leave()


def _leave() -> None:
    """End the Ray of this process, if there is one, and take back what was set for it."""
    opened = is_open()
    if opened and head_answers():  # Ray would wait for a lost head, then end the process
        import ray

        ray.shutdown()
    _settings.close()
    if opened:
        read_again()  # whoever uses Ray in this process afterwards does so with the user's own token


def is_open() -> bool:
    """Return whether this process has started or joined Ray."""
    if "ray" not in sys.modules:  # a finished run does not even import it
        return False
    import ray

    return ray.is_initialized()


def connect(ray_config: RayConfig) -> None:
    """Start a Ray of its own on this machine, or join `ray_config.address`; do nothing in a process that has Ray already.

    A cluster that this process had joined and that is lost is left. The one that takes its place at the same address is
    waited for, for `ray.wait_s`.

    A Ray of its own is alone, whatever RAY_ADDRESS, a file of another cluster or a head on this machine say. In a process
    that was given `shared_environment`, it is that of the process that has given it.

    Raises:
        StepError: the cluster cannot be joined, which takes 30 s at most, or Ray does not start.
        ExhaustedError: no cluster has taken the place of the lost one.
    """
    if is_open():
        if ray_config.address is not None and is_lost():
            _rejoin(ray_config)
        return
    import_ray()
    if ray_config.address is None and is_shared():
        _join_shared(os.environ[SHARED])
    elif ray_config.address is None:
        _start()
    else:
        _join(ray_config)


def is_shared() -> bool:
    """Return whether this process shares the Ray on this machine that another one has started."""
    return bool(os.environ.get(SHARED))


def shared_environment() -> dict[str, str]:
    """Return the variables by which processes that this one starts share the Ray that it has started on this machine."""
    import ray

    token = {name: value for name, value in _own_ray.items() if name.startswith("RAY_AUTH") and value is not None}
    return {SHARED: ray.get_runtime_context().gcs_address, **token}


def _join_shared(address: str) -> None:
    try:
        with environment({**dict.fromkeys(OF_OTHERS), "RAY_ADDRESS": address}), _on_loopback():
            _init(address)
    except Exception as error:
        raise StepError(
            f"the Ray that this run shares with others of its sweep does not answer ({type(error).__name__}: "
            f"{one_line(error, 200)}); run the same command again"
        ) from error


def _start() -> None:
    from ray._common.utils import get_default_ray_temp_dir

    folder = get_default_ray_temp_dir()
    use_place("RAY_TMPDIR", folder)
    try:
        read_again()
        with _on_loopback():
            _own_ray.clear()
            _own_ray.update(of_own_ray())
            with environment(_own_ray):
                read_again()
                _init("local", include_dashboard=False)
    except Exception as error:
        raise StepError(
            f"Ray did not start on this machine ({type(error).__name__}: {one_line(error, 200)}); it needs about 20 free "
            f"ports, room in /dev/shm, and space and short paths in RAY_TMPDIR; {folder}/session_latest/logs may say more"
        ) from error


def _join(ray_config: RayConfig) -> None:
    try:
        head = find_head(ray_config)
        with environment(head.environment):
            _init(head.address)
    except UserError:
        raise
    except Exception as error:
        raise StepError(
            f"ray.address={ray_config.address}: Ray did not join it ({type(error).__name__}: {one_line(error, 200)}); look at "
            "the logs of its head"
        ) from error


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a Ray that is started or joined inside listen on the loopback interface alone, as it does on macOS and Windows.

    Otherwise its processes listen on every interface of the machine. `ray.init` turns a node address of 127.0.0.1 into
    that of the machine, and Ray reads the variable that decides this when it is imported, so its constant is set.
    """
    from ray._private import ray_constants

    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _rejoin(ray_config: RayConfig) -> None:
    """Leave a cluster that is lost and join the next one at its address. Raises ExhaustedError if none comes."""
    import ray

    begun = time.monotonic()
    logger.warning(
        "ray.address=%s: the cluster is lost; waiting for the next one there, for at most %s (ray.wait_s)",
        ray_config.address,
        duration(ray_config.wait_s),
    )
    ray.shutdown()
    while True:
        try:
            _join(ray_config)
            break
        except StepError as error:
            waited = time.monotonic() - begun
            if waited >= ray_config.wait_s:
                raise ExhaustedError(
                    f"{error} (waited {duration(waited)}, ray.wait_s={ray_config.wait_s:g})"
                ) from error
        time.sleep(REJOIN_SECONDS)
    logger.info("ray.address=%s: joined the next cluster", ray_config.address)


def _init(address: str, *, include_dashboard: bool | None = None) -> None:
    """Call ray.init, and keep the handler of SIGTERM: that of Ray's C++ code prints a stack and aborts the process."""
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, include_dashboard=include_dashboard, logging_level=logging.ERROR, log_to_driver=False)
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def import_ray(*, train: bool = False) -> None:
    """Import Ray with its settings, and for `train` also what launches a stage: seconds. Nothing is started."""
    _settings.enter_context(environment({name: value for name, value in RAY_ENV.items() if name not in os.environ}))
    import ray

    _keep_standard_output()
    _rest_without_head()
    if train:
        import ray.train.torch  # noqa: F401


def _keep_standard_output() -> None:
    """Let Ray print to standard error alone: it prints warnings of a raylet on standard output, which belongs to records."""
    from ray._private import worker

    plain = worker.print_worker_logs
    if getattr(plain, "__module__", "") == worker.__name__:

        def to_standard_error(data: Any, _sink: Any, *more: Any) -> None:
            plain(data, sys.stderr, *more)

        worker.print_worker_logs = to_standard_error


def _rest_without_head() -> None:
    """Let the thread of Ray that asks the head for errors rest where it gets no answer.

    It asks again at once: a run that waits for a lost head would keep a CPU busy, and then the next head, which refuses it.
    """
    import ray._raylet

    plain = ray._raylet.GcsErrorSubscriber
    if plain.__module__ == ray._raylet.__name__:

        class RestingSubscriber(plain):  # type: ignore[misc, valid-type]
            def poll(self, timeout: float | None = None) -> Any:
                found = super().poll(timeout)
                if found[1] is None:
                    time.sleep(POLL_REST_SECONDS)
                return found

        ray._raylet.GcsErrorSubscriber = RestingSubscriber
