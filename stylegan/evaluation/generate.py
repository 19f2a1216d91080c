"""Work in chunks: what one worker is asked to do, and the images it makes for it.

A chunk has a fixed number of samples and draws everything from streams named after (seed, work, chunk), so that a result is the
same whoever computes it and in whatever order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from stylegan import storage
from stylegan.config import EvaluationConfig
from stylegan.data.shards import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.features import FeatureNet, load_features
from stylegan.evaluation.numerics import stream
from stylegan.networks.generator import Generator, NoiseFn, random_noise
from stylegan.networks.weights import load_generator

CHUNK = 256  # samples; part of the protocol


@dataclass(frozen=True)
class Subject:
    """What is measured, as names that any worker can follow. The digests keep a worker from reusing an older file's network."""

    generator_uri: str
    generator_sha256: str
    features_uri: str
    features_sha256: str
    shards: ShardSet
    label_weights: tuple[float, ...]  # share of each class in the data set; empty for an unconditional generator
    evaluation: EvaluationConfig
    device: str


@dataclass(frozen=True)
class Chunk:
    """The samples `index` * CHUNK ... + `count` - 1 of one piece of work: `reals` or a metric of the config."""

    subject: Subject
    work: str
    index: int
    count: int

    def stream(self, *name: str | int, device: str = "cpu") -> torch.Generator:
        """A random stream of this chunk alone."""
        return stream(self.subject.evaluation.seed, self.work, self.index, *name, device=device)

    def latents(self, size: int, *, name: str = "z") -> Tensor:
        """z ~ N(0, 1), [count, size]. A short chunk gets the first rows of a whole one."""
        return torch.randn(CHUNK, size, generator=self.stream(name))[: self.count].to(self.subject.device)

    def places(self) -> Tensor:
        """t ~ U(0, 1), [count, 1]."""
        return torch.rand(CHUNK, 1, generator=self.stream("t"))[: self.count].to(self.subject.device)

    def labels(self) -> Tensor | None:
        """Classes [count], drawn as often as the data set has them; None for an unconditional generator."""
        if not self.subject.label_weights:
            return None
        weights = torch.tensor(self.subject.label_weights)
        drawn = torch.multinomial(weights, CHUNK, replacement=True, generator=self.stream("labels"))
        return drawn[: self.count].to(self.subject.device)

    def batches(self, resolution: int) -> Iterator[slice]:
        """Slices of the chunk that fit into memory at this resolution; v1's 4 images at 1024x1024."""
        size = min(64, max(4, 2**21 // resolution**2))
        for start in range(0, self.count, size):
            yield slice(start, min(start + size, self.count))

    def random_noise(self, start: int) -> NoiseFn:
        """Fresh noise for every image of the batch that begins at `start`."""
        device = self.subject.device
        return random_noise(self.stream("noise", start, device=device), torch.device(device))

    def shared_noise(self, start: int) -> NoiseFn:
        """One draw per layer for all images of the batch that begins at `start`."""
        draw = self.random_noise(start)
        drawn: dict[int, Tensor] = {}

        def noise(layer: int, num: int, resolution: int) -> Tensor:
            if layer not in drawn:
                drawn[layer] = draw(layer, 1, resolution)
            return drawn[layer]

        return noise

    def synthesise(self, generator: Generator, w: Tensor, noise: NoiseFn) -> Tensor:
        """Images [N, C, r, r] from w [N, L] without truncation.

        Raises:
            StepError: an image has values that are not finite.
        """
        images = generator.synthesis(w[:, None].expand(-1, generator.num_layers, -1), noise=noise)
        if not torch.isfinite(images).all():
            raise StepError(
                f"{self.subject.generator_uri}: makes images with values that are not finite (first seen in {self.work}); the training "
                "has diverged: evaluate an earlier checkpoint, or lower training.learning_rate and train again"
            )
        return images


def read_generator(uri: str) -> bytes:
    """The file of a generator. Raises StepError if there is none."""
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise StepError(f"{uri}: there is no such file; give the URI of a checkpoint-... folder of a finished stage") from None


def sha256(data: bytes) -> str:
    """Digest of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


def generator_of(subject: Subject) -> Generator:
    """The generator on its device; loaded once per process."""
    return _generator(subject.generator_uri, subject.generator_sha256, subject.device)


def features_of(subject: Subject) -> FeatureNet:
    """The feature network on its device; loaded once per process."""
    return _features(subject.features_uri, subject.features_sha256, subject.device)


@lru_cache(maxsize=1)
def _generator(uri: str, expected: str, device: str) -> Generator:
    data = read_generator(uri)
    _require_same(uri, sha256(data), expected)
    return load_generator(data)[0].to(device)


@lru_cache(maxsize=1)
def _features(uri: str, expected: str, device: str) -> FeatureNet:
    features = load_features(uri, device)
    _require_same(uri, features.sha256, expected)
    return features


def _require_same(uri: str, found: str, expected: str) -> None:
    if found != expected:
        raise StepError(f"{uri}: changed during the evaluation; run the same command again")
