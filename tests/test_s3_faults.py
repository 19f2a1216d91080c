"""Tests of the proxy that injects faults: each fault does what its name says, can be repeated, and an outage ends."""

import http.client
import os
import time
from contextlib import closing

import boto3
import fsspec
import pytest


@pytest.fixture
def bucket(s3_server) -> str:
    """Return the name of a bucket with one object of 100 kB, which everybody may read."""
    name = s3_server().removeprefix("s3://")
    boto3.client("s3").put_object(Bucket=name, Key="a.bin", Body=bytes(range(250)) * 400, ACL="public-read")
    return name


def connect() -> http.client.HTTPConnection:
    """Return a connection to the proxy."""
    return http.client.HTTPConnection(os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"), timeout=10)


def ask(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    """Return status and content of an answer, without the retries of a client library."""
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read()


def get(path: str) -> tuple[int, bytes]:
    """Return status and content of an answer on a new connection."""
    with closing(connect()) as connection:
        return ask(connection, path)


def outcome(path: str) -> str:
    """Return the status of an answer, or the type of the error that it meets."""
    try:
        return str(get(path)[0])
    except Exception as error:
        return type(error).__name__


def test_without_faults_all_passes(faulty_s3, bucket):
    """With a rate of 0 the proxy changes nothing: ranges, large uploads and listings work."""
    with faulty_s3(rate=0) as faults:
        files = fsspec.filesystem("s3")
        assert files.cat_file(f"{bucket}/a.bin", start=10, end=20) == bytes(range(10, 20))
        files.pipe_file(f"{bucket}/b/c d.bin", b"x" * 7_000_000)
        assert files.find(bucket) == [f"{bucket}/a.bin", f"{bucket}/b/c d.bin"]
        assert files.size(f"{bucket}/b/c d.bin") == 7_000_000
    assert not faults.injected
    assert faults.passed[f"GET /{bucket}/a.bin"] == 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("slowdown", "503"), ("reset", "ConnectionResetError"), ("truncated", "IncompleteRead"), ("slow", "200")],
)
def test_each_fault_is_what_it_says(faulty_s3, bucket, kind, expected):
    """A client meets each fault as the matching status, error or delay; `in_a_row=1` lets the second attempt pass."""
    with faulty_s3(rate=1, kinds=[kind], slow_s=0.5, in_a_row=1) as faults:
        start = time.monotonic()
        assert outcome(f"/{bucket}/a.bin") == expected
        assert (time.monotonic() - start >= 0.5) == (kind == "slow")
        assert get(f"/{bucket}/a.bin") == (200, bytes(range(250)) * 400)
    assert faults.injected == {kind: 1}


def test_the_same_seed_gives_the_same_faults(faulty_s3, bucket):
    """Equal seeds give equal faults for the same requests; another seed gives others."""
    seen = []
    for seed in (1, 1, 2):
        with faulty_s3(seed=seed, rate=0.5, slow_s=0) as faults:
            seen.append([outcome(f"/{bucket}/a.bin") for _ in range(30)])
        assert faults.injected.total() > 5
    assert seen[0] == seen[1] != seen[2]


def test_an_outage_refuses_and_ends(faulty_s3, bucket):
    """An outage breaks open connections and refuses new ones; after it requests pass again."""
    with faulty_s3(rate=0) as faults:
        connection = connect()
        connection.connect()
        faults.down_for(1)
        time.sleep(0.2)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(connection, f"/{bucket}/a.bin")
        assert outcome(f"/{bucket}/a.bin") == "ConnectionRefusedError"
        time.sleep(1)
        assert outcome(f"/{bucket}/a.bin") == "200"
    assert faults.injected["outage"] == 1
