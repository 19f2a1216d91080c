"""The model card: the short page that the registry shows beside a version."""

from __future__ import annotations

from stylegan.config.tree import Config
from stylegan.evaluation.report import Report


def write_card(config: Config, report: Report, run_id: str) -> str:
    """Return the card as Markdown: model, images, metrics, and how to draw images from it."""
    data, model = config.data, config.model
    columns = '{"seed": [0, 1], "label": [0, 0]}' if model.conditional else '{"seed": [0, 1]}'
    lines = [
        f"# {config.model_name}",
        "",
        f"StyleGAN, {data.resolution}x{data.resolution}, {'grey' if data.channels == 1 else 'RGB'}, "
        f"{'class-conditional' if model.conditional else 'unconditional'}, latent size {model.latent_size}; "
        "weights are the moving average of the generator.",
        "",
        f"- run: `{run_id}`",
        f"- images: `{data.source}` (fingerprint `{report.dataset_fingerprint}`)",
        f"- checkpoint: `{report.checkpoint_uri}`",
        f"- evaluation protocol: `{report.protocol}`",
        "",
        "| metric | value, 95 % interval |",
        "|---|---|",
        *(f"| {name} | {report.shown(name, 6)} |" for name in sorted(report.metrics)),
        *(f"| {name} | not measured: {reason} |" for name, reason in sorted(report.skipped.items())),
        "",
        "```python",
        "import mlflow, pandas",
        f'model = mlflow.pyfunc.load_model("models:/{config.model_name}@champion")',
        f'images = model.predict(pandas.DataFrame({columns}), params={{"truncation_psi": 0.7}})  # uint8 [N, H, W, C]',
        "```",
    ]
    return "\n".join(lines) + "\n"
