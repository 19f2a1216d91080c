"""Around a flow run: what it shows in Prefect (artifacts, logs), and the end of runs whose process was killed."""

from __future__ import annotations

import base64
import io
import os
import re
import socket
from typing import TYPE_CHECKING

import psutil
from PIL import Image
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
from prefect.context import FlowRunContext
from prefect.states import Crashed

from stylegan import storage
from stylegan.images import png_bytes

if TYPE_CHECKING:
    from flows.train import Summary

PID_TAG = "process:"


def process_tag() -> str:
    """Names this process: host, pid and start time (pids are used again)."""
    return f"{PID_TAG}{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def _is_gone(tag: str) -> bool:
    """Whether the tag names a process of this machine that no longer runs."""
    host, pid, started = tag.removeprefix(PID_TAG).rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(started)) > 5  # reckoned from the boot time, which is adjusted
    except psutil.Error:
        return True


def tag_process() -> None:
    """Mark the current flow run as this process's."""
    context = FlowRunContext.get()
    if context and context.flow_run:
        with get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, tags=[*context.flow_run.tags, process_tag()])


def end_killed_runs(flow_name: str) -> int:
    """Flow runs that stand as Running although their process was killed become Crashed; returns how many."""
    ended = 0
    with get_client(sync_client=True) as client:
        running = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow_name])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Running"]))),
        )
        for run in running:
            if any(tag.startswith(PID_TAG) and _is_gone(tag) for tag in run.tags):
                client.set_flow_run_state(run.id, Crashed(message="its process was killed; repeat the run to go on"), force=True)
                ended += 1
    return ended


def publish_artifacts(summary: Summary) -> None:
    """The verdict with its metrics, a table, and the sample grid, on the flow run's page."""
    key = re.sub(r"[^a-z0-9-]", "-", summary.run_id)
    rows = [{"metric": name, "value": summary.report.shown(name)} for name in sorted(summary.report.metrics)]
    rows += [{"metric": name, "value": f"skipped: {why}"} for name, why in sorted(summary.report.skipped.items())]
    create_table_artifact(rows, key=f"{key}-metrics", description=f"Metrics of {summary.run_id} under protocol {summary.report.protocol}")
    create_markdown_artifact(_markdown(summary), key=f"{key}-verdict", description=f"Verdict on {summary.run_id}")
    grid = base64.b64encode(thumbnail(storage.read_bytes(summary.grid))).decode()
    create_image_artifact(f"data:image/png;base64,{grid}", key=f"{key}-samples", description=f"Samples of {summary.run_id}")


def thumbnail(png: bytes) -> bytes:
    """A PNG file as one at most 1024 pixels wide: an artifact is sent to the API as text."""
    image = Image.open(io.BytesIO(png))
    image.thumbnail((1024, 1024))
    return png_bytes(image)


def _markdown(summary: Summary) -> str:
    verdict, version = summary.verdict, summary.version
    lines = [
        f"## {version.name} version {version.version}: {'promoted to champion' if verdict.promote else 'not promoted'}",
        *(f"- {reason}" for reason in verdict.reasons),
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {name} | {summary.report.shown(name)} |" for name in sorted(summary.report.metrics)),
        "",
        f"Run `{summary.run_id}`, samples `{summary.grid}`",
        "",
        f"Report with figures: `{summary.page}`, and `report.html` among the artifacts of MLflow run `{summary.mlflow_run_id}`",
    ]
    return "\n".join(lines)
