"""Commands on jobs of a Ray cluster: launch a run from any machine, list, follow and stop what runs there."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flows.cli.arguments import AsJson, ConfigFile, Overrides, load
from stylegan.commands import shell_command
from stylegan.errors import ConfigError, printable

if TYPE_CHECKING:
    from stylegan.cluster.jobs import Job, JobServer, Launch
    from stylegan.config.tree import Config

logger = logging.getLogger("stylegan")
LAST_LINES = 40  # of a log in which no summary is found
GRACE_SECONDS = 10.0  # for the end of a job without a config
WIDE = 200  # columns of a table that goes to a file or a pipe: ids are never cut

Address = Annotated[
    str | None,
    Parameter(
        help="URL of the cluster's Ray dashboard, such as http://HEAD:8265; unset: RAY_API_SERVER_ADDRESS, as for Ray's "
        "own commands for jobs. A cluster with tokens needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH."
    ),
]
Follow = Annotated[
    bool,
    Parameter(
        name=["--follow", "-f"],
        negative="",
        help="Print the log as it grows, until the job is over; the exit code is that of the job. Ctrl-C leaves the job "
        "alone.",
    ),
]
JobId = Annotated[
    str,
    Parameter(help="Id of a job, the beginning of one, or the name of the config if it has one run on the cluster."),
]


def launch(
    config: ConfigFile,
    /,
    *,
    address: Address = None,
    follow: Follow = False,
    again: Annotated[bool, Parameter(negative="")] = False,
    pip: Annotated[bool, Parameter(negative="")] = False,
    python: str | None = None,
    env: Annotated[list[str] | None, Parameter(negative="")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> int:
    """Run a config on a Ray cluster, as `run` would there; this machine may go away then.

    The code of this machine and the config are sent, no data. The same command attaches to the run that it has started,
    shows the summary of one that has finished, and starts one that failed or was stopped again, from storage.
    Environment variables for storage, MLflow and Prefect (AWS_*, MLFLOW_TRACKING_*, PREFECT_API_URL, ...) are sent, too;
    Ray keeps them with the job, where everybody who reaches the dashboard can read them.

    Parameters
    ----------
    again
        Start the next attempt also if the last one has finished: for new images in the same place.
    pip
        Install the dependencies on each node with pip before the run, all but Ray and torch: these must be in the
        cluster's image, as they have to fit the cluster and its GPUs. Unset: the image has everything.
    python
        Python of the cluster's image that has the dependencies, if it is not the `python` that its head finds.
    env
        Name of another environment variable that the run needs. Repeatable.

    Examples
    --------
    stylegan launch faces.yaml --address http://HEAD:8265 --follow
    stylegan launch faces.yaml --set ray.workers=8 --env MY_BUCKET_KEY
    """
    settings = load(config, overrides)
    if pip and python is not None:
        raise ConfigError(f"--python {python}: --pip makes a Python of its own on each node; give one of the two")
    from stylegan.cluster.job_package import environment, is_loopback, make_package, own_addresses
    from stylegan.cluster.jobs import JobServer, resolve_address

    where = resolve_address(address)
    package = make_package(settings, os.path.basename(config))
    variables = environment(os.environ, env or ())
    server = JobServer(where)
    server.check_versions()
    if not is_loopback(where):  # else it is a cluster on this machine, or its port is forwarded
        for name in own_addresses(settings, variables):
            logger.warning("%s names the machine that reads it, which is another one on the cluster than here", name)
    launched = server.submit_run(
        package,
        settings.name,
        environment=variables,
        grace_s=settings.ray.stop_grace_s,
        again=again,
        pip=pip,
        python=python or "python",
    )
    summary = _summary(server.log(launched.job.id)) if launched.outcome == "finished" else None
    if not as_json:
        _print_launch(launched, server, address, f"{len(package.archive) / 2**20:.1f} MiB, {_listed(variables)}")
        if summary:
            print(summary)
    if follow and not summary:
        return _follow(server, launched.job, address, as_json)
    if as_json:
        more = {"dashboard": server.link(launched.job.id), "summary": summary}
        _print_json({**launched.model_dump(mode="json"), **more})
    return 0


def _listed(variables: Iterable[str]) -> str:
    return f"with {', '.join(variables)}" if variables else "no environment variables"


def jobs(
    *,
    address: Address = None,
    all_jobs: Annotated[bool, Parameter(name="--all", negative="")] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs that were launched on a cluster: what they do, how far they are, and how long they take on.

    Parameters
    ----------
    all_jobs
        Also list jobs of the cluster that `launch` has not submitted.

    Examples
    --------
    stylegan jobs --address http://HEAD:8265
    """
    from stylegan.cluster.jobs import JobServer, resolve_address

    found = JobServer(resolve_address(address)).jobs(progress=True)
    listed = [job for job in found if job.run or all_jobs]
    if as_json:
        _print_json([job.model_dump(mode="json") for job in listed])
    elif listed:
        _print_jobs(listed)
    else:
        others = f"; of others it has {len(found)}, which --all lists" if found else ""
        print(f"the cluster has no run of this program{others}")


def logs(job: JobId, /, *, address: Address = None, follow: Follow = False, as_json: AsJson = False) -> int:
    """Print what a run on a cluster has said so far, or follow it to its end.

    Examples
    --------
    stylegan logs faces --address http://HEAD:8265 --follow
    """
    from stylegan.cluster.jobs import JobServer, resolve_address

    server = JobServer(resolve_address(address))
    found = server.find(job)
    if follow:
        return _follow(server, found, address, as_json)
    text = server.log(found.id)
    if as_json:
        _print_json({**found.model_dump(mode="json"), "log": text})
    else:
        _write(text)
    return 0


def stop(job: JobId, /, *, address: Address = None, as_json: AsJson = False) -> None:
    """Stop a run on a cluster and wait for its end; `launch` goes on from its last checkpoint.

    Examples
    --------
    stylegan stop faces --address http://HEAD:8265
    """
    from flows.cli.supervisor import say_when_stopped
    from stylegan.cluster.jobs import JobServer, resolve_address

    server = JobServer(resolve_address(address))
    found = server.find(job)
    if found.over:
        ended = found
    else:
        look = _command(address, "jobs")
        say_when_stopped(f"{found.id} was asked to stop and goes on to do so; `{look}` says when it is over")
        ended = server.stop(found)
    if as_json:
        _print_json(ended.model_dump(mode="json"))
        return
    before = "was over already: " if found.over else ""
    print(f"{ended.id}: {before}{_state(ended)}{_place(ended)}")


def examine(config: Config | None, file: str, address: str, *, as_json: bool) -> int:
    """Run `doctor` as a job of a cluster, print what it prints, and return its exit code.

    Args:
        config: that of a run; None: only the cluster is examined.
        file: the name of its file.
        address: URL of the cluster's dashboard.
        as_json: print only the record.
    """
    from stylegan.cluster.job_package import environment, make_package
    from stylegan.cluster.jobs import JobServer, resolve_address

    where = resolve_address(address)
    package = make_package(config, os.path.basename(file))
    server = JobServer(where)
    server.check_versions()
    arguments = ["doctor", package.config] if config else ["doctor", "--address", "auto"]
    printed: list[str] = []
    code = server.run_as_job(
        [*arguments, "--json"] if as_json else arguments,
        package,
        printed.append if as_json else _write,
        environment=environment(os.environ),
        grace_s=config.ray.stop_grace_s if config else GRACE_SECONDS,
    )
    if as_json:  # both streams of the job are in one
        print(
            next((line for line in reversed("".join(printed).splitlines()) if line.startswith("{")), "".join(printed))
        )
    return code


def _follow(server: JobServer, job: Job, address: str | None, as_json: bool) -> int:
    """Print the log of a job until it is over, and return its exit code."""
    from flows.cli.supervisor import say_when_stopped, terminal

    back, end = _command(address, "logs", job.id, "--follow"), _command(address, "stop", job.id)
    say_when_stopped(f"detached from {job.id}, which runs on; `{back}` follows it again, `{end}` stops it")
    ended = server.follow(job.id, _write_aside if as_json else _write)
    if as_json:
        _print_json(ended.model_dump(mode="json"))
    else:
        print(f"stylegan: {ended.id}: {_state(ended)}", file=terminal())
    return ended.code


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _write_aside(text: str) -> None:
    from flows.cli.supervisor import terminal

    print(text, end="", file=terminal(), flush=True)


def _command(address: str | None, *arguments: str) -> str:
    """Return a command on the same cluster, as it is typed."""
    where = () if address is None else ("--address", address)
    return shell_command("stylegan", *arguments, *where)


def _print_json(record: object) -> None:
    import json

    print(json.dumps(record), flush=True)


def _print_launch(launched: Launch, server: JobServer, address: str | None, sent: str) -> None:
    """Say what the command found or did, and which commands come next."""
    job, earlier = launched.job, launched.earlier
    if earlier:
        how = "" if earlier.state == "finished" else "; this goes on from storage"
        print(f"{earlier.id}: {_state(earlier)}{how}")
    begun = {
        "started": "started" if job.attempt == 1 else f"started, attempt {job.attempt}",
        "attached": f"runs already ({job.state} since {_clock(job.since)}); nothing was started",
        "finished": f"has finished ({_clock(job.until or job.since)}); --again runs it once more",
    }
    print(f"{job.id}: {begun[launched.outcome]}")
    if launched.outcome == "started":
        print(f"sent       code and config, {sent}")
    print(f"dashboard  {server.link(job.id)}")
    if launched.outcome != "finished":
        print(f"follow     {_command(address, 'logs', job.id, '--follow')}")
        print(f"list       {_command(address, 'jobs')}")
        print(f"stop       {_command(address, 'stop', job.id)}")
    print(flush=True)


def _summary(log: str) -> str:
    """Return the end of a log from the summary of the run on; without one, its last lines."""
    from flows.cli.console import SUMMARY

    lines = log.rstrip().splitlines()
    begins = [number for number, line in enumerate(lines) if line.endswith(SUMMARY)]
    return "\n".join(lines[begins[-1] if begins else -LAST_LINES :])


def _print_jobs(listed: list[Job]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("id", "name", "state", "stage", "kimg", "img/s", "ETA", "since"):
        table.add_column(heading, justify="right" if heading in ("kimg", "img/s", "ETA") else "left", no_wrap=True)
    for job in listed:
        table.add_row(*map(printable, _row(job)))
    console.print(table)
    for job in listed:
        if job.reason:
            print(printable(f"{job.id}: {job.reason}"))


def _row(job: Job) -> tuple[str, ...]:
    """Return the cells of a job."""
    reached = job.progress
    cells = ("", "", "", "")
    if reached:
        images = reached.unit == "img"
        amount = f"{reached.done / 1000:g} of {reached.total / 1000:g}" if images else ""
        speed = f"{reached.rate:,}" if images and reached.rate is not None and job.state == "running" else ""
        left = reached.whole or (f"{reached.left} of the stage" if reached.left else "")
        cells = (reached.name, amount, speed, left if job.state == "running" else "")
    return (job.id, job.name or "", job.state, *cells, _clock(job.since))


def _state(job: Job) -> str:
    """Return how a job is or was, with the reason."""
    if job.state != "failed":
        return job.state
    code = f" with exit code {job.exit_code}" if job.exit_code is not None else ""
    return printable(f"failed{code}: {job.reason}")


def _place(job: Job) -> str:
    """Return where a job was when it ended, if its log says so."""
    reached = job.progress
    if reached is None or reached.unit != "img" or job.state == "finished":
        return ""
    return f", at {reached.done / 1000:g} of {reached.total / 1000:g} kimg of {printable(reached.name)}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
