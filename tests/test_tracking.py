"""MLflow runs in a real SQLite store: continued, never doubled, and written while a stage trains."""

import io
import json
import logging
import math
import shutil
import threading
import time

import pytest
import yaml
from PIL import Image

from stylegan import config_file as config_module
from stylegan.config_file import flatten
from stylegan.data.shards import ShardSet, write_shards
from stylegan.data.sources import open_source
from stylegan.errors import StepError
from stylegan.evaluation.report import Report
from stylegan.registry import server
from stylegan.tracking import StageRelay, open_run, resolve_uri

SHARDS = ShardSet(
    uri="/nowhere/datasets/f",
    fingerprint="f" * 64,
    num_images=5,
    resolutions=(4, 8),
    label_names=("a", "b"),
    num_rejected=0,
)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """Path of a SQLite file that holds MLflow's tables and nothing else; making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    server.connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def make_config(tmp_path, empty_database):
    """A function that gives a config whose embedded MLflow is an empty database."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return lambda **sections: build(tmp_path, **sections)


def build(root, **sections):
    tree = {
        "name": "tiny",
        "storage": {"root": str(root)},
        "data": {"source": "digits", "resolution": 8},
        "training": {"batch": 4},
    }
    return config_module.build(tree | sections)


@pytest.fixture
def opened(make_config):
    """A function that opens the same run again and again; all are stopped at the end."""
    runs = []

    def open_again(run_id="tiny-0123"):
        runs.append(open_run(make_config(), run_id, SHARDS))
        return runs[-1]

    yield open_again
    for run in runs:
        run.stop_system_metrics()


def row(kimg, loss=0.0, **metrics):
    return {"nimg": round(kimg * 1000), "resolution": 8, "metrics": {"loss/g": loss, **metrics}}


def points(run, key="loss/g"):
    return [(point.step, point.value) for point in run.client.get_metric_history(run.mlflow_run_id, key)]


def png(shade=0):
    buffer = io.BytesIO()
    Image.new("L", (16, 16), shade).save(buffer, format="PNG")
    return buffer.getvalue()


def images(run):
    return sorted(file.path.split("+timestamp")[0] for file in run.client.list_artifacts(run.mlflow_run_id, "images"))


# Where MLflow is ------------------------------------------------------------------------------------------------------


def test_a_new_run_holds_params_config_and_dataset(make_config):
    config = make_config(evaluation={"features": "x" * 7000})
    run = open_run(config, "tiny-0123", SHARDS)
    run.stop_system_metrics()
    found = run.client.get_run(run.mlflow_run_id)
    assert found.info.run_name == "tiny-0123"
    assert found.info.status == "RUNNING"
    assert found.data.params == {key: value[:6000] for key, value in flatten(config).items()}
    assert len(found.data.params["evaluation.features"]) == 6000
    [dataset] = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "f" * 36)
    assert json.loads(dataset.dataset.profile)["num_images"] == 5
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "training")]
    stored = run.client.download_artifacts(run.mlflow_run_id, "config.yaml")
    with open(stored) as file:
        assert config_module.build(yaml.safe_load(file)) == config
    assert found.info.artifact_uri.startswith(f"{config.storage.root}/mlartifacts/")


def test_a_run_holds_card_preview_and_rejects_of_its_data(make_config, draw_images, tmp_path):
    """Once, however often the run is continued; a set without rejects has no table of them."""
    source = draw_images(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(3)])
    found = []
    for max_rejected in (0, 1):
        config = make_config(data={"source": str(source), "resolution": 8, "max_rejected": max_rejected})
        shards = write_shards(open_source(config.data), config.data, config.storage.root)
        for _ in range(2):
            run = open_run(config, f"tiny-{max_rejected}", shards)
            run.stop_system_metrics()
        found.append({file.path for file in run.client.list_artifacts(run.mlflow_run_id, "data")})
        (source / "a" / "broken.png").write_bytes(b"no image")
    assert found[0] == {"data/card.json", "data/preview.png"}
    assert found[1] == found[0] | {"data/rejected.json"}
    with open(run.client.download_artifacts(run.mlflow_run_id, "data/card.json")) as file:
        assert json.load(file)["counts"] == {"a": 3, "b": 3}
    with open(run.client.download_artifacts(run.mlflow_run_id, "data/rejected.json")) as file:
        table = json.load(file)
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == [
        {"kind": "unreadable", "path": "a/broken.png", "reason": "not an image in a known format", "bytes": 8}
    ]


def test_the_same_run_id_continues_the_same_run(opened):
    first = opened()
    first.finish("FAILED")
    again = opened()
    assert again.mlflow_run_id == first.mlflow_run_id
    found = again.client.get_run(again.mlflow_run_id)
    assert found.info.status == "RUNNING"
    assert len(found.inputs.dataset_inputs) == 1
    assert opened("tiny-4567").mlflow_run_id != first.mlflow_run_id


def test_a_changed_param_keeps_its_first_value_and_a_new_one_is_added(make_config):
    open_run(make_config(), "tiny-0123", SHARDS).finish("KILLED")
    run = open_run(
        build(make_config().storage.root, ray={"workers": 2, "stages": {"8": {"workers": 1}}}), "tiny-0123", SHARDS
    )
    run.finish("FINISHED")
    params = run.client.get_run(run.mlflow_run_id).data.params
    assert params["ray.workers"] == "1"
    assert params["ray.stages.8.workers"] == "1"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_finish_sets_the_status(opened, status):
    run = opened()
    run.finish(status)
    assert run.client.get_run(run.mlflow_run_id).info.status == status


def test_a_run_without_shards_is_the_parent_of_others(make_config):
    parent = open_run(make_config(), "sweep-1", None)
    child = open_run(make_config(), "tiny-0123", SHARDS, parent=parent.mlflow_run_id)
    for run in (parent, child):
        run.finish("FINISHED")
    assert child.client.get_run(child.mlflow_run_id).data.tags["mlflow.parentRunId"] == parent.mlflow_run_id


def test_a_deleted_experiment_is_one_line(make_config):
    config = make_config()
    client = server.connect(resolve_uri(config))
    client.delete_experiment(client.create_experiment("stylegan"))
    with pytest.raises(StepError, match=r"tracking\.experiment=stylegan: this experiment was deleted"):
        open_run(config, "tiny-0123", SHARDS)


def test_a_resumed_run_has_no_gap_and_no_doubled_step(opened):
    rows = [row(kimg, loss=kimg / 10) for kimg in range(10)]
    assert opened().log_rows(rows[:6]) == 6
    again = opened()
    assert again.last_step == 5
    assert again.log_rows(rows[3:]) == 4
    assert again.log_rows(rows) == 0
    assert points(again) == [(kimg, kimg / 10) for kimg in range(10)]


def test_rows_within_one_kimg_are_one_point(opened):
    run = opened()
    run.log_rows([row(0.2, 1.0), row(0.9, 2.0), row(1.5, 3.0)])
    assert points(run) == [(0, 1.0), (1, 3.0)]
    assert points(run, "progress/kimg") == [(0, 0.2), (1, 1.5)]


def test_more_metrics_than_one_request_takes(opened):
    run = opened()
    run.log_rows([row(kimg, **{f"m{i}": float(kimg) for i in range(600)}) for kimg in range(3)])
    assert points(run, "m599") == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_a_batch_that_fails_leaves_no_half_row_and_can_be_repeated(opened):
    run = opened()
    with pytest.raises(StepError, match="cannot log metrics"):
        run.log_rows([row(0, 1.0), row(1, 2.0, **{"not\na name": 1.0})])
    assert run.log_rows([row(0, 1.0), row(1, 2.0)]) == 2
    assert points(run) == [(0, 1.0), (1, 2.0)]


def test_a_metric_that_is_not_a_number_is_logged_as_such(opened):
    run = opened()
    run.log_rows([row(1, math.nan)])
    assert math.isnan(points(run)[0][1])


def test_a_sample_grid_is_logged_once(opened):
    first = opened()
    first.log_sample(100, png())
    first.log_sample(100, png())
    again = opened()
    again.log_sample(100, png())
    again.log_sample(200, png())
    assert (
        images(again) == ["images/samples+step+100"] * 2 + ["images/samples+step+200"] * 2
    )  # a PNG and its thumbnail each


def test_a_report_is_metrics_at_the_checkpoints_kimg_and_an_artifact(opened, tmp_path):
    (tmp_path / "grid.png").write_bytes(png(7))
    report = Report(
        protocol="p1",
        dataset_fingerprint="f1",
        checkpoint_uri="s3://b/stages/0008-x/checkpoint-000012500",
        metrics={"fid_classifier": 12.5},
        figures={"grid": str(tmp_path / "grid.png")},
        skipped={"separability": "no labels"},
    )
    (tmp_path / "report.html").write_text("<p>first</p>")
    opened().log_report(report, str(tmp_path / "report.html"))
    (tmp_path / "report.html").write_text("<p>second</p>")
    (tmp_path / "grid.png").unlink()  # what is logged is not read again
    run = opened()
    run.log_report(report, str(tmp_path / "report.html"))
    with open(run.client.download_artifacts(run.mlflow_run_id, "report.html")) as file:
        assert file.read() == "<p>first</p>"
    assert points(run, "eval/fid_classifier") == [(12, 12.5)]
    with open(run.client.download_artifacts(run.mlflow_run_id, "report.json")) as file:
        assert Report.model_validate_json(file.read()) == report
    assert [file.path for file in run.client.list_artifacts(run.mlflow_run_id, "figures")] == ["figures/grid.png"]


def test_a_figure_that_is_gone_is_skipped_with_a_warning(opened, tmp_path, caplog):
    (tmp_path / "grid.png").write_bytes(png(7))
    report = Report(
        protocol="p1",
        dataset_fingerprint="f1",
        checkpoint_uri="s3://b/stages/0008-x/checkpoint-000012500",
        metrics={"fid_classifier": math.nan},
        figures={"gone": str(tmp_path / "gone.png"), "grid": str(tmp_path / "grid.png")},
    )
    run = opened()
    with caplog.at_level(logging.WARNING, "stylegan"):
        run.log_report(report)
    assert f"figure gone is gone ({tmp_path}/gone.png)" in caplog.text
    assert [file.path for file in run.client.list_artifacts(run.mlflow_run_id, "figures")] == ["figures/grid.png"]
    with open(run.client.download_artifacts(run.mlflow_run_id, "report.json")) as file:
        assert math.isnan(Report.model_validate_json(file.read()).metrics["fid_classifier"])


def test_system_metrics_go_on_where_they_stopped(opened, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    for _ in range(2):
        run = opened()
        before = len(points(run, "system/cpu_utilization_percentage"))
        deadline = time.monotonic() + 10
        while len(points(run, "system/cpu_utilization_percentage")) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        run.finish("KILLED")
    steps = [step for step, _ in points(run, "system/cpu_utilization_percentage")]
    assert len(steps) >= 4
    assert steps == sorted(set(steps))


def test_two_runs_at_once_do_not_mix(make_config):
    runs = [open_run(make_config(), f"tiny-{i}", SHARDS) for i in range(2)]
    threads = [
        threading.Thread(target=run.log_rows, args=([row(k, float(i)) for k in range(20)],))
        for i, run in enumerate(runs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, run in enumerate(runs):
        run.finish("FINISHED")
        assert points(run) == [(k, float(i)) for k in range(20)]


def test_nothing_is_printed(make_config, capfd):
    run = open_run(make_config(), "tiny-0123", SHARDS)
    run.log_rows([row(1)])
    run.log_sample(1, png())
    run.finish("FINISHED")
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")


# The relay ------------------------------------------------------------------------------------------------------------


def write_stage(folder, rows=(), samples=(), tail=""):
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    for kimg in samples:
        (folder / "samples" / f"{kimg:06d}.png").write_bytes(png())
    (folder / "samples" / "reals.png").write_bytes(png())
    (folder / "stats.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows) + tail)


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "did not happen within 10 s"
        time.sleep(0.02)


def test_a_stage_is_followed_while_it_trains(opened, tmp_path):
    """Points and grids are there before the stage ends; a line that is being written waits for its end."""
    run, stage, told = opened(), tmp_path / "stages" / "0008-x", []
    with StageRelay(run, str(stage), on_rows=told.append, poll_seconds=0.02):
        write_stage(stage, [row(0), row(1)], [1], tail='{"nimg": 2000, "metr')
        wait_for(lambda: len(points(run)) == 2 and len(images(run)) == 2)
        write_stage(stage, [row(0), row(1), row(2), row(3)], [1, 3])
    assert [step for step, _ in points(run)] == [0, 1, 2, 3]
    assert [row(0), row(1)] in told
    assert told[-1] == [row(0), row(1), row(2), row(3)]
    assert images(run) == ["images/samples+step+1"] * 2 + ["images/samples+step+3"] * 2


def test_finished_stages_are_replayed_and_only_once(opened, tmp_path):
    write_stage(tmp_path / "a", [row(0), row(1)], [1])
    write_stage(tmp_path / "b", [row(2), row(3)], [3])
    for _ in range(2):
        run = opened()
        for name in ("a", "b"):
            with StageRelay(run, str(tmp_path / name)):
                pass
    assert [step for step, _ in points(run)] == [0, 1, 2, 3]
    assert len(images(run)) == 4


def test_quick_metrics_come_late_and_once(opened, tmp_path):
    """Behind the curves and out of their order; the first value of a kimg stays, and another process logs nothing again."""
    rows = [quick_row(2, 5.0), quick_row(4, 4.0), quick_row(4.2, 9.0)]
    run = opened()
    run.log_rows([row(8)])
    run.log_quick(rows[1:])
    run.log_quick(rows)
    write_stage(tmp_path, [row(8)])
    (tmp_path / "metrics-k.jsonl").write_text(
        "".join(json.dumps(item) + "\n" for item in [*rows, quick_row(6, math.nan)])
    )
    (tmp_path / "metrics-other.jsonl").write_text(json.dumps(quick_row(7, 1.0)) + "\n")
    for _ in range(2):
        run = opened()
        with StageRelay(run, str(tmp_path), quick="metrics-k.jsonl"):
            pass
    found = sorted(points(run, "quick/fid_classifier"))
    assert found[:2] == [(2, 5.0), (4, 4.0)]
    assert [step for step, _ in found] == [2, 4, 6]
    assert [step for step, _ in points(run)] == [8]


def quick_row(kimg, value):
    return {"nimg": round(kimg * 1000), "resolution": 8, "metrics": {"quick/fid_classifier": value}}


def test_a_store_that_fails_for_a_moment_is_tried_again(opened, tmp_path):
    run = opened()
    (tmp_path / "stage" / "stats.jsonl").mkdir(parents=True)  # cannot be read
    with StageRelay(run, str(tmp_path / "stage"), poll_seconds=0.02) as relay:
        time.sleep(0.2)
        (tmp_path / "stage" / "stats.jsonl").rmdir()
        write_stage(tmp_path / "stage", [row(5)])
        wait_for(lambda: points(run))
        assert relay._thread.is_alive()
    assert points(run) == [(5, 0.0)]


def test_the_last_sweep_tells_of_a_store_that_stays_broken(opened, tmp_path):
    (tmp_path / "stage" / "stats.jsonl").mkdir(parents=True)
    with pytest.raises(StepError, match=r"cannot read .*stats\.jsonl"), StageRelay(opened(), str(tmp_path / "stage")):
        pass


def test_the_failure_of_the_stage_comes_first(opened, tmp_path):
    (tmp_path / "stage" / "stats.jsonl").mkdir(parents=True)
    with pytest.raises(KeyError, match="the stage"), StageRelay(opened(), str(tmp_path / "stage")):
        raise KeyError("the stage")
