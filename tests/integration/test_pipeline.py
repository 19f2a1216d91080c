"""Tests of the whole DAG with real Ray, MLflow and Prefect: run once, repeated, changed, killed, and on S3."""

import contextlib
import hashlib
import os
import re
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from stylegan import storage
from stylegan.config.file import load
from stylegan.pipeline.steps import Pipeline
from stylegan.tracking.metric_names import find
from stylegan.training.state import newest_checkpoint

STEPS = ["shard", "train 4x4", "train 8x8", "evaluate", "register", "gate"]


def task_states(place):
    """Return name and state of each task run of the last flow run, in order, from Prefect's database."""
    with sqlite3.connect(place.folder / "prefect" / "prefect.db") as database:
        (flow_run,) = database.execute("select id from flow_run order by created desc limit 1").fetchone()
        return database.execute(
            "select name, state_name from task_run where flow_run_id = ? order by expected_start_time, created",
            (flow_run,),
        ).fetchall()


def client(place):
    """Return a client of the embedded MLflow of a place."""
    return MlflowClient(f"sqlite:///{place.root}/mlflow.db")


def curve(place, run_id, key):
    """Return the points (step, value) of a metric in MLflow."""
    return [(point.step, point.value) for point in client(place).get_metric_history(run_id, key)]


def weights(summary):
    """Return the digest of the averaged generator at the end of a run."""
    uri = summary["checkpoints"][-1]["uri"]
    return hashlib.sha256(Path(uri, "generator.safetensors").read_bytes()).hexdigest()


def test_summary_names_everything_that_was_made(finished):
    """The summary of a run contains its checkpoints, metrics, verdict, version and grid."""
    place, summary = finished
    assert [c["resolution"] for c in summary["checkpoints"]] == [4, 8]
    assert summary["checkpoints"][-1]["nimg"] == 2200
    assert set(summary["report"]["metrics"]) == {"fid_classifier", "ppl_wend_classifier", "classifier_accuracy"}
    assert summary["verdict"]["promote"] is True
    assert summary["version"]["aliases"] == ["champion"]
    assert Path(summary["grid"]).read_bytes().startswith(b"\x89PNG")
    config = load(Path(place.root, "runs", summary["run_id"], "config.yaml"))
    assert config == load(place.config)


def test_the_run_says_first_what_it_will_do(finished):
    place, _ = finished
    first, *others = (place.folder / "first.log").read_text().splitlines()
    assert re.fullmatch(rf"tiny: {len(STEPS)} steps; to do: {', '.join(STEPS)}; about .* after shard", first)
    assert any(re.match(r"train 8x8 \(2 of 2\): .* img/s, .*whole run about", line) for line in others)


def test_prefect_shows_a_task_run_for_every_step(finished):
    """Prefect has one task run for each step, in order."""
    place, _ = finished
    assert [name for name, _ in task_states(place)] == STEPS


def test_prefect_has_the_artifacts(finished):
    """Prefect has the artifacts of the data set and of the evaluation."""
    place, _summary = finished
    with sqlite3.connect(place.folder / "prefect" / "prefect.db") as database:
        kinds = {
            key.rsplit("-", 1)[1]: kind
            for key, kind in database.execute("select key, type from artifact where key is not null")
        }
    of_data = {"rejected": "table", "preview": "image", "card": "markdown"}
    assert kinds == of_data | {"metrics": "table", "verdict": "markdown", "samples": "image"}


def test_mlflow_has_one_run_with_params_curves_grids_and_dataset(finished):
    """MLflow has one finished run with the parameters, gapless curves, metrics, files and data set."""
    place, summary = finished
    runs = client(place).search_runs(["1"])
    assert len(runs) == 1
    run = runs[0]
    assert run.info.status == "FINISHED"
    assert run.data.params["training.batch.4"] == "8"
    assert run.data.params["data.source"] == "digits"
    assert [name for name in run.data.metrics if find(name) is None] == []
    assert not {"progress/lr", "progress/batch", "time/path"} & set(run.data.metrics)  # the same at every point
    for key in ("loss/d", "loss/g", "loss/r1", "progress/alpha", "time/img_per_sec", "progress/kimg"):
        steps = [step for step, _ in curve(place, run.info.run_id, key)]
        assert steps == sorted(set(steps)), key
        assert steps[-1] == 2, key
    assert run.data.metrics["eval/fid_classifier"] == pytest.approx(summary["report"]["metrics"]["fid_classifier"])
    assert run.inputs.dataset_inputs[0].dataset.digest == summary["shards"]["fingerprint"][:36]
    names = [file.path for file in client(place).list_artifacts(run.info.run_id)]
    assert {"config.yaml", "report.json", "images", "data"} <= set(names)
    page = storage.read_bytes(summary["page"]).decode()
    assert "<h2>Data set</h2>" in page


def test_no_process_is_left_behind(finished):
    """No process outlives the command."""
    place, _ = finished
    place.wait_until_empty()


def test_repeat_takes_everything_from_storage(finished, monkeypatch):
    """After a run the plan says that all steps are cached. The same command skips them and leaves MLflow unchanged.

    What only work needs takes seconds to import, so the repeat goes without it.
    """
    place, summary = finished
    before = client(place).get_run(summary["mlflow_run_id"]).to_dictionary()
    plan = place.json("plan", str(place.config))
    assert [(step["name"], step["state"]) for step in plan["steps"]] == [(name, "cached") for name in STEPS]
    log = place.folder / "imports"
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # the program's lines go to its log, the supervisor's few do not
        patch.setenv("STYLEGAN_LOG", str(log))
        again = place.json("run", str(place.config))
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", log.read_text(), re.MULTILINE))
    assert "mlflow" in imported
    assert not {"prefect", "ray", "sklearn", "scipy.special", "scipy.linalg", "scipy.stats"} & imported
    assert again["checkpoints"] == summary["checkpoints"]
    assert again["version"] == summary["version"]
    told = [line for line in place.errors().splitlines() if not line.startswith("import time:")]
    assert told == [f"{name}: taken from storage" for name in STEPS]
    assert "Cached" not in [state for _, state in task_states(place)]  # no flow run in the embedded Prefect
    assert client(place).get_run(summary["mlflow_run_id"]).to_dictionary() == before  # its end and tags too
    assert len(client(place).search_runs(["1"])) == 1


def test_repeat_mends_what_a_killed_run_has_left_in_prefect(finished):
    """The process was killed after its last step: Prefect shows its flow run as running until the next one."""
    place, summary = finished
    database = place.folder / "prefect" / "prefect.db"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        (killed,) = connection.execute("select id from flow_run order by created desc limit 1").fetchone()
        connection.execute("update flow_run set state_name = 'Running', state_type = 'RUNNING' where id = ?", (killed,))
    assert place.json("run", str(place.config))["version"] == summary["version"]
    assert task_states(place) == [(name, "Cached") for name in STEPS]
    with contextlib.closing(sqlite3.connect(database)) as connection:
        states = dict(connection.execute("select id, state_name from flow_run"))
    assert states.pop(killed) == "Crashed"
    assert set(states.values()) == {"Completed"}


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        ("evaluation.num_images=300", STEPS[3:]),
        ("training.stages.8.stable_kimg=0.7", STEPS[2:]),
        ("registry.gate.min_improvement=0.1", STEPS[5:]),
        ("ray.cpus_per_worker=2", []),
        ("snapshots.log_kimg=1", []),
        ("seed=1", STEPS[1:]),
        ("data.channels=3", STEPS),
    ],
)
def test_plan_redoes_exactly_what_depends_on_a_change(finished, override, redone, caplog):
    """A changed key runs the steps that depend on it again, and only these.

    With any left it is no repeat, and nothing is said of the others: the flow that follows does.
    """
    caplog.set_level("INFO", "stylegan")
    place, summary = finished
    plan = place.json("plan", str(place.config), "--set", override)
    assert [step["name"] for step in plan["steps"] if step["state"] == "run"] == redone
    with Pipeline(load(place.config, [override])) as pipeline:
        again = pipeline.repeat()
    assert (again.run_id if again else None) == (None if redone else summary["run_id"])
    told = [record.getMessage() for record in caplog.records if "taken from storage" in record.getMessage()]
    assert len(told) == (0 if redone else len(STEPS))


def test_another_evaluation_trains_nothing(finished):
    """With other settings of the evaluation the run skips all training, but its MLflow run has the whole curve."""
    place, summary = finished
    other = place.json("run", str(place.config), "--set", "evaluation.num_images=300")
    assert [state for _, state in task_states(place)] == ["Cached"] * 3 + ["Completed"] * 3
    assert other["run_id"] != summary["run_id"]
    assert other["checkpoints"] == summary["checkpoints"]
    assert other["verdict"]["promote"] is False  # the champion's own checkpoint
    assert curve(place, other["mlflow_run_id"], "loss/g") == curve(place, summary["mlflow_run_id"], "loss/g")


def test_champion_of_another_protocol_is_measured_again(finished):
    """After a longer last stage and a change of protocol, the champion is measured again under the same protocol."""
    place, summary = finished
    changes = ["--set", "training.stages.8.stable_kimg=0.62", "--set", "evaluation.num_images=350"]
    other = place.json("run", str(place.config), *changes)
    assert other["report"]["protocol"] != summary["report"]["protocol"]
    (reason,) = other["verdict"]["reasons"]
    assert reason.startswith(f"fid_classifier is {other['report']['metrics']['fid_classifier']:.6g} [")
    assert "] against " in reason
    assert other["verdict"]["champion"] == "1"


def test_step_verbs_agree_with_the_run(finished):
    """The verbs of single steps return the records that the whole run returned."""
    place, summary = finished
    config = str(place.config)
    assert place.json("shard", config) == summary["shards"]
    assert place.json("train", config, "--until", "4") == summary["checkpoints"][0]
    assert place.json("evaluate", config) == summary["report"]
    assert place.json("register", config)["version"] == summary["version"]["version"]


def wait_for(condition, process, seconds=300):
    """Wait until the condition is true while the process is running."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


def kill_when(place, condition):
    """Start the run, and kill its process group with SIGKILL as soon as the condition is true."""
    process = place.start("run", str(place.config))
    try:
        wait_for(condition, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stage_nimg(place, resolution):
    """Return the image count of the newest checkpoint at a resolution, or 0."""
    folder = Path(place.root, "stages")
    stages = folder.glob(f"{resolution:04d}-*") if folder.exists() else []
    checkpoints = [newest_checkpoint(str(stage)) for stage in stages]
    return max((checkpoint.nimg for checkpoint in checkpoints if checkpoint), default=0)


def file_exists(place, pattern):
    """Return a condition that is true once a file below the storage root matches the pattern."""
    return lambda: any(Path(place.root).glob(pattern))


def registered(place):
    """Return True if the registry has a version, finished or not."""
    database = Path(place.root, "mlflow.db")
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return connection.execute("select count(*) from model_versions").fetchone() != (0,)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_killed_in_every_step_it_ends_like_an_uninterrupted_run(finished, make_place):
    """A run that is killed five times ends like one that nobody killed.

    SIGKILL comes in sharding, in the first stage, in a fade-in, in the evaluation and in the registration. The image
    count and the weights are the same to the bit. MLflow has one run with gapless curves and one version, and nothing
    else is left.
    """
    # Kill it in every step.
    reference, expected = finished
    place = make_place()
    kill_when(place, file_exists(place, "datasets/*/.building-*"))
    kill_when(place, lambda: stage_nimg(place, 4) >= 400)
    kill_when(place, lambda: stage_nimg(place, 8) >= 1200)
    assert 1000 < stage_nimg(place, 8) < 2200
    kill_when(place, file_exists(place, "runs/*/samples.png"))  # the evaluation writes this file first
    kill_when(place, lambda: registered(place))

    # The same weights and curves.
    summary = place.json("run", str(place.config))
    assert summary["run_id"] == expected["run_id"]
    assert summary["checkpoints"][-1]["nimg"] == expected["checkpoints"][-1]["nimg"]
    assert weights(summary) == weights(expected)
    assert len(client(place).search_runs(["1"])) == 1
    for key in ("loss/d", "loss/g", "loss/r1", "progress/alpha"):
        assert curve(place, summary["mlflow_run_id"], key) == curve(reference, expected["mlflow_run_id"], key)

    # Five crashed flow runs, one version, nothing half-made.
    with sqlite3.connect(place.folder / "prefect" / "prefect.db") as database:
        states = [state for (state,) in database.execute("select state_name from flow_run order by created")]
    assert states == ["Crashed"] * 5 + ["Completed"]
    assert [version.version for version in client(place).search_model_versions("name='tiny'")] == [1]
    assert summary["version"]["aliases"] == ["champion"]
    assert not list(Path(place.root, "datasets").glob("*/.building-*"))
    place.wait_until_empty()


@pytest.mark.long
def test_whole_run_on_s3(s3_server, make_place, finished):
    """A run with its storage on S3 gives the same weights as on a disk, and then all its steps are cached."""
    _, expected = finished
    place = make_place(f"{s3_server()}/runs")
    summary = place.json("run", str(place.config))
    uri = summary["checkpoints"][-1]["uri"]
    assert uri.startswith("s3://")
    assert hashlib.sha256(storage.read_bytes(f"{uri}/generator.safetensors")).hexdigest() == weights(expected)
    plan = place.json("plan", str(place.config))
    assert {step["state"] for step in plan["steps"]} == {"cached"}
