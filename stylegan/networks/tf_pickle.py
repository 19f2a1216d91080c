"""Reading of the official network pickles as plain data, without TensorFlow and without running anything in them.

A pickle is a program that calls the functions it names. Here each allowed name is mapped to an inert class or function
of this file, which only stores its arguments, and every other name is refused. So neither the pickle nor the Python
source inside the official networks (`build_module_src`) is ever run.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from stylegan.errors import StepError, one_line

FORMAT_VERSIONS = (2, 3)  # versions of the state that dnnlib.tflib.network.Network writes; StyleGAN writes 3
ROLES = ("G", "D", "Gs")


@dataclass(frozen=True)
class SavedNetwork:
    """One official network; the variables of its components are called `mapping/...` and `synthesis/...`."""

    func_name: str
    kwargs: dict[str, Any]
    variables: dict[str, np.ndarray]


def read_networks(data: bytes) -> dict[str, SavedNetwork]:
    """Read the networks of an official pickle by role: G, D and Gs (the average of G).

    Args:
        data: a pickled tuple (G, D, Gs), a dict with these keys, or a single network (a generator then counts as Gs).

    Raises:
        StepError: the pickle is damaged, is of another kind or names something that is not allowed.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        return {role: _network(role, value) for role, value in _roles(content).items()}
    except StepError:
        raise
    except Exception as error:  # damaged pickles raise nearly everything
        reason = one_line(error, 200)
        raise StepError(
            f"these {len(data)} bytes are not an official network pickle or are cut short ({reason}); "
            "get the file again"
        ) from error


def shown(value: object) -> str:
    """Format a value from a file for an error message: one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Network:
    """Inert replacement of `dnnlib.tflib.network.Network`; it stores the state that the network wrote."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dict(dict):
    """Inert replacement of `dnnlib.util.EasyDict` and `collections.OrderedDict`."""

    def __setstate__(self, state: Any) -> None:
        pass


class _DType:
    """Inert replacement of `numpy.dtype` that allows plain numbers only."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[fiu][1248]|b1", code):
            raise StepError(f"numpy type {shown(code)} in the pickle: networks hold plain numbers only")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1] if state[1] in "<>" else "=")


class _Array:
    """Inert replacement of `numpy.ndarray`; `value` is the real array."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _decode(raw, dtype, shape, "F" if fortran else "C")


def _decode(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Return the array with these raw bytes, or raise StepError if they do not match its type and shape."""
    if not isinstance(dtype, _DType):
        raise StepError(f"numpy type {shown(dtype)} in the pickle: networks hold plain numbers only")
    data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    # This check also limits memory: an array never takes more than the file has bytes.
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise StepError(
            f"an array of shape {shown(shape)} in the pickle has {len(data)} bytes; the file is damaged, get it again"
        )
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(subtype: Any, shape: Any, typecode: Any) -> _Array:
    """Replace `numpy.core.multiarray._reconstruct`."""
    return _Array()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Replace `numpy.core.numeric._frombuffer`."""
    array = _Array()
    array.value = _decode(raw, dtype, shape, order)
    return array


def _scalar(dtype: Any, raw: Any) -> int | float | bool:
    """Replace `numpy.core.multiarray.scalar`."""
    return _decode(raw, dtype, (), "C").item()


def _encode(text: Any, encoding: Any) -> bytes:
    """Replace `_codecs.encode`, for latin1 only."""
    if encoding != "latin1":
        raise StepError(
            f"text encoding {shown(encoding)} in the pickle: only latin1, the encoding of arrays, is allowed"
        )
    return text.encode("latin1")


# (module, name) in a pickle -> its replacement.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("dnnlib.tflib.network", "Network"): _Network,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("dnnlib", "EasyDict"): _Dict,
    ("collections", "OrderedDict"): _Dict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
}
for _core in ("core", "_core"):  # numpy 1 and numpy 2
    _ALLOWED[f"numpy.{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[f"numpy.{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"numpy.{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    """An unpickler that finds only the replacements of this file."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise StepError(
                f"the pickle names {shown(f'{module_name}.{global_name}')}, which no StyleGAN v1 network needs: "
                "it is another kind of file or a malicious one, and nothing in it was run; "
                "give an official StyleGAN v1 .pkl"
            )
        return _ALLOWED[module_name, global_name]


def _roles(content: Any) -> dict[str, Any]:
    """Return the networks of an unpickled file by role."""
    if isinstance(content, _Network) and isinstance(content.state, dict):
        return {"D" if content.state.get("build_func_name") == "D_basic" else "Gs": content}
    if isinstance(content, tuple | list) and len(content) == len(ROLES):
        return dict(zip(ROLES, content, strict=True))
    if isinstance(content, dict) and content and set(content) <= set(ROLES):
        return dict(content)
    description = type(content).__name__.lstrip("_")
    if isinstance(content, tuple | list | dict):
        description += f" of {len(content)}"
    raise StepError(
        f"the pickle holds a {description}; give an official StyleGAN v1 .pkl, which holds the networks (G, D, Gs)"
    )


def _network(role: str, network: Any) -> SavedNetwork:
    """Check the state that a network wrote, and merge its components into it."""
    state = _state(role, network)
    variables = _variables(role, state)
    kwargs: dict[str, Any] = {}
    for name, component in (state.get("components") or {}).items():
        inner = _state(f"{role}.{shown(name)}", component)
        variables |= {f"{name}/{key}": value for key, value in _variables(f"{role}.{name}", inner).items()}
        kwargs |= inner["static_kwargs"]
    # A network passes its own arguments to its components when it runs, so they override the components' arguments.
    return SavedNetwork(
        func_name=str(state["build_func_name"]), kwargs=kwargs | state["static_kwargs"], variables=variables
    )


def _state(role: str, network: Any) -> dict[str, Any]:
    """Return the state that a network wrote, or raise StepError if its version is not supported."""
    if not isinstance(network, _Network) or not isinstance(network.state, dict):
        raise StepError(
            f"{role}: is not a network but {shown(type(network).__name__)}; give an official StyleGAN v1 .pkl"
        )
    version = network.state.get("version")
    if version not in FORMAT_VERSIONS:
        raise StepError(
            f"{role}: version {shown(version)} of the network format; "
            "StyleGAN v1 wrote 2 and 3 (4 and above are StyleGAN2's)"
        )
    return network.state


def _variables(role: str, state: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the variables of a state by name, or raise StepError if one is damaged."""
    variables = {}
    for name, value in state["variables"]:
        array = None
        if isinstance(value, _Array):
            array = value.value
        elif isinstance(value, int | float):
            array = np.asarray(value)
        if not isinstance(name, str) or array is None:
            raise StepError(
                f"{role}: variable {shown(name)} is not an array of numbers; the file is damaged, get it again"
            )
        if name in variables:
            raise StepError(f"{role}: variable {shown(name)} occurs twice; the file is damaged, get it again")
        variables[name] = array
    return variables
