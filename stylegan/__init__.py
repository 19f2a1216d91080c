"""The library. `stylegan.__version__` is the version of the installed package."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Look the version up when it is first asked for, which takes a moment that no import should wait for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("stylegan-pipeline")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
