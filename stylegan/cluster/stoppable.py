"""Ray Train's set-up of torch, with workers that SIGTERM stops at the next step. Importing this file imports Ray Train."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

from ray.train.torch import TorchConfig

from stylegan.cluster.notices import catch_sigterm

LOOPBACK = "127.0.0.1"
_listener: socket.socket | None = None  # of rank 0, until its store takes it


class StoppableBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's backend for torch; it also catches SIGTERM, and on this machine alone it is closed to others.

    The store by which the ranks find each other would listen on every interface, for whoever asks.
    """

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up all workers. Ray calls this before it trains; what is executed here runs on their main threads."""
        port = worker_group.execute_single(0, _open_port)
        if port is None:
            super().on_start(worker_group, backend_config)
        else:
            import ray

            size, backend, timeout_s = len(worker_group), backend_config.backend, backend_config.timeout_s
            join = worker_group.execute_single_async
            ray.get([join(rank, _join, port, rank, size, backend, timeout_s) for rank in range(size)])
        worker_group.execute(catch_sigterm)


class StoppableTorchConfig(TorchConfig):
    """`TorchConfig` with `StoppableBackend`."""

    @property
    def backend_cls(self) -> type[StoppableBackend]:
        """The backend."""
        return StoppableBackend


def _open_port() -> int | None:
    """Open a port for the store of the ranks and return it; None on a node of a cluster, which Ray's own way is for."""
    global _listener
    import ray

    if ray.util.get_node_ip_address() != LOOPBACK:
        return None
    _listener = socket.create_server((LOOPBACK, 0))
    port: int = _listener.getsockname()[1]
    return port


def _join(port: int, rank: int, size: int, backend: str, timeout_s: int) -> None:
    """Join the ranks of this machine, with the variables that torch and Ray Train set."""
    import torch.distributed as dist

    of_node = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "NODE_RANK": 0}
    os.environ |= {name: str(value) for name, value in of_node.items()}
    os.environ |= {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port)}
    timeout = timedelta(seconds=timeout_s)
    opened = _listener.detach() if rank == 0 and _listener else None
    store = dist.TCPStore(LOOPBACK, port, size, is_master=rank == 0, timeout=timeout, master_listen_fd=opened)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
