"""The flow of the schedule: check -> decide -> (shard -> train -> evaluate -> register -> gate) -> notify -> clean up.

A check after which nothing is to be done ends as `Skipped`, in seconds: what trains is imported only where it is needed.
Never two retrainings of a model work at the same time: the second ends as `Skipped`, too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import SerializeAsAny

from flows import notify, outage
from flows.attempts import OPTIONS, call
from flows.beginning import begin, flow_name_of
from flows.killed_runs import RETRAIN_FLOW_NAME as FLOW_NAME
from flows.killed_runs import show_stopped
from stylegan import storage
from stylegan.config.file import load
from stylegan.config.tree import Config
from stylegan.errors import UserError
from stylegan.pipeline import lock, retraining
from stylegan.pipeline.retraining import Begun, Check, Decision, Retraining
from stylegan.records import Record
from stylegan.retry import storage_settings
from stylegan.tracking.connection import resolve_uri

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

    from stylegan.data.shardset import ShardSet
    from stylegan.evaluation.drift import Drift
    from stylegan.pipeline.steps import Pipeline

logger = logging.getLogger("stylegan")


class Retrained(Record):
    """What a retraining has done.

    Attributes:
        check: what it found; None if another one was under way.
        decision: whether it trained, and why.
        drift: of the new images, if it was measured.
        run: the summary of the run; None if nothing was trained.
        freed_bytes: by the clean-up; None without one.
    """

    check: Check | None
    decision: Decision
    drift: SerializeAsAny[Record] | None = None
    run: SerializeAsAny[Record] | None = None
    freed_bytes: int | None = None


@flow(
    name=FLOW_NAME,
    flow_run_name=flow_name_of,
    persist_result=False,
    on_crashed=[show_stopped, lambda *facts: _tell_end("crashed", *facts)],
    on_failure=[lambda *facts: _tell_end("failed", *facts)],
)
def retrain_flow(config: str, overrides: list[str] | None = None, day: str | None = None) -> Any:
    """Train a model again if there is reason to, and let the gate decide which one is champion.

    Args:
        config: path of the YAML file.
        overrides: `key.path=value` strings on top of it.
        day: what stands for `{date}` in `data.source`, YYYY-MM-DD; unset is the day for which the run was scheduled, in the
            time zone of this machine.

    Returns:
        What it has done, a `Retrained`; as the data of a state named `Skipped` if nothing was trained.

    Raises:
        ConfigError: the config is not valid, or `retrain.start: champion` cannot be done; nothing was started.
        StepError: the source cannot be listed, or a step failed.
    """
    with outage.surviving():
        ended = begin()
        settings = load(config, overrides or [])
        notify.check_urls(settings)
        if flow_name_of() in ended:
            _tell(settings, "crashed", "its process was killed; this run goes on from storage", _links(settings))
        settings, day = _of_day(settings, day)
        with storage_settings(settings.storage):
            done = retrain(settings, day)
            if message := _message(settings, done):
                call(send, settings, message)
    if done.run is None:
        logger.info("retrain: skipped: %s", done.decision.reason)
        return Completed(name="Skipped", message=done.decision.reason, data=done)
    return done


def glance(config: Config, day: str | None) -> Retrained | None:
    """Do what a retraining does that finds nothing to do, in no flow; None if there is something to do."""
    with storage_settings(config.storage):
        if done := _busy(config):
            return _told(config, done)
        check = retraining.check(config, day)
        decision = retraining.decide(config, check, begun=retraining.find_begun(config, day))
        if decision.train or retraining.wants_drift(config, check, decision) or config.retention.automatic:
            return None
        return _told(config, Retrained(check=check, decision=decision))


def retrain(config: Config, day: str | None) -> Retrained:
    """Do the steps of a retraining; call it in a flow. Arguments as for `retraining.check`, the result as for the flow."""
    if busy := _busy(config):
        return busy
    check = call(look, config, day)
    begun = retraining.find_begun(config, day)
    decision = call(decide, config, check, begun)
    done = Retrained(check=check, decision=decision)
    if decision.train or retraining.wants_drift(config, check, decision):
        root, name = storage.absolute(config.storage.root), retraining.lock_name(config)
        try:
            with lock.hold(root, name, run_id=config.model_name, what="retrain"):
                done = _train(config, check, decision, begun)
        except lock.LockedError as error:  # somebody was faster
            done = done.model_copy(update={"decision": Decision(train=False, rule="locked", reason=str(error))})
    if config.retention.automatic:
        done = done.model_copy(update={"freed_bytes": call(clean_up, config)})
    return done


def _busy(config: Config) -> Retrained | None:
    """Return the result of a check while another retraining of the model is under way, None if there is none."""
    busy = retraining.busy(config)
    return Retrained(check=None, decision=busy) if busy else None


def _train(config: Config, check: Check, decision: Decision, begun: Begun | None) -> Retrained:
    """Shard, measure the drift, and do all further steps unless it forbids them."""
    from flows import artifacts, tasks
    from flows.train import run_steps
    from stylegan.pipeline.steps import Pipeline

    logger.info("retrain: %s", decision.reason)
    drift: Drift | None = None
    record = Retraining(config, check, decision, begun)
    with record.ended(), Pipeline(retraining.start_config(config, decision.start)) as pipeline:
        pipeline.version_tags = record.record.version_tags
        shards = record.record.shards
        if shards is not None:
            call(tasks.take_shards, pipeline, shards)
        else:
            shards = call(tasks.shard, pipeline)
            drift = call(measure_drift, pipeline, check, shards)
            decision = retraining.with_drift(config, decision, drift)
            if not decision.train:
                return Retrained(check=check, decision=decision, drift=drift)
            record.write(decision, shards)
        shown = record.record.decision
        outage.when_there("the decision", lambda: artifacts.publish_decision(check, shown, drift))
        if drift is not None:
            pipeline.log_drift(shards, drift)
        summary = run_steps(pipeline, shards)
    return Retrained(check=check, decision=decision, drift=drift, run=summary)


# --- the tasks: each body is one call into the library ---


@task(name="check", task_run_name="check", **OPTIONS)
def look(config: Config, day: str | None) -> Check:
    """List the source and the registry; no image is read."""
    return retraining.check(config, day)


@task(name="decide", task_run_name="decide", **OPTIONS)
def decide(config: Config, check: Check, begun: Begun | None) -> Decision:
    """Apply the rules of `retrain`, and choose the weights to start from."""
    decision = retraining.decide(config, check, begun=begun)
    if decision.start is None and (decision.train or retraining.wants_drift(config, check, decision)):
        decision = decision.model_copy(update={"start": retraining.choose_start(config, check, decision.rule)})
    return decision


@task(name="drift", task_run_name="drift", **OPTIONS)
def measure_drift(pipeline: Pipeline, check: Check, shards: ShardSet) -> Drift | None:
    """Measure how different the new images are from those of the champion."""
    if check.champion is None:
        return None
    return pipeline.measure_drift(shards, check.champion.tags.get("stylegan.dataset_fingerprint", ""))


@task(name="clean up", task_run_name="clean up", **OPTIONS)
def clean_up(config: Config) -> int | None:
    """Delete what `retention` does not keep; return the bytes that this has freed. None if it could not be done now.

    Nothing that a retraining should fail of; people are told, since a disk may be full one day.
    """
    from stylegan.pipeline.retention import AnotherCleanUpError, clean_up

    try:
        return clean_up(config).freed_bytes
    except AnotherCleanUpError as error:
        logger.info("clean up: %s", error)
    except UserError as error:
        logger.warning("clean up: %s", error)
        notify.tell(config, notify.Message(f"{config.model_name}: the clean-up failed", str(error), _links(config)))
    return None


@task(name="notify", task_run_name="notify", **OPTIONS)
def send(config: Config, message: notify.Message) -> bool:
    """Tell people what has become of it."""
    return notify.tell(config, message)


# --- what people are told ---


def _told(config: Config, done: Retrained) -> Retrained:
    """Tell people of a check in no flow, and return its result."""
    if message := _message(config, done):
        notify.tell(config, message)
    return done


def _message(config: Config, done: Retrained) -> notify.Message | None:
    """Return what the services of `retrain.notify` are told of a retraining that has ended, None if nothing."""
    if not config.retrain.notify:
        return None
    if done.run is None:
        if not (config.retrain.notify_skips or done.decision.rule == "held"):
            return None
        what = "held" if done.decision.rule == "held" else "skipped"
        return notify.Message(f"{config.model_name}: {what}", done.decision.reason, _links(config))
    from flows.artifacts import read_thumbnail
    from stylegan.registry.gate import describe_verdict

    summary: Any = done.run
    version, verdict = summary.version, summary.verdict
    what = "promoted" if "champion" in version.aliases else "not promoted"
    reason = f"{describe_verdict(verdict, version.aliases)} Trained because of this: {done.decision.reason}."
    links = (*_links(config), f"report: {summary.page}", f"samples: {summary.grid}")
    title = f"{config.model_name}: version {version.version} {what}"
    return notify.Message(title, reason, links, read_thumbnail(summary.grid))


def _tell_end(what: str, flow: Any, run: FlowRun, state: State[Any]) -> None:
    """Tell the services of `retrain.notify` that a retraining failed or crashed; a hook of Prefect."""
    error = state.data if isinstance(state.data, BaseException) else state.result(raise_on_failure=False)
    if isinstance(error, KeyboardInterrupt):
        return  # somebody has stopped it
    try:
        config = load(run.parameters["config"], run.parameters.get("overrides") or [])
    except (UserError, KeyError):
        return  # the config itself is the mistake, and names nobody
    reason = str(error) if isinstance(error, UserError) else state.message or type(error).__name__
    _tell(config, what, reason, _links(config))


def _tell(config: Config, what: str, reason: str, links: Sequence[str]) -> None:
    notify.tell(config, notify.Message(f"{config.model_name}: retraining {what}", reason, links))


def _links(config: Config) -> tuple[str, ...]:
    """Return the pages that show more."""
    found, uri = [], resolve_uri(config)
    with suppress(Exception):  # a server that is away
        if page := flow_run.ui_url:
            found.append(f"run: {page}")
    if uri.startswith("http"):
        found.append(f"model: {uri.rstrip('/')}/#/models/{config.model_name}")
    return tuple(found)


def _of_day(config: Config, day: str | None) -> tuple[Config, str | None]:
    """Return the config for a day, and that day; None for a source that has none."""
    if day is None and retraining.DATE in config.data.source:
        scheduled = flow_run.scheduled_start_time or datetime.now(UTC)
        day = scheduled.astimezone().date().isoformat()
    return retraining.for_day(config, day), day
