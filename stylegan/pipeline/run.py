"""One run in storage: the folders of its steps' results, named by their keys, and the records that are there already."""

from __future__ import annotations

import os
from functools import cached_property

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.data.sharding.write_shards import find_shards, shards_uri
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.base import Source
from stylegan.data.sources.open_source import open_source
from stylegan.errors import DamagedError, StepError
from stylegan.evaluation.page.write_page import GROWTH, PAGE, REPORT, REPORT_CURE, read_report
from stylegan.evaluation.report import Report
from stylegan.pipeline.keys import Keys, former_stage_keys, gate_key, make_keys, stage_keys
from stylegan.records import Record
from stylegan.registry.gate import StoredVerdict, Verdict
from stylegan.training.curves import STATS, Row, read_rows
from stylegan.training.hardware import Hardware
from stylegan.training.job import StageJob
from stylegan.training.samples import sample_grids
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import MARKER, Checkpoint, check_folder, checkpoints
from stylegan.training.warm_start import warm_checkpoint

DONE = "done.json"  # in the folder of a finished stage: its last checkpoint, and how it was trained
VERDICT = "verdict.json"  # in the folder of a run, from its last step
VERDICT_CURE = "delete it and run the same command again, which judges anew"


def find_origin(config: Config, source: Source) -> Checkpoint | None:
    """Return what `Run.origin` returns for the stage of a warm start, also before the images are sharded.

    Raises:
        ConfigError: training cannot go on from that checkpoint.
        StepError: storage does not answer.
    """
    if config.training.warm_start is None:
        return None
    shards = find_shards(source, config.data, config.storage.root)
    if shards is None:
        return warm_checkpoint(config, source.label_names)
    run = Run(config, shards)
    return run.origin(run.stages[-1])


def find_run(config: Config) -> Run:
    """Return the run of a config, however far it has come.

    Raises:
        ConfigError: there is no such source.
        StepError: its images are not sharded yet, or storage does not answer.
    """
    source = open_source(config.data, config.storage.root)
    shards = find_shards(source, config.data, config.storage.root)
    if shards is None:
        uri = shards_uri(source, config.data, config.storage.root)
        raise StepError(
            f"{config.name}: its images are not sharded yet, or their set {uri} is damaged; run "
            f"`{config.command('train')}` first, which makes or mends it and trains what is not trained yet"
        )
    return Run(config, shards)


class _Trained(Record):
    """The entry of a stage's done.json that says on what it was trained; earlier versions wrote none."""

    hardware: Hardware | None = None


class Run:
    """A config on the data set that its images have become. Computes keys and URIs once; writes only verdicts."""

    def __init__(self, config: Config, shards: ShardSet) -> None:
        self.config, self.shards = config, shards
        self.stages = stages(config)
        self.root = storage.absolute(config.storage.root)
        self._stages_uri = storage.join(self.root, "stages")
        self._stage_keys = self._find_stage_keys()

    def _find_stage_keys(self) -> tuple[str, ...]:
        """Return the keys of the stages: those of version 0.1 if storage has as much under them, so that it goes on."""
        keys, former = stage_keys(self.config, self.shards), former_stage_keys(self.config, self.shards)
        if former == keys:
            return keys
        there = set(storage.names(self._stages_uri))

        def reach(found: tuple[str, ...]) -> int:
            names = map(_stage_folder, self.stages, found)
            return max((number for number, name in enumerate(names, start=1) if name in there), default=0)

        return former if reach(former) and reach(former) >= reach(keys) else keys

    @cached_property
    def keys(self) -> Keys:
        """The keys of all steps. Raises ConfigError as `make_keys`; the stages need only `stage_key`."""
        return make_keys(self.config, self.shards, self._stage_keys)

    @property
    def uri(self) -> str:
        """The folder of what only this run has made."""
        return storage.join(self.root, "runs", self.run_id)

    @property
    def _verdict_uri(self) -> str:
        return storage.join(self.uri, VERDICT)

    @property
    def run_id(self) -> str:
        """The name of the run: that of its config, and its evaluation key."""
        return self.keys.run_id

    @property
    def grid_uri(self) -> str:
        """The last sample grid of the last stage, as it is shown to people."""
        return storage.join(self.uri, "samples.png")

    @property
    def growth_uri(self) -> str:
        """The animation of the sample grids of all stages."""
        return storage.join(self.uri, GROWTH)

    @property
    def page_uri(self) -> str:
        """The page of the report."""
        return storage.join(self.uri, PAGE)

    def stage_key(self, stage: Stage) -> str:
        """Return the key of one of its stages."""
        return self._stage_keys[self.config.resolutions.index(stage.resolution)]

    def stage_uri(self, stage: Stage) -> str:
        """Return a stage's folder. It is named by its key, so runs that share a stage share its checkpoints."""
        return storage.join(self._stages_uri, _stage_folder(stage, self.stage_key(stage)))

    def job(self, stage: Stage, previous: Checkpoint | None) -> StageJob:
        """Return what a worker needs to train a stage; `previous` is the end of the stage below, or its `origin`."""
        return StageJob(
            config=self.config,
            stage=stage,
            shards=self.shards,
            key=self.stage_key(stage),
            run_id=self.run_id,
            uri=self.stage_uri(stage),
            previous=previous,
        )

    def origin(self, stage: Stage) -> Checkpoint | None:
        """Return the checkpoint with which a warm start begins; None without one, and once it has a checkpoint of its own.

        Raises:
            ConfigError: training cannot go on from that checkpoint.
            StepError: storage does not answer.
        """
        if self.config.training.warm_start is None or checkpoints(self.stage_uri(stage)):
            return None
        return warm_checkpoint(self.config, self.shards.label_names)

    def find_stage(self, stage: Stage) -> Checkpoint | None:
        """Return the last checkpoint of a stage that is finished and whose files still exist, else None.

        Raises:
            DamagedError: the stage's marker is not the one that was written there. It must neither count as finished
                nor let a finished stage be trained again unasked.
        """
        uri = self.stage_uri(stage)
        marker = storage.join(uri, DONE)
        cure = "delete it and run the same command again, which goes on from the newest checkpoint of the stage"
        try:
            record = storage.read_json(marker, Checkpoint, cure=cure)
        except FileNotFoundError:
            return None
        # The root may have moved; the name of the folder stays.
        record = record.model_copy(update={"uri": storage.join(uri, storage.name(record.uri))})
        check_folder(record, record.uri, origin=marker, cure=cure)
        if (record.digest, record.resolution) != (self.stage_key(stage), stage.resolution):
            raise DamagedError(
                f"{marker}: is damaged (it is of the stage {record.resolution:04d}-{record.digest}); {cure}"
            )
        return record if storage.exists(storage.join(record.uri, MARKER)) else None

    def hardware(self, stage: Stage) -> Hardware | None:
        """Return on what a finished stage was trained, None if that is not known."""
        try:
            return storage.read_json(storage.join(self.stage_uri(stage), DONE), _Trained, cure="delete it").hardware
        except FileNotFoundError:
            return None

    def is_needed(self, stage: Stage, target: Stage | None = None) -> bool:
        """Return whether an unfinished stage has to be trained on the way to `target` (the last stage if unset).

        It has not if a later stage has a checkpoint: that one is finished, or goes on from there.
        """
        highest = (target or self.stages[-1]).resolution
        later = [other for other in self.stages if stage.resolution < other.resolution <= highest]
        return not any(checkpoints(self.stage_uri(other)) for other in later)

    def curves(self) -> list[Row]:
        """Return the points of all curves so far, by image count: those of training and the quick metrics.

        Raises:
            DamagedError: a file of points is not what was written there.
        """
        from stylegan.evaluation.quick import rows_name  # brings all metrics and scikit-learn

        rows: list[Row] = []
        for stage in self.stages:
            quick = rows_name(self.config, stage.resolution, self.shards)
            for name in (STATS, quick) if quick else (STATS,):
                rows += read_rows(storage.join(self.stage_uri(stage), name))
        return sorted(rows, key=lambda row: row["nimg"])

    def samples(self, stage: Stage) -> list[str]:
        """Return the URIs of the sample grids of a stage so far, PNG files, oldest first."""
        return list(sample_grids(self.stage_uri(stage)).values())

    def find_report(self) -> Report | None:
        """Return the report of the evaluation, None if it is not finished.

        Raises:
            DamagedError: the report is not what was written there, or is that of another run.
        """
        report = read_report(self.uri)
        if report is None:
            return None
        stage = storage.name(os.path.dirname(report.checkpoint_uri.rstrip("/")))
        own = storage.name(self.stage_uri(self.stages[-1]))
        if (stage, report.dataset_fingerprint) != (own, self.shards.fingerprint):
            raise DamagedError(
                f"{storage.join(self.uri, REPORT)}: is damaged (it is of {report.checkpoint_uri}, measured against the images "
                f"{report.dataset_fingerprint}: that is another run); {REPORT_CURE}"
            )
        return report

    def find_verdict(self, version: str) -> StoredVerdict | None:
        """Return this gate's verdict on a version of this number, None if there is none; `versions.find_verdict` judges it.

        Raises:
            DamagedError: the stored verdict is not what was written. Judging anew could undo what a person decided
                since, so that is left to the user.
        """
        found = self._stored_verdict()
        if found is None or found.key != gate_key(self.config, version):
            return None
        if found.verdict.challenger != version:
            problem = f"verdict.challenger: it is on version {found.verdict.challenger}, its key on {version}"
            raise DamagedError(f"{self._verdict_uri}: is damaged ({problem}); {VERDICT_CURE}")
        return found

    def judged_against(self) -> Report | None:
        """Return the report of the champion that the last verdict was against, None if there was none or it is not known.

        Raises:
            DamagedError: the stored verdict is not what was written.
        """
        found = self._stored_verdict()
        return found.against if found else None

    def last_verdict(self) -> Verdict | None:
        """Return this gate's last verdict, whatever the version, None without one; asks no registry.

        Raises:
            DamagedError: the stored verdict is not what was written.
        """
        found = self._stored_verdict()
        if found is None or found.key != gate_key(self.config, found.verdict.challenger):
            return None
        return found.verdict

    def judged_version(self) -> str | None:
        """Return the version on which this gate's verdict is, None without one; raises as `last_verdict`."""
        verdict = self.last_verdict()
        return verdict.challenger if verdict else None

    def _stored_verdict(self) -> StoredVerdict | None:
        try:
            return storage.read_json(self._verdict_uri, StoredVerdict, cure=VERDICT_CURE)
        except FileNotFoundError:
            return None

    def write_verdict(self, verdict: Verdict, models: tuple[str, str], against: Report | None = None) -> None:
        """Write a verdict for `find_verdict`.

        Args:
            verdict: the decision.
            models: those that it is on (`versions.model_ids`).
            against: the report of the champion, as it was judged.
        """
        key = gate_key(self.config, verdict.challenger)
        found = StoredVerdict(key=key, verdict=verdict, models=models, against=against)
        storage.write_json(self._verdict_uri, found.model_dump(mode="json"))


def _stage_folder(stage: Stage, key: str) -> str:
    return f"{stage.resolution:04d}-{key}"
