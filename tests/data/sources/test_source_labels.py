"""Tests of labels: from folders, dataset.json and tables of attributes, and which of them is used."""

import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stylegan.errors import ConfigError, StepError


def with_labels(folder: Path, labels: object) -> Path:
    """Write a dataset.json with these labels and return its folder."""
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


@pytest.fixture
def names(image_folder, opened):
    """Return the paths of all images in `image_folder`."""
    return [image.path for image in opened(image_folder).images]


def test_dataset_json_wins_over_folders(image_folder, names, opened):
    """Whole numbers in dataset.json come before class folders. A number that no image has is a class all the same."""
    with_labels(image_folder, [[name, 3 * (number % 2)] for number, name in enumerate(names)])
    for source in (opened(image_folder), opened(image_folder, "file"), opened(image_folder, label_file="dataset.json")):
        assert source.label_names == ("0", "1", "2", "3")
        assert [image.label for image in source.images] == [3 * (number % 2) for number in range(12)]
    assert opened(image_folder, "folder").label_names == ("cat", "dog")
    assert {image.label for image in opened(image_folder, "none").images} == {None}


def test_dataset_json_may_say_unlabelled(image_folder, opened):
    """With {"labels": null} the images have no labels, even if there are class folders."""
    source = opened(with_labels(image_folder, None))
    assert (source.label_names, source.images[0].label) == ((), None)


def test_dataset_json_may_leave_images_out(image_folder, names, opened):
    """An image that dataset.json does not name, or names with null, has no label."""
    with_labels(image_folder, [[name, 1] for name in names[2:]] + [[names[1], None]])
    source = opened(image_folder)
    assert [image.label for image in source.images] == [None, None] + [1] * 10


def test_dataset_json_of_attribute_vectors(image_folder, names, opened):
    """Vectors in dataset.json are attributes, not classes; -1 means `no` as 0 does."""
    for no in (0, -1, 0.0):
        with_labels(
            image_folder, [[name, [no, 1, int(name.startswith("cat"))] if no == 0 else [no, 1, -1]] for name in names]
        )
        source = opened(image_folder)
        assert (source.label_names, source.attribute_names) == ((), ("0", "1", "2"))
        assert source.images[0].label == (0, 1, int(no == 0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pairs: [*pairs, ["cat/gone.png", 0], ["cat/gone2.png", 0]], "names cat/gone.png, which is not there"),
        (lambda pairs: [[name, 0.5] for name, _ in pairs], "cat/0.png the label 0.5; must be a whole number"),
        (lambda pairs: [[name, -1] for name, _ in pairs], "cat/0.png the label -1"),
        (
            lambda pairs: [[name, [1, 2]] for name, _ in pairs],
            "cat/0.png the attribute '2'; must be 0 or 1, or -1 or 1",
        ),
        (lambda pairs: [[name, [-1, 0]] for name, _ in pairs], "both 0 and -1"),
        (
            lambda pairs: [[name, [0] * (2 + number // 3)] for number, (name, _) in enumerate(pairs)],
            "where others have 2 attributes",
        ),
        (
            lambda pairs: [[name, [0] if number else 0] for number, (name, _) in enumerate(pairs)],
            "where others have 1 attributes",
        ),
        (lambda pairs: [name for name, _ in pairs], "is not of the form"),
        (lambda pairs: 7, "is not of the form"),
    ],
)
def test_wrong_dataset_json_is_one_line(image_folder, names, opened, change, words):
    """A label file that does not fit gives one line with the first wrong image and the cure."""
    with_labels(image_folder, change([[name, 0] for name in names]))
    with pytest.raises(StepError) as caught:
        opened(image_folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_that_are_asked_for_must_be_there(image_folder, draw_images, opened):
    """The config is wrong if it asks for folder labels but an image is in no folder, or for a file that is missing."""
    draw_images(image_folder, ["flat.png"])
    with pytest.raises(ConfigError, match=r"data\.labels=folder: 1 of 13 images .* such as flat\.png"):
        opened(image_folder, "folder")
    with pytest.raises(
        ConfigError, match=r"has no dataset\.json, list_attr_celeba\.txt or list_attr_celeba\.csv at its top"
    ):
        opened(image_folder, "file")
    with pytest.raises(ConfigError, match=r"data\.label_file=there\.csv: .* has no such file"):
        opened(image_folder, label_file="there.csv")
    with pytest.raises(ConfigError, match=r"data\.label_file=/no/there\.csv: no such file"):
        opened(image_folder, label_file="/no/there.csv")
    assert opened(image_folder).label_names == ()


CELEBA = "3\nSmiling Male\n000001.jpg -1  1\n000002.jpg  1 -1\n000003.jpg  1  1\n"
VECTORS = [(0, 1), (1, 0), (1, 1)]


@pytest.fixture
def celeba(tmp_path, draw_images):
    """Return a folder with the layout of the public download and lossless PNGs, which the list calls .jpg."""
    draw_images(tmp_path / "celeba" / "img_align_celeba", [f"00000{number}.png" for number in (1, 2, 3)])
    return tmp_path / "celeba"


def test_celebas_list(celeba, opened):
    """CelebA's list gives attributes with their names. It is at the top, or elsewhere if `data.label_file` names it."""
    (celeba / "list_attr_celeba.txt").write_text(CELEBA)
    (celeba / "Anno").mkdir()
    (celeba / "Anno" / "mine.txt").write_text(CELEBA)
    for source in (opened(celeba), opened(celeba, "file"), opened(celeba, label_file="Anno/mine.txt")):
        assert (source.label_names, source.attribute_names) == ((), ("Smiling", "Male"))
        assert [image.label for image in source.images] == VECTORS


def test_named_table_above_the_images(celeba, opened):
    """A table may be above the folder of all images, although that folder is removed from the paths."""
    (celeba / "Anno").mkdir()
    (celeba / "Anno" / "mine.txt").write_text(CELEBA)
    source = opened(celeba, label_file="Anno/mine.txt")
    assert [image.path for image in source.images] == ["000001.png", "000002.png", "000003.png"]
    assert [image.label for image in source.images] == VECTORS


@pytest.mark.parametrize("where", ["inside", "elsewhere", "memory"])
def test_table_with_commas(celeba, opened, where, tmp_path):
    """A CSV table may be inside the source, at another path or at a URL."""
    text = "image_id,Smiling,Male\n000001.jpg,0,1\n000002.jpg,1,0\n"
    if where == "inside":
        (celeba / "table.csv").write_text(text)
        label_file = "table.csv"
    elif where == "elsewhere":
        (tmp_path / "table.csv").write_text(text)
        label_file = str(tmp_path / "table.csv")
    else:
        fsspec.filesystem("memory").pipe("/labels/table.csv", text.encode())
        label_file = "memory://labels/table.csv"
    source = opened(celeba, label_file=label_file)
    assert source.attribute_names == ("Smiling", "Male")
    assert [image.label for image in source.images] == [(0, 1), (1, 0), None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image_id,Smiling,Male\n000001.jpg,0,2\n", "gives 000001.jpg the attribute '2'; must be 0 or 1, or -1 or 1"),
        ("image_id,Smiling,Male\n000001.jpg,0,yes\n", "the attribute 'yes'"),
        ("image_id,Smiling,Male\n000001.jpg,0,1\n000002.jpg,-1,1\n", "both 0 and -1"),
        ("image_id,Smiling,Male\n000001.jpg,0\n", "gives 000001.jpg 1 attributes, but its header names 2"),
        ("image_id,Smiling\n000001.jpg,0\ngone.jpg,0\n", "names gone, which is not there"),
        ("image_id,Smiling\ngone.jpg,0\n", "names gone.jpg, which is not there"),
        ("image_id,Smiling,Smiling\n", "each once"),
        ("", "is not a table of attributes"),
    ],
)
def test_wrong_tables_are_one_line(celeba, opened, text, words):
    """A wrong table gives one line with the file, the image and what is allowed."""
    (celeba / "table.csv").write_text(text)
    with pytest.raises(StepError) as caught:
        opened(celeba, label_file="table.csv")
    assert words in str(caught.value)
    assert "table.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"labels": {"a.png": 1}}', "is not of the form"),
        (b'{"labels": {"ab": 1}}', "`labels` is {'ab': 1}"),
        (b'{"labels": "ab"}', "`labels` is 'ab'"),
        (b'{"labels": [["cat/0.png", 1], "ab"]}', "entry 2 of `labels` is 'ab'"),
        (b'{"labels": [["cat/0.png", 1, 2]]}', "entry 1 of `labels` is ['cat/0.png', 1, 2]"),
        (b'{"labels": [[1, 2]]}', "entry 1 of `labels` is [1, 2]"),
        (b'{"labels": [[["cat/0.png"], 1]]}', "entry 1 of"),
        (b'{"labels": [["cat/0.png", 1], ["cat/0.png", 2]]}', "gives cat/0.png two labels, 1 and 2"),
        (b'{"labels": [["cat/0.png", 1], ["cat\\\\0.png", 2]]}', "gives cat/0.png two labels"),
        (b'{"labels": [["cat/0.png", true]]}', "the label True; must be a whole number"),
        (b'{"labels": [["cat/0.png", NaN]]}', "the label nan"),
        (b'{"labels": [["cat/0.png", Infinity]]}', "the label inf"),
        (b'{"labels": [["cat/0.png", "cat"]]}', "the label 'cat'"),
        (b'{"labels": [["cat/0.png", {"a": 1}]]}', "the label {'a': 1}"),
        (b'{"labels": [["cat/0.png", 1], ["cat/1.png", "cat"]]}', "cat/1.png the label 'cat'"),
        (b'{"labels": [["cat/0.png", 1000000]]}', "the label 1000000; must be a whole number from 0 to 99999"),
        (b'{"labels": [["cat/0.png", 1' + b"0" * 5000 + b"]]}", "it is not JSON"),
        (b'{"labels": [["cat/0.png", [0, 1]], ["cat/1.png", 1]]}', "cat/1.png the label 1, where others have 2"),
        (b'{"labels": [["cat/0.png", [0, "x"]]]}', "the attribute 'x'"),
        (b'{"labels": [["cat/0.png", [0, [1]]]]}', "the attribute '[1]'"),
        (b'{"labels": [["cat/0.png", []]]}', "must be vectors of one length, from 1"),
        (b'{"labels": [["cat/\\ud800\\n.png", 1]]}', r"names cat/\ud800\n.png, which is not there"),
        (b"[" * 200_000, "it is not JSON (nested too deeply)"),
        (b"", "it is not JSON"),
        (b'["a"]', "it has no entry `labels`"),
        (b"\xff", "it is not JSON"),
    ],
)
def test_odd_dataset_json_is_one_line(image_folder, opened, text, words):
    """Any shape and type gives one line with the file, the entry, its value and the cure."""
    (image_folder / "dataset.json").write_bytes(text)
    with pytest.raises(StepError) as caught:
        opened(image_folder)
    message = str(caught.value)
    assert words in message
    assert "dataset.json" in message
    assert message.isprintable()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_label_files_in_any_encoding(celeba, opened, encoding, ends):
    """JSON and tables may have any line ends, and be UTF-8 or UTF-16."""
    names = [f"00000{number}.png" for number in (1, 2, 3)]
    text = json.dumps({"labels": [[name, list(vector)] for name, vector in zip(names, VECTORS, strict=True)]}, indent=1)
    (celeba / "mine.json").write_bytes(text.replace("\n", ends).encode(encoding))
    assert [image.label for image in opened(celeba, label_file="mine.json").images] == VECTORS
    if encoding != "utf-16-le":  # a table needs the mark at its beginning
        rows = [
            "name,Smiling,Male",
            *(f'"{name}",{a},{b}' for name, (a, b) in zip(names, VECTORS, strict=True)),
            "",
            " ",
        ]
        (celeba / "mine.csv").write_bytes(ends.join(rows).encode(encoding))
        assert [image.label for image in opened(celeba, label_file="mine.csv").images] == VECTORS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,Smiling\n000001.png,0\n000001.png,1\n", "gives 000001.png two labels, (0,) and (1,)"),
        ("a,Smiling\n000001.png,nan\n", "the attribute 'nan'"),
        ("a,Smiling\n000001.png,1e400\n", "the attribute '1e400'"),
        ("a,Smiling\n000001.png,\n", "the attribute ''"),
        ("a,Smiling\n000001.png,0,1\n", "gives 000001.png 2 attributes, but its header names 1"),
        ('a,Smiling\n"000001.png,0\n000002.png,1\n', "attributes, but its header names 1"),
        ("a,Smiling\n" + "x" * 200_000 + ",0\n", "is not a table of attributes (field larger"),
        ("a;Smiling\n000001.png;0\n", "it names 0"),
        ("a,,Smiling\n", "it names 2, , Smiling"),
        ("a,Smiling\n", "has no row with an image"),
        ("3\n", "is not a table of attributes"),
        ("3\nSmiling\n000001.jpg\n", "gives 000001.jpg 0 attributes"),
        ('{"file_name": "000001.png", "label": 1}\n', "is JSON, not a table"),
        ("a,Smiling\n\u202e\x1b[2Jx.png,0\n", r"names \u202e\x1b[2Jx.png, which is not there"),
    ],
)
def test_odd_tables_are_one_line(celeba, opened, text, words):
    """A table of any shape gives one line with the file, the row and its value."""
    (celeba / "table.csv").write_text(text)
    with pytest.raises(StepError) as caught:
        opened(celeba, label_file="table.csv")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_names_of_classes(tmp_path, opened):
    """Equal names are kept apart, and a name that is no text is refused."""
    rows = pa.table({"image": [b"a", b"b", b"c"], "label": [0, 1, 2]})

    def named(*names):
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        described = json.dumps({"info": {"features": features}})
        pq.write_table(rows.replace_schema_metadata({"huggingface": described}), tmp_path / "a.parquet")
        return opened(tmp_path / "a.parquet")

    assert named("crane", "crane", "crane (1)").label_names == ("crane", "crane (1)", "crane (1) (2)")
    with pytest.raises(StepError, match=r"has the class or attribute a\\ud800, which is no text in UTF-8; rename"):
        named("a\ud800", "b", "c")


@pytest.mark.parametrize("name", ["labels.json", "labels.csv"])
def test_image_with_two_labels_is_refused(image_folder, tmp_path, opened, name):
    """A label file that contradicts itself is refused; a repeated line is harmless."""
    entries = [["cat/0.png", [1]], ["cat\\0.png", [0]]]
    rows = ["image,old", *(f"{path},{label[0]}" for path, label in entries)]
    for count in (2, 1):
        text = (
            json.dumps({"labels": entries[:count] * 2})
            if name.endswith("json")
            else "\n".join([*rows[: count + 1], *rows[1 : count + 1]])
        )
        (tmp_path / name).write_text(text)
        if count == 2:
            with pytest.raises(StepError, match=r"gives cat/0\.png two labels"):
                opened(image_folder, label_file=str(tmp_path / name))
    assert opened(image_folder, label_file=str(tmp_path / name)).images[0].label == (1,)


def test_label_file_too_large_to_be_read(image_folder, tmp_path, opened, monkeypatch):
    """It is refused before it fills the memory."""
    (tmp_path / "labels.json").write_text(json.dumps({"labels": None}) + " " * 100)
    assert opened(image_folder, label_file=str(tmp_path / "labels.json")).images
    monkeypatch.setattr("stylegan.data.sources.base.read_whole.__defaults__", (100,))
    with pytest.raises(StepError, match=r"labels\.json: has 116 bytes, where at most 100 are read"):
        opened(image_folder, label_file=str(tmp_path / "labels.json"))


@pytest.mark.parametrize("table", [False, True])
def test_backslashes_in_label_files(tmp_path, opened, listed, table):
    """They separate folders, as tools on Windows write them, unless an image has that very name."""
    (tmp_path / "set" / "cats").mkdir(parents=True)
    for name in ("cats/1.png", "cats\\1.png", "cats/2.png"):
        (tmp_path / "set" / name).write_bytes(b"x")
    rows = {"cats\\1.png": 0, "cats/1.png": 1, "cats\\2.png": 1}
    if table:
        text = "image,big\n" + "".join(f"{name},{number}\n" for name, number in rows.items())
        (tmp_path / "set" / "list_attr_celeba.csv").write_text(text)
    else:
        with_labels(tmp_path / "set", [[name, [number]] for name, number in rows.items()])
    assert listed(opened(tmp_path / "set")) == [("cats/1.png", (1,)), ("cats/2.png", (1,)), ("cats\\1.png", (0,))]
