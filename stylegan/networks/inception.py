"""Inception-v3 of 2015-12-05, the network behind published values of FID, KID and Inception Score.

TensorFlow's graph differs from torchvision's network of the same name in its resize, its input range, an epsilon of
1e-3 in batch normalisation, average pools that leave out the padding, a max pool in the last block, and 1008 classes.
The weights come from the PyTorch file that pytorch-fid and torch-fidelity both publish. Layers have the names of that
file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from stylegan.errors import ConfigError
from stylegan.networks.pretrained import RectifiedConv, as_rgb, frozen, read_state
from stylegan.networks.resize import resize_tf1

SIDE = 299  # pixels that every image is resized to
NUM_FEATURES = 2048  # length of the pooled feature vector
NUM_CLASSES = 1008
EPSILON = 1e-3  # added to the variance by the batch normalisation
NETWORK = "Inception-v3 of 2015-12-05"
CURE = (
    "give pt_inception-2015-12-05-6726825d.pth of pytorch-fid "
    "or weights-inception-2015-12-05-6726825d.pth of torch-fidelity"
)


class _Joined(nn.Sequential):
    """Branches that all read the same input; their outputs are concatenated over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self], dim=1)


def _conv(fan_in: int, fan_out: int, kernel: int | tuple[int, int], stride: int = 1) -> RectifiedConv:
    """Return a convolution that keeps the size by padding, or one without padding if the stride is 2."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    return RectifiedConv(fan_in, fan_out, (height, width), stride, (height // 2, width // 2) if stride == 1 else 0)


def _chain(fan_in: int, **convs: tuple[int, int | tuple[int, int]]) -> nn.Sequential:
    """Return convolutions, given as name=(channels out, kernel), one after the other.

    A convolution whose name ends with `_down` has stride 2; the layer is named without this ending.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, (fan_out, kernel) in convs.items():
        layers[name.removesuffix("_down")] = _conv(fan_in, fan_out, kernel, 2 if name.endswith("_down") else 1)
        fan_in = fan_out
    return nn.Sequential(layers)


def _fork(fan_in: int, prefix: str) -> _Joined:
    """Return two convolutions of 384 channels each, side by side on the same map."""
    return _Joined(OrderedDict({f"{prefix}a": _conv(fan_in, 384, (1, 3)), f"{prefix}b": _conv(fan_in, 384, (3, 1))}))


def _average() -> nn.AvgPool2d:
    """Return a 3x3 average pool that leaves out the padding, as TensorFlow's does and PyTorch's by default does not."""
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def _pool(pool: nn.Module, fan_in: int, fan_out: int) -> nn.Sequential:
    """Return a branch of a pool and a 1x1 convolution."""
    return nn.Sequential(pool, _chain(fan_in, branch_pool=(fan_out, 1)))


def _block_a(fan_in: int, pool: int) -> _Joined:
    return _Joined(
        _chain(fan_in, branch1x1=(64, 1)),
        _chain(fan_in, branch5x5_1=(48, 1), branch5x5_2=(64, 5)),
        _chain(fan_in, branch3x3dbl_1=(64, 1), branch3x3dbl_2=(96, 3), branch3x3dbl_3=(96, 3)),
        _pool(_average(), fan_in, pool),
    )


def _block_b(fan_in: int) -> _Joined:
    return _Joined(
        _chain(fan_in, branch3x3_down=(384, 3)),
        _chain(fan_in, branch3x3dbl_1=(64, 1), branch3x3dbl_2=(96, 3), branch3x3dbl_3_down=(96, 3)),
        nn.MaxPool2d(3, 2),
    )


def _block_c(fan_in: int, mid: int) -> _Joined:
    return _Joined(
        _chain(fan_in, branch1x1=(192, 1)),
        _chain(fan_in, branch7x7_1=(mid, 1), branch7x7_2=(mid, (1, 7)), branch7x7_3=(192, (7, 1))),
        _chain(
            fan_in,
            branch7x7dbl_1=(mid, 1),
            branch7x7dbl_2=(mid, (7, 1)),
            branch7x7dbl_3=(mid, (1, 7)),
            branch7x7dbl_4=(mid, (7, 1)),
            branch7x7dbl_5=(192, (1, 7)),
        ),
        _pool(_average(), fan_in, 192),
    )


def _block_d(fan_in: int) -> _Joined:
    return _Joined(
        _chain(fan_in, branch3x3_1=(192, 1), branch3x3_2_down=(320, 3)),
        _chain(
            fan_in,
            branch7x7x3_1=(192, 1),
            branch7x7x3_2=(192, (1, 7)),
            branch7x7x3_3=(192, (7, 1)),
            branch7x7x3_4_down=(192, 3),
        ),
        nn.MaxPool2d(3, 2),
    )


def _block_e(fan_in: int, pool: nn.Module) -> _Joined:
    return _Joined(
        _chain(fan_in, branch1x1=(320, 1)),
        nn.Sequential(_chain(fan_in, branch3x3_1=(384, 1)), _fork(384, "branch3x3_2")),
        nn.Sequential(_chain(fan_in, branch3x3dbl_1=(448, 1), branch3x3dbl_2=(384, 3)), _fork(384, "branch3x3dbl_3")),
        _pool(pool, fan_in, 192),
    )


class InceptionV3(nn.Module):
    """Inception-v3 (Szegedy et al. 2016), from images [N, 1 or 3, r, r] in [-1, 1] to features and class probabilities.

    Images may have any size. Weights are random until loaded. Batch normalisation is folded into the convolutions, so
    training and inference are the same. Quantise generated images to eight bits first, as all published protocols do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            OrderedDict(
                Conv2d_1a_3x3=RectifiedConv(3, 32, 3, 2),
                Conv2d_2a_3x3=RectifiedConv(32, 32, 3),
                Conv2d_2b_3x3=RectifiedConv(32, 64, 3, padding=1),
                pool_1=nn.MaxPool2d(3, 2),
                Conv2d_3b_1x1=RectifiedConv(64, 80, 1),
                Conv2d_4a_3x3=RectifiedConv(80, 192, 3),
                pool_2=nn.MaxPool2d(3, 2),
                Mixed_5b=_block_a(192, 32),
                Mixed_5c=_block_a(256, 64),
                Mixed_5d=_block_a(288, 64),
                Mixed_6a=_block_b(288),
                Mixed_6b=_block_c(768, 128),
                Mixed_6c=_block_c(768, 160),
                Mixed_6d=_block_c(768, 160),
                Mixed_6e=_block_c(768, 192),
                Mixed_7a=_block_d(768),
                Mixed_7b=_block_e(1280, _average()),
                Mixed_7c=_block_e(2048, nn.MaxPool2d(3, 1, 1)),
            )
        )
        self.fc = nn.Linear(NUM_FEATURES, NUM_CLASSES, bias=False)

    def pooled(self, images: Tensor) -> Tensor:
        """Return the features [N, 2048] that FID and KID compare: the last map averaged over its pixels (`pool3`)."""
        x = as_rgb(resize_tf1(images, SIDE))
        x = x * (127.5 / 128) - 0.5 / 128  # (pixel - 128) / 128 with pixel = 127.5 x + 127.5 in [0, 255]
        pooled: Tensor = self.body(x.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))
        return pooled

    def log_posteriors(self, images: Tensor) -> Tensor:
        """Return the logarithms [N, 1008] of the class probabilities.

        The logits leave out their bias, as in the published Inception Score.
        """
        return self(images)[1]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return `pooled` and `log_posteriors`, computed in one pass."""
        pooled = self.pooled(images)
        return pooled, functional.log_softmax(self.fc(pooled), dim=1)


def inception_file_shapes() -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor in a published file."""
    with torch.device("meta"):
        network = InceptionV3()
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (NUM_CLASSES, NUM_FEATURES),
        "fc.bias": (NUM_CLASSES,),
    }
    for _, layer, conv in _layers(network):
        shapes[f"{layer}.conv.weight"] = tuple(conv.weight.shape)
        shapes |= {
            f"{layer}.bn.{part}": (conv.out_channels,) for part in ("weight", "bias", "running_mean", "running_var")
        }
    return shapes


def load_inception(data: bytes) -> InceptionV3:
    """Load the network from a published file, on the CPU, in eval mode and without gradients.

    Raises:
        ConfigError: the bytes are another kind of file; torchvision's Inception-v3 is a different network.
    """
    # The meta device draws no random weights, so loading leaves the global random state alone.
    with torch.device("meta"):
        network = InceptionV3()

    # Read the file.
    counters = frozenset(f"{layer}.bn.num_batches_tracked" for _, layer, _ in _layers(network))
    state = read_state(data, inception_file_shapes(), network=NETWORK, cure=CURE, optional=counters)

    # Fold the batch normalisation into the convolutions.
    weights = {"fc.weight": state["fc.weight"]}
    for name, layer, _ in _layers(network):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = _folded(state, layer)
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise ConfigError(
            f"{NETWORK}: this file does not hold its weights (a variance of the normalisation is negative); {CURE}"
        )
    return frozen(network, weights)


def _layers(network: InceptionV3) -> Iterator[tuple[str, str, RectifiedConv]]:
    """Yield each convolution after its name here and its name in the file, which omits the numbers of the branches."""
    for name, module in network.named_modules():
        if isinstance(module, RectifiedConv):
            yield name, ".".join(part for part in name.split(".")[1:] if not part.isdigit()), module


def _folded(state: dict[str, Tensor], layer: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with its batch normalisation folded in, computed in double precision."""
    gain, bias, mean, variance = (
        state[f"{layer}.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain / torch.sqrt(variance + EPSILON)
    weight = state[f"{layer}.conv.weight"].double() * scale[:, None, None, None]
    return weight.float(), (bias - mean * scale).float()
