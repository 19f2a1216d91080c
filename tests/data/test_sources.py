"""Sources: which files count as images, and which labels they carry."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import fsspec
import pytest

from stylegan.config import DataConfig
from stylegan.data.sources import Source, open_source, unaltered
from stylegan.errors import ConfigError, StepError


def opened(source: Path | str, labels: str = "auto") -> Source:
    return open_source(DataConfig(source=str(source), resolution=16, labels=labels))


def zipped(folder: Path, *, top: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, top + file.relative_to(folder).as_posix())
    return path


def test_class_folders_become_labels(image_folder):
    """Labels count the sorted folder names, images are sorted by path, and the bytes are those of the file."""
    source = opened(image_folder)
    assert source.label_names == ("cat", "dog")
    assert [image.path for image in source.images] == sorted(image.path for image in source.images)
    assert [image.label for image in source.images] == [0] * 7 + [1] * 5
    with source.reader() as read:
        assert read(source.images[8]) == (image_folder / "dog/1.png").read_bytes()


def test_zip_lists_what_its_folder_lists(image_folder):
    """A zip of a folder, also below a common top folder, has the same images, labels and bytes."""
    folder = opened(image_folder)
    for top in ("", "cifar10/", "a/b/"):
        source = opened(zipped(image_folder, top=top))
        assert (source.images, source.label_names) == (folder.images, folder.label_names)
        with source.reader() as read:
            assert read(source.images[0]) == (image_folder / "cat/0.png").read_bytes()


def test_flat_folder_is_unlabelled(tmp_path, draw_images):
    """auto gives no labels to flat images, in any spelling of their endings; other files are ignored."""
    draw_images(tmp_path, ["b.PNG", "a.jpg", "c.JPEG"])
    (tmp_path / "notes.txt").write_text("no image")
    source = opened(tmp_path)
    assert [image.path for image in source.images] == ["a.jpg", "b.PNG", "c.JPEG"]
    assert source.label_names == ()
    assert {image.label for image in source.images} == {None}


def test_junk_of_operating_systems_is_ignored(image_folder):
    """Hidden files and __MACOSX are neither images nor classes."""
    for junk in ("__MACOSX/cat/._0.png", ".hidden/1.png", "cat/._0.png", ".DS_Store"):
        (image_folder / junk).parent.mkdir(parents=True, exist_ok=True)
        (image_folder / junk).write_bytes(b"junk")
    assert len(opened(image_folder).images) == len(opened(zipped(image_folder)).images) == 12


def test_folders_reached_by_links_count_and_loops_end(image_folder, tmp_path):
    """A linked class folder is read; a link to a folder above does not go on for ever."""
    shutil.move(image_folder / "dog", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", image_folder / "dog")
    os.symlink(image_folder, image_folder / "cat" / "up")
    assert len(opened(image_folder).images) == 12


@pytest.mark.parametrize(("size", "mode"), [((16, 8), "L"), ((16, 16), "L"), ((8, 8), "RGB"), ((8, 8), "LA")])
def test_unaltered_images_are_handed_out_or_refused(tmp_path, draw_images, size, mode):
    """Where sharding would resize, crop or convert silently, the reader names the image; its shards are never those of another way."""
    draw_images(tmp_path, ["a.png"], size=(8, 8), mode="L")
    draw_images(tmp_path, ["b.png"], size=size, mode=mode)
    source = opened(tmp_path)
    strict = unaltered(source, DataConfig(source=str(tmp_path), resolution=8, channels=1))
    with strict.reader() as read:
        assert read(strict.images[0]) == (tmp_path / "a.png").read_bytes()
        with pytest.raises(StepError, match=rf"b\.png: is {size[0]}x{size[1]} with {len(mode)} channel\(s\), expected 8x8 with 1 channel"):
            read(strict.images[1])
    assert strict.signature != source.signature


def test_digits_are_all_there():
    """1,797 scans with ten labels; the darkest and lightest of 17 grey levels are 0 and 255."""
    from io import BytesIO

    import numpy as np
    from PIL import Image

    source = opened("digits")
    assert len(source.images) == 1797
    assert source.label_names == tuple("0123456789")
    with source.reader() as read:
        pixels = np.stack([np.asarray(Image.open(BytesIO(read(image)))) for image in source.images[:50]])
    assert pixels.shape == (50, 8, 8)
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert opened("digits", "none").label_names == ()


def test_remote_folder_and_zip(image_folder, s3_server):
    """A bucket folder and a zip in a bucket list and read as the local ones do."""
    bucket, local = s3_server(), opened(image_folder)
    s3 = fsspec.filesystem("s3")
    s3.put(str(image_folder), f"{bucket}/images", recursive=True)
    s3.put(str(zipped(image_folder)), f"{bucket}/images.zip")
    for uri in (f"{bucket}/images", f"{bucket}/images.zip"):
        source = opened(uri)
        assert (source.images, source.label_names) == (local.images, local.label_names)
        with source.reader() as read:
            assert read(source.images[-1]) == (image_folder / "dog/4.png").read_bytes()
    before = opened(f"{bucket}/images").signature
    s3.pipe(f"{bucket}/images/cat/0.png", b"other bytes")
    assert opened(f"{bucket}/images").signature != before


def test_memory_url(image_folder):
    """Any fsspec URL will do."""
    fsspec.filesystem("memory").put(str(image_folder), "/pictures", recursive=True)
    assert opened("memory://pictures").label_names == ("cat", "dog")


def test_signature_follows_content_and_labels(image_folder):
    """The same listing has the same signature; a touched file, another label or a new file changes it."""
    first = opened(image_folder).signature
    assert opened(image_folder).signature == first
    assert opened(image_folder, "none").signature != first
    os.utime(image_folder / "cat/0.png", (1, 1))
    second = opened(image_folder).signature
    assert second != first
    shutil.copy(image_folder / "cat/0.png", image_folder / "cat/new.png")
    assert opened(image_folder).signature not in (first, second)


def with_labels(folder: Path, labels: object) -> Path:
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def test_dataset_json_wins_over_folders(image_folder):
    """Whole numbers of dataset.json are the labels; a number nobody has is a class nevertheless."""
    names = [image.path for image in opened(image_folder).images]
    with_labels(image_folder, [[name, 3 * (number % 2)] for number, name in enumerate(names)])
    for source in (opened(image_folder), opened(zipped(image_folder, top="top/")), opened(image_folder, "dataset.json")):
        assert source.label_names == ("0", "1", "2", "3")
        assert [image.label for image in source.images] == [3 * (number % 2) for number in range(12)]
    assert opened(image_folder, "folder").label_names == ("cat", "dog")


def test_dataset_json_may_say_unlabelled(image_folder):
    """{"labels": null} means no labels, although there are folders."""
    assert opened(with_labels(image_folder, None)).label_names == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pairs: [*pairs, ["cat/gone.png", 0], ["cat/gone2.png", 0]], "names cat/gone.png, which is not there"),
        (lambda pairs: pairs[1:], "has no label for cat/0.png"),
        (lambda pairs: [[name, 0.5] for name, _ in pairs], "cat/0.png the label 0.5; must be a whole number"),
        (lambda pairs: [[name, -1] for name, _ in pairs], "cat/0.png the label -1"),
        (lambda pairs: [[name, [1, 0]] for name, _ in pairs], "cat/0.png the label [1, 0]"),
        (lambda pairs: [name for name, _ in pairs], "is not of the form"),
        (lambda pairs: 7, "is not of the form"),
    ],
)
def test_wrong_dataset_json_is_one_line(image_folder, change, words):
    """A label file that does not fit is refused with the first image that shows it, and the cure."""
    pairs = [[image.path, 0] for image in opened(image_folder).images]
    with_labels(image_folder, change(pairs))
    with pytest.raises(StepError) as caught:
        opened(image_folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["/no/such/folder", "/no/such.zip", "memory://nowhere"])
def test_missing_source_names_the_key(uri):
    """A source that does not exist is a mistake in the config."""
    with pytest.raises(ConfigError, match=f"data.source={uri}: no such folder or file"):
        opened(uri)


def test_missing_bucket_names_the_key(s3_server):
    """So is a bucket that does not exist."""
    with pytest.raises(ConfigError, match=r"data\.source=s3://no-such-bucket/x: no such"):
        opened("s3://no-such-bucket/x")


def test_file_that_is_no_zip(tmp_path):
    """A plain file is refused as a config mistake, a broken .zip as a damaged file."""
    (tmp_path / "a.tar").write_bytes(b"tar")
    with pytest.raises(ConfigError, match=r"a file that is no \.zip"):
        opened(tmp_path / "a.tar")
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 broken")
    with pytest.raises(StepError, match=r"a\.zip: not a readable \.zip"):
        opened(tmp_path / "a.zip")


def test_no_images(tmp_path):
    """A folder without images is said to have none."""
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(StepError, match="holds no image"):
        opened(tmp_path)


def test_labels_that_are_asked_for_must_be_there(image_folder, draw_images):
    """labels=folder on partly flat images and labels=dataset.json without the file are told in one line."""
    draw_images(image_folder, ["flat.png"])
    with pytest.raises(ConfigError, match=r"data\.labels=folder: 1 of 13 images .* such as flat\.png"):
        opened(image_folder, "folder")
    with pytest.raises(ConfigError, match=r"has no dataset\.json"):
        opened(image_folder, "dataset.json")
    assert opened(image_folder).label_names == ()
