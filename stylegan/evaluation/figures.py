"""The pictures of an evaluation, as PNG files: reals beside fakes, the best and the worst images, the same latents at every psi."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stylegan import storage
from stylegan.data.loading.loader import load_images
from stylegan.evaluation.features.embedded import Pmap
from stylegan.evaluation.generate import CHUNK, GENERATED, Chunk, Pass, Subject
from stylegan.evaluation.meters import truncated
from stylegan.evaluation.work import Pictures, draw
from stylegan.images import grid, png_bytes

WIDEST = 2048  # pixels of a row of images
EXTREMES = 16  # images of best.png and of worst.png


def draw_grid(subject: Subject, out_uri: str, pmap: Pmap) -> str:
    """grid.png: real images on the left, measured ones on the right, without truncation. Gives the URI, as all of these do."""
    reals = load_images(subject.shards, max(subject.shards.resolutions)).images
    side = _columns(reals.shape[-1])
    sheets = [np.zeros((side**2, *reals.shape[1:]), np.uint8) for _ in range(2)]
    num_fakes = min(side**2, subject.images.num_images) if subject.images else side**2
    for sheet, images in zip(
        sheets, (reals[: side**2], _images(subject, GENERATED, range(num_fakes), pmap)), strict=True
    ):
        sheet[: len(images)] = images
    rows = [sheet[start : start + side] for start in range(0, side**2, side) for sheet in sheets]
    return _write(out_uri, "grid", np.concatenate(rows), 2 * side)


def draw_extremes(subject: Subject, realism: np.ndarray, out_uri: str, pmap: Pmap) -> dict[str, str]:
    """best.png and worst.png: the images of the highest and of the lowest realism [N] first."""
    order = np.argsort(-realism, kind="stable")
    chosen = {"best": order[:EXTREMES], "worst": order[::-1][:EXTREMES]}
    columns = _columns(max(subject.shards.resolutions))
    return {
        name: _write(out_uri, name, _images(subject, GENERATED, numbers.tolist(), pmap), columns)
        for name, numbers in chosen.items()
    }


def draw_truncation(subject: Subject, out_uri: str, pmap: Pmap) -> str:
    """truncation.png: a row for each `evaluation.psi`, a column for each latent."""
    columns = _columns(max(subject.shards.resolutions))
    rows = [_images(subject, truncated(psi), range(columns), pmap) for psi in subject.evaluation.psi]
    return _write(out_uri, "truncation", np.concatenate(rows), columns)


def _columns(resolution: int) -> int:
    return max(1, min(8, WIDEST // resolution))


def _images(subject: Subject, source: Pass, numbers: Sequence[int], pmap: Pmap) -> np.ndarray:
    """uint8 [len(numbers), C, r, r]: those samples of a pass."""
    rows: dict[int, list[int]] = {}
    for number in sorted(set(numbers)):
        rows.setdefault(number // CHUNK, []).append(number % CHUNK)
    requests = [
        Pictures(Chunk(subject, source, (("images", (index + 1) * CHUNK),), index), tuple(found))
        for index, found in rows.items()
    ]
    drawn = {
        request.chunk.first + row: image
        for request, images in zip(requests, pmap(draw, requests), strict=True)
        for row, image in zip(request.rows, images, strict=True)
    }
    return np.stack([drawn[number] for number in numbers])


def _write(out_uri: str, name: str, images: np.ndarray, columns: int) -> str:
    uri = storage.join(out_uri, f"{name}.png")
    storage.write_bytes(uri, png_bytes(grid(images, columns=columns)))
    return uri
