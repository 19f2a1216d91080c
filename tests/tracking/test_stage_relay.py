"""A stage's curves, quick metrics and grids on their way into MLflow."""

import json
import logging
import math
import time

import pytest
from mlflow_runs import images, png, points, row
from PIL import Image

from stylegan import storage
from stylegan.errors import StepError
from stylegan.tracking.stage_relay import StageRelay


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
    run, stage, shown = opened(), tmp_path / "stages" / "0008-x", []
    with StageRelay(run, str(stage), on_rows=shown.append, poll_seconds=0.02):
        write_stage(stage, [row(0), row(1)], [1], tail='{"nimg": 2000, "metr')
        wait_for(lambda: len(points(run)) == 2 and len(images(run)) == 2)
        write_stage(stage, [row(0), row(1), row(2), row(3)], [1, 3])
    assert [step for step, _ in points(run)] == [0, 1, 2, 3]
    assert [row(0), row(1)] in shown
    assert shown[-1] == [row(0), row(1), row(2), row(3)]
    assert images(run) == ["images/samples+step+1"] * 2 + ["images/samples+step+3"] * 2


def test_only_what_was_added_is_read(opened, tmp_path, monkeypatch):
    """A file that grows is read from its last line on, and a file that was written anew is read whole; listings are rare."""
    read, listed, read_from, names = [], [], storage.read_from, storage.names

    def counting(uri, start):
        data = read_from(uri, start)
        read.append(len(data))
        return data

    monkeypatch.setattr(storage, "read_from", counting)
    monkeypatch.setattr(storage, "names", lambda uri: (listed.append(uri), names(uri))[1])
    run, rows = opened(), [row(kimg) for kimg in range(50)]
    relay = StageRelay(run, str(tmp_path))
    for count in (30, 31, 31, 50):
        write_stage(tmp_path, rows[:count], tail='{"nimg"')
        relay._copy_rows()
    line = len(json.dumps(rows[20])) + 1
    assert read[0] > 25 * line
    assert all(num_bytes < 4 * line for num_bytes in read[1:3])
    assert read[3] < 25 * line
    assert [step for step, _ in points(run)] == list(range(50))
    assert listed == []

    # Training went on from an older checkpoint: the last points are made again, with other times, and more follow.
    anew = [*rows[:20], *(row(kimg, 7.0) for kimg in range(20, 52))]
    write_stage(tmp_path, anew[:25])
    relay._copy_rows()
    assert relay._rows.values == anew[:25]
    write_stage(tmp_path, anew)
    relay.sweep()
    assert relay._rows.values == anew
    assert [step for step, _ in points(run)] == list(range(52))
    assert len(listed) == 1


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


def test_a_picture_that_cannot_be_logged_does_not_end_the_relay(opened, tmp_path, monkeypatch, caplog):
    """It is left out, once, with its name; larger ones than Pillow opens for strangers are logged."""
    run, stage = opened(), tmp_path / "stage"
    write_stage(stage, [row(1)], [2])
    (stage / "samples" / "000001.png").write_bytes(png()[:40])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with caplog.at_level(logging.WARNING, "stylegan"), StageRelay(run, str(stage), poll_seconds=0.02) as relay:
        wait_for(lambda: images(run))
        time.sleep(0.1)
        assert relay._thread.is_alive()
        write_stage(stage, [row(1), row(2)], [2, 3])
    assert [step for step, _ in points(run)] == [1, 2]
    assert images(run) == ["images/samples+step+2"] * 2 + ["images/samples+step+3"] * 2
    (line,) = [line for line in caplog.messages if "is not a picture" in line]
    assert "samples/000001.png" in line


def test_the_last_sweep_tells_of_a_store_that_stays_broken(opened, tmp_path):
    (tmp_path / "stage" / "stats.jsonl").mkdir(parents=True)
    with pytest.raises(StepError, match=r"cannot read .*stats\.jsonl"), StageRelay(opened(), str(tmp_path / "stage")):
        pass


def test_the_failure_of_the_stage_comes_first(opened, tmp_path):
    (tmp_path / "stage" / "stats.jsonl").mkdir(parents=True)
    with pytest.raises(KeyError, match="the stage"), StageRelay(opened(), str(tmp_path / "stage")):
        raise KeyError("the stage")
