"""Locks in storage: never two at once, on a folder and on S3; take-over of the dead, refusal by the living."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest

from stylegan import storage
from stylegan.errors import DamagedError, UnavailableError
from stylegan.pipeline import lock
from stylegan.pipeline.lock import Holder, LockedError, held, hold, holder
from stylegan.processes import Process

BEAT = 0.2  # seconds


@pytest.fixture(params=["local", "s3", "gcs"])
def root(request, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", BEAT)
    if request.param == "local":
        return str(tmp_path / "root")
    return request.getfixturevalue(f"{request.param}_server")()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", BEAT)
    return str(tmp_path / "root")


def take(root, name="x"):
    return hold(root, name, run_id="faces-1", what="stylegan run")


def foreign(root, *, beat=0, beat_time=None, generation=1, name="x"):
    """Write the record of a holder on another machine."""
    record = Holder(
        name=name,
        owner="other",
        run_id="faces-2",
        what="retrain",
        host="far",
        process=Process(place="far-away", pid=1, started=1),
        since="2026-11-27T10:05:00+00:00",
        beat=beat,
        beat_time=time.time() if beat_time is None else beat_time,
    )
    storage.write_json(f"{root}/locks/{name}/{generation:08d}.json", record.model_dump(mode="json"))


def test_the_second_is_refused_at_once_and_says_who_works(root):
    with take(root):
        began = time.monotonic()
        with pytest.raises(
            LockedError, match=r"run faces-1 is training since 20..-..-.. ..:.. UTC \(stylegan run on .*pid \d+\)"
        ):
            hold(root, "x", run_id="faces-3", what="retrain").__enter__()
        assert time.monotonic() - began < 2 * BEAT + 1
        assert [one.run_id for one in held(root)] == ["faces-1"]
        with take(root, "y"):  # another lock
            assert {one.name for one in held(root)} == {"x", "y"}
    assert held(root) == ()
    with take(root):
        assert storage.names(f"{root}/locks/x") == ["00000002.json"]  # older generations go


def test_a_living_holder_beats(root):
    with take(root):
        first = holder(root, "x")
        time.sleep(4 * BEAT + 0.5)
        assert holder(root, "x").beat > first.beat


def test_a_holder_of_another_machine_that_is_silent_is_replaced_after_three_beats(root):
    foreign(root, beat_time=time.time() - 3600)
    began = time.monotonic()
    with take(root):
        assert time.monotonic() - began >= 3 * BEAT
        assert holder(root, "x").run_id == "faces-1"


@pytest.mark.parametrize("ahead", [-3600, 0, 3600])
def test_a_holder_of_another_machine_that_beats_stays_whatever_its_clock_says(folder, ahead):
    ended = threading.Event()

    def beat():
        count = 0
        while not ended.wait(BEAT / 2):
            count += 1
            foreign(folder, beat=count, beat_time=time.time() + ahead)

    foreign(folder, beat_time=time.time() + ahead)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LockedError, match="faces-2"):
            take(folder).__enter__()
    finally:
        ended.set()
        thread.join()


def test_a_holder_that_was_killed_is_replaced_at_once(folder, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 60.0)  # no beat is missed meanwhile
    code = (
        "import sys, time\n"
        "from stylegan.pipeline.lock import hold\n"
        f"with hold({folder!r}, 'x', run_id='r', what='w'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(LockedError):
        take(folder).__enter__()
    process.kill()
    process.wait()
    assert holder(folder, "x") is None
    began = time.monotonic()
    with take(folder):
        assert time.monotonic() - began < 5


def test_who_lost_its_lock_is_interrupted_and_leaves_that_of_the_other_alone(folder):
    def work():
        with take(folder):
            foreign(folder, generation=9)
            time.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert holder(folder, "x").run_id == "faces-2"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_store_that_is_away_for_a_while_ends_no_work(folder, monkeypatch):
    write = storage.write_json
    with take(folder):
        before = holder(folder, "x").beat

        def away(*_):
            raise UnavailableError("away")

        monkeypatch.setattr(storage, "write_json", away)
        time.sleep(5 * BEAT)
        monkeypatch.setattr(storage, "write_json", write)
        time.sleep(5 * BEAT)
        assert holder(folder, "x").beat > before


def test_an_error_in_the_block_gives_the_lock_back(folder):
    with pytest.raises(ValueError, match="x"), take(folder):
        raise ValueError("x")
    assert holder(folder, "x") is None


def test_a_damaged_record_is_named_with_its_cure(folder):
    storage.write_bytes(f"{folder}/locks/x/00000001.json", b"{")
    with pytest.raises(DamagedError, match=r"00000001\.json: is damaged .*; delete it if no run"):
        take(folder).__enter__()


def _work(root, number, rounds, out):
    """Enter the block as often as it is free, and note the times of each stay."""
    lock.BEAT_SECONDS = 5.0
    done = 0
    while done < rounds:
        try:
            with hold(root, "x", run_id=str(number), what="test"):
                begin = time.monotonic()
                time.sleep(0.005)
                out.put((begin, time.monotonic()))
                done += 1
        except LockedError:
            time.sleep(0.002)


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_of_many_processes_never_two_are_inside(kind, tmp_path, request):
    root = str(tmp_path / "root") if kind == "local" else request.getfixturevalue("s3_server")()
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    rounds = 15 if kind == "local" else 5
    workers = [context.Process(target=_work, args=(root, number, rounds, out)) for number in range(4)]
    for worker in workers:
        worker.start()
    stays = sorted(out.get(timeout=120) for _ in range(4 * rounds))
    for worker in workers:
        worker.join()
    assert all(end <= begin for (_, end), (begin, _) in pairwise(stays))


def _create(uri, number, barrier, out):
    barrier.wait()
    out.put(storage.create(uri, str(number).encode()))


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_of_several_that_create_a_file_at_once_one_succeeds(kind, tmp_path, request):
    root = str(tmp_path / "root") if kind == "local" else request.getfixturevalue("s3_server")()
    out, barrier = multiprocessing.get_context("fork").Queue(), threading.Barrier(8)
    results = []
    for attempt in range(10):
        threads = [
            threading.Thread(target=_create, args=(f"{root}/{attempt}", number, barrier, out)) for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        results.append(sum(out.get() for _ in threads))
    assert results == [1] * 10


def test_a_repeated_creation_finds_its_own_file(folder):
    """A store that answers too late has done what it was asked: the second attempt must not believe in another writer."""
    assert storage.create(f"{folder}/a", b"1")
    assert not storage.create(f"{folder}/a", b"2")
    assert storage.read_bytes(f"{folder}/a") == b"1"
    assert [name for name in os.listdir(folder) if name != "a"] == []


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
