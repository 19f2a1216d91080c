"""The table of all metrics in MLflow: name, unit, direction, meaning, and where each is measured. README.md shows it.

    python -m stylegan.tracking.metric_names            # write the table into README.md
    python -m stylegan.tracking.metric_names --check    # exit with 1 if it is stale

Nothing else is logged: whoever logs a new metric adds a row. Names of `eval/` and `quick/` follow from the table of
evaluation metrics. A part of a name in braces stands for many.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stylegan.config.reference import replace_between, write_stale
from stylegan.config.tree import Config
from stylegan.evaluation.metric_table import ACCURACY, METRICS, Direction
from stylegan.training.schedule import stages

README = Path(__file__).with_name("README.md")
SOURCE = "stylegan/tracking/metric_names.py"
BEGIN = f"<!-- Begin of the part that is written from {SOURCE}. -->\n"
END = "<!-- End of the part that is written. -->\n"

# What the parts in braces stand for.
PLACEHOLDERS = {
    "network": "[a-z0-9]+",  # that saw the images
    "space": r"[a-z0-9]+(_\d+x\d+)?",  # that network, and the resolution of a stage below the last one
    "host": r"[\w.-]+",
    "gpu": r"\d+",
    "block": r"\d+",  # of D; the images enter the first one
}

# Where metrics are measured.
STEPS = "training: mean over steps and workers"
POINT = "training: at the point"
BESIDE = "beside training"
MODEL = "finished model"
NODE = "node"
DRIVER = "driver"


class UnknownMetricWarning(UserWarning):
    """A metric is logged that the table lacks, which is a mistake of this package: its tests raise it."""


@dataclass(frozen=True)
class MetricName:
    """A row of the table.

    Attributes:
        name: with parts in braces, see PLACEHOLDERS.
        unit: empty for plain numbers.
        better: the direction of improvement; None if neither is better.
        meaning: in one sentence.
        measured: where, and over what.
    """

    name: str
    unit: str
    better: Direction | None
    meaning: str
    measured: str

    def matches(self, name: str) -> bool:
        """Return whether a metric of that name belongs to this row."""
        return _pattern(self.name).fullmatch(name) is not None


TABLE = (
    MetricName("loss/d", "", None, "Loss of D in the game against G, without penalties and self-supervision.", STEPS),
    MetricName("loss/g", "", None, "Loss of G in the game against D, without self-supervision.", STEPS),
    MetricName("loss/r1", "", None, "Squared slope of D at real images, before its weight.", STEPS),
    MetricName("loss/r2", "", None, "Squared slope of D at generated images, before its weight.", STEPS),
    MetricName("loss/gp", "", None, "Penalty of WGAN-GP on the slope of D between the two, before its weight.", STEPS),
    MetricName("loss/rotation_d", "nat", "lower", "Cross-entropy of D about the turns of real images.", STEPS),
    MetricName("loss/rotation_g", "nat", "lower", "Cross-entropy of D about the turns of generated images.", STEPS),
    MetricName("loss/content", "", "lower", "Content loss of a style transfer, of the images that train it.", STEPS),
    MetricName("loss/style", "", "lower", "Style loss of a style transfer, before its weight.", STEPS),
    MetricName("scores/real", "", None, "Score that D gives real images.", STEPS),
    MetricName("scores/fake", "", None, "Score that D gives generated images.", STEPS),
    MetricName("rotation/accuracy_real", "share", "higher", "Real images whose turn D recognises.", STEPS),
    MetricName("rotation/accuracy_fake", "share", "higher", "Generated images whose turn D recognises.", STEPS),
    MetricName("rotation/weight_g", "", None, "Weight of the rotation loss in the loss of G.", STEPS),
    MetricName(
        "optim/skipped", "updates", "lower", "Updates of a step that were skipped: a gradient was not finite.", STEPS
    ),
    MetricName(
        "probe/accuracy",
        "share",
        "higher",
        "The forgetting curve: images whose class a linear classifier on features of D recognises.",
        POINT,
    ),
    MetricName(
        "probe/accuracy/block{block}",
        "share",
        "higher",
        "The same by the averaged maps of one block of D; the images enter the first one.",
        POINT,
    ),
    MetricName("progress/kimg", "kimg", None, "Real images that D was shown, over all stages.", POINT),
    MetricName("progress/resolution", "pixels", None, "Side of the images of the stage.", POINT),
    MetricName("progress/alpha", "share", None, "Weight of the new resolution while it fades in.", POINT),
    MetricName("progress/lr", "", None, "Learning rate of G and D, or of a decoder.", POINT),
    MetricName("progress/batch", "images", None, "Images of a step, of all workers together.", POINT),
    MetricName(
        "time/img_per_sec",
        "images/s",
        "higher",
        "Real images shown to D, by all workers together, per second of the clock since the last point.",
        POINT,
    ),
    MetricName("time/sec_per_kimg", "s/kimg", "lower", "Seconds of the clock for a thousand of them.", POINT),
    MetricName("time/overhead", "share", "lower", "Time outside of optimizer steps.", POINT),
    MetricName(
        "time/data_wait",
        "share",
        "lower",
        "Time that the host waited for a batch; a GPU may be busy meanwhile.",
        POINT,
    ),
    MetricName(
        "time/path",
        "",
        "higher",
        "How steps are made: 0 by torch's own operations, 1 with element-wise ones fused by torch.compile, 2 by the kernels "
        "for GPUs, 3 replayed as CUDA graphs; the slowest way since the last point counts.",
        POINT,
    ),
    MetricName("time/train_hours", "h", "lower", "Time of training so far, by the clock of the curves.", DRIVER),
    MetricName("time/gpu_hours", "h", "lower", "GPUs that trained, times those hours.", DRIVER),
    MetricName("data/corrupt", "images", "lower", "Damaged images found so far; missing while there are none.", POINT),
    MetricName("drift/kid", "", "lower", "How different the new images of a retraining are (KID).", DRIVER),
    MetricName("drift/kid_low", "", "lower", "Lower end of its 95 % interval.", DRIVER),
    MetricName("drift/kid_high", "", "lower", "Upper end of its 95 % interval.", DRIVER),
    MetricName("events/worker_lost", "workers", "lower", "Workers that were lost; training went on from here.", DRIVER),
    MetricName(
        "events/head_lost", "", "lower", "The cluster was lost; training went on from here on the next.", DRIVER
    ),
    MetricName("events/preempted", "workers", None, "Workers whose node was announced to be taken away.", DRIVER),
    MetricName("events/resized", "workers", None, "Workers from here on, where their number changed.", DRIVER),
)
SYSTEM = (
    MetricName("cpu_utilization_percentage", "%", None, "Use of all CPU cores.", NODE),
    MetricName("system_memory_usage_megabytes", "MB", None, "Memory in use.", NODE),
    MetricName("system_memory_usage_percentage", "%", None, "Memory in use.", NODE),
    MetricName("disk_usage_percentage", "%", None, "Use of the disk of `/`.", NODE),
    MetricName("disk_usage_megabytes", "MB", None, "Use of the disk of `/`.", NODE),
    MetricName("disk_available_megabytes", "MB", None, "Free space on the disk of `/`.", NODE),
    MetricName("network_receive_megabytes", "MB", None, "Received since the measuring began.", NODE),
    MetricName("network_transmit_megabytes", "MB", None, "Sent since the measuring began.", NODE),
    MetricName("gpu_{gpu}_utilization_percentage", "%", "higher", "Time in which the GPU computed.", NODE),
    MetricName("gpu_{gpu}_memory_usage_megabytes", "MB", None, "GPU memory in use.", NODE),
    MetricName("gpu_{gpu}_memory_usage_percentage", "%", None, "GPU memory in use.", NODE),
    MetricName("gpu_{gpu}_power_usage_watts", "W", None, "Power of the GPU.", NODE),
    MetricName("gpu_{gpu}_power_usage_percentage", "%", None, "Power of the GPU, as a share of its limit.", NODE),
)


@cache
def metric_names() -> tuple[MetricName, ...]:
    """Return all rows: those of training and of the run, of `quick/`, of `eval/`, and of `system/`."""
    numbers = [facts for facts in METRICS.values() if facts.gate]  # not curves
    rows = list(TABLE)
    quick = [(name, value) for facts in numbers if facts.quick for name, value in facts.values.items()]
    rows += [MetricName(f"quick/{name}_{{space}}", "", v.better, v.meaning, BESIDE) for name, v in quick]
    full = [(name, value) for facts in numbers for name, value in facts.values.items()]
    rows += [MetricName(f"eval/{name}_{{network}}", "", v.better, v.meaning, MODEL) for name, v in full]
    meaning = "Share of real images that the network classifies right; of images held out of its training."
    rows.append(MetricName(f"eval/{{network}}{ACCURACY}", "share", None, meaning, MODEL))
    rows += [MetricName(f"system/{{host}}/{r.name}", r.unit, r.better, r.meaning, r.measured) for r in SYSTEM]
    return tuple(rows)


def find(name: str) -> MetricName | None:
    """Return the row of a metric, None for an unknown name."""
    return next((row for row in metric_names() if row.matches(name)), None)


@cache
def _pattern(name: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", name)
    return re.compile("".join(PLACEHOLDERS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts)))


@cache
def _is_known(name: str) -> bool:
    return find(name) is not None


def warn_of_unknown(names: Iterable[str]) -> None:
    """Warn of each name that the table lacks. The value is logged all the same: a run does not end for its label."""
    for name in names:
        if not _is_known(name):
            warnings.warn(
                f"the table of stylegan/tracking/metric_names.py lacks {name}", UnknownMetricWarning, stacklevel=2
            )


def constant_names(config: Config) -> frozenset[str]:
    """Return the metrics of the curves that the config makes the same at every point: a chart of one says nothing.

    They stay in `stats.jsonl`, and MLflow has the settings as params. `progress/resolution` is always logged: by it, who
    reads the curves from MLflow knows the stage of a point.
    """
    plan, rotation = stages(config), config.training.rotation
    varies = {
        "progress/alpha": any(stage.fade_images for stage in plan),
        "progress/lr": config.transfer is not None or len({stage.learning_rate for stage in plan}) > 1,
        "progress/batch": len({stage.batch for stage in plan}) > 1,
        "rotation/weight_g": rotation is not None and rotation.decay_kimg is not None,
        "time/path": any(config.workers_at(resolution).gpus_per_worker for resolution in config.resolutions),
    }
    return frozenset(name for name, changes in varies.items() if not changes)


# The table in README.md.


def markdown() -> str:
    """Return the table as Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "| metric | unit | better | meaning | measured |"
    yield "|---|---|---|---|---|"
    for row in metric_names():
        yield f"| `{row.name}` | {row.unit} | {row.better or ''} | {row.meaning} | {row.measured} |"


def render_files() -> dict[Path, str]:
    """Return the text that README.md must have. Raises ValueError if it lacks a marker comment."""
    return {README: replace_between(README, BEGIN, END, markdown())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table into README.md if it is stale there, or with `--check` only say so; return the exit code."""
    return write_stale(
        render_files,
        arguments,
        module="stylegan.tracking.metric_names",
        make="metric-names",
        source=SOURCE,
        about="Document the metrics in MLflow.",
    )


if __name__ == "__main__":
    sys.exit(main())
