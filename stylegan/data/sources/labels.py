"""Give the images of a source their labels: from the format itself, from a label file, or from class folders.

A label is a class number or a vector of attributes. A label file is a `dataset.json` or a table of attributes.
"""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from typing import Any, NamedTuple

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.sources.access.uris import check_uri
from stylegan.data.sources.base import ABOVE, LABEL_FILES, Label, Listing, SourceImage
from stylegan.errors import ConfigError, StepError, one_line

MAX_CLASSES = 100_000
MAX_ATTRIBUTES = 10_000
_JSON_FORM = '{"labels": [["00000/img.png", 6], ...]} with whole numbers from 0, or [["00000/img.png", [0, 1, ...]], ...] with attributes'


class Labelled(NamedTuple):
    """Images with their labels, and the names of the classes or attributes. An unlabelled source has no names."""

    images: list[SourceImage]
    label_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()


def label_images(data: DataConfig, listing: Listing, images: list[SourceImage]) -> Labelled:
    """Give the images the labels that `data.labels` and `data.label_file` ask for. An image without a label gets None.

    Args:
        images: the images of the listing, sorted by path.

    Raises:
        ConfigError: the source does not have the labels that are asked for.
        StepError: the label file cannot be read, or does not fit the images.
    """
    if data.labels == "none":
        return _without(images)

    # The label file that the config names.
    if data.labels in ("auto", "file") and data.label_file is not None:
        return _from_file(data, images, data.label_file, _read_given(data, listing, data.label_file))

    # Labels of the format itself.
    if data.labels == "auto" and any(image.label is not None for image in images):
        return _checked(data.source, Labelled(images, listing.label_names, listing.attribute_names))

    # A label file at the top of the source.
    inside = next((name for name in LABEL_FILES if name in listing.files), None)
    if data.labels in ("auto", "file") and inside is not None:
        return _from_file(data, images, inside, _read_inside(data, listing, inside))
    if data.labels == "file":
        raise ConfigError(
            f"data.labels=file: {data.source} has no {', '.join(LABEL_FILES[:-1])} or {LABEL_FILES[-1]} at its top; "
            "add one, name another by data.label_file or set data.labels=auto"
        )

    # Class folders.
    return _from_folders(data, listing, images)


def _without(images: list[SourceImage]) -> Labelled:
    """Remove the labels of all images."""
    return Labelled([SourceImage(image.path, None, image.token) for image in images])


def _with(images: list[SourceImage], labels: Callable[[str], Label]) -> list[SourceImage]:
    """Give each image the label that `labels` returns for its path."""
    return [SourceImage(image.path, labels(image.path), image.token) for image in images]


def _from_folders(data: DataConfig, listing: Listing, images: list[SourceImage]) -> Labelled:
    """Make the first folder of each path the class of its image; classes are numbered in the order of their names.

    With `data.labels=auto` the images stay unlabelled if one of them is outside any folder, or if paths are not paths
    of files.

    Raises:
        ConfigError: `data.labels` is `folder`, and an image is outside any folder.
    """
    outside = [image.path for image in images if "/" not in image.path]
    if data.labels == "folder" and outside:
        raise ConfigError(
            f"data.labels=folder: {len(outside)} of {len(images)} images of {data.source} are in no class folder, such as {outside[0]}; "
            "move them into one or set data.labels=none"
        )
    if outside or (data.labels == "auto" and not listing.folders):
        return _without(images)
    names = sorted({image.path.partition("/")[0] for image in images})
    numbers = {name: number for number, name in enumerate(names)}
    return Labelled(_with(images, lambda path: numbers[path.partition("/")[0]]), tuple(names))


def _checked(source: str, labelled: Labelled) -> Labelled:
    """Return the same images with a name for every class or attribute.

    Raises:
        StepError: the labels are neither all class numbers nor all attribute vectors of one length, or their names do
            not fit.
    """
    # Find out what the labels are.
    lengths = {len(image.label) for image in labelled.images if isinstance(image.label, tuple)}
    highest = max((image.label for image in labelled.images if isinstance(image.label, int)), default=-1)
    has_classes = highest >= 0
    if len(lengths) > 1 or (lengths and has_classes):
        kinds = f"vectors of {sorted(lengths)} attributes" + (" and class numbers" if has_classes else "")
        raise StepError(
            f"data.source={source}: its labels are {kinds}; they must be all class numbers or all vectors of one length"
        )

    # Complete the names.
    if lengths:
        return Labelled(labelled.images, (), _names(source, labelled.attribute_names, lengths.pop()))
    return Labelled(labelled.images, _names(source, labelled.label_names, highest + 1))


def _names(source: str, names: tuple[str, ...], num: int) -> tuple[str, ...]:
    """Return the names, or the numbers from 0 to `num` - 1 as names if there are no names.

    Raises:
        StepError: there are fewer names than `num`, or `num` is above MAX_CLASSES.
    """
    if len(names) < num and names:
        raise StepError(
            f"data.source={source}: has the label {num - 1} but names only {len(names)}; mend it or set data.labels=none"
        )
    if num > MAX_CLASSES:
        raise StepError(
            f"data.source={source}: has the label {num - 1}; must be a whole number from 0 to {MAX_CLASSES - 1}"
        )
    return names or tuple(str(number) for number in range(num))


# --- label files ------------------------------------------------------------------------------------------------------


def _read_given(data: DataConfig, listing: Listing, label_file: str) -> bytes:
    """Return the content of `data.label_file`, which may be a path in the source, an absolute path or a URL.

    Raises:
        ConfigError: there is no such file.
        StepError: it cannot be read.
    """
    # A path in the source.
    for path in (label_file, ABOVE + label_file):
        if path in listing.files:
            return _read_inside(data, listing, path)
    if "://" not in label_file and not posixpath.isabs(label_file):
        raise ConfigError(
            f"data.label_file={label_file}: {data.source} has no such file; give its path in the source, an absolute path or a URL"
        )

    # A file elsewhere.
    uri = check_uri("data.label_file", label_file)
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise ConfigError(
            f"data.label_file={label_file}: no such file; give its path in the source, an absolute path or a URL"
        ) from None


def _read_inside(data: DataConfig, listing: Listing, path: str) -> bytes:
    """Return the content of a label file in the source, or raise StepError if it cannot be read."""
    try:
        with listing.open() as read:
            content = read(path)
    except StepError:
        raise
    except Exception as error:  # a damaged archive may raise nearly any exception
        raise StepError(
            f"data.source={data.source}: {path} cannot be read: {one_line(error)}; mend it or set data.labels=none"
        ) from error
    assert isinstance(content, bytes)
    return content


def _from_file(data: DataConfig, images: list[SourceImage], name: str, content: bytes) -> Labelled:
    """Give the images the labels of a label file."""
    where = f"data.source={data.source}: {name}"
    if name.lower().endswith(".json"):
        labels = _parse_json(where, content)
        if labels is None:
            return _without(images)
        _require_images(where, labels, {image.path for image in images})
        return _checked(data.source, Labelled(_with(images, labels.get)))
    names, rows = _parse_table(where, content)
    return Labelled(_with(images, _matched(where, images, rows).get), (), names)


def _require_images(where: str, labels: dict[str, Label], known: set[str]) -> None:
    """Raise StepError if a label file names an image that is not among the known ones."""
    for path in labels:
        if path not in known:
            raise StepError(
                f"{where} names {path}, which is not there; add the image, remove its line or set data.labels=none"
            )


def _parse_json(where: str, content: bytes) -> dict[str, Label] | None:
    """Return path and label of each image in a label file of StyleGAN2-ADA's form, or None if the file has no labels.

    Raises:
        StepError: the file has another form, or a label has a wrong value.
    """
    # Read the pairs of path and label.
    try:
        entries = json.loads(content)["labels"]
        if entries is None:
            return None
        labels = {path.replace("\\", "/"): label for path, label in entries}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StepError(f"{where} is not of the form {_JSON_FORM}; mend it or set data.labels=none") from None

    # Attribute vectors.
    if any(isinstance(label, list) for label in labels.values()):
        return _json_vectors(where, labels)

    # Class numbers.
    for path, label in labels.items():
        if label is not None and (type(label) is not int or not 0 <= label < MAX_CLASSES):
            raise StepError(
                f"{where} gives {path} the label {label!r}; must be a whole number from 0 to {MAX_CLASSES - 1}"
            )
    return labels or None


def _json_vectors(where: str, entries: dict[str, Any]) -> dict[str, Label]:
    """Return the labels of a JSON file as vectors of 0 and 1.

    Raises:
        StepError: the labels are not all vectors of one length, or a value is not allowed.
    """
    length = next(len(label) for label in entries.values() if isinstance(label, list))
    labels: dict[str, Label] = {}
    signs: set[Any] = set()
    for path, label in entries.items():
        if label is not None and (
            not isinstance(label, list) or len(label) != length or not 0 < length <= MAX_ATTRIBUTES
        ):
            raise StepError(
                f"{where} gives {path} the label {json.dumps(label)[:80]}, where others have {length} attributes; "
                "all labels must be vectors of one length"
            )
        labels[path] = None if label is None else binary(f"{where} gives {path}", label, signs)
    return labels


def binary(where: str, values: Sequence[Any], signs: set[Any]) -> tuple[int, ...]:
    """Turn a vector of 0 and 1, or of -1 and 1, into a vector of 0 and 1.

    Args:
        where: beginning of error messages, such as `list.csv gives 1.png`.
        signs: the values that meant "no" in this source so far, 0 or -1. This function adds to it.

    Raises:
        StepError: the vector has another value, or the source has both 0 and -1.
    """
    for value in values:
        if value not in (-1, 0, 1):
            raise StepError(f"{where} the attribute {str(value)[:40]!r}; must be 0 or 1, or -1 or 1")
    signs.update(int(value) for value in values if value < 1)
    if len(signs) > 1:
        raise StepError(
            f"{where} attributes with both 0 and -1 for `no`; must be 0 or 1, or -1 or 1, in the whole file"
        )
    return tuple(int(value == 1) for value in values)


# --- tables of attributes ---------------------------------------------------------------------------------------------


def _parse_table(where: str, content: bytes) -> tuple[tuple[str, ...], dict[str, Label]]:
    """Return the names of the attributes and the vector of each image.

    The table is a CSV with a header, or CelebA's list, whose first line is a number.

    Raises:
        StepError: the content is not such a table, or a value is not allowed.
    """
    # Read the rows.
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StepError(f"{where} is not text in UTF-8 ({error}); give a .json, or a table of attributes") from None
    rows = _celeba_rows(text) if text.partition("\n")[0].strip().isdigit() else csv.reader(StringIO(text))

    # The header, then the vectors.
    try:
        names = tuple(name.strip() for name in next(rows)[1:])
        if not names or len(set(names)) < len(names):
            raise StepError(
                f"{where}: its header must name the image and then one attribute or more, each once; it names {len(names)}"
            )
        return names, _vectors(where, names, rows)
    except (StopIteration, csv.Error) as error:
        raise StepError(
            f"{where} is not a table of attributes ({one_line(error)}); the first line must name its columns"
        ) from None


def _celeba_rows(text: str) -> Iterator[list[str]]:
    """Yield the rows of a `list_attr_celeba.txt`, beginning with a header.

    The first line of the file is the number of images, the second the names of the attributes. Each other line is an
    image.
    """
    lines = iter(text.splitlines())
    next(lines)
    yield ["image_id", *next(lines).split()]
    for line in lines:
        yield line.split()


def _vectors(where: str, names: tuple[str, ...], rows: Iterator[list[str]]) -> dict[str, Label]:
    """Return the attribute vector of each image in the rows of a table."""
    signs: set[Any] = set()
    known: dict[tuple[str, ...], tuple[int, ...]] = {}  # texts of a row -> vector, so that equal vectors are one object
    labels: dict[str, Label] = {}
    for row in rows:
        if not row:
            continue
        if len(row) != len(names) + 1:
            raise StepError(
                f"{where} gives {row[0]} {len(row) - 1} attributes, but its header names {len(names)}; mend that line"
            )
        texts = tuple(row[1:])
        if texts not in known:
            values = [_NUMBERS.get(text.strip(), text) for text in texts]
            known[texts] = binary(f"{where} gives {row[0]}", values, signs)
        labels[row[0].strip().replace("\\", "/")] = known[texts]
    return labels


_NUMBERS = {"-1": -1, "0": 0, "1": 1, "+1": 1, "-1.0": -1, "0.0": 0, "1.0": 1}


def _matched(where: str, images: list[SourceImage], rows: dict[str, Label]) -> dict[str, Label]:
    """Return the label of each image by its path.

    A table may name the images by path, by name without folders, or by name with another ending: CelebA's list says
    .jpg, but the lossless images are PNGs. The first of these forms that is unique and fits at least one image is used.

    Raises:
        StepError: the table names an image that does not exist.
    """
    for form in (str, posixpath.basename, lambda path: posixpath.splitext(posixpath.basename(path))[0]):
        labels = {form(name): label for name, label in rows.items()}
        forms = [form(image.path) for image in images]
        if len(labels) == len(rows) and len(set(forms)) == len(forms) and not labels.keys().isdisjoint(forms):
            _require_images(where, labels, set(forms))
            return {image.path: labels[name] for image, name in zip(images, forms, strict=True) if name in labels}
    first = next(iter(rows), "nothing")
    raise StepError(
        f"{where} names {first}, which is not there; add the image, remove its line or set data.labels=none"
    )
