"""Tars of images and WebDataset shards: listings, labels, and refusal of damaged or hostile archives."""

import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import pytest
import webdataset as wds

from stylegan.data.decode import UnreadableImage
from stylegan.data.sources.access.tarwalk import walk
from stylegan.errors import StepError


def packed(folder: Path, name: str = "images.tar", mode: str = "w") -> Path:
    """Pack a folder into a tar beside it."""
    path = folder.parent / name
    with tarfile.open(path, mode) as archive:
        archive.add(folder, arcname=".")
    return path


@pytest.mark.parametrize(("name", "mode"), [("images.tar", "w"), ("images.tar.gz", "w:gz"), ("images.tgz", "w:gz")])
def test_tar_lists_what_its_folder_lists(image_folder, opened, listed, contents, name, mode):
    """A tar, gzipped or not, has the images, class folders and bytes of its folder; hidden files do not count."""
    folder = opened(image_folder)
    (image_folder / "cat/._0.png").write_bytes(b"junk")
    source = opened(packed(image_folder, name, mode))
    assert (listed(source), source.label_names) == (listed(folder), folder.label_names)
    assert contents(source) == contents(folder)


def test_tars_in_a_bucket(image_folder, upload, opened, contents):
    """Small images are read from a copy of the tar, large ones by ranges; a gzipped tar is unpacked once."""
    (image_folder / "cat/0.png").write_bytes((image_folder / "cat/0.png").read_bytes() + bytes(2_000_000))
    local = contents(opened(image_folder))
    for name, mode in (("images.tar", "w"), ("images.tar.gz", "w:gz")):
        source = opened(upload(packed(image_folder, name, mode)))
        assert contents(source) == local


def shards(folder: Path, samples: list[dict], *, per_tar: int = 3) -> Path:
    """Write samples into shards with webdataset."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(0, len(samples), per_tar):
        with wds.TarWriter(str(folder / f"train-{number // per_tar:06d}.tar"), encoder=False) as writer:
            for index, sample in enumerate(samples[number : number + per_tar], start=number):
                writer.write({"__key__": f"{index:08d}", **sample})
    return folder


def test_webdataset_shards(tmp_path, opened, listed, contents):
    """A folder, a brace pattern and a glob give the same samples; `.cls` gives classes, and a shard is no class."""
    shards(tmp_path / "set", [{"png": b"%d" % number, "cls": b"%d" % (number % 3)} for number in range(8)])
    (tmp_path / "set" / "README.md").write_text("hello")
    for uri in (tmp_path / "set", tmp_path / "set" / "train-{000000..000002}.tar", tmp_path / "set" / "*.tar"):
        source = opened(uri)
        assert source.label_names == ("0", "1", "2")
        assert listed(source) == [(f"train-{number // 3:06d}/{number:08d}.png", number % 3) for number in range(8)]
        assert list(contents(source).values()) == [b"%d" % number for number in range(8)]
    assert opened(tmp_path / "set", "folder").label_names == ("train-000000", "train-000001", "train-000002")
    assert opened(tmp_path / "set", "none").label_names == ()


def test_unlabelled_shards_are_no_classes(tmp_path, opened):
    """The name of a tar is no folder of the user's, so it becomes a class only with `data.labels=folder`."""
    source = opened(shards(tmp_path / "set", [{"png": b"x"}] * 5))
    assert (source.label_names, {image.label for image in source.images}) == ((), {None})


@pytest.mark.parametrize(
    ("documents", "label_names", "attribute_names", "labels"),
    [
        ([{"label": 1}, {"label": 0}, {"caption": "a"}], ("0", "1"), (), [1, 0, None]),
        ([{"attributes": [0, 1]}, {"attributes": [1, 1]}, {}], (), ("0", "1"), [(0, 1), (1, 1), None]),
        ([{"caption": "a"}, {"caption": "b"}, {}], (), (), [None, None, None]),
    ],
)
def test_json_beside_images(tmp_path, opened, documents, label_names, attribute_names, labels):
    """Class numbers or attributes, or neither; a sample without them has no label in a labelled set."""
    source = opened(
        shards(tmp_path / "set", [{"jpg": b"x", "json": json.dumps(document).encode()} for document in documents])
    )
    assert (source.label_names, source.attribute_names) == (label_names, attribute_names)
    assert [image.label for image in source.images] == labels


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([{"png": b"x", "cls": b"cat"}], r"00000000\.cls gives no label but b'cat'; a \.cls must hold a number"),
        ([{"png": b"x", "cls": b"-1"}], r"00000000\.cls gives the label -1; must be a whole number from 0"),
        ([{"png": b"x", "json": b'{"label": "cat"}'}], "gives the label 'cat'"),
        ([{"png": b"x", "json": b'{"attributes": [0, 2]}'}], "the attribute '2'; must be 0 or 1"),
        (
            [{"png": b"x", "cls": b"1"}, {"png": b"x", "json": b'{"attributes": [0, 1]}'}],
            "all class numbers or all vectors",
        ),
        (
            [{"png": b"x", "json": b'{"attributes": [0]}'}, {"png": b"x", "json": b'{"attributes": [0, 1]}'}],
            r"vectors of \[1, 2\]",
        ),
    ],
)
def test_wrong_labels_are_one_line(tmp_path, opened, samples, words):
    """The message names the sample, its value and what is allowed."""
    with pytest.raises(StepError, match=words) as caught:
        opened(shards(tmp_path / "set", samples))
    assert "\n" not in str(caught.value)
    assert len(opened(tmp_path / "set", "none").images) == len(samples)


def test_training_shards_of_a_folder(tmp_path, opened):
    """Of a folder with shards for training and validation, only the training shards are used; a pattern gets what it names."""
    shards(tmp_path / "set", [{"png": b"x"}] * 4)
    (tmp_path / "set" / "train-000001.tar").rename(tmp_path / "set" / "val-000000.tar")
    assert len(opened(tmp_path / "set").images) == 3
    assert len(opened(tmp_path / "set" / "val-*.tar").images) == 1
    assert len(opened(tmp_path / "set" / "*.tar").images) == 4


def test_shards_over_memory(tmp_path, opened, contents):
    """Patterns work at any fsspec URL."""
    fsspec.filesystem("memory").put(
        str(shards(tmp_path / "set", [{"png": b"%d" % number} for number in range(5)])), "/wds", recursive=True
    )
    for uri in ("memory://wds", "memory://wds/train-{000000..000001}.tar", "memory://wds/*.tar"):
        assert sorted(contents(opened(uri)).values()) == [b"0", b"1", b"2", b"3", b"4"]


def write(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> Path:
    """Write a tar of these files, in this order."""
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


PNG = b"x"


@pytest.mark.parametrize(
    ("members", "labels"),
    [
        # As webdataset groups files.
        (["a.png", "a.cls 1", "b.png", "b.cls 0"], {"a.png": 1, "b.png": 0}),
        (["x.y/a.png", "x.y/a.cls 1", "x.y/b.png", "x.y/b.cls 0"], {"a.png": 1, "b.png": 0}),
        (["x.y/a.png", "x.y/a.cls 1", "z/x.y/a.png", "z/x.y/a.cls 0"], {"x.y/a.png": 1, "z/x.y/a.png": 0}),
        (["z/a..png", "z/a.cls 1", "z/b.png", "z/b.cls 0"], {"a..png": 1, "b.png": 0}),
        # More permissive than webdataset, so that existing data sets keep their labels.
        (["a.png", "b.png", "a.cls 1", "b.cls 0"], {"a.png": 1, "b.png": 0}),
        (["a.left.png", "a.right.png", "a.info.cls 1"], {"a.left.png": 1, "a.right.png": 1}),
        (["a.PNG", "a.CLS 1", "b.png", "b.cls 0"], {"a.PNG": None, "b.png": 0}),
        (["a.png", "a.jpg", "a.cls 1", "a.cls 1"], {"a.png": 1, "a.jpg": 1}),
        (["x.jpg", "x.seg.png", "x.cls 1", "y.jpg", "y.cls 0"], {"x.jpg": 1, "x.seg.png": 1, "y.jpg": 0}),
        (["a.cls 1", "a.json {}", "a.png"], {"a.png": 1}),
        # Names with dots: the closest label counts.
        (["22.05.png", "22.05.cls 0", "22.06.png", "22.06.cls 1"], {"22.05.png": 0, "22.06.png": 1}),
        (["a.1.b.jpg", "a.2.b.jpg", "a.2.cls 1", "a.1.cls 0"], {"a.1.b.jpg": 0, "a.2.b.jpg": 1}),
        (["a.png", "a.1.png", "a.1.cls 1", "a.cls 0"], {"a.png": 0, "a.1.png": 1}),
        (["a.1.png", "a.2.png", "a.2.cls 0", "a.2.json {}"], {"a.1.png": None, "a.2.png": 0}),
        (["d.1/a.1.png", "d.1/a.1.cls 1", "d.1/a.2.png", "d.1/a.2.cls 0"], {"a.1.png": 1, "a.2.png": 0}),
        # Labels of no image do not matter.
        (["a.png", "a.cls 0", "b.cls cat", "notes.json [1, 2]"], {"a.png": 0}),
        # Names for which webdataset finds no key.
        (["x.y\n/a.png", "x.y\n/a.cls 1", "x.y\n/b.png", "x.y\n/b.cls 0"], {"a.png": 1, "b.png": 0}),
    ],
)
def test_files_of_one_sample(tmp_path, opened, members, labels):
    """Files that share a key are a sample, and its label is that of its images."""
    files = [(name, label.encode() or PNG) for name, _, label in (member.partition(" ") for member in members)]
    source = opened(write(tmp_path / "a.tar", files))
    assert {image.path: image.label for image in source.images} == labels


@pytest.mark.parametrize(
    "members",
    [
        ["a.png", "a.cls 0", "a.cls 1"],
        ["a.png", "a.cls 0", 'a.json {"label": 1}'],
        ["a.left.png", "a.cls 0", 'a.json {"attributes": [1]}'],
        ["a.png", "a.1.cls 0", "a.2.cls 1"],
    ],
)
def test_two_labels_for_one_image(tmp_path, opened, members):
    """Two different labels are refused in one line that names both files."""
    files = [(name, label.encode() or PNG) for name, _, label in (member.partition(" ") for member in members)]
    with pytest.raises(StepError, match=r"a\..* and a\..* give a\..* different labels, .*; remove one") as caught:
        opened(write(tmp_path / "a.tar", files))
    assert "\n" not in str(caught.value)
    assert len(opened(tmp_path / "a.tar", "none").images) == 1


def test_labels_of_many_names_with_dots(tmp_path, opened, monkeypatch):
    """The work grows with the number of names, not with its square, both for labels that fit and for loose ones."""
    views = {f"22.{number}.{view}.png": number % 7 for number in range(200) for view in ("left", "right.b")}
    labels = {f"22.{number}.cls": number % 7 for number in range(200)}
    loose = {f"30.{number}.png": 3 for number in range(200)}
    labels |= {f"30.x{number}.cls": 3 for number in range(200)}
    calls = []

    def counted(name: str) -> str:
        calls.append(name)
        return os.path.splitext(name)[0]

    files = [(name, PNG) for name in views | loose] + [(name, b"%d" % label) for name, label in labels.items()]
    path = write(tmp_path / "a.tar", files)
    monkeypatch.setattr("stylegan.data.sources.tar._stem", counted)
    assert {image.path: image.label for image in opened(path).images} == views | loose
    assert len(files) <= len(calls) < 10 * len(files)


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"label": 1' + b"0" * 5000 + b"}", b"\xff\xfe", b"NaN", b"true", b"1.5", b"{"]
)
def test_odd_label_files(tmp_path, opened, text):
    """A label file of any content gives one line with its name."""
    with pytest.raises(StepError, match=r"a\.json gives .*data\.labels=none") as caught:
        opened(write(tmp_path / "a.tar", [("a.png", PNG), ("a.json", text)]))
    assert "\n" not in str(caught.value)


def test_tars_with_labels_import_no_torch(tmp_path):
    """webdataset would group the samples too, but imports torch, which takes seconds in each process that lists."""
    write(tmp_path / "a.tar", [("a.png", PNG), ("a.cls", b"1"), ("b.png", PNG), ("b.json", b'{"label": 0}')])
    code = f"""
import sys
from stylegan.config.sections import DataConfig
from stylegan.data.sources.open_source import open_source
assert open_source(DataConfig(source={str(tmp_path)!r}, resolution=16)).label_names == ("0", "1")
assert not {{"torch", "webdataset"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:/evil.png"])
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_that_lead_out_are_refused(tmp_path, opened, name, format):
    """Nothing of an archive with such a member is used."""
    with pytest.raises(StepError, match="which leads out of the archive"):
        opened(write(tmp_path / "evil.tar", [("good.png", b"x"), (name, b"x")], format))


def linked(folder: Path) -> Path:
    """Add a hard link, links to files (one by way of another link), a link to nothing and one to a folder above."""
    (folder / "bird").mkdir()
    os.link(folder / "cat/0.png", folder / "bird/hard.png")
    os.symlink("../dog/1.png", folder / "bird/soft.png")
    os.symlink("soft.png", folder / "bird/chain.png")
    os.symlink("nothing.txt", folder / "bird/notes.txt")
    os.symlink("..", folder / "bird/up")
    (folder / "bird/blob").write_bytes(b"content without an ending")
    os.symlink("blob", folder / "bird/blob.png")
    return folder


@pytest.mark.parametrize("name", ["images.tar", "images.tar.gz"])
@pytest.mark.parametrize("format", ["gnu", "posix", "ustar"])
def test_links_in_tars_give_what_they_give_in_the_folder(image_folder, opened, listed, contents, name, format):
    """Hard and symbolic links inside a tar are followed, as they are in a folder."""
    folder = opened(linked(image_folder))
    path = image_folder.parent / name
    subprocess.run(["tar", "-caf", path, f"--format={format}", "-C", image_folder, "."], check=True)
    source = opened(path)
    assert (listed(source), source.label_names) == (listed(folder), folder.label_names)
    assert contents(source) == contents(folder)


@pytest.mark.parametrize(
    ("name", "target", "hard"),
    [
        ("soft.png", "/etc/passwd", False),
        ("soft.png", "../outside.png", False),
        ("a/soft.png", "nothing.png", False),
        ("hard.png", "/etc/passwd", True),
        ("hard.png", "gone.png", True),
        ("loop.png", "loop.png", False),
        ("more", "/data/more", False),
        ("more", "cats", False),
        ("dataset.json", "../dataset.json", False),
    ],
)
def test_links_that_cannot_be_followed_are_refused(tmp_path, opened, name, target, hard):
    """A link that may lead to images which the tar lacks is an error with the cure, never a silent loss."""
    path = write(tmp_path / "links.tar", [("cats/a.png", b"x"), ("b.png", b"y")])
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.LNKTYPE if hard else tarfile.SYMTYPE, target
        archive.addfile(info)
    with pytest.raises(StepError, match=r"link to .*; make the archive again with the files that links lead to"):
        opened(path)


@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_sparse_members_are_refused(image_folder, opened, format):
    """A sparse picture is named; other members that are sparse, with maps of any length, do not matter."""
    for name, parts in (("notes.bin", 100), ("cat/sparse.bmp", 2)):
        with open(image_folder / name, "wb") as file:
            for number in range(parts):
                file.seek(number * 2**16)
                file.write(b"x" * 4096)
    path = image_folder.parent / "sparse.tar"
    tar = ["tar", "-cSf", path, f"--format={format}", "-C", image_folder]
    subprocess.run([*tar, "."], check=True)
    with pytest.raises(StepError, match=r"cat/sparse\.bmp in sparse\.tar is a sparse file, which is not read"):
        opened(path)
    subprocess.run([*tar, "--exclude=sparse.bmp", "."], check=True)
    assert len(opened(path).images) == 12


def test_incremental_and_labelled_tars(image_folder, opened, listed):
    """GNU tar's incremental archives have lists of names in place of folders, and a label of the volume."""
    folder = opened(image_folder)
    path = image_folder.parent / "a.tar"
    state = image_folder.parent / "state"
    subprocess.run(["tar", "-cf", path, "-g", state, "-V", "label", "-C", image_folder, "."], check=True)
    assert listed(opened(path)) == listed(folder)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_labels_of_links(tmp_path, opened, listed, name, kind):
    """`tar` packs equal files that are linked once, so the label of a sample may be a link to that of another."""
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
        for member, target in (
            ("0.cls", b"3"),
            ("1.png", b"x"),
            ("1.json", b'{"label": 4}'),
            ("2.png", b"y"),
            ("2.cls", "1.json"),
            ("3.png", b"z"),
            ("3.cls", "0.cls"),
            ("4.png", b"w"),
            ("4.cls", "0.cls"),
            ("4.cls", b"5"),
        ):
            info = tarfile.TarInfo(member)
            if isinstance(target, str):
                info.type, info.linkname = kind, target
            else:
                info.size = len(target)
            archive.addfile(info, io.BytesIO(target) if isinstance(target, bytes) else None)
    assert listed(opened(tmp_path / name)) == [("1.png", 4), ("2.png", 4), ("3.png", 3), ("4.png", 5)]
    assert {label for _, label in listed(opened(tmp_path / name, "none"))} == {None}


def test_label_that_is_a_link_to_nothing(tmp_path, opened):
    """Its image would lose its label without a word."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("1.png"))
        info = tarfile.TarInfo("1.cls")
        info.type, info.linkname = tarfile.SYMTYPE, "gone.cls"
        archive.addfile(info)
    with pytest.raises(StepError, match=r"1\.cls is a symbolic link to gone\.cls, which is not a file of the archive"):
        opened(tmp_path / "a.tar")
    assert len(opened(tmp_path / "a.tar", "none").images) == 1


def test_file_that_is_packed_twice(image_folder, opened, listed):
    """`tar` packs it as a hard link to itself."""
    path = image_folder.parent / "a.tar"
    subprocess.run(["tar", "-cf", path, "-C", image_folder, "cat", "dog", "cat/0.png"], check=True)
    assert listed(opened(path)) == listed(opened(image_folder))


def test_last_member_of_a_name_counts(tmp_path, opened, contents):
    """As when the tar is unpacked, also for names that differ only by `./`."""
    path = write(tmp_path / "a.tar", [("a.png", b"1"), ("b.png", b"2"), ("./a.png", b"3")])
    assert contents(opened(path)) == {"a.png": b"3", "b.png": b"2"}


@pytest.mark.parametrize(("order", "wanted"), [("link, file", b"file"), ("file, link", b"x")])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_last_of_a_link_and_a_file_counts(tmp_path, opened, contents, order, wanted, kind):
    """A later file takes the place of a link, and a later link that of a file, also where other links lead."""
    path = write(tmp_path / "a.tar", [("b.png", b"x")])
    with tarfile.open(path, "a") as archive:
        for what in order.split(", "):
            info = tarfile.TarInfo("a.png")
            if what == "link":
                info.type, info.linkname = kind, "b.png"
            else:
                info.size = 4
            archive.addfile(info, io.BytesIO(b"file"))
        info = tarfile.TarInfo("c.png")
        info.type, info.linkname = tarfile.SYMTYPE, "a.png"
        archive.addfile(info)
    assert contents(opened(path)) == {"a.png": wanted, "b.png": b"x", "c.png": wanted}


def test_tars_whose_paths_would_be_the_same(tmp_path, opened, contents):
    """Tars that differ in their ending alone keep their images apart; if paths are the same otherwise, that is refused."""
    write(tmp_path / "a.tar", [("1.png", b"1")])
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(write(tmp_path / "b.tar", [("1.png", b"2")]).read_bytes()))
    (tmp_path / "b.tar").unlink()
    assert contents(opened(tmp_path)) == {"a.tar/1.png": b"1", "a.tar.gz/1.png": b"2"}
    (tmp_path / "x/a").mkdir(parents=True)
    write(tmp_path / "x/a.tar", [("b/1.png", b"1"), ("b/1.png", b"2")])
    write(tmp_path / "x/a/b.tar", [("1.png", b"1"), ("2.png", b"1")])
    with pytest.raises(StepError, match=r"two of its tars contain a/b/1\.png"):
        opened(tmp_path / "x")


@pytest.mark.parametrize("inner", ["b", "c", "d"])
def test_no_image_of_a_nested_tar_is_lost(tmp_path, opened, inner):
    """Each of several tars inside another one may have a path of the outer one, and all may have one size and time."""
    (tmp_path / "a").mkdir()
    tars = [write(tmp_path / "a.tar", [(f"{inner}/1.png", b"1")])]
    tars += [write(tmp_path / f"a/{name}.tar", [("1.png" if name == inner else "2.png", b"2")]) for name in "bcd"]
    for path in tars:
        os.utime(path, (10**9, 10**9))
    assert len({path.stat().st_size for path in tars}) == 1
    with pytest.raises(StepError, match=rf"two of its tars contain a/{inner}/1\.png"):
        opened(tmp_path)
    write(tars[0], [("1.png", b"1"), ("e/1.png", b"1")])
    assert len(opened(tmp_path).images) == 5


@pytest.mark.parametrize("stray", [b"[{'no': json}]", b'[{"file": "a.png", "bbox": [1, 2, 3, 4]}]', b'"text"', b"{}"])
def test_json_of_no_image_is_no_label(tmp_path, opened, stray):
    """A file beside the images that belongs to none of them is no label, whatever it contains."""
    members = [("annotations.json", stray), ("cat/a.png", b"x"), ("dog/b.png", b"y"), ("dog/notes.cls", b"hello")]
    assert opened(write(tmp_path / "a.tar", members)).label_names == ("cat", "dog")


def test_member_too_large_for_a_picture(tmp_path, opened, monkeypatch):
    """It is refused by its size, before it is read."""
    monkeypatch.setattr("stylegan.data.sources.base.LARGEST", 1000)
    source = opened(write(tmp_path / "a.tar", [("a.tif", bytes(1001)), ("b.tif", bytes(1000))]))
    with source.open() as read:
        assert len(read("b.tif")) == 1000
        with pytest.raises(UnreadableImage, match=r"1,001 bytes; at most 1,000 are allowed") as caught:
            read("a.tif")
    assert caught.value.kind == "too large"


def test_backslash_is_a_letter(tmp_path, opened, listed, contents):
    """A tar gives what its folder gives, so a name with a backslash is no path."""
    (tmp_path / "set" / "cats").mkdir(parents=True)
    (tmp_path / "set" / "cats" / "1.png").write_bytes(b"x")
    (tmp_path / "set" / "cats\\1.png").write_bytes(b"y")
    folder, source = opened(tmp_path / "set"), opened(packed(tmp_path / "set"))
    assert listed(source) == listed(folder)
    assert contents(source) == contents(folder) == {"cats/1.png": b"x", "cats\\1.png": b"y"}


def joined(content: bytes) -> bytes:
    """Return two tars in one file, as `cat` makes it."""
    return content + content


def emptied(content: bytes) -> bytes:
    """Return a tar whose second header is zeros, as after an error of the disk."""
    start = content.index(b"2.png")
    return content[:start] + bytes(512) + content[start + 512 :]


@pytest.mark.parametrize("damage", [joined, emptied])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_more_behind_the_end_mark(tmp_path, opened, name, damage):
    """Members behind the end mark would be lost without a word."""
    content = damage(write(tmp_path / "a.tar", [("1.png", b"x" * 600), ("2.png", b"y" * 600)]).read_bytes())
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(StepError, match=r"is not a readable tar \(more follows behind the end mark at byte \d+"):
        opened(tmp_path / name)


def test_tar_without_an_end_mark(tmp_path, opened, caplog):
    """Some programs write no end mark, so it is not required; the log says that the tar may be cut short."""
    path = write(tmp_path / "a.tar", [("a.png", b"x"), ("b.png", b"y")])
    path.write_bytes(path.read_bytes()[:1024])
    assert len(opened(path).images) == 1
    assert "a.tar has no end mark after byte 1024; it may be cut short" in caplog.text


def test_each_tar_without_an_end_mark_is_named_once(tmp_path, opened, caplog):
    """Also one with links, whose members are listed twice."""
    for name in ("train-0.tar", "train-1.tar", "train-2.tar"):
        path = write(tmp_path / name, [("a.png", b"x")])
        with tarfile.open(path, "a") as archive:
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = tarfile.SYMTYPE, "a.png"
            archive.addfile(info)
        if name != "train-1.tar":
            path.write_bytes(path.read_bytes()[:1536])
    assert len(opened(tmp_path).images) == 6
    lines = sorted(record.getMessage() for record in caplog.records if "no end mark" in record.getMessage())
    assert [line.partition(" has")[0].rpartition(": ")[2] for line in lines] == ["train-0.tar", "train-2.tar"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_walk_finds_what_tarfile_finds(tmp_path, format):
    """Both list long names, names in other alphabets, empty files and sizes around a block, in all three dialects."""
    names = ["a.png", "d" * 90 + "/" + "x" * 60 + ".png", "ä/猫.png", "p" * 140 + "/q.png", "empty.png"]
    if format != tarfile.USTAR_FORMAT:
        names.append("/".join(["long" * 20] * 5) + "/猫.png")
    path = write(
        tmp_path / "a.tar",
        [(name, bytes(511 + number)) for number, name in enumerate(names)] + [("none.png", b"")],
        format,
    )
    with tarfile.open(path) as archive:
        wanted = [(info.name, info.offset_data, info.size, int(info.mtime)) for info in archive]
    with open(path, "rb") as file:
        assert [tuple(member) for member in walk("x", file)] == wanted


@pytest.mark.parametrize("packed_with", [bytes, gzip.compress])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:1000],
        lambda content: content[: 512 + 1024 + 200],
        lambda content: (
            content[:600] + b"?" + content[601:]
            if len(content) < 4000
            else content[:1024] + b"?" * 512 + content[1536:]
        ),
        lambda content: b"",
        lambda content: b"not a tar at all" * 100,
    ],
)
def test_damaged_tars(tmp_path, opened, damage, packed_with):
    """A tar that is cut short, overwritten or something else gives one line with its name."""
    content = write(
        tmp_path / "a.tar", [("a.png", bytes(512)), ("b.png", bytes(512)), ("c.png", bytes(2048))]
    ).read_bytes()
    path = tmp_path / ("a.tar" if packed_with is bytes else "a.tar.gz")
    path.write_bytes(packed_with(damage(content)))
    with pytest.raises(StepError, match=r"a\.tar(\.gz)? is not a readable tar") as caught:
        opened(path)
    assert "\n" not in str(caught.value)


def test_cut_gzip(image_folder, opened):
    """A download that ended early is refused."""
    path = packed(image_folder, "images.tar.gz", "w:gz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(StepError, match="is not a readable tar"):
        opened(path)


def test_tar_cut_short_after_listing(image_folder, opened):
    """Each image that is gone fails by itself."""
    path = packed(image_folder)
    source = opened(path)
    with open(path, "r+b") as file:
        file.truncate(1500)
    with source.open() as read, pytest.raises(EOFError, match="cut short"):
        read(source.images[-1].path)


def test_opener_is_small(tmp_path, opened):
    """An opener sends a few tens of bytes per image to other processes, and does not list the tar again."""
    path = write(tmp_path / "many.tar", [(f"{number:06d}.png", b"") for number in range(2000)])
    source = opened(path)
    assert len(pickle.dumps(source.open)) < 2000 * 40
