"""What a run is made of: the key of every step, what storage already holds of it, and what is left to do.

A key is a digest of the keys a step depends on, of the part of the config it uses and of a version constant. Data enters by
its content (the fingerprint of its shards), so moving a folder re-does nothing. `storage`, `ray`, `tracking`, `snapshots` and
`registry` are no part of what is trained or measured.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from stylegan import storage
from stylegan.config import Config, EvaluationConfig, digest
from stylegan.data.shards import Change, ShardSet, find_shards, plan_change
from stylegan.data.sources import open_source
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation import weights
from stylegan.evaluation.page import read_report
from stylegan.evaluation.quick import with_quick
from stylegan.evaluation.report import EVALUATION_VERSION, Report
from stylegan.evaluation.spaces import check_features
from stylegan.registry.gate import Verdict
from stylegan.registry.store import find_version
from stylegan.training.cost import Cost, stage_cost
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import Checkpoint, newest_checkpoint

# Raise one when the step's result changes for the same config: finished work of that step is then done again.
VERSIONS = {"train": 2, "evaluate": EVALUATION_VERSION, "register": 1, "gate": 1}

# Settings of training that act through a stage's own length, batch and learning rate only.
IN_STAGE = (
    "stages",
    "fade_kimg",
    "stable_kimg",
    "total_kimg",
    "batch",
    "max_batch_per_worker",
    "learning_rate",
    "learning_rate_scaling",
)


class Keys(BaseModel):
    """The keys of one run, known as soon as the fingerprint of its shards is."""

    model_config = ConfigDict(frozen=True)

    stages: tuple[str, ...]
    evaluation: str
    registration: str
    run_id: str


class PlannedStep(BaseModel):
    """One step: whether `run` would take it from storage or do it, and why."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: Literal["cached", "run"]
    reason: str
    images: int = 0  # still to be shown or generated
    seconds: float | None = None  # estimate of what is left; None where nothing is known
    memory_gib: float | None = None  # estimate for one worker


class Plan(BaseModel):
    """The dry run of a config; `run_id` is unknown until the data has been read once, `missing` are weights that `run` would download."""

    model_config = ConfigDict(frozen=True)

    name: str
    run_id: str | None
    steps: tuple[PlannedStep, ...]
    missing: tuple[str, ...] = ()


def make_keys(config: Config, shards: ShardSet) -> Keys:
    """The keys of every step after sharding."""
    plan, keys, below = stages(config), [], ""
    common = config.training.model_dump(mode="json", exclude=set(IN_STAGE))
    for stage in plan:
        # The final resolution enters by the penalties, whose weights are given there; workers and intervals do not, but for the
        # batch that `auto` makes of the workers.
        what = [
            shards.fingerprint,
            config.data.resolution,
            config.data.channels,
            shards.label_names if config.model.conditional else None,
        ]
        below = digest([VERSIONS["train"], below, config.seed, what, config.model, common, vars(stage)])
        keys.append(below)
    evaluation = digest([VERSIONS["evaluate"], below, shards.fingerprint, config.evaluation])
    run_id = f"{config.name}-{evaluation}"
    registration = digest([VERSIONS["register"], run_id, config.model_name])
    return Keys(stages=tuple(keys), evaluation=evaluation, registration=registration, run_id=run_id)


def gate_key(config: Config, version: str) -> str:
    """The verdict on a version is kept under this key: another gate or another version is judged anew."""
    return digest([VERSIONS["gate"], config.model_name, version, config.registry.gate])


def check_data(
    config: Config, num_images: int, label_names: tuple[str, ...], attribute_names: tuple[str, ...] = ()
) -> None:
    """What a run needs of its images; known from the listing, before anything is written.

    Raises:
        ConfigError: classes are needed and there are none; attributes are no substitute.
        StepError: there are fewer images than in a batch.
    """
    source = config.data.source
    batch = max(config.batch_at(resolution) for resolution in config.resolutions)
    if num_images < batch:
        raise StepError(
            f"data.source={source}: holds {num_images} images, fewer than the largest batch of {batch}; add images or lower training.batch"
        )
    has = f"has attributes only ({len(attribute_names)}), which serve evaluation" if attribute_names else "has none"
    cure = "put the images in class folders, add a dataset.json with class numbers"
    if config.model.conditional and not label_names:
        raise ConfigError(
            f"model.conditional=true needs labels, but data.source={source} {has}; {cure}, or set model.conditional=false"
        )
    if config.snapshots.probe_kimg and not label_names:
        raise ConfigError(
            f"snapshots.probe_kimg needs labels, but data.source={source} {has}; {cure}, or leave out snapshots.probe_kimg"
        )
    check_features(with_quick(config), labelled=bool(label_names))


def root(config: Config) -> str:
    """`storage.root` as an absolute URI."""
    return storage.absolute(config.storage.root)


def stage_uri(config: Config, stage: Stage, key: str) -> str:
    """A stage's folder: named by its key, so runs that share a stage share its checkpoints, finished or not."""
    return storage.join(root(config), "stages", f"{stage.resolution:04d}-{key}")


def run_uri(config: Config, run_id: str) -> str:
    """A run's folder: config, report, verdict, figures."""
    return storage.join(root(config), "runs", run_id)


def find_stage(config: Config, stage: Stage, key: str) -> Checkpoint | None:
    """The last checkpoint of a finished stage whose files are still there."""
    uri = stage_uri(config, stage, key)
    try:
        done = storage.read_json(storage.join(uri, "done.json"))
    except FileNotFoundError:
        return None
    record = Checkpoint.model_validate(done)
    record = record.model_copy(update={"uri": storage.join(uri, storage.name(record.uri))})  # the root may have moved
    return record if storage.exists(storage.join(record.uri, "checkpoint.json")) else None


def find_report(config: Config, run_id: str) -> Report | None:
    """The report of a finished evaluation."""
    return read_report(run_uri(config, run_id))


def find_verdict(config: Config, run_id: str, version: str) -> tuple[bool, Verdict | None]:
    """The verdict on a version, if this gate has judged it, and whether the registry's aliases were moved accordingly."""
    try:
        found = storage.read_json(_verdict_uri(config, run_id))
    except FileNotFoundError:
        return False, None
    if found["key"] != gate_key(config, version):
        return False, None
    return bool(found["applied"]), Verdict.model_validate(found["verdict"])


def write_verdict(config: Config, run_id: str, verdict: Verdict, *, applied: bool) -> None:
    """Keep a verdict for `find_verdict`."""
    content = {
        "key": gate_key(config, verdict.challenger),
        "applied": applied,
        "verdict": verdict.model_dump(mode="json"),
    }
    storage.write_json(_verdict_uri(config, run_id), content)


def _verdict_uri(config: Config, run_id: str) -> str:
    return storage.join(run_uri(config, run_id), "verdict.json")


def make_plan(config: Config) -> Plan:
    """What `run` would do, step by step; reads storage and the registry, writes nothing.

    Raises:
        ConfigError, StepError: the source or the storage cannot be read.
    """
    source = open_source(config.data)
    check_data(config, len(source.images), source.label_names, source.attribute_names)
    shards = find_shards(source, config.data, root(config))
    if shards is None:
        return _plan_without_data(config, plan_change(source, config.data, root(config)))
    keys = make_keys(config, shards)
    steps = [PlannedStep(name="shard", state="cached", reason=f"{shards.num_images} images are in {shards.uri}")]
    ready = True
    for stage, key in zip(stages(config), keys.stages, strict=True):
        steps.append(_plan_stage(config, stage, key, ready))
        ready = steps[-1].state == "cached"
    report = find_report(config, keys.run_id)  # kept even if a stage has to be trained again
    steps.append(_plan_evaluate(config, report, ready))
    version = find_version(config, keys.registration) if report else None
    if version:
        reason = f"version {version.version} of {version.name}"
    else:
        reason = "not registered yet" if report else "waits for evaluate"
    steps.append(PlannedStep(name="register", state="cached" if version else "run", reason=reason))
    applied, verdict = find_verdict(config, keys.run_id, version.version) if version else (False, None)
    if verdict and applied:
        reason = " ".join(verdict.reasons)
    else:
        reason = "not judged by this gate yet" if version else "waits for register"
    steps.append(PlannedStep(name="gate", state="cached" if verdict and applied else "run", reason=reason))
    return Plan(
        name=config.name, run_id=keys.run_id, steps=tuple(steps), missing=() if report else _missing_weights(config)
    )


def _plan_without_data(config: Config, change: Change) -> Plan:
    steps = [PlannedStep(name="shard", state="run", reason=_told(change), images=change.new + change.changed)]
    for stage in stages(config):
        cost = stage_cost(config, stage)
        steps.append(
            _step_of(
                stage, cost, stage.num_images, "waits for shard (a stage trained on the same content before is reused)"
            )
        )
    steps.append(_plan_evaluate(config, None, False))
    steps.append(PlannedStep(name="register", state="run", reason="waits for evaluate"))
    steps.append(PlannedStep(name="gate", state="run", reason="waits for register"))
    return Plan(name=config.name, run_id=None, steps=tuple(steps), missing=_missing_weights(config))


def _told(change: Change) -> str:
    """What sharding has to do, in words."""
    if change.parent is None:
        return "this source is not sharded yet"
    return f"{change.new:,} new, {change.changed:,} changed, {change.deleted:,} deleted since {change.parent}; {change.kept:,} are kept"


def _missing_weights(config: Config) -> tuple[str, ...]:
    return tuple(f"{file.name} ({weights.shown_size(file.num_bytes)})" for file in weights.missing(config.evaluation))


def _plan_stage(config: Config, stage: Stage, key: str, ready: bool) -> PlannedStep:
    done = find_stage(config, stage, key) if ready else None
    if done:
        return PlannedStep(name=f"train {stage.name}", state="cached", reason=f"finished at {done.nimg / 1000:g} kimg")
    newest = newest_checkpoint(stage_uri(config, stage, key)) if ready else None
    left = stage.end_nimg - (newest.nimg if newest else stage.start_nimg)
    if newest:
        reason = f"goes on from {newest.nimg / 1000:g} of {stage.end_nimg / 1000:g} kimg"
    else:
        reason = _changed(config, stage, key) if ready else "waits for the stage below"
    return _step_of(stage, stage_cost(config, stage), left, reason)


def _changed(config: Config, stage: Stage, key: str) -> str:
    others = [
        name
        for name in storage.names(storage.join(root(config), "stages"))
        if name.startswith(f"{stage.resolution:04d}-")
    ]
    if others:
        return f"not trained with these settings ({len(others)} other version(s) of this stage are in storage)"
    return "not trained yet"


def _step_of(stage: Stage, cost: Cost, images: int, reason: str) -> PlannedStep:
    seconds = images / cost.images_per_second if cost.images_per_second else None
    return PlannedStep(
        name=f"train {stage.name}",
        state="run",
        reason=reason,
        images=images,
        seconds=seconds,
        memory_gib=cost.memory_gib,
    )


def _plan_evaluate(config: Config, report: Report | None, ready: bool) -> PlannedStep:
    if report:
        return PlannedStep(name="evaluate", state="cached", reason=f"report under protocol {report.protocol}")
    images = _count_generated(config.evaluation)
    reason = "not evaluated with these settings yet" if ready else "waits for training"
    return PlannedStep(name="evaluate", state="run", reason=reason, images=images)


def _count_generated(evaluation: EvaluationConfig) -> int:
    """Images that an evaluation generates: one pass for most metrics, passes of their own for the others."""
    metrics = set(evaluation.metrics)
    common = evaluation.num_images if metrics & {"fid", "kid", "is", "pr", "fid_mixing"} else 0
    images = max(common, evaluation.separability_samples if "separability" in metrics else 0)
    images += sum(2 * evaluation.ppl_samples for metric in metrics if metric.startswith("ppl"))
    images += 3 * evaluation.num_images * ("fid_mixing" in metrics)
    return images + sum(psi != 1 for psi in evaluation.psi) * evaluation.num_images * ("truncation" in metrics)
