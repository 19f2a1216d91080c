"""Ray clusters of several nodes on this machine, for tests: each node is a process group that can be killed."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def free_port():
    """Return a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Machines:
    """A Ray cluster whose nodes stand for machines.

    Attributes:
        address: `host:port` of its head.
    """

    def __init__(self, *, env=None, autoscaling=None, head_cpus=0, port=None):
        """Start the head, which has no CPUs for workers unless it is given some.

        Args:
            env: environment variables of all nodes.
            autoscaling: node types of an autoscaler that brings nodes by itself, by name.
            port: that of the head; a free one if unset.
        """
        self.temp = tempfile.mkdtemp(prefix="r", dir="/tmp")  # Ray's sockets allow short paths only
        # With RAY_TMPDIR the file that names a cluster to processes on this machine is its own, too.
        own = {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "", "RAY_TMPDIR": self.temp}
        self.env = os.environ | own | (env or {})
        port = port or free_port()
        self.address = f"127.0.0.1:{port}"
        self._processes = []
        options = [f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
        if autoscaling is not None:
            options.append(f"--autoscaling-config={self._autoscaler(autoscaling)}")
            self.env |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        self.head = self._start("--head", *options, cpus=head_cpus)

    def add(self, cpus=1, *, resources=None, env=None):
        """Start a node, with resources and environment variables of its own, and return its process."""
        options = [f"--address={self.address}", "--node-ip-address=127.0.0.1"]
        options += [f"--resources={json.dumps(resources)}"] if resources else []
        return self._start(*options, cpus=cpus, env=env)

    def kill(self, process):
        """Kill all processes of a node at once, as the end of a machine does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self):
        """Kill all nodes and delete their files."""
        for process in self._processes:
            self.kill(process)
        shutil.rmtree(self.temp, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _start(self, *options, cpus, env=None):
        """Start a node with ports of its own."""
        command = [Path(sys.executable).with_name("ray"), "start", "--block", "--disable-usage-stats", *options]
        command += [
            f"--num-cpus={cpus}",
            "--object-store-memory=100000000",
            "--min-worker-port=0",
            "--max-worker-port=0",
        ]
        for name in ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent"):
            command.append(f"--{name}-port={free_port()}")
        path = Path(self.temp, f"node-{len(self._processes)}.log")
        with open(path, "wb") as log:
            process = subprocess.Popen(
                command, env=self.env | (env or {}), stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        deadline = time.monotonic() + 120
        while "will now block" not in path.read_text():  # one at a time: nodes of one address take each other's ports
            assert process.poll() is None, path.read_text()
            assert time.monotonic() < deadline, path.read_text()
            time.sleep(0.1)
        return process

    def _autoscaler(self, types):
        """Write the config of an autoscaler whose nodes are further processes of the head, and return its path."""
        provider = {"type": "fake_multinode", "gcs_address": self.address, "use_node_id_as_ip": True}
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        config = {
            "cluster_name": "test",
            "provider": provider | {"disable_launch_config_check": True, "disable_node_updaters": True},
            "available_node_types": {"ray.head.default": head} | types,
            "head_node_type": "ray.head.default",
            "max_workers": 8,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 5,
            "auth": {},
        }
        config |= {f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup")}
        config |= {"head_start_ray_commands": [], "worker_start_ray_commands": [], "file_mounts": {}}
        config |= {"cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": []}
        config |= {"rsync_filter": [], "docker": {}}
        path = Path(self.temp, "autoscaler.json")
        path.write_text(json.dumps(config))
        return path
