"""Processes that ended, those that nobody has collected yet, and pids that were given away again."""

import os
import subprocess
import sys

from stylegan.processes import has_ended, place, start_time


def test_a_process_runs_until_it_ends_collected_or_not():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = start_time()  # within the seconds by which start times may differ, or the child would be another one
    assert not has_ended(os.getpid(), began)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(child.pid, began)
    child.communicate()
    assert has_ended(child.pid, began)


def test_a_pid_that_another_process_has_now_is_no_sign_of_life():
    assert has_ended(os.getpid(), start_time() - 60)


def test_containers_of_one_machine_are_different_places(monkeypatch):
    here = place()
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[another]")
    assert place() != here
