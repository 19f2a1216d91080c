"""Write and read the card of a data set: contents, rejects with reasons, mean image, and a sheet of images.

The card is made once, at the end of sharding, from the table of samples and some of the images. It is stored beside the
manifest as `card.json`, `preview.png` and `mean.png`. The same set gives the same bytes. The list of all rejects,
`rejected.jsonl`, is read here as well.
"""

from __future__ import annotations

import base64
import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field
from typing_extensions import TypedDict

from stylegan import storage
from stylegan.data import payload
from stylegan.data.index import attribute_array, locate
from stylegan.data.shardset import MANIFEST, distinct
from stylegan.errors import DamagedError, StepError, printable
from stylegan.images import class_heads, grid, open_picture
from stylegan.records import Record

logger = logging.getLogger("stylegan")

CARD, PREVIEW, MEAN, REJECTED = "card.json", "preview.png", "mean.png", "rejected.jsonl"
MEAN_OF = 2048  # images in the mean, at most: its error is then below 2 units of 255
MEAN_SIDE, PREVIEW_SIDE = 64, 128  # the largest resolutions that are read for the mean and for the sheet
EXAMPLES = 5  # paths in the card for each kind of reject, at most
COLUMNS, ROWS = 10, 8  # of the sheet, at most
GAP = 2**18  # bytes; payloads with at most this gap between them are read together
SPAN = 2**25  # bytes per read, at most


class Spread(Record):
    """The smallest, median and largest value of a length in pixels."""

    min: int
    median: float
    max: int


class DatasetCard(Record):
    """The contents of a finished set of shards, in numbers.

    Attributes:
        source: the source of the images.
        fingerprint: digest of what the network sees: pixels, labels and their order.
        num_images: images that count; rejects do not.
        resolution: the final resolution.
        channels: 1 (grey) or 3 (RGB).
        crop: how an image became a square.
        resize_filter: the filter of that resize.
        num_bytes: of all tars of all resolutions.
        counted: what `counts` counts by; None without labels.
        counts: images by class or by attribute; empty without labels. An image may have several attributes.
        rejected: number of rejects by kind (`unreadable`, `truncated`, `too large`, `too small`, `duplicate`,
            `unlabelled`, `unread`).
        examples: a few paths for each kind of reject; `rejected.jsonl` has all of them.
        num_duplicates: rejects that have the bytes of another image.
        widths: of the originals, turned upright.
        heights: of the originals, turned upright.
        num_upscaled: originals that were enlarged.
        mean_of: images in the mean.
        mean_png: the mean image as a PNG in base64, at most 64x64.
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
    """Write `card.json`, `preview.png` and `mean.png` into the folder of a set whose tars are complete.

    Args:
        uri: the folder.
        manifest: the manifest to be written: num_images, fingerprint, label_names, attribute_names, parameters (with
            resolution, channels, crop, resize_filter) and `datasets`, each with resolution, suffix and `shardlist`
            (url, filesize).
        table: the rows of `samples.parquet`, with width, height, label, attributes (if the set has them), tar,
            offset_RRRR and size_RRRR.
        rejected: the rows of `rejected.jsonl` (path, kind).
        source: the source of the images.

    Raises:
        StepError: a tar cannot be read, or an image in it is damaged.
    """
    card, sheet, mean = _make_card(uri, manifest, table, rejected, source=source)
    storage.write_bytes(storage.join(uri, MEAN), mean)
    storage.write_bytes(storage.join(uri, PREVIEW), sheet)
    storage.write_bytes(storage.join(uri, CARD), (card.model_dump_json(indent=1) + "\n").encode())
    return card


def _make_card(
    uri: str, manifest: Mapping[str, Any], table: pa.Table, rejected: Iterable[Mapping[str, Any]], *, source: str
) -> tuple[DatasetCard, bytes, bytes]:
    """Return the card, and the sheet and the mean as bytes of PNG files; arguments and errors as for `write_card`."""
    # Count.
    parameters = manifest["parameters"]
    kinds, examples = _count_rejected(rejected)
    width, height = (table[name].to_numpy() for name in ("width", "height"))
    counted: Literal["classes", "attributes"] | None = None
    if manifest["label_names"]:
        counted = "classes"
    elif manifest.get("attribute_names"):
        counted = "attributes"

    # Read images for the mean and the sheet.
    mean, mean_of = _mean(_Level(uri, manifest, table, MEAN_SIDE))
    mean_png = _png(Image.fromarray(mean))
    sheet_png = _png(_sheet(uri, manifest, table))

    card = DatasetCard(
        source=source,
        fingerprint=manifest["fingerprint"],
        num_images=manifest["num_images"],
        **{name: parameters[name] for name in ("resolution", "channels", "crop", "resize_filter")},
        num_bytes=sum(entry["filesize"] for level in manifest["datasets"] for entry in level["shardlist"]),
        counted=counted,
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
    return card, sheet_png, mean_png


def read_card(uri: str) -> DatasetCard | None:
    """Return the card in the folder of a set, or None if the set has no card; a damaged one is named in a warning."""
    cure = "sharding again writes it anew"
    try:
        return storage.read_json(storage.join(uri, CARD), DatasetCard, cure=cure)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        logger.warning("%s", error)
        return None


def read_preview(uri: str) -> Image.Image | None:
    """Return the sheet of images in the folder of a set, None if it is missing; a damaged one is named in a warning."""
    preview_uri = storage.join(uri, PREVIEW)
    try:
        return open_picture(storage.read_bytes(preview_uri), preview_uri, cure="sharding again writes it anew")
    except FileNotFoundError:
        return None
    except DamagedError as error:
        logger.warning("%s", error)
        return None


def describe_card(card: DatasetCard) -> Iterator[str]:
    """Yield the facts of a card as lines `name  value` for people: images, originals, labels."""
    widths, heights = card.widths, card.heights
    enlarged = f"; {card.num_upscaled:,} were enlarged" if card.num_upscaled else ""
    median = f"median {widths.median:g}x{heights.median:g}"
    colours = "grey" if card.channels == 1 else "RGB"
    size = f"{card.num_bytes / 1e6:,.1f} MB in all resolutions"
    yield f"images      {card.resolution}x{card.resolution} {colours} from {printable(card.source)}, {size}"
    yield f"originals   {widths.min}x{heights.min} to {widths.max}x{heights.max}, {median}{enlarged}"
    yield f"labels      {f'{len(card.counts):,} {card.counted}' if card.counted else 'none'}"


class Rejected(TypedDict):
    """An image that does not count.

    `bytes` is None if the file could not be read; `sha256` is that of the bytes of a duplicate, None for other kinds.
    """

    path: str
    kind: str
    reason: str
    bytes: int | None
    token: str
    sha256: Annotated[str | None, Field(pattern="^[0-9a-f]{64}$")]


def read_rejected(uri: str, limit: int | None = None) -> list[Rejected]:
    """Return the rejects of a set, in the order of their paths.

    Args:
        uri: the folder of the set.
        limit: number of leading rejects to return; None for all.

    Raises:
        FileNotFoundError: the set has no list of rejects.
        DamagedError: the list is not what was written.
        StepError: the store does not answer.
    """
    cure = f"delete {storage.join(uri, MANIFEST)} and shard its images again, which writes both anew"
    return storage.read_json_lines(storage.join(uri, REJECTED), Rejected, cure=cure, limit=limit)


def _counts(manifest: Mapping[str, Any], table: pa.Table) -> dict[str, int]:
    """Count the images of each class or attribute, in the order of their numbers."""
    if names := manifest["label_names"]:
        numbers = np.bincount(np.maximum(table["label"].to_numpy(), 0), minlength=len(names))
    elif names := manifest.get("attribute_names", ()):
        numbers = attribute_array(table).sum(0, dtype=np.int64)
    else:
        return {}
    return dict(zip(distinct(names), numbers.tolist(), strict=True))


def _count_rejected(rejected: Iterable[Mapping[str, Any]]) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """Count the rejects by kind, most frequent first, and pick the first paths of each kind in alphabetical order."""
    kinds: Counter[str] = Counter()
    paths: dict[str, list[str]] = {}
    for row in rejected:
        kinds[row["kind"]] += 1
        known = paths.setdefault(row["kind"], [])
        known.append(row["path"])
        if len(known) >= 1000:  # bounds the memory for a million rejects
            known[:] = sorted(known)[:EXAMPLES]
    order = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
    return {kind: kinds[kind] for kind in order}, {kind: tuple(sorted(paths[kind])[:EXAMPLES]) for kind in order}


def _spread(values: np.ndarray) -> Spread:
    return Spread(min=int(values.min()), median=float(np.median(values)), max=int(values.max()))


def _count_upscaled(width: np.ndarray, height: np.ndarray, parameters: Mapping[str, Any]) -> int:
    """Count the originals that have fewer pixels across the crop than the final image."""
    if parameters["crop"] == "wide":
        return 0  # such images are rejects
    side = np.minimum(width, height) if parameters["crop"] == "center" else np.full_like(width, 128)
    return int((side < parameters["resolution"]).sum())


@dataclass
class _Level:
    """A reader of the images of one level, by their row in the table: the largest resolution up to `limit`."""

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
        """Yield each row with its uint8 pixels [r, r] or [r, r, 3], tar by tar. Neighbours are read together.

        Raises:
            StepError: a tar cannot be read, or an image in it is damaged.
        """
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
        """Return whether one read can cover the group and one more row."""
        first, last = group[0], group[-1]
        same_tar = self.tar[row] == self.tar[last]
        near = self.offset[row] - self.offset[last] - self.size[last] <= GAP
        short = self.offset[row] + self.size[row] - self.offset[first] <= SPAN
        return bool(same_tar and near and short)

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
    """Return the mean of the first images of the table as uint8, and their number.

    The table is in the order of hashes, so its first images are a fair sample.
    """
    num = min(MEAN_OF, level.table.num_rows)
    total: np.ndarray | None = None
    for _, pixels in level.read(range(num)):
        total = pixels.astype(np.int64) if total is None else total + pixels
    assert total is not None  # a set without images has failed before
    return ((2 * total + num) // (2 * num)).astype(np.uint8), num


def _sheet(uri: str, manifest: Mapping[str, Any], table: pa.Table) -> Image.Image:
    """Draw a sheet of images: a column per class with its name above, or plain columns without classes."""
    columns, heads = _columns(manifest, table)
    level = _Level(uri, manifest, table, PREVIEW_SIDE)
    pictures = dict(level.read([row for column in columns for row in column]))
    rows = [number for line in zip_longest(*columns) for number in line]
    images = [None if row is None else np.atleast_3d(pictures[row]).transpose(2, 0, 1) for row in rows]
    return grid(images, len(columns), heads=heads)


def _columns(manifest: Mapping[str, Any], table: pa.Table) -> tuple[list[list[int]], list[str]]:
    """Return the rows of the table in each column of the sheet, and the names above the columns."""
    names, labels = manifest["label_names"], table["label"].to_numpy()
    if not names:
        num = min(COLUMNS * ROWS, table.num_rows)
        return [list(range(start, num, COLUMNS)) for start in range(min(COLUMNS, num))], []
    present = np.unique(labels)
    shown = present[np.linspace(0, len(present) - 1, min(COLUMNS, len(present))).round().astype(int)]
    return [np.flatnonzero(labels == label)[:ROWS].tolist() for label in shown], class_heads(names, shown.tolist())


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
