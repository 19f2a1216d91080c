"""Parquet and Arrow files with encoded images in a column, as data sets of Hugging Face are kept."""

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
    """Where a file has its images and labels, and the names of classes that its schema knows."""

    image: str
    label: str | None
    names: tuple[str, ...]


class _Table(NamedTuple):
    """One file. `starts` are the first rows of its row groups (Arrow: record batches), then the number of all rows."""

    uri: str
    token: str
    column: str
    num_bytes: int
    starts: tuple[int, ...]


def list_images(files: Files) -> Listing:
    """Rows as `00000000` ..., of several files below the name of theirs. A token is that of the file."""
    paths = [path for path in files.tokens if NAMES.fullmatch(path)]
    tables: dict[str, _Table] = {}
    images: list[SourceImage] = []
    values: list[Any] = []
    names: tuple[str, ...] = ()
    with ThreadPoolExecutor(8) as pool:
        for path, (table, columns, found) in zip(paths, pool.map(partial(_scan, files), paths), strict=True):
            above = f"{posixpath.splitext(path)[0]}/" if len(paths) > 1 else ""
            tables[above] = table
            images += [SourceImage(f"{above}{row:08d}", None, table.token) for row in range(table.starts[-1])]
            values += found
            names = names or columns.names
    labels, names = _labels(values, names)
    listed = [SourceImage(image.path, label, image.token) for image, label in zip(images, labels, strict=True)]
    return Listing(listed, partial(_open, tables), reader="parquet", label_names=names)


def _scan(files: Files, path: str) -> tuple[_Table, _Columns, list[Any]]:
    """Row groups and labels of one file; its images are not read."""
    import pyarrow as pa

    uri, token = files.uri(path), files.tokens[path]
    where = f"data.source={files.source}: {path}"
    try:
        return (_scan_arrow if path.lower().endswith(".arrow") else _scan_parquet)(where, uri, token)
    except (pa.ArrowException, OSError) as error:
        raise StepError(f"{where} is not readable ({one_line(error)}); get the file again") from error


def _scan_parquet(where: str, uri: str, token: str) -> tuple[_Table, _Columns, list[Any]]:
    with _parquet(uri, token) as file:
        columns = _columns(where, file.schema_arrow)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        starts = (0, *accumulate(group.num_rows for group in groups))
        labels = file.read(columns=[columns.label])[columns.label].to_pylist() if columns.label else [None] * starts[-1]
        parts = [group.column(number) for group in groups for number in range(group.num_columns)]
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == columns.image)
        return _Table(uri, token, columns.image, size + 8 * (starts[-1] + len(groups)), starts), columns, labels


def _scan_arrow(where: str, uri: str, token: str) -> tuple[_Table, _Columns, list[Any]]:
    with _arrow(uri, token) as table:
        columns = _columns(where, table.schema)
        starts = (0, *accumulate(len(chunk) for chunk in table[columns.image].chunks))
        labels = table[columns.label].to_pylist() if columns.label else [None] * starts[-1]
        return _Table(uri, token, columns.image, 0, starts), columns, labels


def _columns(where: str, schema: Any) -> _Columns:
    """Told by the description that `datasets` leaves in the schema, else by usual names, else by being the only one possible."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        kinds = {}
    encoded = [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    image = _one([name for name in encoded if kinds.get(name, {}).get("_type") == "Image"] or encoded, _IMAGES)
    if image is None:
        raise StepError(
            f"{where} has the columns {', '.join(schema.names)[:200]}; one of them must hold the bytes of images, and be named "
            f"{_IMAGES[0]} if several do"
        )
    classes = [name for name in schema.names if kinds.get(name, {}).get("_type") == "ClassLabel"]
    label = _one(classes, _LABELS) or _one(
        [n for n in schema.names if n in _LABELS and _holds_labels(schema.field(n).type)], _LABELS
    )
    names = kinds.get(label or "", {}).get("names")
    return _Columns(image, label, tuple(map(str, names)) if isinstance(names, list) else ())


def _one(names: list[str], usual: tuple[str, ...]) -> str | None:
    """The first with a usual name, else the only one."""
    return next((name for name in usual if name in names), names[0] if len(names) == 1 else None)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_labels(kind: Any) -> bool:
    import pyarrow as pa

    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(inner) or pa.types.is_string(inner) or pa.types.is_large_string(inner))


def _labels(values: list[Any], names: tuple[str, ...]) -> tuple[list[Label], tuple[str, ...]]:
    """Class numbers as they are (-1 and null: none), texts by their order."""
    texts = sorted({value for value in values if isinstance(value, str)})
    if texts:
        numbers = {text: number for number, text in enumerate(texts)}
        return [None if value is None else numbers[str(value)] for value in values], tuple(texts)
    return [value if isinstance(value, int) and value >= 0 else None for value in values], names


# --- reading ----------------------------------------------------------------------------------------------------------


@contextmanager
def _open(tables: dict[str, _Table]) -> Iterator[Read]:
    readers: dict[str, Callable[[int], bytes]] = {}
    lock = threading.Lock()
    with ExitStack() as stack:

        def read(path: str) -> bytes:
            folder, slash, row = path.rpartition("/")
            above = folder + slash
            with lock:
                if above not in readers:
                    table = tables[above]
                    readers[above] = stack.enter_context(
                        (_arrow_rows if table.uri.lower().endswith(".arrow") else _parquet_rows)(table)
                    )
            return readers[above](int(row))

        yield read


@contextmanager
def _arrow_rows(table: _Table) -> Iterator[Callable[[int], bytes]]:
    """The file is mapped into memory, so a row costs what it has."""
    with _arrow(table.uri, table.token) as content:
        chunks = content[table.column].chunks

        def read(row: int) -> bytes:
            group = bisect_right(table.starts, row) - 1
            value = chunks[group][row - table.starts[group]].as_py()
            return _present(value["bytes"] if isinstance(value, dict) else value)

        yield read


@contextmanager
def _parquet_rows(table: _Table) -> Iterator[Callable[[int], bytes]]:
    """A row cannot be read without its row group, so each group that is needed is unpacked once per machine."""
    with kept(f"parquet\n{table.uri}\n{table.token}\n{table.column}") as folder:

        def read(row: int) -> bytes:
            group = bisect_right(table.starts, row) - 1
            path = made(folder, f"{group:06d}", table.num_bytes, partial(_unpack_group, table, group))
            return _unpacked_row(path, row - table.starts[group])

        yield read


def _unpack_group(table: _Table, group: int, out: IO[bytes]) -> None:
    """The images of one row group: where each begins (int64), where the last one ends, then all of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        with _parquet(table.uri, table.token) as file:
            column = file.read_row_group(group, columns=[table.column])[table.column]
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")
        values = pa.concat_arrays([chunk.cast(pa.large_binary()) for chunk in column.chunks])
    except (pa.ArrowException, OSError) as error:
        raise StepError(f"{table.uri}: row group {group} is damaged ({one_line(error)}); get the file again") from error
    lengths = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]) + 8 * (len(values) + 1)
    out.write(offsets.astype("<i8").tobytes())
    for value in values:
        if value.is_valid:
            out.write(value.as_buffer())


def _unpacked_row(path: Path, row: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        start, end = np.frombuffer(whole(os.pread(file.fileno(), 16, 8 * row), 16), "<i8").tolist()
        return _present(whole(os.pread(file.fileno(), end - start, start), end - start))


def _present(content: bytes | None) -> bytes:
    if not content:
        raise ValueError("the row holds no bytes of an image")
    return content


@contextmanager
def _parquet(uri: str, token: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with open_file(uri, token) as file, pq.ParquetFile(file) as parquet:
        yield parquet


@contextmanager
def _arrow(uri: str, token: str) -> Iterator[Any]:
    """The table of an Arrow file, as a stream (how `datasets` writes it) or with an index; it is not copied into memory."""
    import pyarrow as pa

    with local_copy(uri, token) as path, pa.memory_map(str(path)) as content:
        try:
            reader = pa.ipc.open_stream(content)
        except pa.ArrowInvalid:
            content.seek(0)
            reader = pa.ipc.open_file(content)
        yield reader.read_all()
