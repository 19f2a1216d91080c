"""Ray: a head that runs no work, and a node that has the CPUs and GPUs of this machine."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.stack.environment import LOOPBACK
from infra.stack.service import Service, Values, client_environment, free_port, get, version_of
from stylegan.errors import StepError
from stylegan.records import digest


def ray_temp(values: Values) -> Path:
    """Return Ray's folder. Its path is short, because Ray makes sockets far below it."""
    return Path(tempfile.gettempdir(), f"ray-stack-{digest(values['STACK_DATA'])[:8]}")


def _ray_head_prepare(values: Values) -> None:
    shutil.rmtree(ray_temp(values), ignore_errors=True)  # of a head that has ended
    ray_temp(values).mkdir(mode=0o700, parents=True)


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
    return _ray_command(values, f"--address={values['STYLEGAN_RAY_ADDRESS']}")


def _ray_environment(values: Values) -> dict[str, str]:
    # Workers of jobs inherit it, and jobs that are launched from elsewhere bring no keys for a store of this machine.
    return client_environment(values) | {
        "RAY_TMPDIR": str(ray_temp(values)),
        "RAY_ADDRESS": "",
    }


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


HEAD = Service(
    "ray-head",
    (),
    _ray_head_command,
    _ray_environment,
    _ray_head_check,
    lambda values: values["RAY_API_SERVER_ADDRESS"],
    prepare=_ray_head_prepare,
)


NODE = Service(
    "ray-node",
    ("ray-head",),
    _ray_node_command,
    _ray_environment,
    _ray_node_check,
    lambda values: values["STYLEGAN_RAY_ADDRESS"],
)
