"""Tests of progress as log records."""

import logging

import pytest

from stylegan import progress as module
from stylegan.progress import Progress, duration


def test_every_update_reaches_the_bars_but_only_the_end_of_quick_work_the_log(caplog):
    caplog.set_level(logging.INFO)
    for name in ("stylegan", "stylegan-progress"):
        logging.getLogger(name).setLevel(logging.INFO)
    progress = Progress("shard", 100)
    for done in (10, 10, 60, 100):
        progress.update(done)
    by_logger = {
        name: [r.progress[1] for r in caplog.records if r.name == name] for name in ("stylegan", "stylegan-progress")
    }
    assert by_logger == {"stylegan": [100], "stylegan-progress": [10, 60, 100]}
    assert "100 of 100 img" in caplog.text


def test_a_speed_over_a_moment_is_not_shown(caplog, monkeypatch):
    """The results of parallel work come in bursts, in which anything looks fast."""
    caplog.set_level(logging.INFO)
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = Progress("evaluate", 400)
    for seconds, done in ((0, 200), (0.001, 300), (0.999, 350), (1, 400)):
        now[0] += seconds
        progress.update(done)
    texts = [r.progress[3] for r in caplog.records if r.name == "stylegan-progress"]
    assert texts == [
        "200 of 400 img",
        "300 of 400 img",
        "350 of 400 img, 150 img/s, 0 s left",
        "400 of 400 img, 100 img/s, done",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(12, "12 s"), (600, "10 min"), (9000, "2.5 h"), (400_000, "4.6 d")])
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text
