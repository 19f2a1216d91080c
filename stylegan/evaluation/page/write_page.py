"""A report in storage: reading it, its page, and which published figures stand beside it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.data.dataset_card import DatasetCard
from stylegan.evaluation.page.html import render
from stylegan.evaluation.page.published import Comparison, compare, dataset_of, row_names
from stylegan.evaluation.report import Report

PAGE = "report.html"
logger = logging.getLogger("stylegan")


def read_report(folder_uri: str) -> Report | None:
    """The report in a folder, with its figures as they lie beside it now; None if there is none."""
    try:
        report = Report.model_validate(storage.read_json(storage.join(folder_uri, "report.json")))
    except FileNotFoundError:
        return None
    figures = {
        name: storage.join(folder_uri, storage.name(uri)) for name, uri in report.figures.items()
    }  # the root may have moved
    return report.model_copy(update={"figures": figures})


def compare_published(report: Report, config: Config, num_images: int) -> list[Comparison]:
    """The published figures of the row that a config of configs/ablations/ repeats, of StyleGAN for any other.

    Args:
        num_images: of the data set, by which a public one is known.
    """
    match = re.fullmatch(r"table\d+-(.+)", config.name)
    row = match[1] if match and match[1] in row_names() else "f"
    return compare(report, row=row, dataset=dataset_of(config.data.source, num_images))


def write_page(
    report: Report,
    folder_uri: str,
    *,
    title: str,
    published: Sequence[Comparison] = (),
    facts: Mapping[str, str] | None = None,
    data: DatasetCard | None = None,
) -> str:
    """Write report.html, with the figures inside, unless it is there already; returns its URI.

    Args:
        title, published, facts, data: as for `html.render`.
    """
    uri = storage.join(folder_uri, PAGE)
    if not storage.exists(uri):
        page = render(report, images=_read_figures(report), published=published, title=title, facts=facts, data=data)
        storage.write_bytes(uri, page.encode())
    return uri


def _read_figures(report: Report) -> dict[str, bytes]:
    images = {}
    for name, uri in report.figures.items():
        try:
            images[name] = storage.read_bytes(uri)
        except FileNotFoundError:
            logger.warning("evaluate: figure %s is gone (%s); the page goes without it", name, uri)
    return images
