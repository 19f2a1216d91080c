"""List and read Parquet and Arrow files with encoded images in a column, the form of Hugging Face's data sets."""

from __future__ import annotations

import json
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
from stylegan.data.sources.access.ranges import open_file, whole
from stylegan.data.sources.access.unpacked import kept, made
from stylegan.data.sources.base import Files, Label, Listing, Read, SourceImage
from stylegan.errors import StepError, one_line

NAMES = re.compile(r".*\.(parquet|arrow)", re.IGNORECASE)
_IMAGES = ("image", "img", "images", "picture", "png", "jpg", "jpeg", "webp", "bytes")
_LABELS = ("label", "labels", "fine_label", "cls", "class")


class _Columns(NamedTuple):
    """The columns of a file with images and labels, and the names of the classes in its schema."""

    image: str
    label: str | None
    names: tuple[str, ...]


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
    values: list[Any] = []
    names: tuple[str, ...] = ()
    with ThreadPoolExecutor(8) as pool:
        for path, (table, columns, label_column) in zip(paths, pool.map(partial(_scan, files), paths), strict=True):
            prefix = f"{posixpath.splitext(path)[0]}/" if len(paths) > 1 else ""
            tables[prefix] = table
            images += [SourceImage(f"{prefix}{row:08d}", None, table.token) for row in range(table.starts[-1])]
            values += label_column
            names = names or columns.names

    # Number the labels of all files together.
    labels, names = _labels(values, names)
    labelled = [SourceImage(image.path, label, image.token) for image, label in zip(images, labels, strict=True)]
    return Listing(labelled, partial(_open_tables, tables), reader="parquet", label_names=names)


def _scan(files: Files, path: str) -> tuple[_Table, _Columns, list[Any]]:
    """Return the row groups, the columns and the values of the label column of one file, without reading its images.

    Raises:
        StepError: the file cannot be read.
    """
    import pyarrow as pa

    uri, token = files.uri(path), files.tokens[path]
    where = f"data.source={files.source}: {path}"
    scan = _scan_arrow if path.lower().endswith(".arrow") else _scan_parquet
    try:
        return scan(where, uri, token)
    except (pa.ArrowException, OSError) as error:
        raise StepError(f"{where} is not readable ({one_line(error)}); get the file again") from error


def _scan_parquet(where: str, uri: str, token: str) -> tuple[_Table, _Columns, list[Any]]:
    """Do the work of `_scan` for a Parquet file."""
    with _parquet(uri, token) as file:
        columns = _columns(where, file.schema_arrow)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        starts = (0, *accumulate(group.num_rows for group in groups))
        labels = file.read(columns=[columns.label])[columns.label].to_pylist() if columns.label else [None] * starts[-1]
        parts = [group.column(number) for group in groups for number in range(group.num_columns)]
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == columns.image)
        size += 8 * (starts[-1] + len(groups))  # the offsets that `_unpack_group` writes
        return _Table(uri, token, columns.image, size, starts), columns, labels


def _scan_arrow(where: str, uri: str, token: str) -> tuple[_Table, _Columns, list[Any]]:
    """Do the work of `_scan` for an Arrow file."""
    with _arrow(uri, token) as table:
        columns = _columns(where, table.schema)
        starts = (0, *accumulate(len(chunk) for chunk in table[columns.image].chunks))
        labels = table[columns.label].to_pylist() if columns.label else [None] * starts[-1]
        return _Table(uri, token, columns.image, 0, starts), columns, labels


def _columns(where: str, schema: Any) -> _Columns:
    """Find the columns with images and labels.

    Use the description that Hugging Face's `datasets` writes into the schema if there is one. Without it, take a column
    with a usual name, else the only column of a suitable type.

    Raises:
        StepError: no column contains bytes, or several do and none has a usual name.
    """
    # Read the description: column name -> feature.
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        features = {name: feature for name, feature in described.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        features = {}

    # The images.
    encoded = [name for name in schema.names if _is_bytes(schema.field(name).type)]
    image = _choose([name for name in encoded if features.get(name, {}).get("_type") == "Image"] or encoded, _IMAGES)
    if image is None:
        raise StepError(
            f"{where} has the columns {', '.join(schema.names)[:200]}; one of them must hold the bytes of images, and be named "
            f"{_IMAGES[0]} if several do"
        )

    # The labels and the names of their classes.
    label = _choose([name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"], _LABELS)
    if label is None:
        usual = [name for name in schema.names if name in _LABELS and _is_label(schema.field(name).type)]
        label = _choose(usual, _LABELS)
    names = features.get(label or "", {}).get("names")
    return _Columns(image, label, tuple(map(str, names)) if isinstance(names, list) else ())


def _choose(names: list[str], usual: tuple[str, ...]) -> str | None:
    """Return the first usual name among the names, else the only name, else None."""
    return next((name for name in usual if name in names), names[0] if len(names) == 1 else None)


def _is_bytes(kind: Any) -> bool:
    """Return True if a type of Arrow is binary, or a struct with a binary field `bytes`."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_label(kind: Any) -> bool:
    """Return True if a type of Arrow is integer or text, or a dictionary of these."""
    import pyarrow as pa

    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(inner) or pa.types.is_string(inner) or pa.types.is_large_string(inner))


def _labels(values: list[Any], names: tuple[str, ...]) -> tuple[list[Label], tuple[str, ...]]:
    """Return the labels and the names of their classes.

    Whole numbers are class numbers; negative ones and nulls become None. Texts are numbered in sorted order and are the
    names.
    """
    texts = sorted({value for value in values if isinstance(value, str)})
    if texts:
        numbers = {text: number for number, text in enumerate(texts)}
        return [None if value is None else numbers[str(value)] for value in values], tuple(texts)
    return [value if isinstance(value, int) and value >= 0 else None for value in values], names


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
                    open_rows = _arrow_rows if table.uri.lower().endswith(".arrow") else _parquet_rows
                    readers[prefix] = stack.enter_context(open_rows(table))
            return readers[prefix](int(row))

        yield read


@contextmanager
def _arrow_rows(table: _Table) -> Iterator[Callable[[int], bytes]]:
    """Yield a function that reads one row. The file is mapped into memory, so only the bytes of the row are read."""
    with _arrow(table.uri, table.token) as content:
        chunks = content[table.column].chunks

        def read(row: int) -> bytes:
            group = bisect_right(table.starts, row) - 1
            value = chunks[group][row - table.starts[group]].as_py()
            return _present(value["bytes"] if isinstance(value, dict) else value)

        yield read


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
    try:
        with _parquet(table.uri, table.token) as file:
            column = file.read_row_group(group, columns=[table.column])[table.column]
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")
        values = pa.concat_arrays([chunk.cast(pa.large_binary()) for chunk in column.chunks])
    except (pa.ArrowException, OSError) as error:
        raise StepError(f"{table.uri}: row group {group} is damaged ({one_line(error)}); get the file again") from error

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
