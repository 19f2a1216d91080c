"""Plan the course of a run, which steps are left and about how long each takes, and follow it through a stage.

It uses what `plan.py` uses, but it comes after the images were listed and asks neither the source nor, as long as
something is to be trained or measured, the registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.errors import StepError
from stylegan.evaluation.quick import quick_evaluation
from stylegan.pipeline.plan import count_generated, plan_registry
from stylegan.pipeline.run import Run
from stylegan.progress import CourseStep, Progress
from stylegan.training.cost import counted_evaluation, counted_seconds, stage_cost
from stylegan.training.curves import STATS, Row, mean_speed, read_rows
from stylegan.training.job import StageJob
from stylegan.training.schedule import Stage
from stylegan.training.state import newest_checkpoint

# Seconds of what hardly depends on images and networks, on two slow cores: to start the workers of a stage and write its
# end; to train the small networks of an evaluation and draw its figures; to save a version; to move aliases.
STAGE_SECONDS, EVALUATE_SECONDS, REGISTER_SECONDS, GATE_SECONDS = 12.0, 15.0, 10.0, 1.0


def course_steps(
    config: Config, run: Run | None, stages: Sequence[Stage], *, shards_done: bool, to_end: bool
) -> list[CourseStep]:
    """Return the steps of a run in order.

    Args:
        config: that of the run.
        run: what storage has of it; None as long as nothing is sharded.
        stages: those to train.
        shards_done: whether the shards are complete.
        to_end: whether evaluation, registration and gate follow.

    Raises:
        DamagedError, StepError: as the steps themselves, which report it.
    """
    steps = [CourseStep("shard", "cached" if shards_done else "run", unknown=not shards_done)]
    steps += [_stage(config, run, stage, stages[-1]) for stage in stages]
    if not to_end:
        return steps

    # The later steps wait for those before them.
    report = run.find_report() if run else None
    if report is None:
        resolution, images = config.data.resolution, count_generated(config.evaluation)
        seconds = counted_evaluation(config, resolution, images)
        steps.append(CourseStep("evaluate", known=EVALUATE_SECONDS, counted=seconds))
        states = ["run", "run"]
    else:
        assert run is not None
        steps.append(CourseStep("evaluate", "cached"))
        try:
            states = [step.state for step in plan_registry(run, report)]
        except StepError:  # the registry does not answer, or a verdict is damaged: the step says so
            states = ["run", "run"]
    for name, seconds, state in zip(("register", "gate"), (REGISTER_SECONDS, GATE_SECONDS), states, strict=True):
        steps.append(CourseStep(name, state, known=seconds if state == "run" else 0.0))
    return steps


def _stage(config: Config, run: Run | None, stage: Stage, target: Stage) -> CourseStep:
    """Return the step of one stage; arguments as for `course_steps`."""
    name, left = f"train {stage.name}", stage.num_images
    if run:
        if run.find_stage(stage):
            return CourseStep(name, "cached")
        if not run.is_needed(stage, target):
            return CourseStep(name, "not needed")
        newest = newest_checkpoint(run.stage_uri(stage))
        left = stage.end_nimg - newest.nimg if newest else left

    # The end of a stage waits for its last quick metrics.
    quick = quick_evaluation(config, stage.resolution)
    beside = counted_evaluation(config, stage.resolution, quick.num_images) if quick.metrics else 0.0
    cost = stage_cost(config, stage)
    if cost.measured and cost.images_per_second:
        return CourseStep(name, known=STAGE_SECONDS + left / cost.images_per_second, beside=beside)
    return CourseStep(name, known=STAGE_SECONDS, counted=left * counted_seconds(config, stage), beside=beside)


class StageProgress:
    """Shows the newest point of a stage's curves as progress, with the speed over the points of this command."""

    def __init__(self, config: Config, job: StageJob) -> None:
        stage = job.stage
        self.losses = [("D", "loss/d", ".3f"), ("G", "loss/g", ".3f"), ("alpha", "progress/alpha", ".2f")]
        if config.transfer:
            self.losses = [("content", "loss/content", ".3f"), ("style", "loss/style", ".3f")]
        self.stage, self.begun, self.old = stage, stage.start_nimg, list[Row]()
        with suppress(StepError):  # the workers read the same and report it
            newest = newest_checkpoint(job.uri)
            self.begun = newest.nimg if newest else self.begun
            # Points of an earlier command stay in the file until the workers have started.
            self.old = read_rows(storage.join(job.uri, STATS))[-1:]
        number = config.resolutions.index(stage.resolution) + 1
        self.progress = Progress(
            f"train {stage.name}",
            stage.num_images,
            part=(number, len(config.resolutions)),
            step=(0, 0),
            begun=self.begun - stage.start_nimg,
        )

    def show(self, rows: list[Row]) -> None:
        """Show the newest of all points of the stage."""
        if not rows or rows[-1:] == self.old:
            return
        metrics = rows[-1]["metrics"]
        shown = ", ".join(f"{name} {metrics[key]:{digits}}" for name, key, digits in self.losses if key in metrics)
        speed = mean_speed([row for row in rows if row["nimg"] > self.begun])
        self.progress.update(rows[-1]["nimg"] - self.stage.start_nimg, shown, rate=speed)
