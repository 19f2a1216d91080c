"""Tests of zips: the same images as in a folder, and refusal of damaged or malicious archives."""

import os
import struct
import tracemalloc
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stylegan.data.decode import UnreadableImage
from stylegan.errors import StepError


def zipped(folder: Path, *, top: str = "", compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a zip of a folder, with `top` before the path of each member."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, top + file.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_lists_what_its_folder_lists(image_folder, opened, listed, contents, compression):
    """A zip gives the same images, labels and bytes as its folder, also below a common folder, without hidden files."""
    folder = opened(image_folder)
    (image_folder / "cat/._0.png").write_bytes(b"junk")
    for top in ("", "cifar10/", "a/b/"):
        source = opened(zipped(image_folder, top=top, compression=compression))
        assert (listed(source), source.label_names) == (listed(folder), folder.label_names)
        assert contents(source) == contents(folder)


def test_zip_in_a_bucket(image_folder, upload, opened, listed, contents):
    """A zip in a bucket gives the same listing and images as a local one."""
    local = opened(image_folder)
    source = opened(upload(zipped(image_folder)))
    assert listed(source) == listed(local)
    assert contents(source) == contents(local)


def test_threads_read_one_archive(image_folder, opened, contents):
    """Several threads can read from one archive at the same time."""
    source = opened(zipped(image_folder, compression=zipfile.ZIP_DEFLATED))
    wanted, paths = contents(source), [image.path for image in source.images] * 50
    with source.open() as read, ThreadPoolExecutor(8) as pool:
        assert all(content == wanted[path] for path, content in zip(paths, pool.map(read, paths), strict=True))


def test_token_is_the_content_not_the_time(image_folder, opened):
    """An archive of the same files with other times has the same signature."""
    before = opened(zipped(image_folder)).signature
    for file in image_folder.rglob("*.png"):
        file.touch()
    assert opened(zipped(image_folder)).signature == before


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png"])
def test_names_that_lead_out_are_refused(tmp_path, opened, name):
    """An archive with a member outside its folder is refused as a whole."""
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("good.png", b"x")
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(StepError, match="which leads out of the archive") as caught:
        opened(tmp_path / "evil.zip")
    assert "\n" not in str(caught.value)


def test_damaged_member_is_that_images_fault(image_folder, opened):
    """The checksum reveals a flipped bit in one member; the other images can be read."""
    path = zipped(image_folder)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("cat/0.png").header_offset
    source = opened(path)
    content = bytearray(path.read_bytes())
    content[start + 60] ^= 1
    path.write_bytes(content)
    with source.open() as read:
        with pytest.raises(zipfile.BadZipFile, match="checksum"):
            read("cat/0.png")
        assert read("cat/1.png") == (image_folder / "cat/1.png").read_bytes()


def test_member_that_unpacks_to_more_than_it_says(tmp_path, opened):
    """Unpacking uses no more memory than the directory of the archive says."""
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(10_000_000))
    content = path.read_bytes()
    entry = content.rindex(b"PK\1\2")
    path.write_bytes(content[: entry + 24] + (1000).to_bytes(4, "little") + content[entry + 28 :])
    with opened(path).open() as read:
        tracemalloc.start()
        with pytest.raises(zipfile.BadZipFile):
            read("bomb.png")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1_000_000


def test_broken_and_encrypted_archives(tmp_path, image_folder, opened):
    """A broken and an encrypted archive are refused with what is wrong."""
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 broken")
    with pytest.raises(StepError, match=r"a\.zip: not a readable \.zip"):
        opened(tmp_path / "a.zip")
    path = zipped(image_folder)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\1\2", content.index(b"PK\1\2") + 1)
    while entry >= 0:
        content[entry + 8] |= 1
        entry = content.find(b"PK\1\2", entry + 1)
    path.write_bytes(content)
    with pytest.raises(StepError, match="is encrypted; make the archive again"):
        opened(path)


def raw_zip(path: Path, members: list[tuple[bytes, bytes, bytes]]) -> Path:
    """Write a zip of (name, content, extra field of the directory), as `zip` of Linux does: without the flag for UTF-8."""
    body = index = b""
    for name, content, extra in members:
        facts = struct.pack("<HHHHHII", 20, 0, 0, 0, 33, zlib.crc32(content), len(content))
        facts += struct.pack("<IHH", len(content), len(name), 0)
        index += b"PK\1\2\x14\0" + facts[:-2] + struct.pack("<HHHHII", len(extra), 0, 0, 0, 0, len(body)) + name + extra
        body += b"PK\3\4" + facts + name + content
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, len(members), len(members), len(index), len(body), 0)
    path.write_bytes(body + index + end)
    return path


def unicode_path(name: bytes, text: str) -> bytes:
    """Return Info-ZIP's extra field for a Unicode name."""
    content = b"\1" + zlib.crc32(name).to_bytes(4, "little") + text.encode()
    return struct.pack("<HH", 0x7075, len(content)) + content


@pytest.mark.parametrize(
    ("name", "extra", "path"),
    [
        ("猫/あ.png".encode(), b"", "猫/あ.png"),
        (b"caf\x82/a.png", b"", "café/a.png"),  # code page 437
        ("ソ.png".encode("cp932"), b"", "â\\.png"),  # Shift-JIS, whose second byte is that of a backslash
        (b"cats\\a.png", b"", "cats/a.png"),
        (b"c\x82ts\\a.png", unicode_path(b"c\x82ts\\a.png", "猫\\a.png"), "猫/a.png"),
        (b"caf\x82/a.png", unicode_path(b"another name", "猫/a.png"), "café/a.png"),
    ],
)
def test_names_without_the_flag_for_utf_8(tmp_path, opened, contents, name, extra, path):
    """Names are UTF-8 if they can be, else those of the extra field or of code page 437."""
    source = opened(raw_zip(tmp_path / "a.zip", [(name, b"x", extra), (b"top.png", b"y", b"")]))
    assert contents(source) == {path: b"x", "top.png": b"y"}


def test_names_of_zips_made_on_unix(tmp_path, opened, listed, contents):
    """There a backslash is a letter, and a zip gives what its folder gives."""
    (tmp_path / "set" / "cats").mkdir(parents=True)
    for name in ("cats/1.png", "cats\\1.png", "\x7f.png"):
        (tmp_path / "set" / name).write_bytes(name.encode())
    source = opened(zipped(tmp_path / "set"))
    assert listed(source) == listed(opened(tmp_path / "set"))
    assert contents(source) == contents(opened(tmp_path / "set"))

    # What `zip` writes for such a name into its extra field is no UTF-8.
    field = b"\1" + zlib.crc32(b"\x7f.png").to_bytes(4, "little") + b"\xc1\xbf.png"
    extra = struct.pack("<HH", 0x7075, len(field)) + field
    assert listed(opened(raw_zip(tmp_path / "a.zip", [(b"\x7f.png", b"x", extra)]))) == [("\x7f.png", None)]


def test_labels_of_names_without_the_flag(tmp_path, opened, listed):
    """The names of a dataset.json are those of the images."""
    labels = '{"labels": [["あ.png", 0], ["い.png", 1]]}'.encode()
    members = [("あ.png".encode(), b"x", b""), ("い.png".encode(), b"y", b""), (b"dataset.json", labels, b"")]
    assert listed(opened(raw_zip(tmp_path / "a.zip", members))) == [("あ.png", 0), ("い.png", 1)]


def with_link(path: Path, name: str, target: str) -> Path:
    """Add a symbolic link to a zip, as `zip -y` does."""
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, target)
    return path


def test_links_in_zips(image_folder, opened, listed, contents):
    """A link to a member gives what it gives in a folder; any other that may lead to images is refused."""
    path = with_link(zipped(image_folder), "dog/soft.png", "../cat/0.png")
    os.symlink("../cat/0.png", image_folder / "dog/soft.png")
    folder, source = opened(image_folder), opened(path)
    assert listed(source) == listed(folder)
    assert contents(source) == contents(folder)
    with pytest.raises(
        StepError, match=r"gone\.png is a symbolic link to /x/gone\.png, which is not a file of the archive"
    ):
        opened(with_link(path, "gone.png", "/x/gone.png"))


def test_last_of_a_link_and_a_file_counts(tmp_path, opened, contents):
    """As when the zip is unpacked: a later file takes the place of a link, and a later link that of a file."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("b.png", b"x")
    with_link(path, "a.png", "b.png")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.png", b"file")
    assert contents(opened(path)) == {"a.png": b"file", "b.png": b"x"}
    with pytest.warns(UserWarning, match="Duplicate name"):
        with_link(path, "a.png", "b.png")
    assert contents(opened(path)) == {"a.png": b"x", "b.png": b"x"}


def test_zip_that_is_emptied_after_listing(image_folder, opened):
    """Each image that is gone fails by itself, and no process dies of it."""
    path = zipped(image_folder)
    source = opened(path)
    with source.open() as read:
        path.write_bytes(b"")
        with pytest.raises(zipfile.BadZipFile, match="is not where the directory says"):
            read("cat/0.png")
    with source.open() as read, pytest.raises(zipfile.BadZipFile):
        read("cat/0.png")


@pytest.mark.parametrize(
    ("offset", "value", "refused"),
    [
        (6, b"\xff", True),  # version
        (46, b"\xff", True),  # name
        (20, b"\xff" * 8, False),  # sizes
        (20, b"\xfe" * 4, False),
        (24, b"\xfe" * 4, False),
        (42, b"\xfe" * 4, False),  # place
    ],
)
def test_damaged_directories(tmp_path, opened, offset, value, refused):
    """A directory that cannot be parsed refuses the archive; wrong sizes or places are the fault of that member."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("é.png", b"x" * 30)
        archive.writestr("b.png", b"y" * 30)
    content = path.read_bytes()
    entry = content.index(b"PK\1\2") + offset
    path.write_bytes(content[:entry] + value + content[entry + len(value) :])
    if refused:
        with pytest.raises(StepError, match=r"not a readable \.zip"):
            opened(path)
        return
    with opened(path).open() as read:
        assert read("b.png") == b"y" * 30
        with pytest.raises((zipfile.BadZipFile, UnreadableImage)):
            read("é.png")
