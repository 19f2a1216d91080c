"""Prefect artifacts of a run: its metrics, verdict and samples on the flow run's page, its data set on the task run's page."""

from __future__ import annotations

import base64
import logging
import re
from typing import TYPE_CHECKING

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from stylegan import storage
from stylegan.data.dataset_card import PREVIEW, REJECTED, DatasetCard, describe_card, read_card
from stylegan.data.shardset import ShardSet
from stylegan.errors import DamagedError, decoration, printable, shown
from stylegan.evaluation.page.metric_rows import metric_rows, skipped_rows, warnings
from stylegan.evaluation.report import Report
from stylegan.images import open_picture, thumbnail
from stylegan.pipeline.steps import Summary
from stylegan.registry.gate import describe_verdict
from stylegan.tracking.links import comparison_url, run_url, server_command

if TYPE_CHECKING:
    from stylegan.config.tree import Config
    from stylegan.evaluation.drift import Drift
    from stylegan.pipeline.retraining import Check, Decision

logger = logging.getLogger("stylegan")
LISTED_COUNTS = 100  # classes or attributes in the Markdown table of a data set


@decoration("the artifacts of this run")
def publish_run(config: Config, summary: Summary) -> None:
    """Create the artifacts of a finished run: a table of metrics, the verdict as Markdown, and the sample grid."""
    key, report = _key(summary.run_id), summary.report
    create_table_artifact(
        _metric_table(report),
        key=f"{key}-metrics",
        description=f"Metrics of {summary.run_id} under protocol {report.protocol}",
    )
    create_markdown_artifact(
        _run_markdown(config, summary), key=f"{key}-verdict", description=f"Verdict on {summary.run_id}"
    )
    _publish_picture(summary.grid, key=f"{key}-samples", description=f"Samples of {summary.run_id}")


@decoration("the decision in Prefect")
def publish_decision(check: Check, decision: Decision, drift: Drift | None) -> None:
    """Create the artifact of a retraining that trains: why, from which weights, and how different the new images are."""
    start = decision.start
    lines = [
        f"## {_cell(check.model)}: trained again",
        f"- why: {_cell(decision.reason)} (rule `{decision.rule}`)",
        *([f"- start: {start.kind}, {_cell(start.why)}"] if start else []),
        *([f"- drift: {_cell(drift.text)}"] if drift else []),
        f"- images: {check.num_images:,} in `{check.source}`; {check.new:,} new, {check.changed:,} changed, "
        f"{check.deleted:,} deleted since the newest version",
    ]
    create_markdown_artifact("\n".join(lines), key=f"{_key(check.model.lower())}-decision", description=decision.rule)


@decoration("the artifacts of this data set")
def publish_shards(shards: ShardSet) -> None:
    """Create the artifacts of a data set: a table of rejects, a sheet of images, and its card as Markdown."""
    card = read_card(shards.uri)
    if card is None:
        return
    key = f"data-{_key(shards.fingerprint.lower())}"
    rows = [
        {"reason": kind, "images": number, "such as": printable(", ".join(card.examples.get(kind, ())))}
        for kind, number in card.rejected.items()
    ]
    description = f"Images of {card.source} that were left out; all are in {storage.join(shards.uri, REJECTED)}"
    create_table_artifact(
        rows or [{"reason": "none", "images": 0, "such as": ""}], key=f"{key}-rejected", description=description
    )
    _publish_picture(storage.join(shards.uri, PREVIEW), key=f"{key}-preview", description="What the network will see")
    create_markdown_artifact(
        _card_markdown(card, shards), key=f"{key}-card", description=f"Data set {shards.fingerprint}"
    )


def _key(text: str) -> str:
    """Return the text as an artifact key, which may hold lower-case letters, digits and dashes only."""
    return re.sub(r"[^a-z0-9-]", "-", text)


def _publish_picture(uri: str, *, key: str, description: str) -> None:
    """Create an artifact of a picture as a data URI, which a browser shows without access to storage."""
    if picture := read_thumbnail(uri):
        data = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        create_image_artifact(data, key=key, description=description)


def read_thumbnail(uri: str) -> bytes | None:
    """Read a picture of storage, made small, as the bytes of a PNG file.

    None for one that is gone or damaged, which is named in a warning: it is never worth a run.
    """
    try:
        return thumbnail(open_picture(storage.read_bytes(uri), uri, cure="delete it and run the same command again"))
    except FileNotFoundError:
        logger.warning("%s: missing, so there is no picture of it", uri)
    except DamagedError as error:
        logger.warning("%s", error)
    return None


def _metric_table(report: Report) -> list[dict[str, str]]:
    """Return the rows of the table of metrics, as the terminal and the report's page have them."""
    rows = [
        {
            "metric": f"{row.name} {row.arrow}".rstrip(),
            "value": row.value,
            "95 % interval": row.interval,
            "what it says": row.warning or row.meaning,
            "key": row.key,
            "protocol": row.protocol,
        }
        for row in metric_rows(report)
    ]
    skipped = [
        {
            "metric": row.name,
            "value": "skipped",
            "95 % interval": "",
            "what it says": row.reason,
            "key": row.key,
            "protocol": "",
        }
        for row in skipped_rows(report)
    ]
    return rows + skipped


def _run_markdown(config: Config, summary: Summary) -> str:
    verdict, version = summary.verdict, summary.version
    lines = [
        f"## {version.name} version {version.version}: {', '.join(version.aliases) or 'no alias'}",
        describe_verdict(verdict, version.aliases),
        "",
        *(line for warning in warnings(summary.report) for line in (f"**Warning:** {warning}", "")),
        "| metric | value | 95 % interval | key |",
        "|---|---|---|---|",
        *(
            f"| {_cell(row.name)} {row.arrow} | {row.value} | {row.interval} | `{row.key}` |"
            for row in metric_rows(summary.report)
        ),
        "",
        f"Run `{summary.run_id}`, samples `{summary.grid}`",
        "",
        f"Report with figures: `{summary.page}`, and `report.html` among the artifacts of MLflow run `{summary.mlflow_run_id}`",
        "",
        *_links(config, summary.mlflow_run_id),
    ]
    return "\n".join(lines)


def _links(config: Config, mlflow_run_id: str) -> list[str]:
    """Return the lines that lead to MLflow: to this run, and to the prepared view that compares it."""
    run, comparison, command = run_url(config, mlflow_run_id), comparison_url(config), server_command(config)
    if not run or not comparison:
        return []
    return [
        f"In MLflow: [this run]({run}), [beside the others]({comparison})",
        *(["", f"These pages are there while this command runs where the store is: `{command}`"] if command else []),
    ]


def _card_markdown(card: DatasetCard, shards: ShardSet) -> str:
    lines = [
        f"## Data set {shards.fingerprint}: {shards.num_images:,} images",
        *(f"- {' '.join(line.split())}" for line in describe_card(card)),
    ]
    lines += [
        f"- left out: {sum(card.rejected.values()):,}, of which {card.num_duplicates:,} have the bytes of another",
        "",
    ]
    if card.counts:
        lines += ["| " + ("attribute" if card.counted == "attributes" else "class") + " | images |", "|---|---|"]
        lines += [f"| {_cell(name)} | {number:,} |" for name, number in list(card.counts.items())[:LISTED_COUNTS]]
    return "\n".join([*lines, "", f"Shards `{shards.uri}`"])


def _cell(text: str) -> str:
    """Escape text for a Markdown table: class names come from folders and may hold anything."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", shown(text))
