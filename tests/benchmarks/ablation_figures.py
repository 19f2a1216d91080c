"""Draw the charts of `stylegan ablation --json` as SVG files of their own, which follow light and dark mode.

stylegan ablation table1 configs/digits.yaml --json > table1.json
python tests/benchmarks/ablation_figures.py table1.json tests/benchmarks/ablation-table1.svg
"""

import re
import sys
from html import escape
from pathlib import Path

from stylegan.evaluation.page.charts import dot_chart
from stylegan.evaluation.page.template import template
from stylegan.verbs.ablation import Ablation, title_of
from stylegan.verbs.ablation_page import forgetting_charts

LIGHT = {"paper": "#fcfcfb", "ink": "#1c1e21", "muted": "#5d636b", "line": "#dfe2e6", "1": "#1a5fb4", "2": "#b8560f"}
DARK = {"paper": "#15171a", "ink": "#e6e8ea", "muted": "#9ba3ad", "line": "#343a41", "1": "#82b4f5", "2": "#f0a063"}
STYLE = """
text {{ font: 11px system-ui, sans-serif; fill: {muted} }} .title {{ fill: {ink}; font-size: 13px }}
.back {{ fill: {paper} }} .x {{ text-anchor: middle }} .y {{ text-anchor: end; dominant-baseline: central }}
.grid {{ stroke: {line}; stroke-width: .8 }} .baseline {{ stroke: {muted}; stroke-width: .8 }}
.mean {{ stroke: {ink}; stroke-width: 2 }} .curve {{ fill: none; stroke-width: 2 }} .thin {{ stroke-width: 1; opacity: .55 }}
.marker {{ stroke: {paper}; fill: {c1} }} .series-1 {{ stroke: {c1} }} .series-2 {{ stroke: {c2} }} .marker.series-1 {{ stroke: {paper} }}
.key-1 {{ fill: {c1} }} .key-2 {{ fill: {c2} }}
"""


def main(source: str, target: str) -> None:
    """Write the charts of one table side by side: its first value, ours and the paper's, or the forgetting curve."""
    found = Ablation.model_validate_json(Path(source).read_text())
    macros = template("macros.html.j2").module
    if forgetting := next(iter(forgetting_charts(found).values()), None):
        keys = "".join(
            f'<tspan class="key-{place}" dx="{18 if place > 1 else 0}">{escape(row.title)}</tspan>'
            for place, row in enumerate(found.rows, start=1)
        )
        charts = [(keys, forgetting, str(macros.curve_chart(forgetting, "forgetting", keys=False)))]
    else:
        charts = [(escape(name), chart, str(macros.dot_chart(chart, name))) for name, chart in _dots(found)]
    width = sum(chart.width for _, chart, _ in charts)
    height = max(chart.height for _, chart, _ in charts) + 24
    parts, left = [], 0.0
    for title, chart, svg in charts:
        body = re.sub(r"^.*?<svg[^>]*>|</svg>.*$", "", svg, flags=re.S)
        parts.append(f'<g transform="translate({left} 24)"><text class="title" x="12" y="-6">{title}</text>{body}</g>')
        left += chart.width
    back = f'<rect class="back" width="{width}" height="{height}"/>'
    text = re.sub(r"\n\s*\n", "\n", "".join(parts))
    style = f"<style>{_style(LIGHT)}@media (prefers-color-scheme: dark) {{{_style(DARK)}}}</style>"
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    Path(target).write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{back}{text}</svg>\n')


def _dots(found: Ablation):
    column = found.columns()[0]
    cells = {row.row: row.cell(column) for row in found.rows}
    title = title_of(*column)
    yield "Ours", dot_chart({row: [one.value for one in cell.values] for row, cell in cells.items()}, x_name=title)
    name = next(iter(next(iter(cells.values())).paper))
    yield f"Paper, {name}", dot_chart({row: [cell.paper[name]] for row, cell in cells.items()}, x_name=title)


def _style(colours: dict[str, str]) -> str:
    named = {key if key.isalpha() else f"c{key}": value for key, value in colours.items()}
    return STYLE.format(**named)


if __name__ == "__main__":
    main(*sys.argv[1:])
