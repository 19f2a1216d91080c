"""The nodes of the cluster: which are going to be taken away, which are lost, and how lines name them."""

from __future__ import annotations

import socket
from typing import Any


def draining() -> dict[str, int]:
    """Return the ids of the nodes that are going to be taken away, and when: milliseconds since 1970, 0 for unknown.

    Empty where Ray Client is used, which does not know it.
    """
    from ray._private.state import state
    from ray.util.client import ray as client

    found: dict[str, int] = {} if client.is_connected() else state.get_draining_nodes()
    return found


def lost_of(nodes: dict[str, int]) -> dict[str, int]:
    """Return those nodes that no longer answer; the cluster itself notices that only after a while."""
    import ray

    facts = {node["NodeID"]: node for node in ray.nodes()} if nodes else {}
    return {node: number for node, number in nodes.items() if not _answers(facts.get(node))}


def _answers(node: dict[str, Any] | None) -> bool:
    if node is None or not node["Alive"]:
        return False
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=5).close()
    except OSError:
        return False
    return True


def named(nodes: dict[str, int], workers: int | None = None) -> str:
    """Return nodes with workers in words: `node 10.0.0.3 (4f2a91c0) with 2 of 3 workers`."""
    import ray

    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    names = [f"{addresses.get(node, 'unknown')} ({node[:8]})" for node in nodes]
    number = f"{sum(nodes.values())} of {workers}" if workers else f"{sum(nodes.values())}"
    return f"node{'s' if len(names) > 1 else ''} {' and '.join(names)} with {number} worker(s)"
