"""Outputs go where a person points: files, links, pipes, devices, buckets; a bad place is one line before any work."""

import os
import socket
import stat
import subprocess
import sys
import threading

import fsspec
import pytest

from stylegan.errors import ConfigError, StepError
from stylegan.outputs import is_standard_output, output_file, output_folder, page_outputs, write_output

PNG = (".png",)


def put(out, data=b"picture"):
    write_output(output_file(str(out), PNG), data)


def test_a_new_file_and_its_folders(tmp_path):
    put(tmp_path / "a" / "b c %20" / "x.PNG")
    assert (tmp_path / "a" / "b c %20" / "x.PNG").read_bytes() == b"picture"
    assert os.listdir(tmp_path / "a" / "b c %20") == ["x.PNG"]  # no partial file is left


@pytest.mark.parametrize("name", ["n" * 251, "\u00e9" * 125 + "n"])
def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path, name):
    put(tmp_path / f"{name}.png")
    assert os.listdir(tmp_path) == [f"{name}.png"]


@pytest.mark.parametrize("uri", ["ftp://127.0.0.1:1/x.png", "zip://x.png::{}/none.zip"])
def test_a_store_that_connects_at_once_and_cannot(tmp_path, uri):
    with pytest.raises(StepError, match=r"--out .*: its store cannot be used"):
        output_file(uri.format(tmp_path), PNG)


def test_a_file_keeps_its_permissions(tmp_path):
    (tmp_path / "x.png").write_bytes(b"old")
    (tmp_path / "x.png").chmod(0o604)
    put(tmp_path / "x.png")
    assert stat.S_IMODE((tmp_path / "x.png").stat().st_mode) == 0o604


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path, exists):
    (tmp_path / "folder").mkdir()
    if exists:
        (tmp_path / "folder" / "real").write_bytes(b"old")
    (tmp_path / "middle").symlink_to("folder/real")
    (tmp_path / "link.png").symlink_to("middle")
    put(tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "middle").is_symlink()
    assert (tmp_path / "folder" / "real").read_bytes() == b"picture"


def test_a_pipe_gets_the_bytes_and_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    put(tmp_path / "pipe", b"p" * 200_000)
    reader.join(10)
    assert got == [b"p" * 200_000]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_devices(tmp_path):
    put("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(StepError, match=r"--out /dev/full: cannot be written \(No space left"):
        put("/dev/full")


@pytest.mark.parametrize("out", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_in_a_file_holds_the_bytes_alone(tmp_path, out):
    """A file behind /dev/stdout is the shell's: it must not be replaced under it."""
    code = f"from stylegan.outputs import *; write_output(output_file({out!r}, ('.png',)), b'picture')"
    with open(tmp_path / "x", "wb") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "x").read_bytes() == b"picture"
    assert os.listdir(tmp_path) == ["x"]


def test_other_files_are_not_standard_output(tmp_path):
    assert not is_standard_output(str(tmp_path / "x.png"))
    assert not is_standard_output("/dev/null")


def test_any_store_of_fsspec(s3_server):
    bucket = s3_server()
    put(f"{bucket}/a/x.png")
    with fsspec.open(f"{bucket}/a/x.png") as file:
        assert file.read() == b"picture"
    assert not os.path.exists("s3:")


def test_a_bucket_that_does_not_exist_is_one_line(s3_server):
    with pytest.raises(StepError, match=r"s3://no-such-bucket-here/x\.png"):
        put("s3://no-such-bucket-here/x.png")


def test_a_file_mounted_alone_is_written_in_place(tmp_path, monkeypatch):
    """Nothing can take its name: a rename over a mount point is refused."""
    (tmp_path / "x.png").write_bytes(b"old, and longer than the new")
    inode = (tmp_path / "x.png").stat().st_ino

    def busy(*_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "replace", busy)
    put(tmp_path / "x.png")
    assert ((tmp_path / "x.png").read_bytes(), (tmp_path / "x.png").stat().st_ino) == (b"picture", inode)


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("", "is empty"),
        ("  ", "begins or ends with a blank"),
        ("{}/x.gif", "must end in .png, which says what is written"),
        ("{}/grid", "must end in .png"),
        ("{}", "is a folder; give the name of a file in it"),
        ("{}/new/", "is a folder"),
        ("{}/file/x.png", "Not a directory"),
        ("{}/loop.png", "cannot be written"),
        ("{}/" + "n" * 300 + ".png", "has more than 255 bytes"),
        ("{}/socket", "a socket or a disk"),
        ("s3:/bucket/x.png", "did you mean s3://bucket/x.png?"),
        ("gs:bucket/x.png", "did you mean gs://bucket/x.png?"),
        ("s3://bucket.png", "names no file in a bucket"),
        ("foo://bucket/x.png", "cannot use foo://"),
        ("https://example.org/x.png", "nothing can be written there"),
        ("memory://x.png", "the memory of this process ends with it"),
        ("s3://key:CANARY@bucket/x.png", "carries credentials"),
    ],
)
def test_places_where_nothing_can_be_written(tmp_path, out, says):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop.png").symlink_to("loop.png")
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # the path of a socket must be short
        server.bind("socket")
        os.chdir(here)
        with pytest.raises(ConfigError) as error:
            output_file(out.format(tmp_path), PNG)
    assert says in str(error.value)
    assert "CANARY" not in str(error.value)
    assert "\n" not in str(error.value)
    assert not os.path.exists("s3:")


def test_folders(tmp_path, s3_server):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert output_folder(str(tmp_path / "link")) == str(tmp_path / "link")
    assert output_folder(str(tmp_path / "new" / "folder")) == str(tmp_path / "new" / "folder")
    assert output_folder("s3://bucket/a/") == "s3://bucket/a"
    for bad, says in ((tmp_path / "file", "is a file"), ("s3:/bucket", "did you mean s3://bucket?"), ("", "is empty")):
        with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
            output_folder(str(bad))


@pytest.mark.parametrize("out", ["new", "new/", "a.b/c/", "there", "dot.ted", "deep/er"])
def test_a_page_may_be_named_by_its_folder(tmp_path, monkeypatch, out):
    """What has no ending and is not there yet is a folder; one that is there may have any name."""
    monkeypatch.chdir(tmp_path)
    for folder in ("there", "dot.ted"):
        (tmp_path / folder).mkdir()
    folder = str(tmp_path / out.rstrip("/"))
    assert page_outputs(out, [".html"], "a.html", "b.png") == (f"{folder}/a.html", f"{folder}/b.png")


def test_a_page_by_its_own_name_has_nothing_beside_it(tmp_path):
    page, pipe = str(tmp_path / "page.html"), str(tmp_path / "pipe")
    os.mkfifo(pipe)
    for out in (page, pipe, "-"):
        assert page_outputs(out, [".html"], "a.html", "b.png") == (out, None)
    (tmp_path / "file").write_text("x")
    for out in ("page.pdf", "file"):
        with pytest.raises(ConfigError, match=r"must end in \.html"):
            page_outputs(str(tmp_path / out), [".html"], "a.html", "b.png")
    with pytest.raises(ConfigError, match="--out"):
        page_outputs("", [".html"], "a.html", "b.png")
