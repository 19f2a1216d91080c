"""References: the reals of a data set as a network sees them, computed once and kept under {root}/stats."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Collection
from functools import cached_property
from typing import TypeVar

import numpy as np

from stylegan import storage
from stylegan.data.shardset import ShardSet
from stylegan.errors import one_line
from stylegan.evaluation.features.spaces import Network
from stylegan.evaluation.generate import CHUNK_SIZE
from stylegan.evaluation.metrics.fid import Moments
from stylegan.evaluation.metrics.precision_recall import Manifold
from stylegan.records import digest

logger = logging.getLogger("stylegan")
T = TypeVar("T")
REFERENCE_VERSION = 2  # raise it whenever the same images and network would give other numbers


class Reference:
    """Moments and features of the first `num_reals` images, read from storage or computed in a pass over the reals.

    `{root}/stats/{key}/{fingerprint}.npz` contains the moments, `...-features.npy` the features [num_reals, D] in the
    dtype of the network. `needs` names what the metrics need ("moments", "features"); the other is neither computed nor
    stored.

    If `complete` is False, call `add` with the features of all images in order, then `finish`.
    """

    def __init__(
        self, network: Network, shards: ShardSet, *, num_reals: int, needs: Collection[str], root: str
    ) -> None:
        # Two files, in a folder named after all that decides the numbers.
        identity = [REFERENCE_VERSION, CHUNK_SIZE, network.name, network.sha256, network.dtype]
        key = digest([*identity, max(shards.resolutions), num_reals])
        uri = storage.join(storage.absolute(root), "stats", f"{network.name}-{key}", shards.fingerprint)
        self._moments_uri, self._features_uri = f"{uri}.npz", f"{uri}-features.npy"
        self.num_reals, self._needs = num_reals, needs

        # Read what is in storage.
        self._moments = _read_moments(self._moments_uri, num_reals) if "moments" in needs else None
        self._features = _read_features(self._features_uri, num_reals, network.dtype) if "features" in needs else None
        has_moments = "moments" not in needs or self._moments is not None
        has_features = "features" not in needs or self._features is not None
        self.complete = has_moments and has_features

        # A pass over the reals computes both again.
        self._parts: list[np.ndarray] = []
        if not self.complete:
            self._moments = None

    @property
    def moments(self) -> Moments:
        """The moments of the features, in float64."""
        assert self._moments is not None
        return self._moments

    @property
    def features(self) -> np.ndarray:
        """The features [num_reals, D]."""
        assert self._features is not None
        return self._features

    @cached_property
    def manifold(self) -> Manifold:
        """The features with the distances to their nearest neighbours; several metrics share it."""
        return Manifold.of(self.features)

    def add(self, rows: np.ndarray) -> None:
        """Add the features [n, D] of the next images."""
        if "moments" in self._needs:
            moments = Moments.of(rows)
            self._moments = moments if self._moments is None else self._moments.merge(moments)
        if "features" in self._needs:
            self._parts.append(rows)

    def finish(self) -> None:
        """Write the reference to storage, after the last `add`."""
        if self.complete:
            return
        if "features" in self._needs:
            self._features, self._parts = np.concatenate(self._parts), []
            buffer = io.BytesIO()
            np.save(buffer, self._features)
            storage.write_bytes(self._features_uri, buffer.getvalue())
        if "moments" in self._needs:
            storage.write_bytes(self._moments_uri, self.moments.to_npz())
        self.complete = True


def _read_moments(uri: str, num_reals: int) -> Moments | None:
    """Read the moments of `num_reals` images; None if the file is missing or damaged, so that it is written again."""

    def parse(data: bytes) -> Moments:
        found = Moments.from_npz(data)
        size = len(found.mean)
        if found.count != num_reals or found.mean.shape != (size,) or found.m2.shape != (size, size):
            raise ValueError(f"moments of {found.count} images, shapes {found.mean.shape} and {found.m2.shape}")
        if not (np.isfinite(found.mean).all() and np.isfinite(found.m2).all()):
            raise ValueError("values that are not finite")
        return found

    return _read(uri, parse)


def _read_features(uri: str, num_reals: int, dtype: str) -> np.ndarray | None:
    """Read features [num_reals, D]; None if the file is missing or damaged, so that it is written again."""

    def parse(data: bytes) -> np.ndarray:
        found = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(found, np.ndarray) or found.ndim != 2 or len(found) != num_reals or found.dtype != dtype:
            raise ValueError(f"not {num_reals} rows of {dtype}")
        if not np.isfinite(found).all():
            raise ValueError("values that are not finite")
        return found

    return _read(uri, parse)


def _read(uri: str, parse: Callable[[bytes], T]) -> T | None:
    """Read what can be computed again: a damaged file is named in a warning and counts as missing."""
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        return None
    try:
        return parse(data)
    except Exception as error:  # numpy and zipfile raise errors of many types
        logger.warning("%s: is damaged (%s); it is computed again", uri, one_line(error, 200))
        return None
