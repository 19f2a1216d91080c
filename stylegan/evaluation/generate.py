"""Work in chunks: what one worker is asked to do, and the images it makes for it.

A chunk has a fixed number of samples and draws everything from streams named after (seed, stream, chunk), so that a result is the
same whoever computes it, in whatever order, and whatever else is measured beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from stylegan import storage
from stylegan.config.sections import EvaluationConfig
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.features.spaces import Spaces
from stylegan.evaluation.metrics.numerics import stream
from stylegan.networks.generator import Generator, NoiseFn
from stylegan.networks.weights import load_generator

CHUNK = 256  # samples; part of the protocol
TRUNCATED_LAYERS = 8  # of the truncation trick, as in the paper's figures


@dataclass(frozen=True)
class Pass:
    """One way of getting samples: the reals, the generator as it is, with mixed latents, truncated, or in pairs along a path.

    `latents` are mixed, `psi` truncates, `path` is the name of a path length. All images of a generator come from the same z.
    """

    name: str
    latents: int = 1
    psi: float = 1.0
    path: str = ""

    @property
    def stream(self) -> str:
        """The name that its random numbers are drawn under."""
        return self.path or "generated"


REALS, GENERATED = Pass("reals"), Pass("generated")


@dataclass(frozen=True)
class Subject:
    """What is measured, as names that any worker can follow. The digests keep a worker from reusing an older file's network."""

    generator_uri: str  # empty if `images` are measured
    generator_sha256: str
    images: ShardSet | None  # measured instead of a generator
    shards: ShardSet  # the reals
    label_weights: tuple[float, ...]  # share of each class in the data set; empty for an unconditional generator
    spaces: Spaces
    evaluation: EvaluationConfig
    device: str
    alpha: float = 1.0  # weight of the newest resolution: below 1 in the middle of a fade


@dataclass(frozen=True)
class Chunk:
    """The samples `index` * CHUNK ... of one pass; `wants` says of how many samples of the whole pass each product is needed.

    Products: pooled, log_posteriors, manifold, attributes, z, w, lengths (see `stylegan.evaluation.work`), images.
    """

    subject: Subject
    source: Pass
    wants: tuple[tuple[str, int], ...]
    index: int

    @property
    def first(self) -> int:
        """The number of its first sample."""
        return self.index * CHUNK

    @property
    def count(self) -> int:
        """Samples in the chunk."""
        return max(self.wanted(product) for product, _ in self.wants)

    def wanted(self, product: str) -> int:
        """Of how many of its samples, the first ones, a product is needed."""
        return min(max(dict(self.wants).get(product, 0) - self.first, 0), CHUNK)

    def stream(self, *name: str | int, device: str = "cpu") -> torch.Generator:
        """A random stream of this chunk alone."""
        return stream(self.subject.evaluation.seed, self.source.stream, self.index, *name, device=device)

    def latents(self, size: int, *, name: str = "z") -> Tensor:
        """z ~ N(0, 1), [count, size]. A short chunk gets the first rows of a whole one, here and below."""
        return torch.randn(CHUNK, size, generator=self.stream(name))[: self.count].to(self.subject.device)

    def places(self) -> Tensor:
        """t ~ U(0, 1), [count, 1]."""
        return torch.rand(CHUNK, 1, generator=self.stream("t"))[: self.count].to(self.subject.device)

    def cutoffs(self, num_layers: int) -> Tensor:
        """[count, latents - 1] different layers from 1 to num_layers - 1, ascending, where the next latent takes over."""
        order = torch.rand(CHUNK, num_layers - 1, generator=self.stream("cutoffs")).argsort(dim=1)
        return (order[: self.count, : self.source.latents - 1].sort(dim=1).values + 1).to(self.subject.device)

    def labels(self) -> Tensor | None:
        """Classes [count], drawn as often as the data set has them; None for an unconditional generator."""
        if not self.subject.label_weights:
            return None
        weights = torch.tensor(self.subject.label_weights)
        drawn = torch.multinomial(weights, CHUNK, replacement=True, generator=self.stream("labels"))
        return drawn[: self.count].to(self.subject.device)

    def batches(self, resolution: int, rows: Collection[int] | None = None) -> Iterator[slice]:
        """Slices of the chunk that fit into memory at this resolution; only those with one of the `rows`, if they are given."""
        size = batch_size(resolution)
        for start in range(0, self.count, size):
            batch = range(start, min(start + size, self.count))
            if rows is None or any(row in batch for row in rows):
                yield slice(batch.start, batch.stop)

    def noise(self, start: int, size: int) -> NoiseFn:
        """Fresh noise for every image of the batch of up to `size` that begins at `start`."""
        device = self.subject.device

        def draw(layer: int, num: int, resolution: int) -> Tensor:
            generator = self.stream("noise", start, layer, device=device)
            return torch.randn(size, 1, resolution, resolution, generator=generator, device=device)[:num]

        return draw

    def shared_noise(self, start: int) -> NoiseFn:
        """One draw per layer for all images of the batch that begins at `start`."""
        noise = self.noise(start, 1)
        return lambda layer, _num, resolution: noise(layer, 1, resolution)

    def samples(
        self, generator: Generator, rows: Collection[int] | None = None
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Slice of the chunk, z, w [n, L] and images [n, C, r, r] of the generator, batch by batch (`rows` as in `batches`)."""
        size, labels = generator.model.latent_size, self.labels()
        latents = [self.latents(size, name=name) for name in ("z", "z1", "z2", "z3")[: self.source.latents]]
        for batch in self.batches(generator.resolution, rows):
            of_batch = None if labels is None else labels[batch]
            styles = [generator.mapping(z[batch], of_batch) for z in latents]
            ws = generator.truncate(
                self._mix(styles, batch, generator.num_layers), psi=self.source.psi, cutoff=TRUNCATED_LAYERS
            )
            images = self.synthesise(generator, ws, self.noise(batch.start, batch_size(generator.resolution)))
            yield batch, latents[0][batch], styles[0], images

    def _mix(self, styles: list[Tensor], batch: slice, num_layers: int) -> Tensor:
        """ws [n, num_layers, L]: the first w [n, L] up to the first cutoff, then the next, ..."""
        ws = styles[0][:, None].expand(-1, num_layers, -1)
        if len(styles) > 1:
            layers = torch.arange(num_layers, device=ws.device)
            for w, cutoff in zip(styles[1:], self.cutoffs(num_layers)[batch].T, strict=True):
                ws = torch.where((layers < cutoff[:, None])[:, :, None], ws, w[:, None])
        return ws

    def synthesise(self, generator: Generator, ws: Tensor, noise: NoiseFn) -> Tensor:
        """Images from ws [N, num_layers, L].

        Raises:
            StepError: an image has values that are not finite.
        """
        images = generator.synthesis(ws, alpha=self.subject.alpha, noise=noise)
        if not torch.isfinite(images).all():
            raise StepError(
                f"{self.subject.generator_uri}: makes images with values that are not finite (first seen in {self.source.name}); the "
                "training has diverged: evaluate an earlier checkpoint, or lower training.learning_rate and train again"
            )
        return images


def batch_size(resolution: int) -> int:
    """Images that are made at once; v1's 4 at 1024x1024."""
    return min(64, max(4, 2**21 // resolution**2))


def read_generator(uri: str) -> bytes:
    """The file of a generator. Raises StepError if there is none."""
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise StepError(
            f"{uri}: there is no such file; give the URI of a checkpoint-... folder of a finished stage"
        ) from None


def sha256(data: bytes) -> str:
    """Digest of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


def generator_of(subject: Subject) -> Generator:
    """The generator on its device; loaded once per process."""
    return _generator(subject.generator_uri, subject.generator_sha256, subject.device)


@lru_cache(maxsize=1)
def _generator(uri: str, expected: str, device: str) -> Generator:
    data = read_generator(uri)
    if sha256(data) != expected:
        raise StepError(f"{uri}: changed during the evaluation; run the same command again")
    return load_generator(data)[0].to(device)
