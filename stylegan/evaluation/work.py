"""What a worker does: one chunk of samples to the numbers that metrics are made of. Images never leave it, except for figures."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from stylegan.data.loading.loader import load_images
from stylegan.evaluation.features.spaces import open_network, place, recognise
from stylegan.evaluation.generate import REALS, Chunk, generator_of
from stylegan.evaluation.metrics.numerics import exact_float32
from stylegan.evaluation.metrics.ppl import Path
from stylegan.images import quantise, to_float, to_uint8

# By product, the rows of the chunk's first samples: pooled and manifold [n, D], log_posteriors [n, K], attributes [n, A] (logits),
# z and w [n, L], lengths [n].
Part = dict[str, np.ndarray]


def measure(chunk: Chunk) -> Part:
    """The products of a chunk, each of as many samples as are wanted. Runs on any worker."""
    with torch.no_grad(), exact_float32():
        if chunk.source.path:
            return {"lengths": _path_lengths(chunk)}
        rows: dict[str, list[np.ndarray]] = {product: [] for product, _ in chunk.wants}
        for batch, found in _batches(chunk):
            for product, values in _look(chunk, batch, found).items():
                rows[product].append(values[: max(chunk.wanted(product) - batch.start, 0)].cpu().numpy())
        parts = {product: np.concatenate(parts) for product, parts in rows.items() if parts}
        if "manifold" in parts:
            parts["manifold"] = parts["manifold"].astype(chunk.subject.spaces["manifold"].dtype)
        return parts


def _look(chunk: Chunk, batch: slice, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The products of a batch that any of its samples is wanted for."""
    spaces, device = chunk.subject.spaces, chunk.subject.device
    wanted = [product for product, _ in chunk.wants if chunk.wanted(product) > batch.start]
    products = dict(found)
    measured = to_float(quantise(found["images"]))
    if {"pooled", "log_posteriors"} & set(wanted):
        products["pooled"], products["log_posteriors"] = recognise(spaces, measured, device)
    if "manifold" in wanted:
        shared = "pooled" in products and spaces["manifold"] == spaces["pooled"]
        products["manifold"] = products["pooled"] if shared else place(spaces, measured, device)
    if "attributes" in wanted:
        products["attributes"] = open_network(spaces["attributes"], device).attributes(found["images"])
    return {product: values for product, values in products.items() if product in wanted}


def _batches(chunk: Chunk, rows: Collection[int] | None = None) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Images [n, C, r, r] in [-1, 1] of the chunk, batch by batch (only those with some of the rows); of a generator with z and w."""
    subject = chunk.subject
    given = subject.shards if chunk.source == REALS else subject.images
    if given is None:
        for batch, z, w, images in chunk.samples(generator_of(subject), rows):
            yield batch, {"z": z, "w": w, "images": images}
        return
    table = load_images(given, max(given.resolutions)).images
    for batch in chunk.batches(table.shape[-1], rows):
        yield (
            batch,
            {
                "images": to_float(
                    torch.tensor(table[chunk.first + batch.start : chunk.first + batch.stop], device=subject.device)
                )
            },
        )


def _path_lengths(chunk: Chunk) -> np.ndarray:
    """[count] lengths of one of the four kinds; both ends of a path have the same label and the same noise."""
    subject, evaluation, generator = chunk.subject, chunk.subject.evaluation, generator_of(chunk.subject)
    distance = open_network(subject.spaces["distance"], subject.device).distance
    path = Path.named(chunk.source.path, epsilon=evaluation.ppl_epsilon, cropped=evaluation.ppl_crop)
    z0, z1 = (chunk.latents(generator.model.latent_size, name=name) for name in ("z0", "z1"))
    t, labels = chunk.places(), chunk.labels()
    lengths = []
    for batch in chunk.batches(generator.resolution):
        mapping = partial(generator.mapping, labels=None if labels is None else labels[batch].repeat(2))
        w = path.ends(z0[batch], z1[batch], t[batch], mapping)
        ws = w[:, None].expand(-1, generator.num_layers, -1)
        images = chunk.synthesise(generator, ws, chunk.shared_noise(batch.start))
        lengths.append(path.lengths(images, distance).cpu())
    return torch.cat(lengths).numpy()


@dataclass(frozen=True)
class Pictures:
    """The images `rows` of a chunk, for people; a chunk of a generator makes them anew, the same as before."""

    chunk: Chunk
    rows: tuple[int, ...]


def draw(request: Pictures) -> np.ndarray:
    """uint8 [len(rows), C, r, r], in the order of the rows. Runs on any worker."""
    drawn: dict[int, np.ndarray] = {}
    with torch.no_grad(), exact_float32():
        for batch, found in _batches(request.chunk, request.rows):
            for row in {row for row in request.rows if batch.start <= row < batch.stop}:
                drawn[row] = to_uint8(found["images"][row - batch.start]).cpu().numpy()
    return np.stack([drawn[row] for row in request.rows])
