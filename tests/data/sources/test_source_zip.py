"""Tests of zips: the same images as in a folder, and refusal of damaged or malicious archives."""

import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

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
