"""List and read Parquet and Arrow files with encoded images in a column, the form of Hugging Face's data sets.

A label column may have any type that holds a class or attributes; `_LABEL_KINDS` says which. A label column of another
type is refused, never passed over. The classes of several files are put together by their names.

Nothing in a file is trusted. Arrow's readers check what they parse, but follow the offsets in an Arrow file into memory
wherever they lead, so these are validated before a value is read. Any failure of a reader is a damaged file.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from stylegan.data.cache import local_copy
from stylegan.data.shardset import distinct
from stylegan.data.sources.access.ranges import open_file, whole
from stylegan.data.sources.access.unpacked import kept, made
from stylegan.data.sources.base import Files, Label, Listing, Read, SourceImage, require_size
from stylegan.data.sources.labels import binary, class_number, parse_json
from stylegan.errors import StepError, one_line, shown

NAMES = re.compile(r".*\.(parquet|arrow)", re.IGNORECASE)
_IMAGES = ("image", "img", "images", "picture", "png", "jpg", "jpeg", "webp", "bytes")
_LABELS = ("label", "labels", "fine_label", "cls", "class")


class _Columns(NamedTuple):
    """The columns of a file with images and labels, and the names of the classes in its schema."""

    image: str
    label: str | None
    names: tuple[str, ...]


class _Labels(NamedTuple):
    """The labels in a file.

    Attributes:
        kind: `numbers`, `texts`, `attributes`, or `none` if no row has a label.
        values: a class number, a text, a vector of 0 and 1, or None for each row.
        names: names of the classes, if the schema has some; only for numbers.
    """

    kind: str
    values: list[Any]
    names: tuple[str, ...] = ()


class _Table(NamedTuple):
    """One file of images.

    Attributes:
        uri: its URI.
        token: its token.
        column: name of the column with the images.
        num_bytes: expected size of all its images after unpacking (Parquet only, else 0).
        starts: number of the first row of each row group (Arrow: record batch), then the number of all rows.
    """

    uri: str
    token: str
    column: str
    num_bytes: int
    starts: tuple[int, ...]


def list_images(files: Files) -> Listing:
    """List the rows under paths such as `00000000`. With several files each path begins with the name of its file.

    The token of an image is the token of its file.

    Raises:
        StepError: a file is damaged, or it is not clear which of its columns contains the images.
    """
    # Scan the files. The images are not read.
    paths = [path for path in files.tokens if NAMES.fullmatch(path)]
    tables: dict[str, _Table] = {}
    images: list[SourceImage] = []
    found: dict[str, _Labels] = {}
    with ThreadPoolExecutor(8) as pool:
        for path, (table, labels) in zip(paths, pool.map(partial(_scan, files), paths), strict=True):
            prefix = f"{posixpath.splitext(path)[0]}/" if len(paths) > 1 else ""
            tables[prefix] = table
            images += [SourceImage(f"{prefix}{row:08d}", None, table.token) for row in range(table.starts[-1])]
            found[path] = labels

    # Number the labels of all files together.
    values, names = _together(f"data.source={files.source}", found)
    labelled = [SourceImage(image.path, label, image.token) for image, label in zip(images, values, strict=True)]
    return Listing(labelled, partial(_open_tables, tables), reader="parquet", label_names=names)


def _scan(files: Files, path: str) -> tuple[_Table, _Labels]:
    """Return the row groups and the labels of one file, without reading its images.

    Raises:
        StepError: the file cannot be read, or its columns are not those of a set of images.
    """
    uri, token = files.uri(path), files.tokens[path]
    where = f"data.source={files.source}: {path}"
    scan = _scan_arrow if _is_arrow(path) else _scan_parquet
    with _explained(where, " is not readable"):
        return scan(where, uri, token, files.labels)


@contextmanager
def _explained(where: str, what: str) -> Iterator[None]:
    """Raise StepError for every failure of Arrow's readers in the block.

    They raise nearly anything for a damaged file, such as MemoryError for a length that is wrong.

    Raises:
        OSError: the system refuses to read the file, which says nothing about its content.
    """
    try:
        yield
    except StepError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (
            None,
            errno.EINVAL,
        ):  # a wrong offset is no valid argument
            raise
        raise StepError(f"{where}{what} ({shown(one_line(error), 200)}); get the file again") from error


def _is_arrow(path: str) -> bool:
    return path.lower().endswith(".arrow")


def _scan_parquet(where: str, uri: str, token: str, labelled: bool) -> tuple[_Table, _Labels]:
    """Do the work of `_scan` for a Parquet file."""
    with _parquet(uri, token) as file:
        columns = _columns(where, file.schema_arrow, labelled)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        starts = (0, *accumulate(group.num_rows for group in groups))
        size = 0
        for group in groups:
            for part in map(group.column, range(group.num_columns)):
                if part.path_in_schema.split(".")[0] == columns.image:
                    if part.num_values != group.num_rows:
                        raise ValueError(f"{part.num_values} images for {group.num_rows} rows")
                    size += part.total_uncompressed_size
        labels = _Labels("none", [None] * starts[-1])
        if columns.label is not None:
            labels = _read_labels(where, columns, file.read(columns=[columns.label])[columns.label])
        if len(labels.values) != starts[-1]:
            raise ValueError(f"{len(labels.values)} labels for {starts[-1]} rows")
        size += 8 * (starts[-1] + len(groups))  # the offsets that `_unpack_group` writes
        return _Table(uri, token, columns.image, size, starts), labels


def _scan_arrow(where: str, uri: str, token: str, labelled: bool) -> tuple[_Table, _Labels]:
    """Do the work of `_scan` for an Arrow file."""
    with _arrow(uri, token) as table:
        columns = _columns(where, table.schema, labelled)
        chunks = _valid(table[columns.image]).chunks
        starts = (0, *accumulate(len(chunk) for chunk in chunks))
        labels = _Labels("none", [None] * starts[-1])
        if columns.label is not None:
            labels = _read_labels(where, columns, _valid(table[columns.label]))
        return _Table(uri, token, columns.image, 0, starts), labels


def _valid(column: Any) -> Any:
    """Return a column of an Arrow file. Raise ArrowInvalid if its offsets lead out of its buffers, or a text is none."""
    column.validate(full=True)
    return column


def _columns(where: str, schema: Any, labelled: bool) -> _Columns:
    """Find the columns with images and labels.

    Use the description that Hugging Face's `datasets` writes into the schema if there is one. Without it, take a column
    with a usual name, else the only column of a suitable type.

    Args:
        labelled: whether labels are wanted.

    Raises:
        StepError: no column contains bytes, or several do and none has a usual name; or the type of the column with the
            images or the labels cannot be read.
    """
    # Read the description: column name -> feature.
    try:
        described = dict(parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, ValueError, TypeError):
        described = {}
    features = {name: feature for name, feature in described.items() if isinstance(feature, dict)}

    # The images.
    kinds = {name: _plain_type(schema.field(name).type) for name in schema.names}
    encoded = [name for name, kind in kinds.items() if _is_bytes(kind) or _is_bytes(_item(kind))]
    image = _choose([name for name in encoded if features.get(name, {}).get("_type") == "Image"] or encoded, _IMAGES)
    if image is None:
        raise StepError(
            f"{where} has the columns {shown(', '.join(schema.names), 200)}; one of them must hold the bytes of images, and be named "
            f"{_IMAGES[0]} if several do"
        )
    if not _is_bytes(kinds[image]):
        raise StepError(
            f"{where} has several images in a row of the column {shown(image)}; give each image its own row"
        )
    if not labelled:
        return _Columns(image, None, ())

    # The labels and the names of their classes.
    classes = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    label = _choose(classes, _LABELS)
    if label is None:
        usual = [name for name in schema.names if name in _LABELS and name != image]
        label = _choose([name for name in usual if _kind_of_label(kinds[name])] or usual, _LABELS)
    if label is None and classes:
        raise StepError(
            f"{where} has classes in the columns {shown(', '.join(classes), 200)}; name one of them {_LABELS[0]} or set data.labels=none"
        )
    if label is not None and _kind_of_label(kinds[label]) is None:
        raise StepError(
            f"{where} has labels of the type {shown(str(kinds[label]))} in the column {shown(label)}; they must be numbers, texts, or "
            "vectors of 0 and 1: mend it or set data.labels=none"
        )
    if _lists_classes(described.get(label or "")):
        raise StepError(
            f"{where} has lists of classes in the column {shown(label or '')}; give each image one class or a vector of 0 and 1, or set "
            "data.labels=none"
        )
    names = features.get(label or "", {}).get("names")
    return _Columns(image, label, distinct(tuple(map(str, names))) if isinstance(names, list) else ())


def _lists_classes(feature: Any) -> bool:
    """Return True if a description is that of lists of class numbers, which are no vectors of 0 and 1."""
    item = feature.get("feature") if isinstance(feature, dict) else feature[:1] if isinstance(feature, list) else None
    item = item[0] if isinstance(item, list) and item else item
    return isinstance(item, dict) and item.get("_type") == "ClassLabel"


def _choose(names: list[str], usual: tuple[str, ...]) -> str | None:
    """Return the first usual name among the names, else the only name, else None."""
    return next((name for name in usual if name in names), names[0] if len(names) == 1 else None)


def _plain_type(kind: Any) -> Any:
    """Return the type of the values behind a dictionary, an encoding of runs or an extension."""
    import pyarrow as pa

    while True:
        if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def _plain(array: Any) -> Any:
    """Return an array with the values themselves, without a dictionary, an encoding of runs or an extension."""
    import pyarrow as pa
    import pyarrow.compute as pc

    while True:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif pa.types.is_run_end_encoded(array.type):
            array = pc.run_end_decode(array)
        elif isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        else:
            return array


def _is_bytes(kind: Any) -> bool:
    """Return True if a type of Arrow is binary of any layout, or a struct with a binary field `bytes`."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(_plain_type(field.type)) for field in kind)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests) and not pa.types.is_decimal(kind)


def _item(kind: Any) -> Any:
    """Return the type of the items of a list of any layout, or the type of nothing."""
    import pyarrow as pa

    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    views = (pa.types.is_list_view, pa.types.is_large_list_view)
    return _plain_type(kind.value_type) if any(test(kind) for test in (*tests, *views)) else pa.null()


# --- labels -----------------------------------------------------------------------------------------------------------


def _kind_of_label(kind: Any) -> str | None:
    """Return how labels of a type are read, or None if they cannot be.

    `numbers`: class numbers, also as floats and decimals. `booleans`: the classes false and true. `texts`: names of
    classes. `attributes`: vectors of 0 and 1. `none`: no row has a value.
    """
    import pyarrow.types as types

    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "numbers"
    if types.is_boolean(kind):
        return "booleans"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "texts"
    if types.is_null(kind):
        return "none"
    item = _item(kind)
    is_number = types.is_integer(item) or types.is_floating(item) or types.is_boolean(item)
    return "attributes" if is_number else None


def _read_labels(where: str, columns: _Columns, column: Any) -> _Labels:
    """Return the labels in a column.

    Raises:
        StepError: a value is no label.
    """
    kind = _kind_of_label(_plain_type(column.type))
    values = [value for chunk in column.chunks for value in _plain(chunk).to_pylist()]
    where = f"{where}: the column {shown(columns.label or '')} gives row"
    if all(value is None for value in values):
        return _Labels("none", values, columns.names)
    if kind == "texts":
        return _Labels("texts", values)
    if kind == "booleans":
        numbers = [None if value is None else int(value) for value in values]
        return _Labels("numbers", numbers, columns.names or ("false", "true"))
    if kind == "attributes":
        signs: set[Any] = set()
        vectors = [
            None if value is None else binary(f"{where} {row}", value, signs) for row, value in enumerate(values)
        ]
        return _Labels("attributes", vectors)
    numbers = [_number(f"{where} {row}", value) for row, value in enumerate(values)]
    highest = max((number for number in numbers if number is not None), default=-1)
    if columns.names and highest >= len(columns.names):
        raise StepError(
            f"{where} {numbers.index(highest)} has the label {highest} but names only {len(columns.names)}; mend it or set data.labels=none"
        )
    return _Labels("numbers" if highest >= 0 else "none", numbers, columns.names)


def _number(where: str, value: Any) -> int | None:
    """Return a class number, or None for a null, a NaN and a negative number, which all mean that there is no label."""
    if value is None or value != value:
        return None
    if value % 1:  # not zero for infinity either
        return class_number(where, value)
    return None if value < 0 else class_number(where, int(value))


def _together(where: str, found: dict[str, _Labels]) -> tuple[list[Label], tuple[str, ...]]:
    """Return the labels of all files, and the names of their classes.

    Texts are numbered in sorted order and are the names. Numbers keep their value if all files have the same names, or
    none. Files with different names are put together by the names, in the order in which the sorted files name them.

    Args:
        where: beginning of error messages.
        found: path of each file -> its labels.

    Raises:
        StepError: the files have labels of different kinds, or some have names for their classes and others have none.
    """
    given = {path: labels for path, labels in found.items() if labels.kind != "none"}
    kinds = {(labels.kind, bool(labels.names)): path for path, labels in sorted(given.items(), reverse=True)}
    if len(kinds) > 1:
        first, second, *_ = (
            f"{path} has {kind}{' with names' * named}" for (kind, named), path in reversed(kinds.items())
        )
        raise StepError(
            f"{where}: its files have labels of different kinds, {first} and {second}; give files of one kind or set data.labels=none"
        )
    values = [value for labels in found.values() for value in labels.values]
    if any(labels.kind == "texts" for labels in given.values()):
        texts = sorted({value for value in values if value is not None})
        numbers = {text: number for number, text in enumerate(texts)}
        return [None if value is None else numbers[value] for value in values], tuple(texts)

    names = tuple(dict.fromkeys(name for _, labels in sorted(found.items()) for name in labels.names))
    numbers = {name: number for number, name in enumerate(names)}
    mapped: list[Label] = []
    for labels in found.values():
        own = [numbers[name] for name in labels.names]
        mapped += [own[value] if own and value is not None else value for value in labels.values]
    return mapped, names


# --- reading ----------------------------------------------------------------------------------------------------------


@contextmanager
def _open_tables(tables: dict[str, _Table]) -> Iterator[Read]:
    """Yield a function that reads one image. A file is opened when its first image is read.

    Args:
        tables: prefix of the paths of a file -> the file.
    """
    readers: dict[str, Callable[[int], bytes]] = {}
    lock = threading.Lock()
    with ExitStack() as stack:

        def read(path: str) -> bytes:
            folder, slash, row = path.rpartition("/")
            prefix = folder + slash
            with lock:
                if prefix not in readers:
                    table = tables[prefix]
                    open_rows = _arrow_rows if _is_arrow(table.uri) else _parquet_rows
                    readers[prefix] = stack.enter_context(open_rows(table))
            return readers[prefix](int(row))

        yield read


@contextmanager
def _arrow_rows(table: _Table) -> Iterator[Callable[[int], bytes]]:
    """Yield a function that reads one row. The file is mapped into memory, so only the bytes of the row are read."""
    with _arrow(table.uri, table.token) as content:
        with _explained(table.uri, " is damaged"):
            chunks = [_binary(chunk) for chunk in _valid(content[table.column]).chunks]

        def read(row: int) -> bytes:
            group = bisect_right(table.starts, row) - 1
            return _present(chunks[group][row - table.starts[group]].as_py())

        yield read


def _binary(array: Any) -> Any:
    """Return the bytes of images in an array of any type that `_is_bytes` accepts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = _plain(array)
    return _binary(pc.struct_field(array, "bytes")) if pa.types.is_struct(array.type) else array


@contextmanager
def _parquet_rows(table: _Table) -> Iterator[Callable[[int], bytes]]:
    """Yield a function that reads one row.

    A row cannot be read without its row group, so each row group is unpacked once per machine when one of its rows is
    needed.
    """
    with kept(f"parquet\n{table.uri}\n{table.token}\n{table.column}") as folder:

        def read(row: int) -> bytes:
            group = bisect_right(table.starts, row) - 1
            path = made(folder, f"{group:06d}", table.num_bytes, partial(_unpack_group, table, group))
            return _unpacked_row(path, row - table.starts[group])

        yield read


def _unpack_group(table: _Table, group: int, out: IO[bytes]) -> None:
    """Write the images of one row group: the offset of each image and of the end (int64), then the bytes of all images.

    Raises:
        StepError: the row group is damaged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    # Read the column.
    with _explained(table.uri, f": row group {group} is damaged"):
        with _parquet(table.uri, table.token) as file:
            column = file.read_row_group(group, columns=[table.column])[table.column]
        values = pa.concat_arrays([_binary(chunk).cast(pa.large_binary()) for chunk in column.chunks])
        if len(values) != table.starts[group + 1] - table.starts[group]:
            raise ValueError(f"{len(values)} rows")

    # Write the offsets, counted from the beginning of the file, then the images. A null takes no bytes.
    lengths = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]) + 8 * (len(values) + 1)
    out.write(offsets.astype("<i8").tobytes())
    for value in values:
        if value.is_valid:
            out.write(value.as_buffer())


def _unpacked_row(path: Path, row: int) -> bytes:
    """Return one image from a file of `_unpack_group`."""
    with open(path, "rb", buffering=0) as file:
        start, end = np.frombuffer(whole(os.pread(file.fileno(), 16, 8 * row), 16), "<i8").tolist()
        require_size(end - start)
        return _present(whole(os.pread(file.fileno(), end - start, start), end - start))


def _present(content: bytes | None) -> bytes:
    """Return the bytes of an image, or raise ValueError if the row has none."""
    if not content:
        raise ValueError("the row contains no bytes of an image")
    return content


@contextmanager
def _parquet(uri: str, token: str) -> Iterator[Any]:
    """Yield an open `pyarrow.parquet.ParquetFile`."""
    import pyarrow.parquet as pq

    with open_file(uri, token) as file, pq.ParquetFile(file) as parquet:
        yield parquet


@contextmanager
def _arrow(uri: str, token: str) -> Iterator[Any]:
    """Yield the table in an Arrow file without copying it into memory.

    The file may have the stream format, which Hugging Face's `datasets` writes, or the file format with an index.
    """
    import pyarrow as pa

    with local_copy(uri, token) as path, pa.memory_map(str(path)) as content:
        try:
            reader = pa.ipc.open_stream(content)
        except pa.ArrowInvalid:
            content.seek(0)
            reader = pa.ipc.open_file(content)
        yield reader.read_all()
