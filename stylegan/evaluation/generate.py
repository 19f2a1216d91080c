"""Chunks of samples: the unit of work of an evaluation, and the images that a worker generates for one.

A chunk has a fixed number of samples. All its random numbers come from streams named after (seed, stream, chunk). A
result is therefore the same whichever worker computes it, in whatever order, and whatever else is measured beside it.
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
from stylegan.data.loading.loader import DEFAULT_LOADING, ImageTable, LoaderSettings, load_images
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.features.spaces import Spaces
from stylegan.evaluation.metrics.numerics import stream, tf32
from stylegan.networks.generator import Generator, NoiseFn, layer_resolution
from stylegan.networks.replay import Replay, recorder_for
from stylegan.networks.weights import load_generator
from stylegan.training.hardware import COMPUTE_DTYPES

CHUNK_SIZE = 256  # samples; part of the protocol
TRUNCATED_LAYERS = 8  # of the truncation trick, as in the paper's figures


@dataclass(frozen=True)
class Pass:
    """One way of getting samples: the reals, the plain generator, mixed latents, truncation, or pairs along a path.

    All passes of a generator draw the same z, except path lengths.

    Attributes:
        name: identifies the pass, also in the progress.
        latents: the number of latents that are mixed.
        psi: the factor of the truncation.
        path: the name of a path length; empty for all other passes.
    """

    name: str
    latents: int = 1
    psi: float = 1.0
    path: str = ""

    @property
    def stream(self) -> str:
        """The name of its random streams."""
        return self.path or "generated"


REALS, GENERATED = Pass("reals"), Pass("generated")


def truncated(psi: float) -> Pass:
    """Return the pass of a truncation; psi = 1 is the plain generator."""
    return GENERATED if psi == 1 else Pass(f"truncation {psi:g}", psi=psi)


@dataclass(frozen=True)
class Subject:
    """The subject of an evaluation, by URIs that any worker can read.

    Attributes:
        generator_uri: the file of the generator; empty if `images` are measured.
        generator_sha256: its digest, which keeps a worker from using a network that it loaded from an older file.
        images: the images that are measured instead of a generator.
        shards: the reals.
        label_weights: the share of each class in the data set; empty for an unconditional generator.
        spaces: the networks that measure.
        evaluation: the settings.
        device: the torch device of the workers.
        alpha: the weight of the generator's newest resolution in [0, 1]; below 1 during a fade-in.
        loading: the settings of loading stored images.
        token: identifies the evaluation: a process keeps open what it has opened for it.
    """

    generator_uri: str
    generator_sha256: str
    images: ShardSet | None
    shards: ShardSet
    label_weights: tuple[float, ...]
    spaces: Spaces
    evaluation: EvaluationConfig
    device: str
    alpha: float = 1.0
    loading: LoaderSettings = DEFAULT_LOADING
    token: str = ""

    def open(self, stored: ShardSet) -> ImageTable:
        """Open the reals, or the measured images: the index is read once in each process of an evaluation."""
        return open_images(stored, self.loading, self.token)


@dataclass(frozen=True)
class SampleChunk:
    """The samples of one pass from number `index` * CHUNK_SIZE on.

    Attributes:
        subject: the subject of the evaluation.
        source: the pass.
        wants: pairs of a product and the number of samples of the whole pass that need it. Products are pooled,
            log_posteriors, manifold, attributes, z, w, lengths (see `stylegan.evaluation.work`) and images.
        index: the number of the chunk in its pass.
    """

    subject: Subject
    source: Pass
    wants: tuple[tuple[str, int], ...]
    index: int

    @property
    def first(self) -> int:
        """The number of its first sample."""
        return self.index * CHUNK_SIZE

    @property
    def count(self) -> int:
        """The number of its samples."""
        return max(self.num_wanted(product) for product, _ in self.wants)

    def num_wanted(self, product: str) -> int:
        """Return the number of leading samples that need this product."""
        return min(max(dict(self.wants).get(product, 0) - self.first, 0), CHUNK_SIZE)

    def stream(self, *name: str | int, device: str = "cpu") -> torch.Generator:
        """Return a random stream of this chunk alone."""
        return stream(self.subject.evaluation.seed, self.source.stream, self.index, *name, device=device)

    # A short chunk takes the first rows of a full one, here and below: its samples do not depend on its length.
    def latents(self, size: int, *, name: str = "z") -> Tensor:
        """Draw z ~ N(0, 1), [count, size]."""
        drawn = torch.randn(CHUNK_SIZE, size, generator=self.stream(name))
        return to_device(drawn[: self.count], self.subject.device)

    def path_positions(self) -> Tensor:
        """Draw t ~ U(0, 1), [count, 1]."""
        drawn = torch.rand(CHUNK_SIZE, 1, generator=self.stream("t"))
        return to_device(drawn[: self.count], self.subject.device)

    def cutoffs(self, num_layers: int) -> Tensor:
        """Draw the layers at which the next latent takes over.

        Returns:
            [count, latents - 1] different layers from 1 to num_layers - 1, ascending.
        """
        order = torch.rand(CHUNK_SIZE, num_layers - 1, generator=self.stream("cutoffs")).argsort(dim=1)
        return to_device(order[: self.count, : self.source.latents - 1].sort(dim=1).values + 1, self.subject.device)

    def labels(self) -> Tensor | None:
        """Draw classes [count] with the shares of the data set; None for an unconditional generator."""
        if not self.subject.label_weights:
            return None
        weights = torch.tensor(self.subject.label_weights)
        drawn = torch.multinomial(weights, CHUNK_SIZE, replacement=True, generator=self.stream("labels"))
        return to_device(drawn[: self.count], self.subject.device)

    def batches(self, resolution: int, rows: Collection[int] | None = None) -> Iterator[slice]:
        """Yield slices of the chunk that fit into memory at this resolution.

        Args:
            resolution: of the images.
            rows: yield only the slices that contain one of these rows; None: all slices.
        """
        size = batch_size(resolution)
        for start in range(0, self.count, size):
            batch = range(start, min(start + size, self.count))
            if rows is None or any(row in batch for row in rows):
                yield slice(batch.start, batch.stop)

    def noise(self, start: int, size: int) -> NoiseFn:
        """Return fresh noise for every image of the batch of up to `size` images that begins at `start`."""
        device = self.subject.device

        def draw(layer: int, num: int, resolution: int) -> Tensor:
            generator = self.stream("noise", start, layer, device=device)
            return torch.randn(size, 1, resolution, resolution, generator=generator, device=device)[:num]

        return draw

    def shared_noise(self, start: int) -> NoiseFn:
        """Return noise with one draw per layer for all images of the batch that begins at `start`."""
        noise = self.noise(start, 1)
        return lambda layer, _num, resolution: noise(layer, 1, resolution)

    def samples(
        self, generator: Generator, rows: Collection[int] | None = None
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Generate the samples batch by batch.

        Args:
            generator: on the device of the subject.
            rows: as for `batches`.

        Yields:
            The slice of the chunk, z and w [n, L], and images [n, C, r, r].
        """
        size, labels = generator.model.latent_size, self.labels()
        latents = [self.latents(size, name=name) for name in ("z", "z1", "z2", "z3")[: self.source.latents]]
        for batch in self.batches(generator.resolution, rows):
            # One w per latent that is mixed.
            batch_labels = None if labels is None else labels[batch]
            styles = [generator.mapping(z[batch], batch_labels) for z in latents]

            # A w per layer: mixed, then truncated.
            mixed = self._mix(styles, batch, generator.num_layers)
            ws = generator.truncate(mixed, psi=self.source.psi, cutoff=TRUNCATED_LAYERS)

            noise = self.noise(batch.start, batch_size(generator.resolution))
            yield batch, latents[0][batch], styles[0], self.synthesise(generator, ws, noise)

    def _mix(self, styles: list[Tensor], batch: slice, num_layers: int) -> Tensor:
        """Return ws [n, num_layers, L]: the first w [n, L] up to the first cutoff, then the next, ..."""
        ws = styles[0][:, None].expand(-1, num_layers, -1)
        if len(styles) > 1:
            layers = torch.arange(num_layers, device=ws.device)
            for w, cutoff in zip(styles[1:], self.cutoffs(num_layers)[batch].T, strict=True):
                ws = torch.where((layers < cutoff[:, None])[:, :, None], ws, w[:, None])
        return ws

    def synthesise(self, generator: Generator, ws: Tensor, noise: NoiseFn) -> Tensor:
        """Generate images [N, C, r, r] from ws [N, num_layers, L], in the precision of this pass.

        On a GPU this only queues the work: nothing waits for the images, so `require_finite` checks them afterwards.
        """
        layers = range(generator.num_layers if generator.model.has_noise else 0)
        maps = [noise(layer, len(ws), layer_resolution(layer)) for layer in layers]
        return _synthesis(generator, self.subject.device, self.subject.alpha, self.precision)(ws, *maps)

    @property
    def precision(self) -> str:
        """The number format of the images. Both ends of a path would be equal in any other than single precision."""
        return "fp32" if self.source.path else self.subject.evaluation.precision

    def require_finite(self, finite: bool) -> None:
        """Raise StepError if an image has values that are not finite."""
        if finite:
            return
        cause = (
            "the training has diverged: evaluate an earlier checkpoint, or lower training.learning_rate and train again"
        )
        if self.precision == "fp16":
            cause = (
                f"fp16 may be too narrow for them: set evaluation.precision to bf16 or fp32; if that is not it, {cause}"
            )
        raise StepError(
            f"{self.subject.generator_uri}: makes images with values that are not finite (first seen in "
            f"{self.source.name}); {cause}"
        )


def batch_size(resolution: int) -> int:
    """Return the number of images that are generated at once: v1's 4 at 1024x1024, up to 64 at lower resolutions."""
    return min(64, max(4, 2**21 // resolution**2))


def read_generator(uri: str) -> bytes:
    """Read the file of a generator. Raises StepError if there is no such file."""
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise StepError(
            f"{uri}: there is no such file; give the URI of a checkpoint-... folder of a finished stage"
        ) from None


def sha256(data: bytes) -> str:
    """Return the digest of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=2)  # the reals and the measured images
def open_images(stored: ShardSet, loading: LoaderSettings, token: str) -> ImageTable:
    """Load stored images at their largest resolution, once per process for each token. Raises as `load_images`."""
    return load_images(stored, max(stored.resolutions), settings=loading)


def generator_of(subject: Subject) -> Generator:
    """Load the generator to its device, once per process. Raises StepError if its file has changed or is gone."""
    return generator_at(subject.generator_uri, subject.generator_sha256, subject.device)


@lru_cache(maxsize=1)
def generator_at(uri: str, expected: str, device: str) -> Generator:
    """Load a generator to its device, once per process. Raises StepError if its file has another digest, or is gone."""
    data = read_generator(uri)
    if sha256(data) != expected:
        raise StepError(f"{uri}: changed since this work began; run the same command again")
    return load_generator(data, uri)[0].to(device)


@lru_cache(maxsize=1)  # a recording keeps its memory
def _synthesis(generator: Generator, device: str, alpha: float, precision: str) -> Replay:
    """Return the function of ws [N, num_layers, L] and the noise of each layer that computes images [N, C, r, r]."""

    def synthesise(ws: Tensor, *maps: Tensor) -> Tensor:
        generator.synthesis.compute_dtype = COMPUTE_DTYPES[precision]
        with tf32(precision == "tf32"):
            images: Tensor = generator.synthesis(ws, alpha=alpha, noise=lambda layer, _num, _resolution: maps[layer])
        return images

    return Replay(synthesise, name="the generator of an evaluation", record=recorder_for(device))


def to_device(tensor: Tensor, device: str) -> Tensor:
    """Copy a tensor of the host to a device; to a GPU without waiting for it."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps the page-locked memory until it was copied
