"""The env file of a stack: where it is, its ports and secrets, and what its clients read: `. infra/stack.env`.

The file is the only state of a stack beside its data folder. It is made once, with random secrets, for its owner alone;
afterwards it is the user's to edit. Shells read it, Docker Compose does (`--env-file`), and so does this module.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from stylegan.commands import shell_command
from stylegan.errors import ConfigError

DEFAULT = Path(__file__).parents[1] / "stack.env"
LOOPBACK = "127.0.0.1"
# Port -> the one that people expect.
PORTS = {
    "STACK_S3_PORT": 8333,
    "STACK_S3_MASTER_PORT": 9333,
    "STACK_S3_VOLUME_PORT": 8180,
    "STACK_S3_FILER_PORT": 8888,
    "STACK_POSTGRES_PORT": 5432,
    "STACK_MLFLOW_PORT": 5000,
    "STACK_PREFECT_PORT": 4200,
    "STACK_RAY_PORT": 6379,
    "STACK_RAY_CLIENT_PORT": 10001,
    "STACK_DASHBOARD_PORT": 8265,
}
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # Ray's own name; see loopback_ray.py
GRPC = 10_000  # SeaweedFS listens for gRPC at so much above each of its ports
DATABASES = ("postgresql", "sqlite")
BUCKETS = ("stylegan", "mlflow")  # of runs, and of MLflow's artifacts
_OF_SHELLS = ("PWD", "OLDPWD", "SHLVL", "_")


def make(path: Path) -> None:
    """Write the env file of a new stack, unless there is one.

    A port is the usual one if it is free, else any that is. The data folder is `stack-data` beside the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    if path.exists():
        return
    data = path.absolute().parent / "stack-data"
    database = "postgresql" if postgres_obstacle(data) is None else "sqlite"
    ports = "\n".join(f"export {name}={number}" for name, number in _free_ports().items())
    text = f"""# The stack of infra/stack.sh. It holds secrets: mode 0600, in no repository. Read by shells (`. {path.name}`), by Docker
# Compose (`--env-file`) and by infra/stack.sh. After an edit: `infra/stack.sh down`, then `up`.

# The address where the services listen and are reached. Another one than {LOOPBACK}, such as 192.168.1.5, opens them to
# that network: their logins are below, but nothing is encrypted.
export STACK_HOST={LOOPBACK}
export STACK_DATA='{data}'
export STACK_DATABASE={database}
{ports}

# Logins, made at random. Those of PostgreSQL and MLflow are set at the first start; later edits do not change them.
export STACK_POSTGRES_PASSWORD={_secret()}
export STACK_MLFLOW_SECRET_KEY={_secret()}
export STACK_S3_SIGNING_KEY={_secret()}
export AWS_ACCESS_KEY_ID={secrets.token_hex(10).upper()}
export AWS_SECRET_ACCESS_KEY={_secret()}
export MLFLOW_TRACKING_USERNAME=stylegan
export MLFLOW_TRACKING_PASSWORD={_secret()}
export PREFECT_API_AUTH_STRING=stylegan:{_secret()}
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN={_secret()}

# Where clients find the services.
export AWS_ENDPOINT_URL="http://${{STACK_HOST}}:${{STACK_S3_PORT}}"
export AWS_REGION=us-east-1
export MLFLOW_TRACKING_URI="http://${{STACK_HOST}}:${{STACK_MLFLOW_PORT}}"
export PREFECT_API_URL="http://${{STACK_HOST}}:${{STACK_PREFECT_PORT}}/api"
export RAY_API_SERVER_ADDRESS="http://${{STACK_HOST}}:${{STACK_DASHBOARD_PORT}}"
# Ray listens on and looks at {LOOPBACK} alone. To be removed with another STACK_HOST.
export {LOOPBACK_ONLY}=0

# What a config takes that names no storage, no tracking server and no cluster.
export STYLEGAN_STORAGE=s3://{BUCKETS[0]}
export STYLEGAN_TRACKING_URI="${{MLFLOW_TRACKING_URI}}"
export STYLEGAN_RAY_ADDRESS="${{STACK_HOST}}:${{STACK_RAY_PORT}}"
"""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)  # of two that begin at once, one wins
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(
            f"--env {path}: cannot be written ({error.strerror}); give a path in a folder of yours"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> dict[str, str]:
    """Return the variables of an env file, as a shell reads it.

    Raises:
        ConfigError: there is none, others may read it, or a value is not allowed.
    """
    if not path.is_file():
        made = stack_command(path, "up")
        raise ConfigError(f"--env {path}: there is no such file; `{made}` makes it and starts the stack")
    if path.stat().st_mode & 0o077:
        raise ConfigError(
            f"{path}: holds secrets and may be read by others; `{shell_command('chmod', '600', str(path))}`"
        )
    shell = subprocess.run(
        ["sh", "-c", '. "$1" && env -0', "sh", path.absolute()],
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
    )
    if shell.returncode:
        raise ConfigError(f"{path}: a shell cannot read it ({shell.stderr.strip()}); mend that line")
    pairs = (line.partition("=") for line in shell.stdout.split("\0") if line)
    values = {name: value for name, _, value in pairs if name not in (*_OF_SHELLS, "PATH")}
    _check(path, values)
    return values


def stack_command(path: Path, *arguments: str) -> str:
    """Return the shell command of infra/stack.sh for an env file."""
    return shell_command("infra/stack.sh", *([] if path == DEFAULT else ["--env", str(path)]), *arguments)


def data_folder(values: Mapping[str, str]) -> Path:
    """Return the data folder of a stack."""
    return Path(values["STACK_DATA"])


def _check(path: Path, values: Mapping[str, str]) -> None:
    """Check the values of an env file. Raises ConfigError."""
    needed = [
        *("STACK_HOST", "STACK_DATA", "STACK_DATABASE", *PORTS, "STACK_POSTGRES_PASSWORD", "STACK_MLFLOW_SECRET_KEY"),
        *("STACK_S3_SIGNING_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_USERNAME"),
        *("MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING", "RAY_AUTH_TOKEN"),
    ]
    missing = next((name for name in needed if not values.get(name)), None)
    if missing:
        raise ConfigError(f"{path}: {missing} is not set; a new file, made beside it, shows what belongs there")
    host, database = values["STACK_HOST"], values["STACK_DATABASE"]
    if host in ("0.0.0.0", "::"):
        raise ConfigError(
            f"{path}: STACK_HOST={host}: must be one address of this machine, by which it is also reached"
        )
    if not Path(values["STACK_DATA"]).is_absolute():
        raise ConfigError(f"{path}: STACK_DATA={values['STACK_DATA']}: must be an absolute path")
    if database not in DATABASES:
        raise ConfigError(f"{path}: STACK_DATABASE={database}: must be {' or '.join(DATABASES)}")
    taken: dict[str, str] = {}
    for name in PORTS:
        port = values[name]
        most = 65535 - GRPC if name.startswith("STACK_S3") else 65535
        if not (port.isascii() and port.isdigit() and 1024 <= int(port) <= most):
            raise ConfigError(f"{path}: {name}={port}: must be a number from 1024 to {most}")
        if port in taken:
            raise ConfigError(f"{path}: {name}={port}: is that of {taken[port]}, too; give each a port of its own")
        taken[port] = name


def postgres_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, of the newest version; None if it is not installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")  # Debian keeps them off the PATH
    return max((path.parent for path in versions), key=lambda path: float(path.parent.name), default=None)


def postgres_user() -> pwd.struct_passwd | None:
    """Return the user that PostgreSQL runs as if this process is root, which it refuses; None for the user of this process.

    Raises:
        KeyError: this process is root, and there is no user `postgres`.
    """
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else None


def postgres_obstacle(data: Path) -> str | None:
    """Return why PostgreSQL cannot keep a database below a data folder; None if it can."""
    if postgres_programs() is None:
        return "PostgreSQL is not installed"
    try:
        user = postgres_user()
    except KeyError:
        return "PostgreSQL does not run as root, and there is no user `postgres`"
    closed = [folder for folder in data.parents if user and folder.exists() and not folder.stat().st_mode & 0o001]
    return f"the user postgres may not enter {closed[0]}" if closed else None


def _free_ports() -> dict[str, int]:
    """Return a free port for each name."""
    chosen: dict[str, int] = {}
    for name, usual in PORTS.items():
        room = (0, GRPC) if name.startswith("STACK_S3") else (0,)
        port = usual
        while port in chosen.values() or not all(is_free(port + more) for more in room):
            port = 20_000 + secrets.randbelow(2_700)  # with GRPC below those that the system gives to connections
        chosen[name] = port
    return chosen


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Return whether nothing listens on a port of this machine."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError:
            return False
    return True


def _secret() -> str:
    """Return a random secret that URLs, shells and INI files take as it is."""
    return secrets.token_hex(24)
