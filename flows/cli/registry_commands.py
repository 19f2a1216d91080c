"""Commands on the aliases of a registered model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flows.cli.arguments import AsJson, Overrides, RegistryConfig, registry_config
from flows.cli.console import print_result
from stylegan.errors import ConfigError

if TYPE_CHECKING:
    from stylegan.registry.versions import ModelVersion


def promote(
    name: str,
    /,
    *,
    version: str | None = None,
    config: RegistryConfig = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a version champion (the old one becomes `previous`).

    Parameters
    ----------
    name
        Registered model.
    version
        Its version; unset is the challenger.

    Examples
    --------
    stylegan promote faces --config faces.yaml
    stylegan promote faces --version 3 --config faces.yaml
    """
    uri = _tracking_uri(config, overrides)
    from stylegan.registry import versions as store

    _print_version(store.promote(uri, name, version=version), as_json)


def rollback(
    name: str, /, *, config: RegistryConfig = None, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Make the previous champion champion again.

    Examples
    --------
    stylegan rollback faces --config faces.yaml
    """
    uri = _tracking_uri(config, overrides)
    from stylegan.registry import versions as store

    _print_version(store.rollback(uri, name), as_json)


def _tracking_uri(config: str | None, overrides: list[str] | None) -> str:
    settings = registry_config(config, overrides)
    from stylegan.tracking.connection import check_server, resolve_uri

    uri = resolve_uri(settings) if settings else os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigError("no MLflow registry is named: give --config FILE or set MLFLOW_TRACKING_URI")
    check_server(uri)
    return uri


def _print_version(version: ModelVersion, as_json: bool) -> None:
    aliases = ", ".join(version.aliases) or "no alias"
    print_result(version, f"{version.name} version {version.version}: {aliases}", as_json)
