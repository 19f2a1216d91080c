"""Give the images of a source their labels: from the format itself, from a label file, or from class folders.

A label is a class number or a vector of attributes. A label file is a `dataset.json` or a table of attributes.
"""

from __future__ import annotations

import codecs
import csv
import json
import posixpath
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from typing import Any, NamedTuple

from stylegan.config.sections import DataConfig
from stylegan.data.shardset import distinct
from stylegan.data.sources.access.uris import check_uri
from stylegan.data.sources.base import ABOVE, LABEL_FILES, Label, Listing, SourceImage, read_whole
from stylegan.errors import ConfigError, StepError, one_line, shown

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
        StepError: the label file cannot be read, does not fit the images, or a name of a class is no text.
    """
    labelled = _find_labels(data, listing, images)
    for name in (*labelled.label_names, *labelled.attribute_names):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise StepError(
                f"data.source={shown(data.source, 300)}: has the class or attribute {shown(name)}, which is no text in UTF-8; rename it "
                "or set data.labels=none"
            ) from None
    return labelled


def _find_labels(data: DataConfig, listing: Listing, images: list[SourceImage]) -> Labelled:
    """Do the work of `label_images` without a look at the names."""
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
    return distinct(names) or tuple(str(number) for number in range(num))


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
        return read_whole(uri)
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
    known = {image.path for image in images}
    if name.lower().endswith(".json"):
        labels = _parse_json(where, content, known)
        if labels is None:
            return _without(images)
        _require_images(where, labels, known)
        return _checked(data.source, Labelled(_with(images, labels.get)))
    names, rows = _parse_table(where, content, known)
    return Labelled(_with(images, _matched(where, images, rows).get), (), names)


def _require_images(where: str, labels: dict[str, Label], known: set[str]) -> None:
    """Raise StepError if a label file names an image that is not among the known ones."""
    for path in labels:
        if path not in known:
            raise StepError(
                f"{where} names {shown(path)}, which is not there; add the image, remove its line or set data.labels=none"
            )


def parse_json(content: bytes) -> Any:
    """Parse foreign JSON. Raise ValueError if it is not JSON, or is nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _as_path(name: str, known: set[str]) -> str:
    """Return the path that a label file means: a backslash separates folders unless an image has that very name."""
    return name if name in known else name.replace("\\", "/")


def _parse_json(where: str, content: bytes, known: set[str]) -> dict[str, Label] | None:
    """Return path and label of each image in a label file of StyleGAN2-ADA's form, or None if the file has no labels.

    Args:
        known: the paths of all images.

    Raises:
        StepError: the file has another form, a label has a wrong value, or an image has two different labels.
    """
    # Read the pairs of path and label.
    try:
        document = parse_json(content)
    except ValueError as error:
        raise _wrong_form(where, f"it is not JSON ({one_line(error, 100)})") from None
    if not isinstance(document, dict) or "labels" not in document:
        raise _wrong_form(where, "it has no entry `labels`")
    entries = document["labels"]
    if entries is None:
        return None
    if not isinstance(entries, list):
        raise _wrong_form(where, f"`labels` is {shown(repr(entries))}")
    pairs: dict[str, Any] = {}
    for row, entry in enumerate(entries, start=1):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise _wrong_form(where, f"entry {row} of `labels` is {shown(repr(entry))}")
        _add(where, pairs, _as_path(entry[0], known), entry[1])

    # Attribute vectors, or class numbers.
    if any(isinstance(label, list) for label in pairs.values()):
        return _json_vectors(where, pairs)
    for path, label in pairs.items():
        if label is not None:
            class_number(f"{where} gives {shown(path)}", label)
    return pairs or None


def _wrong_form(where: str, reason: str) -> StepError:
    return StepError(f"{where} is not of the form {_JSON_FORM}: {reason}; mend it or set data.labels=none")


def _add(where: str, labels: dict[str, Any], path: str, label: Any) -> None:
    """Note the label of an image. Raise StepError if it has another one already."""
    if path in labels and labels[path] != label:
        raise StepError(
            f"{where} gives {shown(path)} two labels, {shown(repr(labels[path]))} and {shown(repr(label))}; remove one of them "
            "or set data.labels=none"
        )
    labels[path] = label


def class_number(where: str, value: Any) -> int:
    """Return a value that is a class number.

    Args:
        where: beginning of error messages, such as `a.cls gives`.

    Raises:
        StepError: the value is anything else than a whole number from 0 to MAX_CLASSES - 1.
    """
    if type(value) is not int or not 0 <= value < MAX_CLASSES:
        raise StepError(
            f"{where} the label {shown(repr(value))}; must be a whole number from 0 to {MAX_CLASSES - 1}, or a vector of 0 and 1; "
            "mend it or set data.labels=none"
        )
    return value


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
                f"{where} gives {shown(path)} the label {shown(repr(label))}, where others have {length} attributes; "
                f"all labels must be vectors of one length, from 1 to {MAX_ATTRIBUTES}"
            )
        labels[path] = None if label is None else binary(f"{where} gives {shown(path)}", label, signs)
    return labels


def binary(where: str, values: Sequence[Any], signs: set[Any]) -> tuple[int, ...]:
    """Turn a vector of 0 and 1, or of -1 and 1, into a vector of 0 and 1.

    Args:
        where: beginning of error messages, such as `list.csv gives 1.png`.
        signs: the values that meant "no" in this source so far, 0 or -1. This function adds to it.

    Raises:
        StepError: the vector is empty, has another value, or the source has both 0 and -1.
    """
    if not values:
        raise StepError(f"{where} no attributes; must be 0 or 1, or -1 or 1, for one attribute or more")
    for value in values:
        if value not in (-1, 0, 1):
            raise StepError(f"{where} the attribute '{shown(str(value), 40)}'; must be 0 or 1, or -1 or 1")
    signs.update(int(value) for value in values if value < 1)
    if len(signs) > 1:
        raise StepError(
            f"{where} attributes with both 0 and -1 for `no`; must be 0 or 1, or -1 or 1, in the whole file"
        )
    return tuple(int(value == 1) for value in values)


# --- tables of attributes ---------------------------------------------------------------------------------------------


def _parse_table(where: str, content: bytes, known: set[str]) -> tuple[tuple[str, ...], dict[str, Label]]:
    """Return the names of the attributes and the vector of each image.

    The table is a CSV with a header, or CelebA's list, whose first line is a number.

    Args:
        known: the paths of all images.

    Raises:
        StepError: the content is not such a table, or a value is not allowed.
    """
    # Read the rows.
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise StepError(f"{where} is not text in UTF-8 ({error}); give a .json, or a table of attributes") from None
    if text.lstrip()[:1] in ("{", "["):
        raise StepError(
            f"{where} is JSON, not a table of attributes; give {_JSON_FORM} in a file whose name ends in .json"
        )
    lines = text.splitlines()
    celeba = bool(lines) and lines[0].strip().isdigit()
    rows = _celeba_rows(lines) if celeba else csv.reader(StringIO(text, newline=""))

    # The header, then the vectors.
    try:
        names = tuple(name.strip() for name in next(rows)[1:])
        if not all(names) or not 0 < len(names) == len(set(names)) <= MAX_ATTRIBUTES:
            raise StepError(
                f"{where}: its header must name the image and then from 1 to {MAX_ATTRIBUTES} attributes, each once; it names "
                f"{len(names)}, {shown(', '.join(names))}"
            )
        return names, _vectors(where, names, rows, known)
    except (StopIteration, csv.Error) as error:
        reason = one_line(error) if isinstance(error, csv.Error) else "it ends before its header"
        raise StepError(
            f"{where} is not a table of attributes ({reason}); the first line must name its columns"
        ) from None


def _celeba_rows(lines: list[str]) -> Iterator[list[str]]:
    """Yield the rows of a `list_attr_celeba.txt`, beginning with a header.

    The first line of the file is the number of images, the second the names of the attributes. Each other line is an
    image.
    """
    for number, line in enumerate(lines[1:]):
        yield ["image_id", *line.split()] if number == 0 else line.split()


def _vectors(where: str, names: tuple[str, ...], rows: Iterator[list[str]], paths: set[str]) -> dict[str, Label]:
    """Return the attribute vector of each image in the rows of a table."""
    signs: set[Any] = set()
    known: dict[tuple[str, ...], tuple[int, ...]] = {}  # texts of a row -> vector, so that equal vectors are one object
    labels: dict[str, Label] = {}
    for row in rows:
        if not any(field.strip() for field in row):
            continue
        if len(row) != len(names) + 1:
            raise StepError(
                f"{where} gives {shown(row[0])} {len(row) - 1} attributes, but its header names {len(names)}; mend that line"
            )
        texts = tuple(row[1:])
        if texts not in known:
            values = [_NUMBERS.get(text.strip(), text) for text in texts]
            known[texts] = binary(f"{where} gives {shown(row[0])}", values, signs)
        _add(where, labels, _as_path(row[0].strip(), paths), known[texts])
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
    if not rows:
        raise StepError(f"{where} has no row with an image; give each image a row or set data.labels=none")
    raise StepError(
        f"{where} names {shown(next(iter(rows)))}, which is not there; add the image, remove its line or set data.labels=none"
    )
