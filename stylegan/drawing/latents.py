"""Where images come from: latents of seeds, as this program or the official scripts draw them, and w.npz files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from stylegan import storage
from stylegan.errors import ConfigError, one_line
from stylegan.networks.generator import Generator, layer_resolution

Rng = Literal["torch", "numpy"]
RNGS: tuple[Rng, ...] = get_args(Rng)
MAX_SEED = 10**18 - 1
MAX_NUMPY_SEED = 2**32 - 1
LARGEST_FILE = 2**30  # bytes of a w.npz, unpacked: far more than any model needs


def latent(seed: int, size: int, rng: Rng = "torch") -> tuple[Tensor, torch.Generator]:
    """Draw the z of a seed.

    Args:
        seed: from 0 to MAX_SEED, for numpy to MAX_NUMPY_SEED.
        size: length of z.
        rng: `numpy` draws the z of the official StyleGAN scripts, `numpy.random.RandomState(seed).randn(size)`.

    Returns:
        z [1, size], and the random stream of the seed, from which the image's own noise is drawn.

    Raises:
        ConfigError: there is no such seed.
    """
    check_seed(seed, rng)
    stream = torch.Generator().manual_seed(seed)
    z = torch.randn(1, size, generator=stream)
    if rng == "numpy":
        z = torch.from_numpy(np.random.RandomState(seed).randn(1, size)).float()
    return z, stream


def check_seed(seed: int, rng: Rng = "torch") -> None:
    """Raise ConfigError if a random generator has no such seed."""
    most = MAX_SEED if rng == "torch" else MAX_NUMPY_SEED
    if not 0 <= seed <= most:
        raise ConfigError(f"seed {seed}: must be from 0 to {most}" + (" with --rng numpy" if rng == "numpy" else ""))


@dataclass(frozen=True)
class Latents:
    """Styles and noise, from which images are computed.

    Attributes:
        ws: styles [N, num_layers, L].
        noise: of each layer, [N or 1, 1, r, r]; empty means the maps that the generator holds.
    """

    ws: Tensor
    noise: tuple[Tensor, ...] = ()

    def rows(self) -> list[Latents]:
        """Return the latents of each image."""
        return [
            Latents(ws, tuple(part[row : row + 1] if len(part) > 1 else part for part in self.noise))
            for row, ws in enumerate(self.ws.split(1))
        ]


def latents_bytes(latents: Latents) -> bytes:
    """Encode latents as a .npz file: `w` as StyleGAN2-ADA's projector writes it, and `noise0`, `noise1`, ... if there are any."""
    arrays = {"w": latents.ws, **{f"noise{index}": part for index, part in enumerate(latents.noise)}}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: tensor.detach().cpu().float().numpy() for name, tensor in arrays.items()})  # type: ignore[arg-type]
    return buffer.getvalue()


def read_latents(uri: str, generator: Generator, option: str = "--w") -> Latents:
    """Read a .npz file of `latents_bytes`, or one of StyleGAN2-ADA's projector.

    Args:
        uri: path or URL; `w` in it is [N, num_layers, L], or [N, 1, L] or [N, L] for all layers alike.
        generator: the model that it is for.
        option: what the file was given as, for error messages.

    Raises:
        ConfigError: there is no such file, or it is not one of latents, or of those of another model.
    """
    try:
        data = storage.read_bytes(storage.absolute(uri))
    except FileNotFoundError:
        raise ConfigError(
            f"{option} {uri}: there is no such file; give a w.npz, as the verb project writes it"
        ) from None
    return parse_latents(data, generator, f"{option} {uri}")


def parse_latents(data: bytes, generator: Generator, origin: str) -> Latents:
    """Read the bytes of a .npz file of latents. Arguments and errors as for `read_latents`; pickles in it are refused."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            if sum(info.file_size for info in file.zip.infolist()) > LARGEST_FILE:
                raise ValueError(f"it unpacks to more than {LARGEST_FILE:,} bytes")
            arrays = {name: file[name] for name in file.files if name == "w" or name.startswith("noise")}
        w = torch.from_numpy(arrays.pop("w").astype(np.float32))
        maps = [torch.from_numpy(arrays[f"noise{index}"].astype(np.float32)) for index in range(len(arrays))]
    except MemoryError:
        raise
    except Exception as error:  # damaged and foreign files raise errors of many types
        raise ConfigError(
            f"{origin}: is not a .npz file with an array `w` ({one_line(error, 100)}); give one that the verb project writes"
        ) from error
    layers, size = generator.num_layers, generator.w_avg.shape[0]
    ws = w[:, None] if w.ndim == 2 else w
    if ws.ndim != 3 or not len(ws) or ws.shape[1] not in (1, layers) or ws.shape[2] != size:
        raise ConfigError(
            f"{origin}: its `w` has shape {list(w.shape)}; this model needs [N, {layers}, {size}], so it is of another model"
        )
    if not all(part.isfinite().all() for part in (ws, *maps)):
        raise ConfigError(f"{origin}: has values that are not finite; make it anew")
    if maps and not _fit(maps, len(ws), layers):
        raise ConfigError(f"{origin}: its noise is that of another model; this one has {layers} layers")
    return Latents(ws.expand(-1, layers, -1), tuple(maps))


def _fit(maps: list[Tensor], num_images: int, num_layers: int) -> bool:
    sides = [layer_resolution(index) for index in range(num_layers)]
    shapes = [tuple(part.shape) for part in maps]
    return len(maps) == num_layers and all(
        shape[1:] == (1, side, side) and shape[0] in (1, num_images) for shape, side in zip(shapes, sides, strict=True)
    )
