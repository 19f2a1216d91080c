"""The stack of infra/stack.sh: what its commands do, which settings its servers have, and runs on all of it."""

import base64
import json
import os
import signal
import time
import urllib.error
import urllib.request

import psutil
import pytest
import yaml

from infra.stack import environment, processes
from infra.stack.object_store import s3_client
from infra.stack.services import SERVICES

pytestmark = pytest.mark.stack

NAMES = ["s3", "postgres", "mlflow", "prefect", "ray-head", "ray-node", "worker"]
# A run of half a minute with every phase.
TINY = {
    "name": "tiny",
    "storage": {"root": "tiny-data"},
    "data": {"source": "digits", "resolution": 8, "channels": 1},
    "model": {"latent_size": 8, "mapping_layers": 1, "mapping_fmaps": 8, "fmap_base": 32, "fmap_max": 16},
    "training": {"start_resolution": 4, "fade_kimg": 0.2, "stable_kimg": 0.2, "batch": 16},
    "snapshots": {"grid": 4, "checkpoint_kimg": 0.2},
    "evaluation": {"metrics": ["fid"], "num_images": 200},
}


def ask(stack, url, *, login, headers=None):
    """Return the JSON that a server of the stack answers."""
    basic = base64.b64encode(login.encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {basic}"} | (headers or {}))
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def mlflow_login(values):
    return f"{values['MLFLOW_TRACKING_USERNAME']}:{values['MLFLOW_TRACKING_PASSWORD']}"


@pytest.fixture(scope="module")
def config(stack):
    path = stack.folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def test_status_shows_all_of_it(stack):
    found = stack.status()
    there = NAMES if stack.values["STACK_DATABASE"] == "postgresql" else [name for name in NAMES if name != "postgres"]
    assert list(found) == there
    for one in found.values():
        assert one["state"] == "up", one
        assert one["version"]
        assert psutil.pid_exists(one["pid"])
    assert stack.command("status").returncode == 0


def test_up_again_starts_nothing(stack):
    before = {name: one["pid"] for name, one in stack.status().items()}
    said = stack.up()
    assert "started" not in said
    assert {name: one["pid"] for name, one in stack.status().items()} == before


def test_a_killed_service_is_shown_and_up_starts_it_alone(stack):
    before = stack.status()
    os.kill(before["mlflow"]["pid"], signal.SIGKILL)  # its first process; its workers stay and hold the port
    done = stack.command("status")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("mlflow")]
    assert "down" in line
    assert "its first process has ended" in line or "does not run" in line
    assert "mlflow: started" in stack.up()
    after = stack.status()
    assert [name for name in after if after[name]["pid"] != before[name]["pid"]] == ["mlflow"]


def test_one_service_is_ended_and_started(stack):
    assert "worker: ended" in stack.command("down", "worker").stdout
    assert [name for name, one in stack.status().items() if one["state"] == "down"] == ["worker"]
    assert "worker: started" in stack.up("worker")


def test_an_unknown_service_is_one_line(stack):
    done = stack.command("up", "redis")
    assert done.returncode == 2
    assert done.stderr.startswith("stack: redis: is no service of this stack; they are s3, ")


def test_prefect_keeps_leases_in_files_and_clears_old_runs(stack):
    values = stack.values
    settings = ask(stack, f"{values['PREFECT_API_URL']}/admin/settings", login=values["PREFECT_API_AUTH_STRING"])
    server = settings["server"]
    assert server["concurrency"]["lease_storage"] == "prefect.server.concurrency.lease_storage.filesystem"
    assert sorted(server["services"]["db_vacuum"]["enabled"]) == ["events", "flow_runs"]


def test_mlflow_runs_no_jobs_and_answers_to_its_own_names_alone(stack):
    values = stack.values
    (service,) = [one for one in SERVICES if one.name == "mlflow"]
    commands = [" ".join(process.cmdline()) for process in processes.members(service, values)]
    assert commands
    assert not any("huey" in command for command in commands)
    url = f"{values['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search?max_results=1"
    assert ask(stack, url, login=mlflow_login(values))["experiments"]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        ask(stack, url, login=mlflow_login(values), headers={"Host": "evil.example"})


@pytest.mark.parametrize(
    "service", ["MLFLOW_TRACKING_URI", "PREFECT_API_URL", "RAY_API_SERVER_ADDRESS", "AWS_ENDPOINT_URL"]
)
def test_nobody_gets_in_without_a_login(stack, service):
    paths = {
        "MLFLOW_TRACKING_URI": "/api/2.0/mlflow/experiments/search?max_results=1",
        "PREFECT_API_URL": "/admin/settings",
        "RAY_API_SERVER_ADDRESS": "/api/jobs/",
        "AWS_ENDPOINT_URL": "/stylegan?list-type=2",
    }
    with pytest.raises(urllib.error.HTTPError, match=r"401|403"):
        urllib.request.urlopen(stack.values[service] + paths[service], timeout=30)


def test_a_run_uses_all_of_it(stack, config):
    """The env file is enough: the config names no address."""
    values = stack.values
    said = stack.stylegan("run", str(config), "--json", "-s", "tracking.experiment=run")
    record = json.loads([line for line in said.splitlines() if line.startswith("{")][-1])
    assert record["report"]["checkpoint_uri"].startswith("s3://stylegan/tiny-data/stages/")
    url = f"{values['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/registered-models/alias?name=tiny&alias=champion"
    version = ask(stack, url, login=mlflow_login(values))["model_version"]
    assert version["version"] == "1"
    doctor = stack.stylegan("doctor", str(config))
    assert "node 127.0.0.1" in doctor
    again = stack.stylegan("run", str(config), "-s", "tracking.experiment=run")
    assert "taken from storage" in again


def test_a_job_runs_on_its_cluster(stack, config):
    said = stack.stylegan("launch", str(config), "--follow", "-s", "seed=1")
    assert "tiny-" in said
    assert said.splitlines()[-1].endswith("finished")


def test_its_worker_carries_out_a_schedule(stack, config):
    stack.stylegan("schedule", str(config), "--cron", "0 3 * * 1")
    stack.stylegan("schedule", str(config), "--now")
    deadline = time.monotonic() + 180
    while "Skipped" not in (said := stack.stylegan("schedule", str(config), "--show")):
        assert "Crashed" not in said
        assert "Failed" not in said
        assert time.monotonic() < deadline, said
        time.sleep(2)
    assert "no new images" in said


def test_down_leaves_no_process(new_stack):
    """On SQLite, which a machine without PostgreSQL has."""
    stack = new_stack()
    assert stack.command("init").returncode == 0
    text = stack.env_file.read_text().replace("STACK_DATABASE=postgresql", "STACK_DATABASE=sqlite")
    stack.env_file.write_text(text)
    stack.up("s3", "mlflow", "prefect")
    found = stack.status()
    assert [name for name, one in found.items() if one["state"] == "up"] == ["s3", "mlflow", "prefect"]
    assert stack.command("down").returncode == 0
    assert [service.name for service in SERVICES if processes.members(service, stack.values)] == []
    assert stack.command("status").returncode == 1


def test_s3_starts_with_indexes_that_a_full_disk_has_cut_off(new_stack):
    """SeaweedFS itself leaves such a volume away, and all of its objects with it."""
    stack = new_stack()
    stack.up("s3")
    client = s3_client(stack.values)
    for number in range(20):
        client.put_object(Bucket="stylegan", Key=f"kept/{number}", Body=b"%d" % number)
    assert stack.command("down", "s3").returncode == 0
    cut = 0
    for index in (environment.data_folder(stack.values) / "s3" / "data").glob("stylegan_*.idx"):
        if size := index.stat().st_size:
            os.truncate(index, size - 1)
            cut += 1
    assert cut
    stack.up("s3")
    for number in range(20):
        assert client.get_object(Bucket="stylegan", Key=f"kept/{number}")["Body"].read() == b"%d" % number


def test_status_asks_each_database_in_which_s3_keeps_names(new_stack):
    """One of them whose disk was full for a moment writes nothing more, while the others do."""
    stack = new_stack()
    stack.up("s3")

    def sizes():
        logs = (environment.data_folder(stack.values) / "s3" / "data" / "filerldb2").glob("*/*.log")
        return {log.parent.name: log.stat().st_size for log in logs}

    before = sizes()
    assert stack.status()["s3"]["state"] == "up"
    after = sizes()
    assert len(before) == 8
    assert [name for name in before if after[name] <= before[name]] == []
