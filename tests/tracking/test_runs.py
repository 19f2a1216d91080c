"""Logging to an MLflow run: no gap, nothing twice."""

import logging
import math
import threading

import pytest
from mlflow_runs import SHARDS, images, png, points, row
from PIL import Image

from stylegan.errors import StepError
from stylegan.evaluation.report import Report
from stylegan.images import animation_bytes
from stylegan.tracking.open_run import open_run


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_finish_sets_the_status(opened, status):
    run = opened()
    run.finish(status)
    assert run.client.get_run(run.mlflow_run_id).info.status == status


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
    run.log_rows([row(kimg, **{f"quick/fid_n{i}": float(kimg) for i in range(600)}) for kimg in range(3)])
    assert points(run, "quick/fid_n599") == [(0, 0.0), (1, 1.0), (2, 2.0)]


@pytest.mark.filterwarnings("ignore::stylegan.tracking.metric_names.UnknownMetricWarning")
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
    opened().log_report(report, nimg=12_500, page_uri=str(tmp_path / "report.html"))
    (tmp_path / "report.html").write_text("<p>second</p>")
    (tmp_path / "grid.png").unlink()  # what is logged is not read again
    run = opened()
    run.log_report(report, nimg=12_500, page_uri=str(tmp_path / "report.html"))
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
        run.log_report(report, nimg=12_500)
    assert f"figure gone is gone ({tmp_path}/gone.png)" in caplog.text
    assert [file.path for file in run.client.list_artifacts(run.mlflow_run_id, "figures")] == ["figures/grid.png"]
    with open(run.client.download_artifacts(run.mlflow_run_id, "report.json")) as file:
        assert math.isnan(Report.model_validate_json(file.read()).metrics["fid_classifier"])


def test_an_animation_is_logged_once_as_a_gif(opened, tmp_path, caplog):
    """MLflow shows no WebP; a damaged file is left out with a warning, one that is missing without."""
    report = Report(protocol="p1", dataset_fingerprint="f1", checkpoint_uri="c", metrics={}, figures={})
    path = tmp_path / "growth.webp"
    for content in (None, b"none"):
        if content:
            path.write_bytes(content)
        opened().log_report(report, nimg=1000, growth_uri=str(path))
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        f"evaluate: {path}: is not an animation"
    ]
    for shade in (200, 100):
        path.write_bytes(animation_bytes([Image.new("L", (9, 9), 0), Image.new("L", (9, 9), shade)]))
        run = opened()
        run.log_report(report, nimg=1000, growth_uri=str(path))
    with Image.open(run.client.download_artifacts(run.mlflow_run_id, "growth.gif")) as gif:
        assert (gif.format, gif.n_frames) == ("GIF", 2)
        gif.seek(1)
        assert abs(gif.convert("L").getpixel((5, 5)) - 200) <= 2


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
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_run_that_trains_again_tells_its_old_verdict_no_more(opened, tmp_path):
    """Its checkpoints may have been deleted: the note of its stages replaces the verdict, which is told again after them."""
    (tmp_path / "report.html").write_text("<p>page</p>")
    run = opened()
    run.log_story("k1", "verdict", {"stylegan.verdict": "promoted"}, str(tmp_path / "report.html"))
    assert (run.tells("k1"), run.tells("k2")) == (True, False)
    run.log_note("8x8 is trained")
    assert not run.tells("k1")
    assert run.client.get_run(run.mlflow_run_id).data.tags["mlflow.note.content"] == "8x8 is trained"


def test_hours_that_a_finished_run_lacks_are_logged_once_and_do_not_lengthen_it(opened):
    run = opened()
    run.log_rows([row(1)])
    run.finish("FINISHED")
    end = run.client.get_run(run.mlflow_run_id).info.end_time
    for _ in range(2):
        again = opened()
        again.log_hours([{"nimg": 1000, "resolution": 8, "metrics": {"time/train_hours": 0.5}}])
        again.finish("FINISHED")
    found = run.client.get_run(run.mlflow_run_id)
    assert (found.info.status, found.info.end_time) == ("FINISHED", end)
    assert points(run, "time/train_hours") == [(1, 0.5)]


def test_the_directions_of_attributes_are_logged_once_they_are_there(opened, tmp_path):
    report = Report(protocol="p1", dataset_fingerprint="f1", checkpoint_uri="c", metrics={}, figures={})
    path = tmp_path / "directions.safetensors"
    opened().log_report(report, nimg=1000, directions_uri=str(path))
    for content in (b"first", b"second"):
        path.write_bytes(content)
        run = opened()
        run.log_report(report, nimg=1000, directions_uri=str(path))
    with open(run.client.download_artifacts(run.mlflow_run_id, "directions.safetensors"), "rb") as file:
        assert file.read() == b"first"
