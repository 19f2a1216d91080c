"""The yardstick of the `resnet` pair: Miyato et al. 2018 in plain PyTorch, as in the public ports.

As in `plain`, it uses single precision, NCHW, standard functions and autograd throughout, and its parameters have the
product's names: `load_state_dict` takes the weights of `Generator.synthesis` and of `ResNetDiscriminator`.
"""

from __future__ import annotations

import copy
import itertools

import torch
import torch.nn.functional as F
from benchmarks.plain import PlainTraining
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from stylegan.config.sections import ModelConfig

EPS = 2e-5
GENERATOR = {32: [256] * 4, 64: [1024, 512, 256, 128, 64], 128: [1024, 1024, 512, 256, 128, 64]}
DISCRIMINATOR = {32: [128] * 4, 64: [64, 128, 256, 512, 1024], 128: [64, 128, 256, 512, 1024, 1024]}
HALVINGS = {32: 2, 64: 5, 128: 5}


def fmaps(model: ModelConfig, channels: list[int]) -> list[int]:
    """Return the channels at a width of the networks."""
    return [max(round(number * model.width), 1) for number in channels]


def convolution(num_in: int, num_out: int, kernel: int = 3, *, gain: float = 2**0.5) -> nn.Conv2d:
    """Make a zero-padded convolution with Glorot's weights."""
    layer = nn.Conv2d(num_in, num_out, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def enlarge(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Norm(nn.Module):
    """Batch or instance normalisation, with learned, conditional or modulated scale and shift."""

    mean: Tensor
    variance: Tensor

    def __init__(self, norm: str, channels: int, *, latent_size: int, num_labels: int) -> None:
        super().__init__()
        self.norm, self.num_labels, self.per_image = norm, num_labels, "instance" in norm
        if norm in ("batch", "instance"):
            self.affine = nn.Parameter(torch.ones(1, 2 * channels))
            self.affine.data[:, channels:] = 0
        elif "conditional" in norm:
            self.classes = nn.Parameter(torch.ones(num_labels, 2 * channels))
            self.classes.data[:, channels:] = 0
        else:
            self.hidden = nn.Linear(latent_size + num_labels, 32)
            self.modulation = nn.Linear(32, 2 * channels)
        if not self.per_image:
            self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
            self.register_buffer("variance", torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor, z: Tensor, labels: Tensor | None) -> Tensor:
        if self.norm == "batch":
            weight, bias = self.affine[0].chunk(2)
            return F.batch_norm(x, self.mean.flatten(), self.variance.flatten(), weight, bias, self.training, eps=EPS)
        if self.norm == "instance":
            weight, bias = self.affine[0].chunk(2)
            return F.instance_norm(x, weight=weight, bias=bias, eps=EPS)
        if self.per_image:
            x = F.instance_norm(x, eps=EPS)
        else:
            x = F.batch_norm(x, self.mean.flatten(), self.variance.flatten(), training=self.training, eps=EPS)
        if "conditional" in self.norm:
            gamma, beta = self.classes[labels].chunk(2, dim=1)
        else:
            if labels is not None:
                z = torch.cat([z, F.one_hot(labels, self.num_labels).to(z.dtype)], dim=1)
            gamma, beta = self.modulation(F.relu(self.hidden(z))).chunk(2, dim=1)
            gamma = gamma + 1
        return gamma[:, :, None, None] * x + beta[:, :, None, None]


class GeneratorBlock(nn.Module):
    """Normalisation, ReLU, enlargement and convolution; normalisation, ReLU and convolution; a 1x1 shortcut."""

    def __init__(self, model: ModelConfig, num_in: int, num_out: int, num_labels: int) -> None:
        super().__init__()
        self.norm0 = Norm(model.norm_used, num_in, latent_size=model.latent_size, num_labels=num_labels)
        self.conv0 = convolution(num_in, num_out)
        self.norm1 = Norm(model.norm_used, num_out, latent_size=model.latent_size, num_labels=num_labels)
        self.conv1 = convolution(num_out, num_out)
        self.shortcut = convolution(num_in, num_out, 1, gain=1)

    def forward(self, x: Tensor, z: Tensor, labels: Tensor | None) -> Tensor:
        y = self.conv0(enlarge(F.relu(self.norm0(x, z, labels))))
        y = self.conv1(F.relu(self.norm1(y, z, labels)))
        return y + self.shortcut(enlarge(x))


class PlainResNetGenerator(nn.Module):
    """Generator, from z and labels to images."""

    def __init__(self, model: ModelConfig, *, resolution: int, channels: int, num_labels: int = 0) -> None:
        super().__init__()
        self.model, self.num_labels = model, num_labels
        widths = fmaps(model, GENERATOR[resolution])
        self.dense = nn.Linear(model.latent_size, widths[0] * 16)
        nn.init.xavier_uniform_(self.dense.weight)
        self.blocks = nn.ModuleList(GeneratorBlock(model, *pair, num_labels) for pair in itertools.pairwise(widths))
        last = model.norm_used.replace("conditional_", "")
        self.norm = Norm(last, widths[-1], latent_size=model.latent_size, num_labels=num_labels)
        self.to_rgb = convolution(widths[-1], channels, gain=1)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.dense(z).reshape(len(z), -1, 4, 4)
        for block in self.blocks:
            x = block(x, z, labels)
        return torch.tanh(self.to_rgb(F.relu(self.norm(x, z, labels))))


class DiscriminatorBlock(nn.Module):
    """ReLU, convolution, ReLU, convolution, pooling; a 1x1 shortcut where side or channels change."""

    def __init__(self, num_in: int, num_out: int, *, first: bool, halves: bool) -> None:
        super().__init__()
        hidden = num_out if first else num_in
        self.first, self.halves = first, halves
        self.conv0, self.conv1 = convolution(num_in, hidden), convolution(hidden, num_out)
        self.shortcut = convolution(num_in, num_out, 1, gain=1) if halves or num_in != num_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.conv0(x if self.first else F.relu(x))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return F.avg_pool2d(y, 2) + F.avg_pool2d(x, 2) if self.halves else y + x


class PlainResNetDiscriminator(nn.Module):
    """Discriminator with spectral normalisation, from images to scores; with labels it projects the class."""

    def __init__(
        self, model: ModelConfig, *, resolution: int, channels: int, num_labels: int = 0, rotation: bool = False
    ) -> None:
        super().__init__()
        self.model, self.channels, self.resolution = model, channels, resolution
        widths = [channels, *fmaps(model, DISCRIMINATOR[resolution])]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(*pair, first=number == 0, halves=number < HALVINGS[resolution])
            for number, pair in enumerate(itertools.pairwise(widths))
        )
        self.score = nn.Linear(widths[-1], 1)
        self.classes = nn.Linear(num_labels, widths[-1], bias=False) if num_labels else None
        self.rotation = nn.Linear(widths[-1], 4) if rotation else None
        if model.spectral_norm:
            for layer in [layer for layer in self.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]:
                spectral_norm(layer)

    def features(self, images: Tensor) -> Tensor:
        x = images
        for block in self.blocks:
            x = block(x)
        return F.relu(x).sum(dim=(2, 3))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.features(images)
        scores = self.score(features)[:, 0]
        if self.classes is not None and labels is not None:
            scores = scores + (self.classes.weight.t()[labels] * features).sum(dim=1)
        return scores

    def rotation_logits(self, images: Tensor) -> Tensor:
        assert self.rotation is not None
        return self.rotation(self.features(images))


class PlainResNetTraining:
    """Training with the hinge loss, Adam (beta 0 and 0.9), an average of G, and the rotation loss of SS-GAN if asked.

    Of each batch the last quarter is turned.
    """

    def __init__(self, G: PlainResNetGenerator, D: PlainResNetDiscriminator, *, learning_rate: float = 2e-4) -> None:
        self.G, self.D, self.G_ema = G, D, copy.deepcopy(G)
        self.opt_G = torch.optim.Adam(G.parameters(), lr=learning_rate, betas=(0.0, 0.9), eps=1e-8)
        self.opt_D = torch.optim.Adam(D.parameters(), lr=learning_rate, betas=(0.0, 0.9), eps=1e-8)
        self.weight_d, self.weight_g = 1.0, 0.2

    def rotation_loss(self, images: Tensor) -> Tensor:
        """Return the cross-entropy of D's answers on the last quarter of the images, turned by all angles."""
        turned = images[len(images) - len(images) // 4 :]
        logits = self.D.rotation_logits(torch.cat([torch.rot90(turned, k, (2, 3)) for k in range(4)]))
        return F.cross_entropy(logits, torch.arange(4, device=images.device).repeat_interleave(len(turned)))

    def d_step(self, reals: Tensor, labels: Tensor | None, z: Tensor) -> Tensor:
        """Update D once, then the average; reals are in [-1, 1]."""
        with torch.no_grad():
            fakes = self.G(z, labels)
        loss = (F.relu(1 - self.D(reals, labels)) + F.relu(1 + self.D(fakes, labels))).mean()
        if self.D.rotation is not None:
            loss = loss + self.weight_d * self.rotation_loss(reals)
        self.opt_D.zero_grad()
        loss.backward()
        self.opt_D.step()
        self.update_average(0.5 ** (len(reals) / 10_000))
        return loss.detach()

    def g_step(self, labels: Tensor | None, z: Tensor) -> Tensor:
        """Update G once."""
        self.D.requires_grad_(False)
        fakes = self.G(z, labels)
        loss = -self.D(fakes, labels).mean()
        if self.D.rotation is not None:
            loss = loss + self.weight_g * self.rotation_loss(fakes)
        self.opt_G.zero_grad()
        loss.backward()
        self.opt_G.step()
        self.D.requires_grad_(True)
        return loss.detach()

    update_average = PlainTraining.update_average
