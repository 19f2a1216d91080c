"""Render a paper's table on one's own data as one HTML page, a single file that loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.errors import decoration
from stylegan.evaluation.page.charts import CurveChart, DotChart, curve_chart, dot_chart
from stylegan.evaluation.page.html import page_format
from stylegan.evaluation.page.metric_rows import ARROWS, DASH, interval_words
from stylegan.evaluation.page.template import template
from stylegan.pipeline.run import find_run
from stylegan.retry import storage_settings
from stylegan.verbs.ablation import Ablation, Cell, Column, Order, TableRow, direction_of, tally_words, title_of
from stylegan.verbs.ablation_rows import RowRun, Table
from stylegan.verbs.forgetting import LAST, PICTURE, Curve, forgetting_picture, limits_of

if TYPE_CHECKING:
    from PIL import Image

PAGE = "ablation.html"  # in MLflow
STRIP_ROWS, STRIP_WIDTH = 2, 720  # of the grid that a strip shows, and its pixels
GRID_CURE = "delete it; the next training of the stage draws it anew"
SYMBOLS = {True: ("yes", "yes"), False: ("no", "no"), None: (DASH, "quiet")}  # what a pair shows, and its class


@dataclass(frozen=True)
class Section:
    """One value of the table as the page shows it.

    `paper` are the names of the published columns, `rows` their cells beside ours, `matrix` the pairs: for each row, a
    symbol, its class and a hint for each later row, or None.
    """

    title: str
    arrow: str
    tally: str
    paper: tuple[str, ...]
    rows: list[tuple[TableRow, Cell]]
    charts: list[tuple[str, DotChart]]
    matrix: list[list[tuple[str, str, str] | None]]
    orders: list[Order]


def render(table: Table, ablation: Ablation, *, strips: Mapping[str, bytes] | None = None) -> str:
    """Return the page of a table as HTML.

    Args:
        table, ablation: the table, and what its rows have reached.
        strips: WebP files of images of the rows, by row.
    """
    return template("ablation.html.j2").render(
        title=f"{ablation.name} on {ablation.config}: {ablation.subject}",
        page_format=page_format(),
        facts={
            "Data": ablation.data,
            "Trainings": f"{len(ablation.rows)} rows, seeds {', '.join(map(str, ablation.seeds))}",
            "Paper": table.source or "Karras, Laine, Aila 2019 (arXiv 1812.04948)",
        },
        ablation=ablation,
        sections=[_section(ablation, column) for column in ablation.columns()],
        several=len(ablation.seeds) > 1,
        forgetting=forgetting_charts(ablation),
        strips=[
            (row, f"data:image/webp;base64,{base64.b64encode(strips[row.row]).decode()}")
            for row in ablation.rows
            if strips and row.row in strips
        ],
        interval_words=interval_words,
    )


def read_strips(config: Config, runs: Sequence[RowRun]) -> dict[str, bytes]:
    """Return the first images of the last sample grid of each row, as WebP files; those of its first training that has one.

    The same latents of all rows, as far as their sizes agree.

    Raises:
        ConfigError, StepError, DamagedError: storage does not answer, or a grid is not what was written there.
    """
    strips: dict[str, bytes] = {}
    with storage_settings(config.storage):
        for one in runs:
            run = find_run(one.child.config)
            grids = run.samples(run.stages[-1])
            if one.row not in strips and grids:
                strips[one.row] = _strip(storage.read_bytes(grids[-1]), grids[-1], one.child.config.snapshots.grid)
    return strips


def log_ablation(config: Config, mlflow_run_id: str, page: str, picture: Image.Image | None = None) -> None:
    """Log the page, and the picture of the forgetting curves, to the run in MLflow that the trainings are below.

    MLflow's troubles are a warning.
    """
    from stylegan.tracking.connection import resolve_uri
    from stylegan.tracking.parents import log_page, log_picture

    with decoration("the page of the table in MLflow"):
        log_page(resolve_uri(config), mlflow_run_id, page, PAGE)
        if picture:
            log_picture(resolve_uri(config), mlflow_run_id, picture, PICTURE)


def forgetting_charts(ablation: Ablation) -> dict[str, CurveChart]:
    """Return the charts of the forgetting curves, by layer of D: the last features first; none where none was probed."""
    layers = {LAST: ablation.curves, **ablation.layers} if ablation.curves else {}
    curves = [curve for rows in layers.values() for seeds in rows.values() for curve in seeds.values()]
    limits = limits_of(curves) if curves else None
    return {layer: _forgetting_chart(rows, limits) for layer, rows in layers.items()}


def draw_forgetting(ablation: Ablation) -> Image.Image | None:
    """Draw the forgetting curves of all rows as a picture; None where none was probed."""
    charts = forgetting_charts(ablation)
    return forgetting_picture(charts) if charts else None


def _forgetting_chart(curves: Mapping[str, Mapping[int, Curve]], limits: tuple[float, float] | None) -> CurveChart:
    """Lay out the curves of one layer, by row and seed: thick lines for the means of rows, thin ones for seeds."""
    means = {row: _mean_curve(list(seeds.values())) for row, seeds in curves.items()}
    single = {(row, seed): curve for row, seeds in curves.items() if len(seeds) > 1 for seed, curve in seeds.items()}
    chart = curve_chart(
        {**means, **{f"{row}, seed {seed}": curve for (row, seed), curve in single.items()}},
        x_name="kimg",
        limits=limits,
    )
    colours = {row: number for number, row in enumerate(curves, start=1)}
    owners = [*means, *(row for row, _ in single)]
    return replace(
        chart,
        curves=tuple(
            replace(curve, colour=colours[row], dash=0, thin=place >= len(means))
            for place, (curve, row) in enumerate(zip(chart.curves, owners, strict=True))
        ),
    )


def _section(ablation: Ablation, column: Column) -> Section:
    rows = [(row, row.cell(column)) for row in ablation.rows]
    sets = tuple(dict.fromkeys(name for _, cell in rows for name in cell.paper))
    title, orders = title_of(*column), [order for order in ablation.orders if order.column == column]
    charts = {"Ours": {row.row: [one.value for one in cell.values] for row, cell in rows}}
    charts |= {
        f"Paper, {name}": {row.row: [cell.paper[name]] if name in cell.paper else [] for row, cell in rows}
        for name in sets  # the same rows in all charts, so that they lie beside each other
    }
    pairs = {frozenset((order.first, order.second)): order for order in orders}
    names = [row.row for row, _ in rows]
    return Section(
        title=title,
        arrow=ARROWS[direction_of(column[0])],
        tally=tally_words(orders),
        paper=sets,
        rows=rows,
        charts=[(name, dot_chart(groups, x_name=title)) for name, groups in charts.items() if any(groups.values())],
        matrix=[
            [
                _pair(pairs.get(frozenset((one, other)))) if position > number else None
                for position, other in enumerate(names)
            ]
            for number, one in enumerate(names)
        ],
        orders=orders,
    )


def _pair(order: Order | None) -> tuple[str, str, str]:
    if order is None:
        return "", "quiet", "the paper does not order these two"
    symbol, kind = SYMBOLS[order.agrees]
    return f"{symbol}{'°' if order.disputed else ''}", kind, f"paper: {order.first} better than {order.second}"


def _mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the mean of curves, at the kimg that all of them have."""
    at = [dict(curve) for curve in curves]
    shared = [kimg for kimg in at[0] if all(kimg in one for one in at)]
    return [(kimg, sum(one[kimg] for one in at) / len(at)) for kimg in shared]


def _strip(png: bytes, origin: str, columns: int) -> bytes:
    from stylegan.images import open_picture, picture_bytes  # imports torch, which the table does without

    sheet = open_picture(png, origin, cure=GRID_CURE)
    strip: Image.Image = sheet.crop((0, 0, sheet.width, round(sheet.height * min(STRIP_ROWS / columns, 1))))
    if strip.width > STRIP_WIDTH:
        strip = strip.resize((STRIP_WIDTH, round(strip.height * STRIP_WIDTH / strip.width)))
    return picture_bytes(strip, ".webp")
