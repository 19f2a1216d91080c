"""The supervisor of the command: signals in every phase, helpers that are left, crashes, closed pipes, libraries' messages."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from flows.cli import supervisor

START = """
import os, signal, subprocess, sys, time
from flows.cli import supervisor
supervisor.STOP_SECONDS = float(sys.argv[1])

def ready():
    open("ready", "w").close()

def program():
    supervisor.begin()
    {body}
    return 0

code = supervisor.supervise(program)
sys.exit(code)
"""
HELPERS = "subprocess.Popen(['sleep', '300']); subprocess.Popen(['setsid', 'sleep', '300'])"


def default_signals():
    """Ignore no signal, also if the tests run in the background of a shell, which lets them ignore some."""
    for number in supervisor.SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path):
    """start(body, stop_seconds=20): the supervised program of this body, once it is ready, leader of a process group."""
    started = []

    def begin(body, stop_seconds=20, wait=True, **options):
        code = START.format(body=body.strip().replace("\n", "\n    "))
        command = [sys.executable, "-c", code, str(stop_seconds)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        options = pipes | {"preexec_fn": default_signals} | options
        env = os.environ | {"MARK": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=env, start_new_session=True, **options))
        deadline = time.monotonic() + 60
        while wait and not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return started[-1]

    yield begin
    for process in started:
        process.kill()


def left(tmp_path):
    """Return the living processes of a test."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MARK") == str(tmp_path) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.cmdline())
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_signal_ends_the_program_in_order_and_leaves_no_process(start, tmp_path, number, code, send):
    body = f"{HELPERS}\ntry:\n    ready(); time.sleep(300)\nfinally:\n    open('tidied', 'w').close(); 1 / 0"
    process = start(body)
    send(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert err.splitlines() == [err.rstrip("\n")]
    assert err.startswith(f"stylegan: stopping ({number.name}); ")
    assert "the same command goes on" in err
    assert (tmp_path / "tidied").exists()
    assert left(tmp_path) == []


def test_a_program_that_leaves_something_behind_says_so_itself(start):
    process = start("supervisor.say_when_stopped('detached'); ready(); time.sleep(300)")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "stylegan: detached\n")
    assert process.returncode == 130


STUCK = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["setsid", "sleep", "300"])
while True:
    try:
        ready(); time.sleep(300)
    except KeyboardInterrupt:
        open("interrupted", "w").close()
"""


def test_a_program_that_does_not_end_is_killed(start, tmp_path):
    process = start(STUCK, 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert (tmp_path / "interrupted").exists()
    assert left(tmp_path) == []


def test_a_second_signal_kills_it_at_once_but_an_echo_of_the_first_does_not(start, tmp_path):
    process = start(STUCK, 1000)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # as `timeout` sends it, to the process and to its group
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert left(tmp_path) == []


def test_a_program_that_has_not_begun_to_work_is_killed_at_once(start, tmp_path):
    process = start("supervisor._begun = False\nready()\nwhile True:\n    pass", 1000)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert left(tmp_path) == []


@pytest.mark.parametrize("verb", ["plan", "run", "sample"])
def test_the_command_itself_is_stopped_while_it_imports(tmp_path, verb):
    environment = os.environ | {"PYTHONVERBOSE": "1", "MARK": str(tmp_path)}  # standard error says what is imported
    command = [sys.executable, "-m", "flows.cli.main", verb, "nowhere.yaml"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment | {"STYLEGAN_LOG": f"{tmp_path}/log"}
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "log").exists() or "cyclopts" not in (tmp_path / "log").read_text(errors="replace"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        err = process.stderr.read()
    assert process.returncode == 143
    assert "stylegan: stopping (SIGTERM)" in err
    assert "Traceback" not in err
    assert left(tmp_path) == []


def test_a_program_that_is_stopped_itself_counts_as_stopped(start):
    process = start("ready(); os.kill(os.getpid(), signal.SIGTERM); time.sleep(300)")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.count("\n") == 1
    assert err.startswith("stylegan: stopping (SIGTERM)")


def test_the_program_ends_with_its_supervisor(start, tmp_path):
    process = start(f"{HELPERS}\nready(); time.sleep(300)")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any("-c" in line for line in left(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [line for line in left(tmp_path) if "-c" in line]
    for number in (pid for pid in psutil.pids() if _marked(pid, tmp_path)):
        os.kill(number, signal.SIGKILL)


def _marked(pid, tmp_path):
    try:
        return psutil.Process(pid).environ().get("MARK") == str(tmp_path)
    except psutil.Error:
        return False


def test_signals_that_the_shell_ignores_stay_ignored(start):
    process = start("ready(); time.sleep(1)", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0


def test_helpers_that_outlive_the_program_are_ended(start, tmp_path):
    process = start(f"supervisor.begin(); ready(); {HELPERS}")
    assert process.wait(60) == 0
    assert left(tmp_path) == []


def test_a_crash_is_one_line_after_the_last_messages_of_libraries(start):
    process = start("os.write(2, b'terminate called\\n'); ready(); os.kill(os.getpid(), signal.SIGSEGV)")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[0] == "terminate called"
    assert err.splitlines()[-1].startswith("stylegan: the program was ended by SIGSEGV; the same command")


def test_messages_of_libraries_stay_off_the_terminal(start, tmp_path, monkeypatch):
    """Those of this process, of C++ code and of helpers go to the log, lines for the user to standard error."""
    monkeypatch.setenv("STYLEGAN_LOG", str(tmp_path / "log"))
    body = "print('library', file=sys.stderr); os.write(2, b'C++\\n'); os.system('echo helper >&2')\n"
    process = start(f"{body}\nprint('for the user', file=supervisor.terminal()); ready()")
    _, err = process.communicate(timeout=60)
    assert err == "for the user\n"
    assert set((tmp_path / "log").read_text().split()) == {"library", "C++", "helper"}


def test_a_defect_keeps_its_traceback(start):
    process = start("ready(); 1 / 0")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("Traceback")
    assert err.endswith("ZeroDivisionError: division by zero\n")


def test_nobody_reads_standard_output_or_standard_error(start):
    """A closed standard error costs nothing; a closed standard output ends the program quietly."""
    for stream, code in (("stdout", 141), ("stderr", 0)):
        reader, writer = os.pipe()
        os.close(reader)
        body = "ready(); print('line', file=supervisor.terminal()); print('result')"
        process = start(body, **{stream: writer})
        os.close(writer)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code
        assert (err or "line\n") == "line\n"
        assert (out or "result\n") == "result\n"
