"""The whole config of a run: all sections, checked together as soon as it is made."""

from __future__ import annotations

from pydantic import PrivateAttr, model_validator

from stylegan.commands import shell_command
from stylegan.config.checks import check
from stylegan.config.sections import UncheckedConfig


class Config(UncheckedConfig):
    """The config of a run. Making one checks every value, and that the values fit together."""

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        check(self)
        return self

    # What names this config on a command line: its file and the --set options. Not a part of its value.
    _arguments: tuple[str, ...] = PrivateAttr(("CONFIG",))

    @property
    def is_named(self) -> bool:
        """Whether it is known by which file and options a command line calls it."""
        return self._arguments != ("CONFIG",)

    def command(self, *verb: str) -> str:
        """Return the shell command that runs a verb, with its options, on this config: `stylegan train run.yaml`."""
        return shell_command("stylegan", *verb, *self._arguments)

    def __eq__(self, other: object) -> bool:
        """Compare values; where a config was read from does not matter."""
        return isinstance(other, Config) and self.model_dump() == other.model_dump()
