"""Tests of Parquet and Arrow files in the form that Hugging Face's `datasets` writes."""

import json
import struct
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stylegan.errors import StepError

FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def table(num: int = 10, *, features: dict | None = FEATURES, **columns: object) -> pa.Table:
    """Return a table of images and labels with the description that Hugging Face's `datasets` writes."""
    rows = [{"bytes": b"image %d" % number, "path": f"{number}.png"} for number in range(num)]
    plain = pa.table({"image": rows, "label": [number % 2 for number in range(num)], **columns})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    return plain.replace_schema_metadata(metadata)


def parquet(path: Path, content: pa.Table, *, rows: int = 3) -> Path:
    """Write a table as Parquet with so many rows in a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, row_group_size=rows)
    return path


def arrow(path: Path, content: pa.Table, *, rows: int = 3, stream: bool = True) -> Path:
    """Write a table as Arrow, in the stream or the file format, with so many rows in a record batch."""
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), content.schema) as writer:
        writer.write_table(content, max_chunksize=rows)
    return path


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_rows_are_images(tmp_path, opened, listed, contents, kind):
    """Each row gives an image and a label, in row groups of any size. The schema gives the names of the classes."""
    if kind == "parquet":
        path = parquet(tmp_path / "a.parquet", table())
    else:
        path = arrow(tmp_path / "a.arrow", table(), stream=kind == "stream")
    source = opened(path)
    assert source.label_names == ("cat", "dog")
    assert listed(source) == [(f"{row:08d}", row % 2) for row in range(10)]
    assert list(contents(source).values()) == [b"image %d" % row for row in range(10)]


def test_files_of_a_folder(tmp_path, opened, contents):
    """A folder gives its training files; a pattern gives others."""
    for name, num in (("train-00000-of-00002", 4), ("train-00001-of-00002", 3), ("test-00000-of-00001", 2)):
        parquet(tmp_path / "data" / f"{name}.parquet", table(num))
    (tmp_path / "thumbnail.png").write_bytes(b"x")
    source = opened(tmp_path)
    assert len(source.images) == 7
    assert source.images[4].path == "data/train-00001-of-00002/00000000"
    assert contents(source)["data/train-00001-of-00002/00000002"] == b"image 2"
    assert len(opened(tmp_path / "data" / "test-*.parquet").images) == 2


def test_only_needed_row_groups_are_read(tmp_path, opened):
    """Damage in one row group does not affect the images of other row groups."""
    path = parquet(tmp_path / "a.parquet", table(9))
    group = pq.ParquetFile(path).metadata.row_group(1)
    start = min(
        group.column(number).dictionary_page_offset or group.column(number).data_page_offset
        for number in range(group.num_columns)
    )
    source, content = opened(path), bytearray(path.read_bytes())
    content[start : start + 20] = bytes(20)
    path.write_bytes(content)
    with source.open() as read:
        assert read("00000001") == b"image 1"
        assert read("00000008") == b"image 8"
        with pytest.raises(StepError, match="row group 1 is damaged"):
            read("00000004")


def test_plain_bytes_and_texts(tmp_path, opened, contents):
    """A column of plain bytes may have another usual name, classes may be texts, and null means no label."""
    content = pa.table({"id": [1, 2, 3], "jpg": [b"a", b"b", b"c"], "label": ["dog", None, "cat"]})
    source = opened(parquet(tmp_path / "a.parquet", content))
    assert source.label_names == ("cat", "dog")
    assert [image.label for image in source.images] == [1, None, 0]
    assert list(contents(source).values()) == [b"a", b"b", b"c"]


def test_label_minus_one_is_none(tmp_path, opened):
    """A label of -1 means no label, as in test sets whose labels are not public."""
    content = table(3).set_column(1, "label", pa.array([0, -1, 1]))
    assert [image.label for image in opened(parquet(tmp_path / "a.parquet", content)).images] == [0, None, 1]


def test_label_out_of_the_names(tmp_path, opened):
    """A label without a name is refused if the schema names the classes."""
    content = table(3).set_column(1, "label", pa.array([0, 7, 1])).replace_schema_metadata(table(1).schema.metadata)
    with pytest.raises(StepError, match="has the label 7 but names only 2"):
        opened(parquet(tmp_path / "a.parquet", content))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_row_without_bytes_is_that_images_fault(tmp_path, opened, kind):
    """A row without bytes raises ValueError; the other rows can be read."""
    rows = [{"bytes": b"a", "path": None}, {"bytes": None, "path": "x.png"}, None, {"bytes": b"d", "path": None}]
    content = pa.table({"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
    path = tmp_path / f"a.{kind}"
    source = opened((parquet if kind == "parquet" else arrow)(path, content))
    with source.open() as read:
        assert (read("00000000"), read("00000003")) == (b"a", b"d")
        for name in ("00000001", "00000002"):
            with pytest.raises(ValueError, match="no bytes of an image"):
                read(name)


def test_which_column_cannot_be_known(tmp_path, opened):
    """A file is refused if several columns of bytes have no usual name, or if no column has bytes."""
    for columns in ({"a": [b"x"], "b": [b"y"]}, {"a": [1]}):
        with pytest.raises(StepError, match="one of them must hold the bytes of images, and be named image"):
            opened(parquet(tmp_path / "a.parquet", pa.table(columns)))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_damaged_file(tmp_path, opened, name):
    """A damaged file gives one line with its name."""
    (tmp_path / name).write_bytes(b"neither of them" * 10)
    with pytest.raises(StepError, match=rf"{name} is not readable") as caught:
        opened(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_parquet_and_arrow_in_a_bucket(tmp_path, upload, opened, contents):
    """Files in a bucket can be read: Parquet by ranges, Arrow from a local copy."""
    for path in (parquet(tmp_path / "a.parquet", table()), arrow(tmp_path / "a.arrow", table())):
        assert list(contents(opened(upload(path))).values()) == [b"image %d" % row for row in range(10)]


LABELS = {
    "int8": (pa.array([0, None, 1, -1], pa.int8()), [0, None, 1, None], ("0", "1")),
    "float": (pa.array([0.0, float("nan"), 1.0, None]), [0, None, 1, None], ("0", "1")),
    "decimal": (pa.array([Decimal("0.00"), None, Decimal("1.00"), None]), [0, None, 1, None], ("0", "1")),
    "bool": (pa.array([False, True, None, True]), [0, 1, None, 1], ("false", "true")),
    "string": (pa.array(["dog", "cat", None, "dog"]), [1, 0, None, 1], ("cat", "dog")),
    "large_string": (pa.array(["dog", "cat", None, "dog"], pa.large_string()), [1, 0, None, 1], ("cat", "dog")),
    "string_view": (pa.array(["dog", "cat", None, "dog"], pa.string_view()), [1, 0, None, 1], ("cat", "dog")),
    "dictionary": (pa.array(["dog", "cat", None, "dog"]).dictionary_encode(), [1, 0, None, 1], ("cat", "dog")),
    "dictionary of numbers": (pa.array([1, 0, None, 1]).dictionary_encode(), [1, 0, None, 1], ("0", "1")),
    "list": (pa.array([[0, 1], [1, 0], None, [1, 1]]), [(0, 1), (1, 0), None, (1, 1)], ("0", "1")),
    "list of floats": (pa.array([[-1.0, 1.0], [1.0, -1.0], None, None]), [(0, 1), (1, 0), None, None], ("0", "1")),
    "fixed list": (pa.array([[0, 1], [1, 0]] * 2, pa.list_(pa.int64(), 2)), [(0, 1), (1, 0)] * 2, ("0", "1")),
    "large list": (
        pa.array([[True], [False], None, None], pa.large_list(pa.bool_())),
        [(1,), (0,), None, None],
        ("0",),
    ),
    "null": (pa.nulls(4), [None] * 4, ()),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("name", LABELS)
def test_label_columns_of_every_type(tmp_path, opened, name, kind):
    """Numbers, texts, booleans and vectors of any layout are read; nulls mean no label."""
    column, labels, names = LABELS[name]
    content = pa.table({"image": [b"a", b"b", b"c", b"d"], "label": column})
    source = opened((parquet if kind == "parquet" else arrow)(tmp_path / f"a.{kind}", content))
    assert [image.label for image in source.images] == labels
    assert (source.label_names or source.attribute_names) == names


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([0.0, -0.5]), "gives row 1 the label -0.5"),
        (pa.array([0.5, 1.0]), r"the column label gives row 0 the label 0\.5; must be a whole number"),
        (pa.array([0.0, float("inf")]), "gives row 1 the label inf"),
        (pa.array([0, 2**40]), "gives row 1 the label 1099511627776"),
        (pa.array([[0, 2], [1, 0]]), "gives row 0 the attribute '2'"),
        (pa.array([[0, None], [1, 0]]), "the attribute 'None'"),
        (pa.array([[], [1, 0]]), "gives row 0 no attributes"),
        (pa.array([[1], [1, 0]]), r"vectors of \[1, 2\] attributes"),
        (
            pa.array([{"a": 1}, {"a": 2}]),
            r"has labels of the type struct<a: int64> in the column label; they must be numbers",
        ),
        (pa.array([datetime(2026, 1, 1)] * 2), r"has labels of the type timestamp"),
        (pa.array([["cat"], ["dog"]]), r"has labels of the type list<.*string> in the column label"),
        (pa.array([b"cat", b"dog"]), r"has labels of the type binary"),
    ],
)
def test_label_columns_that_hold_no_labels(tmp_path, opened, column, words):
    """One line names the file, the column, the row and its value; `data.labels=none` leaves the labels out."""
    path = parquet(tmp_path / "a.parquet", pa.table({"image": [b"a", b"b"], "label": column}))
    with pytest.raises(StepError, match=words) as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    assert len(opened(path, "none").images) == 2


def with_names(names: list[str] | None, labels: list[object]) -> pa.Table:
    """Return a table of images with these labels, whose schema names the classes."""
    features = FEATURES | {"label": {"names": names, "_type": "ClassLabel"}}
    rows = [{"bytes": b"x", "path": None}] * len(labels)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    return pa.table({"image": rows, "label": labels}).replace_schema_metadata(metadata)


def test_names_of_several_files_are_put_together(tmp_path, opened):
    """A class has the number of its name, whatever number it has in its own file."""
    parquet(tmp_path / "d-0.parquet", with_names(["cat", "dog"], [0, 1]))
    parquet(tmp_path / "d-1.parquet", with_names(["dog", "cat"], [0, 1]))
    parquet(tmp_path / "d-2.parquet", with_names(["cow", "cat"], [0, None]))
    source = opened(tmp_path)
    assert source.label_names == ("cat", "dog", "cow")
    assert [image.label for image in source.images] == [0, 1, 1, 0, 2, None]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (with_names(None, [0, 1]), r"d-0\.parquet has numbers with names and d-1\.parquet has numbers"),
        (with_names(None, ["cat", "dog"]), "d-1.parquet has texts"),
        (with_names(None, [[0, 1], [1, 0]]), "d-1.parquet has attributes"),
    ],
)
def test_files_with_other_kinds_of_labels(tmp_path, opened, other, words):
    """Numbers with names, numbers without, texts and attributes cannot be put together."""
    parquet(tmp_path / "d-0.parquet", with_names(["cat", "dog"], [0, 1]))
    parquet(tmp_path / "d-1.parquet", other)
    with pytest.raises(StepError, match=words):
        opened(tmp_path)
    assert len(opened(tmp_path, "none").images) == 4


BYTES = [b"abc", b"def", None]
ROWS = [{"bytes": value, "path": None} for value in BYTES]
IMAGES = {
    "binary": pa.array(BYTES),
    "large": pa.array(BYTES, pa.large_binary()),
    "view": pa.array(BYTES, pa.binary_view()),
    "fixed": pa.array(BYTES, pa.binary(3)),
    "dictionary": pa.array(BYTES).dictionary_encode(),
    "struct": pa.array(ROWS),
    "struct of large": pa.array(ROWS, pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])),
    "struct of view": pa.array(ROWS, pa.struct([("path", pa.string()), ("bytes", pa.binary_view())])),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("name", IMAGES)
def test_image_columns_of_every_type(tmp_path, opened, name, kind):
    """Bytes of every layout are images; a row without bytes is that image's fault."""
    rows = 3 if name == "struct of view" else 2  # pyarrow cannot write a part of such a column
    path = (parquet if kind == "parquet" else arrow)(
        tmp_path / f"a.{kind}", pa.table({"image": IMAGES[name]}), rows=rows
    )
    with opened(path).open() as read:
        assert [read("00000000"), read("00000001")] == BYTES[:2]
        with pytest.raises(ValueError, match="no bytes of an image"):
            read("00000002")


def test_lists_of_images_are_refused(tmp_path, opened):
    """Several images in a row are refused, also beside a column that could be read."""
    content = pa.table({"images": [[b"a", b"b"], [b"c"]], "thumbnail": [b"a", b"b"]})
    with pytest.raises(StepError, match="several images in a row of the column images; give each image its own row"):
        opened(parquet(tmp_path / "a.parquet", content))


@pytest.mark.parametrize("stream", [True, False])
def test_damaged_offsets_in_arrow(tmp_path, opened, stream):
    """Offsets that lead out of the file are noticed before they are followed."""
    path = arrow(tmp_path / "a.arrow", table(3), stream=stream)
    content = bytearray(path.read_bytes())
    offsets = struct.pack("<4i", 0, 7, 14, 21)
    content[content.index(offsets) + 8 : content.index(offsets) + 12] = struct.pack("<i", 2**31 - 8)
    source = opened(path)
    path.write_bytes(content)
    with pytest.raises(StepError, match=r"a\.arrow is not readable \(.*\); get the file again"):
        opened(path)
    with pytest.raises(StepError, match=r"a\.arrow is damaged"), source.open() as read:
        read("00000001")


def test_several_columns_of_classes(tmp_path, opened):
    """One of them must have a usual name."""
    features = {"image": {"_type": "Image"}} | {key: {"_type": "ClassLabel"} for key in ("age", "colour", "label")}
    content = table(2, features=features, age=[0, 1], colour=[1, 0])
    assert [image.label for image in opened(parquet(tmp_path / "a.parquet", content)).images] == [0, 1]
    with pytest.raises(StepError, match=r"has classes in the columns age, colour; name one of them label or set"):
        opened(parquet(tmp_path / "a.parquet", content.drop_columns("label")))
    assert len(opened(tmp_path / "a.parquet", "none").images) == 2


CLASSES = {"names": ["cat", "dog"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    "feature", [{"feature": CLASSES, "_type": "Sequence"}, {"feature": CLASSES, "_type": "List"}, [CLASSES]]
)
@pytest.mark.parametrize("rows", [[[0], [1]], [[0, 1], [1, 0]]])
def test_lists_of_classes_are_no_attributes(tmp_path, opened, feature, rows):
    """The list [0, 1] of class numbers would be taken for the attributes no and yes."""
    features = {"image": {"_type": "Image"}, "labels": feature}
    content = pa.table({"image": [b"x", b"y"], "labels": rows})
    content = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with pytest.raises(StepError, match="has lists of classes in the column labels; give each image one class"):
        opened(parquet(tmp_path / "a.parquet", content))
    assert len(opened(tmp_path / "a.parquet", "none").images) == 2
    assert opened(parquet(tmp_path / "b.parquet", content.replace_schema_metadata(None))).attribute_names
