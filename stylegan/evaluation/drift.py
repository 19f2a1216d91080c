"""Measure how different the new images of a set are from those that a model was trained on: the kernel distance, KID.

Only the new images are looked at, once. KID is unbiased, so it also compares a few new images with many old ones: images
of the same kind have a distance of about zero, whatever their number. It is measured in the network that evaluates the
model, on the old images.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np
import torch

from stylegan import storage
from stylegan.config.sections import EvaluationConfig
from stylegan.data.dataset_card import PREVIEW
from stylegan.data.index import read_manifest, read_samples
from stylegan.data.loading.loader import DEFAULT_LOADING, LoaderSettings
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.features.embedded import Pmap
from stylegan.evaluation.features.spaces import Spaces, obtain_spaces, recognise
from stylegan.evaluation.generate import batch_size, open_images, to_device
from stylegan.evaluation.metrics.kid import kernel_distance
from stylegan.evaluation.metrics.numerics import exact_float32
from stylegan.evaluation.protocol import count_reals
from stylegan.evaluation.reference import Reference
from stylegan.images import to_float
from stylegan.records import Record

MOST = 10_000  # images of a set that are looked at, at most: the first ones, since the order of a set is random
ROWS = 512  # images of one request to a worker


class Drift(Record):
    """The kernel distance between new images and old ones.

    Attributes:
        kid: the distance, not multiplied by 1,000.
        low, high: the ends of its 95 % interval, over the new images.
        network: name of the network that saw them.
        num_new, num_old: images of each kind that were compared.
        preview: URI of the sheet of images of the new set.
    """

    kid: float
    low: float
    high: float
    network: str
    num_new: int
    num_old: int
    preview: str

    @property
    def text(self) -> str:
        """The distance in words."""
        return (
            f"the kernel distance (KID) of {self.num_new:,} new image(s) to {self.num_old:,} of the champion is "
            f"{self.kid:.4g} [{self.low:.4g}, {self.high:.4g}] by {self.network}"
        )


def measure_drift(
    images: ShardSet,
    before: ShardSet,
    evaluation: EvaluationConfig,
    *,
    root: str,
    pmap: Pmap = map,
    device: str = "cpu",
    loading: LoaderSettings = DEFAULT_LOADING,
) -> Drift | None:
    """Measure the images of a set that another one does not have, against that other one.

    Args:
        images: the set with the new images.
        before: what the model was trained on.
        evaluation: names the network; `kid_subsets`, `kid_subset_size`, `num_reals` and `seed` are as for the metric.
        root, pmap, device, loading: as for `evaluate`.

    Returns:
        The drift; None if fewer than two images are new.

    Raises:
        ConfigError: the network cannot be read, or not be trained for these images.
        StepError: a set is damaged, or the two hold images of different shapes.
    """
    rows = new_rows(images, before)[:MOST]
    if len(rows) < 2:
        return None
    evaluation = evaluation.model_copy(update={"metrics": ("kid",)})
    spaces = obtain_spaces(evaluation, before, root=root, device=device, pmap=pmap, loading=loading)
    look = _Look(spaces, device, loading, uuid.uuid4().hex)

    # The old images: what an evaluation has kept of them, if it has.
    num_old = count_reals(before, evaluation)
    reference = Reference(spaces["pooled"], before, num_reals=num_old, needs={"features"}, root=root)
    try:
        old = reference.features if reference.complete else look.at(before, np.arange(min(num_old, MOST)), pmap)
        new = look.at(images, rows, pmap)
    finally:
        open_images.cache_clear()  # so that the cache of decoded images may remove them

    subsets, size = evaluation.kid_subsets, evaluation.kid_subset_size
    found = kernel_distance(old, new, subsets=subsets, size=size, seed=evaluation.seed)
    return Drift(
        kid=found.value,
        low=found.low,
        high=found.high,
        network=spaces.name("pooled"),
        num_new=len(new),
        num_old=len(old),
        preview=storage.join(images.uri, PREVIEW),
    )


def new_rows(images: ShardSet, before: ShardSet) -> np.ndarray:
    """Return the rows of a set whose images another one does not have, int64, in the order of the set."""
    hashes, known = (_hashes(shards) for shards in (images, before))
    old = set(known)
    return np.array([row for row, found in enumerate(hashes) if found not in old], np.int64)


def _hashes(shards: ShardSet) -> list[bytes]:
    """Return the SHA-256 of the pixels of each image of a set, in its order."""
    found: list[bytes] = read_samples(shards.uri, read_manifest(shards.uri), ["sha256"])["sha256"].to_pylist()
    return found


@dataclass(frozen=True)
class _Look:
    """How images are looked at; `token` is that of this measurement, for `open_images`."""

    spaces: Spaces
    device: str
    loading: LoaderSettings
    token: str

    def at(self, shards: ShardSet, rows: np.ndarray, pmap: Pmap) -> np.ndarray:
        """Return the features [n, D] of some images of a set."""
        parts = (tuple(rows[start : start + ROWS].tolist()) for start in range(0, len(rows), ROWS))
        return np.concatenate(list(pmap(_features, (_Request(self, shards, part) for part in parts))))


@dataclass(frozen=True)
class _Request:
    """Rows of a set whose features are wanted; small, since the images are read where they are needed."""

    look: _Look
    shards: ShardSet
    rows: tuple[int, ...]


def _features(request: _Request) -> np.ndarray:
    """Return the features [n, D] of some images of a set. Runs on any worker."""
    look, size = request.look, batch_size(max(request.shards.resolutions))
    images, found = open_images(request.shards, look.loading, look.token).images, []
    with torch.no_grad(), exact_float32():
        for start in range(0, len(request.rows), size):
            pixels = images[np.array(request.rows[start : start + size])]
            batch = to_float(to_device(torch.tensor(pixels), look.device))
            found.append(recognise(look.spaces, batch, look.device)[0].cpu().numpy())
    features = np.concatenate(found)
    if not np.isfinite(features).all():
        raise StepError(
            f"{request.shards.uri}: an image has features that are not finite; measure with another network"
        )
    return features.astype(look.spaces["pooled"].dtype)
