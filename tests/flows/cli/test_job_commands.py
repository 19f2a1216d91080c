"""Commands on jobs of a cluster: mistakes before anything is sent, and the words for what a cluster says.

Those on a real cluster are in tests/integration/test_jobs.py.
"""

import socket

import pytest
from command_line import fail

from flows.cli import job_commands
from flows.cli.console import SUMMARY
from stylegan.cluster.jobs import Job
from stylegan.progress import Reached


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)


def test_every_command_wants_a_cluster(capsys, write):
    for arguments in (["launch", write()], ["jobs"], ["logs", "x"], ["stop", "x"]):
        assert "no cluster: give --address http://HEAD:8265" in fail(capsys, 2, *arguments)
        assert "--address=head:6379: " in fail(capsys, 2, *arguments, "--address", "head:6379")


def test_mistakes_of_a_launch_are_found_before_the_cluster_is_asked(capsys, write):
    where = ["--address", "http://127.0.0.1:9"]
    relative = ["--set", "storage.root=data"]
    assert "storage.root=data: is a path from this folder" in fail(capsys, 2, "launch", write(), *relative, *where)
    assert "--env NOWHERE: is not set" in fail(capsys, 2, "launch", write(), "--env", "NOWHERE", *where)
    assert "--python p: --pip makes" in fail(capsys, 2, "launch", write(), "--python", "p", "--pip", *where)
    assert "unknown key ray.wrkers" in fail(capsys, 2, "launch", write(), "--set", "ray.wrkers=2", *where)


def test_a_cluster_that_does_not_answer(capsys, write):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert f"{url}: no Ray dashboard answers" in fail(capsys, 1, "launch", write(), "--address", url)


def job(state, **others):
    facts = {"exit_code": None, "reason": "", "since": 0.0, "until": None, "grace_s": 3, "attempt": 1, "work": "w"}
    return Job(id="tiny-1", run="tiny-1", name="tiny", state=state, **facts | others)


TRAINING = Reached("train 8x8 (2 of 3)", 800, 1600, "img", 1234, "6 s", None)


@pytest.mark.parametrize(
    ("found", "cells"),
    [
        (job("waiting"), ("tiny", "waiting", "", "", "", "")),
        (
            job("running", progress=TRAINING),
            ("tiny", "running", "train 8x8 (2 of 3)", "0.8 of 1.6", "1,234", "6 s of the stage"),
        ),
        (
            job("running", progress=Reached("evaluate: linear SVMs", 3, 40, "attributes", 1, "9 s", "2.5 h")),
            ("tiny", "running", "evaluate: linear SVMs", "", "", "2.5 h"),
        ),
        (job("stopped", progress=TRAINING), ("tiny", "stopped", "train 8x8 (2 of 3)", "0.8 of 1.6", "", "")),
    ],
)
def test_the_row_of_a_job(found, cells):
    assert job_commands._row(found)[1:-1] == cells


def test_a_stopped_job_says_where_it_was():
    assert job_commands._place(job("stopped")) == ""
    text = job_commands._place(job("stopped", progress=TRAINING))
    assert text == ", at 0.8 of 1.6 kimg of train 8x8 (2 of 3)"
    assert job_commands._state(job("failed", exit_code=2, reason="why\x1b")) == "failed with exit code 2: why\\x1b"


def test_the_summary_is_the_end_of_the_log_from_its_first_line_on():
    log = f"a\nold{SUMMARY}\nb\nnew-1234{SUMMARY}\n| 4x4 |\nLook at it:\n  x\n"
    assert job_commands._summary(log) == f"new-1234{SUMMARY}\n| 4x4 |\nLook at it:\n  x"
    lines = [str(number) for number in range(100)]
    assert job_commands._summary("\n".join(lines)).split("\n") == lines[-40:]
