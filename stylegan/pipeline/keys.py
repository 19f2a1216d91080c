"""The keys of a run's steps: digests by which finished work is found in storage.

A key is a digest of the keys that a step depends on, of the part of the config that it uses, and of a version constant.
Data enters by its content (the fingerprint of its shards), so moving a folder repeats nothing. Labels are part of what a
conditional model is trained on, and of what an evaluation measures with. An unconditional model is trained on the
images and their order alone, so its stages stay when labels are added, removed or corrected. `storage`, `ray`,
`tracking`, `snapshots` and `registry` are not part of what is trained or measured.
"""

from __future__ import annotations

from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.protocol import deciding_settings, network_settings
from stylegan.evaluation.report import EVALUATION_VERSION
from stylegan.records import Record, digest
from stylegan.training.schedule import stages

# Raise one when the step's result changes for the same config: finished work of that step is then done again. A
# correction so small that nobody would train again for it may leave it. "train" stayed 2 when alpha and the reset of Adam
# moved to the exact end of a fade, by at most one look at the schedule, and when fp16 and TF32 were corrected.
VERSIONS = {"train": 2, "transfer": 1, "evaluate": EVALUATION_VERSION, "register": 1, "gate": 1}

# Settings of training that act through a stage's own length, batch and learning rate only.
IN_STAGE = (
    "stages",
    "fade_kimg",
    "stable_kimg",
    "total_kimg",
    "batch",
    "learning_rate",
    "learning_rate_scaling",
    "warm_start",  # and through its checkpoint, which takes the place of the stage below
)
# Settings of training that change its speed and memory, and the weights by no more than rounding.
OF_SPEED = ("max_batch_per_worker", "cuda_graphs")


class Keys(Record):
    """The keys of one run, known as soon as the fingerprint of its shards is."""

    stages: tuple[str, ...]
    evaluation: str
    registration: str
    run_id: str


def stage_keys(config: Config, shards: ShardSet) -> tuple[str, ...]:
    """Compute the keys of the stages, the first stage first."""
    warm = config.training.warm_start
    keys, below = list[str](), warm.identity if warm else ""
    common = config.training.identity({*IN_STAGE, *OF_SPEED})
    # Workers and intervals are not part of what is trained, but for the batch that `auto` makes of the workers. The
    # final resolution is, since the weights of the penalties are given there.
    labels = config.model.conditional
    fingerprint = shards.fingerprint if labels else shards.images_fingerprint or shards.fingerprint
    data = [fingerprint, config.data.resolution, config.data.channels, shards.label_names if labels else None]
    if config.transfer:
        return (_transfer_key(config, shards),)
    for stage in stages(config):
        shape = stage.model_dump(mode="json", exclude={"d_steps"})  # which is in `common`, if it is not 1
        below = digest([VERSIONS["train"], below, config.seed, data, config.model.identity(), common, shape])
        keys.append(below)
    return tuple(keys)


def _transfer_key(config: Config, shards: ShardSet) -> str:
    """Compute the key of the training of a style transfer. Its encoder is a part of it, by the content of its file."""
    evaluation = config.evaluation
    networks = [network_settings(evaluation), evaluation.seed, EVALUATION_VERSION]
    data = [shards.fingerprint, config.data.resolution, config.data.channels]
    return digest([VERSIONS["transfer"], config.seed, data, config.transfer, networks])


def former_stage_keys(config: Config, shards: ShardSet) -> tuple[str, ...]:
    """Compute the keys that the stages had in version 0.1, where labels were part of every stage."""
    return stage_keys(config, shards.model_copy(update={"images_fingerprint": None}))


def make_keys(config: Config, shards: ShardSet, stages: tuple[str, ...] | None = None) -> Keys:
    """Compute the keys of every step after sharding.

    Args:
        config: a network that `evaluation.features` names by its URI is read, because it counts by its content.
        shards: the data set.
        stages: the keys of the stages if they are not `stage_keys(config, shards)`.

    Raises:
        ConfigError: `evaluation.features` names a file that does not exist.
    """
    stages = stages or stage_keys(config, shards)
    measured = deciding_settings(config.evaluation)
    evaluation = digest([VERSIONS["evaluate"], stages[-1], shards.fingerprint, *measured])
    run_id = f"{config.name}-{evaluation}"
    registration = digest([VERSIONS["register"], run_id, config.model_name])
    return Keys(stages=stages, evaluation=evaluation, registration=registration, run_id=run_id)


def gate_key(config: Config, version: str) -> str:
    """Compute the key of the verdict on a version: another gate or another version is judged anew."""
    return digest([VERSIONS["gate"], config.model_name, version, config.registry.gate])
