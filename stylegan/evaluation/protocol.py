"""What decides a number besides the generator and the images, as a digest: numbers compare only within one protocol."""

from __future__ import annotations

from typing import Any

from stylegan.config.sections import EvaluationConfig, Metric
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.features.spaces import Spaces, roles_of
from stylegan.evaluation.generate import CHUNK, TRUNCATED_LAYERS
from stylegan.records import digest

VERSION = 2  # raise it whenever a metric is computed in another way
# The settings that a metric depends on, beside its networks, the seed, the size of chunks and the resolution.
SETTINGS: dict[str, tuple[str, ...]] = {
    "fid": ("num_images", "num_reals"),
    "kid": ("num_images", "num_reals", "kid_subsets", "kid_subset_size"),
    "is": ("num_images", "is_splits"),
    "pr": ("num_images", "num_reals"),
    "ppl": ("ppl_samples", "ppl_epsilon", "ppl_crop"),
    "separability": ("separability_samples",),
    "fid_mixing": ("num_images", "num_reals"),
    "truncation": ("num_images", "num_reals", "psi", "truncated_layers"),
}
# Metrics that give several values, or one of another name.
PARTS = {
    "is": ("is", "is_std"),
    "pr": ("precision", "recall", "density", "coverage"),
    "separability": ("separability_w", "separability_z"),
}


def count_reals(shards: ShardSet, evaluation: EvaluationConfig) -> int:
    """Reals that are used: the first ones of the shards, whose order is random already; each once, none flipped."""
    wanted = evaluation.num_reals
    return shards.num_images if wanted == "all" else min(wanted, shards.num_images)


def metric_keys(metric: Metric, spaces: Spaces) -> tuple[str, ...]:
    """The keys in a report of a metric of the config; they end with the name of the network of its first role."""
    suffix = spaces.name(roles_of(metric)[0])
    return tuple(f"{part}_{suffix}" for part in PARTS.get(metric, (metric,)))


def protocol_of(metric: Metric, shards: ShardSet, evaluation: EvaluationConfig, spaces: Spaces) -> str:
    """Digest of all that decides the values of a metric."""
    values = settings_of(shards, evaluation, spaces)
    names = (*SETTINGS["ppl" if metric.startswith("ppl") else metric], "seed", "chunk", "resolution")
    networks = {role: spaces.networks[role].sha256 for role in roles_of(metric) if role in spaces.networks}
    return digest([VERSION, metric, networks, {name: values[name] for name in names}])


def settings_of(shards: ShardSet, evaluation: EvaluationConfig, spaces: Spaces) -> dict[str, Any]:
    """What the numbers are measured with, for people and for digests; `num_reals` is how many are really used."""
    settings = evaluation.model_dump(mode="json", exclude={"weights", "bootstrap"})
    networks = {network.name: network.sha256 for network in spaces.networks.values()}
    fixed = {"chunk": CHUNK, "truncated_layers": TRUNCATED_LAYERS, "resolution": max(shards.resolutions)}
    return settings | fixed | {"num_reals": count_reals(shards, evaluation), "networks": networks}
