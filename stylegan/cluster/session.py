"""The Ray session of a command: start Ray on this machine or join a cluster, and leave it at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from stylegan.commands import shell_command
from stylegan.config.sections import RayConfig
from stylegan.errors import StepError, one_line
from stylegan.places import check_place, use_place

# Ray's defaults poll every 2 s and start spare workers: on one machine that doubles the cost of a short stage.
RAY_ENV = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "45",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # its future default, which a warning announces at every start
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": "2",  # of a task that Ray kills because memory is short; by default it is repeated for ever
}


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Open a lazy session: Ray is started or joined at its first use inside, and left at the end if it was started here."""
    before = _is_open()
    try:
        yield
    finally:
        if not before and _is_open() and head_answers():  # Ray would wait for a lost head, then end the process
            import ray

            ray.shutdown()


def _is_open() -> bool:
    if "ray" not in sys.modules:  # a finished run does not even import it
        return False
    import ray

    return ray.is_initialized()


def head_answers() -> bool:
    """Return whether something answers at the head of the cluster that this process has joined or started."""
    import ray

    try:
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError, RuntimeError):
        return False
    return True


def connect(ray_config: RayConfig) -> None:
    """Start Ray on this machine, or join `ray_config.address`; do nothing in a process that has Ray already.

    Raises:
        StepError: nothing answers at the address, or Ray does not start.
    """
    import_ray()
    import ray

    if ray.is_initialized():
        return
    check_address(ray_config)
    if ray_config.address is None:
        _use_own_token()
        use_place("RAY_TMPDIR", os.environ.get("RAY_TMPDIR") or "/tmp/ray")
    try:
        dashboard = None if ray_config.address else False
        with _own_sigterm():
            ray.init(
                address=ray_config.address or "local",
                include_dashboard=dashboard,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        if ray_config.address is None:
            raise StepError(
                f"Ray did not start on this machine ({reason}); it needs about 20 free ports, room in /dev/shm, and space "
                f"and short paths in RAY_TMPDIR; {os.environ.get('RAY_TMPDIR') or '/tmp'}/ray/session_latest/logs may say "
                "more"
            ) from error
        raise StepError(
            f"ray.address={ray_config.address}: Ray did not join it ({reason}); check that the head runs the same Ray "
            "version and, for a cluster with tokens, RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH"
        ) from error


def import_ray(*, train: bool = False) -> None:
    """Import Ray with its settings, and for `train` also what launches a stage: seconds. Nothing is started."""
    for name, value in RAY_ENV.items():
        os.environ.setdefault(name, value)
    import ray

    if train:
        import ray.train.torch  # noqa: F401


def _use_own_token() -> None:
    """Give a Ray of our own its token in the environment where Ray could not write one below HOME."""
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        try:
            check_place("RAY_AUTH_TOKEN_PATH", "~/.ray")
        except StepError:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # Ray itself switches to tokens


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM: that of Ray's C++ code prints a stack and aborts the process."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def check_address(ray_config: RayConfig) -> None:
    """Check that something answers at `ray.address`: Ray itself would retry a closed port for minutes.

    Raises:
        StepError: nothing answers.
    """
    address = ray_config.address
    if address is None or "://" in address or ":" not in address:  # Ray itself resolves `auto` and ray://
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise StepError(
            f"ray.address={address}: nothing answers there ({error}); start the head on {host} with "
            f"`{shell_command('ray', 'start', '--head', f'--port={port}')}`, correct ray.address, or leave it unset to "
            "start Ray on this machine"
        ) from None
