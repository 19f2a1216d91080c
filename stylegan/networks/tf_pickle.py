"""Network pickles of the official TensorFlow code, read as plain data: without TensorFlow, and without running anything.

A pickle is a program that calls what it names. Each name allowed here stands for an inert class or function of this file that
only keeps what it is given, and every other name is refused. So neither the pickle nor the Python source that the official
networks carry along (`build_module_src`) can act.
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

VERSIONS = (2, 3)  # of the state that dnnlib.tflib.network.Network writes; StyleGAN writes 3
ROLES = ("G", "D", "Gs")


@dataclass(frozen=True)
class SavedNetwork:
    """One official network. The variables of its components are called `mapping/...` and `synthesis/...`."""

    func_name: str
    kwargs: dict[str, Any]
    variables: dict[str, np.ndarray]


def read_networks(data: bytes) -> dict[str, SavedNetwork]:
    """The networks of an official pickle by role: G, D and Gs (the average of G).

    Args:
        data: a pickled tuple (G, D, Gs), a dict with such keys, or one network (a generator then counts as Gs).

    Raises:
        StepError: damaged, another kind of pickle, or one that names anything that is not allowed.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        return {role: _network(role, stub) for role, stub in _roles(content).items()}
    except StepError:
        raise
    except Exception as error:  # damaged pickles raise nearly everything
        reason = one_line(error, 200)
        raise StepError(
            f"these {len(data)} bytes are no official network pickle, or cut short ({reason}); get the file again"
        ) from error


def shown(value: object) -> str:
    """A value from a file as part of a message: one line, not long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Network:
    """Stands for `dnnlib.tflib.network.Network`."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dict(dict):
    """Stands for `dnnlib.util.EasyDict` and `collections.OrderedDict`."""

    def __setstate__(self, state: Any) -> None:
        pass


class _DType:
    """Stands for `numpy.dtype`: plain numbers only."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[fiu][1248]|b1", code):
            raise StepError(f"numpy type {shown(code)} in the pickle: networks hold plain numbers only")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1] if state[1] in "<>" else "=")


class _Array:
    """Stands for `numpy.ndarray`."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        self.value = _decode(raw, kind, shape, "F" if fortran else "C")


def _decode(raw: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(kind, _DType):
        raise StepError(f"numpy type {shown(kind)} in the pickle: networks hold plain numbers only")
    data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    # With the shape checked by its size no file can ask for more memory than it has bytes.
    if math.prod(shape) * kind.dtype.itemsize != len(data):
        raise StepError(
            f"an array of shape {shown(shape)} in the pickle has {len(data)} bytes; the file is damaged, get it again"
        )
    return np.frombuffer(data, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(subtype: Any, shape: Any, typecode: Any) -> _Array:
    return _Array()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _decode(raw, kind, shape, order)
    return array


def _scalar(kind: Any, raw: Any) -> int | float | bool:
    return _decode(raw, kind, (), "C").item()


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise StepError(
            f"text encoding {shown(encoding)} in the pickle: only latin1, which arrays are written with, is allowed"
        )
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("dnnlib.tflib.network", "Network"): _Network,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("dnnlib", "EasyDict"): _Dict,
    ("collections", "OrderedDict"): _Dict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
}
for _core in ("core", "_core"):  # before and since numpy 2
    _ALLOWED[f"numpy.{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[f"numpy.{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"numpy.{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise StepError(
                f"the pickle names {shown(f'{module_name}.{global_name}')}, which no StyleGAN v1 network needs: it is another kind of "
                "file or a malicious one, and nothing of it was run; give an official StyleGAN v1 .pkl"
            )
        return _ALLOWED[module_name, global_name]


def _roles(content: Any) -> dict[str, Any]:
    if isinstance(content, _Network) and isinstance(content.state, dict):
        return {"D" if content.state.get("build_func_name") == "D_basic" else "Gs": content}
    if isinstance(content, tuple | list) and len(content) == len(ROLES):
        return dict(zip(ROLES, content, strict=True))
    if isinstance(content, dict) and content and set(content) <= set(ROLES):
        return dict(content)
    what = (
        f"{type(content).__name__} of {len(content)}"
        if isinstance(content, tuple | list | dict)
        else type(content).__name__
    )
    raise StepError(
        f"the pickle holds a {what.lstrip('_')}; give an official StyleGAN v1 .pkl, which holds the networks (G, D, Gs)"
    )


def _network(role: str, stub: Any) -> SavedNetwork:
    """Check the state that a network wrote and lay its components out flat."""
    state = _state(role, stub)
    variables = _variables(role, state)
    kwargs: dict[str, Any] = {}
    for name, component in (state.get("components") or {}).items():
        inner = _state(f"{role}.{shown(name)}", component)
        variables |= {f"{name}/{key}": value for key, value in _variables(f"{role}.{name}", inner).items()}
        kwargs |= inner["static_kwargs"]
    # The whole network hands its own arguments down when it runs, so they count more than those of its components.
    return SavedNetwork(
        func_name=str(state["build_func_name"]), kwargs=kwargs | state["static_kwargs"], variables=variables
    )


def _state(role: str, stub: Any) -> dict[str, Any]:
    if not isinstance(stub, _Network) or not isinstance(stub.state, dict):
        raise StepError(f"{role}: is no network but {shown(type(stub).__name__)}; give an official StyleGAN v1 .pkl")
    version = stub.state.get("version")
    if version not in VERSIONS:
        raise StepError(
            f"{role}: version {shown(version)} of the network format; StyleGAN v1 wrote 2 and 3 (4 and above are StyleGAN2's)"
        )
    return stub.state


def _variables(role: str, state: dict[str, Any]) -> dict[str, np.ndarray]:
    found = {}
    for name, value in state["variables"]:
        array = (
            value.value if isinstance(value, _Array) else np.asarray(value) if isinstance(value, int | float) else None
        )
        if not isinstance(name, str) or array is None:
            raise StepError(f"{role}: variable {shown(name)} is no array of numbers; the file is damaged, get it again")
        if name in found:
            raise StepError(f"{role}: variable {shown(name)} is there twice; the file is damaged, get it again")
        found[name] = array
    return found
