"""The StyleGAN generator (Karras et al. 2019, section 2), config F by default, down to the traditional one of config B.

It works at its native resolution: it holds the layers up to `resolution` only, and `grow` adds the next ones in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan.config.sections import ModelConfig
from stylegan.errors import StepError
from stylegan.networks.layers import SQRT2, Conv, Dense, UpConv, adain, instance_norm, modulate, num_fmaps, pixel_norm
from stylegan.networks.ops import blur, lrelu, noise_bias_act

# Called with (layer index, n, resolution); gives [n or 1, 1, resolution, resolution], nominally N(0, 1).
NoiseFn = Callable[[int, int, int], Tensor]


def layer_resolution(index: int) -> int:
    """Side of the features of a synthesis layer: two layers at 4x4, two at 8x8, ..."""
    return 4 << index // 2


def random_noise(generator: torch.Generator | None, device: torch.device | str) -> NoiseFn:
    """Fresh noise for every call, layer and image; drawn where `generator` lives (None: torch's own one of `device`)."""
    source = device if generator is None else generator.device

    def draw(layer_index: int, n: int, resolution: int) -> Tensor:
        return torch.randn(n, 1, resolution, resolution, generator=generator, device=source).to(device)

    return draw


def mix(w1: Tensor, w2: Tensor, cutoff: int, num_layers: int) -> Tensor:
    """Style mixing (StyleGAN, section 3.1): layers below `cutoff` take w1, the others w2.

    Args:
        w1: [N, L].
        w2: [N, L].
        cutoff: 0..num_layers; num_layers means w1 everywhere.
        num_layers: of the generator.

    Returns:
        ws [N, num_layers, L].
    """
    first = torch.arange(num_layers, device=w1.device)[:, None] < cutoff
    return torch.where(first, w1[:, None], w2[:, None])


class Mapping(nn.Module):
    """Mapping network f: z, and a label if there are any, to w (StyleGAN, section 2)."""

    def __init__(self, model: ModelConfig, num_labels: int) -> None:
        super().__init__()
        num_in = model.latent_size * (2 if num_labels else 1)
        self.label_concat = nn.Parameter(torch.randn(num_labels, model.latent_size)) if num_labels else None
        hidden = [model.mapping_fmaps] * (model.mapping_layers - 1) + [model.latent_size]
        widths = [num_in, *hidden[: model.mapping_layers]]
        self.layers = nn.ModuleList(Dense(a, b, lrmul=model.mapping_lrmul) for a, b in pairwise(widths))
        self.w_size = widths[-1]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute w.

        Args:
            z: [N, L], N(0, 1).
            labels: class numbers, int64 [N]; needed if and only if the generator is class-conditional.

        Returns:
            w [N, L] ([N, 2L] with labels and no mapping layer).

        Raises:
            StepError: the generator is conditional and `labels` is None.
        """
        x = z
        if self.label_concat is not None:
            if labels is None:
                num = len(self.label_concat)
                raise StepError(
                    f"labels=None: this generator is conditional; give each image a class number from 0 to {num - 1}"
                )
            x = torch.cat([x, F.embedding(labels, self.label_concat)], dim=1)
        x = pixel_norm(x)
        for layer in self.layers:
            x = lrelu(layer(x))
        return x


class ConstantInput(nn.Module):
    """A learned constant [1, C, 4, 4], ones at first, the same for every w."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.const = nn.Parameter(torch.ones(1, channels, 4, 4))

    def forward(self, w: Tensor) -> Tensor:
        return self.const.expand(w.shape[0], -1, -1, -1)  # not len(w), which an exported graph would hold fixed


class DenseInput(nn.Module):
    """The traditional input: w [N, L] through a dense layer to [N, C, 4, 4] (configs B and C)."""

    def __init__(self, w_size: int, channels: int) -> None:
        super().__init__()
        self.dense = Dense(w_size, channels * 16, gain=SQRT2 / 4, bias=False)

    def forward(self, w: Tensor) -> Tensor:
        return self.dense(w).unflatten(1, (-1, 4, 4))


class SynthesisLayer(nn.Module):
    """An input or a convolution, then blur (after upsampling), noise, bias, leaky ReLU, normalisation and style."""

    def __init__(self, model: ModelConfig, source: nn.Module, *, channels: int, w_size: int) -> None:
        """Make the layer around `source`, which gives `channels` features; `w_size` is the length of w."""
        super().__init__()
        self.source = source
        self.blurs = model.blur and isinstance(source, UpConv)
        self.noise_weight = nn.Parameter(torch.zeros(channels)) if model.noise else None
        self.bias = nn.Parameter(torch.zeros(channels))
        self.style = Dense(w_size, 2 * channels, gain=1) if model.styles else None
        self.pixel_norm, self.instance_norm = model.pixel_norm, model.instance_norm

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """[N, C', H', W'] (the first layer: w) to [N, C, H, W], with w [N, L] and noise [N or 1, 1, H, W]."""
        x = self.source(x)
        if self.blurs:
            x = blur(x)
        x = noise_bias_act(x, noise, self.noise_weight, self.bias)
        if self.pixel_norm:
            x = pixel_norm(x)
        if self.style is None:
            return instance_norm(x) if self.instance_norm else x
        style = self.style(w)
        return adain(x, style) if self.instance_norm else modulate(x, style)


class Synthesis(nn.Module):
    """Synthesis network g: one w per layer to images."""

    compute_dtype: torch.dtype | None = None  # of the features after the first layer; None is that of the weights

    def __init__(self, model: ModelConfig, w_size: int, *, channels: int) -> None:
        """Make the 4x4 layers; `grow` adds more."""
        super().__init__()
        self.model, self.w_size, self.channels = model, w_size, channels
        self.layers = nn.ModuleList()
        self.to_rgb = nn.ModuleList()  # of 4x4, 8x8, ...
        fmaps = num_fmaps(model, 1)
        self._add(ConstantInput(fmaps) if model.const_input else DenseInput(w_size, fmaps), fmaps)
        self._add(Conv(fmaps, fmaps, bias=False), fmaps)
        self.to_rgb.append(Conv(fmaps, channels, kernel=1, gain=1))

    def grow(self) -> None:
        """Add the layers of twice the resolution."""
        resolution = 2 * self.resolution
        stage = int(math.log2(resolution)) - 1
        fmaps = num_fmaps(self.model, stage)
        self._add(UpConv(num_fmaps(self.model, stage - 1), fmaps, resolution=resolution), fmaps)
        self._add(Conv(fmaps, fmaps, bias=False), fmaps)
        self.to_rgb.append(Conv(fmaps, self.channels, kernel=1, gain=1))

    def _add(self, source: nn.Module, fmaps: int) -> None:
        index = len(self.layers)
        self.layers.append(SynthesisLayer(self.model, source, channels=fmaps, w_size=self.w_size))
        if self.model.noise:
            side = layer_resolution(index)
            self.register_buffer(f"noise{index}", torch.randn(1, 1, side, side))

    @property
    def resolution(self) -> int:
        """Side of the images."""
        return layer_resolution(len(self.layers) - 1)

    def forward(self, ws: Tensor, *, alpha: float = 1.0, noise: NoiseFn | None = None) -> Tensor:
        """Compute images.

        Args:
            ws: [N, num_layers, L]; without styles only the first layer's is read.
            alpha: weight of the new, fine path in [0, 1]; the rest is the previous resolution's image, nearest upscaled
                (ProGAN, figure 2). Without effect at 4x4.
            noise: draws the noise; None takes the stored noise, the same for every image.

        Returns:
            [N, C, r, r], nominally in [-1, 1], not clamped.
        """
        x = ws[:, 0]
        coarse = None
        for index, layer in enumerate(self.layers):
            x = layer(x, ws[:, index], self._noise(index, ws.shape[0], noise))
            if index == 0:  # the first features decide the precision of all others
                x = x.to(self.compute_dtype or x.dtype, memory_format=torch.channels_last)
            if index == len(self.layers) - 3:
                coarse = x  # the features of half the resolution
        rgb = self.to_rgb[-1](x).to(ws.dtype)
        if alpha < 1 and coarse is not None:
            return torch.lerp(
                F.interpolate(self.to_rgb[-2](coarse).to(ws.dtype), scale_factor=2, mode="nearest"), rgb, alpha
            )
        return rgb

    def _noise(self, index: int, n: int, noise: NoiseFn | None) -> Tensor | None:
        if not self.model.noise:
            return None
        return self.get_buffer(f"noise{index}") if noise is None else noise(index, n, layer_resolution(index))


class Generator(nn.Module):
    """Mapping and synthesis with the running average of w.

    Weights come from torch's global random state in a fixed order, coarse layers first, so that a small generator that grows
    gets the weights that a large one would have had from the start.
    """

    w_avg: Tensor

    def __init__(self, model: ModelConfig, *, resolution: int, channels: int, num_labels: int = 0) -> None:
        """Make the network.

        Args:
            model: sizes and switches.
            resolution: side of the images, a power of two from 4.
            channels: 1 (grey) or 3 (RGB).
            num_labels: classes; 0 makes it unconditional.
        """
        super().__init__()
        self.model, self.channels, self.num_labels = model, channels, num_labels
        self.mapping = Mapping(model, num_labels)
        self.synthesis = Synthesis(model, self.mapping.w_size, channels=channels)
        self.register_buffer("w_avg", torch.zeros(self.mapping.w_size))
        while self.resolution < resolution:
            self.grow()

    @property
    def resolution(self) -> int:
        """Side of the images."""
        return self.synthesis.resolution

    @property
    def num_layers(self) -> int:
        """Synthesis layers, each with its own style: 2 log2(resolution) - 2."""
        return len(self.synthesis.layers)

    def grow(self) -> None:
        """Add the layers of twice the resolution in place, fresh, on the same device; all others stay as they are."""
        self.synthesis.grow()
        self.to(self.w_avg).train(self.training)

    @torch.no_grad()
    def update_w_avg(self, batch_mean_w: Tensor, beta: float) -> None:
        """w_avg = beta * w_avg + (1 - beta) * batch_mean_w; give the mean [L] of a batch before style mixing."""
        self.w_avg.copy_(torch.lerp(batch_mean_w, self.w_avg, beta))

    def truncate(self, ws: Tensor, *, psi: float | None, cutoff: int | None) -> Tensor:
        """Truncation trick (StyleGAN, appendix B): the first `cutoff` layers get w_avg + psi * (w - w_avg).

        Off if psi is None or 1, or cutoff is None or not positive. ws [N, num_layers, L] in and out.
        """
        if psi is None or psi == 1 or cutoff is None or cutoff <= 0:
            return ws
        return torch.cat([self.w_avg + psi * (ws[:, :cutoff] - self.w_avg), ws[:, cutoff:]], dim=1)

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        alpha: float = 1.0,
        noise: NoiseFn | None = None,
        truncation_psi: float | None = None,
        truncation_cutoff: int | None = 8,
    ) -> Tensor:
        """Images for latents, as in validation: no style mixing, truncation only when asked.

        Args:
            z: [N, L], N(0, 1).
            labels: class numbers, int64 [N], if conditional.
            alpha: weight of the newest resolution, see `Synthesis.forward`.
            noise: see `Synthesis.forward`.
            truncation_psi: None or 1 turns truncation off.
            truncation_cutoff: number of truncated layers; None or 0 turns truncation off.

        Returns:
            [N, C, r, r], nominally in [-1, 1], not clamped.

        Raises:
            StepError: conditional, and `labels` is None.
        """
        w = self.mapping(z, labels)
        ws = w[:, None].expand(-1, self.num_layers, -1)
        return self.synthesis(self.truncate(ws, psi=truncation_psi, cutoff=truncation_cutoff), alpha=alpha, noise=noise)
