"""Runs as jobs of a Ray cluster: submit, attach, list, follow and stop them through the job server of its dashboard.

A job needs nothing of the machine that has submitted it: that may go away at any time. The id of a job is the name of the
config and a digest of config and code, so the same command finds the job that it has started. What failed or was stopped
goes on from storage as the next attempt, `-2`, `-3`, ...

Of a live run the cluster knows no more than what its log says: the newest line of progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shlex
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from stylegan.cluster.environment import environment, read_again
from stylegan.cluster.job_package import JobPackage, requirements
from stylegan.commands import pip_install, shell_command
from stylegan.errors import ConfigError, StepError, UnavailableError, one_line, shown
from stylegan.progress import Reached, newest_line
from stylegan.records import Record
from stylegan.uris import find_secret, redact

logger = logging.getLogger("stylegan")
Write = Callable[[str], None]

ADDRESS = "RAY_API_SERVER_ADDRESS"  # where Ray's own commands for jobs look for the address
STATES = {"PENDING": "waiting", "RUNNING": "running", "SUCCEEDED": "finished", "FAILED": "failed", "STOPPED": "stopped"}
OVER = ("finished", "failed", "stopped")
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
CONNECT_SECONDS, ANSWER_SECONDS = 10, 20  # for a connection, and for an answer
SUBMIT_SECONDS = 120  # for the answer to what changes something: the first job of a cluster starts processes
SILENCE_SECONDS = 60  # without a line, after which a connection is no longer trusted and made again
LOST_SECONDS = 120  # without any answer, after which a follower gives up
RETRY_SECONDS = 1
STOP_MARGIN = 15  # seconds that Ray waits longer than a run may take for its end
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # read by the supervisor of a job
TAIL_LINES = 200
OLDEST_PYTHON = (3, 11)
# Keys of what Ray keeps with a job of ours.
RUN, NAME, ATTEMPT, WORK = "stylegan_run", "stylegan_name", "stylegan_attempt", "stylegan_work"


class Job(Record):
    """A job of a cluster.

    Attributes:
        id: of the job.
        run: the id of its first attempt; None if this program has not submitted it.
        name: that of its config; None as for `run`.
        work: `JobPackage.work` of its package; None as for `run`.
        attempt: from 1.
        state: what it does.
        exit_code: that of its command, once that has ended by itself.
        reason: why it failed, or why it waits, in one line.
        since: time at which it was submitted, in seconds since 1970.
        until: time at which it ended; None before.
        grace_s: seconds that Ray gives it for its end.
        progress: what its log says last; None where that was not asked for or is not known.
    """

    id: str
    run: str | None
    name: str | None
    work: str | None
    attempt: int
    state: Literal["waiting", "running", "finished", "failed", "stopped"]
    exit_code: int | None
    reason: str
    since: float
    until: float | None
    grace_s: float
    progress: Reached | None = None

    @property
    def over(self) -> bool:
        """Return whether it has ended."""
        return self.state in OVER

    @property
    def code(self) -> int:
        """The exit code of a command that followed it: its own, or what a shell says of one that was stopped."""
        if self.exit_code is not None:
            return self.exit_code
        return {"finished": 0, "stopped": 128 + signal.SIGTERM}.get(self.state, 1)


class Launch(Record):
    """Say what `submit_run` has done.

    Attributes:
        job: the job of the run: a new one, or the newest attempt that there was.
        outcome: whether it was started now, was under way, or had finished.
        earlier: the attempt before a new one.
    """

    job: Job
    outcome: Literal["started", "attached", "finished"]
    earlier: Job | None = None


def resolve_address(given: str | None) -> str:
    """Return the address of the job server: the one that is given, else that of $RAY_API_SERVER_ADDRESS.

    Ray's own commands for jobs read the same variable.

    Raises:
        ConfigError: there is none, or it is not the URL of a dashboard.
    """
    address, origin = (given, "--address") if given is not None else (os.environ.get(ADDRESS) or None, ADDRESS)
    if address is None:
        raise ConfigError(
            f"no cluster: give --address http://HEAD:8265, the URL of its Ray dashboard, or set {ADDRESS}, which Ray's own "
            "commands for jobs read, too"
        )
    if find_secret(address):
        raise ConfigError(
            f"{origin}={shown(redact(address))}: carries credentials; give it without them: the login of a Ray cluster "
            "is a token, by RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        )
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", address):
        host = re.search(r"^(?:ray://)?([\w.-]+|\[[\da-fA-F:]+\])(?::\d+)?/?$", address)
        name = host[1] if host and host[1] != "auto" else "HEAD"
        raise ConfigError(
            f"{origin}={shown(redact(address))}: jobs are submitted to the Ray dashboard: give its URL, such as "
            f"http://{name}:8265"
        )
    return address.rstrip("/")


class JobServer:
    """The job server of one cluster.

    Every method raises UnavailableError if the dashboard does not answer within half a minute, and StepError if it refuses
    the token, or if another server answers.

    Args:
        address: URL of the dashboard, as `resolve_address` returns it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        with self._talk():
            self._client = _connect(address)

    def check_versions(self) -> None:
        """Check that the cluster has the Ray of this machine, and a Python that this program runs on.

        Raises:
            StepError: it has another one.
        """
        import ray

        with self._talk():
            theirs = self._client._do_request("GET", "/api/version").json()["ray_version"]
            answer = self._client._do_request("GET", "/api/v0/cluster_metadata")
            python = answer.json()["data"]["pythonVersion"] if answer.status_code == 200 else None
        if theirs != ray.__version__:
            raise StepError(
                f"{self._shown}: the cluster has Ray {theirs}, this machine {ray.__version__}; use one version: "
                f"`{pip_install(f'ray[default,train]=={theirs}')}` here, or another image there"
            )
        if python and tuple(map(int, python.split(".")[:2])) < OLDEST_PYTHON:
            oldest = ".".join(map(str, OLDEST_PYTHON))
            raise StepError(
                f"{self._shown}: the cluster has Python {python}; this program needs {oldest} or newer there"
            )

    def link(self, job_id: str) -> str:
        """Return the URL of a job's page in the dashboard."""
        return f"{self._shown}/#/jobs/{job_id}"

    def jobs(self, *, progress: bool = False) -> list[Job]:
        """Return all jobs that were submitted to the cluster, the oldest first.

        Args:
            progress: whether to read the logs of those that have begun.
        """
        with self._talk():
            found = self._client.list_jobs()
        found = sorted((details for details in found if details.submission_id), key=lambda details: details.start_time)
        if not progress:
            return [_job(details) for details in found]
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self._with_progress, found))

    def get(self, job_id: str) -> Job:
        """Return one job. Raises StepError if the cluster does not know it."""
        return _job(self._details(job_id))

    def _details(self, job_id: str) -> Any:
        with self._talk(job_id):
            return self._client.get_job_info(job_id)

    def _with_progress(self, details: Any) -> Job:
        job = _job(details)
        if job.run is None or job.state in ("waiting", "finished"):
            return job
        tail = self._tail(details)
        return job.model_copy(update={"progress": newest_line(tail)})

    def _tail(self, details: Any) -> str:
        """Return the last lines of a job's log; nothing if the node that has it does not answer."""
        query = f"node_id={details.driver_node_id}&filename=job-driver-{details.submission_id}.log&lines={TAIL_LINES}"
        with contextlib.suppress(StepError), self._talk():
            answer = self._client._do_request("GET", f"/api/v0/logs/file?{query}")
            return answer.text if answer.status_code == 200 else ""
        return ""

    def find(self, text: str) -> Job:
        """Return the job that a user means: by its id, the beginning of one run's ids, or the name of its only run.

        Of several attempts it is the newest.

        Raises:
            ConfigError: no job fits, or several runs do.
        """
        jobs = self.jobs()
        exact = [job for job in jobs if job.id == text]
        if exact:
            return exact[0]
        near = [job for job in jobs if job.run and text and (job.name == text or job.id.startswith(text))]
        if len({job.run for job in near}) == 1:
            return max(near, key=lambda job: job.attempt)
        choice = [job.id for job in near or jobs if job.run][-6:]
        there = f"there are {', '.join(choice)}" if choice else "it has none of this program"
        raise ConfigError(f"{shown(text)}: matches {'several jobs' if near else 'no job'} of {self._shown}; {there}")

    def submit_run(
        self,
        package: JobPackage,
        name: str,
        *,
        environment: Mapping[str, str],
        grace_s: float,
        again: bool = False,
        pip: bool = False,
        python: str = "python",
    ) -> Launch:
        """Submit a run, unless the cluster has a job of the same config and code that is under way or finished.

        Args:
            package: code and config.
            name: that of the config.
            environment: variables that the run needs.
            grace_s: seconds that the run may take for its end when it is stopped.
            again: start the next attempt also if the newest one has finished.
            pip: install the dependencies on every node.
            python: the Python of the cluster.

        Raises:
            StepError: a job of other code or settings trains the same: two of them would write the same checkpoints.
        """
        run = f"{name}-{package.digest}"
        jobs = self.jobs()
        attempts = sorted((job for job in jobs if job.run == run), key=lambda job: job.attempt)
        newest = attempts[-1] if attempts else None
        if newest and not newest.over:
            return Launch(job=newest, outcome="attached")
        if newest and newest.state == "finished" and not again:
            return Launch(job=newest, outcome="finished")
        rivals = [job.id for job in jobs if job.work == package.work and not job.over]
        if rivals:
            raise StepError(
                f"{rivals[0]}: trains the same on this cluster, with other code or settings; wait for it, or stop it: "
                f"`{shell_command('stylegan', 'stop', rivals[0], '--address', self.address)}`; this launch then goes on "
                "from its newest checkpoint"
            )
        attempt = newest.attempt + 1 if newest else 1
        job_id = run if attempt == 1 else f"{run}-{attempt}"
        command = [python, "-m", "flows.cli.main", "run", package.config]
        facts = {RUN: run, NAME: name, ATTEMPT: str(attempt), WORK: package.work}
        try:
            self._submit(job_id, package, command, environment, grace_s, pip=pip, metadata=facts)
        except StepError:
            with contextlib.suppress(StepError):  # another command was faster
                return Launch(job=self.get(job_id), outcome="attached")
            raise
        return Launch(job=self.get(job_id), outcome="started", earlier=newest)

    def run_as_job(
        self,
        arguments: Sequence[str],
        package: JobPackage,
        write: Write,
        *,
        environment: Mapping[str, str],
        grace_s: float,
        pip: bool = False,
        python: str = "python",
    ) -> int:
        """Run any command of this program on the cluster, follow it, and return its exit code; no trace of it is kept.

        Args:
            arguments: of the command, such as `["doctor", package.config]`; the folder of the package is its own.
            write: takes what the command prints, both streams in one.
            package, environment, grace_s, pip, python: as for `submit_run`.
        """
        job_id = f"{arguments[0]}-{uuid.uuid4().hex[:10]}"
        command = [python, "-m", "flows.cli.main", *arguments]
        self._submit(job_id, package, command, environment, grace_s, pip=pip, metadata={})
        try:
            return self.follow(job_id, write).code
        finally:
            with contextlib.suppress(StepError, ConfigError):
                if not self.get(job_id).over:  # who interrupts this command does not want the job, either
                    self._request_stop(job_id)
                else:
                    with self._talk(job_id):
                        self._client.delete_job(job_id)

    def _submit(
        self,
        job_id: str,
        package: JobPackage,
        command: Sequence[str],
        environment: Mapping[str, str],
        grace_s: float,
        *,
        pip: bool,
        metadata: dict[str, str],
    ) -> None:
        settings = {
            **environment,
            STOP_WAIT: str(int(grace_s + STOP_MARGIN)),
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else a driver below `uv run` gives its workers another Python
        }
        with tempfile.TemporaryDirectory(prefix="stylegan-job-") as folder:
            archive = os.path.join(folder, "package.zip")
            with open(archive, "wb") as file:
                file.write(package.archive)
            runtime_env: dict[str, Any] = {"working_dir": archive, "env_vars": settings}
            if pip:
                runtime_env["pip"] = {"packages": requirements(), "pip_check": False}
            with self._talk(job_id):
                self._client.submit_job(
                    entrypoint=f"exec {shlex.join(command)}",
                    submission_id=job_id,
                    runtime_env=runtime_env,
                    metadata=metadata,
                )

    def log(self, job_id: str) -> str:
        """Return the whole log of a job so far."""
        with self._talk(job_id):
            return self._client.get_job_logs(job_id)

    def follow(self, job_id: str, write: Write, *, patience: float = LOST_SECONDS) -> Job:
        """Write the log of a job as it grows, until the job is over, and return the job.

        A connection that breaks is made again. The server then sends the log from its beginning, and as much is skipped
        as was written already: no line is lost or doubled. Whether the job is over is asked of the server: the end of a
        connection says nothing about that.

        Raises:
            UnavailableError: the dashboard has not answered for `patience` seconds.
            StepError: the cluster does not know the job (any more).
        """
        log, lost, job = _Log(write), float("inf"), None
        while True:
            with contextlib.suppress(UnavailableError):
                asyncio.run(self._stream(job_id, log))
            try:
                job = self.get(job_id)
                if job.over:
                    log.begin()
                    log.take(self.log(job_id))
                    return job
                lost = float("inf")
            except UnavailableError as error:
                now = time.monotonic()
                if lost == float("inf"):
                    lost = now
                    logger.warning("%s; trying again for %.0f s", error, patience)
                if now - lost < patience:
                    pass
                elif job and job.over:
                    logger.warning("%s: the end of its log cannot be read any more", job_id)
                    return job
                else:
                    raise UnavailableError(
                        f"{self._shown}: the dashboard has not answered for {patience:.0f} s, so what became of {job_id} is "
                        "not known; when the cluster, or a new one, is up, the same launch attaches to the run or goes on "
                        "from storage"
                    ) from error
            time.sleep(RETRY_SECONDS)

    async def _stream(self, job_id: str, log: _Log) -> None:
        """Take what the server sends, until it ends the connection or sends nothing for a while."""
        log.begin()
        chunks = self._client.tail_job_logs(job_id)
        try:
            while True:
                with self._talk(job_id):
                    try:
                        chunk = await asyncio.wait_for(anext(chunks, None), SILENCE_SECONDS)
                    except TimeoutError:
                        return
                if chunk is None:
                    return
                log.take(chunk)
        finally:
            await chunks.aclose()

    def stop(self, job: Job) -> Job:
        """Ask a job to stop, wait until it is over, and return it with its progress.

        Raises:
            UnavailableError: it is not over after the seconds that it may take.
        """
        limit, asked = time.monotonic() + job.grace_s + STOP_MARGIN, False
        while not job.over:
            if not asked:
                asked = self._request_stop(job.id)
            elif time.monotonic() > limit:
                raise UnavailableError(
                    f"{job.id}: is not over {job.grace_s + STOP_MARGIN:.0f} s after it was asked to stop"
                )
            time.sleep(RETRY_SECONDS / 2)
            job = self.get(job.id)
        return self._with_progress(self._details(job.id))

    def _request_stop(self, job_id: str) -> bool:
        """Ask a job to stop; return whether there was a process that could be asked."""
        with self._talk(job_id):
            return bool(self._client.stop_job(job_id))

    @property
    def _shown(self) -> str:
        return redact(self.address)

    @contextlib.contextmanager
    def _talk(self, job_id: str = "") -> Iterator[None]:
        """Turn what goes wrong between this machine and the server into errors of one line."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except aiohttp.WSServerHandshakeError as error:
            raise self._refusal(error.status, error.message, job_id) from error
        except AuthenticationError as error:
            raise self._refusal(401 if "required" in str(error) else 403, "", job_id) from error
        except requests.exceptions.JSONDecodeError as error:
            raise self._refusal(404, "", "") from error
        except (requests.RequestException, aiohttp.ClientError, OSError) as error:
            raise UnavailableError(
                f"{self._shown}: no Ray dashboard answers ({_cause(error)}); check the address, and that the head was "
                "started with --dashboard-host=0.0.0.0, or that its port is forwarded to here"
            ) from error
        except RuntimeError as error:  # of Ray's client: the status and text of an answer
            status = re.search(r"(?:status code|returned) (\d+)", str(error))
            raise self._refusal(int(status[1]) if status else 500, str(error), job_id) from error

    def _refusal(self, status: int, text: str, job_id: str) -> StepError:
        """Return the error for an answer that is none."""
        if status in (401, 403):
            what = "wants a token" if status == 401 else "refuses the token of this environment"
            return StepError(
                f"{self._shown}: the cluster {what}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the "
                "token that its head was started with"
            )
        if status == 404 and job_id:
            return StepError(
                f"{job_id}: the cluster at {self._shown} does not know this job (any more: a head that was started again has "
                "forgotten it); the same launch starts it again, and it goes on from storage"
            )
        if status == 404:
            return StepError(f"{self._shown}: is no Ray dashboard; give the URL of one, such as http://HEAD:8265")
        lines = [line for line in text.splitlines() if line.strip()] or [f"status {status}"]
        kind = StepError if status == 400 else UnavailableError
        return kind(f"{self._shown}: the job server answers: {shown(lines[-1].strip(), 200)}")


class _Log:
    """Writes a log that arrives several times from its beginning, each character once."""

    def __init__(self, write: Write) -> None:
        self.write, self.written, self.position = write, 0, 0

    def begin(self) -> None:
        """Expect the beginning of the log next."""
        self.position = 0

    def take(self, chunk: str) -> None:
        """Write what is new of a chunk."""
        new = chunk[max(self.written - self.position, 0) :]
        self.position += len(chunk)
        if new:
            self.write(new)
            self.written += len(new)


def _connect(address: str) -> Any:
    """Return a client of Ray's for exactly this address, whose requests have a time limit."""
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            answer = ANSWER_SECONDS if method == "GET" else SUBMIT_SECONDS
            return super()._do_request(method, endpoint, timeout=(CONNECT_SECONDS, answer), **options)

    read_again()  # this process may have had a Ray with another token, or with none
    with environment({ADDRESS: None, "RAY_ADDRESS": None}):  # Ray prefers these to the address that it is given
        return Client(address)


def _cause(error: BaseException) -> str:
    """Return the innermost reason of an error of the network."""
    while error.__context__ is not None:
        error = error.__context__
    return one_line(error, 120)


def _job(details: Any) -> Job:
    """Return what Ray says of a job, in our words."""
    facts, status = details.metadata or {}, str(details.status.value)
    state, code = STATES[status], details.driver_exit_code
    if state == "failed" and code in {128 + number for number in SIGNALS}:
        state = "stopped"  # by a signal that Ray has not sent
    env = (details.runtime_env or {}).get("env_vars") or {}
    return Job(
        id=details.submission_id,
        run=facts.get(RUN),
        name=facts.get(NAME),
        work=facts.get(WORK),
        attempt=int(facts.get(ATTEMPT, 1)),
        state=state,
        exit_code=code,
        reason=_reason(details.message or "") if state in ("failed", "waiting") else "",
        since=(details.start_time or 0) / 1000,
        until=details.end_time / 1000 if details.end_time else None,
        grace_s=float(env.get(STOP_WAIT, 3)),
    )


def _reason(message: str) -> str:
    """Return the line of a message that says most: that of this program in the end of the log, else the last one."""
    lines = [
        line.strip() for line in message.splitlines() if line.strip() and not line.startswith("Running entrypoint")
    ]
    lines = lines or [""]
    ours = [line for line in lines if line.startswith("stylegan: ")]
    last = shown((ours or lines)[-1].removeprefix("stylegan: "), 400)
    if last.startswith("ModuleNotFoundError") or re.search(r"\b(exec|python\S*): .*not found", last):
        last += "; the Python of the job lacks the dependencies: name one of the image that has them with --python, or --pip"
    return last
