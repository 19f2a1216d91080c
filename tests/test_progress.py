"""Tests of progress as log records."""

import logging

import pytest

from stylegan import progress as module
from stylegan.progress import CourseStep, Progress, duration


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


@pytest.fixture
def course():
    """A course that work of this test belongs to."""
    found = module.Course()
    module.course.set(found)
    yield found
    module.course.set(None)


STEPS = [
    CourseStep("shard", "cached"),
    CourseStep("train 4x4", known=10, counted=100),
    CourseStep("train 8x8", known=10, counted=300, beside=20),
    CourseStep("evaluate", known=20, counted=50),
]


def test_the_start_of_a_run_says_what_will_run_and_about_how_long(course, caplog):
    caplog.set_level(logging.INFO, "stylegan")
    course.plan("digits", STEPS, measured_here=True)
    course.plan("digits", STEPS, measured_here=False)
    course.plan("digits", [CourseStep("shard", unknown=True), CourseStep("gate", known=1)], measured_here=False)
    course.plan("digits", [CourseStep("shard", "cached"), CourseStep("gate", "cached")], measured_here=True)
    known = "digits: 4 steps, 1 taken from storage (shard); to do: train 4x4, train 8x8, evaluate"
    assert [record.getMessage() for record in caplog.records] == [
        f"{known}; about 8 min",
        known,  # of a GPU nothing is known before it is measured
        "digits: 2 steps; to do: shard, gate; about 1 s after shard",
        "digits: 2 steps, all taken from storage",
    ]


def test_the_time_of_a_whole_run_scales_the_plan_by_what_was_measured(course):
    """Everything takes twice as long as counted; what is known stays as it is."""
    course.plan("digits", STEPS, measured_here=False)
    course.begin("train 4x4")
    assert course.text == ""
    progress = Progress("train 4x4", 1000, part=(1, 2), step=(0, 0))
    progress.update(500, rate=5)  # 200 s for the whole stage, of which 100 are left
    assert course.text == f"whole run about {duration(100 + (10 + 2 * 320) + (20 + 2 * 50))} left"
    progress.update(1000, rate=5)
    course.begin("train 8x8")
    before = course.text
    assert before == f"whole run about {duration(10 + 2 * 320 + 20 + 2 * 50)} left"
    Progress("train 8x8", 1000, part=(2, 2), step=(0, 0)).update(1, rate=1000 / 600)
    assert course.text == f"whole run about {duration(599 + 2 * 20 + 20 + 2 * 50)} left"
    course.begin("evaluate")
    Progress("evaluate: generated", 500, step=(0, 500)).update(500, rate=10)  # and 500 more in another pass
    assert course.text == "whole run about 50 s left"


def test_one_odd_speed_does_not_throw_the_estimate(course):
    """The factor is that of all work so far: a moment of the next stage hardly moves the steps behind it."""
    course.plan("digits", STEPS, measured_here=False)
    course.begin("train 4x4")
    Progress("train 4x4", 1000, step=(0, 0)).update(1000, rate=5)
    course.begin("train 8x8")
    Progress("train 8x8", 1000, step=(0, 0)).update(1, rate=10 * 1000 / 600)  # ten times faster, for one image
    assert course.text == f"whole run about {duration(60 + 2 * 20 + 20 + 2 * 50)} left"


def test_the_bar_of_the_whole_run_only_moves_on(course):
    course.plan("digits", STEPS, measured_here=True)
    shares = []
    for name in ("train 4x4", "train 8x8", "evaluate"):
        course.begin(name)
        progress = Progress(name, 100, step=(0, 0))
        for done, rate in ((10, 1), (50, 0.1), (100, 7)):
            progress.update(done, rate=rate)
            shares.append(course.whole[0])
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert course.whole[1].startswith("step 4 of 4")
    course.end()
    assert course.whole is None


def test_a_line_names_the_part_and_the_whole_run(course, caplog):
    caplog.set_level(logging.INFO, "stylegan-progress")
    course.plan("digits", STEPS, measured_here=True)
    course.begin("train 8x8")
    progress = Progress("train 8x8", 16_000, part=(2, 3), step=(0, 0), begun=2000)  # it goes on from a checkpoint
    progress.update(9000, "D 1.386", rate=200)
    assert caplog.records[-1].getMessage() == (
        "train 8x8 (2 of 3): 9,000 of 16,000 img, 200 img/s, 35 s left; whole run about 71 s left, D 1.386"
    )
    assert caplog.records[-1].progress[3] == "9,000 of 16,000 img, 200 img/s, 35 s left, D 1.386"
    Progress("evaluate: linear SVMs", 10, "attributes").update(1)  # work beside that of a step moves nothing
    assert course.text == "whole run about 71 s left"


@pytest.mark.parametrize("whole", ["", "whole run about 2.5 h left"])
def test_the_lines_of_progress_are_read_back(caplog, monkeypatch, whole):
    """Of every unit, with and without speed, also with a name that has a colon, between other lines."""
    caplog.set_level(logging.INFO)
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    if whole:
        run = module.Course()
        monkeypatch.setattr(module.Course, "text", whole)
        token = module.course.set(run)
    for name, total, unit, rate in (
        ("train 8x8", 1_600_000, "img", 1234.4),
        ("evaluate: SVMs", 40, "attributes", None),
    ):
        progress = Progress(name, total, unit, part=(2, 3), step=(0, 0))
        progress.update(0, "D 0.512", rate=rate and 0)
        for share in (0.5, 1):
            now[0] += 20
            progress.update(total * share, "D 0.512, G 1.2", rate=rate)
            log = f"stylegan: begins\n{caplog.messages[-1]}\nother: of 3\n"
            found = module.newest_line(log)
            speed = round(rate) if rate else {0.5: 1, 1: 1}[share]
            assert (found.name, found.done, found.total, found.unit) == (f"{name} (2 of 3)", total * share, total, unit)
            assert found.rate == speed
            assert (found.left is None) == (share == 1)
            assert found.whole == ((whole and "2.5 h") or None)
    if whole:
        module.course.reset(token)


def test_a_log_without_progress():
    assert module.newest_line("") is None
    assert module.newest_line("Running entrypoint\ntiny: 6 steps; to do: shard\n") is None
