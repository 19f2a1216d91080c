"""Databases of the minor versions of MLflow and Prefect before the pinned ones, and servers with a login that `doctor` knows.

tests/infra/old/make.py has made the databases. Nothing of what is in them is lost.
"""

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
from old_databases import require_everything, restore
from prefect_servers import Server

from stylegan.errors import StepError
from stylegan.tracking.connection import connect

LOGIN = {"PREFECT_SERVER_API_AUTH_STRING": "me:se@cret", "PREFECT_API_AUTH_STRING": "me:se@cret"}


def dump(path: Path) -> list[str]:
    """Return everything that is in a SQLite file."""
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


def test_an_older_mlflow_file_is_upgraded_with_everything_in_it_and_a_copy_stays(tmp_path, caplog):
    path = restore("mlflow", tmp_path / "mlflow.db")
    before = dump(path)
    require_everything(connect(f"sqlite:///{path}"))
    (copy,) = tmp_path.glob("mlflow.db.before-*")
    assert dump(copy) == before
    assert dump(path) != before
    (line,) = [record.getMessage() for record in caplog.records if record.name == "stylegan"]
    assert (
        line
        == f"{path}: an older MLflow has written it; it is upgraded to MLflow {version('mlflow')}, and {copy} keeps it as it was"
    )
    connect(f"sqlite:///{path}")
    assert [*tmp_path.glob("mlflow.db.before-*")] == [copy]


def test_an_upgrade_that_fails_is_one_line_with_the_copies_of_before(tmp_path):
    path = restore("mlflow", tmp_path / "mlflow.db")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE sql_trace_rollup_rebuild_queue (key INTEGER)")  # the upgrade makes it
    with pytest.raises(
        StepError, match=r"cannot upgrade this database of an older MLflow: .*before-.*tracking\.uri"
    ) as caught:
        connect(f"sqlite:///{path}")
    assert "\n" not in str(caught.value)


def test_a_disk_without_room_for_the_copy_leaves_the_file_as_it_was(tmp_path):
    """A limit for files stands for the disk: writing beyond it fails as on a full one."""
    path = restore("mlflow", tmp_path / "mlflow.db")
    before = path.read_bytes()
    code = """
import resource, sys
from stylegan.errors import StepError
from stylegan.tracking.connection import connect, import_mlflow

import_mlflow()
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
try:
    connect(f"sqlite:///{sys.argv[1]}")
except StepError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120)
    (line,) = done.stdout.splitlines()
    assert "cannot be copied before its upgrade (" in line, done.stderr
    assert line.endswith("; make room there; nothing was changed")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["mlflow.db"]


@pytest.mark.long
def test_an_older_prefect_database_starts_with_its_schedule_and_its_history(tmp_path):
    server = Server(tmp_path, LOGIN)
    (tmp_path / "server").mkdir()
    restore("prefect", tmp_path / "server" / "prefect.db")
    (tmp_path / "tiny.yaml").write_text("name: tiny\ndata: {source: digits, resolution: 8}\n")
    code = """
from flows import schedule
from flows.cli.doctor import _prefect
from prefect.client.orchestration import get_client

print(_prefect(None))
print(schedule.show("tiny").timetable)
with get_client(sync_client=True) as client:
    done = [run for run in client.read_flow_runs() if run.state.is_completed()]
    print(len(done))
    print([log.message for log in client.read_logs() if "old" in log.message])
schedule.apply("tiny", "tiny.yaml", [], schedule.parse_timetable("0 4 * * 1", None, None), ".")
print(schedule.show("tiny").timetable)
"""
    try:
        server.start()
        done = subprocess.run(
            [sys.executable, "-c", code], env=server.environment, capture_output=True, text=True, timeout=120
        )
        refused = subprocess.run(
            [sys.executable, "-m", "flows.cli.main", "schedule", str(tmp_path / "tiny.yaml"), "--show"],
            env=server.environment | {"PREFECT_API_AUTH_STRING": "me:another"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        server.close()
    assert refused.returncode == 1
    assert re.fullmatch(r"stylegan: PREFECT_API_URL=\S+: this Prefect server wants another login; .*\n", refused.stderr)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{server.url} answers, Prefect {version('prefect')}",
        "cron '0 3 * * 1' in UTC",
        "1",
        "['a line of an old log']",
        "cron '0 4 * * 1' in UTC",
    ]
