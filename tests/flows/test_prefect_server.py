"""The embedded Prefect server: what is said where it cannot start."""

import contextlib
import sqlite3

import pytest

from flows import prefect_server
from stylegan.errors import StepError


def test_a_database_of_another_prefect_is_one_line_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with contextlib.closing(sqlite3.connect(tmp_path / "prefect.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('abcdef123456')")
    with pytest.raises(StepError, match=r"ended while it started \(exit code \d+\)") as caught, prefect_server.api():
        pass
    assert f"if {tmp_path}/prefect.db is damaged or of a newer Prefect than " in str(caught.value)
    assert "move it away" in str(caught.value)
