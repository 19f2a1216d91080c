"""The command that draws one picture in the style of another."""

from __future__ import annotations

from flows.cli.arguments import AnyFile, AsJson, Number, OutputFile, Overrides, RegistryConfig, registry_config
from flows.cli.console import print_result


def transfer(
    content: AnyFile,
    style: AnyFile,
    /,
    *,
    model: AnyFile,
    alpha: Number = 1.0,
    out: OutputFile = "transfer.png",
    config: RegistryConfig = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Draw a picture in the style of another, with a style transfer that a config with the section `transfer` has trained.

    Parameters
    ----------
    content
        Picture whose content is drawn: a path or any fsspec URL, of any format and size that sharding takes. A side above
        1,024 pixels is made smaller.
    style
        Picture whose style it gets, given likewise.
    model
        A run id, the URI of a checkpoint, or models:/name@alias (or models:/name/version).
    alpha
        How much of the style, from 0 (the content as the model draws it) to 1.
    out
        Picture to write, as large as the content: .png, .jpg or .webp, a path or any fsspec URL; - is standard output.

    Examples
    --------
    stylegan transfer photo.jpg painting.jpg --model style-transfer@champion --config configs/style-transfer.yaml
    stylegan transfer photo.jpg painting.jpg --model style-transfer@champion --config configs/style-transfer.yaml --alpha 0.7 --out out.png
    """
    settings = registry_config(config, overrides)
    from stylegan.retry import storage_settings
    from stylegan.verbs import transfer as transferring

    with storage_settings(settings.storage if settings else None):
        record = transferring.transfer(settings, content, style, model=model, alpha=alpha, out=out)
    text = f"{content} in the style of {style} (alpha {alpha:g}, {record.width}x{record.height}) in {out}"
    print_result(record, text, as_json, out=out)
