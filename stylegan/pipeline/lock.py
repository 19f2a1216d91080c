"""Let one process at a time work on a run, or retrain a model: a lock in storage, on any store and for any machine.

A lock is the folder `{root}/locks/{name}`, with a file for each generation. The writer of the highest generation holds
the lock until it says that it has released it, or is dead. To take the lock is to create the file of the next generation,
which a store allows to one writer alone; nothing else here has to be atomic.

The holder counts a beat in its file every `BEAT_SECONDS`. It is dead if its process has ended, which another process of
the same machine knows at once, or if somebody has watched its file for three beats without seeing one. Clocks of machines
may differ, so the time of a beat alone never makes a holder dead. A holder that was dead to others and goes on, such as
one on a machine that slept, sees the next generation at its next beat and stops.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import FrameType
from urllib.parse import quote, unquote

from stylegan import storage
from stylegan.errors import DamagedError, StepError, Stopped
from stylegan.processes import has_ended, place, start_time
from stylegan.records import Record

BEAT_SECONDS = 10.0  # between two beats
MISSED = 3  # beats after which a holder that is watched counts as dead
DOUBT_SECONDS = 3600.0  # clocks do not differ so much: a beat that is older is that of a dead holder, without watching
READERS = 16  # locks read at the same time
LOCKS = "locks"  # folder below a storage root
FILE = re.compile(r"(\d{8})\.json")

CLEAN_UP = "clean-up"  # name of the lock of a clean-up, see retention.py

logger = logging.getLogger("stylegan")


class Holder(Record):
    """Who holds a lock.

    Attributes:
        name: of the lock.
        owner: differs between any two takings.
        run_id: the run that it works on; empty if that is not known yet.
        what: the command.
        host: the name of its machine.
        place: where its pid counts, until that machine is started again.
        pid: of its process.
        started: start of its process, seconds since 1970.
        since: when it took the lock, ISO 8601 in UTC.
        beat: number of its newest beat.
        beat_time: time of that, by its own clock, in seconds since 1970.
        released: whether it has let go of the lock.
    """

    name: str
    owner: str
    run_id: str
    what: str
    host: str
    place: str
    pid: int
    started: float
    since: str
    beat: int = 0
    beat_time: float
    released: bool = False


UNKNOWN = Holder(
    name="", owner="", run_id="", what="?", host="?", place="", pid=0, started=0, since="?", beat_time=0
)  # the holder whose record cannot be read


class LockedError(StepError):
    """Another process holds the lock.

    Attributes:
        holder: who.
    """

    def __init__(self, holder: Holder) -> None:
        super().__init__(
            f"{describe(holder)}; wait for its end or stop it there, then run the same command again (a process that was "
            f"lost with its machine gives way after {_patience():.0f} s)"
        )
        self.holder = holder


class LostError(Stopped):
    """Another process has taken over the lock that this one held, so this one has stopped in good order."""


def run_lock(run_id: str) -> str:
    """Return the name of the lock of a run."""
    return f"run-{run_id}"


def stage_lock(folder: str) -> str:
    """Return the name of the lock of a stage, which several runs may need; `folder` is the name of its folder."""
    return f"stage-{folder}"


@contextmanager
def hold(root: str, name: str, *, run_id: str, what: str) -> Iterator[None]:
    """Hold a lock during the block.

    If another process takes it over, the main thread is interrupted by `LostError`; a block on another thread goes on.

    Args:
        root: the storage root.
        name: of the lock.
        run_id: the run that the block works on; empty if that is not known yet.
        what: the command, for those who are refused.

    Raises:
        LockedError: another process holds it.
        StepError: storage refuses.
        LostError: another process has taken it over.
    """
    with _Lock(root, name, run_id, what):
        yield


def holder(root: str, name: str) -> Holder | None:
    """Return the living holder of a lock, without waiting; None if there is none.

    Raises:
        StepError: storage does not answer.
    """
    _, found = _newest(_folder(root, name))
    return found if found and lives(found) else None


def lives(holder: Holder) -> bool:
    """Return whether the newest holder of a lock holds it still, by its record alone.

    One that may be dead, but would have to be watched for that, counts as living.
    """
    return not _is_free(holder) and time.time() - holder.beat_time < DOUBT_SECONDS


def beats(holder: Holder) -> bool:
    """Return whether a holder surely lives: its newest beat is a recent one by the clock of this machine."""
    return lives(holder) and -BEAT_SECONDS < time.time() - holder.beat_time < _patience()


def held(root: str) -> tuple[Holder, ...]:
    """Return the living holders of all locks below a root, as `holder` does."""
    names = [unquote(folder) for folder in storage.names(storage.join(storage.absolute(root), LOCKS))]
    with ThreadPoolExecutor(READERS, "locks") as pool:
        return tuple(one for one in pool.map(lambda name: holder(root, name), names) if one)


def wait_for_clean_up(root: str) -> None:
    """Wait until nothing is being deleted below a root. Call it with a lock of one's own: a clean-up ends at that."""
    told = False
    while (found := holder(root, CLEAN_UP)) and beats(found):
        if not told:
            logger.info("waiting for a clean-up on %s to end, which it does after the present item", found.host)
        told = True
        time.sleep(BEAT_SECONDS / 50)


def describe(holder: Holder) -> str:
    """Return in words who works since when."""
    since = holder.since[:16].replace("T", " ")
    return f"{_subject(holder)} is training since {since} UTC on {holder.host} (pid {holder.pid})"


def _subject(holder: Holder) -> str:
    return f"run {holder.run_id}" if holder.run_id else f"`{holder.what}` ({holder.name})"


def _folder(root: str, name: str) -> str:
    return storage.join(storage.absolute(root), LOCKS, quote(name, safe=""))


def _file(folder: str, generation: int) -> str:
    return storage.join(folder, f"{generation:08d}.json")


def _generations(folder: str) -> list[int]:
    """Return the generations that a lock has a file of, in order."""
    return [int(found[1]) for found in map(FILE.fullmatch, storage.names(folder)) if found]


def _newest(folder: str) -> tuple[int, Holder | None]:
    """Return the highest generation of a lock and its holder; 0 and None if nobody has ever taken it."""
    while generations := _generations(folder):
        uri = _file(folder, generations[-1])
        try:
            return generations[-1], storage.read_json(uri, Holder, cure="delete it if no process works there")
        except FileNotFoundError:  # another has taken the lock and tidied up since the listing
            continue
        except DamagedError:  # of a writer that was lost on a store without whole writes; it may be about to write
            return generations[-1], UNKNOWN.model_copy(update={"name": uri})
    return 0, None


def _place() -> str:
    """Return where pids count: machines whose disks are copies of one another differ in when they were started."""
    return f"{place()}/{storage.boot_id()}"


def _is_free(holder: Holder) -> bool:
    """Return whether a holder has let go of its lock, or is a process of this machine that has ended."""
    return holder.released or (holder.place == _place() and has_ended(holder.pid, holder.started))


class _Lock:
    """A lock that this process takes, keeps by its beats, and releases."""

    def __init__(self, root: str, name: str, run_id: str, what: str) -> None:
        self.folder = _folder(root, name)
        self.generation = 0
        self.ours = Holder(
            name=name,
            owner=uuid.uuid4().hex,
            run_id=run_id,
            what=what,
            host=socket.gethostname(),
            place=_place(),
            pid=os.getpid(),
            started=start_time(),
            since="",
            beat_time=0,
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)

    def __enter__(self) -> None:
        self._on_main = threading.current_thread() is threading.main_thread()
        self._take()
        if self._on_main:
            # It stays: a signal that arrives after the block would end this process without it.
            signal.signal(signal.SIGUSR1, _raise_lost)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(BEAT_SECONDS / 2)
        if self._thread.is_alive():  # the store does not answer
            return
        with suppress(StepError):  # the next one takes over when this process has ended
            if self._taken_over() is None:
                self._write(released=True)

    def _write(self, **changes: object) -> None:
        self.ours = self.ours.model_copy(update={"beat_time": time.time(), **changes})
        storage.write_json(_file(self.folder, self.generation), self.ours.model_dump(mode="json"))

    def _taken_over(self) -> Holder | None:
        """Return another holder of this generation or a later one, None if there is none."""
        generation, found = _newest(self.folder)
        if found is None or generation < self.generation or found.owner == self.ours.owner:
            return None
        return found

    # --- taking ---

    def _take(self) -> None:
        """Create the next generation as soon as that of another is free or dead. Raises LockedError if it lives."""
        while True:
            generation, found = _newest(self.folder)
            if found is None or _is_free(found) or self._is_dead(generation, found):
                self.generation = generation + 1
                since = datetime.now(UTC).isoformat(timespec="seconds")
                self.ours = self.ours.model_copy(update={"since": since, "beat_time": time.time()})
                data = storage.json_bytes(self.ours.model_dump(mode="json"))
                created = storage.create(_file(self.folder, self.generation), data)
                # A look at what is there now: this process may have slept since it read, while others took the lock,
                # released it, and deleted the file of the generation that was created here.
                if created and self._taken_over() is None:
                    break
        for lower in _generations(self.folder):
            if lower < self.generation:
                with suppress(StepError, FileNotFoundError):
                    storage.delete(_file(self.folder, lower))

    def _is_dead(self, generation: int, found: Holder) -> bool:
        """Watch a holder for three beats; return False if it has changed hands meanwhile.

        Raises:
            LockedError: it lives. Known at once if its newest beat is a recent one by the clock of this machine.
        """
        if beats(found):
            raise LockedError(found)
        logger.info("%s on %s has not been heard of; watching it for %.0f s", _subject(found), found.host, _patience())
        began = looked = time.monotonic()
        while looked - began < _patience():
            time.sleep(BEAT_SECONDS / 5)
            later, there = _newest(self.folder)
            if there is None or later != generation or _is_free(there):
                return False
            if (there.owner, there.beat) != (found.owner, found.beat):
                raise LockedError(there)
            now = time.monotonic()
            if now - looked > BEAT_SECONDS:  # the store was away, perhaps for the holder too
                began = now
            looked = now
        return True

    # --- keeping ---

    def _keep(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            try:
                if other := self._taken_over():
                    self._lose(other)
                    return
                self._write(beat=self.ours.beat + 1)
            except (StepError, OSError):
                continue  # the store is away: only another holder ends the work

    def _lose(self, other: Holder) -> None:
        error = LostError(
            f"{_subject(self.ours)}: the process {other.pid} on {other.host} has gone on with it while this one was not heard "
            "of, so this one has stopped",
            signal.SIGTERM,
        )
        if not self._on_main:
            logger.error("%s", error)
            return
        _lost.append(error)
        # Once is not enough: a signal that comes right before a system call that waits does not interrupt it.
        while error in _lost and not self._over.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            self._over.wait(0.1)
        with suppress(ValueError):
            _lost.remove(error)


_lost: list[LostError] = []  # that the main thread is yet to be interrupted by


def _raise_lost(_number: int, _frame: FrameType | None) -> None:
    if _lost:
        raise _lost.pop()


def _patience() -> float:
    return MISSED * BEAT_SECONDS
