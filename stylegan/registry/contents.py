"""List the models of a registry and their versions, without importing what registers them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from stylegan.config.tree import Config
from stylegan.records import Record
from stylegan.registry.descriptions import REGISTERED, metrics_of
from stylegan.tracking.connection import connect, explained, is_empty, resolve_uri
from stylegan.tracking.pages import all_pages, all_versions
from stylegan.training.identity import place_below


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


class VersionFacts(Record):
    """A version that this program has registered, with all that its tags say.

    Attributes:
        name: of the model.
        version: its number.
        aliases: of this version, sorted.
        created: when it was made, ISO 8601 in UTC.
        tags: as `versions.register` and the gate write them.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    created: str
    tags: dict[str, str]

    def checkpoint_uri(self, root: str) -> str:
        """Return its checkpoint, below a storage root if that has it: roots move."""
        return place_below(root, self.tags.get("stylegan.checkpoint_uri", ""))


def list_registered(config: Config) -> tuple[VersionFacts, ...]:
    """Return the versions of a config's model whose registration is complete, the newest first. Writes nothing.

    Raises:
        ConfigError, StepError: as `connect`; MLflow refuses.
    """
    uri, name = resolve_uri(config), config.model_name
    if is_empty(uri):
        return ()
    client = connect(uri)
    with explained(uri, f"look up {name}"):
        found = all_versions(client, name)
        if not found:
            return ()
        aliases: dict[str, list[str]] = {}
        for alias, number in client.get_registered_model(name).aliases.items():
            aliases.setdefault(str(number), []).append(alias)
    found.sort(key=lambda version: int(version.version), reverse=True)
    return tuple(
        _facts(version, aliases.get(str(version.version), ())) for version in found if REGISTERED in version.tags
    )


def list_all(uri: str) -> tuple[VersionFacts, ...]:
    """Return the versions of all models of a registry, the newest numbers first, also those whose registration was cut.

    Their aliases are left out. Writes nothing.

    Raises:
        ConfigError, StepError: as `connect`; MLflow refuses.
    """
    if is_empty(uri):
        return ()
    client = connect(uri)
    with explained(uri, "list the versions"):
        found = all_pages(client.search_model_versions)
    found.sort(key=lambda version: int(version.version), reverse=True)
    return tuple(_facts(version, ()) for version in found)


def _facts(version: Any, aliases: Iterable[str]) -> VersionFacts:
    return VersionFacts(
        name=version.name,
        version=str(version.version),
        aliases=tuple(sorted(aliases)),
        created=_time(version),
        tags=dict(version.tags),
    )


def list_versions(uri: str) -> tuple[RegisteredVersion, ...]:
    """Return all versions of all models of a registry, the newest first. Writes nothing.

    Raises:
        ConfigError, StepError: as `connect`; MLflow refuses.
    """
    if is_empty(uri):
        return ()
    client = connect(uri)
    with explained(uri, "list the registered models"):
        models = all_pages(client.search_registered_models)
        aliases = {model.name: {str(number): set[str]() for number in model.aliases.values()} for model in models}
        for model in models:
            for alias, number in model.aliases.items():
                aliases[model.name][str(number)].add(alias)
        found = all_pages(client.search_model_versions)
    found.sort(key=lambda version: (version.creation_timestamp or 0, int(version.version)), reverse=True)
    return tuple(_record(version, aliases.get(version.name, {})) for version in found)


def _record(version: Any, aliases: dict[str, set[str]]) -> RegisteredVersion:
    return RegisteredVersion(
        name=version.name,
        version=str(version.version),
        aliases=tuple(sorted(aliases.get(str(version.version), ()))),
        run_id=version.tags.get("stylegan.run_id", ""),
        metrics=metrics_of(version.tags),
        created=_time(version),
    )


def _time(version: Any) -> str:
    return datetime.fromtimestamp((version.creation_timestamp or 0) / 1000, UTC).isoformat(timespec="seconds")
