"""Ray: a head that runs no work, and a node that has the CPUs and GPUs of this machine."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from infra.stack.environment import LOOPBACK
from infra.stack.service import Service, Values, client_environment, free_port, get, version_of
from stylegan.errors import StepError
from stylegan.records import digest

RUNNING = ("PENDING", "RUNNING")  # jobs
END_SECONDS = 60.0  # in which a job may write its checkpoint; by default it takes at most half of them


def ray_temp(values: Values, node: str = "head") -> Path:
    """Return the folder of one of Ray's nodes. Its path is short, because Ray makes sockets far below it.

    Each node has its own, as on two machines: one would delete the code of a job that the other runs.
    """
    return Path(tempfile.gettempdir(), f"ray-stack-{digest(values['STACK_DATA'])[:8]}", node)


def _fresh_temp(values: Values, node: str) -> None:
    """Make the folder of a node, without what an earlier one has left."""
    temp = ray_temp(values, node)
    temp.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir()


def _head_prepare(values: Values) -> None:
    _fresh_temp(values, "head")


def _node_prepare(values: Values) -> None:
    _fresh_temp(values, "node")


def _ray_command(values: Values, *options: str) -> list[str]:
    module = "infra.stack.loopback_ray" if values["STACK_HOST"] == LOOPBACK else "ray.scripts.scripts"
    command = [sys.executable, "-P", "-m", module, "start", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={values['STACK_HOST']}", "--min-worker-port=0", "--max-worker-port=0", *options]
    # Two nodes on one machine, and perhaps another Ray beside them: the ports of their helpers must not be the usual ones.
    for helper in ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent"):
        command.append(f"--{helper}-port={free_port()}")
    return command


def _ray_head_command(values: Values) -> list[str]:
    return _ray_command(
        values,
        *("--head", f"--port={values['STACK_RAY_PORT']}", "--num-cpus=0", f"--temp-dir={ray_temp(values)}"),
        *(f"--dashboard-host={values['STACK_HOST']}", f"--dashboard-port={values['STACK_DASHBOARD_PORT']}"),
        *(f"--ray-client-server-port={values['STACK_RAY_CLIENT_PORT']}", f"--object-store-memory={200 * 2**20}"),
    )


def _ray_node_command(values: Values) -> list[str]:
    return _ray_command(values, f"--address={values['STYLEGAN_RAY_ADDRESS']}", f"--temp-dir={ray_temp(values, 'node')}")


def _ray_environment(values: Values, node: str) -> dict[str, str]:
    # Workers of jobs inherit it, and jobs that are launched from elsewhere bring no keys for a store of this machine.
    return client_environment(values) | {"RAY_TMPDIR": str(ray_temp(values, node)), "RAY_ADDRESS": ""}


def _ray_get(values: Values, path: str) -> Any:
    headers = {"Authorization": f"Bearer {values['RAY_AUTH_TOKEN']}"}
    return get(f"{values['RAY_API_SERVER_ADDRESS']}{path}", headers=headers).json()


def _ray_nodes(values: Values) -> list[Mapping[str, Any]]:
    answer = _ray_get(values, "/api/v0/nodes?limit=1000")
    return [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]


def _ray_head_check(values: Values) -> str:
    if not any(node["is_head_node"] for node in _ray_nodes(values)):
        raise StepError("the cluster has no head")
    return str(_ray_get(values, "/api/version")["ray_version"])


def _ray_node_check(values: Values) -> str:
    if all(node["is_head_node"] for node in _ray_nodes(values)):
        raise StepError("the cluster has no node for workers")
    return version_of("ray")


def _end_jobs(values: Values) -> None:
    """Stop the jobs that run on the cluster, and wait until each has written its checkpoint and ended."""
    headers = {"Authorization": f"Bearer {values['RAY_AUTH_TOKEN']}"}
    running = [job["submission_id"] for job in _ray_get(values, "/api/jobs/") if job["status"] in RUNNING]
    for name in running:
        get(f"{values['RAY_API_SERVER_ADDRESS']}/api/jobs/{name}/stop", body={}, headers=headers)
    deadline = time.monotonic() + END_SECONDS
    for name in running:
        while _ray_get(values, f"/api/jobs/{name}")["status"] in RUNNING and time.monotonic() < deadline:
            time.sleep(0.5)


HEAD = Service(
    "ray-head",
    (),
    _ray_head_command,
    partial(_ray_environment, node="head"),
    _ray_head_check,
    lambda values: values["RAY_API_SERVER_ADDRESS"],
    ("STACK_RAY_PORT", "STACK_RAY_CLIENT_PORT", "STACK_DASHBOARD_PORT"),
    prepare=_head_prepare,
)

NODE = Service(
    "ray-node",
    ("ray-head",),
    _ray_node_command,
    partial(_ray_environment, node="node"),
    _ray_node_check,
    lambda values: values["STYLEGAN_RAY_ADDRESS"],
    (),
    prepare=_node_prepare,
    end_work=_end_jobs,
)
