"""Draw one picture in the style of another with a trained style transfer."""

from __future__ import annotations

import os

from stylegan import storage
from stylegan.config.addresses import refuse_secret
from stylegan.config.tree import Config
from stylegan.errors import ConfigError
from stylegan.images import PICTURE_FORMATS, picture_bytes
from stylegan.outputs import ending, output_file, write_output
from stylegan.records import Record
from stylegan.transfer.apply import check_alpha, read_picture, restyle
from stylegan.transfer.state import read_transfer
from stylegan.verbs.find_model import find_model


class Transferred(Record):
    """A picture that was drawn in the style of another.

    Attributes:
        path: the file.
        checkpoint_uri: the model.
        content, style: the two pictures.
        alpha: how much of the style it has.
        width, height: of the picture in pixels: those of the content, unless that was too large.
    """

    path: str
    checkpoint_uri: str
    content: str
    style: str
    alpha: float
    width: int
    height: int


def transfer(
    config: Config | None, content: str, style: str, *, model: str, alpha: float = 1.0, out: str
) -> Transferred:
    """Draw a picture in the style of another and write it.

    Args:
        config, model: as for `find_model`; the model is a style transfer.
        content: path or URL of the picture whose content is drawn; it is made smaller if a side is above LONGEST pixels.
        style: path or URL of the picture whose style it gets.
        alpha: from 0, the content as the decoder draws it, to 1.
        out: path or URI of the picture, or `-` for standard output; its ending chooses the format (PICTURE_FORMATS).

    Raises:
        ConfigError: a value is not allowed, a picture cannot be read, or there is no such model.
        StepError: the model is damaged or no style transfer, or the picture cannot be written.
    """
    # Check what can be checked before the model is read.
    target = output_file(out, PICTURE_FORMATS)
    if wrong := check_alpha(alpha, "--alpha "):
        raise ConfigError(wrong)
    files = {name: _read(name, uri) for name, uri in (("CONTENT", content), ("STYLE", style))}
    uri = find_model(config, model).checkpoint_uri
    network = read_transfer(uri)

    # Draw it.
    pictures = [
        read_picture(data, network, origin) for (data, origin) in zip(files.values(), (content, style), strict=True)
    ]
    drawn = restyle(network, pictures[0], pictures[1], alpha)
    try:
        data = picture_bytes(drawn, ending(out, PICTURE_FORMATS))
    except ValueError as error:
        raise ConfigError(f"--out {out}: {error}") from error
    write_output(target, data)
    return Transferred(
        path=out,
        checkpoint_uri=uri,
        content=content,
        style=style,
        alpha=alpha,
        width=drawn.width,
        height=drawn.height,
    )


def _read(name: str, uri: str) -> bytes:
    """Return the bytes of a file. Raises ConfigError if there is none."""
    try:
        refuse_secret(name, uri)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    target = storage.absolute(uri)
    try:
        if storage.is_local(target) and os.path.isdir(target):
            raise ConfigError(f"{name} {uri}: is a folder; give the path or URL of a picture")
        return storage.read_bytes(target)
    except FileNotFoundError:
        raise ConfigError(f"{name} {uri}: there is no such file; give the path or URL of a picture") from None
