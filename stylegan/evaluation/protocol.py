"""Protocols: the digest of everything that decides a value besides the generator and the images.

Values compare only if their protocols are equal.
"""

from __future__ import annotations

from typing import Any

from stylegan.config.sections import EvaluationConfig, Metric
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.features.spaces import Spaces
from stylegan.evaluation.generate import CHUNK_SIZE, TRUNCATED_LAYERS
from stylegan.evaluation.metric_table import METRICS
from stylegan.records import digest

PROTOCOL_VERSION = 2  # raise it whenever a metric is computed in another way


def count_reals(shards: ShardSet, evaluation: EvaluationConfig) -> int:
    """Return the number of reals that are used: each once, none flipped.

    These are the first ones of the shards, whose order is random already.
    """
    wanted = evaluation.num_reals
    return shards.num_images if wanted == "all" else min(wanted, shards.num_images)


def value_key(metric: Metric, value: str, spaces: Spaces) -> str:
    """Return the key of one value of a metric in a report; it ends with the name of the network of the first role."""
    return f"{value}_{spaces.name(METRICS[metric].roles[0])}"


def metric_keys(metric: Metric, spaces: Spaces) -> tuple[str, ...]:
    """Return the keys of all values of a metric in a report."""
    return tuple(value_key(metric, value, spaces) for value in METRICS[metric].values)


def protocol_of(metric: Metric, shards: ShardSet, evaluation: EvaluationConfig, spaces: Spaces) -> str:
    """Return the digest of everything that decides the values of a metric."""
    facts, values = METRICS[metric], settings_of(shards, evaluation, spaces)
    names = (*facts.settings, "seed", "chunk", "resolution")
    networks = {role: spaces.networks[role].sha256 for role in facts.roles if role in spaces.networks}
    return digest([PROTOCOL_VERSION, metric, networks, {name: values[name] for name in names}])


def settings_of(shards: ShardSet, evaluation: EvaluationConfig, spaces: Spaces) -> dict[str, Any]:
    """Return the settings of all metrics, for people and for digests; `num_reals` is the number that is really used."""
    settings = evaluation.model_dump(mode="json", exclude={"weights", "bootstrap"})
    networks = {network.name: network.sha256 for network in spaces.networks.values()}
    fixed = {"chunk": CHUNK_SIZE, "truncated_layers": TRUNCATED_LAYERS, "resolution": max(shards.resolutions)}
    return settings | fixed | {"num_reals": count_reals(shards, evaluation), "networks": networks}
