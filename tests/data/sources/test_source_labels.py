"""Labels: of folders, of dataset.json, of tables of attributes, and which of them counts."""

import json
from pathlib import Path

import fsspec
import pytest

from stylegan.errors import ConfigError, StepError


def with_labels(folder: Path, labels: object) -> Path:
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


@pytest.fixture
def names(image_folder, opened):
    return [image.path for image in opened(image_folder).images]


def test_dataset_json_wins_over_folders(image_folder, names, opened):
    """Whole numbers of dataset.json are the labels; a number nobody has is a class nevertheless."""
    with_labels(image_folder, [[name, 3 * (number % 2)] for number, name in enumerate(names)])
    for source in (opened(image_folder), opened(image_folder, "file"), opened(image_folder, label_file="dataset.json")):
        assert source.label_names == ("0", "1", "2", "3")
        assert [image.label for image in source.images] == [3 * (number % 2) for number in range(12)]
    assert opened(image_folder, "folder").label_names == ("cat", "dog")
    assert {image.label for image in opened(image_folder, "none").images} == {None}


def test_dataset_json_may_say_unlabelled(image_folder, opened):
    """{"labels": null} means no labels, although there are folders."""
    source = opened(with_labels(image_folder, None))
    assert (source.label_names, source.images[0].label) == ((), None)


def test_dataset_json_may_leave_images_out(image_folder, names, opened):
    """Who is not named, or named with null, has no label."""
    with_labels(image_folder, [[name, 1] for name in names[2:]] + [[names[1], None]])
    source = opened(image_folder)
    assert [image.label for image in source.images] == [None, None] + [1] * 10


def test_dataset_json_of_attribute_vectors(image_folder, names, opened):
    """Vectors are attributes, not classes; -1 is `no`."""
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
    """A label file that does not fit is refused with the first image that shows it, and the cure."""
    with_labels(image_folder, change([[name, 0] for name in names]))
    with pytest.raises(StepError) as caught:
        opened(image_folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_that_are_asked_for_must_be_there(image_folder, draw_images, opened):
    """labels=folder on partly flat images and labels=file without a file are told in one line."""
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
    """The layout of the public download, with the PNGs of its lossless edition, which the list calls .jpg."""
    draw_images(tmp_path / "celeba" / "img_align_celeba", [f"00000{number}.png" for number in (1, 2, 3)])
    return tmp_path / "celeba"


def test_celebas_list(celeba, opened):
    """The list at the top, or beside the images when it is named, gives attributes with their names."""
    (celeba / "list_attr_celeba.txt").write_text(CELEBA)
    (celeba / "Anno").mkdir()
    (celeba / "Anno" / "mine.txt").write_text(CELEBA)
    for source in (opened(celeba), opened(celeba, "file"), opened(celeba, label_file="Anno/mine.txt")):
        assert (source.label_names, source.attribute_names) == ((), ("Smiling", "Male"))
        assert [image.label for image in source.images] == VECTORS


def test_named_table_above_the_images(celeba, opened):
    """Folders above all images are left out of their paths, but a table may lie there."""
    (celeba / "Anno").mkdir()
    (celeba / "Anno" / "mine.txt").write_text(CELEBA)
    source = opened(celeba, label_file="Anno/mine.txt")
    assert [image.path for image in source.images] == ["000001.png", "000002.png", "000003.png"]
    assert [image.label for image in source.images] == VECTORS


@pytest.mark.parametrize("place", ["here", "elsewhere", "memory"])
def test_table_with_commas(celeba, opened, place, tmp_path):
    """The CSV form, inside the source, at another path or at a URL."""
    text = "image_id,Smiling,Male\n000001.jpg,0,1\n000002.jpg,1,0\n"
    path = str({"here": celeba, "elsewhere": tmp_path}.get(place, tmp_path) / "table.csv")
    Path(path).write_text(text)
    if place == "memory":
        fsspec.filesystem("memory").pipe("/labels/table.csv", text.encode())
    source = opened(
        celeba, label_file={"here": "table.csv", "elsewhere": path, "memory": "memory://labels/table.csv"}[place]
    )
    assert source.attribute_names == ("Smiling", "Male")
    assert [image.label for image in source.images] == [(0, 1), (1, 0), None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image_id,Smiling,Male\n000001.jpg,0,2\n", "gives 000001.jpg the attribute '2'; must be 0 or 1, or -1 or 1"),
        ("image_id,Smiling,Male\n000001.jpg,0,yes\n", "the attribute 'yes'"),
        ("image_id,Smiling,Male\n000001.jpg,0,1\n000002.jpg,-1,1\n", "both 0 and -1"),
        ("image_id,Smiling,Male\n000001.jpg,0\n", "gives 000001.jpg 1 attributes, its header names 2"),
        ("image_id,Smiling\n000001.jpg,0\ngone.jpg,0\n", "names gone, which is not there"),
        ("image_id,Smiling\ngone.jpg,0\n", "names gone.jpg, which is not there"),
        ("image_id,Smiling,Smiling\n", "each once"),
        ("", "is no table of attributes"),
    ],
)
def test_wrong_tables_are_one_line(celeba, opened, text, words):
    """Each names the file, the image and what is allowed."""
    (celeba / "table.csv").write_text(text)
    with pytest.raises(StepError) as caught:
        opened(celeba, label_file="table.csv")
    assert words in str(caught.value)
    assert "table.csv" in str(caught.value)
    assert "\n" not in str(caught.value)
