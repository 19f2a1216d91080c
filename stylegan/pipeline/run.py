"""One run in storage: the folders of its steps' results, named by their keys, and the records that are there already."""

from __future__ import annotations

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.page.write_page import PAGE, read_report
from stylegan.evaluation.report import Report
from stylegan.pipeline.keys import gate_key, make_keys
from stylegan.registry.gate import Verdict
from stylegan.training.job import StageJob
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import Checkpoint


class Run:
    """A config on the data set that its images have become. Computes keys and URIs once; writes only verdicts."""

    def __init__(self, config: Config, shards: ShardSet) -> None:
        self.config, self.shards = config, shards
        self.stages = stages(config)
        self.keys = make_keys(config, shards)
        self.root = storage.absolute(config.storage.root)
        self.uri = storage.join(self.root, "runs", self.keys.run_id)
        self._verdict_uri = storage.join(self.uri, "verdict.json")

    @property
    def run_id(self) -> str:
        """The name of the run: that of its config, and its evaluation key."""
        return self.keys.run_id

    @property
    def grid_uri(self) -> str:
        """The last sample grid of the last stage, as it is shown to people."""
        return storage.join(self.uri, "samples.png")

    @property
    def page_uri(self) -> str:
        """The page of the report."""
        return storage.join(self.uri, PAGE)

    def stage_key(self, stage: Stage) -> str:
        """Return the key of one of its stages."""
        return self.keys.stages[self.config.resolutions.index(stage.resolution)]

    def stage_uri(self, stage: Stage) -> str:
        """Return a stage's folder. It is named by its key, so runs that share a stage share its checkpoints."""
        return storage.join(self.root, "stages", f"{stage.resolution:04d}-{self.stage_key(stage)}")

    def job(self, stage: Stage, previous: Checkpoint | None) -> StageJob:
        """Return what a worker needs to train a stage that starts at the end of the stage below."""
        return StageJob(
            config=self.config,
            stage=stage,
            shards=self.shards,
            key=self.stage_key(stage),
            run_id=self.run_id,
            uri=self.stage_uri(stage),
            previous=previous,
        )

    def find_stage(self, stage: Stage) -> Checkpoint | None:
        """Return the last checkpoint of a stage that is finished and whose files still exist, else None."""
        uri = self.stage_uri(stage)
        try:
            done = storage.read_json(storage.join(uri, "done.json"))
        except FileNotFoundError:
            return None
        record = Checkpoint.model_validate(done)
        record = record.model_copy(
            update={"uri": storage.join(uri, storage.name(record.uri))}
        )  # the root may have moved
        return record if storage.exists(storage.join(record.uri, "checkpoint.json")) else None

    def find_report(self) -> Report | None:
        """Return the report of the evaluation, None if it is not finished."""
        return read_report(self.uri)

    def find_verdict(self, version: str) -> tuple[Verdict | None, bool]:
        """Return this gate's verdict on a version, if there is one, and whether the registry's aliases were moved."""
        try:
            found = storage.read_json(self._verdict_uri)
        except FileNotFoundError:
            return None, False
        if found["key"] != gate_key(self.config, version):
            return None, False
        return Verdict.model_validate(found["verdict"]), bool(found["applied"])

    def write_verdict(self, verdict: Verdict, *, applied: bool) -> None:
        """Write a verdict for `find_verdict`."""
        key = gate_key(self.config, verdict.challenger)
        content = {"key": key, "applied": applied, "verdict": verdict.model_dump(mode="json")}
        storage.write_json(self._verdict_uri, content)
