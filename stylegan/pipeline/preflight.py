"""Check before the first step what can be known before it, so that a mistake ends a run in seconds and not after days.

`check_places` reads only; every step begins with it. `check_work` comes before work that is not done yet: it tries to
write, fetches public weights and asks Ray. What the images must have is in `check_data.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from stylegan import storage
from stylegan.cluster.head import check_address
from stylegan.cluster.node_check import require_nodes
from stylegan.cluster.resources import check_gpu_nodes, check_resources
from stylegan.config.tree import Config
from stylegan.data.cache import cache_root
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation.features import public_weights
from stylegan.places import check_place, may, nearest, use_place
from stylegan.tracking.connection import resolve_uri, sqlite_file
from stylegan.tracking.open_run import check_experiment
from stylegan.training.schedule import Stage

logger = logging.getLogger("stylegan")


def check_places(config: Config) -> None:
    """Check that storage, MLflow and Ray are there and can be used; write nothing.

    Raises:
        ConfigError: an address cannot work.
        StepError: something does not answer or refuses, or the experiment was deleted in MLflow.
    """
    check_root(config.storage.root)
    check_address(config.ray)
    check_experiment(config)


def use_places(config: Config) -> None:
    """Try the folders of this machine that a step writes to besides its root, and remember all for a full disk's line.

    Raises:
        StepError: the cache cannot be written.
    """
    if storage.is_local(config.storage.root):
        use_place("storage.root", storage.absolute(config.storage.root))
    if database := sqlite_file(resolve_uri(config)):
        use_place("tracking.uri", database.parent)
    if config.ray.address is None:  # otherwise it is the workers that use the cache
        check_place("STYLEGAN_CACHE", cache_root())


def check_work(config: Config, stages: Sequence[Stage]) -> None:
    """Check that the work of a run can be done: storage takes files, public weights are there, Ray has the workers.

    The nodes of a cluster must run the same code and see storage.

    Args:
        config: that of the run.
        stages: those that are to be trained.

    Raises:
        ConfigError: the cluster can never hold the workers, its GPUs cannot train a stage, or a weight file cannot be
            had.
        StepError: storage refuses, or the cluster or a node of it cannot do the work.
    """
    try_writing(storage.absolute(config.storage.root))
    public_weights.fetch_all(config.evaluation)
    nodes = require_nodes(config)
    if stages:
        if waiting := check_resources(config, stages):
            logger.warning("ray: %s", waiting)
        check_gpu_nodes(config, stages, nodes)


def try_writing(root: str) -> None:
    """Write a small file below a root, read it back and delete it. Raises StepError if that does not work."""
    with storage.probe(root) as (uri, content):
        if storage.read_bytes(uri) != content:
            raise StepError(
                f"storage.root={root}: a file that was just written reads back differently; check that store"
            )


def check_root(given: str) -> None:
    """Check that a root is, or can become, a folder that takes files; write nothing.

    Raises:
        ConfigError: it is a file, or in the memory of one process.
        StepError: there is no permission, or its store does not answer.
    """
    if given.startswith("memory://"):
        raise ConfigError(
            "storage.root=memory://: workers cannot see the memory of another process; use a folder or a bucket"
        )
    if not storage.is_local(given):
        storage.exists(given)  # the store must answer
        return
    there = nearest(storage.absolute(given))
    if not os.path.isdir(there):
        raise ConfigError(f"storage.root={given}: {there} is not a folder; give another path, or move that file away")
    if not may(there, os.W_OK | os.X_OK):
        raise StepError(f"storage.root={given}: no permission to write {there}; allow it, or set storage.root")
