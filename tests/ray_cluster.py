"""A real Ray cluster of several nodes on this machine, in processes and with a temporary folder of its own.

As a program it starts the nodes that its arguments describe as JSON, prints the address of the head, and ends them when
its standard input ends. Ports are chosen by Ray.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

DEFAULTS = {"num_cpus": 1, "include_dashboard": False}


@contextmanager
def ray_cluster(*nodes: dict[str, Any], **environment: str) -> Iterator[str]:
    """Start a cluster, yield the address of its head, and end it.

    Args:
        nodes: arguments of `ray.cluster_utils.Cluster.add_node`, the head's first.
        environment: variables of its processes.
    """
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's sockets allow short paths only
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder}
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps(nodes)],
        env=os.environ | settings | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the cluster did not start"
        yield line.strip()
    finally:
        process.communicate()  # closes its standard input
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _serve(nodes: list[dict[str, Any]]) -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for node in nodes:
        cluster.add_node(**(DEFAULTS | node))
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
