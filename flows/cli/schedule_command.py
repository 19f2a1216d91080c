"""The command that lets Prefect retrain a model on a schedule."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flows.cli.arguments import AsJson, ConfigFile, Overrides, load
from flows.cli.console import print_json, print_result
from stylegan.commands import shell_command
from stylegan.errors import ConfigError, printable

if TYPE_CHECKING:
    from flows.schedule import Scheduled


def schedule(
    config: ConfigFile,
    /,
    *,
    cron: str | None = None,
    every: str | None = None,
    timezone: str | None = None,
    now: bool = False,
    pause: bool = False,
    resume: bool = False,
    delete: bool = False,
    show: bool = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Retrain on a schedule: make, change, show, pause or delete it in the Prefect server that PREFECT_API_URL names.

    The same command again changes nothing; with other values it changes the schedule. Runs read the config when they start.

    Parameters
    ----------
    cron
        When runs start: minute, hour, day of the month, month, day of the week.
    every
        Time between two starts instead: a number with one of s, m, h, d, w.
    timezone
        Time zone of the cron expression, such as Europe/Berlin; unset: UTC.
    now
        Let a run start at once.
    pause
        Let no run start by itself until --resume.
    resume
        Let runs start again.
    delete
        Delete the schedule; runs under way go on.
    show
        Only say what is there: the next runs, and what became of the last ones.

    Examples
    --------
    stylegan schedule faces.yaml --cron "0 3 * * 1" --timezone Europe/Berlin
    stylegan schedule faces.yaml --every 6h --now
    stylegan schedule faces.yaml --show
    stylegan schedule faces.yaml --pause
    """
    chosen = [
        name for name, given in (("pause", pause), ("resume", resume), ("delete", delete), ("show", show)) if given
    ]
    if len(chosen) > 1:
        raise ConfigError(f"--{chosen[0]} with --{chosen[1]}: give one of them")
    if chosen and (cron or every or timezone):
        raise ConfigError(f"--{chosen[0]} with a timetable: give one of them")
    if now and (delete or show):
        raise ConfigError(f"--{chosen[0]} with --now: give one of them")
    settings = load(config, overrides)
    if any(override.startswith("retrain.notify") for override in overrides or ()):
        raise ConfigError(
            "--set retrain.notify: Prefect would keep and show its secrets; write it into the config file"
        )
    from flows.cli.run_commands import quiet_prefect

    quiet_prefect()
    from flows import notify, schedule
    from flows.prefect_server import require_server

    timetable = schedule.parse_timetable(cron, every, timezone) if cron or every or not (chosen or now) else None
    notify.check_urls(settings)
    require_server()
    name = settings.name
    if timetable is not None:
        found = schedule.apply(name, os.path.abspath(config), overrides or (), timetable, os.getcwd())
    elif pause or resume:
        found = schedule.pause(name, paused=pause)
    elif delete:
        deleted = schedule.delete(name)
        print_result(deleted, f"{name}: {'the schedule is deleted' if deleted.deleted else 'had no schedule'}", as_json)
        return
    else:
        found = schedule.show(name)
    if now:
        found = found.model_copy(update={"started": schedule.trigger(name)})
    if as_json:
        print_json(found)
    else:
        _print(found, new=timetable is not None)


def _print(found: Scheduled, *, new: bool) -> None:
    """Print a schedule for people, with the commands that come next."""
    print(f"{found.deployment}: {found.timetable or 'no timetable'}{', paused' if found.paused else ''}")
    print(
        f"config     {printable(found.config)}{''.join(f' --set {value}' for value in map(printable, found.overrides))}"
    )
    for run in found.next:
        print(f"next       {run.time}")
    for run in found.last:
        print(f"run        {run.time}  {run.state}{f': {printable(run.why)}' if run.why else ''}")
    if found.started:
        print(f"started    {found.started}")
    if found.url:
        print(f"page       {found.url}")
    if new:
        from flows.schedule import POOL

        print(f"\nRuns are carried out by a worker: {shell_command('prefect', 'worker', 'start', '--pool', POOL)}")
