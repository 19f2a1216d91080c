"""Serving on real engines: an alias that moves under load, a registry that goes away, MLflow's own server, Ray Serve."""

import base64
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from mlflow_site import SHARDS, serving
from PIL import Image
from served_models import write_model

from stylegan.config.file import load
from stylegan.drawing.draw import draw
from stylegan.evaluation.report import Report
from stylegan.registry import versions
from stylegan.tracking.connection import connect, resolve_uri
from stylegan.training.state import load_model

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
REQUESTS, CLIENTS = 2000, 8


@pytest.fixture
def write_config(tmp_path):
    """write_config(tracking_uri): the config of a model `digits`, as a file."""

    def write(uri=None):
        tree = {
            "name": "digits",
            "storage": {"root": str(tmp_path / "root")},
            "data": {"source": "digits", "resolution": 32},
            "training": {"start_resolution": 8, "batch": 4},
        }
        path = tmp_path / "digits.yaml"
        path.write_text(yaml.safe_dump(tree | ({"tracking": {"uri": uri}} if uri else {})))
        return path

    return write


def register(path, root, seed):
    """Register a model with random weights, and return its checkpoint's folder."""
    config = load(path)
    client = connect(resolve_uri(config))
    experiment = client.get_experiment_by_name("serving")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("serving")
    found = write_model(root / f"checkpoint-{seed}", seed=seed, resolution=32)
    report = Report(
        protocol="p1",
        dataset_fingerprint="f1",
        checkpoint_uri=found.checkpoint_uri,
        metrics={"fid_classifier": 1.0},
        figures={},
        skipped={},
    )
    versions.register(
        config,
        mlflow_run_id=client.create_run(experiment_id).info.run_id,
        checkpoint=found.checkpoint_uri,
        shards=SHARDS,
        report=report,
        key=f"k{seed}",
    )
    return found.checkpoint_uri


@contextmanager
def started(command, folder, **environment):
    """Start a server in a session of its own; yield its process. Its output is in `folder`."""
    with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
        process = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=err, start_new_session=True, env=os.environ | environment
        )
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):  # it has ended by itself
            for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                one.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(ready, seconds=120.0):
    """Wait until `ready()` is true; return how long it took."""
    begun = time.monotonic()
    while not ready():
        assert time.monotonic() - begun < seconds
        time.sleep(0.2)
    return time.monotonic() - begun


def ask(url, path, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}{path}", headers=headers), timeout=60) as answer:
            return answer.read()
    except (urllib.error.URLError, OSError):
        return None


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def server_of(path, folder, model="digits@champion"):
    """Run `stylegan serve`; yield its URL and its process."""
    folder.mkdir()
    command = [sys.executable, "-m", "flows.cli.main", "serve", model, "--config", str(path), "--port", "0", "--json"]
    with started(command, folder) as process:
        wait_for(lambda: (folder / "stdout").read_text() or process.poll() is not None)
        yield json.loads((folder / "stdout").read_text())["url"], process


class Load:
    """Clients that ask for one picture after the other, each a different one, until they are told to stop."""

    def __init__(self, url, expected):
        self.address, self.expected = url.removeprefix("http://").strip("/"), expected
        self.lock, self.next, self.more = threading.Lock(), 0, True
        self.seconds, self.versions, self.wrong = [], [], []
        self.threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _client(self):
        connection = http.client.HTTPConnection(self.address, timeout=60)
        while self.more:
            with self.lock:
                seed, self.next = self.next, self.next + 1
            begun = time.monotonic()
            try:
                connection.request("GET", f"/image.png?seed={seed}")
                answer = connection.getresponse()
                data, version = answer.read(), answer.getheader("X-Model-Version")
                status = answer.status
            except OSError as error:
                status, data, version = repr(error), b"", None
                connection.close()
            self.seconds.append(time.monotonic() - begun)
            self.versions.append(version)
            if status != 200 or (seed % 40 == 0 and not self.expected(version, seed, data)):
                self.wrong.append((seed, status, version))

    def end(self):
        self.more = False
        for thread in self.threads:
            thread.join()
        assert self.wrong == []
        return np.percentile(self.seconds, [50, 95]) * 1000


def test_a_promotion_and_a_rollback_under_load_drop_no_request(tmp_path, write_config, capsys):
    """8 clients; every 40th picture is compared with that of its version. The registry goes away at the end."""
    folder = tmp_path / "mlflow"
    folder.mkdir()
    with serving(f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts")) as uri:
        path = write_config(uri)
        config = load(path)
        generators = {str(seed): load_model(register(path, tmp_path, seed))[0] for seed in (1, 2)}
        versions.promote(uri, "digits", "1")

        def expected(version, seed, data):
            image = draw(generators[version], [seed], labels=[0])[0]
            return (np.array(Image.open(io.BytesIO(data))) == image.permute(1, 2, 0).numpy()).all()

        with server_of(path, tmp_path / "server") as (url, process):
            told = json.loads(ask(url, "model"))
            assert (told["name"], told["version"], told["alias"]) == ("digits", "1", "champion")
            program = psutil.Process(process.pid).children()[0]
            load_test = Load(url, expected)
            wait_for(lambda: load_test.next >= REQUESTS // 4)
            before = program.memory_info().rss
            versions.promote(uri, "digits", "2")
            promotion = wait_for(lambda: load_test.versions[-1] == "2")
            wait_for(lambda: load_test.next >= REQUESTS)
            middle = program.memory_info().rss
            versions.rollback(uri, "digits")
            rollback = wait_for(lambda: load_test.versions[-1] == "1")
            wait_for(lambda: load_test.next >= 2 * REQUESTS)
            after = program.memory_info().rss
            p50, p95 = load_test.end()
            with capsys.disabled():
                print(
                    f"\n{len(load_test.seconds)} requests of {CLIENTS} clients: p50 {p50:.0f} ms, p95 {p95:.0f} ms; promotion served "
                    f"after {promotion:.0f} s, rollback after {rollback:.0f} s; memory {before >> 20}, {middle >> 20}, {after >> 20} MiB"
                )
            assert promotion < 60
            assert rollback < 60
            assert set(load_test.versions) == {"1", "2"}
            assert after - middle < 20 * 2**20
            server = urllib.request.urlopen(f"{uri}/health")
            server.close()
            assert json.loads(ask(url, "ready"))["trouble"] is None
            url_of_server, running = url, process

            # The registry goes away: the model stays, and says so.
            for one in psutil.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN and one.laddr.port == int(uri.rpartition(":")[2]):
                    psutil.Process(one.pid).suspend()
                    stopped = psutil.Process(one.pid)
            try:
                wait_for(lambda: json.loads(ask(url_of_server, "ready"))["trouble"], 90)
                told = json.loads(ask(url, "version"))
                assert "does not answer" in told["trouble"]
                assert ask(url, "image.png?seed=77777").startswith(b"\x89PNG")
            finally:
                stopped.resume()
            wait_for(lambda: json.loads(ask(url_of_server, "ready"))["trouble"] is None, 90)
            assert running.poll() is None
            assert config.model_name == "digits"


def test_mlflows_own_server_answers_with_arrays_and_with_pngs(tmp_path, write_config, empty_database):
    path = write_config()
    (tmp_path / "root").mkdir()
    shutil.copy(empty_database, tmp_path / "root" / "mlflow.db")
    uri = resolve_uri(load(path))
    register(path, tmp_path, 1)
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        "models:/digits@challenger",
        "--env-manager",
        "local",
    ]
    folder = tmp_path / "server"
    folder.mkdir()
    url = f"http://127.0.0.1:{port}/"

    def invoke(**more):
        body = {"dataframe_records": [{"seed": 7, "label": 1}, {"seed": 8, "label": 2}]} | more
        request = urllib.request.Request(
            f"{url}invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["predictions"]

    path_of_programs = (
        f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in an activated environment: it starts uvicorn
    )
    with started([*command, "--port", str(port)], folder, MLFLOW_TRACKING_URI=uri, PATH=path_of_programs) as process:
        wait_for(lambda: ask(url, "health") is not None or process.poll() is not None)
        assert process.poll() is None, (folder / "stderr").read_text()[-2000:]
        arrays = np.array(invoke())
        texts = invoke(params={"encoding": "png"})
        assert arrays.shape == (2, 32, 32, 3)
        for array, text in zip(arrays, texts, strict=True):
            np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(text)))), array)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            invoke(params={"encoding": "gif"})
        assert invoke(params={"truncation_psi": 0.5, "encoding": "png"}) != texts


def test_ray_serve_deploys_replicas_that_follow_the_alias(tmp_path, write_config, empty_database):
    """infra/serve.yaml itself, with another model, a free port and less of a processor, on a Ray of its own."""
    path = write_config()
    (tmp_path / "root").mkdir()
    shutil.copy(empty_database, tmp_path / "root" / "mlflow.db")
    uri = resolve_uri(load(path))
    generators = {str(seed): load_model(register(path, tmp_path, seed))[0] for seed in (1, 2)}
    versions.promote(uri, "digits", "1")
    port, token = free_port(), "correct-horse-battery"
    tree = yaml.safe_load((ROOT / "infra" / "serve.yaml").read_text())
    tree["http_options"] |= {"host": "127.0.0.1", "port": port}
    tree["applications"][0]["args"] = {"model": "digits@champion", "config": str(path), "device": "cpu"}
    tree["applications"][0]["deployments"][0]["ray_actor_options"] = {"num_cpus": 0.5}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(tree))
    folder = tmp_path / "server"
    folder.mkdir()
    url, key = f"http://127.0.0.1:{port}/", {"Authorization": f"Bearer {token}"}
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(tmp_path / "serve.yaml")]
    settings = {
        "PYTHONPATH": str(ROOT),
        "STYLEGAN_SERVE_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "local",
    }

    def version():
        request = urllib.request.Request(f"{url}image.png?seed=7", headers=key)
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = answer.headers["X-Model-Version"]
            image = np.array(Image.open(io.BytesIO(answer.read())))
        expected = draw(generators[found], [7], labels=[0])[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(image, expected)
        return found

    with started(command, folder, **settings) as process:
        wait_for(lambda: ask(url, "model", **key) is not None or process.poll() is not None, 180)
        assert process.poll() is None, (folder / "stderr").read_text()[-3000:]
        replicas = [
            one
            for one in psutil.process_iter()
            if one.name().startswith("ray::ServeRepl") and token in str(one.environ())
        ]
        assert len(replicas) == 2
        assert ask(url, "model") is None  # 401
        assert json.loads(ask(url, "model", **key))["projection"] is False
        assert {version() for _ in range(10)} == {"1"}
        versions.promote(uri, "digits", "2")
        wait_for(lambda: {version() for _ in range(20)} == {"2"}, 60)
