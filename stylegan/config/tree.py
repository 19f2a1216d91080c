"""The whole config: its sections, checked as soon as they are together."""

from __future__ import annotations

from pydantic import model_validator

from stylegan.config.checks import check
from stylegan.config.sections import UncheckedConfig


class Config(UncheckedConfig):
    """A whole run. Making one checks every value and whether the values fit together."""

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        check(self)
        return self
