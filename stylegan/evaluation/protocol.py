"""Protocols: the digest of everything that decides a value besides the generator and the images.

Values compare only if their protocols are equal. The settings that decide a whole report, intervals and figures
included, are `deciding_settings`: they are part of the keys under which reports are found.
"""

from __future__ import annotations

from typing import Any

from stylegan.config.sections import METRICS as METRIC_NAMES
from stylegan.config.sections import EvaluationConfig, Metric, WeightsConfig
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.features.attributes import ATTRIBUTES_VERSION
from stylegan.evaluation.features.embedded import EMBEDDED_KINDS, digest_of_features
from stylegan.evaluation.features.public_weights import needed, pinned_digest
from stylegan.evaluation.features.spaces import Spaces
from stylegan.evaluation.generate import CHUNK_SIZE, TRUNCATED_LAYERS
from stylegan.evaluation.metric_table import METRICS
from stylegan.evaluation.reference import REFERENCE_VERSION
from stylegan.records import digest

PROTOCOL_VERSION = 2  # raise it whenever a metric is computed in another way
# Versions that the keys of version 0.1 did not hold. A part of that version is left out of keys, which therefore stay.
KEYLESS_VERSIONS = {"attributes": 1, "reference": 2}


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
    """Return the digest of all that decides the values of a metric, and of how their intervals are computed.

    The settings of intervals are left out: see `MetricFacts.interval_settings`.
    """
    facts, values = METRICS[metric], settings_of(shards, evaluation, spaces)
    names = (*facts.settings, "seed", "chunk", "resolution")
    networks = {role: spaces.networks[role].sha256 for role in facts.roles if role in spaces.networks}
    intervals = [facts.intervals] if facts.intervals > 1 else []
    settings = {name: values[name] for name in names if name in values}  # `identity` leaves some out
    return digest([PROTOCOL_VERSION, metric, networks, settings, *intervals])


def deciding_settings(evaluation: EvaluationConfig) -> list[Any]:
    """Return all that decides a report besides the generator and the images, for digests.

    The order of the metrics decides nothing. A setting that none of the metrics reads counts as its default. A network
    or a weight file counts by its content, wherever it is.

    Raises:
        ConfigError: `features` names a file that does not exist.
    """
    facts = [METRICS[metric] for metric in evaluation.metrics]
    used = {"seed"} | {name for fact in facts for name in (*fact.settings, *fact.interval_settings)}
    if _trains_attributes(evaluation):
        used.add("attributes_kimg")
    settings: dict[str, Any] = {name: getattr(evaluation, name) for name in used & EvaluationConfig.model_fields.keys()}
    settings["metrics"] = tuple(metric for metric in METRIC_NAMES if metric in evaluation.metrics)
    if any(fact.roles for fact in facts):
        settings |= network_settings(evaluation)
    return [EvaluationConfig().model_copy(update=settings).identity(), *newer_versions(evaluation)]


def newer_versions(evaluation: EvaluationConfig) -> list[dict[str, int]]:
    """Return the versions of the parts that the metrics use, for digests; empty while all are `KEYLESS_VERSIONS`.

    The versions of the protocol and of the embedded network are not among them; every key holds those.
    """
    versions = {}
    if _trains_attributes(evaluation):
        versions["attributes"] = ATTRIBUTES_VERSION
    if any("num_reals" in METRICS[metric].settings for metric in evaluation.metrics):
        versions["reference"] = REFERENCE_VERSION
    newer = {name: version for name, version in versions.items() if version != KEYLESS_VERSIONS[name]}
    return [newer] if newer else []


def _trains_attributes(evaluation: EvaluationConfig) -> bool:
    """Return whether classifiers of attributes are trained for the metrics."""
    return evaluation.features == "inception" and any(
        "attributes" in METRICS[metric].roles for metric in evaluation.metrics
    )


def network_settings(evaluation: EvaluationConfig) -> dict[str, Any]:
    """Return `features` and `weights` with files named by their content; a copy of a public file counts as that file.

    Raises:
        ConfigError: `features` names a file that does not exist.
    """
    features = evaluation.features
    if features not in (*EMBEDDED_KINDS, "inception"):
        features = f"sha256={digest_of_features(features)}"
    pinned = {str(name): pinned_digest(name, getattr(evaluation.weights, name)) for name in needed(evaluation)}
    return {"features": features, "weights": WeightsConfig().model_copy(update=pinned)}


def settings_of(shards: ShardSet, evaluation: EvaluationConfig, spaces: Spaces) -> dict[str, Any]:
    """Return the settings of all metrics, for people and for digests; `num_reals` is the number that is really used."""
    settings = {name: value for name, value in evaluation.identity().items() if name not in ("weights", "bootstrap")}
    networks = {network.name: network.sha256 for network in spaces.networks.values()}
    fixed = {"chunk": CHUNK_SIZE, "truncated_layers": TRUNCATED_LAYERS, "resolution": max(shards.resolutions)}
    return settings | fixed | {"num_reals": count_reals(shards, evaluation), "networks": networks}
