"""Convert pixels between networks (float, [-1, 1]) and pictures (uint8, PNG), and draw pictures for people.

There are two ways to eight bits on purpose. Pictures for people are rounded. Images that are measured go through the
truncating transform that StyleGAN's metrics were defined with. Both return exactly the bytes that `to_float` was given.
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageSequence, PngImagePlugin

from stylegan.errors import DamagedError, one_line, shown

if TYPE_CHECKING:  # its import takes seconds, and whoever only looks at a listing needs no pixels
    import torch
    from torch import Tensor


def to_float(images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Convert uint8 images [0, 255] of any shape to floats [-1, 1], float32 unless `dtype` says otherwise."""
    return (images.float() if dtype is None else images.to(dtype)) * (2 / 255) - 1


def to_uint8(images: Tensor) -> Tensor:
    """Convert float images of any shape, nominally [-1, 1], to uint8: rounded to nearest and clipped; for pictures."""
    return (images.detach().float() * 127.5 + 127.5).round().clamp(0, 255).byte()


def quantise(images: Tensor) -> Tensor:
    """Convert float images of any shape, nominally [-1, 1], to uint8 as StyleGAN v1 does for its metrics.

    127.5 x + 128 is clipped to [0, 255] and its fraction cut off.
    """
    return (images.detach().float() * 127.5 + 128).clamp(0, 255).byte()


# --- grids ------------------------------------------------------------------------------------------------------------

CELL = 64  # pixels: a smaller image is enlarged to this side, so that people see its pixels and a name fits above it
PAPER, INK = "#e6e6e6", "#333333"  # light enough for white pages and for black ones

Pixels: TypeAlias = Union["Tensor", np.ndarray]


def grid(
    images: Sequence[Pixels | None] | Pixels,
    columns: int,
    *,
    cell: int = CELL,
    heads: Sequence[str] = (),
    sides: Sequence[str] = (),
) -> Image.Image:
    """Draw a grid of images, filled row by row, with a gutter around each. All lengths grow with the images.

    Args:
        images: [C, H, W] each, with C = 1 (grey) or 3 (RGB); uint8, or float in [-1, 1]. None leaves its cell empty.
        columns: number of images in a row.
        cell: smaller images are enlarged, by a whole factor and without smoothing, to at most this side.
        heads: what to write above the columns, from the first on; what is too long ends in an ellipsis.
        sides: what to write beside the rows, from the first on.

    Raises:
        ValueError: no images, images of different shapes, or neither 1 nor 3 channels.
    """
    shapes = {tuple(image.shape) for image in images if image is not None}
    if len(shapes) != 1 or [len(shape) for shape in shapes] != [3] or min(shapes)[0] not in (1, 3):
        raise ValueError(f"grid needs images of one shape [1 or 3, H, W], got {sorted(shapes)}")
    ((channels, height, width),) = shapes
    factor = _enlargement(height, width, cell)
    width, height = width * factor, height * factor

    # Lay out the sheet: gutters, and room for the text.
    rows, gap = -(-len(images) // columns), max(max(width, height) * 3 // 64, 1)
    font = _head_font(max(width, height))
    heads, sides = [fit_text(text, font, width) for text in heads], [fit_text(text, font, 2 * width) for text in sides]
    top = sum(font.getmetrics()) + gap if any(heads) else gap
    left = max(math.ceil(font.getlength(text)) for text in sides) + 3 * gap if any(sides) else gap
    corners = [
        (left + column * (width + gap), top + row * (height + gap)) for row in range(rows) for column in range(columns)
    ]

    # Draw it.
    area = (left + columns * (width + gap), top + rows * (height + gap))
    sheet = Image.new("L" if channels == 1 else "RGB", area, PAPER)
    for image, corner in zip(images, corners, strict=False):
        if image is not None:
            sheet.paste(picture(image, cell=cell), corner)
    draw = ImageDraw.Draw(sheet)
    for text, (x, _) in zip(heads, corners, strict=False):
        draw.text((x + width / 2, top / 2), text, INK, font, anchor="mm")
    for text, (_, y) in zip(sides, corners[::columns], strict=False):
        draw.text((left - 2 * gap, y + height / 2), text, INK, font, anchor="rm")
    return sheet


def cut(sheet: Image.Image, number: int, *, columns: int, rows: int, side: int, cell: int = CELL) -> Image.Image:
    """Cut an image out of a sheet that `grid` has drawn without text beside the rows; it has its own pixels again.

    Args:
        sheet: of `rows` rows.
        number: of the image in the sheet.
        columns, cell: as the sheet was drawn.
        rows, side: its number of rows, and width and height of its images.

    Raises:
        ValueError: the sheet was drawn in another way.
    """
    factor = _enlargement(side, side, cell)
    drawn, gap = side * factor, max(side * factor * 3 // 64, 1)
    left, top = sheet.width - columns * (drawn + gap), sheet.height - rows * (drawn + gap)
    heads = sum(_head_font(drawn).getmetrics())
    if left != gap or top not in (gap, gap + heads):  # above the images is a gap, with a line of text or without
        raise ValueError(f"a sheet of {sheet.width}x{sheet.height} pixels is no grid of {columns}x{rows} such images")
    x, y = left + number % columns * (drawn + gap), top + number // columns * (drawn + gap)
    return sheet.crop((x, y, x + drawn, y + drawn)).resize((side, side), Image.Resampling.NEAREST)


def picture(image: Pixels, *, cell: int = CELL) -> Image.Image:
    """Return one image as a picture; image and cell are as for `grid`."""
    import torch
    from torch import Tensor

    tensor = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    pixels = (tensor if tensor.dtype == torch.uint8 else to_uint8(tensor)).cpu().permute(1, 2, 0).contiguous().numpy()
    drawn = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    factor = _enlargement(drawn.height, drawn.width, cell)
    return drawn.resize((drawn.width * factor, drawn.height * factor), Image.Resampling.NEAREST)


def _enlargement(height: int, width: int, cell: int) -> int:
    return max(cell // max(height, width), 1)


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Put two grids of equal height side by side."""
    sheet = Image.new(left.mode, (left.width + right.width, left.height), PAPER)
    sheet.paste(left)
    sheet.paste(right, (left.width, 0))
    return sheet


def class_heads(names: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Return what to write above columns of classes: the names, or the numbers where the font lacks a name's letters.

    Accents are left out. Pillow's font has little beyond ASCII.

    Args:
        names: the names of all classes.
        numbers: the class of each column.
    """
    return [_drawable(shown(names[number])) or f"class {number}" for number in numbers]


def font_of_size(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, the only one that is there on every machine."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))  # as it is whenever a size is given


def _head_font(side: int) -> ImageFont.FreeTypeFont:
    """Return the font of what is written beside the images of a grid that are drawn with this side."""
    return font_of_size(max(side * 3 // 16, 10))


def _drawable(text: str) -> str:
    """Return a text without its accents; an empty one if the font lacks one of its letters."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    font = font_of_size(CELL)
    unknown = bytes(font.getmask("\uffff"))
    return "" if any(bytes(font.getmask(letter)) == unknown for letter in plain) else plain


def fit_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return a text, or as much of its beginning as fits into a width in pixels, and an ellipsis."""
    fitted = text
    while len(fitted) > 1 and font.getlength(fitted) > width:
        text = text[:-1]
        fitted = f"{text}\u2026"
    return fitted


# --- animations -------------------------------------------------------------------------------------------------------

FRAME_MS, LAST_MS = 200, 2500  # how long a frame is shown, and the last one


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """Return a picture with a line of text below it."""
    font = font_of_size(16)
    sheet = Image.new(picture.mode, (picture.width, picture.height + 24), PAPER)
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    draw.text((picture.width / 2, picture.height + 11), fit_text(text, font, picture.width), INK, font, anchor="mm")
    return sheet


def animation_bytes(frames: Sequence[Image.Image]) -> bytes:
    """Encode frames of equal size as an animated WebP file, which repeats without end and rests at its last frame.

    Equal frames give equal bytes.
    """
    durations = [*[FRAME_MS] * (len(frames) - 1), LAST_MS]
    return _animated(frames, "WEBP", durations, quality=80, method=4, allow_mixed=True)


def as_gif(animation: bytes) -> bytes:
    """Convert an animated WebP file into a GIF file with the same times, for programs that show no WebP."""
    frames, durations = [], []
    with Image.open(io.BytesIO(animation)) as source:
        for frame in ImageSequence.Iterator(source):
            frames.append(frame.convert("RGB"))
            durations.append(frame.info["duration"])
    return _animated(frames, "GIF", durations)


def last_frame(animation: bytes) -> Image.Image:
    """Return the last frame of an animated WebP file."""
    with Image.open(io.BytesIO(animation)) as source:
        source.seek(getattr(source, "n_frames", 1) - 1)
        return source.convert("RGB")


def _animated(frames: Sequence[Image.Image], kind: str, durations: Sequence[int], **options: Any) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=list(durations), loop=0, **options)
    return buffer.getvalue()


# --- files ------------------------------------------------------------------------------------------------------------


def png_bytes(image: Image.Image) -> bytes:
    """Encode a picture as the bytes of a PNG file."""
    return picture_bytes(image, ".png")


# Formats of pictures for people, by the ending of a file's name, with the options of Pillow's encoder.
PICTURE_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
}


def picture_bytes(image: Image.Image, ending: str) -> bytes:
    """Encode a picture in the format of an ending, one of PICTURE_FORMATS.

    Raises:
        ValueError: the format cannot hold a picture of this size.
    """
    kind, options = PICTURE_FORMATS[ending]
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=kind, **options)
    except (OSError, ValueError, SystemError) as error:
        raise ValueError(f"{image.width}x{image.height} pixels do not fit into a {ending} file; use .png") from error
    return buffer.getvalue()


def open_picture(data: bytes, origin: str, *, cure: str) -> Image.Image:
    """Decode a PNG file that this program stored.

    `Image.open` refuses large pictures, because a stranger's small file may decode to gigabytes. A grid of 14 x 14
    images of 1024x1024 is as large, and our own.

    Args:
        data: the bytes of its file.
        origin, cure: the file, and how to get it again, for the error message.

    Raises:
        DamagedError: the bytes are not a whole PNG file.
    """
    try:
        image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        image.load()
    except Exception as error:  # Pillow raises errors of many types for damaged files
        raise DamagedError(f"{origin}: is not a picture ({one_line(error, 200)}); {cure}") from error
    return image


def thumbnail(image: Image.Image, side: int = 1024) -> bytes:
    """Return a picture as a PNG file of at most `side` pixels in width and height; a smaller one keeps its size."""
    image = image.copy()
    image.thumbnail((side, side))
    return png_bytes(image)
