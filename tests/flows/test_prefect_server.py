"""The embedded Prefect server, in a process without other settings of Prefect: what is said where it cannot start, signals."""

import contextlib
import os
import sqlite3
import subprocess
import sys


def in_own_process(code, home):
    """Run code with a Prefect home of its own, and return what it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | {"PREFECT_HOME": str(home)}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_database_of_another_prefect_is_one_line_with_the_cure(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "prefect.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('abcdef123456')")
    code = """
from flows import prefect_server
from stylegan.errors import StepError
try:
    with prefect_server.api():
        print("started")
except StepError as error:
    print(error)
"""
    (line,) = in_own_process(code, tmp_path).splitlines()
    assert "ended while it started (exit code " in line
    assert f"if {tmp_path}/prefect.db is damaged or of a newer Prefect than " in line
    assert "move it away" in line


def test_sigterm_to_all_processes_of_a_run_leaves_the_server_that_shows_its_end(tmp_path):
    code = """
import time
import httpx, psutil
from flows import prefect_server
with prefect_server.api() as url:
    (server,) = psutil.Process().children()
    server.terminate()
    time.sleep(1)
    print(httpx.get(f"{url}/health").status_code)
print(server.is_running())
"""
    assert in_own_process(code, tmp_path).split() == ["200", "False"]


def test_two_servers_that_start_at_once_on_a_new_home_both_come_up(tmp_path):
    """Both would make the database, and the second one would find it half made."""
    code = "from flows.prefect_server import api\nwith api():\n    pass"
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment["PREFECT_HOME"] = str(tmp_path / "home")
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    failures = [process.communicate(timeout=300)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], failures
