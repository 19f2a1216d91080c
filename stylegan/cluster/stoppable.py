"""Ray Train's set-up of torch, with workers that SIGTERM stops at the next step. Importing this file imports Ray Train."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchConfig

from stylegan.cluster.notices import catch_sigterm


class StoppableBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's backend for torch; it also catches SIGTERM."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up all workers. Ray calls this before it trains; what is executed here runs on their main threads."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(catch_sigterm)


class StoppableTorchConfig(TorchConfig):
    """`TorchConfig` with `StoppableBackend`."""

    @property
    def backend_cls(self) -> type[StoppableBackend]:
        """The backend."""
        return StoppableBackend
