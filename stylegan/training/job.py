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
    previous: Checkpoint | None  # the end of the stage below, or what a warm start goes on from; None for new weights

    @property
    def is_warm(self) -> bool:
        """True if it goes on from a checkpoint of this resolution, optimizers included."""
        return self.previous is not None and self.previous.resolution == self.stage.resolution

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes that G and D are trained with, in the order of their numbers; empty without conditioning."""
        return self.shards.label_names if self.config.model.conditional else ()
