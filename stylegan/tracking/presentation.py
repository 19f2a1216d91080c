"""What MLflow shows of a run beside its numbers: its colour, what it differs in, its note, and tags for the list of runs."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import stylegan
from stylegan.config.file import is_of_place
from stylegan.evaluation.page.metric_rows import metric_rows
from stylegan.evaluation.page.run_story import Against, Story
from stylegan.evaluation.report import Report
from stylegan.records import Record
from stylegan.tracking.views import DIFFERENCE_TAG, NOTE_DIGEST, NOTE_TAG, VERDICT_TAG, note_digest
from stylegan.training.hardware import Hardware

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_TAG = "stylegan.run_id"  # of a pipeline run
COLOUR_TAG, COMMIT_TAG = "mlflow.runColor", "mlflow.source.git.commit"
STORY_TAG = "stylegan.story"  # key of the story that note, tags and page tell; set last
MAX_DIFFERENCE, MAX_NOTE = 250, 5000  # characters
PICTURES = {  # figures of a report that notes and cards show, with what one sees
    "grid": "Real images on the left, generated ones on the right",
    "transfers": "Contents on the left, styles at the top",
}
# Colours that are told apart on white and on black, also beside each other.
COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22",
    "#0b5394", "#990000", "#38761d", "#674ea7", "#b45f06", "#0e7c86", "#5b3a29", "#a64d79", "#3d85c6", "#6a8f00",
)  # fmt: skip


class EarlierRun(Record):
    """Another run of an experiment: the id of its pipeline run, and its settings."""

    run_id: str
    settings: dict[str, str]


def colour_of(run_id: str) -> str:
    """Return the colour of a run: the same id always has the same."""
    return COLOURS[int(hashlib.sha256(run_id.encode()).hexdigest(), 16) % len(COLOURS)]


def first_tags(run_id: str) -> dict[str, str]:
    """Return the tags of a new run."""
    return {COLOUR_TAG: colour_of(run_id), "stylegan.version": stylegan.__version__} | commit_tag()


def commit_tag() -> dict[str, str]:
    """Return the tag of the git commit that this program is at; empty for one that was not installed from a clone."""
    found = _commit()
    return {COMMIT_TAG: found} if found else {}


@cache
def _commit() -> str:
    folder = Path(stylegan.__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def find_run_before(client: MlflowClient, mlflow_run_id: str, *, first: bool = False) -> EarlierRun | None:
    """Return the run of the same experiment and the same config name that began last before this one, None without one.

    Args:
        client: of MLflow.
        mlflow_run_id: this run.
        first: return the first run of that name instead, whose settings stand for those that are usual in the experiment.
    """
    run = client.get_run(mlflow_run_id)
    name, began = run.data.params.get("name"), run.info.start_time
    if name is None or began is None:
        return None
    order = "ASC" if first else "DESC"
    found = client.search_runs(
        [run.info.experiment_id],
        f"params.name = '{name}' and attributes.start_time < {began}",
        order_by=[f"attributes.start_time {order}"],
        max_results=2,
    )
    for other in found:
        run_id = other.data.tags.get(RUN_TAG)
        if run_id and other.info.run_id != mlflow_run_id:
            return EarlierRun(run_id=run_id, settings=dict(other.data.params))
    return None


def differing(settings: Mapping[str, str], others: Mapping[str, str]) -> list[tuple[str, str | None, str | None]]:
    """Return the settings that differ as (key, other value, own value), without those of where a run works."""
    keys = dict.fromkeys([*others, *settings])
    pairs = ((key, others.get(key), settings.get(key)) for key in keys if not is_of_place(key))
    return [(key, old, new) for key, old, new in pairs if old != new]


def difference_text(changes: Iterable[tuple[str, str | None, str | None]]) -> str:
    """Return what a run differs in for the list of runs: `training.r1_gamma=0.1, seed=1`."""
    text = ", ".join(f"{key}={'none' if new is None else new}" for key, _, new in changes)
    return text if len(text) <= MAX_DIFFERENCE else f"{text[: MAX_DIFFERENCE - 3]}..."


def describe_difference(client: MlflowClient, mlflow_run_id: str) -> None:
    """Tag a run with what it differs in from the first run of its name in the experiment, unless it has that tag."""
    run = client.get_run(mlflow_run_id)
    if DIFFERENCE_TAG in run.data.tags:
        return
    first = find_run_before(client, mlflow_run_id, first=True)
    text = difference_text(differing(run.data.params, first.settings)) if first else ""
    client.set_tag(mlflow_run_id, DIFFERENCE_TAG, text or ("nothing" if first else "the first of its name"))


def last_tags(story: Story, report: Report, hardware: Hardware | None) -> dict[str, str]:
    """Return the tags of a run that the gate has judged."""
    tags = {
        VERDICT_TAG: "promoted" if story.promoted else "not promoted",
        "stylegan.dataset": report.dataset_fingerprint,
    }
    if hardware:
        tags |= {"stylegan.device": hardware.device, "stylegan.hosts": str(len(hardware.hosts))}
    return tags


def progress_note(story: Story, words: str) -> str:
    """Return the note of a run that is under way, as Markdown."""
    return "\n".join([f"**{words}**", "", *_end(story)])


def note_tags(there: Mapping[str, str], text: str) -> dict[str, str]:
    """Return the tags that set the note of a run, in their order; none if a person has written or changed the one there.

    Args:
        there: the tags of the run.
        text: the new note.
    """
    old = there.get(NOTE_TAG, "")
    if old and note_digest(old) not in there.get(NOTE_DIGEST, "").split():
        return {}
    # The digest of the old note stays until the next one, because a kill may come between the two tags.
    return {NOTE_DIGEST: " ".join([note_digest(text), *([note_digest(old)] if old else [])]), NOTE_TAG: text}


def note_of(story: Story, report: Report, mlflow_run_id: str) -> str:
    """Return the note of a run that the gate has judged, as Markdown: verdict, metrics, picture, what changed, command."""
    lines = [f"**{_line(story.headline)}**", "", *(_line(reason) for reason in story.reasons), ""]
    lines += ["| metric | value | 95 % interval |", "|---|---|---|"]
    lines += [f"| {_line(row.name)} {row.arrow} | {row.value} | {row.interval} |" for row in metric_rows(report)]
    for name, caption in PICTURES.items():
        if name in report.figures:
            address = f"get-artifact?path=figures%2F{name}.png&run_uuid={mlflow_run_id}"
            lines += ["", f"![{caption}]({address})"]
    for other in filter(None, (story.champion, story.previous)):
        lines += ["", *_against(other)]
    end = "\n".join(["", *_end(story)])
    while len("\n".join([*lines, end])) > MAX_NOTE and len(lines) > 1:  # links and command are worth more
        lines.pop()
    return "\n".join([*lines, end])


def _against(other: Against) -> list[str]:
    lines = [f"Against {_line(other.name)} (`{other.run_id}`):", ""]
    lines += [f"- {metric.key}: {_line(metric.words)}" for metric in other.metrics[:6]]
    if other.settings is None:
        lines.append("- its settings are not at hand")
    elif other.settings:
        lines += [f"- `{_line(setting.text)}`" for setting in other.settings[:20]]
    else:
        lines.append("- no setting differs")
    return lines


def _end(story: Story) -> list[str]:
    links = [f"[{name}]({address})" for name, address in story.links.items() if address.startswith(("http", "#"))]
    return [
        *([f"{', '.join(links)}. The whole report is the artifact `report.html`.", ""] if links else []),
        "```sh",
        story.command,
        "```",
    ]


def _line(text: str) -> str:
    """Return foreign text as one line of Markdown."""
    return " ".join(text.replace("|", "\\|").replace("`", "'").split())
