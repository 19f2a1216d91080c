"""Improved precision and recall, density and coverage, realism: how much of one set is inside the manifold of another.

The manifold of a set is a union of balls, one around each point. A ball reaches to the k-th nearest other point and
includes its border (Kynkaanniemi et al. 2019). Distances are computed in tiles; the whole matrix is never in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stylegan.errors import StepError
from stylegan.evaluation.metrics.numerics import Estimate, require_features, require_same_width

TILE = 2048  # points on a side of a tile
# Squared distances below this fraction of the squared norms count as 0: the features, mostly float32, are not more
# precise.
SAME = 1e-12
# Factor that lengthens squared radii, so that rounding does not decide about points on the border.
SLACK = 1 + 1e-9


@dataclass(frozen=True)
class Manifold:
    """Points [N, D] and the squared distances [N, K] to their K nearest other points, ascending.

    One manifold can be compared with many sets.
    """

    points: Tensor
    nearest: Tensor

    @classmethod
    def of(cls, features: np.ndarray, *, neighbours: int = 5, what: str = "reference", device: str = "cpu") -> Manifold:
        """Return the manifold of features.

        Args:
            features: [N, D].
            neighbours: the largest k that a comparison will use.
            what: names the set in messages: reference, generated.
            device: torch device of the manifold and of comparisons with it.

        Raises:
            StepError: values that are not finite, or no more than `neighbours` points.
        """
        require_features(features, what)
        if len(features) <= neighbours:
            raise StepError(
                f"{len(features)} {what} images have no {neighbours} nearest others; at least {neighbours + 1} are needed"
            )
        points = torch.from_numpy(np.ascontiguousarray(features, np.float32)).to(device)
        nearest = torch.full((len(points), neighbours + 1), torch.inf, dtype=torch.float64, device=device)
        for rows, columns, distances in _tiles(points, points):
            nearest[rows] = _smallest(nearest[rows], distances)
            if columns != rows:  # distances are symmetric: this tile, transposed, is the one below the diagonal
                nearest[columns] = _smallest(nearest[columns], distances.T)
        return cls(points, nearest[:, 1:])  # column 0 is the distance to the point itself

    def radii(self, k: int) -> Tensor:
        """Return the squared radii [N] of the balls that reach to the k-th neighbour, float64."""
        return self.nearest[:, k - 1] * SLACK


@dataclass(frozen=True)
class ManifoldMetrics:
    """Four metrics with 95 % intervals: Wilson's for the shares, the normal one for density.

    Precision and density are averages over generated images, recall and coverage over reals. An interval says how much
    the metric varies over other images of the set that it averages over; the balls stay the same.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def manifold_metrics(real: np.ndarray | Manifold, fake: np.ndarray, *, k: int = 3, k_dc: int = 5) -> ManifoldMetrics:
    """Return precision and recall (Kynkaanniemi et al. 2019) with density and coverage (Naeem et al. 2020).

    Args:
        real: features [N, D], or their manifold with max(k, k_dc) neighbours or more; its device is used.
        fake: generated features [M, D].
        k: neighbour that the balls of precision and recall reach to; 3 in the paper.
        k_dc: neighbour that the balls of density and coverage reach to; 5 in the paper.

    Raises:
        StepError: too few images, values that are not finite, or sets of different D.
        ValueError: the given manifold has fewer neighbours than k or k_dc.
    """
    # Make the manifolds of both sets.
    reals = _manifold(real, max(k, k_dc))
    require_same_width(reals.points.shape[1], fake.shape[1])
    fakes = Manifold.of(fake, neighbours=k, what="generated", device=str(reals.points.device))
    ball, ball_dc, fake_ball = reals.radii(k), reals.radii(k_dc), fakes.radii(k)

    # Compare every pair, tile by tile: which images are in a ball of the other set, and in how many balls.
    precise, recalled, covered = (
        torch.zeros(len(m.points), dtype=torch.bool, device=m.points.device) for m in (fakes, reals, reals)
    )
    counts = torch.zeros(len(fakes.points), dtype=torch.float64, device=fakes.points.device)
    for rows, columns, distances in _tiles(fakes.points, reals.points):
        near = distances <= ball_dc[columns]
        precise[rows] |= (distances <= ball[columns]).any(dim=1)
        recalled[columns] |= (distances <= fake_ball[rows, None]).any(dim=0)
        covered[columns] |= near.any(dim=0)
        counts[rows] += near.sum(dim=1)

    # Average.
    precision, recall, coverage = (Estimate.of_share(hits.cpu().numpy()) for hits in (precise, recalled, covered))
    return ManifoldMetrics(precision, recall, Estimate.of_mean(counts.cpu().numpy() / k_dc), coverage)


def realism(real: np.ndarray | Manifold, fake: np.ndarray, *, k: int = 3) -> np.ndarray:
    """Return the realism [M] of each generated image, float64 (Kynkaanniemi et al. 2019, section 5).

    Realism is the largest ratio of a ball's radius to the distance between its centre and the image, over the smaller
    half of the balls of the reals. It is 1 or more inside that half of the manifold. For an exact copy of a real it is
    huge but finite.

    Args:
        real: features [N, D], or their manifold with k neighbours or more; its device is used.
        fake: generated features [M, D].
        k: neighbour that the balls reach to.

    Raises:
        StepError: too few images, values that are not finite, or sets of different D.
        ValueError: the given manifold has fewer neighbours than k.
    """
    # Keep the smaller half of the balls, as the paper does.
    reals = _manifold(real, k)
    require_same_width(reals.points.shape[1], fake.shape[1])
    points = torch.from_numpy(np.ascontiguousarray(require_features(fake, "generated"), np.float32)).to(
        reals.points.device
    )
    radii = reals.radii(k)
    kept = radii <= radii.quantile(0.5)
    centres, radii = reals.points[kept], radii[kept]

    # Find the largest ratio, tile by tile. `tiny` keeps the ratio of a copy finite.
    largest = torch.zeros(len(points), dtype=torch.float64, device=points.device)
    smallest = torch.finfo(torch.float64).tiny
    for rows, columns, distances in _tiles(points, centres):
        ratios = radii[columns] / distances.clamp(min=smallest)
        largest[rows] = torch.maximum(largest[rows], ratios.amax(dim=1))
    found: np.ndarray = largest.clamp(max=torch.finfo(torch.float64).max).sqrt().cpu().numpy()
    return found


def _manifold(real: np.ndarray | Manifold, neighbours: int) -> Manifold:
    if not isinstance(real, Manifold):
        return Manifold.of(real, neighbours=neighbours)
    if real.nearest.shape[1] < neighbours:
        raise ValueError(f"the manifold has {real.nearest.shape[1]} neighbours, {neighbours} are needed")
    return real


def _tiles(a: Tensor, b: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield rows of a, rows of b and the squared distances [n, m] between them, tile by tile.

    If a is b, the tiles below the diagonal are left out. The distances are float64: for points close together,
    |x|^2 + |y|^2 - 2 x.y cancels all digits of float32.
    """
    for i in range(0, len(a), TILE):
        x = a[i : i + TILE].double()
        x2 = x.square().sum(dim=1, keepdim=True)
        for j in range(i if a is b else 0, len(b), TILE):
            y = b[j : j + TILE].double()
            norms = x2 + y.square().sum(dim=1)
            distances = torch.addmm(norms, x, y.T, alpha=-2)
            distances[distances < SAME * norms] = 0
            yield slice(i, i + len(x)), slice(j, j + len(y)), distances


def _smallest(nearest: Tensor, distances: Tensor) -> Tensor:
    """Return the K smallest distances [n, K], ascending, of the K so far [n, K] and more [n, m]."""
    k = nearest.shape[1]
    few = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).values
    return torch.cat([nearest, few], dim=1).topk(k, dim=1, largest=False).values
