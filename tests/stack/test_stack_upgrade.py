"""A stack starts on databases of the minor versions of MLflow and Prefect before its own, and keeps what is in them."""

import json
import os
import re
import subprocess
from importlib.metadata import version

import pytest
from old_databases import require_everything, sql

from infra.stack import environment
from infra.stack.postgres import SUPERUSER

pytestmark = pytest.mark.long


def fill(values, name):
    """Fill a database of PostgreSQL with the old one."""
    command = [str(environment.postgres_programs() / "psql"), "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1"]
    command += ["-h", environment.LOOPBACK, "-p", values["STACK_POSTGRES_PORT"], "-U", SUPERUSER, "-d", name]
    settings = os.environ | {"PGPASSWORD": values["STACK_POSTGRES_PASSWORD"]}
    subprocess.run(command, input=sql(name, "postgresql"), env=settings, text=True, check=True, stdout=subprocess.PIPE)


def test_databases_of_older_versions_are_copied_and_upgraded(new_stack, monkeypatch):
    stack = new_stack()
    assert stack.command("init").returncode == 0
    if stack.values["STACK_DATABASE"] == "sqlite":
        pytest.skip("PostgreSQL is not installed; tests/infra/test_upgrade.py has the same with SQLite")
    stack.up("s3", "postgres")
    for name in ("mlflow", "prefect"):
        fill(stack.values, name)
    stack.up("s3", "postgres", "mlflow", "prefect")
    copies = sorted(path.name for path in (environment.data_folder(stack.values) / "before-upgrades").iterdir())
    assert [re.sub(r"\d{8}T\d{6}Z", "TIME", name) for name in copies] == [
        "mlflow-unknown-TIME.dump",
        "prefect-unknown-TIME.dump",
    ]
    assert stack.status()["mlflow"]["version"] == version("mlflow")
    for name, value in stack.values.items():
        if name.startswith("MLFLOW_"):
            monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    require_everything(MlflowClient(tracking_uri=stack.values["MLFLOW_TRACKING_URI"]))
    (stack.folder / "tiny.yaml").write_text("name: tiny\ndata: {source: digits, resolution: 8}\n")
    shown = json.loads(stack.stylegan("schedule", "tiny.yaml", "--show", "--json").splitlines()[-1])
    assert shown["timetable"] == "cron '0 3 * * 1' in UTC"

    # The next start finds nothing to upgrade.
    for name in ("mlflow", "prefect"):
        assert (environment.data_folder(stack.values) / name / "version").read_text() == version(name)
    stack.command("down")


def test_doctor_knows_the_versions_of_servers_behind_their_logins(stack):
    (stack.folder / "looked-at.yaml").write_text("name: looked-at\ndata: {source: digits, resolution: 8}\n")
    said = stack.stylegan("doctor", "looked-at.yaml")
    assert f"ok    mlflow   {stack.values['MLFLOW_TRACKING_URI']} answers, MLflow {version('mlflow')}\n" in said
    assert f"ok    prefect  {stack.values['PREFECT_API_URL']} answers, Prefect {version('prefect')}\n" in said
