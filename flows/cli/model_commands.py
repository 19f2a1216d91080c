"""Commands on a trained model: samples, weights from and to other programs."""

from __future__ import annotations

from pathlib import Path

from flows.cli.arguments import AsJson, Overrides, RegistryConfig, registry_config
from flows.cli.console import print_result


def sample(
    model: str,
    /,
    *,
    seeds: str = "0-15",
    psi: float | None = None,
    label: str | None = None,
    out: Path = Path("grid.png"),
    config: RegistryConfig = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Draw a grid of images.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, or models:/name@alias (or models:/name/version).
    seeds
        One image each: numbers and ranges, such as 0-15 or 1,5,9-12.
    psi
        Truncation: 1 or unset is off, smaller is more typical and less varied.
    label
        Class (name or number) of a class-conditional model; unset takes all in turn.
    out
        PNG file to write.
    """
    from stylegan.verbs import sample as sampling

    settings = registry_config(config, overrides)
    record = sampling.sample(settings, model, seeds=sampling.parse_seeds(seeds), psi=psi, label=label, out=str(out))
    print_result(record, f"{record.num_images} images of {record.checkpoint_uri} in {record.path}", as_json)


def import_weights(official: str, /, *, out: str, as_json: AsJson = False) -> None:
    """Turn an official StyleGAN v1 pickle into a folder that every verb reads like a checkpoint.

    Parameters
    ----------
    official
        Path or URL of the .pkl file.
    out
        URI of the folder to write; new or empty.
    """
    from stylegan.verbs import exchange

    record = exchange.import_weights(official, out)
    files, side = ", ".join(record.files), record.resolution
    print_result(record, f"{files} of {side}x{side} in {record.uri}", as_json)


def export(
    model: str, /, *, out: str, config: RegistryConfig = None, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Write the averaged generator into one file for other programs.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, or models:/name@alias (or models:/name/version).
    out
        File to write: .safetensors, or .onnx (inputs z, labels if conditional, and psi; needs the extra `onnx`).
    """
    from stylegan.verbs import exchange

    record = exchange.export(registry_config(config, overrides), model, out)
    print_result(record, f"{record.checkpoint_uri} in {record.path}, {record.num_bytes:,} bytes", as_json)
