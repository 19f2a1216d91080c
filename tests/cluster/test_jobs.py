"""Addresses of job servers, answers that are none, what Ray says of a job in our words, and a log that comes twice."""

import http.server
import os
import socket
import threading

import pytest

from stylegan.cluster import jobs
from stylegan.cluster.environment import read_again
from stylegan.cluster.jobs import JobServer, _job, _Log, resolve_address
from stylegan.errors import ConfigError, StepError, UnavailableError


def test_the_address_is_given_or_that_of_rays_own_variable(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(
        ConfigError, match=r"no cluster: give --address http://HEAD:8265.* or set RAY_API_SERVER_ADDRESS"
    ):
        resolve_address(None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://one:8265/")
    assert resolve_address(None) == "http://one:8265"
    assert resolve_address("https://two/ray") == "https://two/ray"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "one:6379")
    with pytest.raises(ConfigError, match=r"^RAY_API_SERVER_ADDRESS=one:6379: .* such as http://one:8265$"):
        resolve_address(None)


@pytest.mark.parametrize(
    ("address", "cure"),
    [
        ("head:6379", "http://head:8265"),
        ("ray://10.0.0.1:10001", "http://10.0.0.1:8265"),
        ("auto", "http://HEAD:8265"),
        ("", "http://HEAD:8265"),
        ("http://", "http://HEAD:8265"),
        ("s3://bucket/path", "http://HEAD:8265"),
    ],
)
def test_other_addresses_are_refused_with_the_one_that_was_meant(address, cure):
    with pytest.raises(ConfigError, match=f"^--address={address}: jobs are submitted to the Ray dashboard: .* {cure}$"):
        resolve_address(address)


def test_an_address_with_a_login_is_refused_without_showing_it():
    with pytest.raises(ConfigError, match="carries credentials") as caught:
        resolve_address("https://me:hush@head:8265")
    assert "hush" not in str(caught.value)


def test_a_closed_port_is_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(
        UnavailableError, match=f"^{url}: no Ray dashboard answers .*Connection refused.*; check the address"
    ):
        JobServer(url)


def test_a_server_that_never_answers_is_one_line(monkeypatch):
    monkeypatch.setattr(jobs, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=r"no Ray dashboard answers .*timed out"):
            JobServer(url)
    assert jobs.CONNECT_SECONDS + 20 <= 30


class _Stranger(http.server.BaseHTTPRequestHandler):
    """Another web server: `/page` is its page for everything, elsewhere it has nothing."""

    def do_GET(self):
        self.send_response(200 if self.path.startswith("/page") else 404)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("path", ["", "/page"])
def test_another_web_server_is_one_line(path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StepError, match="is no Ray dashboard; give the URL of one"):
            JobServer(f"http://127.0.0.1:{server.server_port}{path}")
        server.shutdown()


def test_the_address_counts_more_than_the_variables_that_ray_reads(monkeypatch):
    """And these are as before afterwards."""
    ambient = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9", "RAY_ADDRESS": "127.0.0.1:9"}
    for name, value in ambient.items():
        monkeypatch.setenv(name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StepError, match="is no Ray dashboard"):
            JobServer(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert {name: os.environ[name] for name in ambient} == ambient


def test_the_token_of_now_is_sent_not_the_mode_of_an_earlier_ray(monkeypatch):
    """Ray's C++ code keeps the mode with which this process used it first."""
    sent = []

    class Listener(_Stranger):
        def do_GET(self):
            sent.append(str(self.headers))
            super().do_GET()

    try:
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
            read_again()
            monkeypatch.setenv("RAY_AUTH_MODE", "token")
            monkeypatch.setenv("RAY_AUTH_TOKEN", "5" * 64)
            with pytest.raises(StepError):
                JobServer(f"http://127.0.0.1:{server.server_port}")
            server.shutdown()
        assert "5" * 64 in sent[0]
    finally:
        monkeypatch.undo()
        read_again()


def details(status, **others):
    """Return what Ray's client says of a job."""
    from ray.job_submission import JobDetails, JobStatus

    return JobDetails(
        type="SUBMISSION",
        submission_id="tiny-0123456789-2",
        status=JobStatus(status),
        entrypoint="python",
        start_time=1_000_000,
        **others,
    )


@pytest.mark.parametrize(
    ("status", "code", "state", "exit_code"),
    [
        ("PENDING", None, "waiting", 1),
        ("RUNNING", None, "running", 1),
        ("SUCCEEDED", 0, "finished", 0),
        ("FAILED", 2, "failed", 2),
        ("FAILED", None, "failed", 1),
        ("FAILED", 143, "stopped", 143),  # by a signal from elsewhere
        ("FAILED", 130, "stopped", 130),
        ("STOPPED", None, "stopped", 143),
    ],
)
def test_states_and_exit_codes(status, code, state, exit_code):
    job = _job(details(status, driver_exit_code=code))
    assert (job.state, job.code) == (state, exit_code)
    assert job.over == (state not in ("waiting", "running"))


def test_what_ray_keeps_with_a_job_of_ours():
    facts = {"stylegan_run": "tiny-0123456789", "stylegan_name": "tiny", "stylegan_attempt": "2", "stylegan_work": "w"}
    env = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "45"}}
    job = _job(details("RUNNING", metadata=facts, runtime_env=env))
    assert (job.run, job.name, job.work, job.attempt) == ("tiny-0123456789", "tiny", "w", 2)
    assert (job.grace_s, job.since) == (45, 1000)
    foreign = _job(details("RUNNING"))
    assert (foreign.run, foreign.name, foreign.attempt, foreign.grace_s) == (None, None, 1, 3)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("failed, last logs:\na\nstylegan: data.source=/x: no such folder\nmore\n", "data.source=/x: no such folder"),
        ("Traceback\n  File\nValueError: odd\n", "ValueError: odd"),
        ("", ""),
    ],
)
def test_the_reason_is_the_line_that_says_most(message, reason):
    assert _job(details("FAILED", message=message)).reason == reason


@pytest.mark.parametrize(
    "line", ["ModuleNotFoundError: No module named 'cyclopts'", "/bin/sh: 1: exec: python: not found"]
)
def test_a_python_without_the_dependencies_has_a_cure(line):
    reason = _job(details("FAILED", message=f"logs:\n{line}\nRunning entrypoint for job x: python\n")).reason
    assert reason.startswith(f"{line}; the Python of the job lacks the dependencies")
    assert "--python" in reason


def test_a_log_that_arrives_again_from_its_beginning_is_written_once():
    """Whatever the pieces, also when a new copy is shorter than what was written."""
    written: list[str] = []
    log, text = _Log(written.append), "first\nsecond\nthird\n"
    log.begin()
    log.take(text[:3])
    log.take(text[3:9])
    log.begin()
    log.take(text[:4])
    log.begin()
    for letter in text:
        log.take(letter)
    log.begin()
    log.take(text)
    assert "".join(written) == text
