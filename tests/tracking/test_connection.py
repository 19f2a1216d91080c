"""MLflow's address: what is refused before any work, and what its failures become."""

import http.server
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import botocore.config
import botocore.session
import pytest
import sqlalchemy

from stylegan.data.shardset import ShardSet
from stylegan.errors import ConfigError, StepError, UnavailableError
from stylegan.tracking import connection as server
from stylegan.tracking.connection import artifact_location, check_server, resolve_uri
from stylegan.tracking.open_run import open_run

SHARDS = ShardSet(
    uri="s3://b/datasets/f",
    fingerprint="f" * 64,
    num_images=5,
    resolutions=(4, 8),
    label_names=("a", "b"),
    num_rejected=0,
)


def test_the_uri_is_the_one_given_else_sqlite_below_the_root_else_below_the_working_folder(
    tmp_path, monkeypatch, tiny_config
):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(tiny_config("data")) == f"sqlite:///{tmp_path}/data/mlflow.db"
    assert artifact_location(tiny_config("data")) == f"file://{tmp_path}/data/mlartifacts"
    assert resolve_uri(tiny_config("s3://b/x")) == f"sqlite:///{tmp_path}/stylegan-local/mlflow.db"
    assert artifact_location(tiny_config("s3://b/x")) == f"file://{tmp_path}/stylegan-local/mlartifacts"
    assert resolve_uri(tiny_config("data", tracking={"uri": "http://host:5000"})) == "http://host:5000"
    assert artifact_location(tiny_config("data", tracking={"uri": "http://host:5000"})) is None
    assert (
        artifact_location(tiny_config("s3://b/x", tracking={"uri": "postgresql://host/db"})) == "s3://b/x/mlartifacts"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a%20b", "a?b=c", "a#b", "a b", "größe", "a::b", "50%"])
def test_everything_of_a_root_with_any_name_lands_in_it(tmp_path, tiny_config, monkeypatch, empty_database, name):
    """SQLAlchemy and MLflow take paths for URLs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    shutil.copy(empty_database, tmp_path / name / "mlflow.db")
    run = open_run(tiny_config(tmp_path / name), "tiny-0123", None)
    run.finish("FINISHED")
    assert os.listdir(tmp_path) == [name]
    assert sorted(os.listdir(tmp_path / name)) == ["mlartifacts", "mlflow.db"]
    assert list((tmp_path / name / "mlartifacts").rglob("config.yaml"))
    with open(run.client.download_artifacts(run.mlflow_run_id, "config.yaml")) as file:
        assert "name: tiny" in file.read()
    assert not server.is_empty(run.uri)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        (
            "sqlite:////data/a?b/mlflow.db",
            "ends at the first `?`; write it as sqlite+pysqlite:///file:/data/a%3Fb/mlflow.db",
        ),
        ("http://host:port", "Port could not be cast"),
        ("postgresql://host:99999/db", "Port out of range"),
        ("me:x@host", "must start with http://"),
        ("localhost:5000", "did you mean http://localhost:5000?"),
        ("10.0.0.1:5000/base", "did you mean http://10.0.0.1:5000/base?"),
        *((uri, "names no file") for uri in ("sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:mlflow.db")),
        ("sqlite:///file::memory:?cache=shared", "names no file"),
        ("sqlite+pysqlite:///file:a?mode=memory&uri=true", "names no file"),
    ],
)
def test_a_uri_that_would_be_read_otherwise_is_refused(uri, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        check_server(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["mlruns", "/some/mlruns", "file:///some/mlruns"])
def test_a_plain_folder_is_refused_with_the_cure(uri):
    with pytest.raises(ConfigError, match=r"tracking\.uri=.*use sqlite:///"):
        check_server(uri)


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile"])
def test_databricks_is_known_by_its_name(uri):
    check_server(uri)


def test_a_misspelt_scheme_is_refused():
    with pytest.raises(ConfigError, match="must start with http://"):
        check_server("htp://host:5000")


def test_a_closed_port_is_one_line_within_half_a_minute(tmp_path, tiny_config):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(StepError, match=r"tracking\.uri=http://127.*does not answer") as caught:
            open_run(tiny_config(tmp_path, tracking={"uri": uri}), "tiny-0123", SHARDS)
        assert time.monotonic() - start < 30
        assert "\n" not in str(caught.value)
        with pytest.raises(StepError, match=r"no database answers at 127\.0\.0\.1"):
            check_server(f"postgresql://user:secret@127.0.0.1:{free.getsockname()[1]}/mlflow")


def test_a_server_that_accepts_and_stays_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UnavailableError, match="does not answer"):
            check_server(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_of_another_kind_is_one_line():
    def greet():
        with listening.accept()[0] as caller:
            caller.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            caller.recv(4096)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(UnavailableError, match=r"does not answer .*SSH-2"):
            check_server(f"http://127.0.0.1:{listening.getsockname()[1]}")
    with pytest.raises(UnavailableError, match="does not answer"):
        check_server("http://two words")


@pytest.mark.parametrize(("status", "works"), [(200, True), (401, True), (403, False), (500, False)])
def test_what_the_health_page_answers_decides(status, works):
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/base/health" else 500)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as answering:
        threading.Thread(target=answering.handle_request, daemon=True).start()
        uri = f"http://127.0.0.1:{answering.server_port}/base/"
        if works:
            check_server(uri.replace("127", "me:p@ss/word@127") if status == 401 else uri)
        else:
            with pytest.raises(StepError, match=f"answers {status}"):
                check_server(uri)


@contextmanager
def as_somebody():
    """Without the rights of root, who may write everywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("prefix", ["sqlite", "sqlite+pysqlite"])
def test_a_sqlite_file_that_cannot_be_one_is_refused_at_once(tmp_path, prefix):
    """MLflow would try again for 100 seconds."""
    (tmp_path / "file").write_text("notes, longer than a header")
    (tmp_path / "empty.db").touch()
    mistakes = {
        f"{tmp_path}": f"is a folder, not a SQLite file; use sqlite:///{tmp_path}/mlflow.db",
        f"{tmp_path}/file/new/mlflow.db": f"{tmp_path}/file is a file, not a folder",
        f"{tmp_path}/file": "is a file of another kind, not SQLite",
    }
    for path, words in mistakes.items():
        with pytest.raises(ConfigError, match=re.escape(words)) as caught:
            server.connect(f"{prefix}:///{path}")
        assert "\n" not in str(caught.value)
    for path in ("new/folder/mlflow.db", "empty.db"):
        check_server(f"{prefix}:///{tmp_path}/{path}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.db", "file"]


@pytest.mark.parametrize("place", ["mlflow.db", "new/folder/mlflow.db", "there.db"])
def test_a_sqlite_file_without_permission_is_refused_at_once(place):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to anybody else
        (Path(folder) / "there.db").touch(mode=0o444)
        os.chmod(folder, 0o777 if place == "there.db" else 0o555)
        with as_somebody(), pytest.raises(StepError, match="no permission to write") as caught:
            check_server(f"sqlite:///{folder}/{place}")
        assert str(Path(folder, "there.db") if place == "there.db" else folder) in str(caught.value)
        os.chmod(folder, 0o777)
        with as_somebody():
            check_server(f"sqlite:///{folder}/other.db")


def test_a_store_that_mlflow_cannot_open_is_one_line(tmp_path):
    with closing(sqlite3.connect(tmp_path / "old.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('of another MLflow')")
        database.execute("CREATE TABLE experiments (experiment_id INTEGER)")
    with pytest.raises(StepError, match=r"MLflow at sqlite:///.*old\.db: cannot open the store: ") as caught:
        server.connect(f"sqlite:///{tmp_path}/old.db")
    assert "\n" not in str(caught.value)


def test_a_database_of_a_newer_mlflow_is_one_line_with_the_cure(tmp_path, empty_database):
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'abcdef123456'")
    with pytest.raises(StepError) as caught:
        server.connect(uri)
    assert "a newer MLflow than" in str(caught.value)
    assert "install that, or set tracking.uri to another place" in str(caught.value)


def test_a_database_without_its_driver_is_one_line_without_the_password():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with pytest.raises(
            ConfigError, match=r"tracking\.uri=mssql\+\w+://me:\*\*\*@127.*install that package"
        ) as caught:
            server.connect(f"mssql+pymssql://me:secret@127.0.0.1:{listening.getsockname()[1]}/mlflow")
        assert "secret" not in str(caught.value)


def refused_port(_folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        socket.create_connection(free.getsockname(), timeout=1)


def no_database(folder):
    with sqlalchemy.create_engine(f"sqlite:///{folder}/none/x.db").connect():
        pass


def double_row(_folder):
    with sqlalchemy.create_engine("sqlite://").connect() as database:
        database.execute(sqlalchemy.text("CREATE TABLE t (x INTEGER PRIMARY KEY)"))
        for _ in range(2):
            database.execute(sqlalchemy.text("INSERT INTO t VALUES (1)"))


def s3_away(_folder):
    access = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    once = botocore.config.Config(retries={"max_attempts": 0})
    client = botocore.session.Session().create_client("s3", endpoint_url="http://127.0.0.1:1", config=once, **access)
    client.put_object(Bucket="b", Key="k", Body=b"")


@pytest.mark.parametrize(
    ("fail", "later"),
    [
        (lambda folder: (folder / "none" / "x").write_bytes(b""), False),
        (lambda folder: folder.read_bytes(), False),
        (double_row, False),
        (refused_port, True),
        (no_database, True),
        (s3_away, True),
    ],
)
def test_what_files_databases_and_artifact_stores_raise_is_one_line(tmp_path, fail, later):
    """`later`: the same command may work a little later."""
    with (
        pytest.raises(StepError, match=r"MLflow at sqlite:///x: cannot log: .+; check that store") as caught,
        server.explained("sqlite:///x", "log"),
    ):
        fail(tmp_path)
    assert isinstance(caught.value, UnavailableError) is later
    assert "\n" not in str(caught.value)


def test_a_defect_keeps_its_traceback_and_a_user_error_its_words():
    with pytest.raises(KeyError), server.explained("sqlite:///x", "log"):
        raise KeyError("defect")
    with pytest.raises(ConfigError, match=r"^x is wrong$"), server.explained("sqlite:///x", "log"):
        raise ConfigError("x is wrong")


def test_an_interrupted_call_holds_no_lock_on_the_database(tmp_path, empty_database, monkeypatch):
    """SIGINT while rows are read: their cursor keeps SQLite's lock, and the run can be closed all the same."""
    from sqlalchemy.engine.default import DefaultExecutionContext

    database = shutil.copy(empty_database, tmp_path / "mlflow.db")
    client = server.connect(f"sqlite:///{database}")
    run = client.create_run("0").info.run_id
    finish = DefaultExecutionContext._setup_result_proxy

    def interrupted(context):
        result = finish(context)
        if "FROM runs" in context.statement:
            raise KeyboardInterrupt
        return result

    def log():
        with server.explained("x", "log"):
            client.set_tag(run, "a", "b")

    monkeypatch.setattr(DefaultExecutionContext, "_setup_result_proxy", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:  # holds the traceback, as the interpreter does until the end
        log()
    monkeypatch.undo()
    client.set_terminated(run, "KILLED")
    assert client.get_run(run).info.status == "KILLED"
    assert caught


def test_what_hides_an_interruption_is_not_told_instead():
    def log():
        with server.explained("x", "log"):
            try:
                raise KeyboardInterrupt
            finally:
                raise ValueError("cannot be closed here")

    with pytest.raises(KeyboardInterrupt):
        log()


# The run --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "typed"),
    [
        ("sqlite:///{here}/data/mlflow.db", "sqlite:///data/mlflow.db"),
        ("sqlite:////elsewhere/mlflow.db", "sqlite:////elsewhere/mlflow.db"),
        ("sqlite:///{here}-2/mlflow.db", "sqlite:///{here}-2/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_a_sqlite_file_below_the_working_folder_is_typed_by_its_path_from_there(monkeypatch, tmp_path, uri, typed):
    monkeypatch.chdir(tmp_path)
    assert server.from_here(uri.format(here=tmp_path)) == typed.format(here=tmp_path)


def test_processes_that_make_a_database_at_once_wait_for_one_another(tmp_path):
    """One that saw the tables half made would take them for those of an older MLflow, and upgrade them."""
    script = "import sys; from stylegan.tracking.connection import connect; connect(sys.argv[1]).search_experiments()"
    command = [sys.executable, "-c", script, f"sqlite:///{tmp_path}/mlflow.db"]
    makers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(maker.communicate()[1], maker.returncode) for maker in makers] == [("", 0)] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
