"""The steps of a run. Each looks in storage, else does its work, then writes its record; command line and flow call these.

A step returns its record and whether it was taken from storage. Repeating a step is always safe.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import BaseModel, computed_field

from stylegan import storage
from stylegan.cluster.node_metrics import NodeMetrics
from stylegan.cluster.parallel_map import evaluation_means, shard_in_parallel
from stylegan.cluster.session import connect, ray_session
from stylegan.cluster.spare_worker import SpareWorker
from stylegan.cluster.stage_launch import launch_stage
from stylegan.config.file import dump
from stylegan.config.tree import Config
from stylegan.data.dataset_card import read_card
from stylegan.data.sharding.write_shards import complete_set, find_content, find_shards, shard_key
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.errors import StepError, UnavailableError, UserError, decoration
from stylegan.evaluation.directions import DIRECTIONS
from stylegan.evaluation.engine import evaluate
from stylegan.evaluation.features.spaces import obtain_spaces
from stylegan.evaluation.metric_table import METRICS, split_key
from stylegan.evaluation.page.metric_rows import warnings
from stylegan.evaluation.page.published import Comparison
from stylegan.evaluation.page.run_story import Story
from stylegan.evaluation.page.write_page import compare_published, missing_figures, write_page
from stylegan.evaluation.quick import QuickMetrics, lacks_end, rows_name
from stylegan.evaluation.report import Report
from stylegan.pipeline.check_data import check_data
from stylegan.pipeline.course import StageProgress, course_steps
from stylegan.pipeline.keys import gate_key
from stylegan.pipeline.lock import LockedError, LostError, hold, run_lock, stage_lock, wait_for_clean_up
from stylegan.pipeline.preflight import check_places, check_root, check_work, use_places
from stylegan.pipeline.retraining import CONFIG_KEY, LISTING, config_key
from stylegan.pipeline.run import VERDICT, Run, find_origin, find_run
from stylegan.pipeline.story import hardware_of, hours_by_stage, parts_of, story_key, tell
from stylegan.pipeline.style_figures import draw_style_figures, redraw_figures
from stylegan.progress import Course, course
from stylegan.records import Record
from stylegan.registry import versions
from stylegan.registry.gate import Verdict, comparable, describe_old_reals, judge, lacks_interval
from stylegan.registry.versions import ModelVersion, StaleVerdictError
from stylegan.retry import insist, storage_settings
from stylegan.tracking.connection import resolve_uri
from stylegan.tracking.links import comparison_url, run_url
from stylegan.tracking.open_run import open_run
from stylegan.tracking.presentation import last_tags, note_of, progress_note
from stylegan.tracking.runs import TrackedRun
from stylegan.tracking.stage_relay import StageRelay
from stylegan.training.cost import runs_here
from stylegan.training.curves import SPEED, STATS, mean_speed, read_rows
from stylegan.training.identity import identity, place_below
from stylegan.training.job import StageJob
from stylegan.training.samples import draw_growth
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import Checkpoint
from stylegan.transfer.measure import evaluate_transfer
from stylegan.uris import redact

if TYPE_CHECKING:
    from stylegan.evaluation.drift import Drift

logger = logging.getLogger("stylegan")
R = TypeVar("R", bound=BaseModel | None)
STAGE_SECONDS = 2.0  # between two looks at a stage that another run trains


@dataclass(frozen=True)
class Done(Generic[R]):
    """A step's record, and whether it was taken from storage. The record of a stage that nothing needs is None."""

    record: R
    cached: bool


class Summary(Record):
    """Everything a run has made; `grid` and `page` are the URIs of the last sample grid and of the report's page."""

    run_id: str
    mlflow_run_id: str
    shards: ShardSet
    checkpoints: tuple[Checkpoint, ...]
    stages: tuple[dict[str, float], ...]  # the last point of each stage's curves, with the speed of the whole stage
    report: Report
    version: ModelVersion
    verdict: Verdict
    grid: str
    page: str

    @computed_field
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each value of the report that means trouble."""
        return tuple(warnings(self.report))


class Pipeline:
    """The steps of one config.

    As a context manager it holds what the steps share: the settings of storage, and the Ray session and the MLflow run,
    each opened at first use.

    Args:
        config: what to do.
        parent: MLflow's id of the run that its own is shown below.
    """

    def __init__(self, config: Config, *, parent: str | None = None) -> None:
        self.config, self.parent = config, parent
        self._stack = ExitStack()
        self._run: Run | None = None
        self._tracked: TrackedRun | None = None
        self._lock = ExitStack()
        self._claimed = False
        self._course = Course()
        self._told = set[str]()  # the steps that are said to be taken from storage
        self.version_tags: dict[str, str] = {}  # of the version that is registered, beside its own

    def __enter__(self) -> Pipeline:
        """Check what can be checked before any work.

        Raises:
            ConfigError, StepError: storage, MLflow or Ray cannot be used; see preflight.py.
        """
        with ExitStack() as stack:  # a check that fails leaves no settings behind
            stack.enter_context(storage_settings(self.config.storage))
            check_places(self.config)
            use_places(self.config)
            self._lock = stack.enter_context(ExitStack())  # released when no worker of ours is left
            stack.enter_context(ray_session())
            self._stack = stack.pop_all()
        course.set(self._course)  # here, so that every step and every thread of it has it in its context
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._course.end()
        course.set(None)
        with self._stack:
            if self._tracked is None or isinstance(error, LostError):  # the new holder goes on with it
                return
            if error is None:
                insist(lambda tracked=self._tracked: tracked.finish("FINISHED"))  # type: ignore[misc]
                return
            with suppress(StepError):  # the error that ends the block is the one to report
                self._tracked.finish("FAILED" if isinstance(error, Exception) else "KILLED")

    def run(self, shards: ShardSet) -> Run:
        """Return the keys and URIs of this config on its data set."""
        if self._run is None or self._run.shards != shards:
            self._run = Run(self.config, shards)
        return self._run

    def _claim(self, run: Run) -> None:
        """Hold the lock of the run from here to the end of the block: no other process works on it, and nothing that it needs
        is deleted.

        Raises:
            LockedError: another process holds it.
        """
        if not self._claimed:
            self._lock.enter_context(hold(run.root, run_lock(run.run_id), run_id=run.run_id, what="stylegan run"))
            wait_for_clean_up(run.root)
            self._claimed = True

    def tracked(self, shards: ShardSet) -> TrackedRun:
        """Return the MLflow run of this pipeline run, opened at the first call.

        A finished run is not continued before a step does something new.
        """
        if self._tracked is None:
            run = self.run(shards)
            storage.write_bytes(storage.join(run.uri, "config.yaml"), dump(self.config).encode())
            self._tracked = open_run(self.config, run.run_id, shards, parent=self.parent)
        return self._tracked

    def _done(self, step: str, record: R, found: R | None) -> Done[R]:
        """Return the record of a step; `found` is what storage had of it."""
        if found is not None:
            self._tell_taken(step)
        return Done(record, found is not None)

    def _tell_taken(self, *steps: str) -> None:
        for step in steps:
            if step not in self._told:
                logger.info("%s: taken from storage", step)
        self._told.update(steps)

    # --- the steps ---

    def shard(self, then: Sequence[Stage] = (), *, to_end: bool = False) -> Done[ShardSet]:
        """Write the images as shards, after checking that the run can go on to its end; log what it will do.

        Args:
            then: the stages that are trained next.
            to_end: whether evaluation, registration and gate come after them.

        Raises:
            ConfigError: the source does not exist or lacks the labels that the config asks for, training cannot go on
                from the checkpoint of a warm start, public weights that the config needs cannot be had, or the cluster
                cannot hold the workers of a stage.
            StepError: the images cannot be used, or storage refuses.
        """
        check_root(self.config.storage.root)

        # Check the listing; no image is read.
        source = open_source(self.config.data, self.config.storage.root)
        check_data(self.config, len(source.images), source.label_names, source.attribute_names)
        find_origin(self.config, source)

        # What cannot be done later ends a run now, not after days of training.
        found = find_shards(source, self.config.data, self.config.storage.root)
        is_final = found is not None and storage.name(found.uri) == shard_key(self.config.data, source)
        self._plan(found, then, shards_done=is_final, to_end=to_end)
        if found is None or self.run(found).find_report() is None:
            check_work(
                self.config, [stage for stage in then if found is None or self._is_to_train(found, stage, then[-1])]
            )
        if found is not None:
            complete_set(found, source, self.config.data, self.config.storage.root)

        # The images themselves; some may not be readable, so the check is repeated with those that are. Images that an
        # open set lacks are tried again.
        record = found if found and is_final else shard_in_parallel(source, self.config)
        check_data(self.config, record.num_images, record.label_names, record.attribute_names)
        return self._done("shard", record, found if record == found else None)

    def take(self, shards: ShardSet, then: Sequence[Stage]) -> Done[ShardSet]:
        """Go on with the shards of a run that was begun before, whatever the source holds now.

        Args:
            shards: in storage, complete.
            then: the stages that are trained next; all further steps come after them.

        Raises:
            ConfigError, StepError: as `shard` for what cannot be done later.
        """
        self._plan(shards, then, shards_done=True, to_end=True)
        if self.run(shards).find_report() is None:
            self.run(shards).origin(then[0])
            check_work(self.config, [stage for stage in then if self._is_to_train(shards, stage, then[-1])])
        return self._done("shard", shards, shards)

    def measure_drift(self, shards: ShardSet, before: str) -> Drift | None:
        """Measure how different the images are that an earlier set does not have; log it with the run.

        Args:
            shards: the images of this run.
            before: fingerprint of the earlier set.

        Returns:
            None if that set is gone, if fewer than two images are new, or if their network cannot measure them.
        """
        from stylegan.evaluation.drift import measure_drift

        found = find_content(before, self.config.storage.root)
        if found is None or found.fingerprint == shards.fingerprint:
            return None
        try:
            drift = measure_drift(shards, found, self.config.evaluation, **evaluation_means(self.config))
        except UnavailableError:
            raise
        except UserError as error:  # other networks, or other shapes of images: nothing to compare
            logger.warning("drift: cannot be measured: %s", error)
            return None
        if drift is not None:
            logger.info("drift: %s", drift.text)
        return drift

    def log_drift(self, shards: ShardSet, drift: Drift) -> None:
        """Log a drift to the MLflow run, at its first kimg."""
        values = {"drift/kid": drift.kid, "drift/kid_low": drift.low, "drift/kid_high": drift.high}
        with decoration("the drift in MLflow"):
            self.tracked(shards).log_values(values, nimg=stages(self.config)[0].start_nimg)

    def _plan(self, found: ShardSet | None, then: Sequence[Stage], *, shards_done: bool, to_end: bool) -> None:
        """Log what will run and about how long; a command of one step has nothing to say."""
        if not then:
            return
        with suppress(UserError):  # the step that meets it says so
            run = self.run(found) if found else None
            steps = course_steps(self.config, run, then, shards_done=shards_done, to_end=to_end)
            here = all(runs_here(self.config, stage.resolution) for stage in then)
            self._course.plan(self.config.name, steps, measured_here=here)
            self._course.begin("shard")

    def train(
        self, shards: ShardSet, stage: Stage, previous: Checkpoint | None, *, target: Stage | None = None
    ) -> Done[Checkpoint | None]:
        """Train one stage on Ray, unless it is finished or a later one has gone beyond it.

        Its curves, quick metrics and grids go to MLflow while it trains (all at once if it was trained before).

        Args:
            shards: the images.
            stage: the stage.
            previous: the end of the stage below; None for the first stage, and if that stage was not needed.
            target: the stage to get to; the last one if unset.

        Returns:
            The last checkpoint of the stage. None if its checkpoints are gone and a later stage, up to `target`, is
            finished or has a checkpoint to go on from.

        Raises:
            ConfigError: the cluster can never hold its workers, or training cannot go on from the checkpoint of a warm
                start.
            StepError: training or storage failed.
            Stopped: a worker was sent SIGTERM; the stage has a checkpoint of this moment.
        """
        self._course.begin(f"train {stage.name}")
        run = self.run(shards)
        self._claim(run)  # before the first look at what a clean-up might delete
        tracked = self.tracked(shards)
        with self._sole(run, stage, target) as (found, needed):
            job = run.job(stage, run.origin(stage) if needed and previous is None else previous)
            show = StageProgress(self.config, job).show if needed else None
            quick = rows_name(self.config, stage.resolution, shards)
            if needed:
                tracked.start()
            with StageRelay(tracked, job.uri, quick=quick, on_rows=show):
                record = self._train(job, tracked) if needed else found
                if found and lacks_end(job):  # it was stopped while the end of the stage was measured
                    with self._quick_metrics(job):
                        pass
        if record is None:
            logger.info("train %s: not needed, a later stage has gone beyond it", stage.name)
            return Done(None, cached=True)
        if needed:
            self._log_course(run, stage)
        return self._done(f"train {stage.name}", record, found)

    def _log_course(self, run: Run, stage: Stage) -> None:
        """Log how far a run has come at the end of a stage: its hours, and its note."""
        tracked = self.tracked(run.shards)
        with decoration(f"the course of the run after {stage.name} in MLflow"):
            self._log_hours(run)
            quick = [
                value
                for row in run.curves()
                for name, value in row["metrics"].items()
                if row["resolution"] == stage.resolution and name.startswith("quick/") and _is_fid(name)
            ]
            best = f"; lowest quick FID {min(quick):.4g}" if quick else ""
            words = (
                f"{stage.name} is trained, {stage.end_nimg / 1000:,g} of {run.stages[-1].end_nimg / 1000:,g} kimg{best}"
            )
            tracked.log_note(progress_note(tell(run, links=self._links(tracked)), words))

    def _log_hours(self, run: Run) -> None:
        """Log the hours of training and of GPUs until the end of each stage, unless MLflow has them."""
        for nimg, resolution, hours, gpus in hours_by_stage(run):
            metrics = {"time/train_hours": hours} | ({"time/gpu_hours": gpus} if gpus else {})
            self.tracked(run.shards).log_hours([{"nimg": nimg, "resolution": resolution, "metrics": metrics}])

    def _links(self, tracked: TrackedRun) -> dict[str, str]:
        """Return the addresses at which MLflow shows a run, by what is there."""
        run, others = run_url(self.config, tracked.mlflow_run_id), comparison_url(self.config)
        found = {"This run in MLflow": run, "Beside the others": others}
        return {name: address for name, address in found.items() if address}

    @contextmanager
    def _sole(self, run: Run, stage: Stage, target: Stage | None) -> Iterator[tuple[Checkpoint | None, bool]]:
        """Hold the lock of a stage that is not finished: another run that trains it is waited for, and goes first.

        Yields:
            The end of the stage, if it is finished, and whether it is to be trained.
        """

        def look() -> tuple[Checkpoint | None, bool]:
            found = run.find_stage(stage)
            return found, found is None and run.is_needed(stage, target)

        told = False
        with ExitStack() as held:
            while True:
                found, needed = look()
                if not needed and (found is None or not lacks_end(run.job(stage, None))):
                    break
                name = stage_lock(storage.name(run.stage_uri(stage)))
                try:
                    held.enter_context(hold(run.root, name, run_id=run.run_id, what="stylegan run"))
                except LockedError as error:
                    if not told:
                        logger.info(
                            "train %s: %s trains this very stage; waiting for its end",
                            stage.name,
                            error.holder.run_id or "another run",
                        )
                    told = True
                    time.sleep(STAGE_SECONDS)
                    continue
                found, needed = look()  # it may be finished since
                break
            yield found, needed

    def _is_to_train(self, shards: ShardSet, stage: Stage, target: Stage) -> bool:
        run = self.run(shards)
        return run.find_stage(stage) is None and run.is_needed(stage, target)

    def _train(self, job: StageJob, tracked: TrackedRun) -> Checkpoint:
        def on_event(name: str, value: int, nimg: int) -> None:
            with decoration(f"train {job.stage.name}: the event {name} in MLflow"), suppress(UnavailableError):
                tracked.log_event(name, value, nimg=nimg)

        with self._quick_metrics(job), NodeMetrics() as nodes, tracked.with_nodes(nodes.read):
            if self.config.transfer:  # a worker would train its encoder without a word
                obtain_spaces(self.config.evaluation, job.shards, **evaluation_means(self.config))
            return launch_stage(job, on_event=on_event, on_nodes=nodes.follow)

    def _quick_metrics(self, job: StageJob) -> QuickMetrics:
        connect(self.config.ray)  # here, so that two threads do not do it at the same time
        return QuickMetrics(job, SpareWorker(), root=self._root)

    def evaluate(self, shards: ShardSet, checkpoint: Checkpoint) -> Done[Report]:
        """Measure the averaged generator of a checkpoint by the metrics of the config, in parallel on Ray."""
        self._course.begin("evaluate")
        run = self.run(shards)
        self._claim(run)
        found = run.find_report()
        report = found
        if found is None or not storage.exists(run.grid_uri):
            with decoration("evaluate: the sample grid"):
                storage.write_bytes(run.grid_uri, storage.read_bytes(self._last_samples(run)))
        new_page = found is None
        if found is None or not storage.exists(run.growth_uri):
            with decoration("evaluate: the animation of the sample grids"):
                folders = {stage.resolution: run.stage_uri(stage) for stage in run.stages}
                storage.write_bytes(run.growth_uri, draw_growth(folders))
                new_page = True  # that shows it
        if report is None:
            self.tracked(shards).start()
            report = self._evaluate(shards, checkpoint.uri, out=run.uri)
            with decoration("evaluate: the figures of its styles"):
                figures = report.figures | draw_style_figures(run, checkpoint.uri)
                report = report.model_copy(update={"figures": figures})
            storage.write_json(storage.join(run.uri, "report.json"), report.model_dump(mode="json"))
        elif missing := missing_figures(report):
            with decoration(f"evaluate: the figures {', '.join(sorted(missing))}"):
                redraw_figures(run, checkpoint.uri, missing)

        verdict: Verdict | None = None
        if found:  # a page that was lost tells it again
            with decoration("evaluate: the verdict on the page"):
                verdict = run.last_verdict()
        page = self._write_page(run, report, verdict, self._story(run, report, verdict), anew=new_page)
        self.tracked(shards).log_report(
            report,
            nimg=checkpoint.nimg,
            page_uri=page,
            growth_uri=run.growth_uri,
            directions_uri=storage.join(run.uri, DIRECTIONS),
        )
        return self._done("evaluate", report, found)

    def _write_page(
        self, run: Run, report: Report, verdict: Verdict | None, story: Callable[[], Story], *, anew: bool = False
    ) -> str:
        """Write the page of a run unless it is there and tells the verdict, if there is one; return its URI."""
        return write_page(
            report,
            run.uri,
            title=run.run_id,
            published=self.published(run.shards, report),
            facts={"Run": run.run_id, "Images": self.config.data.source},
            data=read_card(run.shards.uri),
            told=lambda: parts_of(run, story()),
            key=story_key(verdict) if verdict else "",
            anew=anew,
        )

    def _publish(self, run: Run, report: Report, verdict: Verdict) -> None:
        """Tell the verdict on the page of a run and in MLflow; do nothing where they tell it already.

        People read them and nothing else does, so a failure is a warning.
        """
        tracked, key, story = self.tracked(run.shards), story_key(verdict), self._story(run, report, verdict)
        with decoration("the page and the note of the run"):
            page = self._write_page(run, report, verdict, story)
            if not tracked.tells(key):
                self._log_hours(run)
                note = note_of(story(), report, tracked.mlflow_run_id)
                tracked.log_story(key, note, last_tags(story(), report, hardware_of(run)), page)

    def _story(self, run: Run, report: Report, verdict: Verdict | None) -> Callable[[], Story]:
        """Return what tells the story of a run, and looks everything up at its first call."""

        @cache
        def story() -> Story:
            if verdict is None:
                return tell(run, report)
            tracked = self.tracked(run.shards)
            return tell(
                run,
                report,
                verdict=verdict,
                against=run.judged_against(),
                previous=tracked.run_before(),
                links=self._links(tracked),
            )

        return story

    def published(self, shards: ShardSet, report: Report) -> list[Comparison]:
        """Return the published figures beside those of a report."""
        return compare_published(report, self.config, shards.num_images)

    @property
    def _root(self) -> str:
        return storage.absolute(self.config.storage.root)

    def _evaluate(self, shards: ShardSet, checkpoint_uri: str, *, out: str | None) -> Report:
        means = evaluation_means(self.config)
        if self.config.transfer:
            return evaluate_transfer(checkpoint_uri, shards, self.config, out_uri=out, **means)
        return evaluate(checkpoint_uri, shards, self.config.evaluation, out_uri=out, **means)

    def _last_samples(self, run: Run) -> str:
        """Return the URI of the last sample grid. Raises StepError if there is none."""
        found = run.samples(run.stages[-1])
        if not found:
            raise StepError(f"{run.stage_uri(run.stages[-1])}: holds no sample grid")
        return found[-1]

    def register(self, shards: ShardSet, checkpoint: Checkpoint, report: Report) -> Done[ModelVersion]:
        """Register a version of the model, as challenger."""
        self._course.begin("register")
        run = self.run(shards)
        self._claim(run)
        key = run.keys.registration
        found = versions.find_version(self.config, key)
        tags = self._version_tags(shards)
        if found:
            versions.tag(self.config, found.version, tags)
            return self._done("register", found, found)
        if run.judged_version():
            logger.info(
                "register: the registry %s does not have this run any more; it is registered again",
                redact(resolve_uri(self.config)),
            )
        tracked = self.tracked(shards)
        tracked.start()
        record = versions.register(
            self.config,
            mlflow_run_id=tracked.mlflow_run_id,
            checkpoint=checkpoint.uri,
            shards=shards,
            report=report,
            key=key,
            tags=tags,
        )
        return self._done("register", record, None)

    def _version_tags(self, shards: ShardSet) -> dict[str, str]:
        """Return the tags of a version that say what it was trained on; later checks of a retraining go by them."""
        return {
            "stylegan.source": redact(self.config.data.source),
            "stylegan.dataset_key": storage.name(shards.uri),
            "stylegan.num_images": str(shards.num_images),
            CONFIG_KEY: config_key(self.config),
            LISTING: storage.name(shards.uri),  # of a set that lacks no image; a retraining says it itself
            **self.version_tags,
        }

    def gate(self, shards: ShardSet, version: ModelVersion, report: Report) -> Done[Verdict]:
        """Judge the version against the champion and move the aliases.

        The verdict is written before the aliases move, so a kill in between neither loses it nor judges twice. Whether they
        have moved is what the registry says: one that was emptied, replaced or changed by hand is put right.
        """
        self._course.begin("gate")
        run = self.run(shards)
        self._claim(run)
        stored, key = run.find_verdict(version.version), gate_key(self.config, version.version)
        verdict = versions.find_verdict(self.config, version.version, key, stored)
        if verdict and versions.is_applied(self.config, verdict):
            if stored is None or stored.verdict != verdict:  # that of another registry; the next repeat finds this one
                run.write_verdict(verdict, versions.model_ids(self.config, verdict))
            self._publish(run, report, verdict)
            return self._done("gate", verdict, verdict)
        if stored and not verdict:
            logger.info(
                "gate: the stored verdict is not on the models that the registry %s has; judging anew",
                redact(resolve_uri(self.config)),
            )
        try:
            verdict = verdict or self._judge(run, version, report)
            versions.apply_verdict(self.config, verdict, key)
        except StaleVerdictError:  # another version has become champion since it was judged
            verdict = self._judge(run, version, report)
            versions.apply_verdict(self.config, verdict, key)
        self._publish(run, report, verdict)
        return self._done("gate", verdict, None)

    def _judge(self, run: Run, version: ModelVersion, report: Report) -> Verdict:
        champion_version, champion = versions.champion(self.config) or (None, None)
        before = champion
        gate = self.config.registry.gate
        other = champion is not None and identity(champion.checkpoint_uri) != identity(report.checkpoint_uri)
        # Without an interval of its own the challenger loses anyway; measured like it, the champion would lose its own.
        tested = champion is not None and not lacks_interval(report, champion, gate)
        if champion and other and tested and not comparable(report, champion, gate):
            again = self._evaluate_again(run.shards, champion, "champion")
            if again is not champion and not comparable(report, again, gate):
                # The challenger's own report was found, and an earlier version of this program has written it.
                report = self._evaluate_again(run.shards, report, "challenger")
            champion = again
        verdict = judge(report, champion, gate, challenger_version=version.version, champion_version=champion_version)
        if before and other and before.dataset_fingerprint != run.shards.fingerprint:
            beside = self._on_old_reals(report, before)
            verdict = verdict.model_copy(update={"reasons": (*verdict.reasons, *([beside] if beside else []))})
        run.write_verdict(verdict, versions.model_ids(self.config, verdict), champion)
        return verdict

    def _on_old_reals(self, report: Report, champion: Report) -> str | None:
        """Return in a sentence how the challenger measures on the images that the champion was judged on.

        None if these are gone or cannot be compared with.
        """
        gate, evaluation = self.config.registry.gate, self.config.evaluation
        if self.config.transfer:  # its held-out images are others in each set
            return None
        metrics = tuple(name for name in evaluation.metrics if gate.metric in METRICS[name].gate)[:1]
        old = find_content(champion.dataset_fingerprint, self.config.storage.root)
        if old is None or not metrics:
            return None
        logger.info("gate: measuring the challenger on the champion's images too")
        only = evaluation.model_copy(update={"metrics": metrics})
        try:
            again = evaluate(place_below(self._root, report.checkpoint_uri), old, only, **evaluation_means(self.config))
        except UnavailableError:
            raise
        except StepError as error:
            logger.warning("gate: the challenger cannot be measured on the champion's images: %s", error)
            return None
        return describe_old_reals(again, champion, gate)

    def _evaluate_again(self, shards: ShardSet, report: Report, whose: str) -> Report:
        """Measure a model on these images and under today's protocol; if it cannot be, keep its report."""
        logger.info("gate: the %s was measured on other images or under another protocol; measuring it again", whose)
        try:
            return self._evaluate(shards, place_below(self._root, report.checkpoint_uri), out=None)
        except UnavailableError:
            raise  # a moment's outage must not become a verdict
        except StepError as error:
            logger.warning("gate: the %s cannot be measured again: %s", whose, error)
            return report

    # --- a finished run ---

    def repeat(self) -> Summary | None:
        """Take a finished run from storage, step by step, and return its summary; None if a step is left to do.

        The steps themselves are called, so what a killed run has left in MLflow is mended as in any other run.
        """
        if not self._is_finished():
            return None
        self._claimed = True  # nothing is left to do, so it needs no lock, and no other process is in its way
        shards = self.shard().record
        checkpoints: list[Checkpoint | None] = [None]
        for stage in stages(self.config):
            checkpoints.append(self.train(shards, stage, checkpoints[-1]).record)
        last = checkpoints[-1]
        assert last is not None  # nothing goes beyond the last stage
        report = self.evaluate(shards, last).record
        version = self.register(shards, last, report).record
        verdict = self.gate(shards, version, report).record
        return self.summarize(shards, checkpoints, report, version, verdict)

    def _is_finished(self) -> bool:
        """Return whether storage and registry have the result of every step; writes nothing to them.

        What storage has of them is said as soon as that is known.

        What cannot be read counts as unfinished: its own step reports it, or tries it again.
        """
        data, root = self.config.data, self.config.storage.root
        with suppress(UserError):
            # Without a run of this name that came to its end, no look at the images, of which there may be millions.
            runs, prefix = storage.join(self._root, "runs"), f"{self.config.name}-"
            ours = (storage.join(runs, name, VERDICT) for name in storage.names(runs) if name.startswith(prefix))
            if not any(map(storage.exists, ours)):
                return False
            source = open_source(data, root)
            shards = find_shards(source, data, root)
            if shards is None or storage.name(shards.uri) != shard_key(data, source):
                return False
            run = self.run(shards)
            for stage in run.stages:
                found = run.find_stage(stage)
                if run.is_needed(stage) if found is None else lacks_end(run.job(stage, None)):
                    return False
            report = run.find_report()
            if run.find_stage(run.stages[-1]) is None or report is None or missing_figures(report):
                return False
            if run.judged_version() is None:
                return False
            # Before MLflow, whose import takes as long as all of this.
            self._tell_taken(
                "shard", *(f"train {stage.name}" for stage in run.stages if run.find_stage(stage)), "evaluate"
            )
            version = versions.find_version(self.config, run.keys.registration)
            if version is None:
                return False
            key = gate_key(self.config, version.version)
            verdict = versions.find_verdict(self.config, version.version, key, run.find_verdict(version.version))
            return verdict is not None and versions.is_applied(self.config, verdict)
        return False

    # --- single steps, for the command line ---

    def train_until(self, resolution: int) -> Done[Checkpoint]:
        """Write the shards and train all stages up to one resolution."""
        wanted = [stage for stage in stages(self.config) if stage.resolution <= resolution]
        shards, checkpoint = self.shard(then=wanted).record, None
        for stage in wanted:
            done = self.train(shards, stage, checkpoint, target=wanted[-1])
            checkpoint = done.record
        assert checkpoint is not None  # the target is always needed
        return Done(checkpoint, done.cached)

    def evaluate_trained(self) -> tuple[Done[Report], list[Comparison], str]:
        """Evaluate the end of the last stage; return also the published figures beside its own, and the URI of the page.

        Raises:
            StepError: it is not trained.
        """
        shards, checkpoint = self._trained("evaluate")
        done = self.evaluate(shards, checkpoint)
        return done, self.published(shards, done.record), self.run(shards).page_uri

    def register_evaluated(self) -> Done[ModelVersion]:
        """Register the evaluated model. Raises StepError if it is not evaluated."""
        shards, checkpoint = self._trained("register")
        report = self.run(shards).find_report()
        if report is None:
            raise StepError(
                f"register: this config is not evaluated yet; run `{self.config.command('evaluate')}` first"
            )
        return self.register(shards, checkpoint, report)

    def _trained(self, step: str) -> tuple[ShardSet, Checkpoint]:
        """Return the shards and the end of the last stage. Raises StepError if there is none."""
        run = find_run(self.config)
        stage = run.stages[-1]
        found = run.find_stage(stage)
        if found is None:
            raise StepError(
                f"{step}: stage {stage.name} of this config is not trained yet; run `{self.config.command('train')}` first"
            )
        return run.shards, found

    def summarize(
        self,
        shards: ShardSet,
        checkpoints: Sequence[Checkpoint | None],
        report: Report,
        version: ModelVersion,
        verdict: Verdict,
    ) -> Summary:
        """Return the records of a finished run with the ids, curves and files that belong to them, aliases as they are now."""
        run = self.run(shards)
        rows = [read_rows(storage.join(run.stage_uri(stage), STATS)) for stage in run.stages]
        return Summary(
            run_id=run.run_id,
            mlflow_run_id=self.tracked(shards).mlflow_run_id,
            shards=shards,
            checkpoints=tuple(checkpoint for checkpoint in checkpoints if checkpoint),
            stages=tuple(found[-1]["metrics"] | {SPEED: mean_speed(found)} for found in rows if found),
            report=report,
            version=versions.find_version(self.config, run.keys.registration) or version,
            verdict=verdict,
            grid=run.grid_uri,
            page=run.page_uri,
        )


def _is_fid(name: str) -> bool:
    return split_key(name.partition("/")[2])[0] == "fid"
