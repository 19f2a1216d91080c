"""VGG16, whose features measure precision and recall, and LPIPS, a distance on its maps, which measures path lengths.

The weights come from torchvision's file (`vgg16-397923af.pth`) and from the heads of LPIPS v0.1 (`vgg.pth`), which
torch-fidelity publishes too. Layers have the names of these files.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from stylegan.errors import ConfigError
from stylegan.networks.pretrained import RectifiedConv, as_rgb, frozen, read_state
from stylegan.networks.resize import resize_tf1

SIDE = 224  # side in pixels that images are resized to if the fully connected layers follow
NUM_FEATURES = 4096  # length of the feature vector fc2
# Of each level: the number of channels, and the numbers of its convolutions in torchvision's file. Between levels the
# size halves.
LEVELS = ((64, (0, 2)), (128, (5, 7)), (256, (10, 12, 14)), (512, (17, 19, 21)), (512, (24, 26, 28)))
SMALLEST = 2 ** (len(LEVELS) - 1)  # side of the smallest image that reaches the last level
# Pixels in each of the two batches that LPIPS compares at once: 32 images of 256x256 take about 3 GiB.
PIXELS_AT_ONCE = 2**21
# Mean and deviation of ImageNet's channels, in [-1, 1]; the means are torchvision's 0.485, 0.456, 0.406 in [0, 1].
MEAN = (-0.030, -0.088, -0.188)
DEVIATION = (0.458, 0.448, 0.450)
VGG16_CURE = "give torchvision's vgg16-397923af.pth"
LPIPS_CURE = "give lpips/weights/v0.1/vgg.pth of the lpips package or weights-vgg16-lpips.pth of torch-fidelity"


@cache
def _of_channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a constant of each channel, [C, 1, 1]; made once, because a copy to a GPU would wait for it."""
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


def normalised(images: Tensor) -> Tensor:
    """Return images [N, 1 or 3, h, w] in [-1, 1] as VGG16 was trained on them: RGB, with ImageNet's statistics."""
    mean, deviation = (_of_channels(values, images.dtype, images.device) for values in (MEAN, DEVIATION))
    return ((as_rgb(images) - mean) / deviation).contiguous(memory_format=torch.channels_last)


class VGG16Maps(nn.Module):
    """The thirteen convolutions of VGG16."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        fan_in = 3
        for width, numbers in LEVELS:
            for number in numbers:
                self.features[str(number)] = RectifiedConv(fan_in, width, 3, padding=1)
                fan_in = width

    def maps(self, images: Tensor) -> Iterator[Tensor]:
        """Yield relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of images [N, 1 or 3, h, w] in [-1, 1].

        The k-th map, from 0, is [N, 64 to 512, h / 2^k, w / 2^k]; h and w are at least 16. Each map is computed when it
        is requested.
        """
        x = normalised(images)
        for level, (_, numbers) in enumerate(LEVELS):
            x = functional.max_pool2d(x, 2) if level else x
            for number in numbers:
                x = self.features[str(number)](x)
            yield x


class VGG16(VGG16Maps):
    """VGG16 (Simonyan and Zisserman 2015), from images [N, 1 or 3, r, r] in [-1, 1] to features.

    Weights are random until loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.ModuleDict(
            {"0": nn.Linear(512 * 7 * 7, NUM_FEATURES), "3": nn.Linear(NUM_FEATURES, NUM_FEATURES)}
        )

    def fc2(self, images: Tensor) -> Tensor:
        """Return the features [N, 4096] that precision and recall compare (Kynkaanniemi et al. 2019).

        They are the result of the second fully connected layer after its ReLU. Images may have any size; they are
        resized to 224 as TensorFlow 1 does. Quantise generated images to eight bits first.
        """
        *_, x = self.maps(resize_tf1(images, SIDE))
        x = functional.max_pool2d(x, 2).flatten(1)
        for layer in self.classifier.values():
            x = functional.relu_(layer(x))
        return x


class LPIPS(VGG16Maps):
    """The learned perceptual distance v0.1 on VGG16's maps (Zhang et al. 2018, `lin`).

    Weights are random until loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ParameterList(torch.rand(1, width, 1, 1) / width for width, _ in LEVELS)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances [N] between the images of two batches [N, 1 or 3, h, w] in [-1, 1], not quantised.

        Each map is normalised to unit length over its channels. Squared differences are weighted by the head, averaged
        over pixels and summed over maps. N may be any number: the batches are processed in parts that fit into memory.

        Raises:
            ConfigError: h or w is below 16.
        """
        height, width = a.shape[-2:]
        if min(height, width) < SMALLEST:
            raise ConfigError(
                f"LPIPS: images of {height}x{width} are too small, its last level needs {SMALLEST}x{SMALLEST}; "
                "use larger images"
            )
        at_once = max(1, PIXELS_AT_ONCE // (height * width))
        return torch.cat([self._distance(x, y) for x, y in zip(a.split(at_once), b.split(at_once), strict=True)])

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(len(a), device=a.device)
        for head, both in zip(self.heads, self.maps(torch.cat([a, b])), strict=True):
            x, y = (both / (torch.linalg.vector_norm(both, dim=1, keepdim=True) + 1e-10)).chunk(2)
            total = total + functional.conv2d((x - y).square(), head).mean(dim=(1, 2, 3))
        return total


def vgg16_file_shapes() -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor in torchvision's file; the last layer is in the file, but not used."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in VGG16().state_dict().items()}
    return shapes | {"classifier.6.weight": (1000, NUM_FEATURES), "classifier.6.bias": (1000,)}


def lpips_file_shapes() -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor in the file with the heads of LPIPS."""
    return {f"lin{level}.model.1.weight": (1, width, 1, 1) for level, (width, _) in enumerate(LEVELS)}


def load_vgg16(data: bytes) -> VGG16:
    """Load VGG16 from torchvision's file, on the CPU, in eval mode and without gradients.

    Raises:
        ConfigError: the bytes are another kind of file.
    """
    state = _read_vgg16(data)
    # The meta device draws no random weights, so loading leaves the global random state alone.
    with torch.device("meta"):
        network = VGG16()
    return frozen(network, state)


def load_lpips(vgg16: bytes, heads: bytes) -> LPIPS:
    """Load LPIPS from torchvision's VGG16 and the heads of LPIPS v0.1, on the CPU, in eval mode, without gradients.

    Raises:
        ConfigError: the bytes are other kinds of files.
    """
    linear = read_state(heads, lpips_file_shapes(), network="LPIPS v0.1 for VGG16", cure=LPIPS_CURE)
    state = _read_vgg16(vgg16) | {f"heads.{level}": value for level, value in enumerate(linear.values())}
    with torch.device("meta"):
        network = LPIPS()
    return frozen(network, state)


def _read_vgg16(data: bytes) -> dict[str, Tensor]:
    return read_state(data, vgg16_file_shapes(), network="VGG16", cure=VGG16_CURE)
