"""Which part of one set lies in the manifold of another one: improved precision and recall, density and coverage, realism.

The manifold of a set is the union of balls around its points that reach to the k-th nearest other point, border included
(Kynkaanniemi et al. 2019). Never is a whole matrix of distances in memory, only tiles of it.
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
# Squared distances below this part of the squared norms are 0: the features, mostly float32, hold no more.
SAME = 1e-12
# Squared radii are this much longer, so that rounding does not decide about points on the border.
SLACK = 1 + 1e-9


@dataclass(frozen=True)
class Manifold:
    """Points [N, D] and the squared distances [N, K] to the nearest K other ones, ascending. Kept, it serves many comparisons."""

    points: Tensor
    nearest: Tensor

    @classmethod
    def of(cls, features: np.ndarray, *, neighbours: int = 5, what: str = "reference", device: str = "cpu") -> Manifold:
        """The manifold of features [N, D], for balls that reach to the `neighbours`-th other point at most.

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
            if columns != rows:  # the tile below the diagonal is this one mirrored
                nearest[columns] = _smallest(nearest[columns], distances.T)
        return cls(points, nearest[:, 1:])

    def radii(self, k: int) -> Tensor:
        """[N] squared radii of the balls, float64."""
        return self.nearest[:, k - 1] * SLACK


@dataclass(frozen=True)
class ManifoldMetrics:
    """Each with a 95 % interval: shares with Wilson's, density with the normal one, for other images of the set that is averaged over
    (generated images for precision and density, reals for recall and coverage) in front of the same balls.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def manifold_metrics(real: np.ndarray | Manifold, fake: np.ndarray, *, k: int = 3, k_dc: int = 5) -> ManifoldMetrics:
    """Precision and recall (Kynkaanniemi et al. 2019, k = 3), density and coverage (Naeem et al. 2020, k_dc = 5).

    Args:
        real: features [N, D], or their manifold with max(k, k_dc) neighbours, whose device is used.
        fake: generated features [M, D].

    Raises:
        StepError: too few images, values that are not finite, or sets of different D.
    """
    reals = _manifold(real, max(k, k_dc))
    require_same_width(reals.points.shape[1], fake.shape[1])
    fakes = Manifold.of(fake, neighbours=k, what="generated", device=str(reals.points.device))
    ball, ball_dc, fake_ball = reals.radii(k), reals.radii(k_dc), fakes.radii(k)
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
    precision, recall, coverage = (Estimate.of_share(hits.cpu().numpy()) for hits in (precise, recalled, covered))
    return ManifoldMetrics(precision, recall, Estimate.of_mean(counts.cpu().numpy() / k_dc), coverage)


def realism(real: np.ndarray | Manifold, fake: np.ndarray, *, k: int = 3) -> np.ndarray:
    """[M] float64: how deep each generated image lies in the manifold of the reals (Kynkaanniemi et al. 2019, section 5).

    The largest ratio of a ball's radius to the distance of its centre, over the half of the balls that is smallest; 1 and more is
    within. An exact copy of a real is beyond all measure, but finite.
    """
    reals = _manifold(real, k)
    require_same_width(reals.points.shape[1], fake.shape[1])
    points = torch.from_numpy(np.ascontiguousarray(require_features(fake, "generated"), np.float32)).to(
        reals.points.device
    )
    radii = reals.radii(k)
    kept = radii <= radii.quantile(0.5)
    centres, radii = reals.points[kept], radii[kept]
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
        raise ValueError(f"the manifold knows {real.nearest.shape[1]} neighbours, {neighbours} are needed")
    return real


def _tiles(a: Tensor, b: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows of a, rows of b and the squared distances between them [n, m], tile by tile; of a set to itself not those below the diagonal.

    In float64: |x|^2 + |y|^2 - 2 x.y of near points cancels all digits of float32.
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
    """The smallest [n, K] of those so far [n, K] and others [n, m], ascending."""
    k = nearest.shape[1]
    few = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).values
    return torch.cat([nearest, few], dim=1).topk(k, dim=1, largest=False).values
