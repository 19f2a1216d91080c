"""The process that the user's shell starts: it answers signals and ends every process of the program.

It forks the program into a session of its own, which the signals of a terminal do not reach, and waits for it. The
first SIGINT, SIGTERM or SIGHUP asks the program to stop: its main thread gets a KeyboardInterrupt, so that a stage under
way writes a checkpoint and files, MLflow and Prefect are left in order. What is not done after `STOP_SECONDS` (or what the
program has set by `allow`), or at a second signal, is killed together with every process that it has started. Nothing is
lost by that: storage is written so that `kill -9` at any moment is safe.

Exit codes: 128 plus the number of the signal (129, 130, 143), 141 if the reader of standard output is gone, 1 if the
program crashed, else that of the program.

The terminal shows what this program itself prints. File descriptor 2 of the program leads into a log instead, because
Ray, Prefect, MLflow and C++ libraries write to it from many processes and threads. $STYLEGAN_LOG names the file; unset,
the log is temporary and is shown only after a crash.
"""

from __future__ import annotations

import io
import mmap
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TextIO

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_SECONDS = 8.0  # from the first signal to the end of everything that is not done
SAME_SECONDS = 0.5  # `timeout` and some shells send the same signal twice, to the process and to its group
LEAVE_SECONDS = 3.0  # in which helpers end by themselves after the program
MAX_LOG = 16 * 2**20  # bytes of a temporary log, which is emptied then
SHOWN_LOG = 4000  # bytes of the log that are shown after a crash

_terminal: TextIO | None = None  # of the supervised program
_begun = False  # whether there is anything that a stop must leave in order
_received: int | None = None  # the signal that has interrupted the program
_patience = mmap.mmap(-1, 8)  # both processes see it: seconds from the first signal to the end of everything
_last_words = mmap.mmap(-1, 2048)  # of the program, for the supervisor: the two processes share it


def supervise(program: Callable[[], int]) -> int:
    """Run a program in a process of its own and return its exit code; returns in both processes."""
    requests, request = os.pipe()  # one byte asks the program to stop; its end says that this process is gone
    signals, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(signals, False)
    log = _open_log()
    for number in (*SIGNALS, signal.SIGCHLD):
        if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    _adopt_orphans()

    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        for end in (request, signals, wake):
            os.close(end)
        return _run(program, requests, log)
    os.close(requests)
    return _Supervisor(child, request, signals, log).wait()


def begin() -> None:
    """Say that the program starts to work: from here on it is interrupted, before it is killed."""
    global _begun
    _begun = True


def allow(seconds: float) -> None:
    """Set how long the program may take to stop."""
    _patience[:] = struct.pack("d", seconds)


def _allowed() -> float:
    return float(struct.unpack("d", _patience[:])[0]) or STOP_SECONDS


def say_when_stopped(text: str) -> None:
    """Replace the line that a signal makes this command say, for one that leaves something behind that goes on."""
    _last_words[:] = text.encode()[: len(_last_words)].ljust(len(_last_words), b"\0")


def terminal() -> TextIO:
    """Return the stream of lines for the user: the real standard error, which libraries do not reach."""
    return _terminal or sys.stderr


class _Supervisor:
    """Waits for the program and turns signals into its end."""

    def __init__(self, child: int, request: int, signals: int, log: int) -> None:
        self.child, self.request, self.signals, self.log = child, request, signals, log
        self.status: int | None = None  # of the program, once it has ended
        self.signal: int | None = None  # the first that arrived
        self.asked = self.deadline = float("inf")  # times at which the program was asked to stop, and is killed

    def wait(self) -> int:
        """Wait until every process has ended, and return the exit code."""
        while not self._reap():
            now = time.monotonic()
            if now >= self.deadline:
                break
            select.select([self.signals], [], [], min(self.deadline - now, 60))
            self._trim_log()
            for number in self._arrived():
                self._on_signal(number)
        _end_helpers(self.child, 0 if self.signal else LEAVE_SECONDS)
        return self._exit_code()

    def _on_signal(self, number: int) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self.asked, self.deadline = number, now, now + _allowed()
            with suppress(OSError):  # it has just ended
                os.write(self.request, b"s")
            _say_stopped(number)
        elif now > self.asked + SAME_SECONDS:
            self.deadline = now

    def _arrived(self) -> list[int]:
        try:
            return [number for number in os.read(self.signals, 64) if number in SIGNALS]
        except BlockingIOError:
            return []

    def _reap(self) -> bool:
        """Collect ended processes; return whether the program is among them, now or before."""
        while self.status is None:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return False
            if pid == self.child:
                self.status = status
        return True

    def _trim_log(self) -> None:
        if not os.environ.get("STYLEGAN_LOG"):
            with suppress(OSError):
                if os.fstat(self.log).st_size > MAX_LOG:
                    os.ftruncate(self.log, 0)

    def _exit_code(self) -> int:
        if sys.stderr and sys.stderr.isatty():
            _write("\x1b[?25h")  # bars that were cut off have hidden the cursor
        if self.signal:
            return 128 + self.signal
        assert self.status is not None
        code = os.waitstatus_to_exitcode(self.status)
        number = -code if code < 0 else code - 128
        if number in SIGNALS:  # somebody has stopped the program itself
            _say_stopped(number)
            return 128 + number
        if code < 0:
            return self._explain_crash(number)
        return code

    def _explain_crash(self, number: int) -> int:
        name = signal.Signals(number).name
        hint = "; the kernel does this when memory is short" if number == signal.SIGKILL else ""
        with suppress(OSError):
            size = os.fstat(self.log).st_size
            _write(os.pread(self.log, SHOWN_LOG, max(size - SHOWN_LOG, 0)).decode(errors="replace"))
        _write(f"stylegan: the program was ended by {name}{hint}; the same command goes on where it stopped\n")
        return 1


def _run(program: Callable[[], int], requests: int, log: int) -> int:
    """Run the program in the forked process; return its exit code, or end the process."""
    import threading

    global _terminal
    os.setsid()
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # also if the shell ignores it: requests come as SIGINT
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _terminal = io.TextIOWrapper(_Terminal(os.dup(2), "wb"), encoding="utf-8", errors="replace", write_through=True)
    os.dup2(log, 2)
    threading.Thread(target=_watch, args=(requests,), daemon=True).start()
    try:
        code = program()
        sys.stdout.flush()
        _leave(code)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 128 + signal.SIGPIPE
        import traceback

        traceback.print_exc(file=_terminal)
        return 1
    except BaseException as error:
        if _received is None and isinstance(error, SystemExit):
            raise
        own: int = getattr(error, "number", signal.SIGINT)  # `Stopped` has one
        os._exit(128 + (_received or own))  # no more waiting for threads; the supervisor ends what is left


def _leave(code: int) -> NoReturn:
    """End this process as Python does, but for taking its modules apart, which takes seconds after torch and MLflow."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def _interrupt(number: int, _frame: object) -> None:
    global _received
    if _received is None:  # a second interruption would break into what the first one has begun to tidy up
        _received = number
        raise KeyboardInterrupt


def _watch(requests: int) -> None:
    """Wait for the request to stop, then interrupt the main thread; end with the supervisor."""
    import faulthandler
    import threading

    asked = os.read(requests, 1)
    if not asked or not _begun:
        os.killpg(0, signal.SIGKILL)
    silence = os.open(os.devnull, os.O_WRONLY)
    if _terminal is not None:
        os.dup2(silence, _terminal.fileno())
    with suppress(OSError, ValueError):
        faulthandler.dump_traceback_later(max(_allowed() - 2, 0.1), file=2)  # the log says what did not end in time
    # Once is not enough: a signal that comes right before a system call that waits does not interrupt it.
    while _received is None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.1)


class _Terminal(io.FileIO):
    """Standard error that is allowed to go away: a run does not end because nobody reads its log any more."""

    def write(self, data: object) -> int:
        """Write bytes; drop them if the terminal or pipe is gone."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError:
            return len(memoryview(data))  # type: ignore[arg-type]


def _nobody_reads() -> bool:
    """Return whether the reader of standard output is gone: other pipes and sockets break, too."""
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _say_stopped(number: int) -> None:
    if sys.stderr and sys.stderr.isatty():
        time.sleep(0.05)  # until the program has stopped to draw its bars
        _write("\n")
    said = bytes(_last_words).rstrip(b"\0").decode(errors="replace")
    _write(
        f"stylegan: {said}\n"
        if said
        else f"stylegan: stopping ({signal.Signals(number).name}); finished work is kept and the same command goes on from "
        "there; a second signal ends at once\n"
    )


def _write(text: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        os.write(2, text.encode())


def _open_log() -> int:
    """Open the file that takes the messages of libraries."""
    import tempfile

    named = os.environ.get("STYLEGAN_LOG")
    try:
        if named:
            return os.open(named, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        with tempfile.TemporaryFile() as file:
            log = os.dup(file.fileno())
        import fcntl

        fcntl.fcntl(log, fcntl.F_SETFL, fcntl.fcntl(log, fcntl.F_GETFL) | os.O_APPEND)
        return log
    except OSError:  # no such folder, or a full disk
        return os.open(os.devnull, os.O_RDWR)


def _adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that none is overlooked (Linux)."""
    if sys.platform == "linux":
        import ctypes

        set_child_subreaper = 36
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _end_helpers(child: int, patience: float) -> None:
    """Kill what is left of the program, after some seconds of patience, and wait until it is gone."""
    limit = time.monotonic() + patience
    while _reap_all():
        left = _descendants()
        if time.monotonic() >= limit:
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        if time.monotonic() >= limit + 1.5:  # a process in the hands of the kernel, such as on a dead NFS mount
            return
        time.sleep(0.02)


def _reap_all() -> bool:
    """Collect ended processes; return whether others are left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    except ChildProcessError:
        return False


def _descendants() -> list[int]:
    import psutil

    return [process.pid for process in psutil.Process().children(recursive=True)]
