"""The figures of an evaluation, as PNG files: reals beside fakes, best and worst images, nearest reals, truncated images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from stylegan import storage
from stylegan.evaluation.features.embedded import Pmap
from stylegan.evaluation.generate import CHUNK_SIZE, GENERATED, Pass, SampleChunk, Subject, truncated
from stylegan.evaluation.metrics.precision_recall import Manifold
from stylegan.evaluation.work import PictureRequest, draw_pictures
from stylegan.images import beside, grid, png_bytes

WIDEST = 2048  # pixels of a row of images
EXTREMES = 16  # images of best.png and of worst.png
COPIED, TYPICAL, NEAREST = 4, 4, 5  # of neighbours.png: images nearest to a real, other images, and reals beside each


def draw_grid(subject: Subject, out_uri: str, pmap: Pmap) -> str:
    """Write grid.png: reals on the left, the measured images without truncation on the right. Return its URI."""
    # A square of each; places without an image stay empty.
    reals = subject.open(subject.shards).images
    side = _columns(reals.shape[-1])
    num_fakes = min(side**2, subject.images.num_images) if subject.images else side**2
    fakes = _images(subject, GENERATED, range(num_fakes), pmap)
    halves = {"real": reals[: side**2], "measured" if subject.images else "generated": fakes}
    squares = [
        grid([*images, *[None] * (side**2 - len(images))], side, heads=[head]) for head, images in halves.items()
    ]
    return _write(out_uri, "grid", beside(*squares))


def draw_extremes(subject: Subject, realism: np.ndarray, out_uri: str, pmap: Pmap) -> dict[str, str]:
    """Write best.png and worst.png, with the images of highest and of lowest realism [N] first. Return URIs by name."""
    order = np.argsort(-realism, kind="stable")
    chosen = {"best": order[:EXTREMES], "worst": order[::-1][:EXTREMES]}
    columns = _columns(max(subject.shards.resolutions))
    return {
        name: _write(out_uri, name, grid(_images(subject, GENERATED, numbers.tolist(), pmap), columns))
        for name, numbers in chosen.items()
    }


def draw_neighbours(
    subject: Subject, realism: np.ndarray, features: np.ndarray, manifold: Manifold, out_uri: str, pmap: Pmap
) -> str:
    """Write neighbours.png: generated images, each with the reals that are nearest to it in features. Return its URI.

    The first rows have the images of highest realism, where a generator that memorises would show it; the others have the
    first images of all. Beside a row is the distance to its nearest real, over that real's own distance to its k-th
    neighbour among the reals: 0 is a copy, 1 is as far as reals are from each other.

    Args:
        subject: what is measured.
        realism: of the measured images [N].
        features: of the measured images [N, D].
        manifold: of the reals.
        out_uri: folder to write to.
        pmap: as for `evaluate`.
    """
    closest = np.argsort(-realism, kind="stable")[:COPIED]
    others = [number for number in range(len(features)) if number not in closest][:TYPICAL]
    numbers = [*closest.tolist(), *others]
    count = min(NEAREST, len(manifold.points))
    nearest, distances = manifold.nearest_to(features[numbers], count)
    ratios = distances[:, 0] / manifold.nearest[nearest[:, 0], -1].cpu().numpy() ** 0.5

    reals, fakes = subject.open(subject.shards).images, _images(subject, GENERATED, numbers, pmap)
    cells = [image for fake, near in zip(fakes, nearest, strict=True) for image in (fake, *reals[near])]
    heads = ["measured" if subject.images else "generated", *(f"real {number + 1}" for number in range(count))]
    return _write(
        out_uri, "neighbours", grid(cells, count + 1, heads=heads, sides=[f"{ratio:.2f}" for ratio in ratios])
    )


def draw_truncation(subject: Subject, out_uri: str, pmap: Pmap) -> str:
    """Write truncation.png, with a row for each `evaluation.psi` and a column for each latent. Return its URI."""
    columns = _columns(max(subject.shards.resolutions))
    psis = subject.evaluation.psi
    images = np.concatenate([_images(subject, truncated(psi), range(columns), pmap) for psi in psis])
    return _write(out_uri, "truncation", grid(images, columns, sides=[f"psi {psi:g}" for psi in psis]))


def _columns(resolution: int) -> int:
    """Return the number of images in a row: 8, or fewer if they would be wider than WIDEST."""
    return max(1, min(8, WIDEST // resolution))


def _images(subject: Subject, source: Pass, numbers: Sequence[int], pmap: Pmap) -> np.ndarray:
    """Return the samples of a pass with these numbers, as uint8 [len(numbers), C, r, r]."""
    # The rows to draw, by chunk.
    rows: dict[int, list[int]] = {}
    for number in sorted(set(numbers)):
        rows.setdefault(number // CHUNK_SIZE, []).append(number % CHUNK_SIZE)

    # One request per chunk, which asks for the whole chunk: any of its rows may be among them.
    requests = [
        PictureRequest(SampleChunk(subject, source, (("images", (index + 1) * CHUNK_SIZE),), index), tuple(chunk_rows))
        for index, chunk_rows in rows.items()
    ]
    drawn = {
        request.chunk.first + row: image
        for request, images in zip(requests, pmap(draw_pictures, requests), strict=True)
        for row, image in zip(request.rows, images, strict=True)
    }
    return np.stack([drawn[number] for number in numbers])


def _write(out_uri: str, name: str, picture: Image.Image) -> str:
    """Write a picture to {out_uri}/{name}.png and return its URI."""
    uri = storage.join(out_uri, f"{name}.png")
    storage.write_bytes(uri, png_bytes(picture))
    return uri
