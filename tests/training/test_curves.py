"""Points of the curves: what they contain, where they continue after an interruption, and the time they measure."""

import json
import time

import pytest
import torch

from stylegan import storage
from stylegan.training import curves as curves_module
from stylegan.training.background import Background
from stylegan.training.curves import SPEED, Curves, Stopwatch, _Point, clock, read_rows, train_seconds
from stylegan.training.state import start_stage


@pytest.fixture
def curves(job):
    """Return curves(rows), which opens the curves of a 4x4 stage at 8 images, with these rows in storage."""
    stage = job(4, "one")

    def make(rows):
        state = start_stage(stage.config, stage.stage, num_labels=2, previous=None)
        state.nimg = 8
        with Background() as background:
            storage.write_bytes(f"{stage.uri}/stats.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
            return Curves(stage, state, background)

    return make


def test_no_file_is_no_rows(tmp_path):
    assert read_rows(str(tmp_path / "stats.jsonl")) == []


def test_points_are_means_over_the_steps_and_what_was_measured(curves):
    opened = curves([])
    state = opened.state
    state.sums, state.steps, state.measured = {"loss/d": torch.tensor(6.0)}, 4, {"probe/accuracy": 0.5}
    opened.add_point()
    point = opened.newest()()
    assert point["loss/d"] == 1.5
    assert point["probe/accuracy"] == 0.5
    assert point["progress/kimg"] == 0.008
    assert (state.sums, state.steps, state.measured) == ({"loss/d": 0}, 0, {})


def test_content_is_that_of_its_moment(curves):
    """The content has the stored points up to the image count of the state, and no point added after the call."""
    rows = [{"nimg": nimg, "resolution": 4, "metrics": {"loss/d": 0.1 * nimg}} for nimg in (4, 8, 12)]
    opened = curves(rows)
    content = opened.content()
    opened.state.sums, opened.state.steps = {"loss/d": torch.tensor(6.0)}, 4
    opened.add_point()
    assert [json.loads(line) for line in content().splitlines()] == rows[:2]
    assert len(opened.content()().splitlines()) == 3


def test_the_mean_speed_is_that_of_the_points_that_have_a_time(curves):
    """A point of version 0.1 or of another program may have none; it is no kimg in no time."""
    assert curves([]).mean_speed() == 0
    metrics = ({"time/sec_per_kimg": 2.0}, {"loss/d": 1.0}, {"time/sec_per_kimg": 6.0})
    rows = [{"nimg": nimg, "resolution": 4, "metrics": some} for nimg, some in zip((2, 4, 8), metrics, strict=True)]
    assert curves(rows).mean_speed() == 250
    assert curves(rows[1:2]).mean_speed() == 0


@pytest.mark.parametrize(("num_bytes", "written"), [(100, True), (10 * curves_module.WRITE_BYTES, False)])
def test_a_large_file_is_written_more_rarely(curves, monkeypatch, num_bytes, written):
    """Five seconds after the last write: the whole file is written again each time, and grows."""
    opened, writes = curves([]), []
    monkeypatch.setattr(opened, "write", lambda: writes.append(1))
    opened._points.append(_Point.of({"nimg": 8, "resolution": 4, "metrics": {"x" * (num_bytes // 2): 1.0}}))
    opened._write_time -= 5
    opened.state.sums, opened.state.steps = {"loss/d": torch.tensor(6.0)}, 4
    opened.add_point()
    assert bool(writes) == written


def test_stopwatch_adds_up_blocks_and_begins_anew():
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch:
            time.sleep(0.005)
    assert watch.read()() >= 0.01
    assert watch.read()() == 0


def test_the_clock_adds_up_the_time_of_the_points_over_stages():
    """Quick metrics have no speed, and the images before the first point are those since the stage began."""
    rows = [
        {"nimg": nimg, "resolution": 4, "metrics": metrics}
        for nimg, metrics in [
            (1000, {SPEED: 100.0}),
            (2000, {"quick/fid": 9.0}),
            (3000, {SPEED: 50.0}),
            (3500, {SPEED: 0.0}),
            (4000, {SPEED: 10.0}),
        ]
    ]
    assert clock(rows) == [10, 10, 50, 50, 150]
    assert clock(rows, start_nimg=500) == [5, 5, 45, 45, 145]
    assert train_seconds(rows) == 150
    assert train_seconds([]) == 0
