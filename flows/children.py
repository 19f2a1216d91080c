"""The processes of the runs of a sweep: started as there is room for them, watched, and stopped.

Each child is a process of its own (`flows/cli/sweep_child.py`), so that it is in every way what `stylegan run` is, with
its own lock, signals and log, and nothing that ends it ends another. On this machine all of them share one Ray, that of
the process that starts them: each with a Ray of its own, they would all take every GPU. A child ends with that process,
whatever that ends by.
"""

from __future__ import annotations

import contextvars
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Any, Literal

from prefect.settings import PREFECT_API_URL

from stylegan.cluster.resources import count_runs
from stylegan.cluster.session import connect, shared_environment
from stylegan.config.tree import Config
from stylegan.errors import printable
from stylegan.pipeline.sweep import Child
from stylegan.records import Record
from stylegan.training.schedule import stages

logger = logging.getLogger("stylegan")
State = Literal["done", "failed", "pruned"]
To = Literal["gate", "evaluate"]  # the last step of a child
MOST_AT_ONCE = 8  # children, unless it is said: each has a process of about half a GiB on this machine
LEAVE_SECONDS = 5.0  # after a child's own time to stop
PROGRAM = "flows.cli.sweep_child"


class SweptChild(Record):
    """What has become of one run of a sweep.

    Attributes:
        label: what differs from the others.
        name: that of its config.
        state: whether it came to its end, failed, or was not worth going on with.
        why: the line of a failure, or why it was not worth it.
        command: what repeats it alone.
        run_id: None if it did not come so far.
        mlflow_run_id: None likewise.
        cached: whether all of it was taken from storage.
        seconds: that this sweep has spent on it.
        kimg: images that it was trained on, in thousands.
        train_seconds: of its training, whichever run has done it.
        metrics: values of its report.
        intervals: 95 % intervals of some of them.
        aliases: of its version in the registry.
        error: the kind of a failure.
        group: as that of the `Child`.
    """

    label: str
    name: str
    state: State
    why: str = ""
    command: str = ""
    run_id: str | None = None
    mlflow_run_id: str | None = None
    cached: bool = False
    seconds: float = 0.0
    kimg: float | None = None
    train_seconds: float | None = None
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    aliases: tuple[str, ...] = ()
    error: str = ""
    group: str = ""


class ChildRequest(Record):
    """What the process of a child is asked to do.

    Attributes:
        values: of its config.
        arguments: by which a command line calls that config.
        parent: MLflow's id of the sweep's run.
        to: the last step.
        task_run: Prefect's id of what stands for it in the flow run of the sweep; None without.
        tag: of its flow run.
    """

    values: dict[str, Any]
    arguments: tuple[str, ...]
    parent: str
    to: To
    task_run: str | None
    tag: str


class ChildOutcome(Record):
    """What the process of a child writes at its end: facts of a `SweptChild`, or the line and kind of its failure."""

    facts: dict[str, Any] = {}
    why: str = ""
    error: str = ""


def described(child: Child) -> dict[str, Any]:
    """Return what the record of a child has in any state."""
    command = child.config.command("run")
    return {"label": child.label, "name": child.config.name, "command": command, "group": child.group}


class Children:
    """The processes of one sweep. Use it on one thread.

    Args:
        parent: MLflow's id of the run of the sweep.
        tag: of the flow runs of the children.
        to: the last step of each.
        at_once: most of them that run at the same time; unset: as many as there is room for, at most `MOST_AT_ONCE`.
    """

    def __init__(self, parent: str, tag: str, *, to: To = "gate", at_once: int | None = None) -> None:
        self.parent, self.tag, self.to, self.at_once = parent, tag, to, at_once
        self._processes: list[_Process] = []

    @property
    def running(self) -> list[Child]:
        """The children that run now, the oldest first."""
        return [process.child for process in self._processes]

    def has_room(self, child: Child) -> bool:
        """Return whether this child can run besides those that do; one is always allowed, which waits for its room.

        Raises:
            StepError: Ray does not start, or the cluster cannot be joined.
        """
        if not self._processes:
            return True
        if self.at_once is not None:
            return len(self._processes) < self.at_once
        each = [*self.running, child]
        room = min(count_runs(one.config, stages(one.config)) for one in each)
        return len(each) <= min(room, MOST_AT_ONCE)

    def start(self, child: Child) -> None:
        """Start the process of a child.

        Raises:
            StepError: Ray does not start, or the cluster cannot be joined.
        """
        logger.info("%s: begins", child.label)
        self._processes.append(
            _Process(child, self.parent, self.to, self.tag, _environment(child.config), _show(child.label))
        )

    def take_ended(self) -> Iterator[tuple[Child, SweptChild]]:
        """Yield the children that have ended since the last call, and what has become of them."""
        for process in list(self._processes):
            if process.has_ended():
                self._processes.remove(process)
                ended = process.result()
                logger.info("%s: %s%s", ended.label, ended.state, f": {ended.why}" if ended.why else "")
                yield process.child, ended

    def prune(self, child: Child, why: str) -> None:
        """Stop a child that is not worth going on with, as a user would: what it has is kept."""
        process = next(each for each in self._processes if each.child == child)
        if process.pruned is None:
            process.pruned = why
            process.stop()

    def stop(self) -> None:
        """Stop all children, and wait until they have ended."""
        for process in self._processes:
            process.stop()
        for process in self._processes:
            process.wait()
        self._processes.clear()


class _Process:
    """The process of one child."""

    def __init__(
        self, child: Child, parent: str, to: To, tag: str, environment: dict[str, str], task_run: str | None
    ) -> None:
        self.child, self.task_run = child, task_run
        self.pruned: str | None = None  # why
        self._began = time.monotonic()
        request = ChildRequest(
            values=child.config.model_dump(mode="json"),
            arguments=child.config._arguments,
            parent=parent,
            to=to,
            task_run=task_run,
            tag=tag,
        )
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM], stdin=pipe, stdout=pipe, stderr=pipe, env=environment
        )
        self._output = b""
        self._threads = [_thread(self._relay, self._process.stderr), _thread(self._keep, self._process.stdout)]
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its end is looked at like any other
            self._process.stdin.write(request.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()  # it stays open: its end is that of the child, see sweep_child.py

    def _relay(self, stream: IO[bytes]) -> None:
        """Log the lines of the child under its label."""
        for line in stream:
            logger.info("%s: %s", self.child.label, printable(line.decode(errors="replace").rstrip()))

    def _keep(self, stream: IO[bytes]) -> None:
        self._output = stream.read()

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        if not self.has_ended():
            self._process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        """Wait until a stopped child has ended; one that does not end in its time is killed."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self.child.config.ray.stop_grace_s + LEAVE_SECONDS)
        self._close()

    def _close(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # which ends whatever is left of it
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(LEAVE_SECONDS)

    def result(self) -> SweptChild:
        """Return what has become of a child that has ended."""
        self._close()
        code = self._process.returncode
        known = described(self.child) | {"seconds": time.monotonic() - self._began}
        outcome = ChildOutcome(why=f"its process ended with exit code {code}; its last lines say more")
        with suppress(ValueError):
            outcome = ChildOutcome.model_validate_json(self._output.splitlines()[-1] if self._output else b"")
        if code == 0 and outcome.facts:
            ended = SweptChild(**known, **outcome.facts, state="done")
        elif self.pruned is not None:
            ended = SweptChild(**known, state="pruned", why=self.pruned)
        else:
            ended = SweptChild(**known, state="failed", why=outcome.why, error=outcome.error)
        _show_end(self.task_run, ended)
        return ended


def _thread(work: Callable[[IO[bytes]], None], stream: IO[bytes] | None) -> threading.Thread:
    """Start a thread on a stream, in the context of the present flow run."""
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work, stream), daemon=True)
    thread.start()
    return thread


def _environment(config: Config) -> dict[str, str]:
    """Return the environment of a child: this one, with the Prefect server and the Ray of this process."""
    values = dict(os.environ)
    if url := PREFECT_API_URL.value():
        values |= {"PREFECT_API_URL": url, "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}
    if config.ray.address is None:
        connect(config.ray)
        values |= shared_environment()
    return values


# --- what the flow run of the sweep shows of a child ---


def _show(label: str) -> str | None:
    """Show that a child begins, and return the id of what stands for it; None if that cannot be."""
    from prefect import Task
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext
    from prefect.states import Running

    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None
    with suppress(Exception), get_client(sync_client=True) as client:
        stand_in = Task(fn=_stand_in, name="run")
        run = client.create_task_run(
            stand_in, context.flow_run.id, dynamic_key=f"{label}-{time.time_ns()}", name=label, state=Running()
        )
        return str(run.id)
    return None


def _stand_in() -> None:
    """Do nothing: a child works in its own process."""


def _show_end(task_run: str | None, ended: SweptChild) -> None:
    from uuid import UUID

    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled, Completed, Failed

    if task_run is None:
        return
    kind: Any = {"done": Completed, "failed": Failed, "pruned": Cancelled}[ended.state]
    with suppress(Exception), get_client(sync_client=True) as client:
        client.set_task_run_state(UUID(task_run), kind(message=ended.why or None), force=True)
