"""The keys of a run's steps: digests by which finished work is found in storage.

A key is a digest of the keys that a step depends on, of the part of the config that it uses, and of a version constant.
Data enters by its content (the fingerprint of its shards), so moving a folder repeats nothing. `storage`, `ray`,
`tracking`, `snapshots` and `registry` are not part of what is trained or measured.
"""

from __future__ import annotations

from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.report import EVALUATION_VERSION
from stylegan.records import Record, digest
from stylegan.training.schedule import stages

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
