"""The random secrets of a stack's env file are in no log, object, record, command line or backup; nothing listens beyond
127.0.0.1."""

import base64
import ipaddress
import re
from urllib.parse import quote

import psutil
import pytest
import tiny_run

from infra.stack import environment, processes
from infra.stack.object_store import s3_client
from infra.stack.postgres import DATABASES, postgres_connect
from infra.stack.ray_nodes import ray_temp
from infra.stack.services import SERVICES

pytestmark = pytest.mark.long

SECRET = re.compile(r".*(PASSWORD|SECRET|TOKEN|SIGNING_KEY|AUTH_STRING).*")
# Files below the data folder that are meant to hold secrets.
MEANT = {"s3/s3.json", "s3/security.toml", "mlflow/auth.ini"}


def secrets_of(stack) -> dict[str, str]:
    """Return the secrets of an env file, without the users before them."""
    return {name: value.rpartition(":")[2] for name, value in stack.values.items() if SECRET.fullmatch(name)}


def needles_of(secret: str) -> list[bytes]:
    """Return what shows a secret: itself, as a part of a URL, and in base64, whatever is before it."""
    found = [secret.encode(), quote(secret, safe="").encode()]
    for before in range(3):
        text = base64.b64encode(b"\0" * before + secret.encode())
        found.append(text[4 if before else 0 : -4])  # the ends depend on what is around
    return found


def is_loopback(ip: str) -> bool:
    """Return whether an address is one of this machine alone, also one of IPv4 in the form of IPv6."""
    address = ipaddress.ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@pytest.fixture(scope="module")
def search(stack):
    """Return a function that returns the names of the secrets that some bytes hold."""
    names = {needle: name for name, secret in secrets_of(stack).items() for needle in needles_of(secret)}
    pattern = re.compile(b"|".join(map(re.escape, names)))
    return lambda data: sorted({names[match] for match in pattern.findall(data)})


@pytest.fixture(scope="module")
def seen(stack):
    """What could be seen of a run on the stack, and of commands on it."""
    return tiny_run.trained(stack)


def test_secrets_are_random_and_the_search_finds_them(stack, new_stack, search):
    secrets = secrets_of(stack)
    assert len(secrets) >= 7
    assert len(set(secrets.values())) == len(secrets)
    assert all(len(secret) >= 32 for secret in secrets.values())
    other = new_stack()
    assert other.command("init").returncode == 0
    assert not set(secrets.values()) & set(secrets_of(other).values())
    assert search(stack.env_file.read_bytes()) == sorted(secrets)
    secret = secrets["MLFLOW_TRACKING_PASSWORD"].encode()
    for user in (b"", b"a", b"ab", b"stylegan"):
        assert search(b"Basic " + base64.b64encode(user + b":" + secret)) == ["MLFLOW_TRACKING_PASSWORD"]


def test_no_file_holds_a_secret_but_those_that_are_meant_to_and_these_are_private(stack, seen, search):
    data = environment.data_folder(stack.values)
    found = {}
    for folder in (stack.folder, ray_temp(stack.values)):
        for path in (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
            if names := search(path.read_bytes()):
                found[path] = names
    assert {str(path.relative_to(data)) for path in found if path.is_relative_to(data)} <= MEANT, found
    assert {path for path in found if not path.is_relative_to(data)} == {stack.env_file}, found
    for path in [*found, *(data / "logs").iterdir()]:
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_no_object_holds_a_secret(stack, seen, search):
    client, count = s3_client(stack.values), 0
    for bucket in environment.BUCKETS:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", ()):
                data = client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
                assert not search(item["Key"].encode() + b" " + data), item["Key"]
                count += 1
    assert count > 20


def test_no_row_of_mlflow_or_prefect_holds_a_secret(stack, seen, search):
    """Params, tags, metrics, flow runs and their parameters, logs, blocks: every row of every table."""
    if stack.values["STACK_DATABASE"] == "sqlite":
        pytest.skip("its files are among those that are searched")
    tables = 0
    for name in DATABASES:
        with postgres_connect(stack.values, name) as connection:
            query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            for (table,) in connection.execute(query).fetchall():
                rows = connection.execute(f'SELECT t::text FROM "{table}" AS t').fetchall()
                for (row,) in rows:
                    assert not search(row.encode()), (name, table)
                tables += bool(rows)
    assert tables > 20


def test_no_command_prints_a_secret_and_no_process_shows_one(stack, seen, search):
    assert not search(seen.said.encode())
    assert any("mlflow" in line for line in seen.command_lines)
    assert any("weed" in line for line in seen.command_lines)
    assert [line for line in seen.command_lines if search(line.encode())] == []
    for arguments in (("status",), ("status", "--json"), ("logs", "--lines", "100000"), ("up",)):
        done = stack.command(*arguments)
        assert done.returncode == 0, done.stderr
        assert not search((done.stdout + done.stderr).encode()), arguments
    assert not search(stack.stylegan("doctor", "kept.yaml").encode())


def test_a_backup_holds_no_secret(stack, seen, search, tmp_path):
    path = tmp_path / "backup.tar"
    done = stack.command("backup", "--out", str(path))
    assert done.returncode == 0, done.stderr
    assert not search(path.read_bytes())
    assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_of_the_stack_listens_beyond_this_machine(stack, seen):
    owners = {
        process.pid: service.name
        for service in processes.services(stack.values)
        for process in processes.members(service, stack.values)
    }
    assert set(owners.values()) == {service.name for service in SERVICES if service.is_there(stack.values)}
    listening = [
        one for one in psutil.net_connections("inet") if one.status == psutil.CONN_LISTEN and one.pid in owners
    ]
    assert len({one.laddr.port for one in listening}) >= 6
    assert [(owners[one.pid], one.laddr) for one in listening if not is_loopback(one.laddr.ip)] == []
