"""Make the buckets that are missing in a new S3 store: `buckets.py NAME...`. The environment names store and login."""

from __future__ import annotations

import sys

from botocore.session import Session


def make_buckets(*names: str) -> None:
    """Make the buckets that are not there yet."""
    client = Session().create_client("s3")
    there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in names:
        if name not in there:
            client.create_bucket(Bucket=name)
            print(f"made the bucket {name}")


if __name__ == "__main__":
    make_buckets(*sys.argv[1:])
