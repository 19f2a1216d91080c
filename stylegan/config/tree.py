"""The whole config of a run: all sections, checked together as soon as it is made."""

from __future__ import annotations

from pydantic import model_validator

from stylegan.config.checks import check
from stylegan.config.sections import UncheckedConfig


class Config(UncheckedConfig):
    """The config of a run. Making one checks every value, and that the values fit together."""

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        check(self)
        return self
