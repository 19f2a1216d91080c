"""No password, token or signature reaches what a run stores, prints, logs or tracks."""

import base64
import functools
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

CANARY = "CaNaRy7x"  # base64 of `me:CANARY` must not appear either
LOGIN = ("me", CANARY)


@pytest.fixture
def mlflow_server(tmp_path):
    """Run a real MLflow server that asks for a login, and yield its URL."""
    script = Path(__file__).with_name("mlflow_with_login.py")
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen([sys.executable, script, tmp_path, *LOGIN], stdout=subprocess.PIPE, stderr=log)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def image_server(tmp_path, draw_images):
    """Serve eight images and a broken one by HTTP, and yield the URL."""
    folder = draw_images(tmp_path / "images", [f"{i}.png" for i in range(8)])
    (folder / "broken.png").write_bytes(b"no image")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def files_with_the_canary(*folders: Path) -> list[str]:
    """Return the files that contain the canary, as text or as a header of a request."""
    needles = [CANARY.encode(), base64.b64encode(":".join(LOGIN).encode())]
    files = [path for folder in folders for path in ([folder] if folder.is_file() else folder.rglob("*"))]
    return [str(path) for path in files if path.is_file() and any(needle in path.read_bytes() for needle in needles)]


@pytest.mark.long
def test_a_run_with_secrets_in_every_legal_place_stores_none(tmp_path, make_place, mlflow_server, image_server):
    """The login to MLflow is in the environment, signed URLs are in a list; some of them do not work."""
    urls = [f"{image_server}/{i}.png?X-Amz-Signature={CANARY}&sig={CANARY}&n={i}" for i in range(8)]
    urls += [f"{image_server}/{name}.png?token={CANARY}" for name in ("broken", "missing")]
    place = make_place(
        data={"source": str(tmp_path / "list.txt"), "resolution": 4, "max_rejected": 2},
        model={"latent_size": 4, "mapping_layers": 1, "mapping_fmaps": 4, "fmap_base": 16, "fmap_max": 4},
        training={"start_resolution": 4, "stable_kimg": 0.016, "batch": 8},
        snapshots={"grid": 2},
        evaluation={"metrics": []},
        tracking={"uri": mlflow_server},
    )
    (tmp_path / "list.txt").write_text("\n".join(urls) + "\n")
    ray = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: Ray makes sockets in it
    place.env |= {
        "MLFLOW_TRACKING_USERNAME": LOGIN[0],
        "MLFLOW_TRACKING_PASSWORD": LOGIN[1],
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "RAY_TMPDIR": str(ray),
        "STYLEGAN_CACHE": str(tmp_path / "cache"),
    }
    try:
        output = place.run("run", str(place.config))
        assert files_with_the_canary(tmp_path / "list.txt") == [str(tmp_path / "list.txt")]  # the search works
        assert "model       tiny version 1" in output
        assert (
            files_with_the_canary(place.folder, tmp_path / "cache", ray, tmp_path / "mlflow.db", tmp_path / "artifacts")
            == []
        )

        # A wrong login is one line, before any work.
        place.env["MLFLOW_TRACKING_PASSWORD"] = f"{CANARY}-wrong"
        place.run("run", str(place.config), "--set", "name=other", code=1)
        assert "You are not authenticated" in place.errors()
        assert files_with_the_canary(place.folder) == []
    finally:
        shutil.rmtree(ray, ignore_errors=True)
    assert "Traceback" not in place.errors()
    assert os.path.exists(place.folder / "prefect" / "prefect.db")
