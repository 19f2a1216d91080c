"""Compare a report with the published figures of StyleGAN or SS-GAN, and give the reason wherever two numbers are not comparable.

Two numbers are comparable if they were measured with the same networks, on the same number of samples, against the same
data set at the same resolution. The training may differ: its result is what one compares. `published.yaml` contains the
figures, their sources, and the settings that each protocol requires.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from stylegan.config.yaml_text import read
from stylegan.errors import ConfigError
from stylegan.evaluation.features.public_weights import KNOWN, join_digests
from stylegan.evaluation.metric_table import describe, rank, split_key
from stylegan.evaluation.report import Report

MIXED = "fid_mixing"
UNMEASURED = "not measured"


@dataclass(frozen=True)
class Figure:
    """One published value.

    Attributes:
        row: name of the configuration: a to f, mixing-050, traditional-8, style-2, ssgan ...
        title: the configuration in words.
        metric: first part of the report's key: fid, ppl_wfull, separability_w ...
        value: the published number.
        dataset, resolution: what the model was trained on; `dataset` is a name in published.yaml.
        where: the tables that print the value.
        source, url: title and address of the publication.
        remarks: how the value was measured.
        obstacle: why it compares with nothing that is measured here; empty if it may compare.
        latents: how many latents are mixed at test time; 2 to 4 in Table 2.
    """

    row: str
    title: str
    metric: str
    value: float
    dataset: str
    resolution: int
    where: tuple[str, ...]
    source: str
    url: str
    remarks: tuple[str, ...]
    obstacle: str
    latents: int = 1

    @property
    def name(self) -> str:
        """The metric in words."""
        return (
            f"{describe('fid').title}, {self.latents} latents mixed"
            if self.latents > 1
            else describe(self.metric).title
        )

    @property
    def dataset_title(self) -> str:
        """The data set in words."""
        return str(_published()["datasets"][self.dataset]["title"])


@dataclass(frozen=True)
class Comparison:
    """A published figure and our number for it.

    `key` is the report's key. `value` and `interval` are None if the report does not have them. `why_not` lists why the
    two numbers are not comparable; it is empty if they are. `kinds` are the kinds of these reasons, in few words.
    """

    published: Figure
    key: str
    value: float | None
    interval: tuple[float, float] | None
    why_not: tuple[str, ...]
    kinds: tuple[str, ...] = ()

    @property
    def comparable(self) -> bool:
        """True if the two numbers were measured in the same way."""
        return not self.why_not


def row_names() -> tuple[str, ...]:
    """Return the rows that `figures_of` accepts: the configs of configs/ablations/, and the rows of SS-GAN."""
    return tuple(sorted({row for table in _published()["tables"] for row in table["rows"]}))


def figures_of(row: str = "f", dataset: str | None = None) -> list[Figure]:
    """Return the published figures of one row.

    A training that has several names gets the figures of all of them. A value that several tables of one source repeat
    comes once.

    Args:
        row: a configuration of Tables 1 to 4: a to f, mixing-050, traditional-8, style-2 ...; f is StyleGAN. Or one of
            SS-GAN: gan, ssgan, ssgan-sbn, conditional.
        dataset: a data set of published.yaml. The paper's first one, FFHQ or CIFAR-10, takes its place if it is unset or
            has no figures for this row.

    Raises:
        ConfigError: no such row.
    """
    if row not in row_names():
        raise ConfigError(f"row {row!r} is in none of the published tables; known are {', '.join(row_names())}")
    main = _published()["same"].get(row, row)
    names = {main, *(other for other, same in _published()["same"].items() if same == main)}
    figures = list(_merged(figure for figure in _all_figures() if figure.row in names))
    chosen = dataset if any(figure.dataset == dataset for figure in figures) else figures[0].dataset
    return sorted((figure for figure in figures if figure.dataset == chosen), key=_order)


def figures_in(table: str, row: str) -> list[Figure]:
    """Return the figures that a table of a paper prints in a row, for each of its data sets.

    Args:
        table: as in the StyleGAN paper, Table 1, or SS-GAN.
        row: a row of it, as for `figures_of`; the list is empty if it has no such row.
    """
    return [figure for figure in _all_figures() if figure.row == row and table in figure.where]


def dataset_of(source: str, num_images: int) -> str | None:
    """Return the public data set of a `data.source`, recognised by path and number of images; None for any other."""
    path = re.sub(r"[-_ ]", "", source.lower())
    for name, facts in _published()["datasets"].items():
        if facts["images"] == num_images and re.search(rf"(?<![a-z]){facts['word']}", path):
            return name
    return None


def licence_of(dataset: str | None) -> str | None:
    """Return the licence of a public data set in words, as its publishers state it; None for any other."""
    return str(_published()["datasets"][dataset]["licence"]) if dataset else None


def compare(report: Report, *, row: str = "f", dataset: str | None = None) -> list[Comparison]:
    """Compare every published figure of a row with the report's number for it.

    Args:
        report: a report without `settings` is comparable with nothing.
        row: see `figures_of`.
        dataset: name of the public data set of the report's reals (see `dataset_of`); None if they are not public.

    Raises:
        ConfigError: no such row.
    """
    return [_compare(figure, report, dataset) for figure in figures_of(row, dataset)]


def describe_incomparable(comparisons: Sequence[Comparison]) -> str:
    """Return one line about all comparisons whose numbers do not compare, with the kinds of reasons; empty if there are none."""
    others = [comparison for comparison in comparisons if not comparison.comparable]
    if not others:
        return ""
    kinds = list(dict.fromkeys(kind for comparison in others for kind in comparison.kinds))
    ordered = sorted(kinds, key=lambda kind: kind == UNMEASURED)
    why = f": {', '.join(ordered)}" if ordered else ""
    return f"{len(others)} published figure{'s do' if len(others) > 1 else ' does'} not compare{why}"


@functools.cache
def _published() -> dict[str, Any]:
    text = files("stylegan.evaluation.page").joinpath("published.yaml").read_text(encoding="utf-8")
    return dict(read(text, "published.yaml").value)


def _all_figures() -> Iterator[Figure]:
    known = _published()
    for table in known["tables"]:
        source = known["sources"][table["source"]]
        remarks = tuple(remark for remark in (source["remark"], table.get("remark")) if remark)
        for row, metrics in table["rows"].items():
            title = known["titles"][known["same"].get(row, row)]
            common = Figure(
                row=row,
                title=title,
                metric="",
                value=0.0,
                dataset=table["dataset"],
                resolution=table["resolution"],
                where=(table["name"],),
                source=source["title"],
                url=source["url"],
                remarks=remarks,
                obstacle=table.get("obstacle", ""),
            )
            for metric, values in metrics.items():
                yield from _figures(common, metric, values)


def _figures(common: Figure, metric: str, values: float | list[float]) -> Iterator[Figure]:
    """Yield the figures of one metric, one per number of latents; with a single latent, Table 2 has a plain FID."""
    if not isinstance(values, list):
        values = [values]
    for latents, value in enumerate(values, start=1):
        yield replace(
            common, metric=MIXED if latents > 1 else metric.removesuffix("_mixing"), value=value, latents=latents
        )


def _merged(figures: Iterable[Figure]) -> Iterator[Figure]:
    """Yield one figure for equal figures of one source; it names all their tables."""
    groups: dict[tuple, list[Figure]] = {}
    for figure in figures:
        key = (figure.source, figure.dataset, figure.resolution, figure.metric, figure.latents, figure.value)
        groups.setdefault(key, []).append(figure)
    for group in groups.values():
        yield replace(group[0], where=tuple(sorted({name for figure in group for name in figure.where})))


def _order(figure: Figure) -> tuple[int, int, int]:
    """Return the sort key of a figure: by metric as in reports, then by latents, then the largest images first."""
    return rank(figure.metric), figure.latents, -figure.resolution


def _compare(figure: Figure, report: Report, dataset: str | None) -> Comparison:
    protocol = _published()["protocols"][figure.metric.split("_")[0]]
    key = _our_key(figure.metric, report, protocol["network"])
    value, interval = _ours(figure, key, report)
    if value is None:
        skipped = report.skipped.get(key)
        reasons = {UNMEASURED: [f"not measured: {skipped.rstrip('.')}" if skipped else "not measured"]}
    else:
        reasons = {
            "other network": [*_other_network(key, report, protocol)],
            "other settings": [*_other_counts(figure, report, protocol)],
            "measured otherwise": [figure.obstacle] if figure.obstacle else [],
            "other data": [*_other_images(figure, report, dataset)],
        }
    return Comparison(
        published=figure,
        key=key,
        value=value,
        interval=interval,
        why_not=tuple(why for words in reasons.values() for why in words),
        kinds=tuple(kind for kind, words in reasons.items() if words),
    )


def _our_key(metric: str, report: Report, network: str) -> str:
    """Return the report's key of a metric; empty if the report does not mention the metric.

    Of several keys, one of the published network comes first, then one that was measured.
    """
    keys = sorted(key for key in {*report.metrics, *report.protocols, *report.skipped} if split_key(key)[0] == metric)
    return min(keys, key=lambda key: (split_key(key)[1] != network, key not in report.metrics), default="")


def _ours(figure: Figure, key: str, report: Report) -> tuple[float | None, tuple[float, float] | None]:
    """Return the report's value and interval; of mixed styles, the value of the curve, which has no intervals."""
    if figure.latents == 1:
        return report.metrics.get(key), report.intervals.get(key)
    rows = report.curves.get("mixing", [])
    return next((row["fid"] for row in rows if row["latents"] == figure.latents), None), None


def _other_network(key: str, report: Report, protocol: Mapping[str, Any]) -> Iterator[str]:
    """Yield why the network is not the published one."""
    network = split_key(key)[1]
    if network != protocol["network"]:
        yield f"measured by {network or 'an unknown network'}, not {protocol['title']}"
    elif protocol["weights"] and report.settings.get("networks", {}).get(network) != join_digests(
        KNOWN[k].sha256 for k in protocol["weights"]
    ):
        yield f"the weights of {network} are not the public ones"


def _other_counts(figure: Figure, report: Report, protocol: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings that differ from those of the published protocol."""
    for name, (wanted, words) in protocol["settings"].items():
        if name == "num_reals":
            wanted = min(wanted, _published()["datasets"][figure.dataset]["images"])
        ours = report.settings.get(name)
        if ours != wanted:
            yield f"{words.format(_plain(ours))}, not {_plain(wanted)}"
    if (precision := report.settings.get("precision")) and not figure.metric.startswith("ppl"):
        yield f"images drawn in {precision}, not fp32"


def _other_images(figure: Figure, report: Report, dataset: str | None) -> Iterator[str]:
    """Yield why the images are not those of the published figure."""
    if dataset != figure.dataset:
        yield f"other images than {figure.dataset_title}"
    if (resolution := report.settings.get("resolution")) != figure.resolution:
        yield f"another resolution, {resolution}x{resolution}" if resolution else "an unknown resolution"


def _plain(value: Any) -> str:
    """Return a setting for people: booleans as in YAML, thousands separated."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:,}" if isinstance(value, int | float) else str(value)
