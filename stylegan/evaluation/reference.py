"""The reals as a network sees them: computed once per data set and network, kept below {root}/stats."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection
from functools import cached_property

import numpy as np

from stylegan import storage
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.features.spaces import Network
from stylegan.evaluation.generate import CHUNK
from stylegan.evaluation.metrics.fid import Moments
from stylegan.evaluation.metrics.precision_recall import Manifold
from stylegan.records import digest

VERSION = 2  # raise it whenever the same images and network would give other numbers


class Reference:
    """The first `num_reals` images, read from storage or made of the parts of a pass over the reals.

    `{root}/stats/{key}/{fingerprint}.npz` holds the moments, `...-features.npy` the features [num_reals, D] in the network's dtype;
    what no metric `needs` ("moments", "features") is neither made nor kept.
    """

    def __init__(
        self, network: Network, shards: ShardSet, *, num_reals: int, needs: Collection[str], root: str
    ) -> None:
        key = digest([VERSION, CHUNK, network.name, network.sha256, network.dtype, max(shards.resolutions), num_reals])
        uri = storage.join(storage.absolute(root), "stats", f"{network.name}-{key}", shards.fingerprint)
        self._moments_uri, self._features_uri = f"{uri}.npz", f"{uri}-features.npy"
        self.num_reals, self._needs = num_reals, needs
        self._moments = _read_moments(self._moments_uri) if "moments" in needs else None
        self._features = _read_features(self._features_uri, num_reals) if "features" in needs else None
        self._parts: list[np.ndarray] = []
        self.complete = ("moments" not in needs or self._moments is not None) and (
            "features" not in needs or self._features is not None
        )
        if not self.complete:
            self._moments = None

    @property
    def moments(self) -> Moments:
        """Of the features, in float64."""
        assert self._moments is not None
        return self._moments

    @property
    def features(self) -> np.ndarray:
        """[num_reals, D]."""
        assert self._features is not None
        return self._features

    @cached_property
    def manifold(self) -> Manifold:
        """The features with the distances to their nearest neighbours, which several metrics look at."""
        return Manifold.of(self.features)

    def add(self, rows: np.ndarray) -> None:
        """The features [n, D] of the next images."""
        if "moments" in self._needs:
            moments = Moments.of(rows)
            self._moments = moments if self._moments is None else self._moments.merge(moments)
        if "features" in self._needs:
            self._parts.append(rows)

    def finish(self) -> None:
        """All images are there: keep what was made."""
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


def _read_moments(uri: str) -> Moments | None:
    try:
        return Moments.from_npz(storage.read_bytes(uri))
    except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # not there, or to be written again
        return None


def _read_features(uri: str, num_reals: int) -> np.ndarray | None:
    try:
        found: np.ndarray = np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and len(found) == num_reals else None
