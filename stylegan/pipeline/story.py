"""Tell the story of a run, for its page and its note in MLflow: verdict, what differs from other runs, how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version as installed

import stylegan
from stylegan import storage
from stylegan.commands import shell_command
from stylegan.config.file import dump, flatten
from stylegan.config.file import read as read_config
from stylegan.config.tree import Config
from stylegan.config.yaml_text import write
from stylegan.errors import UserError, shown
from stylegan.evaluation.metric_table import describe, split_key
from stylegan.evaluation.page.html import RunParts
from stylegan.evaluation.page.metric_rows import number
from stylegan.evaluation.page.run_story import Against, ComparedMetric, Outcome, Setting, Story
from stylegan.evaluation.page.write_page import read_report
from stylegan.evaluation.report import Report
from stylegan.pipeline.run import Run
from stylegan.progress import duration
from stylegan.records import digest
from stylegan.registry.gate import WHY_NOT, Difference, Verdict, difference, metric_key
from stylegan.tracking.presentation import EarlierRun, commit_tag, differing
from stylegan.training.cost import gpu_hours
from stylegan.training.curves import train_seconds
from stylegan.training.hardware import Hardware
from stylegan.training.identity import place_below
from stylegan.training.samples import read_film
from stylegan.training.state import MARKER, read_checkpoint
from stylegan.uris import redact


def story_key(verdict: Verdict) -> str:
    """Return what tells the story of one verdict from that of another."""
    return digest(["story", 1, verdict])


def tell(
    run: Run,
    report: Report | None = None,
    *,
    verdict: Verdict | None = None,
    against: Report | None = None,
    previous: EarlierRun | None = None,
    links: Mapping[str, str] = {},
) -> Story:
    """Tell the story of a run, as far as it has come.

    Args:
        run: in storage.
        report: of its evaluation.
        verdict: of the gate; None before.
        against: the report of the champion, as it was judged against.
        previous: the run before this one.
        links: addresses by what is there.
    """
    champion = _against_champion(run, report, verdict, against) if report and verdict else None
    known = champion.run_id if champion else None
    earlier = _against_previous(run, report, previous) if report and previous and previous.run_id != known else None
    config = run.config
    return Story(
        key=story_key(verdict) if verdict else "",
        headline=_headline(config, report, verdict, champion) if report and verdict else "",
        promoted=verdict.promote if verdict else None,
        reasons=verdict.reasons if verdict else (),
        champion=champion,
        previous=earlier,
        command=redact(_command(run)),
        facts=_facts(run),
        changed=redact(write(config.model_dump(mode="json", exclude_defaults=True))),
        config=redact(dump(config)),
        links=dict(links),
    )


def _command(run: Run) -> str:
    """Return the command that repeats a run: as it was typed, else with the config that the run has kept."""
    if run.config.is_named:
        return run.config.command("run")
    return shell_command("stylegan", "run", storage.join(run.uri, "config.yaml"))


def parts_of(run: Run, story: Story) -> RunParts:
    """Return all that the page of a run has beside its report."""
    return RunParts(
        story=story,
        rows=run.curves(),
        starts={stage.resolution: stage.start_nimg for stage in run.stages},
        film=read_film(run.config, {stage.resolution: run.stage_uri(stage) for stage in run.stages}),
    )


# --- how it was made --------------------------------------------------------------------------------------------------


def hardware_of(run: Run) -> Hardware | None:
    """Return on what the last finished stage of a run was trained that says so, None if none does."""
    found = (run.hardware(stage) for stage in reversed(run.stages) if run.find_stage(stage))
    return next((hardware for hardware in found if hardware), None)


def hours_by_stage(run: Run) -> list[tuple[int, int, float, float]]:
    """Return for each stage with curves its last image count, resolution, hours of training until then, and GPU-hours."""
    found, hours, gpus = list[tuple[int, int, float, float]](), 0.0, 0.0
    every = run.curves()
    for stage in run.stages:
        rows = [row for row in every if row["resolution"] == stage.resolution]
        if not rows:
            continue
        seconds = train_seconds(rows, start_nimg=stage.start_nimg)
        hours += seconds / 3600
        gpus += gpu_hours(run.config, stage, seconds)
        found.append((rows[-1]["nimg"], stage.resolution, hours, gpus))
    return found


def _facts(run: Run) -> dict[str, str]:
    facts = dict[str, str]()
    hours = hours_by_stage(run)
    if hours:
        nimg, _, train, gpus = hours[-1]
        facts["Images shown"] = f"{nimg / 1000:,g} kimg"
        speed = (nimg - run.stages[0].start_nimg) / (train * 3600) if train else None
        facts["Training"] = f"{duration(train * 3600)}, {number(speed)} images per second, without starts and waits"
        if gpus:
            facts["GPU-hours"] = number(gpus)
    hardware = hardware_of(run)
    if hardware:
        facts["Device"] = hardware.device
        machines = (
            f" on {', '.join(hardware.hosts)}" if len(hardware.hosts) <= 4 else f" on {len(hardware.hosts)} machines"
        )
        facts["Workers"] = f"{hardware.workers}{machines}"
    versions = {"torch": hardware.torch} if hardware else {}
    versions |= {name: installed(name) for name in ("ray", "prefect", "mlflow")}
    facts["Versions"] = ", ".join(
        [f"stylegan {stylegan.__version__}", *(f"{name} {text}" for name, text in versions.items())]
    )
    if commit := next(iter(commit_tag().values()), None):
        facts["Commit"] = commit
    facts["Images"] = f"{shown(redact(run.config.data.source), 200)}, {run.shards.num_images:,}"
    return facts


# --- other runs -------------------------------------------------------------------------------------------------------


def _headline(config: Config, report: Report, verdict: Verdict, champion: Against | None) -> str:
    """Return the outcome in a sentence."""
    key = metric_key(report, config.registry.gate.metric)
    value = f"{describe(key).title} {number(report.metrics[key])}" if key else "no value of the gate's metric"
    whose = f"Version {verdict.challenger} of {config.model_name}"
    if verdict.champion is None or champion is None:
        outcome = "is the first champion" if verdict.promote and verdict.champion is None else _outcome(verdict)
        return f"{whose} {outcome}: {value}."
    words = next((metric.words for metric in champion.metrics if metric.key == key), "nothing compares")
    return f"{whose} {_outcome(verdict)}: {value}, {words} (champion: version {verdict.champion})."


def _outcome(verdict: Verdict) -> str:
    return "is champion" if verdict.promote else "was not promoted"


def _against_champion(run: Run, report: Report, verdict: Verdict, against: Report | None) -> Against | None:
    if against is None or verdict.champion in (None, verdict.challenger):
        return None
    run_id = _run_of(run, against)
    return Against(
        name=f"the champion, version {verdict.champion}",
        run_id=run_id,
        metrics=_compared(run.config, report, against),
        settings=_settings(run, _stored_settings(run, run_id)),
    )


def _against_previous(run: Run, report: Report, previous: EarlierRun) -> Against:
    other = None
    with suppress(UserError):  # what is damaged is for its own run to report
        other = read_report(storage.join(run.root, "runs", previous.run_id))
    return Against(
        name="the run before it",
        run_id=previous.run_id,
        metrics=_compared(run.config, report, other) if other else (),
        settings=_settings(run, previous.settings),
    )


def _run_of(run: Run, report: Report) -> str:
    """Return the run that has trained the checkpoint of a report; its checkpoint if that is gone."""
    uri = place_below(run.root, report.checkpoint_uri)
    with suppress(UserError):
        if storage.exists(storage.join(uri, MARKER)):
            return read_checkpoint(uri).run_id
    return report.checkpoint_uri


def _stored_settings(run: Run, run_id: str) -> dict[str, str] | None:
    uri = storage.join(run.root, "runs", run_id, "config.yaml")
    try:
        return flatten(read_config(storage.read_bytes(uri).decode(), uri))
    except (FileNotFoundError, UserError, UnicodeDecodeError, ValueError):
        return None


def _settings(run: Run, others: Mapping[str, str] | None) -> tuple[Setting, ...] | None:
    if others is None:
        return None
    return tuple(Setting(key=key, old=old, new=new) for key, old, new in differing(flatten(run.config), others))


def _compared(config: Config, report: Report, other: Report) -> tuple[ComparedMetric, ...]:
    """Return the metrics that two reports have, each judged as the gate does."""
    rows = []
    for key in report.metrics:
        if describe(key).better is None:
            continue
        name = split_key(key)[0]
        found = difference(report, other, name, use_intervals=config.registry.gate.use_intervals)
        if found is None or found.key != key:
            continue
        others = metric_key(other, name) or key
        rows.append(
            ComparedMetric(
                key=key,
                value=found.value,
                other=found.other,
                interval=report.intervals.get(key),
                other_interval=other.intervals.get(others),
                outcome=_kind(found),
                words=_words(found),
            )
        )
    return tuple(rows)


def _kind(found: Difference) -> Outcome:
    if found.obstacles:
        return "incomparable"
    if found.better is None:
        return "equal"
    return "better" if found.better else "worse"


def _words(found: Difference) -> str:
    """Return what a difference amounts to: `12 % better, more than chance explains`."""
    if found.obstacles:
        return f"does not compare: {'; '.join(WHY_NOT[obstacle] for obstacle in found.obstacles)}"
    if found.better is None:
        return "equal"
    word = "better" if found.better else "worse"
    change = f"{abs(found.gain / found.other):.0%} ".replace("%", " %") if found.gain and found.other else ""
    chance = {True: ", more than chance explains", False: ", within what chance explains", None: ", chance not tested"}
    return f"{change}{word}{chance[found.beyond_chance]}"
