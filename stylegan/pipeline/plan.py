"""The dry run: what storage already holds of a run, what is left to do, and why. Touches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import computed_field

from stylegan import storage
from stylegan.config.sections import EvaluationConfig
from stylegan.config.tree import Config
from stylegan.data.sharding.changes import Change, plan_change
from stylegan.data.sharding.write_shards import count_unread, find_shards
from stylegan.data.sources.open_source import open_source
from stylegan.errors import UserError
from stylegan.evaluation.features import public_weights
from stylegan.evaluation.metric_table import METRICS
from stylegan.evaluation.report import Report
from stylegan.pipeline.check_data import check_data
from stylegan.pipeline.keys import gate_key
from stylegan.pipeline.preflight import check_root
from stylegan.pipeline.retraining import Decision
from stylegan.pipeline.run import Run, find_origin
from stylegan.records import Record
from stylegan.registry.gate import describe_verdict
from stylegan.registry.versions import find_verdict, find_version, is_applied
from stylegan.retry import storage_settings
from stylegan.training.cost import Cost, counted_evaluation, gpu_hours, stage_cost
from stylegan.training.faults import check_gpus, check_named
from stylegan.training.gpus import cuda_problem, gpus_here, named_accelerators, target, triton_cure
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import newest_checkpoint


class PlannedStep(Record):
    """One step: whether `run` would take it from storage, leave it out or do it, and why."""

    name: str
    state: Literal["cached", "not needed", "run"]
    reason: str
    workers: tuple[int, int] | None = None  # the fewest and the most of a stage that is left
    accelerator_type: str | None = None  # of its GPUs, if the config names one
    images: int = 0  # still to be shown or generated
    seconds: float | None = None  # estimate of what is left, with the most workers; None where nothing is known
    gpu_hours: float | None = None  # that its workers reserve; None without GPUs, and where no time is known
    cost: float | None = None  # of these GPU-hours; None without a price
    memory_gib: float | None = None  # estimate for one worker: of its GPU, or of the machine where it has none


class Plan(Record):
    """The dry run of a config.

    - `run_id`: None until the data has been read once.
    - `missing`: public weights that `run` would download.
    - `speeds`: what the times are estimated from, in words.
    - `gpu_hours`: those of all steps together; None if no step that is left has a known time on GPUs.
    - `price_per_gpu_hour`, `cost`: a price that was given, and that of all steps together.
    - `notes`: what is to be known of the GPUs of this machine, a line each.
    - `assumed_images`: the number of images that the plan was asked to assume; None if it has looked.
    - `decision`: why a scheduled run would do these steps; None for a run by hand.
    """

    name: str
    run_id: str | None
    steps: tuple[PlannedStep, ...]
    missing: tuple[str, ...] = ()
    speeds: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    assumed_images: int | None = None
    price_per_gpu_hour: float | None = None
    decision: Decision | None = None

    @computed_field
    def gpu_hours(self) -> float | None:
        """The hours of GPUs that all steps reserve."""
        known = [step.gpu_hours for step in self.steps if step.gpu_hours is not None]
        return sum(known) if known else None

    @computed_field
    def cost(self) -> float | None:
        """The price of the GPU-hours of all steps."""
        known = [step.cost for step in self.steps if step.cost is not None]
        return sum(known) if known else None

    def priced(self, price_per_gpu_hour: float) -> Plan:
        """Return this plan with the price of every step that has GPU-hours."""
        costs = [None if step.gpu_hours is None else step.gpu_hours * price_per_gpu_hour for step in self.steps]
        steps = tuple(step.model_copy(update={"cost": cost}) for step, cost in zip(self.steps, costs, strict=True))
        return self.model_copy(update={"steps": steps, "price_per_gpu_hour": price_per_gpu_hour})


def make_plan(config: Config, *, images: int | None = None) -> Plan:
    """Plan what `run` would do, step by step; reads storage and the registry, writes nothing.

    Args:
        images: assume that the source holds so many images, with the labels that the config needs, and that nothing is
            done yet. Then neither the source nor a remote storage is looked at, which may be out of reach from here.

    Raises:
        ConfigError, StepError: the source or the storage cannot be read or holds too few images, training cannot go on from
            the checkpoint of a warm start, or the GPU of this machine cannot train a stage that is left.
    """
    if images is not None:
        check_data(config, images, ("assumed",))
        return _plan_without_data(config, images, f"{images:,} images are assumed; not looked at", assumed=images)
    with storage_settings(config.storage):
        return _make_plan(config)


def _make_plan(config: Config) -> Plan:
    root = storage.absolute(config.storage.root)
    try:
        check_root(config.storage.root)
        source = open_source(config.data, config.storage.root)
        shards = find_shards(source, config.data, root)
    except UserError as error:
        unseen = f"`{config.command('plan')} --images N` plans for N images without looking"
        raise type(error)(f"{error}; if the data cannot be reached from here, {unseen}") from error
    check_data(config, len(source.images), source.label_names, source.attribute_names)
    find_origin(config, source)
    if shards is None:
        change = plan_change(source, config.data, root)
        return _plan_without_data(config, change.new + change.changed, _describe(change))

    run = Run(config, shards)
    unread = count_unread(shards)
    again = f"; {unread} that could not be read are tried again" if unread else ""
    steps = [PlannedStep(name="shard", state="cached", reason=f"{shards.num_images} images are in {shards.uri}{again}")]
    ready, speeds = True, dict[str, None]()
    for stage in run.stages:
        steps.append(_plan_stage(run, stage, ready, speeds))
        ready = steps[-1].state != "run"
    report = run.find_report()  # valid even if a stage has to be trained again
    steps.append(_plan_evaluate(config, report, ready))
    steps += plan_registry(run, report)
    missing = () if report else _missing_weights(config)
    left = {step.name for step in steps if step.state == "run"}
    return Plan(
        name=config.name,
        run_id=run.run_id,
        steps=tuple(steps),
        missing=missing,
        speeds=tuple(speeds),
        notes=gpu_notes(config, [stage for stage in run.stages if f"train {stage.name}" in left]),
    )


def gpu_notes(config: Config, stages: Sequence[Stage]) -> tuple[str, ...]:
    """Return what is to be known of the GPUs of this machine before these stages train, a line each.

    Raises:
        ConfigError: they cannot train a stage.
    """
    check_named(config, stages)
    on_gpus = any(config.workers_at(stage.resolution).gpus_per_worker for stage in stages)
    here = gpus_here() if stages and config.ray.address is None else ()
    if not on_gpus:
        return tuple(f"ray.gpus_per_worker=0 leaves the GPU of this machine unused: {gpu.name}" for gpu in here[:1])

    lines = []
    if here:
        check_gpus(config, stages, here)
        lines.append(f"GPU: {here[0].name} of this machine, {here[0].gib:.1f} GiB")
        if cure := triton_cure():
            lines.append(f"Triton is missing, so steps are made of plain operations and take longer: `{cure}`")
    elif config.ray.address is None:
        lines.append(f"GPU: {cuda_problem(expected=False) or 'this machine has none'}")
    resolutions = [stage.resolution for stage in stages if config.workers_at(stage.resolution).gpus_per_worker]
    gpus = [target(config, resolution) for resolution in resolutions]
    unknown = dict.fromkeys(gpu.name for gpu in gpus if gpu.kind is None)
    lines += [f"nothing is known of the speed of {name}: no times before a stage is finished on it" for name in unknown]
    return tuple(lines)


def _plan_without_data(config: Config, images: int, reason: str, *, assumed: int | None = None) -> Plan:
    """Plan a run whose shards are not there; `images` of them are to be written."""
    reused = " (a stage trained on the same content before is reused)" if assumed is None else ""
    steps = [PlannedStep(name="shard", state="run", reason=reason, images=images)]
    stored = assumed is None or storage.is_local(config.storage.root)
    speeds = dict[str, None]()
    for stage in stages(config):
        cost = stage_cost(config, stage, stored=stored)
        steps.append(_train_step(config, stage, cost, stage.num_images, f"waits for shard{reused}", speeds))
    steps.append(_plan_evaluate(config, None, False))
    steps.append(PlannedStep(name="register", state="run", reason="waits for evaluate"))
    steps.append(PlannedStep(name="gate", state="run", reason="waits for register"))
    return Plan(
        name=config.name,
        run_id=None,
        steps=tuple(steps),
        missing=_missing_weights(config),
        speeds=tuple(speeds),
        notes=gpu_notes(config, stages(config)),
        assumed_images=assumed,
    )


def _describe(change: Change) -> str:
    """Return what sharding has to do, in words."""
    if change.parent is None:
        return "this source is not sharded yet"
    return (
        f"{change.new:,} new, {change.changed:,} changed, {change.deleted:,} deleted since {change.parent}; "
        f"{change.kept:,} are kept"
    )


def _missing_weights(config: Config) -> tuple[str, ...]:
    files = public_weights.missing(config.evaluation)
    return tuple(f"{file.name} ({public_weights.shown_size(file.num_bytes)})" for file in files)


def _plan_stage(run: Run, stage: Stage, ready: bool, speeds: dict[str, None]) -> PlannedStep:
    """Plan one stage; `ready` says that the stage below is finished or not needed. What its time is from joins `speeds`."""
    done = run.find_stage(stage)
    if done:
        reason = f"finished at {done.nimg / 1000:g} kimg"
        return PlannedStep(name=f"train {stage.name}", state="cached", reason=reason)
    if not run.is_needed(stage):
        reason = "a later stage is finished or goes on from its own checkpoint"
        return PlannedStep(name=f"train {stage.name}", state="not needed", reason=reason)
    newest = newest_checkpoint(run.stage_uri(stage))
    left = stage.end_nimg - (newest.nimg if newest else stage.start_nimg)
    if newest:
        reason = f"goes on from {newest.nimg / 1000:g} of {stage.end_nimg / 1000:g} kimg"
    elif warm := run.config.training.warm_start:
        reason = f"goes on from {warm.identity}, from {warm.nimg / 1000:g} to {stage.end_nimg / 1000:g} kimg"
    else:
        reason = _why_not_trained(run, stage) if ready else "waits for the stage below"
    return _train_step(run.config, stage, stage_cost(run.config, stage), left, reason, speeds)


def _why_not_trained(run: Run, stage: Stage) -> str:
    names = storage.names(storage.join(run.root, "stages"))
    others = [name for name in names if name.startswith(f"{stage.resolution:04d}-")]
    if others:
        return f"not trained with these settings ({len(others)} other version(s) of this stage are in storage)"
    return "not trained yet"


def _train_step(
    config: Config, stage: Stage, cost: Cost, images: int, reason: str, speeds: dict[str, None]
) -> PlannedStep:
    if cost.basis:
        speeds[cost.basis] = None
    if stage.d_steps > 1:
        steps = images // stage.batch
        updates = f"{steps:,} updates of D with {stage.batch} images each, {stage.num_G_updates(stage.end_nimg, steps):,} of G"
        reason = f"{reason}; {updates}"
    seconds = images / cost.images_per_second if cost.images_per_second else None
    hours = gpu_hours(config, stage, seconds) if seconds is not None else 0.0
    counts, named = config.worker_counts_at(stage.resolution), named_accelerators(config, stage.resolution)
    return PlannedStep(
        name=f"train {stage.name}",
        state="run",
        reason=reason,
        workers=(counts[0], counts[-1]),
        accelerator_type=named[0] if named and config.workers_at(stage.resolution).gpus_per_worker else None,
        images=images,
        seconds=seconds,
        gpu_hours=hours or None,
        memory_gib=cost.memory_gib,
    )


def _plan_evaluate(config: Config, report: Report | None, ready: bool) -> PlannedStep:
    """Plan the evaluation; `ready` says that the last stage is finished."""
    if report:
        return PlannedStep(name="evaluate", state="cached", reason=f"report under protocol {report.protocol}")
    reason = "not evaluated with these settings yet" if ready else "waits for training"
    images, resolution = count_generated(config.evaluation), config.data.resolution
    gpus = config.workers_at(resolution).gpus_per_worker
    if not gpus or target(config, resolution).kind is None:
        return PlannedStep(name="evaluate", state="run", reason=reason, images=images)
    alone = counted_evaluation(config, resolution, images)  # by one worker; all of the last stage divide the images
    return PlannedStep(
        name="evaluate",
        state="run",
        reason=reason,
        images=images,
        seconds=alone / config.most_workers_at(resolution),
        gpu_hours=alone * gpus / 3600 or None,
    )


def count_generated(evaluation: EvaluationConfig) -> int:
    """Count the images that an evaluation generates: one pass for most metrics, further passes for the others."""
    facts = [METRICS[metric] for metric in set(evaluation.metrics)]
    shared = max((fact.shared_images(evaluation) for fact in facts), default=0)
    return shared + sum(fact.own_images(evaluation) for fact in facts)


def plan_registry(run: Run, report: Report | None) -> list[PlannedStep]:
    """Plan registration and gate."""
    version = find_version(run.config, run.keys.registration) if report else None
    if version:
        reason = f"version {version.version} of {version.name}"
    else:
        reason = "not registered yet" if report else "waits for evaluate"
        if report and run.judged_version():
            reason = "the registry does not have this run any more"
    register = PlannedStep(name="register", state="cached" if version else "run", reason=reason)

    stored, verdict = run.find_verdict(version.version) if version else None, None
    if version:
        verdict = find_verdict(run.config, version.version, gate_key(run.config, version.version), stored)
    judged = verdict if verdict and is_applied(run.config, verdict) else None
    if judged and version:
        reason = describe_verdict(judged, version.aliases)
    else:
        reason = "not judged by this gate yet" if version else "waits for register"
        if verdict:
            reason = "the registry does not have its verdict, or has lost the alias champion"
        elif stored:
            reason = "the stored verdict is not on the models that the registry has"
    return [register, PlannedStep(name="gate", state="cached" if judged else "run", reason=reason)]
