"""The card of a data set: what it holds, what was left out and why, its mean image, and a sheet of what the network will see.

Made once, at the end of sharding, from the table of samples and a sample of the images; beside the manifest lie then `card.json`,
`preview.png` and `mean.png`. The same set gives the same bytes.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from stylegan import storage
from stylegan.data import payload
from stylegan.data.index import attribute_array, locate
from stylegan.errors import StepError
from stylegan.records import Record

CARD, PREVIEW, MEAN, REJECTED = "card.json", "preview.png", "mean.png", "rejected.jsonl"
MEAN_OF = 2048  # images whose mean is taken: its error is then below 2 units of 255
MEAN_SIDE, PREVIEW_SIDE = 64, 128  # the largest resolutions that are read for the mean and for the sheet
EXAMPLES = 5  # paths that are named for each kind of reject
COLUMNS, ROWS = 10, 8  # of the sheet, at most
CELL = 64  # pixels; smaller images are enlarged to it, so that there is room for a name above them
GAP = 2**18  # bytes between two payloads that are read together all the same
SPAN = 2**25  # bytes that are read at once


class Spread(Record):
    """Smallest, median and largest of a length in pixels."""

    min: int
    median: float
    max: int


class DatasetCard(Record):
    """What a finished set of shards holds.

    - `source`: where the images came from; `fingerprint`: digest of what the network sees of them.
    - `counts`: images by class or by attribute, whichever `counted` says; empty without labels. An image may have several attributes.
    - `num_bytes`: of all tars; `crop`, `resize_filter`: how images became squares.
    - `rejected`: by kind (`unreadable`, `truncated`, `too large`, `too small`, `duplicate`, `unlabelled`), and `examples` of their
      paths; all are in `rejected.jsonl`. `num_duplicates` are those with the bytes of another image.
    - `widths`, `heights`: of the originals, upright; `num_upscaled`: of those that were enlarged.
    - `mean_png`: the mean of `mean_of` images as a PNG in base64, at most 64x64.
    """

    source: str
    fingerprint: str
    num_images: int
    resolution: int
    channels: int
    crop: str
    resize_filter: str
    num_bytes: int
    counted: Literal["classes", "attributes"] | None
    counts: dict[str, int]
    rejected: dict[str, int]
    examples: dict[str, tuple[str, ...]]
    num_duplicates: int
    widths: Spread
    heights: Spread
    num_upscaled: int
    mean_of: int
    mean_png: str


def write_card(
    uri: str, manifest: Mapping[str, Any], table: pa.Table, rejected: Iterable[Mapping[str, Any]], *, source: str
) -> DatasetCard:
    """Write `card.json`, `preview.png` and `mean.png` into the folder of a set whose tars are all there.

    Args:
        uri: the folder.
        manifest: as it is about to be written: num_images, fingerprint, label_names, attribute_names, parameters (with resolution,
            channels, crop, resize_filter) and `datasets`, each with resolution, suffix and `shardlist` (url, filesize).
        table: the rows of `samples.parquet`, with width, height, label, attributes (if there are any), tar, offset_RRRR and size_RRRR.
        rejected: the rows of `rejected.jsonl` (path, kind).
        source: where the images came from.

    Raises:
        StepError: a tar cannot be read, or not what is written in it.
    """
    card, sheet, mean = make_card(uri, manifest, table, rejected, source=source)
    storage.write_bytes(storage.join(uri, MEAN), mean)
    storage.write_bytes(storage.join(uri, PREVIEW), sheet)
    storage.write_bytes(storage.join(uri, CARD), (card.model_dump_json(indent=1) + "\n").encode())
    return card


def make_card(
    uri: str, manifest: Mapping[str, Any], table: pa.Table, rejected: Iterable[Mapping[str, Any]], *, source: str
) -> tuple[DatasetCard, bytes, bytes]:
    """The card, and the bytes of the PNG files of sheet and mean; arguments and errors are those of `write_card`."""
    parameters = manifest["parameters"]
    kinds, examples = _count_rejected(rejected)
    width, height = (table[name].to_numpy() for name in ("width", "height"))
    mean, mean_of = _mean(_Level(uri, manifest, table, MEAN_SIDE))
    mean_png = _png(Image.fromarray(mean))
    card = DatasetCard(
        source=source,
        fingerprint=manifest["fingerprint"],
        num_images=manifest["num_images"],
        **{name: parameters[name] for name in ("resolution", "channels", "crop", "resize_filter")},
        num_bytes=sum(entry["filesize"] for level in manifest["datasets"] for entry in level["shardlist"]),
        counted="classes" if manifest["label_names"] else "attributes" if manifest.get("attribute_names") else None,
        counts=_counts(manifest, table),
        rejected=kinds,
        examples=examples,
        num_duplicates=kinds.get("duplicate", 0),
        widths=_spread(width),
        heights=_spread(height),
        num_upscaled=_count_upscaled(width, height, parameters),
        mean_of=mean_of,
        mean_png=base64.b64encode(mean_png).decode(),
    )
    return card, _png(_sheet(uri, manifest, table)), mean_png


def read_card(uri: str) -> DatasetCard | None:
    """The card in the folder of a set; None if it has none that can be read."""
    try:
        return DatasetCard.model_validate_json(storage.read_bytes(storage.join(uri, CARD)))
    except (FileNotFoundError, ValueError):
        return None


def describe_card(card: DatasetCard) -> Iterator[str]:
    """Yield the facts of a card for people, one `name  value` line each: images, originals, labels."""
    widths, heights = card.widths, card.heights
    enlarged = f"; {card.num_upscaled:,} were enlarged" if card.num_upscaled else ""
    median = f"median {widths.median:g}x{heights.median:g}"
    colours = "grey" if card.channels == 1 else "RGB"
    size = f"{card.num_bytes / 1e6:,.1f} MB in all resolutions"
    yield f"images      {card.resolution}x{card.resolution} {colours} from {card.source}, {size}"
    yield f"originals   {widths.min}x{heights.min} to {widths.max}x{heights.max}, {median}{enlarged}"
    yield f"labels      {f'{len(card.counts):,} {card.counted}' if card.counted else 'none'}"


def read_rejected(uri: str, limit: int) -> list[dict[str, Any]]:
    """The first rows of a set's rejects, by path: kind, path, reason, bytes (None where they could not be read)."""
    rows: list[dict[str, Any]] = []
    try:
        with storage.open_read(storage.join(uri, REJECTED)) as file:
            for line in islice(file, limit):
                rows.append(json.loads(line))
    except FileNotFoundError:
        pass
    return rows


def _counts(manifest: Mapping[str, Any], table: pa.Table) -> dict[str, int]:
    """Images by class or attribute, in the order of their numbers."""
    if names := manifest["label_names"]:
        numbers = np.bincount(np.maximum(table["label"].to_numpy(), 0), minlength=len(names))
    elif names := manifest.get("attribute_names", ()):
        numbers = attribute_array(table).sum(0, dtype=np.int64)
    else:
        return {}
    return dict(zip(names, numbers.tolist(), strict=True))


def _count_rejected(rejected: Iterable[Mapping[str, Any]]) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """Rejects by kind, most frequent first, and the first paths of each kind in alphabetical order."""
    kinds: Counter[str] = Counter()
    paths: dict[str, list[str]] = {}
    for row in rejected:
        kinds[row["kind"]] += 1
        known = paths.setdefault(row["kind"], [])
        known.append(row["path"])
        if len(known) >= 1000:  # of a million rejects only a few are kept
            known[:] = sorted(known)[:EXAMPLES]
    order = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
    return {kind: kinds[kind] for kind in order}, {kind: tuple(sorted(paths[kind])[:EXAMPLES]) for kind in order}


def _spread(values: np.ndarray) -> Spread:
    return Spread(min=int(values.min()), median=float(np.median(values)), max=int(values.max()))


def _count_upscaled(width: np.ndarray, height: np.ndarray, parameters: Mapping[str, Any]) -> int:
    """How many originals have fewer pixels across the crop than the final image."""
    if parameters["crop"] == "wide":
        return 0  # such images are rejects
    side = np.minimum(width, height) if parameters["crop"] == "center" else np.full_like(width, 128)
    return int((side < parameters["resolution"]).sum())


@dataclass
class _Level:
    """The images of the largest resolution up to `limit`, by their row in the table."""

    uri: str
    manifest: Mapping[str, Any]
    table: pa.Table
    limit: int

    def __post_init__(self) -> None:
        fitting = [level for level in self.manifest["datasets"] if level["resolution"] <= self.limit]
        self.entry = max(fitting, key=lambda level: level["resolution"])
        name = f"{self.entry['resolution']:04d}"
        columns = ("tar", f"offset_{name}", f"size_{name}")
        self.tar, self.offset, self.size = (self.table[column].to_numpy() for column in columns)

    def read(self, rows: Sequence[int] | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Row and uint8 pixels [r, r] or [r, r, 3] of each, tar by tar; neighbours are read at once."""
        ordered = sorted(map(int, rows), key=lambda row: (self.tar[row], self.offset[row]))
        group: list[int] = []
        for row in ordered:
            if group and not self._joins(group, row):
                yield from self._read_group(group)
                group = []
            group.append(row)
        if group:
            yield from self._read_group(group)

    def _joins(self, group: list[int], row: int) -> bool:
        first, last = group[0], group[-1]
        near = self.offset[row] - self.offset[last] - self.size[last] <= GAP
        return bool(
            self.tar[row] == self.tar[last] and near and self.offset[row] + self.size[row] - self.offset[first] <= SPAN
        )

    def _read_group(self, group: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        start, last = int(self.offset[group[0]]), group[-1]
        uri = locate(self.uri, self.entry["shardlist"][self.tar[last]]["url"])
        data = storage.read_range(uri, start, int(self.offset[last] + self.size[last]) - start)
        for row in group:
            begin = int(self.offset[row]) - start
            try:
                pixels = payload.decode(data[begin : begin + int(self.size[row])], self.entry["suffix"])
            except ValueError as error:
                raise StepError(
                    f"{uri}: the image at byte {self.offset[row]} is {error}; check that disk, then shard again"
                ) from error
            yield row, pixels.transpose(1, 2, 0)[:, :, 0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def _mean(level: _Level) -> tuple[np.ndarray, int]:
    """uint8 mean of the first images of the table (which is in an order of hashes, so they are a fair sample), and their number."""
    num = min(MEAN_OF, level.table.num_rows)
    total: np.ndarray | None = None
    for _, pixels in level.read(range(num)):
        total = pixels.astype(np.int64) if total is None else total + pixels
    assert total is not None  # a set without images is an error before
    return ((2 * total + num) // (2 * num)).astype(np.uint8), num


def _sheet(uri: str, manifest: Mapping[str, Any], table: pa.Table) -> Image.Image:
    """Columns of images, each with its class above; without classes just images. What is not filled stays white."""
    columns, names = _columns(manifest, table)
    level = _Level(uri, manifest, table, PREVIEW_SIDE)
    pictures = dict(level.read([row for column in columns for row in column]))
    factor = max(CELL // level.entry["resolution"], 1)
    cell, head = level.entry["resolution"] * factor, 14 if names else 0
    size = (len(columns) * (cell + 2) - 2, head + max(map(len, columns)) * (cell + 2) - 2)
    sheet = Image.new("L" if manifest["parameters"]["channels"] == 1 else "RGB", size, "white")
    for x, column in enumerate(columns):
        for y, row in enumerate(column):
            picture = Image.fromarray(pictures[row]).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(picture, (x * (cell + 2), head + y * (cell + 2)))
    for x, name in enumerate(names):
        _write_name(sheet, name, x * (cell + 2), cell)
    return sheet


def _columns(manifest: Mapping[str, Any], table: pa.Table) -> tuple[list[list[int]], list[str]]:
    """Rows of the table for each column of the sheet, and the names above them."""
    names, labels = manifest["label_names"], table["label"].to_numpy()
    if not names:
        num = min(COLUMNS * ROWS, table.num_rows)
        return [list(range(start, num, COLUMNS)) for start in range(min(COLUMNS, num))], []
    present = np.unique(labels)
    shown = present[np.linspace(0, len(present) - 1, min(COLUMNS, len(present))).round().astype(int)]
    return [np.flatnonzero(labels == label)[:ROWS].tolist() for label in shown], [names[label] for label in shown]


def _write_name(sheet: Image.Image, name: str, left: int, width: int) -> None:
    """A class name within the width of its column, cut off where it is longer."""
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    shown = name
    while shown and draw.textlength(shown if shown == name else f"{shown}\u2026", font) > width:
        shown = shown[:-1]
    draw.text((left, 0), shown if shown == name else f"{shown}\u2026", fill="black", font=font)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
