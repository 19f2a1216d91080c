"""The flow of a search: trials that a study chooses, each an ordinary run up to its evaluation; the best one is registered.

A trial is stopped at the end of a stage if its quick metric there is worse than the median of those before it. The study
and the runs are in storage, so the same command goes on where it stopped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from prefect import flow

from flows import outage
from flows.attempts import call
from flows.beginning import begin
from flows.children import Children, SweptChild
from flows.killed_runs import SWEEP_FLOW_NAME as FLOW_NAME
from flows.killed_runs import show_stopped
from flows.sweep import POLL_SECONDS, READY_SECONDS, opened, run_children, shard
from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.errors import UserError
from stylegan.pipeline.run import Run
from stylegan.pipeline.study import (
    Dimension,
    Objective,
    Study,
    Trial,
    is_measured_early,
    require_optuna,
    stage_value,
    study_name,
)
from stylegan.pipeline.sweep import Child, with_overrides
from stylegan.records import Record

logger = logging.getLogger("stylegan")
FINAL_ERRORS = ("DivergedError",)  # with the same settings it would end the same way


class Optimized(Record):
    """What a search has found.

    Attributes:
        sweep_id: of the study.
        parent: MLflow's id of its run.
        objective: what was optimised.
        trials: all that this command has run, in order.
        best: the number of the best trial of the study; None without any that came to its end.
        value: of the objective, of the best one.
        run: the best one, registered and judged by the gate; None without any.
    """

    sweep_id: str
    parent: str
    objective: str
    trials: tuple[SweptChild, ...]
    best: int | None = None
    value: float | None = None
    run: SweptChild | None = None

    @property
    def children(self) -> tuple[SweptChild, ...]:
        """The trials, and the registered one."""
        return (*self.trials, *([self.run] if self.run else []))

    @property
    def failed(self) -> tuple[SweptChild, ...]:
        """The runs that failed, and may not fail again."""
        return tuple(child for child in self.children if child.state == "failed" and child.error not in FINAL_ERRORS)


def optimize_flow(
    config: Config,
    objective: Objective,
    space: Sequence[Dimension],
    *,
    trials: int,
    at_once: int | None = None,
) -> Optimized:
    """Search for the best settings, and register the best model as challenger, for the gate to judge.

    Args:
        config: of which the trials differ in the keys of the space.
        objective: what is optimised.
        space: what is tried.
        trials: of the study in all, those of earlier commands included.
        at_once: as for `sweep_flow`; with 1, the same command always tries the same.

    Raises:
        ConfigError: Optuna is not installed, no run measures the objective, or a value of the space is not allowed.
        StepError: storage, MLflow or Ray cannot be used.
        LockedError: the same study is under way elsewhere.
    """
    require_optuna()
    objective.check(config)
    key = study_name(config, objective, space)

    @flow(name=FLOW_NAME, flow_run_name="{name}", persist_result=False, on_crashed=[show_stopped])
    def run_study(name: str, optimize: str, trials: int) -> Optimized:
        with outage.surviving():
            begin()
            with opened(config, name) as parent:
                study, shards = Study(config, objective, space), call(shard, config)
                ended = _run_trials(study, shards, parent.mlflow_run_id, trials, at_once)
                found = Optimized(
                    sweep_id=name, parent=parent.mlflow_run_id, objective=f"eval/{objective.key}", trials=ended
                )
                if (best := study.best()) is not None:
                    logger.info("%s is the best: eval/%s %.5g", best.label, objective.key, study.value(best.number))
                    (run,) = run_children([_child(config, best, "best, ")], parent.mlflow_run_id)
                    found = found.model_copy(
                        update={"best": best.number, "value": study.value(best.number), "run": run}
                    )
                if found.failed:
                    parent.finish("FAILED")
                return found

    done: Optimized = run_study(key, f"eval/{objective.key}", trials)
    return done


def _child(config: Config, trial: Trial, prefix: str = "") -> Child:
    overrides = trial.overrides
    return Child(label=f"{prefix}{trial.label}", overrides=overrides, config=with_overrides(config, overrides))


def _run_trials(study: Study, shards: ShardSet, parent: str, most: int, at_once: int | None) -> tuple[SweptChild, ...]:
    """Run trials until the study has so many, and return what has become of each."""
    if not is_measured_early(study.config, study.objective):
        logger.info(
            "no trial is stopped early: no quick metric measures %s (snapshots.metrics and metrics_kimg)",
            study.objective.key,
        )
    crew = Children(parent, f"sweep:{parent}", to="evaluate", at_once=at_once)
    waiting, numbers, ended = study.left_open(), dict[str, int](), dict[int, SweptChild]()
    looked = float("-inf")
    try:
        while waiting or study.begun < most or crew.running:
            for child, one in crew.take_ended():
                number = numbers[child.label]
                ended[number] = _tell(study, number, one)
            if time.monotonic() - looked > READY_SECONDS:
                looked = time.monotonic()
                for child in crew.running:
                    with suppress(UserError):  # the trial itself reports what cannot be read
                        _look(study, numbers[child.label], child, shards, crew)
            # All children take the same room, so any of them says whether there is some.
            if (waiting or study.begun < most) and all(map(crew.has_room, crew.running[:1])):
                trial = waiting.pop(0) if waiting else study.ask()
                child = _child(study.config, trial)
                numbers[child.label] = trial.number
                crew.start(child)
            time.sleep(POLL_SECONDS)
    except BaseException:
        crew.stop()
        raise
    return tuple(ended[number] for number in sorted(ended))


def _tell(study: Study, number: int, one: SweptChild) -> SweptChild:
    """Tell the study what has become of a trial; one that may not fail again stays open, and is repeated by the same command."""
    if one.state == "done":
        value = study.objective.of(one.metrics)
        study.tell(number, value)
        if value is None:
            return one.model_copy(update={"state": "failed", "error": FINAL_ERRORS[0], "why": "it has no finite value"})
    elif one.state == "pruned":
        study.tell(number, None, pruned=True)
    elif one.error in FINAL_ERRORS:
        study.tell(number, None)
    return one


def _look(study: Study, number: int, child: Child, shards: ShardSet, crew: Children) -> None:
    """Report the quick values of the stages that a trial has finished, and stop it if it is not worth going on."""
    run = Run(child.config, shards)
    for stage in run.stages[:-1]:
        if stage.resolution in study.reported(number):
            continue
        if run.find_stage(stage) is None:
            return
        value = stage_value(run, stage, study.objective, shards)
        if value is not None and study.report(number, stage.resolution, value):
            crew.prune(
                child, f"quick/{study.objective.key} {value:.5g} at {stage.name}: worse than the median of the others"
            )
            return
