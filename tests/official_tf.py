"""The official StyleGAN as formulas and as pickles, a reference for the import of official networks.

The formulas are plain sums in double precision, in TensorFlow's layouts. They use none of the product's code. The
pickles have the official file format.
"""

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

SQRT2 = 2**0.5
TINY = {"latent_size": 6, "dlatent_size": 6, "mapping_layers": 2, "mapping_fmaps": 5, "fmap_max": 4}
DEFAULTS = {
    "label_size": 0,
    "fmap_decay": 1.0,
    "mapping_lrmul": 0.01,
    "use_styles": True,
    "const_input_layer": True,
    "use_noise": True,
    "use_pixel_norm": False,
    "use_instance_norm": True,
    "fused_scale": "auto",
    "blur_filter": [1, 2, 1],
    "mbstd_group_size": 4,
}


def arguments(resolution: int, channels: int = 3, **more: object) -> dict:
    """Return the arguments that the official training gives to its networks, with tiny layers."""
    return {
        "num_channels": channels,
        "resolution": resolution,
        "label_size": 0,
        "fmap_base": 4 * resolution,
        **TINY,
        **more,
    }


def _nf(a: dict, stage: int) -> int:
    """Return the number of channels at a stage."""
    return min(int(a["fmap_base"] / 2 ** (stage * a["fmap_decay"])), a["fmap_max"])


def _sides(a: dict) -> list[int]:
    """Return all resolutions, coarsest first."""
    return [4 << i for i in range(int(np.log2(a["resolution"])) - 1)]


def _random(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def generator_variables(given: dict, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Return random variables of G_style (under ""), of its mapping and of its synthesis network."""
    a = DEFAULTS | given
    latent, w = a["latent_size"], a["dlatent_size"]

    # Mapping network.
    mapping: dict[str, tuple[int, ...]] = {"LabelConcat/weight": (a["label_size"], latent)} if a["label_size"] else {}
    width = latent * (2 if a["label_size"] else 1)
    for i in range(a["mapping_layers"]):
        out = w if i == a["mapping_layers"] - 1 else a["mapping_fmaps"]
        mapping |= {f"Dense{i}/weight": (width, out), f"Dense{i}/bias": (out,)}
        width = out

    # Synthesis network: two layers per resolution, then the toRGB layers, finest first.
    synthesis: dict[str, tuple[int, ...]] = {}
    for index, side in enumerate(s for s in _sides(a) for _ in range(2)):
        scope, shape = _layer(a, index, side)
        nf = _nf(a, int(np.log2(side)) - 1)
        synthesis |= {f"{scope}/{'const' if scope == '4x4/Const' else 'weight'}": shape, f"{scope}/bias": (nf,)}
        if a["use_noise"]:
            synthesis |= {f"noise{index}": (1, 1, side, side), f"{scope}/Noise/weight": (nf,)}
        if a["use_styles"]:
            synthesis |= {f"{scope}/StyleMod/weight": (w, 2 * nf), f"{scope}/StyleMod/bias": (2 * nf,)}
    for lod, side in enumerate(reversed(_sides(a))):
        nf = _nf(a, int(np.log2(side)) - 1)
        synthesis |= {
            f"ToRGB_lod{lod}/weight": (1, 1, nf, a["num_channels"]),
            f"ToRGB_lod{lod}/bias": (a["num_channels"],),
        }

    lod0 = {"lod": np.float32(0)}  # a scalar, not an array, as TensorFlow returns it
    return {
        "": lod0 | _random({"dlatent_avg": (w,)}, seed),
        "mapping": _random(mapping, seed + 1),
        "synthesis": lod0 | _random(synthesis, seed + 2),
    }


def _layer(a: dict, index: int, side: int) -> tuple[str, tuple[int, ...]]:
    """Return the scope of a synthesis layer, and the shape of its const or weight."""
    nf = _nf(a, int(np.log2(side)) - 1)
    if index == 0:
        return ("4x4/Const", (1, nf, 4, 4)) if a["const_input_layer"] else ("4x4/Dense", (a["dlatent_size"], nf * 16))
    if index == 1:
        return "4x4/Conv", (3, 3, nf, nf)
    if index % 2:
        return f"{side}x{side}/Conv1", (3, 3, nf, nf)
    return f"{side}x{side}/Conv0_up", (3, 3, _nf(a, int(np.log2(side)) - 2), nf)


def discriminator_variables(given: dict, seed: int = 3) -> dict[str, np.ndarray]:
    """Return random variables of D_basic."""
    a = DEFAULTS | given
    nf1, nf0 = _nf(a, 1), _nf(a, 0)
    extra, outputs = int(a["mbstd_group_size"] > 1), max(a["label_size"], 1)
    shapes: dict[str, tuple[int, ...]] = {
        "4x4/Conv/weight": (3, 3, nf1 + extra, nf1),
        "4x4/Conv/bias": (nf1,),
        "4x4/Dense0/weight": (nf1 * 16, nf0),
        "4x4/Dense0/bias": (nf0,),
        "4x4/Dense1/weight": (nf0, outputs),
        "4x4/Dense1/bias": (outputs,),
    }
    for lod, side in enumerate(reversed(_sides(a))):
        stage = int(np.log2(side)) - 1
        nf = _nf(a, stage)
        shapes |= {f"FromRGB_lod{lod}/weight": (1, 1, a["num_channels"], nf), f"FromRGB_lod{lod}/bias": (nf,)}
        if side > 4:
            below, scope = _nf(a, stage - 1), f"{side}x{side}"
            shapes |= {f"{scope}/Conv0/weight": (3, 3, nf, nf), f"{scope}/Conv0/bias": (nf,)}
            shapes |= {f"{scope}/Conv1_down/weight": (3, 3, nf, below), f"{scope}/Conv1_down/bias": (below,)}
    return {"lod": np.float32(0)} | _random(shapes, seed)


# The formulas. Images are [N, C, H, W], kernels [kh, kw, in, out], dense weights [in, out].


def correlate(x: np.ndarray, kernel: np.ndarray, *, stride: int = 1, pad: int) -> np.ndarray:
    """Correlate with zero padding.

    out[y, x] = sum over a, b of in[stride y + a - pad, stride x + b - pad] kernel[a, b].
    """
    side = (x.shape[2] + 2 * pad - len(kernel)) // stride + 1
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((len(x), kernel.shape[3], side, side))
    for a in range(len(kernel)):
        for b in range(len(kernel)):
            seen = padded[:, :, a : a + side * stride : stride, b : b + side * stride : stride]
            out += np.einsum("nihw,io->nohw", seen, kernel[a, b])
    return out


def scatter(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Compute conv2d_transpose with stride 2 and SAME: out[2 y + a - 1, 2 x + b - 1] += in[y, x] kernel[a, b].

    This is the adjoint of `correlate`.
    """
    side = 2 * x.shape[2]
    canvas = np.zeros((len(x), kernel.shape[3], side + 2, side + 2))
    for a in range(4):
        for b in range(4):
            canvas[:, :, a : a + side : 2, b : b + side : 2] += np.einsum("nihw,io->nohw", x, kernel[a, b])
    return canvas[:, :, 1:-1, 1:-1]


def four_shifts(kernel: np.ndarray) -> np.ndarray:
    """Add up the four shifts of a kernel by one pixel."""
    wide = np.pad(kernel, ((1, 1), (1, 1), (0, 0), (0, 0)))
    return wide[1:, 1:] + wide[:-1, 1:] + wide[1:, :-1] + wide[:-1, :-1]


def _double(x: np.ndarray, times: int = 2) -> np.ndarray:
    """Enlarge images by nearest neighbour."""
    return x.repeat(times, 2).repeat(times, 3)


def _halve(x: np.ndarray) -> np.ndarray:
    """Take the mean of each 2x2 block."""
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def _blur(a: dict, x: np.ndarray) -> np.ndarray:
    if not a["blur_filter"]:
        return x
    taps = np.outer([1, 2, 1], [1, 2, 1]) / 16
    return correlate(x, taps[:, :, None, None] * np.eye(x.shape[1]), pad=1)


def _lrelu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.2 * x)


def _pixel_norm(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-8)


def _scaled(kernel: np.ndarray, gain: float = SQRT2) -> np.ndarray:
    """Return the weight as it is used, with the factor of the equalised learning rate."""
    return kernel * gain / np.sqrt(np.prod(kernel.shape[:-1]))


def _wide(variables: dict) -> dict[str, np.ndarray]:
    """Return variables in double precision."""
    return {name: np.asarray(value, np.float64) for name, value in variables.items()}


def _fused(a: dict, side: int) -> bool:
    """Return whether resampling is fused with the convolution at this resolution, that of the finer images."""
    return side >= 128 if a["fused_scale"] == "auto" else a["fused_scale"]


def _bias(x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return x + bias.reshape((1, -1) + (1,) * (x.ndim - 2))


def map_latents(given: dict, v: dict[str, dict], z: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Compute w by G_mapping, without the broadcast to all layers."""
    a, v = DEFAULTS | given, _wide(v["mapping"])
    x = z if labels is None else np.concatenate([z, np.eye(a["label_size"])[labels] @ v["LabelConcat/weight"]], 1)
    x = _pixel_norm(x)
    for i in range(a["mapping_layers"]):
        x = _lrelu(x @ _scaled(v[f"Dense{i}/weight"]) * a["mapping_lrmul"] + v[f"Dense{i}/bias"] * a["mapping_lrmul"])
    return x


def generate(
    given: dict, v: dict[str, dict], z: np.ndarray, *, labels: np.ndarray | None = None, psi: float = 1, lod: float = 0
) -> np.ndarray:
    """Compute images by G_style with stored noise and truncation of the first 8 layers; 0 <= lod < 1."""
    a, s = DEFAULTS | given, _wide(v["synthesis"])
    w = map_latents(given, v, z, labels)
    w_avg = v[""]["dlatent_avg"].astype(np.float64)
    image = None
    x: np.ndarray = np.zeros(0)
    for index, side in enumerate(s_ for s_ in _sides(a) for _ in range(2)):
        scope, _ = _layer(a, index, side)
        style = w_avg + (psi if index < 8 else 1) * (w - w_avg)

        # Input or convolution.
        if index == 0 and a["const_input_layer"]:
            x = s["4x4/Const/const"].repeat(len(z), 0)
        elif index == 0:
            x = (style @ _scaled(s["4x4/Dense/weight"], SQRT2 / 4)).reshape(len(z), -1, 4, 4)
        elif "Conv0_up" in scope:
            kernel = _scaled(s[f"{scope}/weight"])
            x = scatter(x, four_shifts(kernel)) if _fused(a, side) else correlate(_double(x), kernel, pad=1)
            x = _blur(a, x)
        else:
            x = correlate(x, _scaled(s[f"{scope}/weight"]), pad=1)
        x = _epilogue(a, s, scope, index, x, style)

        # After the second layer of a resolution: toRGB, faded with the coarser image.
        if index % 2:
            level = int(np.log2(a["resolution"] // side))
            fine = _bias(correlate(x, _scaled(s[f"ToRGB_lod{level}/weight"], 1), pad=0), s[f"ToRGB_lod{level}/bias"])
            image = fine if image is None else fine + (_double(image) - fine) * np.clip(lod - level, 0, 1)
    assert image is not None
    return image


def _epilogue(a: dict, s: dict, scope: str, index: int, x: np.ndarray, style: np.ndarray) -> np.ndarray:
    """Apply noise, bias, activation, normalisation and style."""
    if a["use_noise"]:
        x = x + s[f"noise{index}"] * s[f"{scope}/Noise/weight"].reshape(1, -1, 1, 1)
    x = _lrelu(_bias(x, s[f"{scope}/bias"]))
    if a["use_pixel_norm"]:
        x = _pixel_norm(x)
    if a["use_instance_norm"]:
        x = x - x.mean((2, 3), keepdims=True)
        x = x / np.sqrt((x**2).mean((2, 3), keepdims=True) + 1e-8)
    if a["use_styles"]:
        y = style @ _scaled(s[f"{scope}/StyleMod/weight"], 1) + s[f"{scope}/StyleMod/bias"]
        y = y.reshape(len(x), 2, -1, 1, 1)
        x = x * (y[:, 0] + 1) + y[:, 1]
    return x


def score(
    given: dict, v: dict[str, np.ndarray], images: np.ndarray, *, labels: np.ndarray | None = None, lod: float = 0
) -> np.ndarray:
    """Compute scores [N] by D_basic; 0 <= lod < 1, N a multiple of the group of the mini-batch standard deviation."""
    a, v = DEFAULTS | given, _wide(v)

    def conv(x: np.ndarray, scope: str) -> np.ndarray:
        kernel = v[f"{scope}/weight"]
        return _lrelu(_bias(correlate(x, _scaled(kernel), pad=len(kernel) // 2), v[f"{scope}/bias"]))

    # Blocks, finest first.
    x = conv(images, "FromRGB_lod0")
    for side in reversed(_sides(a)[1:]):
        x = _blur(a, conv(x, f"{side}x{side}/Conv0"))
        kernel = _scaled(v[f"{side}x{side}/Conv1_down/weight"])
        x = (
            correlate(x, four_shifts(kernel) / 4, stride=2, pad=1)
            if _fused(a, side)
            else _halve(correlate(x, kernel, pad=1))
        )
        x = _lrelu(_bias(x, v[f"{side}x{side}/Conv1_down/bias"]))
        if side == a["resolution"] and lod:
            x = x + (conv(_halve(images), "FromRGB_lod1") - x) * lod

    # Mini-batch standard deviation.
    if a["mbstd_group_size"] > 1:
        group = min(a["mbstd_group_size"], len(x))
        deviation = np.sqrt(x.reshape(group, -1, *x.shape[1:]).var(0) + 1e-8).mean((1, 2, 3))
        x = np.concatenate([x, np.tile(deviation, group).reshape(-1, 1, 1, 1) * np.ones((1, 1, 4, 4))], 1)

    # The 4x4 block.
    x = conv(x, "4x4/Conv").reshape(len(x), -1)
    x = _lrelu(x @ _scaled(v["4x4/Dense0/weight"]) + v["4x4/Dense0/bias"])
    x = x @ _scaled(v["4x4/Dense1/weight"], 1) + v["4x4/Dense1/bias"]
    return x[:, 0] if labels is None else x[np.arange(len(x)), labels]


# The files.


@contextmanager
def dnnlib() -> Iterator[types.SimpleNamespace]:
    """Make the classes that official pickles name importable, while a pickle is written."""

    class Network:
        def __init__(self, state: dict) -> None:
            self.state = state

        def __getstate__(self) -> dict:
            return self.state

    class EasyDict(dict):
        pass

    names = {"dnnlib": None, "dnnlib.tflib": None, "dnnlib.tflib.network": Network, "dnnlib.util": EasyDict}
    for name, member in names.items():
        sys.modules[name] = types.ModuleType(name)
        if member is not None:
            member.__module__, member.__qualname__ = name, member.__name__
            setattr(sys.modules[name], member.__name__, member)
    try:
        yield types.SimpleNamespace(Network=Network, EasyDict=EasyDict)
    finally:
        for name in names:
            del sys.modules[name]


def state(name: str, func_name: str, kwargs: dict, variables: dict, **more: object) -> dict:
    """Return the state that a network of version 3 pickles."""
    return {
        "version": 3,
        "name": name,
        "static_kwargs": kwargs,
        "components": {},
        "build_module_src": "raise SystemExit('the source in a pickle was run')\n",
        "build_func_name": func_name,
        "variables": list(variables.items()),
        **more,
    }


def write(given: dict, *, protocol: int = 4, seed: int = 0, change=None, pack=tuple) -> bytes:
    """Return the pickle (G, D, Gs) of random networks.

    Args:
        given: arguments of the networks.
        protocol: version of the pickle format.
        seed: seed of Gs; G has another one.
        change: called with the three states {"G": ..., "D": ..., "Gs": ...} before they are pickled.
        pack: called with the networks G, D, Gs in a list; its result is pickled.
    """
    with dnnlib() as names:

        def generator(name: str, seed: int) -> dict:
            parts = generator_variables(given, seed)
            inner = {
                part: names.Network(state(f"{name}_{part}", f"G_{part}", names.EasyDict(given), parts[part]))
                for part in ("mapping", "synthesis")
            }
            return state(name, "G_style", names.EasyDict(given), parts[""], components=inner)

        states = {
            "G": generator("G", seed + 10),
            "D": state("D", "D_basic", dict(given), discriminator_variables(given)),
            "Gs": generator("Gs", seed),
        }
        if change:
            change(states)
        return pickle.dumps(pack([names.Network(content) for content in states.values()]), protocol=protocol)
