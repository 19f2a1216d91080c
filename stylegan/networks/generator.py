"""The StyleGAN generator (Karras et al. 2019, section 2): config F by default; switches give any config down to B.

It works at its native resolution: it contains the layers up to `resolution` only, and `grow` adds the next ones in
place.
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
from stylegan.networks.epilogue import epilogue
from stylegan.networks.layers import SQRT2, Conv, Dense, UpConv, missing_labels, modulate, num_fmaps, pixel_norm
from stylegan.networks.normalisation import adain, instance_norm
from stylegan.networks.ops import blur, fade, fades, lrelu, noise_bias_act
from stylegan.networks.resnet import LatentMapping, ResNetSynthesis

# Called with (layer index, n, resolution); returns [n or 1, 1, resolution, resolution], nominally N(0, 1).
NoiseFn = Callable[[int, int, int], Tensor]


MAX_PSI = 10.0  # far beyond any use: images stop changing visibly before


def is_psi(value: float) -> bool:
    """Return whether a value can be the psi of the truncation trick: a number from -MAX_PSI to MAX_PSI."""
    return -MAX_PSI <= value <= MAX_PSI  # False for NaN


def layer_resolution(index: int) -> int:
    """Return the side of the features of a synthesis layer: two layers at 4x4, two at 8x8, ..."""
    return 4 << index // 2


def count_layers(resolution: int) -> int:
    """Return the number of synthesis layers of a generator of this resolution: 2 log2(resolution) - 2."""
    return 2 * (resolution.bit_length() - 2)


def random_noise(generator: torch.Generator | None, device: torch.device | str) -> NoiseFn:
    """Return a function that draws fresh noise for every call, layer and image.

    Args:
        generator: draws the noise on its own device; None takes torch's global generator of `device`.
        device: where the noise is needed.
    """
    source = device if generator is None else generator.device

    def draw(layer_index: int, n: int, resolution: int) -> Tensor:
        return torch.randn(n, 1, resolution, resolution, generator=generator, device=source).to(device)

    return draw


def mix(w1: Tensor, w2: Tensor, cutoff: int | Tensor, num_layers: int) -> Tensor:
    """Mix styles (StyleGAN, section 3.1): layers below `cutoff` take w1, the others w2.

    Args:
        w1: [N, L].
        w2: [N, L].
        cutoff: 0..num_layers, a number or a tensor []; num_layers means w1 everywhere.
        num_layers: number of layers of the generator.

    Returns:
        ws [N, num_layers, L].
    """
    first = torch.arange(num_layers, device=w1.device)[:, None] < cutoff
    return torch.where(first, w1[:, None], w2[:, None])


class Mapping(nn.Module):
    """Mapping network f, from z (and a label, if the generator is conditional) to w (StyleGAN, section 2)."""

    def __init__(self, model: ModelConfig, num_labels: int) -> None:
        super().__init__()
        num_in = model.latent_size * (2 if num_labels else 1)
        self.label_concat = nn.Parameter(torch.randn(num_labels, model.latent_size)) if num_labels else None
        hidden = [model.mapping_fmaps] * (model.mapping_layers - 1) + [model.latent_size]
        widths = [num_in, *hidden[: model.mapping_layers]]
        self.layers = nn.ModuleList(Dense(a, b, lrmul=model.mapping_lrmul) for a, b in pairwise(widths))
        self.w_size = widths[-1]
        self.label_scale = model.label_scale

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute w.

        Args:
            z: [N, L], drawn from N(0, 1).
            labels: class numbers, int64 [N]; needed if and only if the generator is class-conditional.

        Returns:
            w [N, L] ([N, 2L] with labels and no mapping layer).

        Raises:
            StepError: the generator is conditional and `labels` is None.
        """
        x = z
        if self.label_concat is not None:
            if labels is None:
                raise missing_labels("generator", len(self.label_concat))
            label = F.embedding(labels, self.label_concat)
            if self.label_scale is not None:
                x, label = pixel_norm(x), pixel_norm(label) * self.label_scale
            x = torch.cat([x, label], dim=1)
        x = pixel_norm(x)
        for layer in self.layers:
            x = lrelu(layer(x))
        return x


class ConstantInput(nn.Module):
    """A learned constant [1, C, 4, 4], the same for every w; it starts as ones."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.const = nn.Parameter(torch.ones(1, channels, 4, 4))

    def forward(self, w: Tensor) -> Tensor:
        return self.const.expand(w.shape[0], -1, -1, -1)  # an exported graph would make len(w) a constant


class DenseInput(nn.Module):
    """The traditional input: a dense layer from w [N, L] to [N, C, 4, 4] (configs B and C)."""

    def __init__(self, w_size: int, channels: int) -> None:
        super().__init__()
        self.dense = Dense(w_size, channels * 16, gain=SQRT2 / 4, bias=False)

    def forward(self, w: Tensor) -> Tensor:
        return self.dense(w).unflatten(1, (-1, 4, 4))


class SynthesisLayer(nn.Module):
    """One layer of g: input or convolution, blur (after upsampling), noise, bias, leaky ReLU, normalisation, style."""

    def __init__(self, model: ModelConfig, source: nn.Module, *, channels: int, w_size: int) -> None:
        """Make the layer around `source`, whose output has `channels` channels; `w_size` is the length of w."""
        super().__init__()
        self.source = source
        self.blurs = model.blur and isinstance(source, UpConv)
        self.noise_weight = nn.Parameter(torch.zeros(channels)) if model.noise else None
        self.bias = nn.Parameter(torch.zeros(channels))
        self.style = Dense(w_size, 2 * channels, gain=1) if model.styles else None
        self.pixel_norm, self.instance_norm = model.pixel_norm, model.instance_norm

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """Compute the features [N, C, H, W] of this layer.

        Args:
            x: features [N, C', H', W'] of the layer before; the first layer takes w.
            w: [N, L], the style.
            noise: [N or 1, 1, H, W], or None.
        """
        x = self.source(x)
        if self.instance_norm and not self.pixel_norm and self.style is not None:
            return epilogue(x, noise, self.noise_weight, self.bias, self.style(w), blurs=self.blurs)
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
    """Synthesis network g, from one w per layer to images."""

    # Type of the features after the first layer; None takes the type of the weights.
    compute_dtype: torch.dtype | None = None

    def __init__(self, model: ModelConfig, w_size: int, *, channels: int) -> None:
        """Make the 4x4 layers; `grow` adds more."""
        super().__init__()
        self.model, self.w_size, self.channels = model, w_size, channels
        self.layers = nn.ModuleList()
        self.to_rgb = nn.ModuleList()  # for 4x4, 8x8, ...
        fmaps = num_fmaps(model, 1)
        self._add(ConstantInput(fmaps) if model.const_input else DenseInput(w_size, fmaps), fmaps)
        self._add(Conv(fmaps, fmaps, bias=False), fmaps)
        self.to_rgb.append(Conv(fmaps, channels, kernel=1, gain=1))

    def grow(self) -> None:
        """Add the layers of twice the resolution, with fresh weights."""
        resolution = 2 * self.resolution
        stage = int(math.log2(resolution)) - 1
        fmaps = num_fmaps(self.model, stage)
        self._add(UpConv(num_fmaps(self.model, stage - 1), fmaps, resolution=resolution), fmaps)
        self._add(Conv(fmaps, fmaps, bias=False), fmaps)
        self.to_rgb.append(Conv(fmaps, self.channels, kernel=1, gain=1))

    def _add(self, source: nn.Module, fmaps: int) -> None:
        """Append a layer, and its stored noise if the model uses noise."""
        index = len(self.layers)
        self.layers.append(SynthesisLayer(self.model, source, channels=fmaps, w_size=self.w_size))
        if self.model.noise:
            side = layer_resolution(index)
            self.register_buffer(f"noise{index}", torch.randn(1, 1, side, side))

    @property
    def resolution(self) -> int:
        """The side of the images."""
        return layer_resolution(len(self.layers) - 1)

    @property
    def num_layers(self) -> int:
        """The number of layers, each with its own w."""
        return len(self.layers)

    def forward(self, ws: Tensor, *, alpha: float | Tensor = 1.0, noise: NoiseFn | None = None) -> Tensor:
        """Compute images.

        Args:
            ws: [N, num_layers, L]; without styles only the w of the first layer is read.
            alpha: fade-in weight of the newest resolution in [0, 1], a number or a tensor [] that is read on its
                device; the remainder is the image of the previous resolution, upscaled by nearest neighbour (ProGAN,
                figure 2). Has no effect at 4x4.
            noise: draws the noise; None takes the stored noise, the same for every image.

        Returns:
            [N, C, r, r], nominally in [-1, 1], not clamped.
        """
        x = ws[:, 0]
        coarse = None
        for index, layer in enumerate(self.layers):
            x = layer(x, ws[:, index], self._noise(index, ws.shape[0], noise))
            if index == 0:  # the type of the first features decides the precision of all others
                x = x.to(self.compute_dtype or x.dtype, memory_format=torch.channels_last)
            if index == len(self.layers) - 3:
                coarse = x  # the features of half the resolution
        rgb = self.to_rgb[-1](x).to(ws.dtype)
        if fades(alpha) and coarse is not None:
            return fade(F.interpolate(self.to_rgb[-2](coarse).to(ws.dtype), scale_factor=2, mode="nearest"), rgb, alpha)
        return rgb

    def _noise(self, index: int, n: int, noise: NoiseFn | None) -> Tensor | None:
        if not self.model.noise:
            return None
        return self.get_buffer(f"noise{index}") if noise is None else noise(index, n, layer_resolution(index))


class Generator(nn.Module):
    """Mapping network, synthesis network and the running average of w; of a `resnet` what takes their place.

    Weights are drawn from torch's global random state in a fixed order, coarse layers first. A small generator that
    grows therefore gets the same weights as a large one that is made at once.
    """

    w_avg: Tensor

    def __init__(self, model: ModelConfig, *, resolution: int, channels: int, num_labels: int = 0) -> None:
        """Make the network.

        Args:
            model: sizes and switches.
            resolution: side of the images, a power of two from 4.
            channels: 1 (grey) or 3 (RGB).
            num_labels: number of classes; 0 makes the network unconditional.
        """
        super().__init__()
        self.model, self.channels, self.num_labels = model, channels, num_labels
        self.mapping: Mapping | LatentMapping
        self.synthesis: Synthesis | ResNetSynthesis
        if model.is_resnet:
            self.mapping = LatentMapping(model, num_labels)
            self.synthesis = ResNetSynthesis(model, resolution=resolution, channels=channels, num_labels=num_labels)
        else:
            self.mapping = Mapping(model, num_labels)
            self.synthesis = Synthesis(model, self.mapping.w_size, channels=channels)
        self.register_buffer("w_avg", torch.zeros(self.mapping.w_size))
        while self.resolution < resolution:
            self.grow()

    @property
    def resolution(self) -> int:
        """The side of the images."""
        return self.synthesis.resolution

    @property
    def num_layers(self) -> int:
        """The number of synthesis layers, each with its own style: 2 log2(resolution) - 2; 1 of a `resnet`."""
        return self.synthesis.num_layers

    def grow(self) -> None:
        """Double the resolution in place: add layers with fresh weights on the same device, and keep all others."""
        assert isinstance(self.synthesis, Synthesis), "a resnet has one resolution"
        self.synthesis.grow()
        self.to(self.w_avg).train(self.training)

    @torch.no_grad()
    def update_w_avg(self, batch_mean_w: Tensor, beta: float) -> None:
        """Set w_avg to beta * w_avg + (1 - beta) * batch_mean_w.

        Args:
            batch_mean_w: [L], the mean w of a batch before style mixing.
            beta: weight of the old average, in [0, 1].
        """
        self.w_avg.copy_(torch.lerp(batch_mean_w, self.w_avg, beta))

    def truncate(self, ws: Tensor, *, psi: float | None, cutoff: int | None) -> Tensor:
        """Apply the truncation trick (StyleGAN, appendix B): the first `cutoff` layers get w_avg + psi * (w - w_avg).

        Takes and returns ws [N, num_layers, L]. Changes nothing if psi is None or 1, or if cutoff is None or not
        positive.

        Raises:
            StepError: the generator has no w.
        """
        if psi is None or psi == 1 or cutoff is None or cutoff <= 0:
            return ws
        if self.model.is_resnet:
            raise StepError(
                f"psi={psi:g}: this generator (model.architecture=resnet) has no w to truncate; leave it out"
            )
        return torch.cat([self.w_avg + psi * (ws[:, :cutoff] - self.w_avg), ws[:, cutoff:]], dim=1)

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        alpha: float | Tensor = 1.0,
        noise: NoiseFn | None = None,
        truncation_psi: float | None = None,
        truncation_cutoff: int | None = 8,
    ) -> Tensor:
        """Compute images from latents as in validation: without style mixing, and truncated only if asked.

        Args:
            z: [N, L], drawn from N(0, 1).
            labels: class numbers, int64 [N]; needed if and only if the generator is class-conditional.
            alpha: fade-in weight of the newest resolution, see `Synthesis.forward`.
            noise: see `Synthesis.forward`.
            truncation_psi: None or 1 turns truncation off.
            truncation_cutoff: number of truncated layers; None or 0 turns truncation off.

        Returns:
            [N, C, r, r], nominally in [-1, 1], not clamped.

        Raises:
            StepError: the generator is conditional and `labels` is None.
        """
        w = self.mapping(z, labels)
        ws = w[:, None].expand(-1, self.num_layers, -1)
        return self.synthesis(self.truncate(ws, psi=truncation_psi, cutoff=truncation_cutoff), alpha=alpha, noise=noise)
