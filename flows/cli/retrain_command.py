"""The command that does by hand what the schedule does: a check, and a retraining if there is reason for one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.cli import console
from flows.cli.arguments import AsJson, ConfigFile, Overrides, load
from flows.cli.console import print_json
from stylegan.errors import ConfigError, StepError

if TYPE_CHECKING:
    from datetime import date

    from flows.retrain import Retrained
    from stylegan.config.tree import Config


def retrain(
    config: ConfigFile,
    /,
    *,
    date: str | None = None,
    dates: str | None = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Look at the source and train again if there is reason to, as the schedule does; `retrain` in the config has the rules.

    With --json a line for each day: what was found, what was decided and why, and the summary of the run.

    Parameters
    ----------
    date
        Day that stands for {date} in data.source, such as 2026-03-31; unset: today.
    dates
        Backfill: all days of A..B, oldest first, each once. The same command goes on where it stopped.

    Examples
    --------
    stylegan retrain faces.yaml
    stylegan retrain faces.yaml --set retrain.start=champion
    stylegan retrain daily.yaml --dates 2026-03-01..2026-03-31
    """
    settings = load(config, overrides)
    from flows import notify
    from flows.cli.run_commands import quiet_prefect
    from stylegan.pipeline import retraining

    if date is not None and dates is not None:
        raise ConfigError(f"--date {date} with --dates {dates}: give one of them")
    days = retraining.parse_days(dates) if dates is not None else [retraining.parse_day(date) if date else None]
    retraining.for_day(settings, days[0])  # whether the source takes a day
    notify.check_urls(settings)
    quiet_prefect()
    lacking = []
    for day in days:
        try:
            done = _retrain(config, overrides, retraining.for_day(settings, day), day)
        except ConfigError as error:
            if dates is None or "no such folder or file" not in str(error):
                raise
            lacking.append(str(day))
            console.print_note(f"{day}: {error}")
            continue
        if as_json:
            print_json(done)
        else:
            console.print_retrained(settings, done, str(day) if day else None)
    if lacking:
        raise StepError(
            f"--dates {dates}: {len(lacking)} of {len(days)} days have no source, the first is {lacking[0]}; all others "
            "are done, and the same command does these as soon as they are there"
        )


def _retrain(config: str, overrides: list[str] | None, settings: Config, day: date | None) -> Retrained:
    """Do the flow; without a Prefect server of the user's own only if there is something to do, since one takes longer
    to start than a check."""
    from flows.killed_runs import RETRAIN_FLOW_NAME, has_unfinished
    from flows.prefect_server import api, own_history

    text, history = day.isoformat() if day else None, own_history()
    if history is not None and not has_unfinished(RETRAIN_FLOW_NAME, Path(config).stem, history):
        from flows.retrain import glance

        if nothing := glance(settings, text):
            return nothing
    from flows.cli.run_commands import import_engines

    with api(meanwhile=import_engines):
        from flows.retrain import retrain_flow

        ended: Any = retrain_flow(config, overrides or [], text, return_state=True)
        done: Retrained = ended.result()
    return done
