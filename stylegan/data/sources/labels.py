"""Which labels the images of a source carry: those of its format, of a label file, or of class folders."""

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
_CLASS_FORM = '{"labels": [["00000/img.png", 6], ...]} with whole numbers from 0, or [["00000/img.png", [0, 1, ...]], ...] with attributes'


class Labelled(NamedTuple):
    """Images with their labels, and the names of classes or of attributes; both empty for an unlabelled source."""

    images: list[SourceImage]
    label_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()


def label_images(data: DataConfig, listing: Listing, images: list[SourceImage]) -> Labelled:
    """Give images the labels that `data.labels` and `data.label_file` ask for. One that gets none has the label None.

    Args:
        images: those of the listing, in order.

    Raises:
        ConfigError: the source does not have the labels that are asked for.
        StepError: the label file cannot be read, or does not fit the images.
    """
    if data.labels == "none":
        return _without(images)
    if data.labels in ("auto", "file") and data.label_file is not None:
        return _from_file(data, images, data.label_file, _read_given(data, listing, data.label_file))
    if data.labels == "auto" and any(image.label is not None for image in images):
        return _checked(data.source, Labelled(images, listing.label_names, listing.attribute_names))
    found = next((name for name in LABEL_FILES if name in listing.files), None)
    if data.labels in ("auto", "file") and found is not None:
        return _from_file(data, images, found, _read_inside(data, listing, found))
    if data.labels == "file":
        raise ConfigError(
            f"data.labels=file: {data.source} has no {', '.join(LABEL_FILES[:-1])} or {LABEL_FILES[-1]} at its top; "
            "add one, name another by data.label_file or set data.labels=auto"
        )
    return _from_folders(data, listing, images)


def _without(images: list[SourceImage]) -> Labelled:
    return Labelled([SourceImage(image.path, None, image.token) for image in images])


def _with(images: list[SourceImage], labels: Callable[[str], Label]) -> list[SourceImage]:
    return [SourceImage(image.path, labels(image.path), image.token) for image in images]


def _from_folders(data: DataConfig, listing: Listing, images: list[SourceImage]) -> Labelled:
    outside = [image.path for image in images if "/" not in image.path]
    if data.labels == "folder" and outside:
        raise ConfigError(
            f"data.labels=folder: {len(outside)} of {len(images)} images of {data.source} lie in no class folder, such as {outside[0]}; "
            "move them into one or set data.labels=none"
        )
    if outside or (data.labels == "auto" and not listing.folders):
        return _without(images)
    names = sorted({image.path.partition("/")[0] for image in images})
    numbers = {name: number for number, name in enumerate(names)}
    return Labelled(_with(images, lambda path: numbers[path.partition("/")[0]]), tuple(names))


def _checked(source: str, found: Labelled) -> Labelled:
    """Labels of a format: all of one kind, attribute vectors of one length; missing names are numbers."""
    vectors = {len(image.label) for image in found.images if isinstance(image.label, tuple)}
    highest = max((image.label for image in found.images if isinstance(image.label, int)), default=-1)
    if len(vectors) + (highest >= 0) > 1:
        what = f"vectors of {sorted(vectors)} attributes" + (" and class numbers" if highest >= 0 else "")
        raise StepError(
            f"data.source={source}: its labels are {what}; they must be all class numbers or all vectors of one length"
        )
    if vectors:
        return Labelled(found.images, (), _names(source, found.attribute_names, vectors.pop()))
    return Labelled(found.images, _names(source, found.label_names, highest + 1))


def _names(source: str, names: tuple[str, ...], num: int) -> tuple[str, ...]:
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
    """The file that `data.label_file` names, inside the source or elsewhere."""
    for path in (label_file, ABOVE + label_file):
        if path in listing.files:
            return _read_inside(data, listing, path)
    if "://" not in label_file and not posixpath.isabs(label_file):
        raise ConfigError(
            f"data.label_file={label_file}: {data.source} has no such file; give its path in the source, an absolute path or a URL"
        )
    uri = check_uri("data.label_file", label_file)
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise ConfigError(
            f"data.label_file={label_file}: no such file; give its path in the source, an absolute path or a URL"
        ) from None


def _read_inside(data: DataConfig, listing: Listing, path: str) -> bytes:
    try:
        with listing.open() as read:
            content = read(path)
    except StepError:
        raise
    except Exception as error:  # whatever a damaged archive raises
        raise StepError(
            f"data.source={data.source}: {path} cannot be read: {one_line(error)}; mend it or set data.labels=none"
        ) from error
    assert isinstance(content, bytes)
    return content


def _from_file(data: DataConfig, images: list[SourceImage], name: str, content: bytes) -> Labelled:
    where = f"data.source={data.source}: {name}"
    if name.lower().endswith(".json"):
        labels = _parse_json(where, content)
        if labels is None:
            return _without(images)
        known = {image.path for image in images}
        _require_known(where, labels, known)
        return _checked(data.source, Labelled(_with(images, labels.get)))
    names, rows = _parse_table(where, content)
    return Labelled(_with(images, _matched(where, images, rows).get), (), names)


def _require_known(where: str, labels: dict[str, Label], known: set[str]) -> None:
    for path in labels:
        if path not in known:
            raise StepError(
                f"{where} names {path}, which is not there; add the image, remove its line or set data.labels=none"
            )


def _parse_json(where: str, content: bytes) -> dict[str, Label] | None:
    """The pairs of a label file in the form of StyleGAN2-ADA, or None where it says that there are no labels."""
    try:
        entries = json.loads(content)["labels"]
        if entries is None:
            return None
        found = {path.replace("\\", "/"): label for path, label in entries}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StepError(f"{where} is not of the form {_CLASS_FORM}; mend it or set data.labels=none") from None
    vectors = [label for label in found.values() if isinstance(label, list)]
    if vectors:
        return _json_vectors(where, found)
    for path, label in found.items():
        if label is not None and (type(label) is not int or not 0 <= label < MAX_CLASSES):
            raise StepError(
                f"{where} gives {path} the label {label!r}; must be a whole number from 0 to {MAX_CLASSES - 1}"
            )
    return found or None


def _json_vectors(where: str, found: dict[str, Any]) -> dict[str, Label]:
    length = next(len(label) for label in found.values() if isinstance(label, list))
    labels: dict[str, Label] = {}
    signs: set[Any] = set()
    for path, label in found.items():
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
    """A vector of 0 and 1 of one of 0 and 1 or of -1 and 1.

    Args:
        where: what the message begins with, such as `list.csv gives 1.png`.
        signs: what stood for "no" so far in this source, 0 or -1; kept up to date.

    Raises:
        StepError: another value, or both 0 and -1.
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
    """Names of the attributes and the vector of each image, of a CSV with a header or of CelebA's list."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StepError(f"{where} is not text in UTF-8 ({error}); give a .json, or a table of attributes") from None
    rows = _celeba_rows(text) if text.partition("\n")[0].strip().isdigit() else csv.reader(StringIO(text))
    try:
        names = tuple(name.strip() for name in next(rows)[1:])
        if not names or len(set(names)) < len(names):
            raise StepError(
                f"{where}: its header must name the image and then one attribute or more, each once; it names {len(names)}"
            )
        return names, _vectors(where, names, rows)
    except (StopIteration, csv.Error) as error:
        raise StepError(
            f"{where} is no table of attributes ({one_line(error)}); the first line must name its columns"
        ) from None


def _celeba_rows(text: str) -> Iterator[list[str]]:
    """`list_attr_celeba.txt`: the number of images, the names of the attributes, then a line for each image."""
    lines = iter(text.splitlines())
    next(lines)
    yield ["image_id", *next(lines).split()]
    for line in lines:
        yield line.split()


def _vectors(where: str, names: tuple[str, ...], rows: Iterator[list[str]]) -> dict[str, Label]:
    signs: set[Any] = set()
    known: dict[tuple[str, ...], tuple[int, ...]] = {}  # equal vectors are kept once
    labels: dict[str, Label] = {}
    for row in rows:
        if not row:
            continue
        if len(row) != len(names) + 1:
            raise StepError(
                f"{where} gives {row[0]} {len(row) - 1} attributes, its header names {len(names)}; mend that line"
            )
        texts = tuple(row[1:])
        if texts not in known:
            values = [_NUMBERS.get(text.strip(), text) for text in texts]
            known[texts] = binary(f"{where} gives {row[0]}", values, signs)
        labels[row[0].strip().replace("\\", "/")] = known[texts]
    return labels


_NUMBERS = {"-1": -1, "0": 0, "1": 1, "+1": 1, "-1.0": -1, "0.0": 0, "1.0": 1}


def _matched(where: str, images: list[SourceImage], rows: dict[str, Label]) -> dict[str, Label]:
    """Labels by path. A table may name images by path, by name alone, or with another ending (CelebA's list says .jpg for its PNGs)."""
    for form in (str, posixpath.basename, lambda path: posixpath.splitext(posixpath.basename(path))[0]):
        labels = {form(name): label for name, label in rows.items()}
        forms = [form(image.path) for image in images]
        if len(labels) == len(rows) and len(set(forms)) == len(forms) and not labels.keys().isdisjoint(forms):
            _require_known(where, labels, set(forms))
            return {image.path: labels[name] for image, name in zip(images, forms, strict=True) if name in labels}
    first = next(iter(rows), "nothing")
    raise StepError(
        f"{where} names {first}, which is not there; add the image, remove its line or set data.labels=none"
    )
