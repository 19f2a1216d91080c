"""Let one process at a time work for a run, and one retraining at a time for a model: locks in storage.

{root}/locks/{name}/{generation}.json    a record for each holder that there was; the newest one counts

A lock is taken by creating the file of the next generation, which of several processes only one can do (see
`storage.create`). Nothing else has to be atomic: each file is written by its holder only. The holder writes its file anew
every `BEAT_SECONDS`, and looks whether a newer generation has taken its place, as after a sleep of this machine.

A holder whose process is seen to be gone is replaced at once. One of another machine is replaced after three missed
beats. These are counted by the clock of whoever waits: the times in a record only say whether it is worth waiting.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

from stylegan import storage
from stylegan.errors import DamagedError, StepError, UserError
from stylegan.processes import Process, this_process
from stylegan.records import Record

logger = logging.getLogger("stylegan")

LOCKS = "locks"
BEAT_SECONDS = 10.0
MISSED = 3  # beats after which a holder counts as dead
CLEAN_UP = "clean-up"  # name of the lock of a clean-up, see retention.py
CURE = "delete it if no run of this root works"


class Holder(Record):
    """Who holds a lock.

    Attributes:
        name: of the lock.
        owner: drawn at random for each holder.
        run_id: what it works for.
        what: the command.
        host: name of its machine.
        process: its process, as far as it can be seen from here.
        since: when it took the lock, ISO 8601 in UTC.
        beat: number of times that it has written this record.
        beat_time: time of the last one, in seconds since 1970 by its own clock.
        released: True once it has given the lock back.
    """

    name: str
    owner: str
    run_id: str
    what: str
    host: str
    process: Process
    since: str
    beat: int = 0
    beat_time: float
    released: bool = False

    @property
    def text(self) -> str:
        """Who it is, in words."""
        since = self.since[:16].replace("T", " ")
        return f"{self.run_id} is training since {since} UTC ({self.what} on {self.host}, pid {self.process.pid})"


class LockedError(StepError):
    """Raised when another process works for the same run or model."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(f"run {holder.text}; wait until it has ended, or stop it first")
        self.holder = holder


@contextlib.contextmanager
def hold(root: str, name: str, *, run_id: str, what: str) -> Iterator[None]:
    """Hold a lock during the block.

    If another process takes it over meanwhile, since this one was silent for too long, the main thread is interrupted as by
    Ctrl-C.

    Args:
        root: storage root.
        name: of the lock, the name of its folder.
        run_id, what: for the message that others get.

    Raises:
        LockedError: another process holds it. It takes up to `MISSED` beats to find out that it does not.
        StepError: storage refuses or does not answer.
    """
    heart = _take(storage.absolute(root), name, run_id, what)
    try:
        yield
    finally:
        heart.stop()


def holder(root: str, name: str) -> Holder | None:
    """Return the holder of a lock as its record says, without waiting; None if nobody holds it.

    One of another machine that has missed its beats counts as a holder no more.
    """
    found = _newest(storage.join(storage.absolute(root), LOCKS, name))
    return found[1] if found and not found[1].released and _is_plausible(found[1]) else None


def held(root: str) -> tuple[Holder, ...]:
    """Return the holders of all locks below a root, as `holder` does."""
    names = storage.names(storage.join(storage.absolute(root), LOCKS))
    found = (holder(root, name) for name in names)
    return tuple(one for one in found if one is not None)


def run_lock(run_id: str) -> str:
    """Return the name of the lock of a run."""
    return f"run-{run_id}"


def wait_for_clean_up(root: str) -> None:
    """Wait until nothing is being deleted below a root. Call it with a lock of one's own: a clean-up ends at that."""
    told = False
    while found := holder(root, CLEAN_UP):
        if not told:
            logger.info("waiting for a clean-up on %s to end, which it does after the present item", found.host)
        told = True
        time.sleep(BEAT_SECONDS / 50)


# --- taking ---


def _take(root: str, name: str, run_id: str, what: str) -> _Heart:
    folder = storage.join(root, LOCKS, name)
    while True:
        newest = _newest(folder)
        if newest and not _is_free(folder, newest):
            raise LockedError(newest[1])
        generation = newest[0] + 1 if newest else 1
        now = datetime.now(UTC)
        ours = Holder(
            name=name,
            owner=uuid.uuid4().hex,
            run_id=run_id,
            what=what,
            host=socket.gethostname(),
            process=this_process(),
            since=now.isoformat(timespec="seconds"),
            beat_time=now.timestamp(),
        )
        if storage.create(_file(folder, generation), storage.json_bytes(ours.model_dump(mode="json"))):
            if newest and not newest[1].released:
                logger.info("lock %s: taken over from %s, whose process is gone", name, newest[1].host)
            for older in range(generation - 1, 0, -1):  # downwards: whoever looks meanwhile sees the newest
                if older < generation - 1 and not storage.exists(_file(folder, older)):
                    break
                storage.delete(_file(folder, older))
            return _Heart(folder, generation, ours)


def _is_free(folder: str, newest: tuple[int, Holder]) -> bool:
    """Return whether a lock can be taken over: its holder has given it back, is gone, or misses `MISSED` beats now."""
    found = newest[1]
    if found.released or found.process.is_gone:
        return True
    if _is_plausible(found):
        return False
    began = time.monotonic()
    logger.info("lock %s: its holder on %s has been silent; waiting for a sign of it", found.name, found.host)
    while time.monotonic() - began < MISSED * BEAT_SECONDS:
        time.sleep(BEAT_SECONDS / 10)
        now = _newest(folder)
        if now != newest:
            return now is None or now[1].released
    return True


def _is_plausible(found: Holder) -> bool:
    """Return whether a record was written within the last beats, as far as the clocks of two machines tell."""
    return not found.process.is_gone and abs(time.time() - found.beat_time) < MISSED * BEAT_SECONDS


def _newest(folder: str) -> tuple[int, Holder] | None:
    """Return the newest generation of a lock and its record, None for a lock that was never taken."""
    while True:
        numbers = [int(name[:-5]) for name in storage.names(folder) if name.endswith(".json") and name[:-5].isdigit()]
        if not numbers:
            return None
        uri = _file(folder, max(numbers))
        try:
            return max(numbers), storage.read_json(uri, Holder, cure=CURE)
        except FileNotFoundError:  # a newer one has taken its place since
            continue


def _file(folder: str, generation: int) -> str:
    return storage.join(folder, f"{generation:08d}.json")


# --- holding ---


class _Heart:
    """Writes the record of a holder anew, in a thread, until the lock is given back or lost."""

    def __init__(self, folder: str, generation: int, holder: Holder) -> None:
        self.folder, self.generation, self.holder = folder, generation, holder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lock {holder.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give the lock back, unless it was lost. A store that does not answer leaves it to the missed beats."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(UserError):
            if not self._is_lost():
                self._write(released=True)

    def _run(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                if self._is_lost():
                    logger.error("lock %s: another process has taken it over, so this one stops", self.holder.name)
                    self._ended.set()
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                self._write()
            except DamagedError as error:
                logger.warning("%s", error)
            except UserError as error:  # a store that is away is no reason to stop: only a newer holder is one
                logger.warning("lock %s: %s", self.holder.name, error)

    def _is_lost(self) -> bool:
        newest = _newest(self.folder)
        return newest is not None and newest[0] > self.generation

    def _write(self, *, released: bool = False) -> None:
        changes = {"beat": self.holder.beat + 1, "beat_time": time.time(), "released": released}
        self.holder = self.holder.model_copy(update=changes)
        storage.write_json(_file(self.folder, self.generation), self.holder.model_dump(mode="json"))
