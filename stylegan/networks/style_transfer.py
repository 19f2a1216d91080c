"""Style transfer by AdaIN: an encoder that stays as it is, statistics that are exchanged, and a decoder that is trained.

Source: Huang & Belongie 2017 ("Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", arXiv
1703.06868), sections 5 and 6. The encoder is VGG16 up to relu4_1, or as many layers of the embedded feature network
(`classifier.py`). The decoder mirrors it: nearest neighbour in place of pooling, no normalisation. Both reflect the image at its borders,
which else would count as texture. All of it is convolutional, so images may have any size.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from safetensors import torch as safetensors_torch
from torch import Tensor, nn
from torch.nn import functional

from stylegan.errors import DamagedError, one_line
from stylegan.networks.classifier import Classifier
from stylegan.networks.normalisation import adaptive_instance_norm
from stylegan.networks.pretrained import RectifiedConv
from stylegan.networks.vgg import LEVELS, VGG16Maps, normalised
from stylegan.networks.weights import header_bytes, read_tensors
from stylegan.records import Record

FILE = "transfer.safetensors"  # in the folder of a checkpoint
KEY = "stylegan.transfer"  # of the metadata in that file
LEAST_CONVOLUTIONS = 2  # of a level of the decoder: those of the embedded network have one, too few to draw with


class Shape(Record):
    """What decides the architecture of a style transfer.

    Attributes:
        encoder: the kind of network that its first layers are from.
        channels: of the images.
        widths: channels of the maps of the encoder, the finest first; each map is half as large as the one before.
        resolution: side of the images that the decoder was trained on.
    """

    encoder: Literal["vgg16", "embedded"]
    channels: Literal[1, 3]
    widths: tuple[int, ...] = Field(min_length=2)
    resolution: int

    @property
    def convolutions(self) -> tuple[int, ...]:
        """The number of convolutions of the decoder at each level but the deepest, which has one."""
        of_vgg = tuple(len(numbers) for _, numbers in LEVELS)
        return of_vgg[: self.depth] if self.encoder == "vgg16" else (LEAST_CONVOLUTIONS,) * self.depth

    @property
    def depth(self) -> int:
        """How often the encoder halves the images."""
        return len(self.widths) - 1


class Encoder(nn.Module):
    """The first layers of a trained network, which are never changed: images [N, C, h, w] in [-1, 1] to its maps."""

    def __init__(self, shape: Shape) -> None:
        """Make the layers; weights are random until they are loaded."""
        super().__init__()
        self.of_vgg = shape.encoder == "vgg16"
        if self.of_vgg:
            self.parts = _parts_of_vgg(VGG16Maps(), shape.depth)
        else:
            embedded = Classifier(resolution=shape.resolution, channels=shape.channels, num_classes=2)
            self.parts = nn.ModuleList(embedded.rungs[: shape.depth + 1])
        _reflect(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps, finest first: relu1_1, relu2_1 and so on of VGG16, or those of the embedded network."""
        x, found = normalised(images) if self.of_vgg else images, []
        for part in self.parts:
            x = part(x)
            found.append(x)
        return found


def _parts_of_vgg(network: VGG16Maps, depth: int) -> nn.ModuleList:
    """Return the layers of VGG16 as parts that each end at the first convolution of a level."""
    layers: list[list[nn.Module]] = [[]]
    for level, (_, numbers) in enumerate(LEVELS[: depth + 1]):
        if level:
            layers[-1].append(nn.MaxPool2d(2))
        first, *others = (network.features[str(number)] for number in numbers)
        layers[-1].append(first)
        layers.append(others)
    return nn.ModuleList(nn.Sequential(*part) for part in layers[: depth + 1])


class Decoder(nn.Module):
    """The mirror of an encoder: its deepest map [N, W, h, w] to images [N, C, h * 2^depth, w * 2^depth]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(shape.depth, 0, -1):
            layers += [_conv(shape.widths[level], shape.widths[level - 1]), nn.Upsample(scale_factor=2, mode="nearest")]
            # The last of them belongs to the next level, or is that which draws the image.
            width = shape.widths[level - 1]
            layers += [_conv(width, width) for _ in range(shape.convolutions[level - 1] - 1)]
        self.layers = nn.Sequential(*layers)
        self.to_image = nn.Conv2d(shape.widths[0], shape.channels, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.to_image(self.layers(x))
        return image


def _conv(num_in: int, num_out: int) -> RectifiedConv:
    return RectifiedConv(num_in, num_out, 3, padding=1, padding_mode="reflect")


class StyleTransfer(nn.Module):
    """Draw the content of one image in the style of another."""

    def __init__(self, shape: Shape, encoder: Encoder | None = None) -> None:
        """Make a decoder with fresh weights for an encoder; without one, the encoder's are still to be loaded."""
        super().__init__()
        self.shape = shape
        self.encoder = encoder or Encoder(shape).eval().requires_grad_(False)
        self.decoder = Decoder(shape)

    def forward(self, content: Tensor, style: Tensor, alpha: float = 1.0) -> Tensor:
        """Draw images.

        Args:
            content: images [N, C, h, w] in [-1, 1], of any size.
            style: images [N, C, H, W] in [-1, 1], of any size.
            alpha: 0 draws the content as the decoder draws it, 1 takes the style as far as it goes (equation 14).

        Returns:
            [N, C, h, w], nominally in [-1, 1].
        """
        height, width = content.shape[2:]
        features = self._deepest(content)
        target = adaptive_instance_norm(features, self._deepest(style))
        drawn: Tensor = self.decoder(torch.lerp(features, target, alpha))
        return drawn[:, :, :height, :width]

    def _deepest(self, images: Tensor) -> Tensor:
        """Return the deepest map of images, whose sides are first made multiples of its steps by repeating the border."""
        step = 2**self.shape.depth
        missing = [max(2 * step - side, -side % step) for side in images.shape[2:]]  # reflection needs two pixels of it
        return self.encoder.maps(functional.pad(images, (0, missing[1], 0, missing[0]), mode="replicate"))[-1]


def shape_of(network: VGG16Maps | Classifier, *, channels: Literal[1, 3], depth: int, resolution: int) -> Shape:
    """Return the architecture of a style transfer whose encoder is the beginning of a network.

    Args:
        network: has at least `depth` + 1 levels.
        channels: of the images.
        depth: how often the encoder halves the images.
        resolution: side of the images.
    """
    if isinstance(network, VGG16Maps):
        widths = tuple(width for width, _ in LEVELS)
    else:
        widths = tuple(len(rung.get_parameter("conv.weight")) for rung in network.rungs)
    kind: Literal["vgg16", "embedded"] = "vgg16" if isinstance(network, VGG16Maps) else "embedded"
    return Shape(encoder=kind, channels=channels, widths=widths[: depth + 1], resolution=resolution)


def encoder_of(network: VGG16Maps | Classifier, shape: Shape) -> Encoder:
    """Return the beginning of a network as an encoder, on the CPU; the network itself is left alone."""
    with torch.device("meta"):  # draws no weights: loading leaves the global random state alone
        encoder = Encoder(shape)
    if isinstance(network, VGG16Maps):
        parts: Sequence[nn.Module] = list(_parts_of_vgg(network, shape.depth))
    else:
        parts = list(network.rungs[: shape.depth + 1])
    encoder.parts = copy.deepcopy(nn.ModuleList(parts)).cpu()
    _reflect(encoder)
    return encoder.eval().requires_grad_(False)


def _reflect(network: nn.Module) -> None:
    """Let convolutions see the image reflected beyond its borders, where their own network had zeros."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "reflect"


def save_transfer(network: StyleTransfer) -> bytes:
    """Return a style transfer, encoder included, as a safetensors file; equal ones give equal bytes."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    return safetensors_torch.save(tensors, metadata={KEY: network.shape.model_dump_json()})


def load_transfer(data: bytes, origin: str = "style transfer") -> StyleTransfer:
    """Load the style transfer that `save_transfer` wrote, on the CPU, in eval mode and without gradients.

    Raises:
        DamagedError: the bytes are cut short, damaged or another kind of file, or a weight is not finite.
    """
    try:
        tensors = read_tensors(data)
        shape = Shape.model_validate_json(json.loads(data[8 : header_bytes(data)])["__metadata__"][KEY])
        with torch.device("meta"):
            network = StyleTransfer(shape)
        network.load_state_dict(tensors, assign=True)
    except MemoryError:
        raise
    except Exception as error:  # damaged and foreign files raise errors of many types
        raise DamagedError(
            f"{origin}: these {len(data)} bytes are not a style transfer ({one_line(error, 200)}); give a {FILE} written by "
            "this program, or delete its checkpoint and train again"
        ) from error
    return network.eval().requires_grad_(False)
