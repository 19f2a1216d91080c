"""Flow runs whose process was killed."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL
from prefect.states import Pending, Running

from flows import killed_runs
from stylegan import processes

pytestmark = pytest.mark.usefixtures("prefect_api")


def test_a_run_whose_process_is_gone_becomes_crashed_and_a_living_one_stays():
    @flow(name="stylegan-test", persist_result=False)
    def lives():
        killed_runs.tag_process()
        gone = subprocess.run(
            [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
        )
        with get_client(sync_client=True) as client:
            killed = client.create_flow_run(
                lives, tags=[killed_runs.process_tag().replace(str(os.getpid()), gone.stdout.strip())]
            )
            client.set_flow_run_state(killed.id, Running(), force=True)
            ended = killed_runs.end_killed_runs(["stylegan-test"])
            return len(ended), client.read_flow_run(killed.id).state.name

    assert lives() == (1, "Crashed")


def test_a_run_whose_worker_was_lost_before_it_began_becomes_crashed(monkeypatch):
    @flow(name="stylegan-pending", persist_result=False)
    def waits():
        pass

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(waits)
        client.set_flow_run_state(run.id, Pending(name="Submitting"), force=True)
        assert killed_runs.end_killed_runs(["stylegan-pending"]) == []  # it may begin in a moment
        monkeypatch.setattr(killed_runs, "NEVER_BEGAN", timedelta(0))
        assert len(killed_runs.end_killed_runs(["stylegan-pending"])) == 1
        assert client.read_flow_run(run.id).state.name == "Crashed"


def test_a_run_of_another_machine_or_container_stays(monkeypatch):
    """Its pid does not exist here, though its host has the same name."""
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    tag = killed_runs.process_tag().replace(str(os.getpid()), gone.stdout.strip())
    assert killed_runs._is_gone(tag)
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[another]")
    assert not killed_runs._is_gone(tag)


def test_the_embedded_history_shows_what_the_next_flow_run_would_mend(tmp_path):
    """A killed run of any name, or a last run of this name that failed; the file itself is read, without a server."""
    database = Path(PREFECT_SERVER_DATABASE_CONNECTION_URL.value().partition(":///")[2])

    @flow(name="stylegan-history", flow_run_name="digits", persist_result=False)
    def ends(well):
        killed_runs.tag_process()
        assert not unfinished("others")  # a run that lives is nobody's to mend
        if not well:
            raise ValueError("on purpose")

    def unfinished(run_name="digits"):
        return killed_runs.has_unfinished("stylegan-history", run_name, database)

    assert not killed_runs.has_unfinished("stylegan-history", "digits", tmp_path / "absent.db")
    ends(True)
    assert not unfinished()
    with pytest.raises(ValueError, match="on purpose"):
        ends(False)
    assert (unfinished(), unfinished("others")) == (True, False)
    ends(True)
    assert not unfinished()
    with get_client(sync_client=True) as client:
        tag = f"{killed_runs.PID_TAG}{processes.place()}:{os.getpid()}:1"  # that pid belongs to another process now
        killed = client.create_flow_run(ends, name="others", parameters={"well": True}, tags=[tag])
        client.set_flow_run_state(killed.id, Running(), force=True)
    assert (unfinished(), unfinished("others")) == (True, True)
    killed_runs.end_killed_runs(["stylegan-history"])
    assert (unfinished(), unfinished("others")) == (False, True)


def test_a_history_that_cannot_be_read_counts_as_unfinished(tmp_path):
    database = tmp_path / "prefect.db"
    database.write_bytes(b"not a database, " * 300)
    assert killed_runs.has_unfinished("stylegan-train", "digits", database)
    database.unlink()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("create table flow_run (id text)")  # of another version
    assert killed_runs.has_unfinished("stylegan-train", "digits", database)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_a_signal_stops_is_cancelled_with_its_task(number):
    """SIGTERM to its own process is answered by Prefect, which sends it again at the end."""

    @task
    def stops():
        signal.raise_signal(number)
        time.sleep(60)

    @flow(name=f"stylegan-stopped-{number}", persist_result=False, on_crashed=[killed_runs.show_stopped])
    def stopped():
        stops()

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(BaseException):  # noqa: B017, PT011 (of several kinds)
            stopped()
    finally:
        signal.signal(signal.SIGTERM, before)
    with get_client(sync_client=True) as client:
        named = FlowFilter(name=FlowFilterName(any_=[f"stylegan-stopped-{number}"]))
        (run,) = client.read_flow_runs(flow_filter=named)
        (done,) = client.read_task_runs(flow_filter=named)
    assert (run.state_name, done.state_name) == ("Cancelled", "Cancelled")
    assert "repeat the run to go on" in run.state.message
