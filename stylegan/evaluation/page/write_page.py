"""Read a report from storage, compare it with published figures, and write its page beside it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.data.dataset_card import DatasetCard
from stylegan.evaluation.page.html import RunParts, page_format, render
from stylegan.evaluation.page.published import Comparison, compare, dataset_of, row_names
from stylegan.evaluation.report import Report

PAGE, REPORT, GROWTH = "report.html", "report.json", "growth.webp"
HEAD = 1024  # bytes at the start of a page, which hold its format
REPORT_CURE = "delete it and run the same command again, which measures again"
logger = logging.getLogger("stylegan")


def read_report(folder_uri: str) -> Report | None:
    """Return the report of a folder, with the present URIs of its figures; None if the folder has no report.

    Raises:
        DamagedError: the report is not what was written there.
    """
    try:
        report = storage.read_json(storage.join(folder_uri, REPORT), Report, cure=REPORT_CURE)
    except FileNotFoundError:
        return None
    # The storage root may have moved since; the figures are in the report's folder.
    figures = {name: storage.join(folder_uri, storage.name(uri)) for name, uri in report.figures.items()}
    return report.model_copy(update={"figures": figures})


def compare_published(report: Report, config: Config, num_images: int) -> list[Comparison]:
    """Compare a report with the published figures of its config.

    A config of configs/ablations/, and a run of `stylegan ablation`, repeats one row of the paper's tables and is compared
    with that row. Any other config is compared with StyleGAN; one of SS-GAN's networks with the row of SS-GAN that it
    is, if it is one.

    Args:
        report: the report.
        config: its name gives the row, its data source the data set.
        num_images: size of the data set; with the source it identifies a public one.
    """
    dataset = dataset_of(config.data.source, num_images)
    if config.model.is_resnet:
        row = _row_of_ssgan(config)
        return compare(report, row=row, dataset=dataset) if row else []
    match = re.fullmatch(r"(?:.+-)?table\d+-(.+)", config.name)
    row = match[1] if match and match[1] in row_names() else "f"
    return compare(report, row=row, dataset=dataset)


def _row_of_ssgan(config: Config) -> str | None:
    """Return the row of the SS-GAN paper that a config of its networks repeats; None if it is none of them."""
    model, rotation = config.model, config.training.rotation
    rows = {
        ("batch", False, False): "gan",
        ("batch", False, True): "ssgan",
        ("self_modulated", False, True): "ssgan-sbn",
        ("conditional_batch", True, False): "conditional",
    }
    if rotation and (rotation.only or rotation.decay_kimg):
        return None
    return rows.get((model.norm_used, model.conditional, rotation is not None))


def write_page(
    report: Report,
    folder_uri: str,
    *,
    title: str,
    published: Sequence[Comparison] = (),
    facts: Mapping[str, str] | None = None,
    data: DatasetCard | None = None,
    told: Callable[[], RunParts] | None = None,
    key: str = "",
    anew: bool = False,
) -> str:
    """Write report.html with the figures inside, unless it exists already, and return its URI.

    The page of a run also shows the animation growth.webp of the same folder, if there is one. A page of another format
    is written again, if all of its figures still exist.

    Args:
        report: the report, with the URIs of its figures.
        folder_uri: the folder for the page.
        title, published, facts, data: as for `html.render`.
        told: makes what the page of a run has beside its report, where the page is written.
        key: of the story that the page must tell, `Story.key`; empty: whatever the page tells is right.
        anew: the report has just been made, so a page that exists is that of another one and is replaced.
    """
    uri = storage.join(folder_uri, PAGE)
    if anew or not storage.exists(uri) or (_outdated(uri, key) and not missing_figures(report)):
        page = render(
            report,
            images=_read_figures(report),
            growth=_read_growth(folder_uri),
            published=published,
            title=title,
            facts=facts,
            data=data,
            told=told() if told else None,
        )
        storage.write_bytes(uri, page.encode(errors="backslashreplace"))
    return uri


def _outdated(page_uri: str, key: str) -> bool:
    """Return whether a page has another format than today's, or tells another story; its first lines name both."""
    head = storage.read_range(page_uri, 0, HEAD).decode(errors="replace")
    return any(f'content="{part}"' not in head for part in filter(None, (page_format(), key)))


def missing_figures(report: Report) -> set[str]:
    """Return the names of the figures of a report whose files are gone."""
    return {name for name, uri in report.figures.items() if not storage.exists(uri)}


def _read_figures(report: Report) -> dict[str, bytes]:
    images = {}
    for name, uri in report.figures.items():
        try:
            images[name] = storage.read_bytes(uri)
        except FileNotFoundError:
            logger.warning("evaluate: figure %s is gone (%s); the page omits it", name, uri)
    return images


def _read_growth(folder_uri: str) -> bytes | None:
    try:
        return storage.read_bytes(storage.join(folder_uri, GROWTH))
    except FileNotFoundError:
        return None
