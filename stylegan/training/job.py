"""The record that a worker receives to train one stage."""

from __future__ import annotations

from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.records import Record
from stylegan.training.schedule import Stage
from stylegan.training.state import Checkpoint


class StageJob(Record):
    """All that a worker needs to train one stage; the same on every rank."""

    config: Config
    stage: Stage
    shards: ShardSet
    key: str  # of the stage; a checkpoint with another key belongs to another config
    run_id: str
    uri: str  # the stage's folder in storage
    previous: Checkpoint | None  # the end of the stage below, or that of a warm start; None for new networks

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes that G and D are trained with, in the order of their numbers; empty without conditioning."""
        return self.shards.label_names if self.config.model.conditional else ()

    @property
    def is_warm(self) -> bool:
        """Return whether the stage goes on with the whole state of a checkpoint of its own resolution."""
        return self.config.training.warm_start is not None
