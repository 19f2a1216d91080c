"""The work of a worker: turn one chunk of samples into the numbers that metrics are computed from.

Images never leave the worker, except for figures.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from stylegan.evaluation.features.spaces import manifold_features, open_network, recognise
from stylegan.evaluation.generate import CHUNK_SIZE, REALS, SampleChunk, batch_size, generator_of, to_device
from stylegan.evaluation.metrics.numerics import exact_float32
from stylegan.evaluation.metrics.ppl import Path
from stylegan.images import quantise, to_float, to_uint8
from stylegan.training.background import HostCopy

PIXELS_AT_ONCE = 2**24  # in the images that Inception sees at once on a GPU, at most: 256 of 256x256
# Rows of the leading samples of a chunk, by product:
# pooled and manifold [n, D], log_posteriors [n, K], attributes [n, A] (logits), z and w [n, L], lengths [n].
Products = dict[str, np.ndarray]


def measure_chunk(chunk: SampleChunk) -> Products:
    """Compute the products of a chunk, each for as many samples as are wanted. Runs on any worker."""
    with torch.no_grad(), exact_float32():
        if chunk.source.path:
            return {"lengths": _path_lengths(chunk)}

        # Measure batch by batch, and keep the rows that are wanted. All of it is queued before anything is read from a GPU.
        rows: dict[str, list[Tensor]] = {"finite": [], **{product: [] for product, _ in chunk.wants}}
        for batch, tensors in _joined(chunk, _batches(chunk)):
            rows["finite"].append(tensors.pop("finite"))
            for product, values in _measure_batch(chunk, batch, tensors).items():
                rows[product].append(values[: max(chunk.num_wanted(product) - batch.start, 0)])

        # Join the batches; the features of a published network may be stored at lower precision.
        products = _on_host({product: torch.cat(parts) for product, parts in rows.items() if parts}, chunk)
        chunk.require_finite(bool(products.pop("finite").all()))
        if "manifold" in products:
            products["manifold"] = products["manifold"].astype(chunk.subject.spaces["manifold"].dtype)
        return products


def _on_host(tensors: dict[str, Tensor], chunk: SampleChunk) -> Products:
    """Copy tensors to the host, and wait once for all of them."""
    copies = HostCopy(tensors, torch.device(chunk.subject.device)).get()
    return {name: copy.numpy() for name, copy in copies.items()}


def _joined(
    chunk: SampleChunk, batches: Iterator[tuple[slice, dict[str, Tensor]]]
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Join successive batches of a chunk, as many as Inception sees at once on this device."""
    joined: list[tuple[slice, dict[str, Tensor]]] = []
    for batch, tensors in batches:
        joined.append((batch, tensors))
        resolution = tensors["images"].shape[-1]
        if batch.stop % images_at_once(chunk, resolution) == 0 or batch.stop == chunk.count:
            parts = [part for _, part in joined]
            whole = {name: torch.cat([part[name] for part in parts]) for name in tensors} if len(parts) > 1 else tensors
            yield slice(joined[0][0].start, batch.stop), whole
            joined = []


def images_at_once(chunk: SampleChunk, resolution: int) -> int:
    """Return the number of images of a chunk that the pooled network sees at once: a multiple of `batch_size`.

    The last maps of Inception have 8x8 pixels: a few images do not fill a GPU. More of them take more memory, 200 MB at
    256x256.
    """
    pooled = chunk.subject.spaces.networks.get("pooled")
    if torch.device(chunk.subject.device).type != "cuda" or pooled is None or pooled.name != "inception":
        return batch_size(resolution)
    return min(CHUNK_SIZE, max(PIXELS_AT_ONCE // resolution**2, batch_size(resolution)))


def _measure_batch(chunk: SampleChunk, batch: slice, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute the products that at least one sample of the batch needs, from its images (and z and w)."""
    spaces, device = chunk.subject.spaces, chunk.subject.device
    wanted = [product for product, _ in chunk.wants if chunk.num_wanted(product) > batch.start]
    products = dict(tensors)
    quantised = to_float(quantise(tensors["images"]))

    if {"pooled", "log_posteriors"} & set(wanted):
        products["pooled"], products["log_posteriors"] = recognise(spaces, quantised, device)

    # Inception may see more images at once than are generated at once. The other networks see larger ones, or make more
    # of them.
    size = batch_size(quantised.shape[-1])
    if "manifold" in wanted:
        shared = "pooled" in products and spaces["manifold"] == spaces["pooled"]
        products["manifold"] = (
            products["pooled"]
            if shared
            else torch.cat([manifold_features(spaces, part, device) for part in quantised.split(size)])
        )

    if "attributes" in wanted:
        network = open_network(spaces["attributes"], device)
        products["attributes"] = torch.cat([network.attributes(part) for part in tensors["images"].split(size)])

    return {product: values for product, values in products.items() if product in wanted}


def _batches(chunk: SampleChunk, rows: Collection[int] | None = None) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield slices of the chunk with their images [n, C, r, r] in [-1, 1], and with z and w if a generator makes them.

    `finite`, bool [n], says which images have finite values only.

    Args:
        rows: as for `SampleChunk.batches`.
    """
    subject = chunk.subject
    stored = subject.shards if chunk.source == REALS else subject.images

    # Generated images.
    if stored is None:
        for batch, z, w, images in chunk.samples(generator_of(subject), rows):
            yield batch, {"z": z, "w": w, "images": images, "finite": images.isfinite().flatten(1).all(1)}
        return

    # Images of shards.
    table = subject.open(stored).images
    for batch in chunk.batches(table.shape[-1], rows):
        pixels = table[chunk.first + batch.start : chunk.first + batch.stop]
        images = to_float(to_device(torch.tensor(pixels), subject.device))
        yield batch, {"images": images, "finite": torch.ones(len(images), dtype=torch.bool, device=images.device)}


def _path_lengths(chunk: SampleChunk) -> np.ndarray:
    """Compute [count] path lengths of one of the four kinds; both ends of a path have the same label and noise."""
    subject, evaluation, generator = chunk.subject, chunk.subject.evaluation, generator_of(chunk.subject)
    distance = open_network(subject.spaces["distance"], subject.device).distance
    path = Path.named(
        chunk.source.path,
        epsilon=evaluation.ppl_epsilon,
        cropped=evaluation.ppl_crop,
        normalised=generator.model.has_w,
    )

    # Both latents of each path, the position on it, and its label.
    z0, z1 = (chunk.latents(generator.model.latent_size, name=name) for name in ("z0", "z1"))
    t, labels = chunk.path_positions(), chunk.labels()

    lengths, finite = [], []
    for batch in chunk.batches(generator.resolution):
        mapping = partial(generator.mapping, labels=None if labels is None else labels[batch].repeat(2))
        w = path.ends(z0[batch], z1[batch], t[batch], mapping)
        ws = w[:, None].expand(-1, generator.num_layers, -1)
        images = chunk.synthesise(generator, ws, chunk.shared_noise(batch.start))
        lengths.append(path.lengths(images, distance))
        finite.append(images.isfinite().all())
    found = _on_host({"lengths": torch.cat(lengths), "finite": torch.stack(finite)}, chunk)
    chunk.require_finite(bool(found["finite"].all()))
    return found["lengths"]


@dataclass(frozen=True)
class PictureRequest:
    """A request to a worker: the images `rows` of a chunk, for people. A generator makes the same images again."""

    chunk: SampleChunk
    rows: tuple[int, ...]


def draw_pictures(request: PictureRequest) -> np.ndarray:
    """Return the images as uint8 [len(rows), C, r, r], in the order of the rows. Runs on any worker."""
    drawn: dict[int, np.ndarray] = {}
    with torch.no_grad(), exact_float32():
        for batch, tensors in _batches(request.chunk, request.rows):
            request.chunk.require_finite(bool(tensors["finite"].all()))
            for row in {row for row in request.rows if batch.start <= row < batch.stop}:
                drawn[row] = to_uint8(tensors["images"][row - batch.start]).cpu().numpy()
    return np.stack([drawn[row] for row in request.rows])
