"""The registered model: its versions, and the aliases champion, challenger and previous.

A version carries everything that the gate needs: the report as report.json beside the files of its model, and tags:
`stylegan.key` (the key of the registration step), `stylegan.checkpoint_uri`, `stylegan.metrics`, `stylegan.run_id` and
`stylegan.model_id`. Versions of older programs have the report as the tag `stylegan.report`, and a tag for each metric.
`stylegan.registered` is written last and marks the registration as complete. Decisions are kept as tags too:
`gate.*` for the last verdict (`gate.key` says of which gate), `champion.<time>` for every time the version became champion.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stylegan
from stylegan import storage
from stylegan.commands import shell_command
from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation.report import Report
from stylegan.networks.style_transfer import FILE as TRANSFER
from stylegan.networks.style_transfer import load_transfer
from stylegan.records import Record, parse
from stylegan.registry.aliases import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    Move,
    current_champion,
    move_aliases,
    plan_move,
    unfinished,
    versions_of,
)
from stylegan.registry.descriptions import METRICS, REGISTERED, write_descriptions
from stylegan.registry.gate import StoredVerdict, Verdict
from stylegan.registry.model_card import write_card
from stylegan.tracking.connection import connect, explained, is_empty, resolve_uri
from stylegan.tracking.pages import all_pages, all_versions
from stylegan.tracking.removal import delete_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

PARENT_VERSION = "stylegan.parent_version"  # whose checkpoint a warm start has gone on from
REPORT_TAG, REPORT_FILE = "stylegan.report", "report.json"
MODEL_ID = "stylegan.model_id"  # MLflow's SQL store does not keep it with the version
logger = logging.getLogger("stylegan")
REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "pillow", "pydantic", "ruamel.yaml", "safetensors")


class StaleVerdictError(StepError):
    """Raised when another version became champion between verdict and application; judging again settles it."""


class ModelVersion(Record):
    """A version in the registry and the aliases that point at it."""

    name: str
    version: str
    aliases: tuple[str, ...]


def register(
    config: Config,
    *,
    mlflow_run_id: str,
    checkpoint: str,
    shards: ShardSet,
    report: Report,
    key: str,
    tags: Mapping[str, str] = {},
) -> ModelVersion:
    """Log the checkpoint's generator as a model of the run, register it and make it the challenger.

    A version with the same `key` is returned instead, completed if its registration was interrupted: a repeated step
    registers nothing twice.

    Args:
        mlflow_run_id: MLflow's id of the run that the model belongs to.
        checkpoint: URI of the checkpoint's folder.
        shards: the images that it was trained on.
        report: what was measured on it.
        key: identity of this step.
        tags: more tags of the version.

    Raises:
        StepError: the checkpoint holds no generator, or MLflow refuses.
    """
    uri, name = resolve_uri(config), config.model_name
    client = connect(uri)
    with explained(uri, f"register {name}"):
        found = _find(client, name, key)
        if found is None:
            model_id, location = _log_model(client, mlflow_run_id, name, checkpoint, report)
            _create_model(client, name)
            run_id = client.get_run(mlflow_run_id).data.tags.get("stylegan.run_id", mlflow_run_id)
            found = client.create_model_version(
                name,
                location,
                run_id=mlflow_run_id,
                tags=_version_tags(report, key=key, checkpoint=checkpoint, run_id=run_id)
                | _parent_tags(client, config)
                | {MODEL_ID: model_id, **tags},
                model_id=model_id,
            )
        version = str(found.version)
        if REGISTERED not in found.tags:
            card = write_card(
                config,
                report,
                shards,
                run_id=found.tags.get("stylegan.run_id", mlflow_run_id),
                mlflow_run_id=mlflow_run_id,
                version=version,
                tracking_uri=uri,
                parent_version=found.tags.get(PARENT_VERSION),
            )
            client.update_model_version(name, version, description=card)
            _complete(client, name, version)
        return _record(client, name, version)


def find_version(config: Config, key: str) -> ModelVersion | None:
    """Return the version that was registered under this key, None if there is no complete one. Writes nothing."""
    uri = resolve_uri(config)
    if is_empty(uri):
        return None
    client = connect(uri)
    with explained(uri, f"look up {config.model_name}"):
        found = _find(client, config.model_name, key)
        return _record(client, config.model_name, str(found.version)) if found and REGISTERED in found.tags else None


def tag(config: Config, version: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version, as far as it does not have them. Raises StepError if MLflow refuses."""
    uri, name = resolve_uri(config), config.model_name
    client = connect(uri)
    with explained(uri, f"tag version {version} of {name}"):
        there = client.get_model_version(name, version).tags
        for key, value in tags.items():
            if there.get(key) != value:
                client.set_model_version_tag(name, version, key, value)


def champion(config: Config) -> tuple[str, Report] | None:
    """Return version and report of the champion, None before the first. Writes nothing.

    Raises:
        StepError: the champion was not registered by this program (it carries no report), or its report is damaged.
    """
    uri, name = resolve_uri(config), config.model_name
    if is_empty(uri):
        return None
    client = connect(uri)
    with explained(uri, f"look up {name}"):
        model = _model(client, name)
        number = current_champion(model) if model else None
        if number is None:
            return None
        found = client.get_model_version(name, number)
        text = _read_report(client, uri, found)
    source = f"tag {REPORT_TAG}" if REPORT_TAG in found.tags else REPORT_FILE
    if text is None:
        raise StepError(
            f"{name}@champion is version {found.version}, which has no {source}: this program did not register it, or its "
            "files are gone; remove the alias or set another registry.name"
        )
    report = parse(
        text,
        Report,
        origin=f"{name}@champion is version {found.version}, whose {source}",
        cure="remove the alias or set another registry.name",
    )
    return str(found.version), report


def _read_report(client: MlflowClient, uri: str, version: Any) -> str | None:
    """Return the report of a version as JSON, None if it has none."""
    if REPORT_TAG in version.tags:
        return str(version.tags[REPORT_TAG])
    if MODEL_ID not in version.tags:
        return None
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        location = client.get_logged_model(version.tags[MODEL_ID]).artifact_location
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    files = get_artifact_repository(location, tracking_uri=uri, registry_uri=uri)
    if not any(file.path == REPORT_FILE for file in files.list_artifacts()):
        return None
    with tempfile.TemporaryDirectory(prefix="stylegan-report-") as folder:
        return Path(files.download_artifacts(REPORT_FILE, folder)).read_text()


def is_applied(config: Config, verdict: Verdict) -> bool:
    """Return whether the registry shows that a verdict was applied; writes nothing.

    It was if the version carries it. Who is champion now is another matter, since people move aliases too. Only if nobody
    is, although the verdict made the version champion or found it so, has the alias been lost.
    """
    uri, name = resolve_uri(config), config.model_name
    if is_empty(uri):
        return False
    client = connect(uri)
    with explained(uri, f"look up the verdict on {name}"):
        model = _model(client, name)
        if model is None or verdict.challenger not in _versions(client, name):
            return False
        tags = client.get_model_version(name, verdict.challenger).tags
        lost = (verdict.promote or _is_itself(verdict)) and current_champion(model) is None
        return (_carries(tags, verdict) or _is_itself(verdict)) and not lost


def find_verdict(config: Config, version: str, key: str, stored: StoredVerdict | None) -> Verdict | None:
    """Return the verdict of a gate on a version that this registry has, None if the version is to be judged.

    Numbers begin anew in every registry, and storage keeps the last verdict only. So what the version carries counts
    first, and a stored verdict only if its numbers mean the same models here. One that was not applied yet also needs the
    champion that it was against.

    Args:
        config: names the registry.
        version: the number of the version, which exists.
        key: of the gate.
        stored: the verdict of this gate that storage has.
    """
    uri, name = resolve_uri(config), config.model_name
    client = connect(uri)
    with explained(uri, f"look up the verdict on {name}"):
        tags = client.get_model_version(name, version).tags
        told = _verdict_of(tags, version, key)
        if stored is None or (stored.models and stored.models != _model_ids(client, name, stored.verdict)):
            return told
        verdict, now = stored.verdict, current_champion(client.get_registered_model(name))
        if told:  # the tags may hold its reasons cut
            return verdict if (told.promote, told.champion) == (verdict.promote, verdict.champion) else told
        if _carries(tags, verdict):
            return verdict
        if _is_itself(verdict):
            return verdict if stored.models or now else None
        return verdict if stored.models and now in (verdict.champion, verdict.challenger) else None


def model_ids(config: Config, verdict: Verdict) -> tuple[str, str]:
    """Return what tells the models of a verdict, challenger and champion, from those of other registries."""
    uri, name = resolve_uri(config), config.model_name
    client = connect(uri)
    with explained(uri, f"look up {name}"):
        return _model_ids(client, name, verdict)


def _model_ids(client: MlflowClient, name: str, verdict: Verdict) -> tuple[str, str]:
    there = {str(found.version): found for found in all_versions(client, name)}

    def model_id(version: str | None) -> str:
        found = there.get(version or "")
        return str(found.tags.get(MODEL_ID) or found.creation_timestamp) if found else ""

    return model_id(verdict.challenger), model_id(verdict.champion)


def _verdict_of(tags: Mapping[str, str], version: str, key: str) -> Verdict | None:
    """Return the verdict of a gate that the tags of a version hold completely, None if they do not."""
    gate, _, told = tags.get("gate.key", "").partition(" ")
    decision, _, against = told.partition(" ")
    if gate != key:
        return None
    verdict = Verdict(
        promote=decision == "promote",
        reasons=(tags.get("gate.reasons", ""),),
        champion=None if against == "none" else against,
        challenger=version,
    )
    return verdict if _carries(tags, verdict) else None


def _decision(verdict: Verdict) -> tuple[str, str]:
    return "promote" if verdict.promote else "keep", verdict.champion or "none"


def _carries(tags: Mapping[str, str], verdict: Verdict) -> bool:
    """Return whether the tags of a version hold this decision on it."""
    return (tags.get("gate.verdict"), tags.get("gate.champion")) == _decision(verdict)


def _is_itself(verdict: Verdict) -> bool:
    """Return whether a verdict says no more than that the version is champion already; tags do not hold it."""
    return verdict.challenger == verdict.champion


def apply_verdict(config: Config, verdict: Verdict, key: str = "") -> ModelVersion:
    """Write the verdict to the challenger's version and move the aliases if it promotes.

    A verdict that was applied before changes nothing, not even after a rollback in between: a person's decision stays. But
    if nobody is champion any more, the version that was it last gets the alias again.

    Args:
        config: names the registry.
        verdict: on a version there.
        key: of the gate that gave it, for `find_verdict`.

    Raises:
        StaleVerdictError: another version became champion since the verdict.
        StepError: MLflow refuses.
    """
    uri, name = resolve_uri(config), config.model_name
    client = connect(uri)
    with explained(uri, f"apply the verdict on {name}"):
        decision, against = _decision(verdict)
        reasons = " ".join(verdict.reasons)
        tags = {"gate.reasons": reasons, "gate.champion": against, "gate.time": _now()}
        tags["gate.key"] = f"{key} {decision} {against}"  # a write that is cut mixes no two verdicts
        tags["gate.verdict"] = decision  # last: it marks the verdict as applied

        def plan(aliases: dict[str, str], finished: Move | None) -> Move | None:
            found = client.get_model_version(name, verdict.challenger).tags
            now = aliases.get(CHAMPION)
            itself = _is_itself(verdict)
            if itself or _carries(found, verdict):
                last = _last_champion(client, name) if not now and (itself or verdict.promote) else None
                if last is None:
                    return None
                logger.info(
                    "gate: %s had lost its alias %s; version %s, which had it last, has it again", name, CHAMPION, last
                )
                before = aliases.get(PREVIOUS)
                return plan_move("gate", last, None if before == last else before, "The alias had been removed.")
            if verdict.promote and now not in (verdict.champion, verdict.challenger):
                raise StaleVerdictError(
                    f"{name}: version {now} became champion after version {verdict.challenger} was judged; "
                    "run the same command again"
                )
            if verdict.promote:
                return plan_move("gate", verdict.challenger, verdict.champion, reasons, tags)
            for tag, value in tags.items():
                if tag == "gate.verdict":
                    write_descriptions(client, name)
                client.set_model_version_tag(name, verdict.challenger, tag, value)
            return None

        move_aliases(client, name, plan)
        return _record(client, name, verdict.challenger)


def _last_champion(client: MlflowClient, name: str) -> str | None:
    """Return the version that became champion last, None if none of those that there are ever did."""
    found: list[tuple[str, str]] = []
    for version in all_versions(client, name):
        times = [key for key in version.tags if key.startswith("champion.")]
        found += [(max(times), str(version.version))] if times else []
    return max(found)[1] if found else None


def promote(uri: str, name: str, version: str | None = None) -> ModelVersion:
    """Make a version champion by hand: the given one, else the challenger. The old champion becomes `previous`.

    An interrupted promotion is finished by the next command on the aliases.

    Raises:
        ConfigError: no such model or version.
        StepError: there is no challenger, or MLflow refuses.
    """
    client = _open_model(uri, name)
    with explained(uri, f"promote {name}"):
        if version is not None and version not in _versions(client, name):
            raise ConfigError(f"{name} has no version {version}; it has {', '.join(_versions(client, name)) or 'none'}")
        chosen = version or ""

        def plan(aliases: dict[str, str], finished: Move | None) -> Move | None:
            nonlocal chosen
            if version is None:
                if finished and finished.action == "promote":  # this very command, interrupted: there was a challenger
                    chosen = finished.champion
                    return None
                if CHALLENGER not in aliases:
                    have = ", ".join(_versions(client, name)) or "none"
                    raise StepError(f"{name} has no challenger; name a version with --version, one of {have}")
                chosen = aliases[CHALLENGER]
            now = aliases.get(CHAMPION)
            return None if now == chosen else plan_move("promote", chosen, now, "Promoted by hand.")

        move_aliases(client, name, plan)
        return _record(client, name, chosen)


def rollback(uri: str, name: str) -> ModelVersion:
    """Make `previous` champion again; the champion becomes `previous`, so a second rollback undoes the first.

    The repeat of a rollback that was interrupted finishes it and does no second one.

    Raises:
        ConfigError: no such model.
        StepError: there is no previous champion, or MLflow refuses.
    """
    client = _open_model(uri, name)
    with explained(uri, f"roll back {name}"):
        chosen = ""

        def plan(aliases: dict[str, str], finished: Move | None) -> Move | None:
            nonlocal chosen
            if finished and finished.action == "rollback":
                chosen = finished.champion
                return None
            before, now = aliases.get(PREVIOUS), aliases.get(CHAMPION)
            if before is None or now is None:
                raise StepError(f"{name} has no previous champion to go back to{_choice(client, uri, name, now)}")
            chosen = before
            return plan_move("rollback", before, now, f"Rolled back from version {now}.")

        move_aliases(client, name, plan)
        return _record(client, name, chosen)


def delete_version(config: Config, version: str) -> bool:
    """Delete a version that nothing points at, with its model; return whether it is gone.

    Aliases, and moves of them that are under way, are looked up at the last moment: such a version stays.

    Raises:
        StepError: MLflow refuses.
    """
    uri, name = resolve_uri(config), config.model_name
    client = connect(uri)
    with explained(uri, f"delete version {version} of {name}"):
        model = _model(client, name)
        if model is None or version not in _versions(client, name):
            return True
        pending = unfinished(model)
        if version in versions_of(model).values() or (pending and version in (pending.champion, pending.previous)):
            return False
        model_id = client.get_model_version(name, version).tags.get(MODEL_ID)
        client.delete_model_version(name, version)
    if model_id:
        delete_model(config, model_id)
    return True


def protected_versions(config: Config) -> frozenset[str]:
    """Return the versions of a config's model that an alias, or a move of aliases under way, points at."""
    uri, name = resolve_uri(config), config.model_name
    if is_empty(uri):
        return frozenset()
    client = connect(uri)
    with explained(uri, f"look up {name}"):
        model = _model(client, name)
        if model is None:
            return frozenset()
        pending = unfinished(model)
        moved = {pending.champion, pending.previous or pending.champion} if pending else set()
        return frozenset({*versions_of(model).values(), *moved})


def load_version(uri: str, model: str) -> tuple[str, str, str]:
    """Return checkpoint URI, run id and number of the version `models:/name@alias` or `models:/name/version`.

    Raises:
        ConfigError: the URI has another form, or there is no such model or version.
        StepError: no such alias, or the version was not registered by this program.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model)
    if not match:
        raise ConfigError(f"{model}: must be models:/name@alias or models:/name/version, e.g. models:/digits@champion")
    name, alias, version = match.groups()
    client = _open_model(uri, name)
    with explained(uri, f"look up {model}"):
        if alias:
            found = _by_alias(client, name, alias)
            if found is None:
                have = ", ".join(sorted(client.get_registered_model(name).aliases)) or "none"
                raise StepError(f"{model}: {name} has no alias {alias}; it has {have}")
        elif version in _versions(client, name):
            found = client.get_model_version(name, version)
        else:
            have = ", ".join(_versions(client, name)) or "none"
            raise ConfigError(f"{model}: {name} has no version {version}; it has {have}")
    if "stylegan.checkpoint_uri" not in found.tags:
        raise StepError(
            f"{model}: version {found.version} has no tag stylegan.checkpoint_uri; it was not registered by this program"
        )
    return str(found.tags["stylegan.checkpoint_uri"]), str(found.tags.get("stylegan.run_id", "")), str(found.version)


def _log_model(client: MlflowClient, mlflow_run_id: str, name: str, checkpoint: str, report: Report) -> tuple[str, str]:
    """Log the generator, with its report, as a model of the run; return its id and the location of its files."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    is_transfer = storage.exists(storage.join(checkpoint, TRANSFER))
    run = client.get_run(mlflow_run_id)
    with tempfile.TemporaryDirectory(prefix="stylegan-model-") as folder:
        weights = Path(folder, TRANSFER if is_transfer else "generator.safetensors")
        try:
            storage.download(storage.join(checkpoint, weights.name), weights)
        except FileNotFoundError:
            raise StepError(
                f"{checkpoint}: holds no generator.safetensors; give the URI of a checkpoint-... folder of a stage"
            ) from None
        kind = "style-transfer" if is_transfer else "generator"
        logged = client.create_logged_model(
            run.info.experiment_id, name=name, source_run_id=mlflow_run_id, model_type=kind
        )
        description = Model(artifact_path=logged.artifact_location, run_id=mlflow_run_id, model_id=logged.model_id)
        _save_model(Path(folder, "model"), weights, storage.join(checkpoint, weights.name), description)
        Path(folder, "model", REPORT_FILE).write_text(report.model_dump_json(indent=1))
        client.log_model_artifacts(logged.model_id, str(Path(folder, "model")))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(mlflow_run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged.model_id, logged.artifact_location


def _save_model(target: Path, weights: Path, origin: str, description: Any) -> None:
    """Write a model's folder as MLflow has it: weights, pyfunc, this package (so that nobody has to install it)."""
    import mlflow.pyfunc

    if weights.name == TRANSFER:
        from stylegan.registry import transfer_pyfunc

        network = load_transfer(weights.read_bytes(), origin)
        kind = {
            "python_model": transfer_pyfunc.__file__,
            "artifacts": {transfer_pyfunc.WEIGHTS: str(weights)},
            "signature": transfer_pyfunc.signature(),
            "input_example": transfer_pyfunc.example(network.shape.channels),
        }
    else:
        from stylegan.networks.weights import load_generator
        from stylegan.registry import pyfunc

        generator, _ = load_generator(weights.read_bytes(), origin)
        kind = {
            "python_model": pyfunc.__file__,
            "artifacts": {pyfunc.WEIGHTS: str(weights)},
            "signature": pyfunc.signature(generator),
            "input_example": pyfunc.example(generator.num_labels > 0),
        }
    mlflow.pyfunc.save_model(
        path=str(target),
        **kind,
        code_paths=[str(Path(stylegan.__file__).parent)],
        # Without the local part: no package index has a version such as 2.13.0+cpu.
        pip_requirements=[f"{package}=={installed(package).partition('+')[0]}" for package in REQUIREMENTS],
        mlflow_model=description,
    )


def _version_tags(report: Report, *, key: str, checkpoint: str, run_id: str) -> dict[str, str]:
    facts = {
        "key": key,
        "checkpoint_uri": checkpoint,
        "protocol": report.protocol,
        "dataset_fingerprint": report.dataset_fingerprint,
        "run_id": run_id,
    }
    metrics = {name: f"{value:.6g}" for name, value in report.metrics.items()}  # as texts: they need not be finite
    return {f"stylegan.{name}": value for name, value in facts.items()} | {METRICS: json.dumps(metrics)}


def _parent_tags(client: MlflowClient, config: Config) -> dict[str, str]:
    """Return the tags that name what a warm start has gone on from, and its version if this model has it."""
    warm = config.training.warm_start
    if warm is None:
        return {}
    same = f"name='{config.model_name}' and tags.`stylegan.checkpoint_uri` LIKE '%/{warm.identity}'"
    found = client.search_model_versions(same, order_by=["version_number DESC"], max_results=1)
    version = {PARENT_VERSION: str(found[0].version)} if found else {}
    return {"stylegan.parent_checkpoint": warm.identity} | version


def _create_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _complete(client: MlflowClient, name: str, version: str) -> None:
    """Link the version, make it challenger and mark it as registered.

    Every step can be repeated, so an interrupted registration is finished here.
    """
    found = client.get_model_version(name, version)
    if MODEL_ID in found.tags:  # lets the model's page show the version
        versions = json.dumps([{"name": name, "version": found.version}])
        client.set_logged_model_tags(found.tags[MODEL_ID], {"mlflow.modelVersions": versions})
    if "gate.verdict" not in found.tags and CHAMPION not in found.aliases:
        client.set_registered_model_alias(name, CHALLENGER, version)
    client.set_model_version_tag(name, version, REGISTERED, _now())  # it marks all that matters as done
    write_descriptions(client, name)


def _open_model(uri: str, name: str) -> MlflowClient:
    """Return a client after checking that the model exists. Raises ConfigError with the nearest name if it does not."""
    known: list[str] = []
    client = None
    if not is_empty(uri):
        client = connect(uri)
        with explained(uri, "list the registered models"):
            known = [model.name for model in all_pages(client.search_registered_models)]
    if client is None or name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        if near:
            hint = f"did you mean {near[0]}?"
        else:
            hint = f"it has {', '.join(known) or 'none; a run registers one'}"
        raise ConfigError(f"{name}: no such registered model at {uri}; {hint}")
    return client


def _model(client: MlflowClient, name: str) -> RegisteredModel | None:
    """Return the registered model, None if there is none of this name."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _by_alias(client: MlflowClient, name: str, alias: str) -> Any | None:
    """Return the version behind an alias, None if the model or the alias does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _find(client: MlflowClient, name: str, key: str) -> Any | None:
    """Return the version with this key: a complete one, else the newest whose registration was interrupted."""
    same = f"name='{name}' and tags.`stylegan.key`='{key}'"
    found = all_pages(partial(client.search_model_versions, same, order_by=["version_number DESC"]))
    return next((version for version in found if REGISTERED in version.tags), found[0] if found else None)


def _versions(client: MlflowClient, name: str) -> list[str]:
    return sorted((str(version.version) for version in all_versions(client, name)), key=int)


def _choice(client: MlflowClient, uri: str, name: str, champion: str | None) -> str:
    """Return the end of a line that offers the newest version that is not champion, if there is one."""
    others = [version for version in _versions(client, name) if version != champion]
    if not others:
        return ""
    command = shell_command("stylegan", "promote", name, "--version", others[-1], MLFLOW_TRACKING_URI=uri)
    return f"; choose a version, such as `{command}`"


def _record(client: MlflowClient, name: str, version: str) -> ModelVersion:
    found = client.get_model_version(name, version)
    return ModelVersion(name=name, version=str(found.version), aliases=tuple(sorted(found.aliases)))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
