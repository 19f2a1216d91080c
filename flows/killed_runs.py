"""Correct what Prefect shows of runs that did not end by themselves.

It would show runs whose process was killed as Running for ever, and those that were stopped in order as Crashed.

`has_unfinished` needs no Prefect, so this file imports it only where it is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylegan.processes import has_ended, place, start_time

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

FLOW_NAME, RETRAIN_FLOW_NAME = "stylegan-train", "stylegan-retrain"
SWEEP_FLOW_NAME, MEASURE_FLOW_NAME = "stylegan-sweep", "stylegan-measure"
FLOW_NAMES = (FLOW_NAME, RETRAIN_FLOW_NAME, SWEEP_FLOW_NAME, MEASURE_FLOW_NAME)
PID_TAG = "process:"
NEVER_BEGAN = timedelta(minutes=10)  # after which a pending run is not expected to begin any more


def process_tag() -> str:
    """Return the tag of this process: where its pid counts, pid and start time."""
    return f"{PID_TAG}{place()}:{os.getpid()}:{start_time():.0f}"


def _is_gone(tag: str) -> bool:
    """Return whether the tag names a process of this place that no longer runs."""
    where, pid, started = tag.removeprefix(PID_TAG).rsplit(":", 2)
    return where == place() and has_ended(int(pid), float(started))


def tag_process() -> None:
    """Tag the current flow run with this process, so that a killed run can be recognised."""
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context and context.flow_run:
        with get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, tags=[*context.flow_run.tags, process_tag()])


def end_killed_runs(flow_names: Sequence[str] = FLOW_NAMES) -> list[str]:
    """Set flow runs to Crashed that are shown as Running although their process was killed; return their names.

    So are runs whose worker was lost before they began: they would be pending for ever.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    ended = []
    kinds = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    with get_client(sync_client=True) as client:
        running = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(flow_names))),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=kinds)),
        )
        for run in running:
            message = ""
            if any(tag.startswith(PID_TAG) and _is_gone(tag) for tag in run.tags):
                message = "its process was killed; repeat the run to go on"
            elif run.state and run.state.is_pending() and datetime.now(UTC) - run.state.timestamp > NEVER_BEGAN:
                message = "its worker was lost before it began"
            if message:
                client.set_flow_run_state(run.id, Crashed(message=message), force=True)
                ended.append(run.name)
    return ended


def show_stopped(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Show a crashed flow run and its task as Cancelled if it was stopped by a signal; a hook of Prefect."""
    from prefect.exceptions import TerminationSignal  # where SIGTERM reaches the process of the run itself

    if not isinstance(state.data, KeyboardInterrupt | TerminationSignal):
        return
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.states import Cancelled

    said = str(state.data) if isinstance(state.data, KeyboardInterrupt) else ""
    stopped: State[Any] = Cancelled(message=said or "stopped by a signal; repeat the run to go on")
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:  # a server that is away shows nothing
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id])))
        for task in tasks:
            if task.state_name == "Crashed":
                client.set_task_run_state(task.id, stopped, force=True)
        client.set_flow_run_state(flow_run.id, stopped, force=True)


def has_unfinished(flow_name: str, run_name: str, database: Path) -> bool:
    """Return whether Prefect's SQLite file shows a killed run of a flow, or a last run of this name that did not complete.

    The next flow run mends both. The file itself is read, because a server takes longer to start than a finished run
    takes to be repeated. A file that cannot be read, or of another version of Prefect, counts as unfinished.
    """
    if not database.exists():
        return False
    query = """
        SELECT run.name, run.state_name, run.tags FROM flow_run AS run JOIN flow ON flow.id = run.flow_id
        WHERE flow.name = ? AND (run.name = ? OR run.state_name = 'Running') ORDER BY run.created
    """
    try:
        uri = f"{database.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            runs = connection.execute(query, (flow_name, run_name)).fetchall()
        tags = [tag for _, state, text in runs if state == "Running" for tag in json.loads(text)]
        last = [state for name, state, _ in runs if name == run_name][-1:]
        return last not in ([], ["Completed"], ["Skipped"]) or any(
            tag.startswith(PID_TAG) and _is_gone(tag) for tag in tags
        )
    except (sqlite3.Error, TypeError, ValueError):
        return True
