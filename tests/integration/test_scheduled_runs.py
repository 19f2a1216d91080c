"""Scheduled retraining on a real Prefect server with a real worker: objects, runs, outages, a reboot, a compressed week."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TREE
from PIL import Image
from prefect_servers import Server, end, wait_for
from sklearn.datasets import load_digits

from flows.schedule import AUTOMATION
from stylegan.config.file import load
from stylegan.registry.contents import list_registered
from stylegan.tracking.connection import connect, resolve_uri

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path, {"STYLEGAN_CACHE": str(tmp_path / "cache")})
    made.start()
    yield made
    made.close()


@pytest.fixture
def config(tmp_path):
    """The path of a config on a folder of images, which `add_images` fills."""
    path = tmp_path / "daily.yaml"
    tree = TREE | {
        "name": "daily",
        "storage": {"root": "data"},
        "data": {"source": "images", "resolution": 8, "channels": 1},
        "evaluation": {"num_images": 200, "metrics": ["fid"]},
        "retrain": {"warm_kimg": 0.4},
    }
    path.write_text(yaml.safe_dump(tree))
    add_images(tmp_path, 0, 120)
    return path


def add_images(folder, first, last):
    digits = load_digits()
    for number in range(first, last):
        path = folder / "images" / str(digits.target[number]) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{number}.png"
        Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(partial)
        os.replace(partial, path)


def stylegan(server, *arguments, code=0, seconds=300):
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", *arguments],
        cwd=server.folder,
        env=server.environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(autouse=True)
def _own_code(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def of(server, name):
    """Return the deployments of a name, without what differs from one creation to the next."""
    found = [one for one in server.post("/deployments/filter", {}) if one["name"] == name]
    for one in found:
        for key in (
            "id",
            "created",
            "updated",
            "flow_id",
            "version_id",
            "last_polled",
            "status",
            "version",
            "version_info",
        ):
            one.pop(key, None)
        for timetable in one["schedules"]:
            for key in ("id", "created", "updated", "deployment_id"):
                timetable.pop(key, None)
    return found


def test_the_command_makes_all_objects_once_and_changes_them(server, config):
    def call(*more):
        return stylegan(server, "schedule", str(config), *more)

    assert "cron '0 3 * * 1' in Europe/Berlin" in call("--cron", "0 3 * * 1", "--timezone", "Europe/Berlin")
    first = of(server, "daily")
    call("--cron", "0 3 * * 1", "--timezone", "Europe/Berlin")
    assert of(server, "daily") == first
    assert len(first) == 1
    assert first[0]["concurrency_limit"] is None
    assert len([one for one in server.post("/automations/filter", {}) if one["name"] == AUTOMATION]) == 1
    assert [pool["name"] for pool in server.post("/work_pools/filter", {})].count("stylegan") == 1

    # Prefect makes runs ahead; after a change those of before are gone.
    assert wait_for(lambda: server.runs(scheduled=True), 60)
    call("--every", "12h", "--set", "seed=5")
    ahead = wait_for(lambda: server.runs(scheduled=True), 60)
    assert all(run["parameters"]["overrides"] == ["seed=5"] for run in ahead)
    times = [run["expected_start_time"][:16] for run in ahead]
    assert len(set(times)) == len(times)

    call("--pause")
    assert json.loads(call("--show", "--json"))["paused"]
    assert wait_for(lambda: not server.runs(scheduled=True), 30)
    call("--resume")
    shown = json.loads(call("--show", "--json"))
    assert (shown["paused"], len(shown["next"]), shown["timetable"]) == (False, 3, "every 12:00:00")
    started = json.loads(call("--now", "--json"))["started"]
    assert started in {run["name"] for run in server.runs(scheduled=True)}
    assert json.loads(call("--delete", "--json")) == {"deployment": "stylegan-retrain/daily", "deleted": True}
    assert of(server, "daily") == []
    assert "had no schedule" in call("--delete")
    assert "has no schedule" in stylegan(server, "schedule", str(config), "--show", code=1)
    assert json.loads(call("--delete", "--json")) == {"deployment": "stylegan-retrain/daily", "deleted": False}


def test_the_shipped_file_is_the_same_definition(server, tmp_path):
    for folder in ("flows", "infra", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, dirs_exist_ok=True)
    server.cli("work-pool", "create", "stylegan", "--type", "process")
    server.cli("deploy", "--prefect-file", "infra/prefect.yaml", "--all")
    (shipped,) = of(server, "quickstart")
    pool = server.post("/work_pools/filter", {})[0]
    stylegan(server, "schedule", "configs/quickstart.yaml", "--delete")
    stylegan(server, "schedule", "configs/quickstart.yaml", "--cron", "0 3 * * 1")
    (made,) = of(server, "quickstart")
    assert made["parameters"]["config"] == str(
        tmp_path / "configs" / "quickstart.yaml"
    )  # the command knows where it is
    made["parameters"]["config"] = "configs/quickstart.yaml"
    assert server.post("/work_pools/filter", {})[0]["type"] == pool["type"]
    differences = {key: (made[key], shipped[key]) for key in made if made[key] != shipped[key]}
    assert differences == {}


def finished(server, number):
    done = [run for run in server.runs() if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")]
    return done if len(done) >= number else None


def test_a_run_is_fired_trains_and_the_next_one_is_skipped_in_seconds(server, config):
    stylegan(server, "schedule", str(config), "--cron", "0 3 * * 1", "--now")
    server.start_worker()
    (first,) = wait_for(lambda: finished(server, 1), 240)
    assert first["state"]["name"] == "Completed", first["state"]
    assert [name for name, _ in server.tasks(first)] == [
        "check",
        "decide",
        "shard",
        "drift",
        "train 4x4",
        "train 8x8",
        "evaluate",
        "register",
        "gate",
    ]
    stylegan(server, "schedule", str(config), "--now")
    second = wait_for(lambda: finished(server, 2), 60)[-1]
    assert second["state"]["name"] == "Skipped"
    assert "no new images since" in second["state"]["message"]
    assert second["total_run_time"] < 5
    shown = stylegan(server, "schedule", str(config), "--show")
    assert "Skipped: no new images since" in shown


def test_a_reboot_leaves_no_run_that_counts_as_running_and_the_next_run_goes_on(server, config, tmp_path):
    """Server, worker and run are killed while it trains; nothing blocks the next one."""
    stylegan(server, "schedule", str(config), "--cron", "0 3 * * 1", "--now")
    worker = server.start_worker()
    assert wait_for(lambda: list((tmp_path / "data" / "stages").glob("*/checkpoint-*/checkpoint.json")), 120)
    kill_tree(worker)
    server.kill()
    server.start()
    add_images(tmp_path, 120, 130)  # what came since is for the next time
    stylegan(server, "schedule", str(config), "--now")
    server.start_worker()
    dead, again = wait_for(lambda: finished(server, 2), 240)
    assert (dead["state"]["name"], again["state"]["name"]) == ("Crashed", "Completed")
    settings = load_config(config, tmp_path)
    (version,) = list_registered(settings)
    assert version.tags["stylegan.num_images"] == "120"


def kill_tree(process):
    """Kill a process with all its descendants, as a machine does that goes down."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    end(process)
    for child in children:
        try:
            child.kill()
        except psutil.Error:
            continue


def load_config(config, folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        settings = load(config, [f"storage.root={folder}/data"])
    finally:
        os.chdir(before)
    return settings


@pytest.mark.parametrize("when", ["in a stage", "at the end"])
def test_a_server_that_is_away_costs_no_training_and_the_record_appears(server, config, tmp_path, when):
    """Longer than the client's own patience, which is short here: without the flow's own wait it would fail."""
    env = server.environment | {"PREFECT_CLIENT_MAX_RETRIES": "1"}
    log = tmp_path / "out"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.main", "run", str(config), "--json"],
            cwd=tmp_path, env=env, stdout=out, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    pattern = "stages/0004-*/checkpoint-*/checkpoint.json" if when == "in a stage" else "runs/*/report.json"
    assert wait_for(lambda: list((tmp_path / "data").glob(pattern)), 180)
    server.kill()
    if when == "in a stage":
        time.sleep(20)
        server.start()
    else:
        assert wait_for(lambda: list((tmp_path / "data").glob("runs/*/verdict.json")), 120)
        time.sleep(15)
        assert process.poll() is None  # it waits
        server.start()
    assert process.wait(240) == 0, process.stderr.read()
    assert json.loads(log.read_text())["verdict"]["promote"]
    (run,) = server.runs()
    assert run["state"]["name"] == "Completed"
    wanted = {(name, "Completed") for name in ("shard", "train 4x4", "train 8x8", "evaluate", "register", "gate")}
    assert wait_for(lambda: set(server.tasks(run)) == wanted, 60), server.tasks(run)
    kinds = {artifact["key"] for artifact in server.post("/artifacts/filter", {})}
    assert any(key.endswith("-verdict") for key in kinds)


def test_a_week_alone(server, config, tmp_path):
    """Twenty runs by a short interval; images come before some of them, server and worker are killed at random."""
    code = (
        "from flows.schedule import apply, Timetable\n"
        f"apply('daily', {str(config)!r}, [], Timetable(every=20.0), {str(tmp_path)!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], env=server.environment, check=True, timeout=60)
    server.start_worker()
    chance, images, killed = random.Random(15), 120, {"server": 0, "worker": 0}
    deadline, next_kill, next_images = time.monotonic() + 1500, time.monotonic() + 40, 4
    while time.monotonic() < deadline:
        if not server.answers():
            server.start()
        if server.workers[-1].poll() is not None:
            server.start_worker(name=f"worker-{len(server.workers)}")
        done = finished(server, 1) or []
        if len(done) >= next_images and images < 150:
            add_images(tmp_path, images, images + 10)
            images, next_images = images + 10, next_images + 5
        if time.monotonic() > next_kill and len(done) < 17:
            victim = chance.choice(["server", "worker"])
            killed[victim] += 1
            if victim == "server":
                server.kill()
                time.sleep(chance.uniform(1, 15))
            else:
                kill_tree(server.workers[-1])
            next_kill = time.monotonic() + chance.uniform(30, 70)
        settings = load_config(config, tmp_path)
        trained = {version.tags["stylegan.num_images"] for version in list_registered(settings)}
        if len(done) >= 20 and images == 150 and "150" in trained and done[-1]["state"]["name"] == "Skipped":
            break
        time.sleep(1)
    stylegan(server, "schedule", str(config), "--pause")
    wait_for(lambda: not [run for run in server.runs() if run["state"]["type"] in ("RUNNING", "PENDING")], 120)

    # The record: every run has ended and says how.
    states = [run["state"]["name"] for run in server.runs()]
    print(killed, {name: states.count(name) for name in set(states)})
    assert killed["server"]
    assert killed["worker"]
    assert len(states) >= 20
    # A run whose worker was killed before it began is pending until a run that starts ten minutes later.
    assert set(states) <= {"Completed", "Skipped", "Crashed", "Pending", "Submitting"}
    assert states.count("Completed") >= 1

    # The registry: a version for each set of images at most, none doubled, and the last images are trained on.
    versions = list_registered(settings)
    assert len({version.tags["stylegan.run_id"] for version in versions}) == len(versions)
    assert versions[0].tags["stylegan.num_images"] == "150"
    champions = [version for version in versions if "champion" in version.aliases]
    assert len(champions) == 1
    promoted = [version for version in versions if version.tags["gate.verdict"] == "promote"]
    assert champions[0].version == promoted[0].version

    # MLflow: no point of a curve twice.
    client = connect(resolve_uri(settings))
    for version in versions:
        run = client.search_runs(["1"], f"tags.`stylegan.run_id` = '{version.tags['stylegan.run_id']}'")
        assert len(run) == 1
        steps = [point.step for point in client.get_metric_history(run[0].info.run_id, "loss/d")]
        assert len(set(steps)) == len(steps)
