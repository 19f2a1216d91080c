"""The lock of runs and models: on a folder and on S3, one holder at a time, whatever happens to it."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import pairwise

import pytest

from stylegan import storage
from stylegan.errors import StepError
from stylegan.pipeline import lock
from stylegan.pipeline.lock import Holder, LockedError, LostError, held, hold, holder

NAME = "run-faces-1"
# A process that holds the lock, says so, and works until it is told to end.
HOLDER = """
import sys
from stylegan.pipeline import lock
lock.BEAT_SECONDS = float(sys.argv[2])
with lock.hold(sys.argv[1], "run-faces-1", run_id="faces-1", what="stylegan run"):
    print("held", flush=True)
    sys.stdin.read()
"""
# Processes that wait for the same second, and then take the lock if they can.
RACER = """
import sys, time
from stylegan.pipeline import lock
root, start = sys.argv[1], float(sys.argv[2])
lock.held(root)  # the connection is made before
time.sleep(max(start - time.time(), 0))
try:
    with lock.hold(root, "run-faces-1", run_id="faces-1", what="stylegan run"):
        print("held", flush=True)
        time.sleep(4)
except lock.LockedError as error:
    print(error.holder.pid, flush=True)
"""
# Takes the lock again and again; each time it writes to a log of its own when the work began and ended.
HAMMER = """
import random, sys, time
from stylegan.pipeline import lock
root, seed, done = sys.argv[1], int(sys.argv[2]), 0
draw = random.Random(seed)
while done < 6:
    try:
        with lock.hold(root, "run-faces-1", run_id="faces-1", what="stylegan run"):
            began = time.monotonic()
            time.sleep(draw.uniform(0, 0.02))
            print(began, time.monotonic(), flush=True)
            done += 1
    except lock.LockedError:
        time.sleep(draw.uniform(0, 0.02))
"""


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """Return a folder and a bucket."""
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3_server")() + "/root"


@pytest.fixture
def quick(monkeypatch):
    """Beat twice a second."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.5)


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@contextmanager
def other_process(root):
    """Let another process of this machine hold the lock, and yield it."""
    process = start(HOLDER, root, lock.BEAT_SECONDS)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def take(root):
    return hold(root, NAME, run_id="faces-1", what="stylegan run")


def foreign(root, *, age=0.0, generation=1, **changes):
    """Write the record of a holder on another machine, whose newest beat is `age` seconds old; return its URI."""
    record = Holder(
        name=NAME,
        owner="other",
        run_id="faces-1",
        what="stylegan run",
        host="far",
        place="far",
        pid=7,
        started=0,
        since="2026-11-27T10:05:00+00:00",
        beat_time=time.time() - age,
    ).model_copy(update=changes)
    uri = storage.join(root, "locks", NAME, f"{generation:08d}.json")
    storage.write_json(uri, record.model_dump(mode="json"))
    return uri


@contextmanager
def beating(root, *, age=0.0):
    """Let a holder on another machine beat during the block; its clock is `age` seconds behind."""
    over = threading.Event()

    def beat():
        number = 0
        while not over.wait(lock.BEAT_SECONDS):
            number += 1
            foreign(root, age=age, beat=number)

    foreign(root, age=age)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def lose(root):
    """Let a holder elsewhere take over, then wait for something that only a signal interrupts."""
    foreign(root, generation=2)
    threading.Event().wait(20)


def seconds(action):
    began = time.monotonic()
    action()
    return time.monotonic() - began


def take_and_release(root):
    with take(root):
        pass


def test_a_second_process_is_refused_in_one_line_at_once(root):
    with other_process(root) as other:
        began = time.monotonic()
        with pytest.raises(LockedError) as refused, take(root):
            pass
        assert time.monotonic() - began < 3
        assert refused.value.holder.pid == other.pid
        line = str(refused.value)
        assert line.startswith("run faces-1 is training since 20")
        assert f"(pid {other.pid})" in line
        assert "run the same command again" in line
        assert "\n" not in line
        assert [one.run_id for one in held(root)] == ["faces-1"]
        assert holder(root, NAME).pid == other.pid
        other.communicate("")  # it ends by itself
        take_and_release(root)
    assert held(root) == ()
    assert holder(root, NAME) is None


def test_of_processes_that_start_in_the_same_second_one_holds(root):
    begin = time.time() + 8
    racers = [start(RACER, root, begin) for _ in range(4)]
    said = [racer.communicate()[0].strip() for racer in racers]
    assert said.count("held") == 1
    winner = racers[said.index("held")]
    assert set(said) - {"held"} == {str(winner.pid)}


def test_work_never_overlaps(root):
    hammers = [start(HAMMER, root, seed) for seed in range(4)]
    spans = []
    for hammer in hammers:
        for line in hammer.communicate()[0].splitlines():
            spans.append(tuple(map(float, line.split())))
        assert hammer.returncode == 0
    assert len(spans) == 24
    spans.sort()
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_a_killed_holder_of_this_machine_gives_way_at_once(root):
    """Also while nobody has collected its process."""
    with other_process(root) as other:
        os.kill(other.pid, signal.SIGKILL)
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert held(root) == ()
        assert seconds(lambda: take_and_release(root)) < 3


def test_a_holder_elsewhere_that_is_silent_gives_way_after_three_beats(root, quick):
    foreign(root, age=60)
    assert holder(root, NAME) is not None  # nobody has watched it
    assert seconds(lambda: take_and_release(root)) >= 1.5
    assert storage.names(storage.join(root, "locks", NAME)) == ["00000002.json"]


@pytest.mark.parametrize("age", [0.0, 600.0, -600.0])
def test_a_holder_elsewhere_that_beats_stays(root, quick, age):
    """Whatever its clock shows: of a clock that agrees it is known at once."""
    with beating(root, age=age), pytest.raises(LockedError, match="on far"):
        take_and_release(root)
    assert holder(root, NAME).owner == "other"


def test_a_silent_holder_whose_clock_is_ahead_gives_way(root, quick):
    foreign(root, age=-600)
    assert seconds(lambda: take_and_release(root)) >= 1.5


def test_a_dead_holder_of_yesterday_is_not_living(root):
    foreign(root, age=86_400)
    assert held(root) == ()


def test_a_damaged_record_gives_way_too(root, quick):
    storage.write_bytes(storage.join(root, "locks", NAME, "00000004.json"), b"{")
    take_and_release(root)
    assert storage.names(storage.join(root, "locks", NAME)) == ["00000005.json"]


def test_the_same_process_is_no_exception(root):
    with take(root), pytest.raises(LockedError):
        take_and_release(root)


def test_an_error_releases_the_lock(root):
    with pytest.raises(ValueError, match="work"), take(root):
        raise ValueError("work")
    assert held(root) == ()


def test_a_store_that_is_away_at_the_end_hides_no_error(root, monkeypatch):
    def refuse(*_):
        raise StepError("storage: does not answer")

    def fail():
        monkeypatch.setattr(storage, "names", refuse)
        raise ValueError("work")

    with pytest.raises(ValueError, match="work"), take(root):
        fail()


def test_beats_are_counted(root, quick):
    with take(root):
        deadline = time.monotonic() + 20
        while holder(root, NAME).beat < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert holder(root, NAME).beat >= 2


def test_a_holder_whose_lock_was_taken_stops(root, quick):
    with pytest.raises(LostError, match="process 7 on far has gone on with it"), take(root):
        lose(root)
    assert holder(root, NAME).owner == "other"


def test_the_outer_one_of_two_locks_stops_as_well(root, quick):
    """As in a scheduled retraining, which holds one for its model and one for its run."""
    with pytest.raises(LostError), take(root), hold(root, "run-other", run_id="other", what="stylegan run"):
        lose(root)
    assert [one.owner for one in held(root)] == ["other"]


def test_a_store_that_is_away_ends_nothing(root, quick, monkeypatch):
    """The holder beats again when it is back."""
    with take(root):
        with monkeypatch.context() as away:

            def refuse(*_):
                raise StepError("storage: does not answer")

            away.setattr(storage, "names", refuse)
            away.setattr(storage, "write_bytes", refuse)
            time.sleep(2.5)
        before = holder(root, NAME).beat
        deadline = time.monotonic() + 20
        while holder(root, NAME).beat == before and time.monotonic() < deadline:
            time.sleep(0.1)
        assert holder(root, NAME).beat > before


def test_a_slow_taker_does_not_hold_a_generation_that_is_over(root, monkeypatch):
    """Between its look and its writing the lock was taken, released and taken by a third process."""
    create = storage.create

    def late(uri, data):
        monkeypatch.setattr(storage, "create", create)
        foreign(root, generation=2)
        return create(uri, data)

    monkeypatch.setattr(storage, "create", late)
    with pytest.raises(LockedError, match="on far"):
        take_and_release(root)


def test_who_holds_a_lock_waits_for_the_end_of_a_clean_up(tmp_path):
    root, order = str(tmp_path), []
    lock.wait_for_clean_up(root)  # there is none
    with lock.hold(root, lock.CLEAN_UP, run_id=lock.CLEAN_UP, what="stylegan gc"):
        waiting = threading.Thread(target=lambda: (lock.wait_for_clean_up(root), order.append("run")))
        waiting.start()
        time.sleep(0.5)
        order.append("clean-up")
    waiting.join(10)
    assert order == ["clean-up", "run"]
