"""Conversion of official TensorFlow StyleGAN (v1) networks into ours; `tf_pickle` reads the file.

Sizes come from the arguments that each official network was built with. A missing argument has the official default,
which is also the default of `ModelConfig`. Every variable must then have the expected shape, every tensor of ours gets
one variable, and no variable may remain. Both sides store unscaled weights, so values are copied; only the order of
dimensions differs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from stylegan.config.resolutions import RESOLUTIONS
from stylegan.config.sections import ModelConfig
from stylegan.errors import StepError, one_line
from stylegan.networks.discriminator import Discriminator
from stylegan.networks.generator import Generator, Synthesis, layer_resolution
from stylegan.networks.layers import FUSED_FROM, UpConv
from stylegan.networks.tf_pickle import SavedNetwork, read_networks, shown

Net = TypeVar("Net", bound=nn.Module)

# Official argument -> field of ModelConfig.
_FIELDS = {
    "latent_size": "latent_size",
    "mapping_layers": "mapping_layers",
    "mapping_fmaps": "mapping_fmaps",
    "mapping_lrmul": "mapping_lrmul",
    "fmap_base": "fmap_base",
    "fmap_decay": "fmap_decay",
    "fmap_max": "fmap_max",
    "use_styles": "styles",
    "const_input_layer": "const_input",
    "use_noise": "noise",
    "use_pixel_norm": "pixel_norm",
    "use_instance_norm": "instance_norm",
}
# Official argument -> the values that our networks support.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_wscale": (True,),
    "nonlinearity": ("lrelu",),
    "mapping_nonlinearity": ("lrelu",),
    "normalize_latents": (True,),
    "mbstd_num_features": (1,),
    "structure": ("auto", "linear", "recursive"),  # `fixed` has only the last toRGB and fromRGB
    "fused_scale": ("auto", True, False),
    "num_channels": (1, 3),
    "resolution": RESOLUTIONS,
}

# Our name of a tensor in a synthesis layer -> the official name in the layer's scope; other names are the same.
_LAYER_NAMES = {
    "noise_weight": "Noise/weight",
    "style.weight": "StyleMod/weight",
    "style.bias": "StyleMod/bias",
    "source.const": "const",
    "source.weight": "weight",
    "source.dense.weight": "weight",
}


@dataclass(frozen=True)
class OfficialNetworks:
    """The networks of one official pickle, on the CPU, in eval mode, without gradients; `Gs` is the average of G."""

    Gs: Generator
    G: Generator | None
    D: Discriminator | None


def load_official(data: bytes) -> OfficialNetworks:
    """Load the networks of an official StyleGAN v1 pickle: any resolution, conditional or not, grey or RGB.

    Raises:
        StepError: the bytes are another kind of file, a network has settings that ours do not support, or its variables
            do not fit. The message names the network, and the variable or the argument.
    """
    saved = read_networks(data)
    if "Gs" not in saved:
        raise StepError(f"the pickle holds {' and '.join(saved)} but no averaged generator Gs; give one that has it")
    return OfficialNetworks(
        Gs=_generator("Gs", saved["Gs"]),
        G=_generator("G", saved["G"]) if "G" in saved else None,
        D=_discriminator("D", saved["D"]) if "D" in saved else None,
    )


def _generator(role: str, saved: SavedNetwork) -> Generator:
    """Convert an official generator."""
    generator = _without_weights(role, saved, "G_style", Generator)
    assert isinstance(generator.synthesis, Synthesis)

    # A transposed convolution equals the plain one with the kernel rotated by 180 degrees. Rotate the kernels of layers
    # that are fused on one side only.
    fused, rotated = saved.kwargs.get("fused_scale", "auto"), set()
    for index, layer in enumerate(generator.synthesis.layers):
        officially_fused = layer_resolution(index) >= FUSED_FROM if fused == "auto" else fused
        if isinstance(layer.source, UpConv) and layer.source.fused != officially_fused:
            rotated.add(f"synthesis.layers.{index}.source.weight")
    return _with_weights(role, generator, saved, _generator_name, rotated)


def _discriminator(role: str, saved: SavedNetwork) -> Discriminator:
    """Convert an official discriminator."""
    discriminator = _without_weights(role, saved, "D_basic", Discriminator)
    return _with_weights(role, discriminator, saved, _discriminator_name)


def _without_weights(role: str, saved: SavedNetwork, func_name: str, make: Callable[..., Net]) -> Net:
    """Make our network with the sizes of an official one, on the meta device.

    Tensors take no memory there, whatever sizes the file asks for.
    """
    # Check that our networks support the arguments.
    if saved.func_name != func_name:
        raise StepError(f"{role}: built by {shown(saved.func_name)}; only StyleGAN v1's {func_name} can be imported")
    kwargs = _from_variables(saved.variables) | saved.kwargs
    for name, allowed in _SUPPORTED.items():
        if kwargs.get(name, allowed[0]) not in allowed:
            raise StepError(
                f"{role}: {name}={shown(kwargs[name])} has no counterpart here; allowed: {', '.join(map(str, allowed))}"
            )
    if kwargs.get("dlatent_size", kwargs.get("latent_size", 512)) != kwargs.get("latent_size", 512):
        raise StepError(
            f"{role}: dlatent_size={shown(kwargs['dlatent_size'])} differs from latent_size; here w is as long as z"
        )

    # Make the network.
    try:
        model = _model(kwargs)
        if model.mapping_layers > len(saved.variables) and func_name == "G_style":
            raise ValueError(f"mapping_layers={model.mapping_layers}, with {len(saved.variables)} variables")
        with torch.device("meta"):
            return make(
                model,
                resolution=int(kwargs["resolution"]),
                channels=int(kwargs["num_channels"]),
                num_labels=int(kwargs["label_size"]),
            )
    except (ValidationError, ValueError, TypeError, LookupError, RuntimeError, OverflowError) as error:
        reason = one_line(error, 200)
        raise StepError(
            f"{role}: cannot make a network from its arguments ({type(error).__name__}: {reason}); get the file again"
        ) from error


def _from_variables(variables: dict[str, np.ndarray]) -> dict[str, int]:
    """Infer the arguments that depend on the data from the shapes of the variables.

    They are used for a network that was built without these arguments; the official training always gives them.
    """
    shapes = {name: value.shape or (0,) for name, value in variables.items()}
    inferred: dict[str, int] = {}

    # The finest resolution.
    sides = [int(match[1]) for name in shapes if (match := re.match(r"(?:synthesis/)?(\d{1,4})x\1/", name))]
    if sides:
        inferred["resolution"] = max(sides)

    # Channels of the images, from toRGB of a generator or fromRGB of a discriminator.
    for name, axis in (("synthesis/ToRGB_lod0/weight", 3), ("FromRGB_lod0/weight", 2)):
        if len(shapes.get(name, ())) == 4:
            inferred["num_channels"] = shapes[name][axis]

    # Classes, from the label vectors of a generator or the logits of a discriminator.
    inferred["label_size"] = shapes.get("mapping/LabelConcat/weight", (0,))[0]
    outputs = shapes.get("4x4/Dense1/weight", (1,))[-1]
    if outputs > 1:
        inferred["label_size"] = outputs
    return inferred


def _model(kwargs: dict[str, Any]) -> ModelConfig:
    """Translate the official arguments into a model configuration."""
    given = {ours: kwargs[theirs] for theirs, ours in _FIELDS.items() if theirs in kwargs}
    filter_ = kwargs.get("blur_filter", [1, 2, 1])
    if filter_ and list(filter_) != [1, 2, 1]:
        raise ValueError(f"blur_filter={shown(filter_)} is neither [1, 2, 1] nor None")
    beta, mixing = kwargs.get("dlatent_avg_beta", 0.995), kwargs.get("style_mixing_prob", 0.9)
    return ModelConfig(
        **given,
        blur=bool(filter_),
        w_avg_beta=1.0 if beta is None else beta,
        style_mixing_prob=0.0 if mixing is None else mixing,
        mbstd_group=max(kwargs.get("mbstd_group_size", 4), 1),
        conditional=kwargs["label_size"] > 0,
    )


def _generator_name(ours: str, generator: nn.Module) -> str:
    """Return the official name of one of our generator's tensors."""
    assert isinstance(generator, Generator)
    assert isinstance(generator.synthesis, Synthesis)
    part, *rest = ours.split(".")
    if part == "w_avg":
        return "dlatent_avg"
    if part == "mapping":
        return "mapping/LabelConcat/weight" if rest == ["label_concat"] else f"mapping/Dense{rest[1]}/{rest[2]}"
    if len(rest) == 1:  # a noise buffer
        return f"synthesis/{rest[0]}"
    part, index, name = rest[0], int(rest[1]), ".".join(rest[2:])
    if part == "to_rgb":
        return f"synthesis/ToRGB_lod{len(generator.synthesis.to_rgb) - 1 - index}/{name}"
    return f"synthesis/{_layer_scope(index, generator.model)}/{_LAYER_NAMES.get(name, name)}"


def _layer_scope(index: int, model: ModelConfig) -> str:
    """Return the official scope of a synthesis layer."""
    if index == 0:
        return "4x4/Const" if model.const_input else "4x4/Dense"
    if index == 1:
        return "4x4/Conv"
    side = layer_resolution(index)
    return f"{side}x{side}/Conv1" if index % 2 else f"{side}x{side}/Conv0_up"


def _discriminator_name(ours: str, discriminator: nn.Module) -> str:
    """Return the official name of one of our discriminator's tensors."""
    assert isinstance(discriminator, Discriminator)
    part, layer, *rest = ours.split(".")
    if part == "head":
        return f"4x4/{layer.capitalize()}/{rest[0]}"
    if part == "from_rgb":
        return f"FromRGB_lod{len(discriminator.from_rgb) - 1 - int(layer)}/{rest[0]}"
    side = 8 << int(layer)
    return f"{side}x{side}/{rest[0].capitalize()}/{rest[1]}"


def _with_weights(
    role: str, network: Net, saved: SavedNetwork, name_of: Callable[[str, nn.Module], str], rotated: Iterable[str] = ()
) -> Net:
    """Give each tensor of a network on the meta device the value of its variable.

    Args:
        role: G, D or Gs, for the error message.
        network: our network.
        saved: the official network.
        name_of: returns the official name of one of our tensors.
        rotated: our names of the kernels to rotate by 180 degrees.

    Raises:
        StepError: a variable is missing, unknown or of another shape, or the network was still growing.
    """
    # Copy the variables.
    unused, tensors = dict(saved.variables), {}
    for ours, empty in network.state_dict().items():
        name = name_of(ours, network)
        tensor = _tensor(role, name, unused.pop(name, None), empty)
        tensors[ours] = tensor.flip(2, 3) if ours in rotated else tensor

    # Check that no variable remains and that the network is fully grown.
    lod = max(float(np.abs(unused.pop(name, 0)).max(initial=0)) for name in ("lod", "synthesis/lod"))
    if unused:
        name, value = next(iter(unused.items()))
        raise StepError(
            f"{role}: variable {shown(name)} of shape {list(value.shape)} "
            "belongs to no layer of StyleGAN v1 of these sizes"
        )
    if lod != 0:
        raise StepError(
            f"{role}: lod={lod:g}, a snapshot of a network that was still growing; give a later one, with lod=0"
        )
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def _tensor(role: str, name: str, value: np.ndarray | None, empty: Tensor) -> Tensor:
    """Return a variable in our order of dimensions, in single precision; it must fit our `empty` tensor."""
    axes = _official_axes(name, empty.ndim)
    expected = [0] * empty.ndim
    for our_axis, official_axis in enumerate(axes):
        expected[official_axis] = empty.shape[our_axis]
    if value is None:
        raise StepError(
            f"{role}: variable {name} of shape {expected} is missing; "
            "the file is damaged or not a StyleGAN v1 of these sizes"
        )
    if list(value.shape) != expected:
        raise StepError(
            f"{role}: variable {name} has shape {list(value.shape)}; the network's arguments ask for {expected}"
        )
    return torch.from_numpy(np.ascontiguousarray(value.transpose(axes), dtype=np.float32).copy())


def _official_axes(name: str, dims: int) -> tuple[int, ...]:
    """Return, for each of our dimensions, the official dimension that matches it.

    Official convolutions are [kh, kw, in, out] and dense layers [in, out]; everything else has our order.
    """
    is_kernel = name.endswith("/weight") and not name.endswith("LabelConcat/weight")
    if is_kernel and dims == 4:
        return (3, 2, 0, 1)
    if is_kernel and dims == 2:
        return (1, 0)
    return tuple(range(dims))
