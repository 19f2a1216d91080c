"""The steps of a run: each looks in storage, else does its work, then leaves its record. Command line and flow call these.

A step returns its record and whether it was taken from storage. Repeating a step is always safe.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from stylegan import cluster, storage, tracking
from stylegan.config import Config
from stylegan.config_file import dump
from stylegan.data.card import read_card
from stylegan.data.shards import ShardSet, find_shards
from stylegan.data.sources import open_source
from stylegan.errors import ConfigError, StepError, UnavailableError
from stylegan.evaluation import weights
from stylegan.evaluation.engine import evaluate
from stylegan.evaluation.page import PAGE, compare_published, write_page
from stylegan.evaluation.published import Comparison
from stylegan.evaluation.quick import QuickMetrics, lacks_end, rows_name
from stylegan.evaluation.report import Report
from stylegan.patience import use_settings
from stylegan.plan import (
    check_data,
    find_report,
    find_stage,
    find_verdict,
    make_keys,
    root,
    run_uri,
    stage_uri,
    write_verdict,
)
from stylegan.progress import Progress
from stylegan.registry import store
from stylegan.registry.gate import Verdict, comparable, judge
from stylegan.registry.store import ModelVersion, StaleVerdictError
from stylegan.spare import SpareWorker
from stylegan.tracking import StageRelay, TrackedRun
from stylegan.training.curves import read_rows
from stylegan.training.job import StageJob
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import Checkpoint

logger = logging.getLogger("stylegan")
R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True)
class Done(Generic[R]):
    """A step's record, and whether it was there already."""

    record: R
    cached: bool


class Summary(BaseModel):
    """Everything a run has made; `grid` and `page` are the URIs of the last sample grid and of the report's page."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    mlflow_run_id: str
    shards: ShardSet
    checkpoints: tuple[Checkpoint, ...]
    stages: tuple[dict[str, float], ...]  # the last point of each stage's curves
    report: Report
    version: ModelVersion
    verdict: Verdict
    grid: str
    page: str


def _done(step: str, record: R, found: R | None) -> Done[R]:
    if found is not None:
        logger.info("%s: cached, taken from storage", step)
    return Done(record, found is not None)


class Pipeline:
    """The steps of one config. As a context it holds what they share: the Ray session and the MLflow run, each opened at first use."""

    def __init__(self, config: Config) -> None:
        self.config = config
        use_settings(config.storage)
        self._stack = ExitStack()
        self._run: TrackedRun | None = None

    def __enter__(self) -> Pipeline:
        """Check what can be checked before any work.

        Raises:
            ConfigError, StepError: MLflow or Ray does not answer, or its address cannot work.
        """
        if self.config.storage.root.startswith("memory://"):
            raise ConfigError(
                "storage.root=memory://: workers cannot see the memory of another process; use a folder or a bucket"
            )
        tracking.check_server(tracking.resolve_uri(self.config))
        cluster.check_address(self.config.ray)
        self._stack.enter_context(cluster.session())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if self._run is None:
                return
            if error is None:
                self._run.finish("FINISHED")
                return
            with suppress(StepError):  # the failure itself is what must be told
                self._run.finish("FAILED" if isinstance(error, Exception) else "KILLED")

    def shard(self) -> Done[ShardSet]:
        """Images to shards.

        Raises:
            ConfigError: the source does not exist, the config asks for labels that it does not have, or for weights that cannot be had.
            StepError: the images cannot be used, or storage refuses.
        """
        data = self.config.data
        source = open_source(data)
        check_data(self.config, len(source.images), source.label_names, source.attribute_names)
        found = find_shards(source, data, root(self.config))
        if found is None or find_report(self.config, make_keys(self.config, found).run_id) is None:
            weights.fetch_all(self.config.evaluation)  # what cannot be had ends a run now, not after days of training
        record = found or cluster.shard(source, self.config)
        check_data(
            self.config, record.num_images, record.label_names, record.attribute_names
        )  # without those that could not be read
        return _done("shard", record, found)

    def tracked(self, shards: ShardSet) -> TrackedRun:
        """The MLflow run of this pipeline run, opened or continued."""
        if self._run is None:
            run_id = make_keys(self.config, shards).run_id
            storage.write_bytes(storage.join(run_uri(self.config, run_id), "config.yaml"), dump(self.config).encode())
            self._run = tracking.open_run(self.config, run_id, shards)
        return self._run

    def train(self, shards: ShardSet, stage: Stage, previous: Checkpoint | None) -> Done[Checkpoint]:
        """One stage on Ray; its curves, quick metrics and grids go to MLflow while it trains (all at once if it was trained before).

        Raises:
            ConfigError: the cluster can never hold its workers.
            StepError: training or storage failed.
        """
        keys = make_keys(self.config, shards)
        key = keys.stages[self.config.resolutions.index(stage.resolution)]
        uri = stage_uri(self.config, stage, key)
        found = find_stage(self.config, stage, key)
        show = None if found else partial(_show, Progress(f"train {stage.name}", stage.num_images), stage)
        with StageRelay(self.tracked(shards), uri, quick=rows_name(self.config, stage.resolution), on_rows=show):
            job = StageJob(
                config=self.config, stage=stage, shards=shards, key=key, run_id=keys.run_id, uri=uri, previous=previous
            )
            record = found or self._train(job)
            if found and lacks_end(job):  # stopped while the end of the stage was measured
                with self._quick_metrics(job):
                    pass
        return _done(f"train {stage.name}", record, found)

    def _train(self, job: StageJob) -> Checkpoint:
        with self._quick_metrics(job):
            return cluster.train(job)

    def _quick_metrics(self, job: StageJob) -> QuickMetrics:
        cluster.connect(self.config.ray)  # here, so that not two threads do it at the same time
        return QuickMetrics(job, SpareWorker(), root=root(self.config))

    def evaluate(self, shards: ShardSet, checkpoint: Checkpoint) -> Done[Report]:
        """The metrics of the config on the averaged generator of a checkpoint, in parallel on Ray."""
        config, run_id = self.config, make_keys(self.config, shards).run_id
        out = run_uri(config, run_id)
        found = find_report(config, run_id)
        report = found
        if report is None:
            storage.write_bytes(storage.join(out, "samples.png"), storage.read_bytes(self._last_samples(shards)))
            report = self._evaluate(shards, checkpoint.uri, out=out)
            storage.write_json(storage.join(out, "report.json"), report.model_dump(mode="json"))
        run = self.tracked(shards)
        facts = {"Run": run_id, "Images": config.data.source}
        page = write_page(
            report, out, title=run_id, published=self.published(shards, report), facts=facts, data=read_card(shards.uri)
        )
        run.log_report(report, page)
        return _done("evaluate", report, found)

    def published(self, shards: ShardSet, report: Report) -> list[Comparison]:
        """The published figures beside those of a report."""
        return compare_published(report, self.config, shards.num_images)

    def _evaluate(self, shards: ShardSet, checkpoint_uri: str, *, out: str | None) -> Report:
        config = self.config
        device = "cuda" if config.workers_at(config.data.resolution).gpus_per_worker else "cpu"
        where = root(config)
        return evaluate(
            checkpoint_uri, shards, config.evaluation, root=where, pmap=self._parallel_map, device=device, out_uri=out
        )

    def _parallel_map(self, function: Any, items: Iterable[T]) -> Iterator[Any]:
        return cluster.parallel_map(function, items, self.config)

    def _last_samples(self, shards: ShardSet) -> str:
        stage, key = stages(self.config)[-1], make_keys(self.config, shards).stages[-1]
        folder = storage.join(stage_uri(self.config, stage, key), "samples")
        return storage.join(folder, max(name for name in storage.names(folder) if name[0].isdigit()))

    def register(self, shards: ShardSet, checkpoint: Checkpoint, report: Report) -> Done[ModelVersion]:
        """A version of the model in the registry, as challenger."""
        key = make_keys(self.config, shards).registration
        found = store.find_version(self.config, key)
        record = found or store.register(
            self.config,
            mlflow_run_id=self.tracked(shards).mlflow_run_id,
            checkpoint=checkpoint.uri,
            report=report,
            key=key,
        )
        return _done("register", record, found)

    def gate(self, shards: ShardSet, version: ModelVersion, report: Report) -> Done[Verdict]:
        """Judge the version against the champion and move the aliases.

        The verdict is kept before the aliases move and marked when they have: a kill in between neither loses it nor judges twice.
        """
        run_id = make_keys(self.config, shards).run_id
        applied, verdict = find_verdict(self.config, run_id, version.version)
        if verdict and applied:
            return _done("gate", verdict, verdict)
        try:
            verdict = self._apply(run_id, verdict or self._judge(run_id, shards, version, report))
        except StaleVerdictError:  # another version became champion since it was judged
            verdict = self._apply(run_id, self._judge(run_id, shards, version, report))
        return _done("gate", verdict, None)

    def _judge(self, run_id: str, shards: ShardSet, version: ModelVersion, report: Report) -> Verdict:
        champion_version, champion = store.champion(self.config) or (None, None)
        gate = self.config.registry.gate
        if (
            champion
            and champion.checkpoint_uri != report.checkpoint_uri
            and not comparable(report, champion, gate.metric)
        ):
            champion = self._evaluate_again(shards, champion)
        verdict = judge(report, champion, gate, challenger_version=version.version, champion_version=champion_version)
        write_verdict(self.config, run_id, verdict, applied=False)
        return verdict

    def _evaluate_again(self, shards: ShardSet, champion: Report) -> Report:
        """The champion measured like the challenger: on these images, under this protocol. As it was, if it cannot be."""
        logger.info("gate: the champion was measured on other images or under another protocol; measuring it again")
        try:
            return self._evaluate(shards, champion.checkpoint_uri, out=None)
        except UnavailableError:
            raise  # a moment's outage must not become a verdict
        except StepError as error:
            logger.warning("gate: the champion cannot be measured again: %s", error)
            return champion

    def _apply(self, run_id: str, verdict: Verdict) -> Verdict:
        store.apply_verdict(self.config, verdict)
        write_verdict(self.config, run_id, verdict, applied=True)
        return verdict

    def train_until(self, resolution: int) -> Done[Checkpoint]:
        """Shards, and all stages up to one resolution."""
        shards, done = self.shard().record, None
        for stage in stages(self.config):
            if stage.resolution <= resolution:
                done = self.train(shards, stage, done.record if done else None)
        assert done is not None
        return done

    def evaluate_trained(self) -> tuple[Done[Report], list[Comparison], str]:
        """Evaluate the end of the last stage; also the published figures beside its own, and the URI of the page.

        Raises:
            StepError: it is not trained.
        """
        shards, checkpoint = self._trained("evaluate")
        done = self.evaluate(shards, checkpoint)
        page = storage.join(run_uri(self.config, make_keys(self.config, shards).run_id), PAGE)
        return done, self.published(shards, done.record), page

    def register_evaluated(self) -> Done[ModelVersion]:
        """Register the evaluated model. Raises StepError if it is not evaluated."""
        shards, checkpoint = self._trained("register")
        report = find_report(self.config, make_keys(self.config, shards).run_id)
        if report is None:
            raise StepError("register: this config is not evaluated yet; run `stylegan evaluate` with it first")
        return self.register(shards, checkpoint, report)

    def _trained(self, step: str) -> tuple[ShardSet, Checkpoint]:
        shards = find_shards(open_source(self.config.data), self.config.data, root(self.config))
        stage = stages(self.config)[-1]
        found = find_stage(self.config, stage, make_keys(self.config, shards).stages[-1]) if shards else None
        if shards is None or found is None:
            raise StepError(
                f"{step}: stage {stage.name} of this config is not trained yet; run `stylegan train` with it first"
            )
        return shards, found

    def summarize(
        self,
        shards: ShardSet,
        checkpoints: Sequence[Checkpoint],
        report: Report,
        version: ModelVersion,
        verdict: Verdict,
    ) -> Summary:
        """Return the records of a finished run with the ids, curves and files that belong to them, aliases as they are now."""
        keys = make_keys(self.config, shards)
        folders = [
            stage_uri(self.config, stage, key) for stage, key in zip(stages(self.config), keys.stages, strict=True)
        ]
        rows = [read_rows(storage.join(folder, "stats.jsonl")) for folder in folders]
        return Summary(
            run_id=keys.run_id,
            mlflow_run_id=self.tracked(shards).mlflow_run_id,
            shards=shards,
            checkpoints=tuple(checkpoints),
            stages=tuple(found[-1]["metrics"] for found in rows if found),
            report=report,
            version=store.find_version(self.config, keys.registration) or version,
            verdict=verdict,
            grid=storage.join(run_uri(self.config, keys.run_id), "samples.png"),
            page=storage.join(run_uri(self.config, keys.run_id), PAGE),
        )


def _show(progress: Progress, stage: Stage, rows: list[dict]) -> None:
    if rows:
        metrics = rows[-1]["metrics"]
        losses = f"D {metrics['loss/d']:.3f}, G {metrics['loss/g']:.3f}, alpha {metrics['progress/alpha']:.2f}"
        progress.update(rows[-1]["nimg"] - stage.start_nimg, losses)
