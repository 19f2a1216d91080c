"""Find the templates of this folder. All pages extend base.html.j2, which has their style, and draw with macros.html.j2."""

from __future__ import annotations

import functools
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template

from stylegan.evaluation.page.metric_rows import number


def template(name: str) -> Template:
    """Return a template of this folder by the name of its file. It escapes every string that it is given.

    Those that extend base.html.j2 need `title`, `facts` (more lines for the head, by their names; may be empty) and
    `page_format` (of which version the page is).
    """
    return _environment().get_template(name)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = number
    return environment


def _source(name: str) -> str:
    return files("stylegan.evaluation.page").joinpath(name).read_text(encoding="utf-8")
