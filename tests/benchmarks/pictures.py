"""Photographs for the benchmarks of data: random crops of scikit-learn's two, or the files of a given archive."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image

JPEG_QUALITY = 90


@lru_cache
def photos() -> tuple[np.ndarray, ...]:
    """Return two photographs, uint8 [427, 640, 3]."""
    from sklearn.datasets import load_sample_images

    return tuple(load_sample_images().images)


def crops(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield different pictures, uint8 [height, width, 3]: resized random parts of the photographs."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        photo = Image.fromarray(photos()[rng.integers(2)])
        scale = rng.uniform(1, max(1.01, min(photo.height / height, photo.width / width, 4)))
        size = int(width * scale), int(height * scale)
        left, top = rng.integers(photo.width - size[0] + 1), rng.integers(photo.height - size[1] + 1)
        box = (left, top, left + size[0], top + size[1])
        yield np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=2))


def jpeg(pixels: np.ndarray) -> bytes:
    """Return pixels [H, W, 3] as a JPEG file."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def numbered(content: bytes, number: int) -> bytes:
    """Return a JPEG with a number as its comment, which changes the bytes but not the pixels."""
    comment = f"{number:012d}".encode()
    return content[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + content[2:]


def files(count: int, resolution: int, archive: str | None, *, border: int = 0) -> Iterator[bytes]:
    """Yield JPEG files.

    For 32x32 with an archive they are the archive's files, repeated as often as needed. Otherwise they are crops of the
    photographs: squares without a border; with one, `border` pixels larger and a quarter wider than high.
    """
    if archive is None or resolution != 32:
        yield from map(jpeg, crops(count, resolution + border, (resolution + border) * (5 if border else 4) // 4))
        return
    with zipfile.ZipFile(archive) as members:
        names = [name for name in members.namelist() if name.lower().endswith((".jpg", ".jpeg"))][:count]
        contents = [members.read(name) for name in names]
    for number in range(count):
        yield numbered(contents[number % len(contents)], number)


def write_folder(folder: Path, contents: Iterator[bytes], *, classes: int = 10) -> list[Path]:
    """Write JPEG files into class folders, as ImageFolder needs them, and return their paths."""
    paths = []
    for number, content in enumerate(contents):
        path = folder / f"{number % classes:02d}" / f"{number:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        paths.append(path)
    return paths


def write_tars(folder: Path, paths: list[Path], *, per_tar: int = 1000) -> list[str]:
    """Write the same files with their classes as WebDataset tars, and return the paths of the tars."""
    tars = []
    folder.mkdir(parents=True)
    for start in range(0, len(paths), per_tar):
        tars.append(str(folder / f"train-{start // per_tar:06d}.tar"))
        with open(tars[-1], "wb") as file, wds.TarWriter(file, mtime=0, encoder=False) as tar:
            for path in paths[start : start + per_tar]:
                tar.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": str(int(path.parent.name)).encode()})
    return tars


def write_zip(path: Path, count: int, archive: str | None, *, originals: int = 5000) -> None:
    """Write a zip of `count` JPEG files of 32x32 in class folders.

    There are at most `originals` different pictures, but no two files have the same bytes.
    """
    contents = list(files(min(count, originals), 32, archive))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as members:
        for number in range(count):
            members.writestr(f"{number % 10:02d}/{number:08d}.jpg", numbered(contents[number % len(contents)], number))
