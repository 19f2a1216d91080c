"""The prepared view of an experiment: columns, charts and image grid of MLflow's page as a person asks for them.

MLflow's page opens a shared view by `?viewStateShareKey=KEY`, and finds its state, JSON behind zlib and Base64, in the tag
`mlflow.sharedViewState.KEY` of the experiment. Here the state is written by code: it names metrics by the table of all
names, so it is the same for every experiment, and a chart without a value in any run is not drawn.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from stylegan.evaluation.metric_table import ACCURACY, METRICS
from stylegan.tracking.metric_names import DRIVER, TABLE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

VERSION = 1  # of the view and the note; an older program leaves those of a newer one alone
SHARE_KEY = "stylegan"  # stays, so that links stay right
VIEW_TAG = f"mlflow.sharedViewState.{SHARE_KEY}"
NOTE_TAG, NOTE_DIGEST = "mlflow.note.content", "stylegan.note"
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"  # the page asks for it until it is set
VERDICT_TAG = "stylegan.verdict"  # of a run: what the gate has decided
DIFFERENCE_TAG = "stylegan.differs"  # of a run: the settings in which it differs
COMPRESSED = "deflate;"  # before a state that is not plain JSON
EMBEDDED = ("classifier", "rotation")  # networks whose values compare within one data set only
# The networks that metrics are named after, by the role that they serve; of `attributes` the name is the role.
NETWORKS = {
    "pooled": ("inception", *EMBEDDED),
    "manifold": ("vgg16", *EMBEDDED),
    "distance": ("lpips", *EMBEDDED),
    "attributes": ("attributes", *EMBEDDED),
    "style": ("vgg16", *EMBEDDED),
}
QUALITY, SAMPLES, LOSSES, SCORES, SPEED, PROGRESS = (
    "Quality over kimg",
    "Samples at equal kimg",
    "Losses",
    "Scores of the discriminator",
    "Speed",
    "Progress",
)


def prepare_experiment(client: MlflowClient, experiment: Experiment) -> None:
    """Write the prepared view, the description and the kind of an experiment, as far as it lacks them.

    What people have written stays: a description that is not as this program left it, and every view of theirs.
    """
    tags = experiment.tags
    if _is_older(tags.get(VIEW_TAG)):
        client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, pack(view_state()))
    if KIND_TAG not in tags:
        client.set_experiment_tag(experiment.experiment_id, KIND_TAG, KIND)
    text, told = experiment_note(experiment.experiment_id), tags.get(NOTE_TAG)
    version, _, digest = tags.get(NOTE_DIGEST, "").partition(" ")
    is_ours = not told or digest == note_digest(told)
    if is_ours and told != text and not (told and version.isdigit() and int(version) > VERSION):
        # The digest goes first: cut in between, the old text counts as somebody's, and is left alone.
        client.set_experiment_tag(experiment.experiment_id, NOTE_DIGEST, f"{VERSION} {note_digest(text)}")
        client.set_experiment_tag(experiment.experiment_id, NOTE_TAG, text)


def view_path(experiment_id: str, *, charts: bool = True) -> str:
    """Return the part of the address of the prepared view behind that of the server: as charts, or as a table."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={SHARE_KEY}{mode}"


def experiment_note(experiment_id: str) -> str:
    """Return the description of an experiment as Markdown: where the prepared view is, and how to read the runs."""
    charts, table = view_path(experiment_id), view_path(experiment_id, charts=False)
    return "\n".join(
        [
            f"**[Compare the runs as charts]({charts})** or **[as a table]({table})**.",
            "",
            "- Each run is one run of the pipeline. The step of every metric and image is **kimg**: thousand real images that the "
            "discriminator was shown.",
            "- `quick/fid_...` was measured on few images while a run trained: for the course of a run, and within one "
            "resolution. `eval/...` are the metrics of the finished model, with intervals in the run's `report.html`.",
            "- Values whose names end with `classifier` or `rotation` compare only between runs on the same images.",
            "- `samples`: each place of the grid has the same latent in all runs; the slider chooses the kimg.",
            "- The command compare of stylegan says which differences are more than chance.",
            "",
        ]
    )


def view_state() -> dict[str, Any]:
    """Return the state of the prepared view, as MLflow's page keeps it."""
    sections = (QUALITY, SAMPLES, LOSSES, SCORES, SPEED, PROGRESS)
    columns = [*_columns()]
    return {
        "stylegan": VERSION,  # MLflow's page ignores it
        "selectedColumns": columns,
        "columnOrder": columns,
        "runsHiddenMode": "FIRST_20_RUNS",
        "hideEmptyCharts": True,
        "isAccordionReordered": True,  # the page sorts sections by name otherwise
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True, "isGenerated": False, "deleted": False}
            for name in sections
        ],
        "compareRunCharts": [*_charts(), *_left_out()],
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
    }


def pack(state: Mapping[str, Any]) -> str:
    """Return a state as the text of a tag."""
    text = json.dumps(state, separators=(",", ":"))
    return COMPRESSED + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unpack(text: str) -> dict[str, Any]:
    """Return the state in the text of a tag. Raises ValueError for a text that holds none."""
    try:
        if text.startswith(COMPRESSED):
            text = zlib.decompress(base64.b64decode(text.removeprefix(COMPRESSED))).decode()
        state = json.loads(text)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not isinstance(state, dict):
        raise ValueError("a view is an object of JSON")
    return state


def _is_older(text: str | None) -> bool:
    """Return whether the view of an experiment is to be written: it is missing, damaged, or not newer and another."""
    try:
        there = unpack(text or "")
    except ValueError:
        return True
    return int(there.get("stylegan", 0)) <= VERSION and there != view_state()


def note_digest(text: str) -> str:
    """Return what tells a description of this program from one that a person has changed."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _columns() -> Iterable[str]:
    """Yield the columns of the list of runs; the page knows them by kind and name."""
    yield from (f"tags.`{VERDICT_TAG}`", f"tags.`{DIFFERENCE_TAG}`")
    names = (f"eval/{name}_{network}" for name in ("fid", "recall") for network in _networks(name))
    for name in (*names, "progress/kimg", "time/img_per_sec", "time/gpu_hours"):
        yield f"metrics.`{name}`"


def _charts() -> Iterable[dict[str, Any]]:
    """Yield the charts in the order in which a person asks."""
    quick = [value for facts in METRICS.values() if facts.quick for value in facts.values]
    yield from (_line(f"quick/{value}_{network}", QUALITY) for value in quick for network in _networks(value))
    yield _line("probe/accuracy", QUALITY)
    yield _card("IMAGE", "samples", SAMPLES) | {"imageKeys": ["samples"], "step": 0, "showRunParams": False}
    sections = {"loss": LOSSES, "scores": SCORES, "time": SPEED, "rotation": SCORES, "progress": PROGRESS}
    for row in TABLE:
        section = sections.get(row.name.partition("/")[0])
        if section and row.measured != DRIVER and row.name != "progress/kimg":
            yield _line(row.name, section)


def _left_out() -> Iterable[dict[str, Any]]:
    """Yield what would be charts of one point: the page makes a chart of each metric that it finds no card of."""
    single = [row.name for row in TABLE if row.measured == DRIVER]
    single += [
        f"eval/{value}_{network}"
        for facts in METRICS.values()
        for value in facts.values
        for network in _networks(value)
    ]
    single += [f"eval/{network}{ACCURACY}" for network in EMBEDDED]
    for name in ("progress/kimg", *single):
        yield _card("BAR", name, PROGRESS) | {"metricKey": name, "deleted": True}


def _networks(value: str) -> tuple[str, ...]:
    """Return the networks that a value may be named after."""
    return next(NETWORKS[facts.roles[0]] for facts in METRICS.values() if value in facts.values)


def _line(name: str, section: str) -> dict[str, Any]:
    return _card("LINE", name, section) | {"metricKey": name, "displayName": name}


def _card(kind: str, name: str, section: str) -> dict[str, Any]:
    return {"uuid": name, "type": kind, "metricSectionId": section, "deleted": False, "isGenerated": False}
