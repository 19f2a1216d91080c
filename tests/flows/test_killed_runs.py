"""Flow runs whose process was killed."""

import os
import subprocess
import sys

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Running

from flows import killed_runs

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
            ended = killed_runs.end_killed_runs("stylegan-test")
            return ended, client.read_flow_run(killed.id).state.name

    assert lives() == (1, "Crashed")


def test_a_run_of_another_machine_or_container_stays(monkeypatch):
    """Its pid does not exist here, though its host has the same name."""
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    tag = killed_runs.process_tag().replace(str(os.getpid()), gone.stdout.strip())
    assert killed_runs._is_gone(tag)
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[another]")
    assert not killed_runs._is_gone(tag)
