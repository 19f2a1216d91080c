"""List the models of a registry and their versions, without importing what registers them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from stylegan.evaluation.metric_table import rank, split_key
from stylegan.records import Record
from stylegan.tracking.connection import connect, explained, is_empty

PAGE = 200  # entries in one answer; servers refuse more than 1,000


class RegisteredVersion(Record):
    """A version in the registry.

    Attributes:
        name: of the model; `name/version` is what commands take.
        version: its number.
        aliases: of this version, sorted.
        run_id: the run that registered it; empty for a version that this program has not registered.
        metrics: its metrics in the order of the report.
        created: when it was made, ISO 8601 in UTC.
    """

    name: str
    version: str
    aliases: tuple[str, ...] = ()
    run_id: str = ""
    metrics: dict[str, float] = {}
    created: str = ""


def list_versions(uri: str) -> tuple[RegisteredVersion, ...]:
    """Return all versions of all models of a registry, the newest first. Writes nothing.

    Raises:
        ConfigError, StepError: as `connect`; MLflow refuses.
    """
    if is_empty(uri):
        return ()
    client = connect(uri)
    with explained(uri, "list the registered models"):
        models = _all_pages(client.search_registered_models)
        aliases = {model.name: {str(number): set[str]() for number in model.aliases.values()} for model in models}
        for model in models:
            for alias, number in model.aliases.items():
                aliases[model.name][str(number)].add(alias)
        found = _all_pages(client.search_model_versions)
    found.sort(key=lambda version: (version.creation_timestamp or 0, int(version.version)), reverse=True)
    return tuple(_record(version, aliases.get(version.name, {})) for version in found)


def _all_pages(search: Any) -> list[Any]:
    found, token = [], None
    while True:
        page = search(max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _record(version: Any, aliases: dict[str, set[str]]) -> RegisteredVersion:
    metrics = {}
    for key, value in version.tags.items():
        if split_key(key)[1]:  # value and network
            try:
                metrics[key] = float(value)
            except ValueError:  # a tag of somebody else
                continue
    return RegisteredVersion(
        name=version.name,
        version=str(version.version),
        aliases=tuple(sorted(aliases.get(str(version.version), ()))),
        run_id=version.tags.get("stylegan.run_id", ""),
        metrics=dict(sorted(metrics.items(), key=lambda item: (rank(item[0]), item[0]))),
        created=datetime.fromtimestamp((version.creation_timestamp or 0) / 1000, UTC).isoformat(timespec="seconds"),
    )
