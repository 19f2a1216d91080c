"""The model card: the short page that the registry shows beside a version."""

from __future__ import annotations

import shlex

from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.page.metric_rows import MetricRow, metric_rows, skipped_rows
from stylegan.evaluation.page.published import dataset_of, licence_of
from stylegan.evaluation.report import Report
from stylegan.registry.descriptions import MAX_DESCRIPTION, MAX_HEADLINE
from stylegan.tracking.presentation import PICTURES
from stylegan.uris import redact

MAX_CARD = MAX_DESCRIPTION - MAX_HEADLINE  # characters
UNKNOWN_LICENCE = "not known to this program; ask where they come from"


def write_card(
    config: Config,
    report: Report,
    shards: ShardSet,
    *,
    run_id: str,
    mlflow_run_id: str,
    version: str,
    tracking_uri: str,
    parent_version: str | None = None,
) -> str:
    """Return the card as Markdown: model, warnings, samples, how to draw more, metrics, and where it comes from.

    The line that is put before it, see `descriptions.py`, has room left.

    Metrics that do not fit into MAX_CARD characters are left to the report.

    Args:
        config, report: of the model.
        shards: the images that it was trained on.
        run_id: the pipeline's name of the run.
        mlflow_run_id: MLflow's id of the run, whose artifacts hold the pictures.
        version: the number of the version that the card describes.
        tracking_uri: where MLflow is.
        parent_version: the number of the version that a warm start has gone on from, if this model has it.
    """
    rows = metric_rows(report)
    lines = [
        *(_metric_line(row) for row in rows),
        *(
            f"| {row.name} | not measured | | {_cell(shorten(row.reason, 300))} | `{row.key}` |"
            for row in skipped_rows(report)
        ),
    ]
    head = [
        f"# {config.model_name}",
        "",
        _model(config, shards),
        "",
        *(line for row in rows if row.warning for line in (f"**Warning:** {row.warning}", "")),
        *_picture(report, mlflow_run_id),
        *_drawing(config, version, tracking_uri, conditional=config.model.conditional),
        "## Metrics",
        "",
        "| metric | value | 95 % interval | what it says | key |",
        "|---|---|---|---|---|",
    ]
    tail = ["", *_origin(config, report, shards, run_id, parent_version)]
    shown = len(lines)
    while True:
        more = [f"| and {len(lines) - shown} more | | | see report.html of the run | |"] if shown < len(lines) else []
        card = "\n".join([*head, *lines[:shown], *more, *tail]) + "\n"
        if len(card) <= MAX_CARD or not shown:
            return card
        shown -= 1


def shorten(text: str, length: int) -> str:
    """Return a text as one line of at most `length` characters; what is too long loses its middle."""
    line, half = " ".join(text.split()), (length - 3) // 2
    return line if len(line) <= length else f"{line[:half]}...{line[-half:]}"


def _model(config: Config, shards: ShardSet) -> str:
    data, model = config.data, config.model
    if config.transfer:
        return (
            f"A style transfer by AdaIN (Huang & Belongie 2017) for {'grey' if data.channels == 1 else 'RGB'} images of any size, "
            f"trained on {shards.num_images:,} images of {data.resolution}x{data.resolution} pixels of "
            f"`{shorten(data.source, 800)}`, with the encoder `{shorten(config.evaluation.features, 300)}`."
        )
    labels = f"class-conditional ({len(shards.label_names):,} classes)" if model.conditional else "unconditional"
    kind = "A ResNet generator (Miyato et al. 2018)" if model.is_resnet else "A StyleGAN generator"
    return (
        f"{kind} of {'grey' if data.channels == 1 else 'RGB'} images of {data.resolution}x{data.resolution} "
        f"pixels, {labels}, latent size {model.latent_size}, trained on {shards.num_images:,} images of "
        f"`{shorten(data.source, 800)}`. Its weights are the moving average of those in training."
    )


def _picture(report: Report, mlflow_run_id: str) -> list[str]:
    """Return the samples of the run as a picture: the address is that of MLflow's own web server."""
    return [
        line
        for name, caption in PICTURES.items()
        if name in report.figures
        for line in (f"![{caption}](get-artifact?path=figures%2F{name}.png&run_uuid={mlflow_run_id})", "")
    ]


def _drawing(config: Config, version: str, tracking_uri: str, *, conditional: bool) -> list[str]:
    """Return the commands that draw images with this very version, on any machine that reaches MLflow and storage."""
    name, uri = f"models:/{config.model_name}/{version}", shorten(redact(tracking_uri), 500)
    if config.transfer:
        return _transferring(name, uri)
    psi, params = (" --psi 0.7", ', params={"truncation_psi": 0.7}') if config.model.has_w else ("", "")
    columns = '{"seed": [0, 1], "label": [0, 0]}' if conditional else '{"seed": [0, 1]}'
    return [
        "## Draw images",
        "",
        "```sh",
        f"export MLFLOW_TRACKING_URI={shlex.quote(uri)}",
        f"stylegan sample {shlex.quote(name)} --seeds 0-15{psi} --out grid.png",
        "```",
        "",
        "```python",
        "import mlflow, pandas",
        f"mlflow.set_tracking_uri({uri!r})",
        f"model = mlflow.pyfunc.load_model({name!r})",
        f"rows = pandas.DataFrame({columns})",
        f"images = model.predict(rows{params})  # uint8 [N, H, W, C]",
        "```",
        "",
    ]


def _transferring(name: str, uri: str) -> list[str]:
    """Return the commands that draw a picture in the style of another with this very version."""
    return [
        "## Draw pictures",
        "",
        "```sh",
        f"export MLFLOW_TRACKING_URI={shlex.quote(uri)}",
        f"stylegan transfer CONTENT STYLE --model {shlex.quote(name)} --alpha 0.7 --out transfer.png",
        "```",
        "",
        "```python",
        "import base64, mlflow, pandas",
        f"mlflow.set_tracking_uri({uri!r})",
        f"model = mlflow.pyfunc.load_model({name!r})",
        'rows = pandas.DataFrame({"content": [open("photo.jpg", "rb").read()], "style": [open("style.jpg", "rb").read()]})',
        'png = base64.b64decode(model.predict(rows, params={"alpha": 0.7})["image"][0])',
        "```",
        "",
    ]


def _origin(config: Config, report: Report, shards: ShardSet, run_id: str, parent_version: str | None) -> list[str]:
    warm = config.training.warm_start
    version = f"version {parent_version}, " if parent_version else ""
    data = dataset_of(config.data.source, shards.num_images)
    return [
        "## Where it comes from",
        "",
        f"- run: `{run_id}`; its artifact `report.html` is the whole report",
        f"- images: fingerprint `{report.dataset_fingerprint}`; licence: {licence_of(data) or UNKNOWN_LICENCE}",
        f"- checkpoint: `{shorten(report.checkpoint_uri, 800)}`",
        *([f"- went on from: {version}checkpoint `{shorten(warm.identity, 300)}`"] if warm else []),
        f"- evaluation protocol: `{report.protocol}`",
    ]


def _metric_line(row: MetricRow) -> str:
    return (
        f"| {_cell(row.name)} {row.arrow} | {row.value} | {row.interval} | {_cell(row.short_meaning)} | `{row.key}` |"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
