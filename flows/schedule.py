"""The schedule of a config in Prefect: a work pool, a deployment of `retrain_flow`, and an automation that ends dead runs.

All three are made from one definition, which is also that of infra/prefect.yaml. There is no concurrency limit: Prefect
holds it by a lease that dies with its server, and then ends the run that works. Never two at once is the flow's own lock.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, available_timezones

from flows.killed_runs import FLOW_NAME, RETRAIN_FLOW_NAME
from stylegan.commands import shell_command
from stylegan.errors import ConfigError, StepError, one_line
from stylegan.records import Record

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

POOL, POOL_TYPE = "stylegan", "process"
SLUG = "schedule"
ENTRYPOINT = "flows.retrain.retrain_flow"
DESCRIPTION = "Train again if there is reason to, and promote the model if it beats the champion."
ENVIRONMENT = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": "stylegan",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "180",
    # A run that begins while the server is away waits for it: 2 + 4 + ... + 512 seconds.
    "PREFECT_CLIENT_MAX_RETRIES": "9",
}
AUTOMATION = "stylegan: runs without a sign of life are Crashed"
# Three heartbeats. A shorter window would end runs of a machine that is busy; their events come late.
WINDOW = timedelta(seconds=540)
LEAST, MOST = timedelta(minutes=1), timedelta(days=366)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Timetable(Record):
    """When runs start: by `cron` in a time zone, or `every` so many seconds."""

    cron: str | None = None
    every: float | None = None
    timezone: str = "UTC"

    @property
    def text(self) -> str:
        """The timetable in words."""
        if self.cron:
            return f"cron {self.cron!r} in {self.timezone}"
        return f"every {timedelta(seconds=self.every or 0)}"


class PlannedRun(Record):
    """A run that is to come or was: when, in the time zone of the timetable, its state, and why it is in it."""

    time: str
    state: str
    why: str = ""


class Scheduled(Record):
    """What Prefect knows of the schedule of a config.

    Attributes:
        deployment: its name, `flow/name`.
        timetable: when runs start, in words; None for a deployment without a schedule.
        paused: whether no run starts by itself.
        config: path of the config.
        overrides: values on top of it.
        next: the next runs.
        last: the newest runs, the newest first.
        url: page of the deployment.
        started: name of the run that was let start at once; None without one.
    """

    deployment: str
    timetable: str | None
    paused: bool
    config: str
    overrides: tuple[str, ...]
    next: tuple[PlannedRun, ...] = ()
    last: tuple[PlannedRun, ...] = ()
    url: str = ""
    started: str | None = None


class Deleted(Record):
    """What the deletion of a schedule has found.

    Attributes:
        deployment: its name, `flow/name`.
        deleted: whether there was such a deployment, which is gone now.
    """

    deployment: str
    deleted: bool


# --- the definition ---


def parse_timetable(cron: str | None, every: str | None, timezone: str | None) -> Timetable:
    """Check and return a timetable.

    Args:
        cron: five fields, such as `0 3 * * 1`.
        every: a number with a unit, such as `6h`.
        timezone: name of a time zone of the IANA, such as `Europe/Berlin`; UTC if unset.

    Raises:
        ConfigError: both or neither are given, or one of them is no such thing, or no run would ever start.
    """
    if (cron is None) == (every is None):
        raise ConfigError("schedule: give one of --cron and --every, such as --cron '0 3 * * 1' or --every 6h")
    zone = timezone or "UTC"
    if zone not in available_timezones():
        near = difflib.get_close_matches(zone, available_timezones(), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; write it as Europe/Berlin"
        raise ConfigError(f"--timezone {zone}: is no time zone of the IANA{hint}")
    if every is not None:
        return Timetable(every=_parse_every(every).total_seconds(), timezone=zone)
    assert cron is not None
    _check_cron(cron)
    return Timetable(cron=cron, timezone=zone)


def _parse_every(text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhdw])", text)
    span = timedelta(**{_UNITS[found[2]]: float(found[1])}) if found else None
    if span is None or not LEAST <= span <= MOST:
        raise ConfigError(f"--every {text}: must be from 1m to 366d, a number with one of s, m, h, d and w, such as 6h")
    return span


def _check_cron(cron: str) -> None:
    from prefect._vendor.croniter import croniter

    cure = "write five fields: minute, hour, day of the month, month, day of the week, such as '0 3 * * 1'"
    if len(cron.split()) != 5 or not croniter.is_valid(cron) or re.search(r"[HR]", cron):
        raise ConfigError(f"--cron {cron!r}: is no cron expression; {cure}")
    try:
        croniter(cron, datetime.now(UTC)).get_next(datetime)
    except Exception as error:  # croniter looks ahead for fifty years
        raise ConfigError(f"--cron {cron!r}: never fires ({one_line(error, 80)}); {cure}") from None


def deployment(name: str, config: str, overrides: Sequence[str], timetable: Timetable, folder: str) -> dict[str, Any]:
    """Return the deployment of a config, as the arguments of Prefect's `create_deployment`.

    Args:
        name: of the deployment.
        config: path of the config; a run reads it when it starts, so changes of the file need no new deployment.
        overrides: `key.path=value` strings on top of it.
        timetable: when runs start.
        folder: where runs start, for relative paths.
    """
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    if timetable.cron:
        schedule: Any = CronSchedule(cron=timetable.cron, timezone=timetable.timezone)
    else:
        schedule = IntervalSchedule(interval=timedelta(seconds=timetable.every or 0), timezone=timetable.timezone)
    return {
        "name": name,
        "description": DESCRIPTION,
        "entrypoint": ENTRYPOINT,
        "work_pool_name": POOL,
        "parameters": {"config": config, "overrides": list(overrides)},
        "schedules": [DeploymentScheduleCreate(schedule=schedule, active=True, slug=SLUG)],
        "job_variables": {"env": ENVIRONMENT},
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": folder}}],
        "enforce_parameter_schema": True,
        "tags": [],
    }


def automation() -> Any:
    """Return the automation that sets runs of our flows to Crashed whose heartbeats have stopped.

    Any event of a run is a sign of life, since a run may end in a state of any name.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    flows = [FLOW_NAME, RETRAIN_FLOW_NAME]
    return AutomationCore(
        name=AUTOMATION,
        description="Its machine or its process is gone. The next run of its schedule goes on from storage.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": flows},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=WINDOW,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no sign of life; its process is gone")],
    )


# --- Prefect ---


def apply(name: str, config: str, overrides: Sequence[str], timetable: Timetable, folder: str) -> Scheduled:
    """Make the work pool, the deployment and the automation, or change them to this; return what is there then.

    Runs that were scheduled before, by another timetable or with other parameters, are gone afterwards.

    Raises:
        StepError: the server refuses.
    """
    with _client() as client:
        _make_pool(client)
        schema = _parameter_schema()
        flow_id = client.create_flow_from_name(RETRAIN_FLOW_NAME)
        definition = deployment(name, config, overrides, timetable, folder)
        client.create_deployment(flow_id, parameter_openapi_schema=schema, paused=False, **definition)
        _make_automation(client)
    return show(name)


def pause(name: str, *, paused: bool) -> Scheduled:
    """Pause or resume the schedule of a config. Raises StepError if it has none."""
    with _client() as client:
        found = _require(client, name)
        (client.pause_deployment if paused else client.resume_deployment)(found.id)
    return show(name)


def delete(name: str) -> Deleted:
    """Delete the schedule of a config, and say whether there was one. Work pool and automation serve others and stay."""
    with _client() as client:
        found = _find(client, name)
        if found is not None:
            client.delete_deployment(found.id)
    return Deleted(deployment=f"{RETRAIN_FLOW_NAME}/{name}", deleted=found is not None)


def trigger(name: str) -> str:
    """Let a run start now, and return its name. Raises StepError if there is no schedule."""
    with _client() as client:
        run = client.create_flow_run_from_deployment(_require(client, name).id)
    return str(run.name)


def show(name: str) -> Scheduled:
    """Return what Prefect knows of the schedule of a config. Raises StepError if it has none."""
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.settings import PREFECT_UI_URL

    with _client() as client:
        found = _require(client, name)
        schedules = [one.schedule for one in found.schedules]
        zone = ZoneInfo(getattr(schedules[0], "timezone", None) or "UTC") if schedules else ZoneInfo("UTC")
        own = DeploymentFilter(id=DeploymentFilterId(any_=[found.id]))
        old = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(not_any_=[StateType.SCHEDULED])))
        runs = client.read_flow_runs(
            deployment_filter=own, flow_run_filter=old, sort=FlowRunSort.START_TIME_DESC, limit=5
        )
    begin = datetime.now(UTC)
    paused = found.paused or not any(one.active for one in found.schedules)
    coming = [] if paused else [time for schedule in schedules for time in _next_times(schedule, begin)]
    return Scheduled(
        deployment=f"{RETRAIN_FLOW_NAME}/{name}",
        timetable=_words(schedules[0]) if schedules else None,
        paused=paused,
        config=str(found.parameters.get("config", "")),
        overrides=tuple(found.parameters.get("overrides") or ()),
        next=tuple(PlannedRun(time=_shown(time, zone), state="Scheduled") for time in sorted(coming)[:3]),
        last=tuple(
            PlannedRun(
                time=_shown(run.start_time or run.expected_start_time, zone),
                state=run.state_name or "",
                why=(run.state.message or "") if run.state else "",
            )
            for run in runs
        ),
        url=f"{PREFECT_UI_URL.value()}/deployments/deployment/{found.id}" if PREFECT_UI_URL.value() else "",
    )


def _next_times(schedule: Any, begin: datetime) -> list[datetime]:
    """Return the next three times of a schedule."""
    import asyncio

    from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule

    kind = CronSchedule if hasattr(schedule, "cron") else IntervalSchedule
    return asyncio.run(kind.model_validate(schedule.model_dump()).get_dates(n=3, start=begin))  # type: ignore[arg-type]


def _words(schedule: Any) -> str:
    zone = getattr(schedule, "timezone", None) or "UTC"
    if hasattr(schedule, "cron"):
        return Timetable(cron=schedule.cron, timezone=zone).text
    return Timetable(every=schedule.interval.total_seconds(), timezone=zone).text


def _shown(time: datetime | None, zone: Any) -> str:
    return f"{time.astimezone(zone):%Y-%m-%d %H:%M %Z}" if time else ""


@contextmanager
def _client() -> Iterator[SyncPrefectClient]:
    """Yield a client of Prefect's server. What that refuses in the block is a StepError."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with get_client(sync_client=True) as client:
            yield client
    except PrefectHTTPStatusError as error:
        raise StepError(
            f"Prefect's server refuses this: {one_line(error)}; `{shell_command('stylegan', 'doctor')}` says whether it is "
            "of another version than this program"
        ) from error


def _find(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(f"{RETRAIN_FLOW_NAME}/{name}")
    except ObjectNotFound:
        return None


def _require(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    found = _find(client, name)
    if found is None:
        raise StepError(f"{name}: has no schedule; make one by --cron or --every")
    return found


def _make_pool(client: SyncPrefectClient) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    try:
        found = client.read_work_pool(POOL)
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):  # by another command in this moment
            client.create_work_pool(WorkPoolCreate(name=POOL, type=POOL_TYPE))
        return
    if found.type != POOL_TYPE:
        raise StepError(
            f"Prefect's work pool {POOL} is of type {found.type}, where runs start as processes: rename or delete it"
        )


def _make_automation(client: SyncPrefectClient) -> None:
    wanted, found = automation(), client.read_automations_by_name(AUTOMATION)
    if not found:
        client.create_automation(wanted)
        return
    client.update_automation(found[0].id, wanted)
    for double in found[1:]:
        client.delete_automation(double.id)


def _parameter_schema() -> dict[str, Any]:
    from prefect.utilities.callables import parameter_schema

    from flows.retrain import retrain_flow

    return parameter_schema(retrain_flow).model_dump(exclude_unset=True)
