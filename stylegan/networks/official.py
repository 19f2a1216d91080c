"""Weights of the official TensorFlow StyleGAN (v1) as our networks; `tf_pickle` reads the file.

The sizes come from the arguments that each network was built with (what is not among them has the official default, which is
that of `ModelConfig`). Then every variable must have the expected shape, every parameter gets one, and none may be left.
Stored weights are un-scaled on both sides, so values are copied; only the order of dimensions differs.
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
from stylegan.networks.generator import Generator, layer_resolution
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
# Official argument -> its values that our networks can express.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_wscale": (True,),
    "nonlinearity": ("lrelu",),
    "mapping_nonlinearity": ("lrelu",),
    "normalize_latents": (True,),
    "mbstd_num_features": (1,),
    "structure": ("auto", "linear", "recursive"),  # `fixed` has no toRGB and fromRGB but the last
    "fused_scale": ("auto", True, False),
    "num_channels": (1, 3),
    "resolution": RESOLUTIONS,
}


# Our name below a synthesis layer -> the official one below its scope; the rest is called the same.
_LEAVES = {
    "noise_weight": "Noise/weight",
    "style.weight": "StyleMod/weight",
    "style.bias": "StyleMod/bias",
    "source.const": "const",
    "source.weight": "weight",
    "source.dense.weight": "weight",
}


@dataclass(frozen=True)
class OfficialNetworks:
    """The networks of one official pickle, on the CPU, in eval mode, without gradients. `Gs` is the average of G."""

    Gs: Generator
    G: Generator | None
    D: Discriminator | None


def load_official(data: bytes) -> OfficialNetworks:
    """The networks of an official StyleGAN v1 pickle: any resolution, conditional or not, grey or RGB.

    Raises:
        StepError: no such file, a network that ours cannot express, or variables that do not fit; names what it is.
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
    generator = _blank(role, saved, "G_style", Generator)
    fused, turned = saved.kwargs.get("fused_scale", "auto"), set()
    for index, layer in enumerate(generator.synthesis.layers):
        officially = layer_resolution(index) >= FUSED_FROM if fused == "auto" else fused
        if isinstance(layer.source, UpConv) and layer.source.fused != officially:
            turned.add(
                f"synthesis.layers.{index}.source.weight"
            )  # the transposed convolution of w is the plain one of w rotated
    return _fill(role, generator, saved, _generator_name, turned)


def _discriminator(role: str, saved: SavedNetwork) -> Discriminator:
    return _fill(role, _blank(role, saved, "D_basic", Discriminator), saved, _discriminator_name)


def _blank(role: str, saved: SavedNetwork, func_name: str, kind: Callable[..., Net]) -> Net:
    """Our network of the sizes of an official one, on the meta device: there no size in a file can ask for memory."""
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
    try:
        model = _model(kwargs)
        if model.mapping_layers > len(saved.variables) and func_name == "G_style":
            raise ValueError(f"mapping_layers={model.mapping_layers}, with {len(saved.variables)} variables")
        shape = {"resolution": "resolution", "channels": "num_channels", "num_labels": "label_size"}
        with torch.device("meta"):
            return kind(model, **{ours: int(kwargs[theirs]) for ours, theirs in shape.items()})
    except (ValidationError, ValueError, TypeError, LookupError, RuntimeError, OverflowError) as error:
        reason = one_line(error, 200)
        raise StepError(
            f"{role}: its arguments make no network ({type(error).__name__}: {reason}); get the file again"
        ) from error


def _from_variables(variables: dict[str, np.ndarray]) -> dict[str, int]:
    """What depends on the data, for a network that was built without being told (the official training always tells)."""
    shapes = {name: value.shape or (0,) for name, value in variables.items()}
    found = {"label_size": shapes.get("mapping/LabelConcat/weight", (0,))[0]}
    sides = [int(match[1]) for name in shapes if (match := re.match(r"(?:synthesis/)?(\d{1,4})x\1/", name))]
    if sides:
        found["resolution"] = max(sides)
    for name, axis in (("synthesis/ToRGB_lod0/weight", 3), ("FromRGB_lod0/weight", 2)):
        if len(shapes.get(name, ())) == 4:
            found["num_channels"] = shapes[name][axis]
    outputs = shapes.get("4x4/Dense1/weight", (1,))[-1]
    return found | ({"label_size": outputs} if outputs > 1 else {})


def _model(kwargs: dict[str, Any]) -> ModelConfig:
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
    """The official name of one of our tensors."""
    assert isinstance(generator, Generator)
    part, *rest = ours.split(".")
    if part == "w_avg":
        return "dlatent_avg"
    if part == "mapping":
        return "mapping/LabelConcat/weight" if rest == ["label_concat"] else f"mapping/Dense{rest[1]}/{rest[2]}"
    if len(rest) == 1:  # a noise buffer
        return f"synthesis/{rest[0]}"
    kind, number, leaf = rest[0], int(rest[1]), ".".join(rest[2:])
    if kind == "to_rgb":
        return f"synthesis/ToRGB_lod{len(generator.synthesis.to_rgb) - 1 - number}/{leaf}"
    return f"synthesis/{_layer_scope(number, generator.model)}/{_LEAVES.get(leaf, leaf)}"


def _layer_scope(index: int, model: ModelConfig) -> str:
    side = layer_resolution(index)
    if index < 2:
        return f"4x4/{'Conv' if index else 'Const' if model.const_input else 'Dense'}"
    return f"{side}x{side}/{'Conv1' if index % 2 else 'Conv0_up'}"


def _discriminator_name(ours: str, discriminator: nn.Module) -> str:
    """The official name of one of our tensors."""
    assert isinstance(discriminator, Discriminator)
    part, number, *rest = ours.split(".")
    if part == "head":
        return f"4x4/{number.capitalize()}/{rest[0]}"
    if part == "from_rgb":
        return f"FromRGB_lod{len(discriminator.from_rgb) - 1 - int(number)}/{rest[0]}"
    side = 8 << int(number)
    return f"{side}x{side}/{rest[0].capitalize()}/{rest[1]}"


def _fill(
    role: str, network: Net, saved: SavedNetwork, name_of: Callable[[str, nn.Module], str], turned: Iterable[str] = ()
) -> Net:
    """Give each tensor of a network (on the meta device) its variable."""
    left, tensors = dict(saved.variables), {}
    for ours, blank in network.state_dict().items():
        name = name_of(ours, network)
        tensor = _tensor(role, name, left.pop(name, None), blank)
        tensors[ours] = tensor.flip(2, 3) if ours in turned else tensor
    lod = max(float(np.abs(left.pop(name, 0)).max(initial=0)) for name in ("lod", "synthesis/lod"))
    if left:
        name, value = next(iter(left.items()))
        raise StepError(
            f"{role}: variable {shown(name)} of shape {list(value.shape)} belongs to no layer of StyleGAN v1 of these sizes"
        )
    if lod != 0:
        raise StepError(
            f"{role}: lod={lod:g}, a snapshot of a network that was still growing; give a later one, with lod=0"
        )
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def _tensor(role: str, name: str, value: np.ndarray | None, blank: Tensor) -> Tensor:
    """A variable in our order of dimensions, single precision."""
    order = _order(name, blank.ndim)
    expected = [0] * blank.ndim
    for ours, theirs in enumerate(order):
        expected[theirs] = blank.shape[ours]
    if value is None:
        raise StepError(
            f"{role}: variable {name} of shape {expected} is missing; the file is damaged or no StyleGAN v1 of these sizes"
        )
    if list(value.shape) != expected:
        raise StepError(
            f"{role}: variable {name} has shape {list(value.shape)}; the network's arguments ask for {expected}"
        )
    return torch.from_numpy(np.ascontiguousarray(value.transpose(order), dtype=np.float32).copy())


def _order(name: str, dims: int) -> tuple[int, ...]:
    """Which official dimension each of ours is: convolutions are [kh, kw, in, out] there, dense layers [in, out]."""
    if name.endswith("/weight") and not name.endswith("LabelConcat/weight"):
        return {4: (3, 2, 0, 1), 2: (1, 0)}.get(dims, tuple(range(dims)))
    return tuple(range(dims))
