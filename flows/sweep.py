"""The flow of many runs: a parent run in MLflow, and below it a child for each config, every one an ordinary run.

Each child is a process of its own (`flows/cli/sweep_child.py`), so that it is in every way what `stylegan run` is: its
lock, its signals, its log and a crash of its own. What the children share is in storage, and the Ray of this machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Literal

from prefect import flow

from flows import outage
from flows.beginning import begin
from flows.killed_runs import SWEEP_FLOW_NAME as FLOW_NAME
from flows.killed_runs import show_stopped
from stylegan import storage
from stylegan.pipeline import lock
from stylegan.pipeline.steps import Summary
from stylegan.pipeline.sweep import Child, sweep_id
from stylegan.records import Record
from stylegan.retry import storage_settings
from stylegan.tracking.open_run import open_run

logger = logging.getLogger("stylegan")
State = Literal["done", "failed", "stopped", "pruned"]
POLL_SECONDS = 0.5


class SweptChild(Record):
    """What has become of one run of a sweep.

    Attributes:
        label: what differs from the others.
        name: that of its config.
        state: its evaluation and registration are done; it failed; it was stopped with the sweep; or it was not worth
            going on with.
        why: the line of a failure, or the reason to stop.
        command: what repeats it alone.
        run_id: None if it did not come so far.
        mlflow_run_id: None likewise.
        seconds: that this sweep has spent on it; 0 if it was taken from storage.
        kimg: images that it was trained on, in thousands.
        train_seconds: of its training, whichever command has done it.
        metrics: values of its report.
        intervals: 95 % intervals of some of them.
    """

    label: str
    name: str
    state: State
    why: str = ""
    command: str = ""
    run_id: str | None = None
    mlflow_run_id: str | None = None
    seconds: float = 0.0
    kimg: float | None = None
    train_seconds: float | None = None
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}


class Swept(Record):
    """What a sweep has done: its id, MLflow's id of its parent run, and its children in order."""

    sweep_id: str
    parent: str
    children: tuple[SweptChild, ...]


def sweep_flow(name: str, children: Sequence[Child], *, at_once: int | None = None) -> Swept:
    """Do the runs of a sweep, those that are finished in seconds; the failure of one does not end the others.

    Args:
        name: of the sweep; with the configs of its children it decides its MLflow run.
        children: as `make_children` returns them, or one's own.
        at_once: most children that run at the same time; unset: as many as there is room for.

    Raises:
        ConfigError, StepError: storage, MLflow or Ray cannot be used.
        LockedError: the same sweep is under way elsewhere.
    """

    @flow(name=FLOW_NAME, flow_run_name=name, persist_result=False, on_crashed=[show_stopped])
    def run_sweep(name: str, labels: list[str]) -> Swept:
        with outage.surviving():
            begin()
            return _sweep(name, children, at_once)

    done: Swept = run_sweep(name, [child.label for child in children])
    return done


def _sweep(name: str, children: Sequence[Child], at_once: int | None) -> Swept:
    config, key = children[0].config, sweep_id(name, children)
    root = storage.absolute(config.storage.root)
    with storage_settings(config.storage), lock.hold(root, f"sweep-{key}", run_id=key, what="stylegan sweep"):
        parent = open_run(config, key, None)
        parent.start()
        status = "KILLED"
        try:
            ended = [_run_child(child, parent.mlflow_run_id) for child in children]
            status = "FINISHED" if all(child.state != "failed" for child in ended) else "FAILED"
        finally:
            parent.finish(status)
        return Swept(sweep_id=key, parent=parent.mlflow_run_id, children=tuple(ended))


def _run_child(child: Child, parent: str) -> SweptChild:
    from flows.train import train_flow

    began = time.monotonic()
    known: dict[str, Any] = {"label": child.label, "name": child.config.name, "command": child.config.command("run")}
    try:
        summary = train_flow(child.config, parent=parent)
    except Exception as error:
        return SweptChild(**known, state="failed", why=str(error), seconds=time.monotonic() - began)
    return SweptChild(**known, state="done", seconds=time.monotonic() - began, **facts_of(summary))


def facts_of(summary: Summary) -> dict[str, Any]:
    """Return what the record of a child takes from the summary of its run."""
    return {
        "run_id": summary.run_id,
        "mlflow_run_id": summary.mlflow_run_id,
        "kimg": summary.checkpoints[-1].nimg / 1000,
        "metrics": summary.report.metrics,
        "intervals": summary.report.intervals,
    }
