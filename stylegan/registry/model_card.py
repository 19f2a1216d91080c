"""The model card: the short page that the registry shows beside a version."""

from __future__ import annotations

from stylegan.config.tree import Config
from stylegan.evaluation.report import Report

MAX_CARD = 5000  # characters; MLflow's databases hold no longer description, and all but SQLite refuse one


def write_card(config: Config, report: Report, run_id: str) -> str:
    """Return the card as Markdown: model, images, metrics, and how to draw images from it.

    Metrics that do not fit into MAX_CARD characters are left to the report.
    """
    data, model = config.data, config.model
    columns = '{"seed": [0, 1], "label": [0, 0]}' if model.conditional else '{"seed": [0, 1]}'
    head = [
        f"# {config.model_name}",
        "",
        f"StyleGAN, {data.resolution}x{data.resolution}, {'grey' if data.channels == 1 else 'RGB'}, "
        f"{'class-conditional' if model.conditional else 'unconditional'}, latent size {model.latent_size}; "
        "weights are the moving average of the generator.",
        "",
        f"- run: `{run_id}`",
        f"- images: `{shorten(data.source, 800)}` (fingerprint `{report.dataset_fingerprint}`)",
        f"- checkpoint: `{shorten(report.checkpoint_uri, 800)}`",
        f"- evaluation protocol: `{report.protocol}`",
        "",
        "| metric | value, 95 % interval |",
        "|---|---|",
    ]
    rows = [
        *(f"| {name} | {report.shown(name, 6)} |" for name in sorted(report.metrics)),
        *(f"| {name} | not measured: {shorten(reason, 300)} |" for name, reason in sorted(report.skipped.items())),
    ]
    tail = [
        "",
        "```python",
        "import mlflow, pandas",
        f'model = mlflow.pyfunc.load_model("models:/{config.model_name}@champion")',
        f'images = model.predict(pandas.DataFrame({columns}), params={{"truncation_psi": 0.7}})  # uint8 [N, H, W, C]',
        "```",
    ]
    shown = len(rows)
    while True:
        more = [f"| and {len(rows) - shown} more | see report.html of the run |"] if shown < len(rows) else []
        card = "\n".join([*head, *rows[:shown], *more, *tail]) + "\n"
        if len(card) <= MAX_CARD or not shown:
            return card
        shown -= 1


def shorten(text: str, length: int) -> str:
    """Return a text as one line of at most `length` characters; what is too long loses its middle."""
    line, half = " ".join(text.split()), (length - 3) // 2
    return line if len(line) <= length else f"{line[:half]}...{line[-half:]}"
