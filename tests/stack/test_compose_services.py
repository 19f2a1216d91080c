"""MLflow and Prefect of infra/compose.yaml, started here with its commands and variables on a PostgreSQL and an S3."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
import compose_file
import httpx
import pytest
from dockerfile import IMAGE, ROOT, environment

from infra.stack import environment as stack_environment
from infra.stack.service import free_port

pytestmark = [pytest.mark.stack, pytest.mark.engine]
STARTS_SECONDS = 120
KEPT = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}


class Containers:
    """What the containers of services would be: processes of this machine, reached at ports of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.values = stack_environment.read(folder / "stack.env")
        self.ports = {"mlflow": free_port(), "prefect": free_port()}
        published = {f"STACK_{name.upper()}_PORT": str(port) for name, port in self.ports.items()}
        self.tree = compose_file.read(self.values | published)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def translate(self, text: str, name: str) -> str:
        """Return a text of the file with addresses and paths of this machine."""
        values = self.values
        addresses = {
            "@postgres:5432": f"@127.0.0.1:{values['STACK_POSTGRES_PORT']}",
            "http://s3:8333": values["AWS_ENDPOINT_URL"],
            "--host=0.0.0.0": "--host=127.0.0.1",
            "--port=5000": f"--port={self.ports['mlflow']}",
            "--port=4200": f"--port={self.ports['prefect']}",
            "/run/": f"{self.folder}/",
            "/data/": f"{self.folder}/{name}-data/",
            "/tmp/": f"{self.folder}/",
        }
        return re.sub("|".join(map(re.escape, addresses)), lambda found: addresses[found[0]], text)

    def start(self, name: str) -> None:
        """Start a service and wait until the health check of the image says that it is well."""
        service = self.tree["services"][name]
        given = environment("cpu") | service["environment"]
        variables = {variable: self.translate(str(value), name) for variable, value in given.items()}
        for config in service.get("configs", ()):
            path = Path(self.translate(config["target"], name))
            path.write_text(self.translate(self.tree["configs"][config["source"]]["content"], name))
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"
        with open(self.folder / f"{name}.log", "wb") as log:
            self.processes[name] = subprocess.Popen(
                [IMAGE / "entry.sh", *(self.translate(word, name) for word in service["command"])],
                env=KEPT | variables | {"HOME": KEPT.get("HOME", "/"), "PATH": path},
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + STARTS_SECONDS
        while (why := self.health(name)) and time.monotonic() < deadline:
            assert self.processes[name].poll() is None, (self.folder / f"{name}.log").read_text()[-3000:]
            time.sleep(0.5)
        assert not why, why + (self.folder / f"{name}.log").read_text()[-3000:]

    def health(self, name: str) -> str:
        """Return what the health check of the image says of a service; nothing if it is well."""
        command = [sys.executable, "-S", IMAGE / "health.py", str(self.processes[name].pid)]
        done = subprocess.run(command, env={}, capture_output=True, text=True)
        assert bool(done.returncode) == bool(done.stderr)
        return done.stderr

    def stop(self) -> None:
        """End all services."""
        for process in self.processes.values():
            os.killpg(process.pid, 15)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


@pytest.fixture(scope="module")
def containers():
    """Running: S3 and PostgreSQL of the native stack, MLflow and Prefect of the compose file."""
    folder = Path(tempfile.mkdtemp(prefix="compose-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user
    stack = [ROOT / "infra" / "stack.sh", "--env", folder / "stack.env"]
    started = None
    try:
        up = subprocess.run([*stack, "up", "s3", "postgres"], capture_output=True, text=True)
        assert up.returncode == 0, up.stdout + up.stderr
        started = Containers(folder)
        if started.values["STACK_DATABASE"] != "postgresql":
            pytest.skip("PostgreSQL is not installed")
        for name in ("mlflow", "prefect"):
            started.start(name)
        yield started
    finally:
        if started:
            started.stop()
        subprocess.run([*stack, "down"], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def test_mlflow_lets_in_who_has_the_login_by_the_names_that_it_has(containers):
    login = containers.values["MLFLOW_TRACKING_USERNAME"], containers.values["MLFLOW_TRACKING_PASSWORD"]
    base = f"http://127.0.0.1:{containers.ports['mlflow']}"

    def ask(host=None, **options):
        headers = {"Host": host} if host else {}
        return httpx.get(
            f"{base}/api/2.0/mlflow/experiments/search?max_results=1", headers=headers, trust_env=False, **options
        ).status_code

    assert ask() == 401
    assert ask(auth=("admin", "password")) == 401
    assert ask(auth=login) == 200
    assert ask("mlflow:5000", auth=login) == 200
    assert ask("mlflow.example", auth=login) == 403


def test_what_is_logged_is_in_postgresql_and_in_the_bucket(containers):
    values = containers.values
    client = {
        **KEPT,
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{containers.ports['mlflow']}",
        **{name: values[name] for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")},
    }
    code = "import mlflow; mlflow.start_run(); mlflow.log_metric('a', 1.5); mlflow.log_text('text', 'note.txt')"
    done = subprocess.run([sys.executable, "-c", code], env=client, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    s3 = boto3.client(
        "s3",
        endpoint_url=values["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id=values["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=values["AWS_SECRET_ACCESS_KEY"],
    )
    keys = [found["Key"] for found in s3.list_objects_v2(Bucket="mlflow")["Contents"]]
    assert [key.rsplit("/", 1)[1] for key in keys] == ["note.txt"]
    assert not list(containers.folder.glob("*.db"))  # neither runs nor logins are in SQLite


def test_prefect_keeps_leases_on_its_volume_and_cleans_up(containers):
    user, _, password = containers.values["PREFECT_API_AUTH_STRING"].partition(":")
    url = f"http://127.0.0.1:{containers.ports['prefect']}/api/admin/settings"
    assert httpx.get(url, trust_env=False).status_code == 401
    settings = httpx.get(url, auth=(user, password), trust_env=False).json()
    lease_storage = settings["server"]["concurrency"]["lease_storage"]
    assert lease_storage == "prefect.server.concurrency.lease_storage.filesystem"
    assert settings["home"] == f"{containers.folder}/prefect-data/prefect"  # where that keeps them
    assert sorted(settings["server"]["services"]["db_vacuum"]["enabled"]) == ["events", "flow_runs"]


def test_prefect_has_its_page_though_the_code_may_not_be_written(containers):
    answer = httpx.get(f"http://127.0.0.1:{containers.ports['prefect']}/", trust_env=False, follow_redirects=True)
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/html")
    assert (containers.folder / "prefect-ui" / "v1" / "index.html").is_file()


def test_health_notices_a_service_that_hangs(containers):
    os.kill(containers.processes["prefect"].pid, 19)
    try:
        assert "timed out" in containers.health("prefect")
    finally:
        os.kill(containers.processes["prefect"].pid, 18)
    assert containers.health("prefect") == ""


def test_the_databases_are_those_of_the_native_stack(containers):
    from infra.stack.postgres import DATABASES, SUPERUSER

    postgres = containers.tree["services"]["postgres"]["environment"]
    assert (postgres["POSTGRES_USER"], postgres["POSTGRES_DB"]) == (SUPERUSER, DATABASES[0])
    assert containers.tree["configs"]["databases"]["content"] == f"CREATE DATABASE {DATABASES[1]};"
