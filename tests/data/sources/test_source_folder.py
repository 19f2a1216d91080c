"""Tests of folders: which files count as images, on this machine and elsewhere."""

import builtins
import os
import shutil
import socket
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import boto3
import fsspec
import pytest

from stylegan.config.sections import DataConfig
from stylegan.data.decode import UnreadableImage
from stylegan.data.sources import folder
from stylegan.data.sources.base import Files, in_order
from stylegan.data.sources.open_source import open_source
from stylegan.errors import ConfigError, StepError


def test_class_folders_become_labels(image_folder, opened, contents):
    """Labels number the sorted folder names, images are sorted by path, and their bytes are those of the file."""
    source = opened(image_folder)
    assert source.label_names == ("cat", "dog")
    assert source.attribute_names == ()
    assert [image.path for image in source.images] == sorted(image.path for image in source.images)
    assert [image.label for image in source.images] == [0] * 7 + [1] * 5
    assert contents(source)["dog/1.png"] == (image_folder / "dog/1.png").read_bytes()


def test_flat_folder_is_unlabelled(tmp_path, draw_images, opened):
    """Images outside class folders get no labels with `auto`. Endings may be in capitals; other files are ignored."""
    draw_images(tmp_path, ["b.PNG", "a.jpg", "c.JPEG"])
    (tmp_path / "notes.txt").write_text("no image")
    source = opened(tmp_path)
    assert [image.path for image in source.images] == ["a.jpg", "b.PNG", "c.JPEG"]
    assert source.label_names == ()
    assert {image.label for image in source.images} == {None}


def test_junk_of_operating_systems_is_ignored(image_folder, opened):
    """Hidden files and __MACOSX are neither images nor classes."""
    for junk in ("__MACOSX/cat/._0.png", ".hidden/1.png", "cat/._0.png", ".DS_Store"):
        (image_folder / junk).parent.mkdir(parents=True, exist_ok=True)
        (image_folder / junk).write_bytes(b"junk")
    assert len(opened(image_folder).images) == 12


def test_folders_reached_by_links_count_and_loops_end(image_folder, tmp_path, opened):
    """A linked class folder is read. A link to a folder above is not followed; a link to a missing file is ignored."""
    shutil.move(image_folder / "dog", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", image_folder / "dog")
    os.symlink(image_folder, image_folder / "cat" / "up")
    os.symlink(tmp_path / "gone.png", image_folder / "cat" / "gone.png")
    assert len(opened(image_folder).images) == 12


def test_folder_in_a_bucket(image_folder, upload, opened, listed, contents):
    """A folder in a bucket gives the same listing and images as a local one. Its signature changes with its content."""
    local, uri = opened(image_folder), upload(image_folder)
    source = opened(uri)
    assert (listed(source), source.label_names) == (listed(local), local.label_names)
    assert contents(source) == contents(local)
    before = source.signature
    fsspec.filesystem("s3").pipe(f"{uri}/cat/0.png", b"other bytes")
    assert opened(uri).signature != before


def test_many_objects_of_a_bucket(s3_server, opened, monkeypatch):
    """A listing of several pages is complete, and objects that only mark a folder are ignored."""
    monkeypatch.setattr(folder, "PAGE", 10)
    bucket = s3_server()
    fsspec.filesystem("s3").pipe(
        {f"{bucket}/top/{number % 7}/{number}.png": b"x" for number in range(25)} | {f"{bucket}/top/0/": b""}
    )
    assert len(opened(f"{bucket}/top").images) == len(opened(bucket).images) == 25


@pytest.fixture
def web(image_folder, serve):
    """Return the URL of a web server that shows the folder above the images."""
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    return serve(partial(quiet, directory=str(image_folder.parent)))


def test_web_server(image_folder, web, opened, listed, contents):
    """A folder whose listing a web server shows can be read, and so can archives, even if the server has no ranges."""
    local = opened(image_folder)
    for kind in ("zip", "tar", "gztar"):
        shutil.make_archive(str(image_folder), kind, image_folder)
    for uri in (
        f"{web}/images",
        f"{web}/images.zip",
        f"{web}/images.tar",
        f"{web}/images.tar.gz",
        f"{web}/images.tar?download=1",
    ):
        source = opened(uri)
        assert listed(source) == listed(local)
        assert contents(source) == contents(local)
    with pytest.raises(ConfigError, match=r"gone\.zip: no such folder or file"):
        opened(f"{web}/gone.zip")


def test_memory_url(image_folder, opened, listed, contents):
    """A folder at any fsspec URL can be read."""
    fsspec.filesystem("memory").put(str(image_folder), "/pictures", recursive=True)
    source = opened("memory://pictures")
    assert listed(source) == listed(opened(image_folder))
    assert contents(source) == contents(opened(image_folder))


def test_signature_follows_content_and_labels(image_folder, opened):
    """The same listing has the same signature. A touched file, another label or a new file changes it."""
    first = opened(image_folder).signature
    assert opened(image_folder).signature == first
    assert opened(image_folder, "none").signature != first
    os.utime(image_folder / "cat/0.png", (1, 1))
    second = opened(image_folder).signature
    assert second != first
    shutil.copy(image_folder / "cat/0.png", image_folder / "cat/new.png")
    assert opened(image_folder).signature not in (first, second)


def test_name_that_is_no_utf8(tmp_path, draw_images, opened):
    """A name that is not UTF-8 is refused before any image is read, because names are stored as text."""
    draw_images(tmp_path, ["a.png"])
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    with pytest.raises(StepError, match=r"the name b'\\xff\.png' is not UTF-8"):
        opened(tmp_path)


@pytest.mark.parametrize("uri", ["/no/such/folder", "/no/such.zip", "memory://nowhere"])
def test_missing_source_names_the_key(uri, opened):
    """A source that does not exist is an error of the config."""
    with pytest.raises(ConfigError, match=f"data.source={uri}: no such folder or file"):
        opened(uri)


def test_missing_bucket_names_the_key(s3_server, opened):
    """A bucket that does not exist is an error of the config."""
    with pytest.raises(ConfigError, match=r"data\.source=s3://no-such-bucket/x: no such"):
        opened("s3://no-such-bucket/x")


def test_no_images(tmp_path, opened):
    """A folder without images is refused."""
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(StepError, match="contains no image"):
        opened(tmp_path)


def test_folder_with_only_an_archive_names_it(tmp_path, opened):
    """The message for a folder with only an archive names the archive, which the user probably wanted."""
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"give one of its files, such as images\.zip"):
        opened(tmp_path)


def test_file_of_no_known_format(tmp_path, opened):
    """The message for a file of an unknown format lists the allowed sources."""
    (tmp_path / "a.docx").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"a\.docx has no known format; give a folder of images; a \.zip"):
        opened(tmp_path / "a.docx")


def test_images_beside_the_archive_they_came_from(image_folder, opened):
    """A folder with more images than archives is a folder of images."""
    (image_folder / "images.tar").write_bytes(b"whatever")
    assert len(opened(image_folder).images) == 12


def test_what_is_no_file_is_left_out_and_counted(image_folder, opened, caplog):
    """Pipes, sockets, devices and links to nothing are no images, however they are named, and nothing waits for them."""
    caplog.set_level("INFO", "stylegan")
    os.mkfifo(image_folder / "cat/pipe.png")
    os.symlink("/dev/zero", image_folder / "cat/zero.png")
    os.symlink("loop.png", image_folder / "cat/loop.png")
    os.symlink("gone.png", image_folder / "cat/gone.png")
    (image_folder / "cat/notes.txt").write_text("hello")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(image_folder / "cat/socket.png"))
    with listener:
        assert len(opened(image_folder).images) == 12
    assert caplog.messages == [
        f"data.source={image_folder}: left out: files without the ending of a picture (1), links to nothing (2), "
        "pipes, sockets and devices (3)"
    ]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "list.txt", "x.parquet", "data.mdb", "x.tfrecords", "dataset"])
def test_source_that_is_a_pipe(tmp_path, opened, name):
    """A pipe is refused, whatever its name promises."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(StepError, match="is a pipe, a socket or a device; copy its content to a file"):
        opened(tmp_path / name)


def test_label_file_that_is_a_pipe(image_folder, tmp_path, opened):
    """A label file is read again and again, so it cannot be a pipe."""
    os.mkfifo(tmp_path / "labels.json")
    with pytest.raises(StepError, match=r"labels\.json: .*is a pipe, a socket or a device"):
        opened(image_folder, label_file=str(tmp_path / "labels.json"))


def test_image_replaced_by_a_pipe_after_listing(image_folder, opened):
    source = opened(image_folder)
    (image_folder / "cat/0.png").unlink()
    os.mkfifo(image_folder / "cat/0.png")
    with source.open() as read, pytest.raises(OSError, match="is a pipe"):
        read("cat/0.png")


def test_folders_that_link_to_each_other(image_folder, opened, listed):
    """Such links are followed once, not for ever."""
    os.symlink("../dog", image_folder / "cat" / "l")
    os.symlink("../cat", image_folder / "dog" / "l")
    paths = [path for path, _ in listed(opened(image_folder))]
    assert len(paths) == 24
    assert not [path for path in paths if "l/l" in path]


def test_failures_to_list_or_open_are_one_line(image_folder, tmp_path, opened, monkeypatch):
    """A path that cannot be followed, a folder that refuses, and a file that is gone when it is opened name the path."""
    with pytest.raises(StepError, match=r"data\.source=.*: cannot be read: .*File name too long.*; check that it is"):
        opened(tmp_path / ("x" * 300 + ".zip"))
    os.symlink("loop.tar", tmp_path / "loop.tar")
    with pytest.raises(StepError, match=r"cannot be read: .*Too many levels of symbolic links: .*loop\.tar"):
        opened(tmp_path / "loop.tar")
    shutil.make_archive(str(tmp_path / "a"), "zip", image_folder)
    source = opened(tmp_path / "a.zip")
    (tmp_path / "a.zip").unlink()
    with pytest.raises(StepError, match=r"cannot be read: .*No such file or directory: .*a\.zip"), source.open():
        pass

    def refuse(path, *_, **__):
        if str(path).endswith("cat/3.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path)

    stat = os.stat
    monkeypatch.setattr(folder.os, "stat", refuse)
    with pytest.raises(StepError, match=r"cannot be read: .*Permission denied: .*cat/3\.png"):
        opened(image_folder)


# --- the program's own folders -----------------------------------------------------------------------------------------


def with_own_files(root: Path, draw_images) -> Path:
    """Draw pictures where the pipeline would write them."""
    return draw_images(root, ["datasets/0a/preview.png", "stages/0004/samples/1.png", "mlartifacts/1/grid.png"])


@pytest.mark.parametrize("name", ["out", "cat/out", "../link/out", "./cat/../out"])
def test_storage_inside_the_source_is_left_out(image_folder, tmp_path, draw_images, opened, listed, monkeypatch, name):
    """Pictures of the pipeline are no training images, however its folder is named: relative, with `..`, by a link."""
    before = opened(image_folder)
    os.symlink(image_folder, tmp_path / "link")
    with_own_files(image_folder / name, draw_images)
    monkeypatch.chdir(image_folder)
    for root in (name, str(image_folder / name), f"file://{image_folder / name}"):
        for source in (image_folder, ".", tmp_path / "link"):
            found = open_source(DataConfig(source=str(source), resolution=16), root)
            assert (listed(found), found.signature) == (listed(before), before.signature)


def test_storage_reached_by_a_link_in_the_source_is_left_out(image_folder, tmp_path, draw_images, opened):
    os.symlink(with_own_files(tmp_path / "out", draw_images).parent, image_folder / "up")
    assert len(open_source(DataConfig(source=str(image_folder), resolution=16), str(tmp_path / "out")).images) == 12


@pytest.mark.parametrize("remote", [False, True])
def test_pattern_that_reaches_the_storage(image_folder, upload, remote):
    """Shards of the pipeline are no shards of the source."""
    for name in ("in/a.tar", "out/datasets/0a/r0016/train.tar"):
        (image_folder / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(image_folder / name, "w") as archive:
            archive.add(image_folder / "cat/0.png", "0.png")
    uri = upload(image_folder) if remote else image_folder
    assert len(open_source(DataConfig(source=f"{uri}/**/*.tar", resolution=16)).images) == 2
    assert len(open_source(DataConfig(source=f"{uri}/**/*.tar", resolution=16), f"{uri}/out").images) == 1


@pytest.mark.parametrize("remote", [False, True])
def test_pattern_at_the_top_of_the_storage(image_folder, tmp_path, upload, listed, remote):
    """Tars beside the pipeline's own folders are the source; the pipeline's own never are, unless one set is named."""
    own = "datasets/k/r0016/train.tar"
    for name in ("mine/a.tar", own, "stages/0004/a.tar", "datasets-of-mine/a.tar"):
        (image_folder / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(image_folder / name, "w") as archive:
            archive.add(image_folder / "cat/0.png", "0.png")
    os.symlink(image_folder, tmp_path / "link")
    uri = upload(image_folder) if remote else str(image_folder)
    roots = [uri, f"{uri}/"] if remote else [uri, f"{uri}/", f"file://{uri}", str(tmp_path / "link")]
    for root in roots:
        found = open_source(DataConfig(source=f"{uri}/**/*.tar", resolution=16), root)
        assert [path for path, _ in listed(found)] == ["datasets-of-mine/a/0.png", "mine/a/0.png"]
        assert len(open_source(DataConfig(source=f"{uri}/{{mine/a,{own[:-4]}}}.tar", resolution=16), root).images) == 2
        assert len(open_source(DataConfig(source=f"{uri}/datasets/k/*/*.tar", resolution=16), root).images) == 1
        with pytest.raises(ConfigError, match=r"all 1 files of such names are in folders that this program writes"):
            open_source(DataConfig(source=f"{uri}/d*/k/**/*.tar", resolution=16), root)


def test_cache_inside_the_source_is_left_out(image_folder, draw_images, opened, monkeypatch):
    monkeypatch.setenv("STYLEGAN_CACHE", str(image_folder / "cache"))
    draw_images(image_folder / "cache", ["archives/0a/1.png"])
    assert len(opened(image_folder).images) == 12


def test_storage_inside_a_source_in_a_bucket_is_left_out(image_folder, upload, opened, listed):
    """The same holds for prefixes of a bucket, and a longer name with the same beginning is no part of the storage."""

    uri = upload(image_folder)
    fsspec.filesystem("s3").pipe({f"{uri}/out/datasets/0a/preview.png": b"x", f"{uri}/outside/1.png": b"x"})
    data = DataConfig(source=uri, resolution=16, labels="none")
    paths = [path for path, _ in listed(open_source(data, f"{uri}/out/"))]
    assert len(paths) == 13
    assert "outside/1.png" in paths
    assert len(open_source(data, f"{uri}/elsewhere").images) == 14


@pytest.mark.parametrize("remote", [False, True])
def test_storage_that_is_the_source_is_refused(image_folder, upload, remote):
    uri = upload(image_folder) if remote else str(image_folder)
    with pytest.raises(ConfigError, match=r"is storage\.root itself"):
        open_source(DataConfig(source=uri, resolution=16), f"{uri}/")


@pytest.mark.parametrize("name", ["datasets", "stages", "runs/"])
def test_folders_of_the_pipeline_are_no_sources(tmp_path, draw_images, name):
    with_own_files(tmp_path, draw_images)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match="is a folder that the pipeline writes"):
        open_source(DataConfig(source=str(tmp_path / name), resolution=16), str(tmp_path))


def test_source_inside_the_storage(image_folder):
    """Images may be beside what the pipeline writes."""
    assert len(open_source(DataConfig(source=str(image_folder), resolution=16), str(image_folder.parent)).images) == 12


@pytest.mark.parametrize("parts", [("train", "test"), ("Train", "val"), ("training", "validation", "test")])
def test_folders_for_training_and_test_are_no_classes(tmp_path, draw_images, opened, parts):
    """They are refused unless the config says what they are; as some classes among others they are fine."""
    draw_images(tmp_path, [f"{part}/{number}.png" for part in parts for number in range(2)])
    with pytest.raises(StepError, match="look like parts of a set, not like classes; give one of them"):
        opened(tmp_path)
    assert opened(tmp_path, "folder").label_names == tuple(sorted(parts))
    assert opened(tmp_path, "none").label_names == ()
    assert opened(tmp_path / parts[0]).label_names == ()
    draw_images(tmp_path, ["cat/1.png"])
    assert len(opened(tmp_path).label_names) == len(parts) + 1


@pytest.mark.parametrize("key", ["top//a.png", "top/x//b.png"])
def test_keys_of_a_bucket_that_no_folder_can_have(s3_server, opened, key):
    """Such a key would get the path of another one."""
    bucket = s3_server()
    fsspec.filesystem("s3").pipe({f"{bucket}/top/a.png": b"x", f"{bucket}/top/x//notes.txt": b"x"})
    assert len(opened(f"{bucket}/top").images) == 1
    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=b"y")
    with pytest.raises(StepError, match="has nothing between two slashes"):
        opened(f"{bucket}/top")


def test_odd_keys_of_a_bucket_stay_apart(s3_server, opened, contents):
    """Blanks, percent signs, capitals and normal forms tell keys apart."""
    bucket = s3_server()
    paths = [
        "x/a.png",
        " x/a.png",
        "x/ a.png",
        "x/%61.png",
        "X/a.png",
        "x/a.PNG",
        "x/\u00e9.png",
        "x/e\u0301.png",
        "x/a?b.png",
    ]
    for number, path in enumerate(paths):
        boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key=f"top/{path}", Body=b"%d" % number)
    boto3.client("s3").put_object(Bucket=bucket.removeprefix("s3://"), Key="top/x/folder.png/", Body=b"")
    found = contents(opened(f"{bucket}/top", "none"))
    assert found == {path: b"%d" % number for number, path in enumerate(paths)}


@pytest.mark.parametrize("remote", [False, True])
def test_file_too_large_for_a_picture(image_folder, upload, opened, monkeypatch, remote):
    """It is refused by its size, without being read."""
    (image_folder / "cat/0.png").write_bytes(bytes(5000))
    uri = upload(image_folder) if remote else image_folder
    monkeypatch.setattr("stylegan.data.sources.base.LARGEST", 4000)
    monkeypatch.setattr(folder, "LARGEST", 4000)
    with opened(uri).open() as read:
        assert len(read("cat/1.png")) < 4000
        with pytest.raises(UnreadableImage, match="5,000 bytes; at most 4,000 are allowed for one image"):
            read("cat/0.png")


def test_listing_is_sorted_once(image_folder, opened, monkeypatch):
    """A listing may have millions of paths."""
    calls = []

    def counted(images):
        calls.append(images)
        return in_order(images)

    monkeypatch.setattr("stylegan.data.sources.open_source.in_order", counted)
    paths = [image.path for image in opened(image_folder).images]
    assert paths == sorted(paths)
    assert len(calls) == 1


def test_listings_count_apart():
    """What one listing leaves out is never counted for another by mistake: there is no counter by default."""
    with pytest.raises(TypeError, match="left_out"):
        Files("x", "/x", {})


@pytest.mark.parametrize(
    "name", ["a.parquet", "data.mdb", "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "a.zip", "a.tar"]
)
def test_file_that_may_not_be_read_is_not_called_damaged(tmp_path, opened, monkeypatch, name):
    """What the system refuses says nothing about the content, so the cure is another one."""
    (tmp_path / name).write_bytes(b"anything")
    real = builtins.open

    def refusing(path: object, *how: object, **options: object) -> object:
        if str(path) == str(tmp_path / name):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *how, **options)

    monkeypatch.setattr(builtins, "open", refusing)
    with pytest.raises(
        StepError, match=r"cannot be read: .*Permission denied: .*; check that it is there and may be read"
    ):
        opened(tmp_path / name)
