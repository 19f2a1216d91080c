"""The yardstick: StyleGAN v1 in plain PyTorch, written from the formulas as in the public ports.

It uses single precision, NCHW, standard modules and autograd throughout: nothing is fused, and no derivative is
hand-written. Tests compare the product's networks and steps with it number by number; benchmarks compare the speed. Its
parameters have the product's names, so `load_state_dict` copies weights. The caller passes the random numbers of a
step.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan.config.sections import ModelConfig


def fmaps(model: ModelConfig, stage: int) -> int:
    """Return the number of channels at a stage; the block at resolution 2^k is stage k - 1."""
    return max(min(int(model.fmap_base / 2 ** (stage * model.fmap_decay)), model.fmap_max), 1)


class Dense(nn.Module):
    """Equalised dense layer: stored weights are N(0, 1 / lrmul^2), used ones are times gain / sqrt(inputs) * lrmul."""

    def __init__(
        self, num_in: int, num_out: int, *, gain: float = math.sqrt(2), lrmul: float = 1.0, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_out, num_in) / lrmul)
        self.bias = nn.Parameter(torch.zeros(num_out)) if bias else None
        self.scale, self.lrmul = gain / math.sqrt(num_in) * lrmul, lrmul

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, None if self.bias is None else self.bias * self.lrmul)


class Conv(nn.Module):
    """Equalised convolution: stored weights are N(0, 1), used ones are times gain / sqrt(kernel^2 * inputs)."""

    def __init__(
        self, num_in: int, num_out: int, *, kernel: int = 3, gain: float = math.sqrt(2), bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_out, num_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(num_out)) if bias else None
        self.scale, self.padding = gain / math.sqrt(kernel**2 * num_in), kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class UpConv(Conv):
    """Nearest-neighbour doubling and convolution; if fused (from 128x128), a transposed convolution.

    The kernel of the transposed convolution is the sum of four shifts.
    """

    def __init__(self, num_in: int, num_out: int, *, fused: bool) -> None:
        super().__init__(num_in, num_out, bias=False)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        if not self.fused:
            return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))
        w = F.pad(self.weight * self.scale, (1, 1, 1, 1))
        w = w[:, :, 1:, 1:] + w[:, :, :-1, 1:] + w[:, :, 1:, :-1] + w[:, :, :-1, :-1]
        return F.conv_transpose2d(x, w.transpose(0, 1), stride=2, padding=1)


class DownConv(Conv):
    """Convolution, then the mean of each 2x2 block."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(x), 2)


class Blur(nn.Module):
    """Filter [1, 2, 1] x [1, 2, 1] / 16 on every channel, zero padded."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (torch.outer(taps, taps) / 16).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=x.shape[1])


def pixel_norm(x: Tensor) -> Tensor:
    return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-8)


def instance_norm(x: Tensor) -> Tensor:
    mean = x.mean(dim=(2, 3), keepdim=True)
    variance = x.var(dim=(2, 3), correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-8)


def minibatch_stddev(x: Tensor, group: int) -> Tensor:
    n, c, h, w = x.shape
    group = min(group, n)
    y = x.reshape(group, n // group, c, h, w)
    y = torch.sqrt(y.var(dim=0, correction=0) + 1e-8).mean(dim=(1, 2, 3))  # [N / group]
    y = y.repeat(group).reshape(n, 1, 1, 1).expand(n, 1, h, w)
    return torch.cat([x, y], dim=1)


class MappingNetwork(nn.Module):
    """Mapping network: z and the label's vector are normalised together, then dense layers compute w."""

    def __init__(self, model: ModelConfig, num_labels: int) -> None:
        super().__init__()
        self.label_concat = nn.Parameter(torch.randn(num_labels, model.latent_size)) if num_labels else None
        hidden = [model.mapping_fmaps] * (model.mapping_layers - 1) + [model.latent_size]
        widths = [model.latent_size * (2 if num_labels else 1), *hidden[: model.mapping_layers]]
        self.layers = nn.ModuleList([Dense(a, b, lrmul=model.mapping_lrmul) for a, b in pairwise(widths)])
        self.w_size = widths[-1]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        x = z if self.label_concat is None else torch.cat([z, self.label_concat[labels]], dim=1)
        x = pixel_norm(x)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return x


class Constant(nn.Module):
    """The learned 4x4 input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.const = nn.Parameter(torch.ones(1, channels, 4, 4))

    def forward(self, w: Tensor) -> Tensor:
        return self.const.repeat(len(w), 1, 1, 1)


def dense_constant(w_size: int, channels: int) -> nn.Module:
    """Make the traditional 4x4 input, which is computed from w (configs B and C)."""
    dense = Dense(w_size, channels * 16, gain=math.sqrt(2) / 4, bias=False)
    return nn.Sequential(OrderedDict(dense=dense, shape=nn.Unflatten(1, (channels, 4, 4))))


class Layer(nn.Module):
    """One synthesis layer: source, blur, noise, bias, leaky ReLU, normalisation, style."""

    def __init__(self, model: ModelConfig, source: nn.Module, *, channels: int, w_size: int) -> None:
        super().__init__()
        self.source = source
        self.blur = Blur(channels) if model.blur and isinstance(source, UpConv) else nn.Identity()
        self.noise_weight = nn.Parameter(torch.zeros(channels)) if model.noise else None
        self.bias = nn.Parameter(torch.zeros(channels))
        self.style = Dense(w_size, 2 * channels, gain=1) if model.styles else None
        self.model = model

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        x = self.blur(self.source(x))
        if self.noise_weight is not None and noise is not None:
            x = x + noise * self.noise_weight.view(1, -1, 1, 1)
        x = F.leaky_relu(x + self.bias.view(1, -1, 1, 1), 0.2)
        if self.model.pixel_norm:
            x = pixel_norm(x)
        if self.model.instance_norm:
            x = instance_norm(x)
        if self.style is not None:
            style = self.style(w).reshape(len(w), 2, -1, 1, 1)
            x = x * (style[:, 0] + 1) + style[:, 1]
        return x


class SynthesisNetwork(nn.Module):
    """Synthesis network, from one w per layer to images."""

    def __init__(self, model: ModelConfig, *, resolution: int, channels: int, w_size: int) -> None:
        super().__init__()
        self.layers, self.to_rgb = nn.ModuleList(), nn.ModuleList()
        for stage in range(1, int(math.log2(resolution))):
            num, side = fmaps(model, stage), 2 ** (stage + 1)
            first: nn.Module = Constant(num) if model.const_input else dense_constant(w_size, num)
            if stage > 1:
                first = UpConv(fmaps(model, stage - 1), num, fused=side >= 128)
            for source in (first, Conv(num, num, bias=False)):
                if model.noise:
                    self.register_buffer(f"noise{len(self.layers)}", torch.randn(1, 1, side, side))
                self.layers.append(Layer(model, source, channels=num, w_size=w_size))
            self.to_rgb.append(Conv(num, channels, kernel=1, gain=1))

    def forward(self, ws: Tensor, noise: list[Tensor] | None = None, *, alpha: float = 1.0) -> Tensor:
        """Compute images; `noise` contains one map per layer, None takes the stored maps."""
        if noise is None:
            noise = [buffer for name, buffer in self.named_buffers(recurse=False) if name.startswith("noise")]
        features = [ws[:, 0]]
        for i, layer in enumerate(self.layers):
            features.append(layer(features[-1], ws[:, i], noise[i] if noise else None))
        image = self.to_rgb[-1](features[-1])
        if alpha < 1 and len(self.to_rgb) > 1:
            old = F.interpolate(self.to_rgb[-2](features[-3]), scale_factor=2, mode="nearest")
            image = (1 - alpha) * old + alpha * image
        return image


@dataclass
class Draws:
    """The random numbers of one step."""

    z1: Tensor  # [N, L]
    z2: Tensor  # [N, L], the second code of style mixing
    cutoff: int  # layers below it take the first code
    noise: list[Tensor]  # one map per layer

    @classmethod
    def random(cls, G: PlainGenerator, n: int) -> Draws:
        """Draw the numbers of n images as in training."""
        z1, z2 = torch.randn(2, n, G.model.latent_size, device=G.w_avg.device)
        mixes = torch.rand(()) < G.model.style_mixing_prob
        cutoff = int(torch.randint(1, G.num_layers, ())) if mixes else G.num_layers
        noise = [
            torch.randn(n, 1, 4 << i // 2, 4 << i // 2, device=z1.device)
            for i in range(G.num_layers if G.model.noise else 0)
        ]
        return cls(z1, z2, cutoff, noise)


class PlainGenerator(nn.Module):
    """Mapping, synthesis and the running average of w."""

    w_avg: Tensor

    def __init__(self, model: ModelConfig, *, resolution: int, channels: int, num_labels: int = 0) -> None:
        super().__init__()
        self.model = model
        self.mapping = MappingNetwork(model, num_labels)
        self.synthesis = SynthesisNetwork(model, resolution=resolution, channels=channels, w_size=self.mapping.w_size)
        self.num_layers = len(self.synthesis.layers)
        self.register_buffer("w_avg", torch.zeros(self.mapping.w_size))

    def forward(self, draws: Draws, labels: Tensor | None = None, *, alpha: float = 1.0) -> Tensor:
        """Compute images as in training: styles are mixed, and the mean of the first w updates w_avg."""
        w1, w2 = self.mapping(draws.z1, labels), self.mapping(draws.z2, labels)
        with torch.no_grad():
            self.w_avg.copy_(self.model.w_avg_beta * self.w_avg + (1 - self.model.w_avg_beta) * w1.mean(dim=0))
        ws = torch.stack([w1 if i < draws.cutoff else w2 for i in range(self.num_layers)], dim=1)
        return self.synthesis(ws, draws.noise, alpha=alpha)


class Block(nn.Module):
    """Convolution, blur, and convolution to half the side."""

    def __init__(self, model: ModelConfig, stage: int) -> None:
        super().__init__()
        self.conv0 = Conv(fmaps(model, stage), fmaps(model, stage))
        self.blur = Blur(fmaps(model, stage)) if model.blur else nn.Identity()
        self.conv1_down = DownConv(fmaps(model, stage), fmaps(model, stage - 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blur(F.leaky_relu(self.conv0(x), 0.2))
        return F.leaky_relu(self.conv1_down(x), 0.2)


class Head(nn.Module):
    """Mini-batch standard deviation, a convolution and two dense layers."""

    def __init__(self, model: ModelConfig, outputs: int) -> None:
        super().__init__()
        self.group = model.mbstd_group
        self.conv = Conv(fmaps(model, 1) + (self.group > 1), fmaps(model, 1))
        self.dense0 = Dense(fmaps(model, 1) * 16, fmaps(model, 0))
        self.dense1 = Dense(fmaps(model, 0), outputs, gain=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.group > 1:
            x = minibatch_stddev(x, self.group)
        x = F.leaky_relu(self.conv(x), 0.2)
        return self.dense1(F.leaky_relu(self.dense0(x.flatten(1)), 0.2))


class PlainDiscriminator(nn.Module):
    """Discriminator, from images to scores; with labels the score is the logit of the image's class."""

    def __init__(self, model: ModelConfig, *, resolution: int, channels: int, num_labels: int = 0) -> None:
        super().__init__()
        stages = range(1, int(math.log2(resolution)))
        self.from_rgb = nn.ModuleList([Conv(channels, fmaps(model, stage), kernel=1) for stage in stages])
        self.blocks = nn.ModuleList([Block(model, stage) for stage in stages[1:]])
        self.head = Head(model, max(num_labels, 1))

    def forward(self, images: Tensor, labels: Tensor | None = None, *, alpha: float = 1.0) -> Tensor:
        x = F.leaky_relu(self.from_rgb[-1](images), 0.2)
        for i, block in enumerate(reversed(self.blocks)):
            x = block(x)
            if i == 0 and alpha < 1:
                old = F.leaky_relu(self.from_rgb[-2](F.avg_pool2d(images, 2)), 0.2)
                x = (1 - alpha) * old + alpha * x
        logits = self.head(x)
        return logits[:, 0] if labels is None else logits[torch.arange(len(labels), device=labels.device), labels]


def r1_penalty(D: nn.Module, reals: Tensor, labels: Tensor | None, *, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the scores, and the squared norm of their gradient at each real image."""
    reals = reals.detach().requires_grad_()
    scores = D(reals, labels, alpha=alpha)
    (gradient,) = torch.autograd.grad(scores.sum(), reals, create_graph=True)
    return scores, (gradient**2).sum(dim=(1, 2, 3))


class PlainTraining:
    """Training with the non-saturating loss and R1, Adam without momentum, and an average of G.

    The average has a half-life of 10,000 images.
    """

    def __init__(self, G: PlainGenerator, D: PlainDiscriminator, *, learning_rate: float) -> None:
        self.G, self.D, self.G_ema = G, D, copy.deepcopy(G)
        self.opt_G = torch.optim.Adam(G.parameters(), lr=learning_rate, betas=(0.0, 0.99), eps=1e-8)
        self.opt_D = torch.optim.Adam(D.parameters(), lr=learning_rate, betas=(0.0, 0.99), eps=1e-8)
        self.gamma = 10.0  # weight of R1 at the resolution of the networks

    def d_step(self, reals: Tensor, labels: Tensor | None, draws: Draws, *, alpha: float = 1.0) -> Tensor:
        """Update D once, then the average; reals are in [-1, 1] and already faded by the caller."""
        with torch.no_grad():
            fakes = self.G(draws, labels, alpha=alpha)
        scores_real, penalty = r1_penalty(self.D, reals, labels, alpha=alpha)
        scores_fake = self.D(fakes, labels, alpha=alpha)
        loss = (F.softplus(scores_fake) + F.softplus(-scores_real) + self.gamma / 2 * penalty).mean()
        self.opt_D.zero_grad()
        loss.backward()
        self.opt_D.step()
        self.update_average(0.5 ** (len(reals) / 10_000))
        return loss.detach()

    def g_step(self, labels: Tensor | None, draws: Draws, *, alpha: float = 1.0) -> Tensor:
        """Update G once."""
        self.D.requires_grad_(False)
        loss = F.softplus(-self.D(self.G(draws, labels, alpha=alpha), labels, alpha=alpha)).mean()
        self.opt_G.zero_grad()
        loss.backward()
        self.opt_G.step()
        self.D.requires_grad_(True)
        return loss.detach()

    @torch.no_grad()
    def update_average(self, beta: float) -> None:
        """Move the parameters of the average towards G's, and copy the buffers."""
        for mean, now in zip(self.G_ema.parameters(), self.G.parameters(), strict=True):
            mean.copy_(beta * mean + (1 - beta) * now)
        for copied, buffer in zip(self.G_ema.buffers(), self.G.buffers(), strict=True):
            copied.copy_(buffer)
