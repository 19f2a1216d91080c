"""What the registry's pages say first: how good a version is, by its aliases; and the description of a model.

The first line of a description is a sentence that this program keeps true whenever aliases move. A description that a
person has begun in another way is left alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stylegan.evaluation.metric_table import better, rank, split_key
from stylegan.tracking.pages import all_versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_DESCRIPTION = 5000  # characters; MLflow's databases hold no longer one, and all but SQLite refuse it
MAX_HEADLINE = 250
METRICS = "stylegan.metrics"  # tag of a version: its metrics as JSON; those of older programs have a tag for each
REGISTERED = "stylegan.registered"  # tag of a version; without it the registration was interrupted
OURS = re.compile(r"\*\*(?:champion|challenger|previous|version) [^\n]*\*\*\n\n")
CARD = re.compile(r"# [^\n]+\n\n(?P<what>[^\n]+)\n")
PICTURE = re.compile(r"!\[[^\]\n]*\]\(get-artifact[^)\n]+\)")
MODEL_END = "Each version is the model of one run; its page has the metrics, and the commands that draw with it."


def metrics_of(tags: Mapping[str, str]) -> dict[str, float]:
    """Return the metrics of a version by its tags, in the order of the table of metrics."""
    try:
        told = json.loads(tags[METRICS]) if METRICS in tags else {key: tags[key] for key in tags if split_key(key)[1]}
        found = {str(key): _number(value) for key, value in told.items()}
    except (ValueError, AttributeError):  # a tag of somebody else
        return {}
    return dict(
        sorted(
            ((key, value) for key, value in found.items() if value is not None),
            key=lambda item: (rank(item[0]), item[0]),
        )
    )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def headline(version: str, aliases: Mapping[str, str], tags: Mapping[str, Mapping[str, str]]) -> str:
    """Return the first line about a version: its aliases, its first metric, and how much better that is.

    It is compared with the version that the gate judged it against, if both were measured in the same way.

    Args:
        version: its number.
        aliases: version by alias.
        tags: of all versions, by number.
    """
    names = [alias for alias in ("champion", "challenger", "previous") if aliases.get(alias) == version]
    label = f"{' and '.join(names)} (version {version})" if names else f"version {version}"
    metrics = metrics_of(tags[version])
    key = next((key for key, value in metrics.items() if math.isfinite(value)), None)
    if key is None:
        return f"**{label}: no metrics**"
    says = f"{short_name(key)} {short_value(metrics[key])}"
    against = tags[version].get("gate.champion", "none")
    if against in tags and against != version:
        says += f", {_difference(key, tags[version], tags[against])} version {against}"
    return f"**{label}: {says}**"


def short_name(key: str) -> str:
    """Return a metric's name as in a sentence: `FID`, `recall`."""
    name = split_key(key)[0]
    return name.upper() if len(name) <= 3 else name.replace("_", " ")


def short_value(value: float) -> str:
    """Return a value with three figures or two decimals, whichever is more."""
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _difference(key: str, tags: Mapping[str, str], others: Mapping[str, str]) -> str:
    """Return how a version compares with another, as words before its name."""
    value, other = metrics_of(tags)[key], metrics_of(others).get(key)
    same = all(tags.get(tag) == others.get(tag) for tag in ("stylegan.protocol", "stylegan.dataset_fingerprint"))
    if other is None or not math.isfinite(other) or not other or not same:
        return "not comparable with"
    share = abs(value - other) / abs(other)
    if f"{share:.0%}" == "0%":
        return "as good as"
    return f"{share * 100:.0f} % {'better' if (value < other) == (better(key) == 'lower') else 'worse'} than"


def write_descriptions(client: MlflowClient, name: str) -> None:
    """Bring the first lines of all versions of a model, and its own description, up to date; write only what changes."""
    model = client.get_registered_model(name)
    aliases = {alias: str(version) for alias, version in model.aliases.items()}
    found = {str(version.version): version for version in all_versions(client, name) if REGISTERED in version.tags}
    tags = {number: version.tags for number, version in found.items()}
    for number, version in found.items():
        text = with_headline(version.description or "", headline(number, aliases, tags))
        if text != version.description:
            client.update_model_version(name, number, description=text)
    shown = next((aliases[alias] for alias in ("champion", "challenger") if aliases.get(alias) in found), None)
    if shown is not None and (not model.description or OURS.match(model.description)):
        text = _model_description(headline(shown, aliases, tags), found[shown].description or "")
        if text != model.description:
            client.update_registered_model(name, text)


def with_headline(description: str, line: str) -> str:
    """Return the description of a version with this first line; one that a person has begun is returned as it is."""
    if ours := OURS.match(description):
        description = description[ours.end() :]
    if not description.startswith("# "):
        return description
    text = f"{line}\n\n{description}"
    return text if len(text) <= MAX_DESCRIPTION else description


def _model_description(line: str, card: str) -> str:
    """Return what a model is by the card of its best version: how good, what, and a picture."""
    what, picture = CARD.search(card), PICTURE.search(card)
    parts = [line, what["what"] if what else "", picture[0] if picture else "", MODEL_END]
    return "\n\n".join(part for part in parts if part) + "\n"
