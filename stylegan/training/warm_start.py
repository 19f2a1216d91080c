"""Check whether training can go on from a checkpoint: that it is there, and that its networks are those of a config.

The checks read a few kilobytes: the header of the generator, and the config of the run that wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from stylegan import storage
from stylegan.config.file import read
from stylegan.config.sections import ModelConfig
from stylegan.config.tree import Config
from stylegan.errors import ConfigError, DamagedError, UserError, one_line
from stylegan.networks.weights import read_description
from stylegan.training.identity import place_below
from stylegan.training.state import Checkpoint, read_checkpoint
from stylegan.uris import nimg_of


def find_warm_checkpoint(config: Config) -> Checkpoint | None:
    """Return the checkpoint that a config goes on from, wherever its storage root is now; None without a warm start.

    Raises:
        StepError: it is gone, or storage does not answer.
    """
    warm = config.training.warm_start
    return read_checkpoint(place_below(config.storage.root, warm.checkpoint)) if warm else None


def require_warm_start(config: Config, label_names: Sequence[str]) -> None:
    """Check the checkpoint that a config goes on from, if there is one.

    Args:
        label_names: the classes of the images.

    Raises:
        ConfigError: training cannot go on from it.
    """
    warm = config.training.warm_start
    if warm and (obstacle := warm_obstacle(config, warm.checkpoint, label_names)):
        raise ConfigError(
            f"training.warm_start.checkpoint={warm.checkpoint}: {obstacle}; give another one, or leave out "
            "training.warm_start to train from new weights"
        )


def warm_obstacle(config: Config, checkpoint_uri: str, label_names: Sequence[str]) -> str | None:
    """Return why training cannot go on from a checkpoint with the networks of a config, None if it can.

    Args:
        config: its own `training.warm_start` does not matter.
        checkpoint_uri: as it was stored; its place below the storage root counts first.
        label_names: the classes of the images.

    Raises:
        StepError: storage does not answer.
    """
    if nimg_of(checkpoint_uri) is None:
        return "it is no checkpoint of a stage of this program"
    uri = place_below(config.storage.root, checkpoint_uri)
    if not storage.exists(storage.join(uri, "training.pt")):
        return "it is gone, or holds no state of training"
    try:
        record, found = read_checkpoint(uri), read_description(storage.join(uri, "generator.safetensors"))
    except FileNotFoundError:
        return "it is incomplete"
    except DamagedError as error:
        return str(error)
    if record.resolution != config.data.resolution:
        return f"it is of {record.resolution}x{record.resolution}, this config ends at {config.data.resolution}x{config.data.resolution}"
    if found["channels"] != config.data.channels:
        return f"its images have {found['channels']} channel(s), data.channels is {config.data.channels}"
    if difference := _other_model(config.model, found["model"]):
        return difference
    classes = list(label_names) if config.model.conditional else []
    if found["label_names"] != classes:
        return f"it knows {len(found['label_names'])} class(es), which are not the {len(classes)} of these images"
    return _other_discriminator(config, uri, record)


def _other_model(model: ModelConfig, found: dict[str, object]) -> str | None:
    """Return the first setting of the networks that differs, None if none does. Those that only training uses may."""
    ours = model.model_dump(mode="json")
    for name, value in ours.items():
        theirs = found.get(name, ModelConfig.model_fields[name].default)
        if theirs != value and name not in ("style_mixing_prob", "mapping_lrmul", "w_avg_beta"):
            return f"its networks have model.{name}={theirs}, this config has {value}"
    return None


def _other_discriminator(config: Config, uri: str, record: Checkpoint) -> str | None:
    """Return what the discriminator of a checkpoint lacks, as far as the config of its run is there to say it."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(uri.rstrip("/"))))
    source = storage.join(root, "runs", record.run_id, "config.yaml")
    try:
        text = storage.read_bytes(source).decode("utf-8-sig", errors="replace")
        theirs = read(text, source).training.rotation is not None
    except (FileNotFoundError, ConfigError):
        return None  # the weights themselves will tell
    except UserError as error:
        return one_line(error)
    if theirs != (config.training.rotation is not None):
        has = "a" if theirs else "no"
        return f"its discriminator has {has} head for rotations, training.rotation asks for the opposite"
    return None
