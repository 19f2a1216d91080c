"""Warm start: whether, and from which checkpoint, a training can go on with the whole state of an earlier one.

Only small files and the beginnings of large ones are read. Loss, penalties, batch, learning rate and precision may be
others than before: networks and moments are stored in fp32 and fit each of them.
"""

from __future__ import annotations

import json
import pickletools
import zipfile
from collections.abc import Sequence

from pydantic import ValidationError

from stylegan import storage
from stylegan.config.sections import ModelConfig, WarmStartConfig
from stylegan.config.tree import Config
from stylegan.errors import ConfigError, DamagedError, one_line, shown
from stylegan.networks.weights import generator_header, header_bytes
from stylegan.training.identity import place_below
from stylegan.training.state import MARKER, Checkpoint, read_checkpoint

# Settings of `model` that act while training only; all others make the networks.
OF_TRAINING = {"style_mixing_prob", "w_avg_beta"}
FIRST_BYTES = 2**16  # of a generator; most headers are shorter
NO_CURE = "nothing can go on from it"


def warm_checkpoint(config: Config, label_names: tuple[str, ...]) -> Checkpoint | None:
    """Return the checkpoint that `training.warm_start` names, None without a warm start.

    Args:
        config: that of the run.
        label_names: the classes of the present images, in the order of their numbers.

    Raises:
        ConfigError: training cannot go on from it.
        StepError: its store does not answer.
    """
    warm = config.training.warm_start
    if warm is None:
        return None
    if obstacle := warm_obstacle(config, warm.checkpoint, label_names):
        raise ConfigError(
            f"training.warm_start.checkpoint={warm.checkpoint}: {obstacle}; give another checkpoint, or remove "
            "training.warm_start"
        )
    return read_checkpoint(_locate(config, warm))


def warm_obstacle(config: Config, checkpoint_uri: str, label_names: tuple[str, ...]) -> str | None:
    """Return the reason for which training cannot go on from a checkpoint on the present images; None if it can.

    Args:
        config: that of the run; its own `training.warm_start` does not matter.
        checkpoint_uri: the folder of the checkpoint. If it has moved, its last two parts count, below `storage.root`.
        label_names: the classes of the present images, in the order of their numbers.

    Raises:
        StepError: a store does not answer.
    """
    if config.transfer:
        return "a style transfer is always trained anew"
    try:
        warm = WarmStartConfig(checkpoint=checkpoint_uri)
    except ValidationError:
        return "it is no checkpoint of a stage, whose folder is as .../stages/0016-KEY/checkpoint-000023000"
    side, wanted = warm.resolution, config.data.resolution
    if side != wanted:
        return f"it is a checkpoint of {side}x{side}, but data.resolution={wanted}, and only the last stage goes on"
    uri = _locate(config, warm)
    try:
        return (
            _not_the_end(uri, warm) or _other_generator(config, uri, label_names) or _other_discriminator(config, uri)
        )
    except DamagedError as error:
        return str(error)


def _locate(config: Config, warm: WarmStartConfig) -> str:
    """Return where the checkpoint is now: below the root, which may have moved, or else where its URI says."""
    return place_below(config.storage.root, storage.absolute(warm.checkpoint))


def _not_the_end(uri: str, warm: WarmStartConfig) -> str | None:
    """Return why a folder is not the last checkpoint of a finished stage. Before, a new resolution may be fading in."""
    try:
        record = storage.read_json(storage.join(uri, MARKER), Checkpoint, cure=NO_CURE)
    except FileNotFoundError:
        return f"there is no checkpoint, nor stages/{warm.identity} below storage.root"
    if f"{record.resolution:04d}-{record.digest}/checkpoint-{record.nimg:09d}" != warm.identity:
        return f"its {MARKER} is of another one (stage {record.digest}, {record.nimg} images)"
    try:
        last = storage.read_json(storage.join(uri.rpartition("/")[0], "done.json"), Checkpoint, cure=NO_CURE)
    except FileNotFoundError:
        return "its stage is not finished"
    return None if last.nimg == record.nimg else f"its stage ended later, at {last.nimg} images"


def _other_generator(config: Config, uri: str, label_names: tuple[str, ...]) -> str | None:
    """Return what differs between the generator of a checkpoint and that of the config."""
    file = storage.join(uri, "generator.safetensors")
    try:
        head = storage.read_range(file, 0, FIRST_BYTES)
        if len(head) < header_bytes(head):
            head = storage.read_range(file, 0, header_bytes(head))
        header = generator_header(head)
        model, channels, classes = (
            ModelConfig.model_validate(header["model"]),
            header["channels"],
            header["label_names"],
        )
    except FileNotFoundError:
        return "it has no generator.safetensors"
    except (ValueError, LookupError, TypeError) as error:
        raise _damaged(file, error) from error

    then, now = ({"architecture": each.architecture} | each.identity() for each in (model, config.model))
    # By name: the architecture, which explains the others, is the first.
    for name in sorted((then.keys() | now.keys()) - OF_TRAINING):
        if then.get(name) != now.get(name):
            return f"it was trained with model.{name}={_yaml(then.get(name))}, this config has {_yaml(now.get(name))}"
    if channels != config.data.channels:
        return f"it was trained with data.channels={channels}, this config has {config.data.channels}"
    if config.model.conditional and tuple(classes) != label_names:
        return f"it was trained on {_classes(classes, label_names)}, the images have {_classes(label_names, classes)}"
    return None


def _other_discriminator(config: Config, uri: str) -> str | None:
    """Return what differs between the discriminator of a checkpoint, whose other layers are as the model says, and ours."""
    file = storage.join(uri, "training.pt")
    try:
        # Only names are read: neither a weight, nor is anything unpickled.
        with storage.open_read(file) as opened, zipfile.ZipFile(opened) as archive:
            entry = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            texts = {text for _, text, _ in pickletools.genops(archive.read(entry)) if isinstance(text, str)}
    except FileNotFoundError:
        return "it has no training.pt, so D and the optimizers are not known"
    except (zipfile.BadZipFile, StopIteration, ValueError, LookupError, EOFError, OSError) as error:
        raise _damaged(file, error) from error
    then, now = any(text.startswith("rotation.") for text in texts), config.training.rotation is not None
    if then != now:
        had = "with" if then else "without"
        return f"its D was trained {had} training.rotation, and this config is {'with' if now else 'without'}"
    return None


def _damaged(file: str, error: Exception) -> DamagedError:
    return DamagedError(f"{file}: is damaged ({type(error).__name__}: {one_line(error, 200)}); {NO_CURE}")


def _yaml(value: object) -> str:
    return json.dumps(value)


def _classes(names: Sequence[str], others: Sequence[str]) -> str:
    """Return a number of classes, and the first one that differs from the others."""
    number = next((i for i, name in enumerate(names) if i >= len(others) or others[i] != name), None)
    return f"{len(names)} classes" + ("" if number is None else f" ({shown(names[number])} is number {number})")
