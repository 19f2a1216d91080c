"""Exchange weights with other programs: read official TensorFlow pickles, write safetensors and ONNX."""

from __future__ import annotations

import hashlib
from typing import Literal

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.errors import ConfigError, DamagedError, StepError
from stylegan.networks.official import OfficialNetworks, load_official
from stylegan.networks.onnx import to_onnx
from stylegan.networks.weights import save_discriminator, save_generator
from stylegan.outputs import ending, output_file, output_folder, write_output
from stylegan.records import Record
from stylegan.training.state import load_model
from stylegan.uris import redact
from stylegan.verbs.find_model import find_model

RECORD = "import.json"
EXPORTS = (".safetensors", ".onnx")


class Imported(Record):
    """A folder of imported weights; `generator.safetensors` in it is the averaged generator, which every verb reads."""

    uri: str
    source: str
    sha256: str
    resolution: int
    channels: int
    num_labels: int
    files: tuple[str, ...]


class Exported(Record):
    """A generator in one file. `max_difference` (ONNX) is the largest difference from torch, for images in [-1, 1]."""

    path: str
    checkpoint_uri: str
    format: Literal["safetensors", "onnx"]
    resolution: int
    num_bytes: int
    opset: int | None = None
    max_difference: float | None = None


def import_weights(source: str, out: str) -> Imported:
    """Write the networks of an official StyleGAN v1 pickle into a folder that is read like a checkpoint.

    Args:
        source: path or fsspec URL of the pickle.
        out: URI of the folder. It must be new, empty, or made by an import of the same file, which is then repeated.

    Raises:
        ConfigError: there is no such file, or the folder holds something else.
        StepError: the file is not such a pickle, or holds something that this program's networks cannot express.
    """
    target = output_folder(out)
    data = _read(source)
    try:
        networks = load_official(data)
    except StepError as error:
        raise StepError(f"{source}: {error}") from error
    files, Gs = _files(networks), networks.Gs
    record = Imported(
        uri=target,
        source=redact(source),
        sha256=hashlib.sha256(data).hexdigest(),
        resolution=Gs.resolution,
        channels=Gs.channels,
        num_labels=Gs.num_labels,
        files=tuple(files),
    )
    _check_target(record)
    storage.write_json(storage.join(record.uri, RECORD), record.model_dump())
    for name, content in files.items():
        storage.write_bytes(storage.join(record.uri, name), content)
    return record


def export(config: Config | None, model: str, out: str) -> Exported:
    """Write the averaged generator of a model into one file, replacing what is there.

    Args:
        config, model: as for `find_model`.
        out: path or URI, or `-` for safetensors on standard output; its ending chooses the format (EXPORTS).

    Raises:
        ConfigError: another ending, or no such model.
        StepError: ONNX is not installed, or its file draws other images than torch.
    """
    target = output_file(out, EXPORTS)
    uri = find_model(config, model).checkpoint_uri
    generator, label_names = load_model(uri)
    made = {"path": out, "checkpoint_uri": uri, "resolution": generator.resolution}
    if ending(out, EXPORTS) == ".onnx":
        file = to_onnx(generator, label_names)
        data, made = file.data, made | {"format": "onnx", "opset": file.opset, "max_difference": file.max_difference}
    else:
        data, made = save_generator(generator, label_names), made | {"format": "safetensors"}
    write_output(target, data)
    return Exported.model_validate(made | {"num_bytes": len(data)})


def _read(source: str) -> bytes:
    try:
        return storage.read_bytes(storage.absolute(source))
    except DamagedError:
        raise ConfigError(f"{source}: is a folder; give the path or URL of an official StyleGAN v1 .pkl") from None
    except FileNotFoundError:
        raise ConfigError(f"{source}: no such file; give the path or URL of an official StyleGAN v1 .pkl") from None


def _files(networks: OfficialNetworks) -> dict[str, bytes]:
    """Return the files to write; the one that makes the folder a model comes last."""
    names = [str(number) for number in range(networks.Gs.num_labels)]  # the pickles hold numbers only
    files = {}
    if networks.G:
        files["G.safetensors"] = save_generator(networks.G, names)
    if networks.D:
        files["D.safetensors"] = save_discriminator(networks.D, names)
    return files | {"generator.safetensors": save_generator(networks.Gs, names)}


def _check_target(record: Imported) -> None:
    found = storage.names(record.uri)
    if RECORD in found:
        cure = "delete that folder or give a new one"
        if storage.read_json(storage.join(record.uri, RECORD), Imported, cure=cure).sha256 == record.sha256:
            return
    if found:
        raise ConfigError(f"--out {record.uri}: is there already and holds something else; give a new folder")
