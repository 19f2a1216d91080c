"""One run in storage: the keys of its steps, the folders of their results, and the records that are there already.

A key is a digest of the keys that a step depends on, of the part of the config that it uses, and of a version constant.
Data enters by its content (the fingerprint of its shards), so moving a folder repeats nothing. `storage`, `ray`,
`tracking`, `snapshots` and `registry` are not part of what is trained or measured.
"""

from __future__ import annotations

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.page.write_page import PAGE, read_report
from stylegan.evaluation.report import EVALUATION_VERSION, Report
from stylegan.records import Record, digest
from stylegan.registry.gate import Verdict
from stylegan.training.job import StageJob
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import Checkpoint

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


class Keys(Record):
    """The keys of one run, known as soon as the fingerprint of its shards is."""

    stages: tuple[str, ...]
    evaluation: str
    registration: str
    run_id: str


def make_keys(config: Config, shards: ShardSet) -> Keys:
    """Compute the keys of every step after sharding."""
    keys, below = list[str](), ""
    common = config.training.model_dump(mode="json", exclude=set(IN_STAGE))
    # Workers and intervals are not part of what is trained, but for the batch that `auto` makes of the workers. The
    # final resolution is, since the weights of the penalties are given there.
    label_names = shards.label_names if config.model.conditional else None
    data = [shards.fingerprint, config.data.resolution, config.data.channels, label_names]
    for stage in stages(config):
        below = digest([VERSIONS["train"], below, config.seed, data, config.model, common, stage])
        keys.append(below)
    evaluation = digest([VERSIONS["evaluate"], below, shards.fingerprint, config.evaluation])
    run_id = f"{config.name}-{evaluation}"
    registration = digest([VERSIONS["register"], run_id, config.model_name])
    return Keys(stages=tuple(keys), evaluation=evaluation, registration=registration, run_id=run_id)


def gate_key(config: Config, version: str) -> str:
    """Compute the key of the verdict on a version: another gate or another version is judged anew."""
    return digest([VERSIONS["gate"], config.model_name, version, config.registry.gate])


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
