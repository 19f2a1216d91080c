"""The file of a backup: whole or refused; databases of SQLite, objects of a real S3 server. tests/stack restores one."""

import json
import os
import resource
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing

import pytest

from infra.stack import backup, databases, environment
from stylegan.errors import StepError


@pytest.fixture
def values(tmp_path, s3_server):
    """The env file's values of a stack with two SQLite databases and some objects on an S3 server."""
    import boto3

    s3_server()
    client = boto3.client("s3")
    for bucket in environment.BUCKETS:
        client.create_bucket(Bucket=bucket)
    for number in range(3):
        client.put_object(Bucket="stylegan", Key=f"a/{number}/../o ä", Body=bytes([number]) * (1000 * number))
    client.put_object(Bucket="mlflow", Key="1/grid.png", Body=b"a picture")
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    made = {name: os.environ[name] for name in names}
    made |= {"STACK_DATA": str(tmp_path / "data"), "STACK_DATABASE": "sqlite"}
    made |= {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "new"}
    for name in databases.DATABASES:
        (tmp_path / "data" / name).mkdir(parents=True)
        with closing(sqlite3.connect(tmp_path / "data" / name / f"{name}.db")) as database, database:
            database.execute("CREATE TABLE users (username TEXT, password_hash TEXT)")
            database.execute("INSERT INTO users VALUES ('me', 'old'), ('you', 'yours')")
            database.execute("CREATE TABLE alembic_version (version_num TEXT)")
    yield made
    for bucket in environment.BUCKETS:  # other tests have the same server
        for found in client.list_objects_v2(Bucket=bucket).get("Contents", ()):
            client.delete_object(Bucket=bucket, Key=found["Key"])
        client.delete_bucket(Bucket=bucket)


@pytest.fixture
def made(values, tmp_path, monkeypatch):
    """The path of a backup."""
    monkeypatch.setattr(backup, "_require_up", lambda values: None)  # its S3 server has no pid file
    return backup.backup(values, str(tmp_path / "backup.tar"), lambda line: None)


def manifest_of(path):
    """Return a manifest as JSON."""
    with tarfile.open(path) as tar:
        return json.load(tar.extractfile("manifest.json"))


def test_a_backup_holds_databases_objects_and_last_the_manifest(made, values, tmp_path):
    with tarfile.open(made) as tar:
        names = tar.getnames()
    assert names[:2] == ["databases/mlflow", "databases/prefect"]
    assert sorted(names[2:-1]) == [
        "objects/mlflow/1/grid.png",
        *(f"objects/stylegan/a/{number}/../o ä" for number in range(3)),
    ]
    assert names[-1] == "manifest.json"
    assert os.stat(made).st_mode & 0o777 == 0o600
    read = backup.read_manifest(tmp_path / "backup.tar")
    backup._check_fits(read, values, tmp_path / "backup.tar")
    backup._check_members(read, tmp_path / "backup.tar")
    assert read.database == "sqlite"
    assert sorted(os.listdir(tmp_path / "data")) == ["backup.lock", "mlflow", "prefect"]  # nothing is left of the way
    with pytest.raises(StepError, match=r"backup\.tar: is there already"):
        backup.backup(values, made, lambda line: None)


def test_a_backup_fills_an_empty_stack_which_has_a_login_of_its_own(made, values, tmp_path):
    import boto3

    client = boto3.client("s3")
    for bucket in environment.BUCKETS:
        for found in client.list_objects_v2(Bucket=bucket)["Contents"]:
            client.delete_object(Bucket=bucket, Key=found["Key"])
    other = values | {"STACK_DATA": str(tmp_path / "other")}
    backup._fill(other, backup.read_manifest(tmp_path / "backup.tar"), tmp_path / "backup.tar", tmp_path)
    body = client.get_object(Bucket="stylegan", Key="a/2/../o ä")["Body"].read()
    assert body == bytes([2]) * 2000
    assert client.get_object(Bucket="mlflow", Key="1/grid.png")["Body"].read() == b"a picture"
    with closing(sqlite3.connect(tmp_path / "other" / "mlflow" / "mlflow.db")) as database:
        users = dict(database.execute("SELECT username, password_hash FROM users"))
    from werkzeug.security import check_password_hash

    assert check_password_hash(users["me"], "new")
    assert users["you"] == "yours"


def test_a_backup_that_is_cut_off_anywhere_is_refused(made, values, tmp_path):
    whole = (tmp_path / "backup.tar").read_bytes()
    manifest_at = whole.index(b"manifest.json")
    for length in (0, 100, 10_000, manifest_at, manifest_at + 600):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(StepError, match=r"^restore \S+cut\.tar: .*; take another backup$"):
            backup.restore(values, str(tmp_path / "cut.tar"), replace=True, tell=lambda line: None)
    assert (tmp_path / "data" / "mlflow" / "mlflow.db").exists()


def test_a_changed_byte_is_found_before_anything_is_touched(made, values, tmp_path):
    whole = bytearray((tmp_path / "backup.tar").read_bytes())
    whole[whole.index(b"a picture")] ^= 1
    (tmp_path / "backup.tar").write_bytes(whole)
    with pytest.raises(StepError, match=r"objects/mlflow/1/grid\.png is damaged; take another backup"):
        backup.restore(values, made, replace=True, tell=lambda line: None)
    assert (tmp_path / "data" / "mlflow" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"is of a newer version \(format 2\) than this one; install that, then restore"),
        ({"versions": {"mlflow": "3.18.0"}}, r"is of a newer version \(mlflow 3\.18\.0\) than this one"),
        ({"versions": {"prefect": "4.0.0"}}, r"is of a newer version \(prefect 4\.0\.0\) than this one"),
        ({"database": "postgresql"}, "its databases are of postgresql, and STACK_DATABASE=sqlite; set that to"),
    ],
)
def test_a_backup_that_does_not_fit_is_refused_with_the_cure(made, values, tmp_path, change, message):
    read = backup.read_manifest(tmp_path / "backup.tar")
    update = change | ({"versions": read.versions | change["versions"]} if "versions" in change else {})
    with pytest.raises(StepError, match=message):
        backup._check_fits(read.model_copy(update=update), values, tmp_path / "backup.tar")


def test_a_stack_with_data_is_left_alone_or_put_aside(made, values, tmp_path):
    with pytest.raises(StepError, match="this stack has data; restore into another one"):
        backup.restore(values, made, replace=False, tell=lambda line: None)
    lines = []
    backup._make_empty(values, replace=True, tell=lines.append)
    (aside,) = tmp_path.glob("data.before-*")
    assert lines == [f"{aside}: has the data that were there"]
    assert (aside / "mlflow" / "mlflow.db").exists()
    assert not (tmp_path / "data").exists()


def test_a_restore_that_was_cut_off_does_not_start_and_begins_anew(values, tmp_path):
    (tmp_path / "data" / backup.RESTORING).write_text("/a backup.tar")
    with pytest.raises(
        StepError, match=r"its restore was cut off; run `.*stack\.sh --env s\.env restore '/a backup\.tar'`"
    ):
        backup.require_whole(values, environment.Path("s.env"))
    backup._make_empty(values, replace=False, tell=lambda line: None)
    assert not (tmp_path / "data").exists()


def test_a_disk_without_room_is_one_line_and_leaves_nothing(values, tmp_path):
    """A limit for files stands for the disk: writing beyond it fails as on a full one."""
    code = """
import json, sys
from infra.stack import backup
from stylegan.errors import StepError

backup._require_up = lambda values: None
try:
    backup.backup(json.loads(sys.argv[1]), sys.argv[2], print)
except StepError as error:
    print(error)
"""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))

    command = [sys.executable, "-c", code, json.dumps(values), str(tmp_path / "out" / "b.tar")]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()[-1:]
    assert line.startswith(f"backup {tmp_path}/out/b.tar: [Errno 27] File too large"), done.stdout
    assert os.listdir(tmp_path / "out") == []
    assert sorted(os.listdir(tmp_path / "data")) == ["backup.lock", "mlflow", "prefect"]


def test_another_version_gets_a_copy_and_an_older_one_is_refused(values, tmp_path):
    assert databases.before_start(values, "mlflow")  # whose version nobody has noted
    databases.note_version(values, "mlflow")
    assert not databases.before_start(values, "mlflow")
    databases.set_version(values, "mlflow", "3.1.4")
    assert databases.before_start(values, "mlflow")
    copies = sorted(path.name.partition("-2")[0] for path in (tmp_path / "data" / "before-upgrades").iterdir())
    assert copies == ["mlflow-3.1.4", "mlflow-unknown"]
    databases.set_version(values, "prefect", "99.1.0")
    with pytest.raises(
        StepError, match=r"prefect: 99\.1\.0 has used this database, and \S+ is installed here, which is older"
    ):
        databases.before_start(values, "prefect")
