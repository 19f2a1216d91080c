"""Improved precision and recall, density and coverage, realism: how much of one set is inside the manifold of another.

The manifold of a set is a union of balls, one around each point. A ball reaches to the k-th nearest other point and
includes its border (Kynkaanniemi et al. 2019). Distances are computed in tiles; the whole matrix is never in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stylegan.errors import StepError
from stylegan.evaluation.metrics.numerics import Estimate, group_numbers, require_features, require_same_width

TILE = 2048  # points on a side of a tile
GROUPS = 32  # of the jackknife
# Squared distances below this fraction of the squared norms count as 0: the features, mostly float32, are not more
# precise.
SAME = 1e-12
# Factor that lengthens squared radii, so that rounding does not decide about points on the border.
SLACK = 1 + 1e-9


@dataclass(frozen=True)
class Manifold:
    """Points [N, D], and the squared distances [N, K] and numbers [N, K] of their K nearest other points, ascending.

    One manifold can be compared with many sets.
    """

    points: Tensor
    nearest: Tensor
    numbers: Tensor

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
        numbers = torch.zeros_like(nearest, dtype=torch.int64)
        for rows, columns, distances in _tiles(points, points):
            if columns == rows:
                distances.fill_diagonal_(-1)  # the point itself comes before its copies
            _keep_smallest(nearest, numbers, rows, columns, distances)
            if columns != rows:  # distances are symmetric: this tile, transposed, is the one below the diagonal
                _keep_smallest(nearest, numbers, columns, rows, distances.T)
        return cls(points, nearest[:, 1:], numbers[:, 1:])  # column 0 is the point itself

    def nearest_to(self, features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers [M, k] of the points nearest to a few features [M, D], and their distances, ascending."""
        queries = torch.from_numpy(np.ascontiguousarray(features, np.float32)).to(self.points.device)
        squares = torch.stack([(self.points.double() - query).square().sum(dim=1) for query in queries.double()])
        found = squares.topk(k, dim=1, largest=False)
        return found.indices.cpu().numpy(), found.values.sqrt().cpu().numpy()

    def radii(self, k: int) -> Tensor:
        """Return the squared radii [N] of the balls that reach to the k-th neighbour, float64."""
        return self.nearest[:, k - 1] * SLACK

    def radii_without(self, k: int, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Return the larger balls that a jackknife makes: those with one of the k neighbours in the group left out.

        Args:
            k: neighbour that the balls reach to.
            groups: the group of each point, int64 [N].

        Returns:
            For each of the k neighbours, the squared radius [N, k] of the ball that reaches to the k-th of the
            neighbours outside its group, float64; and that group [N, k]. A ball reaches to the last neighbour known if
            fewer than k are outside.
        """
        of_neighbours = groups[self.numbers]
        left_out = of_neighbours[:, :k]
        radii = torch.empty(left_out.shape, dtype=self.nearest.dtype, device=self.nearest.device)
        for slot in range(k):
            reached = (of_neighbours != left_out[:, slot, None]).cumsum(dim=1) >= k
            reached[:, -1] = True
            radii[:, slot] = self.nearest.gather(1, reached.int().argmax(dim=1, keepdim=True)).squeeze(1)
        return radii * SLACK, left_out


@dataclass(frozen=True)
class ManifoldMetrics:
    """Four metrics with 95 % intervals, which say how much a metric varies over other images of the same generator.

    The reals stay the same, as they do when two generators are compared. Precision and density are averages over the
    generated images in balls that stay the same: their intervals are Wilson's and the normal one. Recall and coverage
    are shares of the reals, which depend on all generated images together: their intervals come from a jackknife.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def manifold_metrics(
    real: np.ndarray | Manifold, fake: np.ndarray, *, k: int = 3, k_dc: int = 5, groups: int = GROUPS
) -> ManifoldMetrics:
    """Return precision and recall (Kynkaanniemi et al. 2019) with density and coverage (Naeem et al. 2020).

    Args:
        real: features [N, D], or their manifold with max(k, k_dc) neighbours or more; its device is used.
        fake: generated features [M, D].
        k: neighbour that the balls of precision and recall reach to; 3 in the paper.
        k_dc: neighbour that the balls of density and coverage reach to; 5 in the paper.
        groups: of the jackknife; 0 leaves it out, which is faster: the ends of the intervals of recall and coverage are
            then NaN.

    Raises:
        StepError: too few images, values that are not finite, or sets of different D.
        ValueError: the given manifold has fewer neighbours than k or k_dc.
    """
    # Make the manifolds of both sets.
    reals = _manifold(real, max(k, k_dc))
    require_same_width(reals.points.shape[1], fake.shape[1])
    device = reals.points.device
    jackknife = groups > 1
    known = max(k, min(2 * k + 2, len(fake) - 1)) if jackknife else k  # a few more than k, for balls without a group
    fakes = Manifold.of(fake, neighbours=known, what="generated", device=str(device))
    ball, ball_dc, fake_ball = reals.radii(k), reals.radii(k_dc), fakes.radii(k)

    # Put the generated images into the groups of a jackknife, or all into one. Row g of a mask [G, M] has the images of
    # group g, or those whose ball is larger without group g.
    num_groups = max(min(groups, len(fake)), 2) if jackknife else 1
    group_of = torch.from_numpy(group_numbers(0, len(fake), num_groups)).to(device)
    all_groups = torch.arange(num_groups, device=device)[:, None]
    own = (all_groups == group_of).float()
    changed: list[tuple[Tensor, Tensor]] = []  # masks, and the squared radii [M] of the larger balls
    if jackknife:
        larger, left_out = fakes.radii_without(k, group_of)
        left_out = left_out.masked_fill(
            left_out == group_of[:, None], -1
        )  # an image is not there without its own group
        changed = [((all_groups == group).float(), radii) for group, radii in zip(left_out.T, larger.T, strict=True)]

    # Compare every pair, tile by tile: which images are in a ball of the other set, and in how many balls. For the
    # reals, count by group the images whose ball they are in, those whose larger ball they are in, and the near ones.
    precise = torch.zeros(len(fakes.points), dtype=torch.bool, device=device)
    counts = torch.zeros(len(fakes.points), dtype=torch.float64, device=device)
    recalled, recalled_without, covered = (torch.zeros(num_groups, len(reals.points), device=device) for _ in range(3))
    for rows, columns, distances in _tiles(fakes.points, reals.points):
        near = distances <= ball_dc[columns]
        precise[rows] |= (distances <= ball[columns]).any(dim=1)
        counts[rows] += near.sum(dim=1)
        covered[:, columns] += own[:, rows] @ near.float()
        recalled[:, columns] += own[:, rows] @ (distances <= fake_ball[rows, None]).float()
        for mask, radii in changed:
            recalled_without[:, columns] += mask[:, rows] @ (distances <= radii[rows, None]).float()

    # Average.
    return ManifoldMetrics(
        precision=Estimate.of_share(precise.cpu().numpy()),
        recall=_share_of_reals(recalled, recalled_without),
        density=Estimate.of_mean(counts.cpu().numpy() / k_dc),
        coverage=_share_of_reals(covered),
    )


def _share_of_reals(counts: Tensor, counts_without: Tensor | None = None) -> Estimate:
    """Return the share of reals that a generated image reaches, with its interval from a jackknife over the images.

    Args:
        counts: the number of images of each group that reach each real, [G, N]. The ends of the interval are NaN for a
            single group.
        counts_without: the number of images that reach it only without a group, or then too, [G, N]; None: no others.
    """
    total = counts.sum(dim=0)
    value = (total > 0).double().mean().item()
    if len(counts) == 1:
        return Estimate(value, math.nan, math.nan)
    reached = total - counts > 0
    if counts_without is not None:
        reached |= counts_without > 0
    return Estimate.from_jackknife(value, reached.double().mean(dim=1).cpu().numpy(), lowest=0.0, highest=1.0)


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


def _keep_smallest(nearest: Tensor, numbers: Tensor, rows: slice, columns: slice, distances: Tensor) -> None:
    """Keep the K smallest distances of some points, ascending, of the K so far and of those to more points.

    Args:
        nearest, numbers: the distances so far and the points that they lead to, [N, K]; changed in place.
        rows: the n points.
        columns: the m points that the distances [n, m] lead to.
    """
    k = nearest.shape[1]
    few, places = distances.topk(min(k, distances.shape[1]), dim=1, largest=False)
    joined = torch.cat([numbers[rows], places + columns.start], dim=1)
    nearest[rows], order = torch.cat([nearest[rows], few], dim=1).topk(k, dim=1, largest=False)
    numbers[rows] = joined.gather(1, order)
