"""`stylegan doctor`: what works, what does not, and where weights are."""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import fsspec
import pytest
import torch
from command_line import fail

from flows.cli.main import main
from stylegan.errors import ConfigError, StepError

LOGIN = f"Basic {base64.b64encode(b'me:se@cret').decode()}"


def test_doctor_says_where_weights_are_and_where_they_go(capsys, write, tmp_path, monkeypatch):
    """One file is there, the others are not: each has a line; one that can be fetched is no failure."""
    from flows.cli.doctor import weight_checks
    from stylegan.config.file import load
    from stylegan.evaluation.features import public_weights as weights
    from stylegan.evaluation.features.public_weights import WeightFile

    monkeypatch.setenv("STYLEGAN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "here.pth").write_bytes(b"weights")
    sha = hashlib.sha256(b"weights").hexdigest()
    with fsspec.open("memory://doctor/vgg16.pth", "wb") as file:
        file.write(b"weights")
    for kind, url in (
        ("inception", "memory://doctor/here.pth"),
        ("vgg16", "memory://doctor/vgg16.pth"),
        ("lpips", "memory://doctor/no.pth"),
    ):
        monkeypatch.setitem(weights.KNOWN, kind, WeightFile(url.rpartition("/")[2], url, sha, 2_000_000))
    config = write(
        evaluation={"features": "inception", "metrics": ["fid", "ppl_wend"]}, registry={"gate": {"metric": "fid"}}
    )
    folder = tmp_path / "weights"
    here, fetched, gone = [check for _, check in weight_checks(load(config))]
    assert here(load(config)) == f"inception: {folder}/here.pth, 0 kB"
    assert fetched(load(config)) == (
        f"vgg16: not on this machine yet; a run downloads memory://doctor/vgg16.pth (2 MB) to {folder}/vgg16.pth"
    )
    with pytest.raises(
        StepError,
        match=rf"^lpips: .* no way to memory://doctor/no.pth; get it by other means and put it at {folder}/no.pth$",
    ):
        gone(load(config))
    assert os.listdir(folder) == ["here.pth"]
    assert "lpips weights: cannot download memory://doctor/no.pth" in fail(capsys, 2, "train", config)
    assert not list((tmp_path / "root").glob("datasets/*"))


def test_doctor_says_what_works_and_what_does_not(capsys, write, draw_images, tmp_path, monkeypatch):
    """Everything but the tracking server is there; nothing is left behind in storage."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    source = draw_images(tmp_path / "images", [f"{i}.png" for i in range(8)])
    assert main(["doctor", write(source, tracking={"uri": "http://127.0.0.1:9"})]) == 1
    captured = capsys.readouterr()
    machine, _, checks = captured.out.partition("\n\n")
    states = dict(line.split()[1::-1] for line in checks.splitlines())
    assert states == {
        "storage": "ok",
        "data": "ok",
        "device": "ok",
        "metrics": "ok",
        "mlflow": "FAIL",
        "prefect": "ok",
        "ray": "ok",
    }
    assert "tracking.uri=http://127.0.0.1:9" in captured.out
    assert not (tmp_path / "root").exists()
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in machine.splitlines())
    assert f"torch {version('torch')}" in facts["packages"]  # without the build, which may have no GPU
    assert str(tmp_path / "config.yaml") in facts["config"]
    assert facts["disk of PREFECT_HOME"].startswith(f"{tmp_path}/prefect: ")
    assert {
        "stylegan",
        "python",
        "system",
        "cpu",
        "memory",
        "disk of storage.root",
        "disk of RAY_TMPDIR",
    } <= facts.keys()


def test_facts_name_gpus_and_keep_secrets(write, tmp_path, monkeypatch):
    """Secrets in URLs are redacted; a GPU has its name and memory, a driver that torch cannot use is named."""
    from types import SimpleNamespace

    from flows.cli import doctor
    from stylegan.config.file import load
    from stylegan.training import gpus

    config = load(write(), ["name=a"])
    for module in (doctor, gpus):
        monkeypatch.setattr(module, "driver_version", lambda: "550.54")
    monkeypatch.setattr(torch.version, "cuda", None)
    config = config.model_copy(update={"name": "https://me:secret@host"})
    facts = {fact.name: fact.detail for fact in doctor.machine_facts(config)}
    assert "secret" not in str(facts)
    assert "build for CPUs and cannot use the GPU of this machine (driver 550.54)" in facts["gpu"]
    gpu = SimpleNamespace(name="Some GPU", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (70 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    facts = dict(doctor._gpus())
    assert facts["gpu 0"] == "Some GPU, 80 GiB, 70 GiB free, compute 9.0: fp32, tf32, bf16, fp16"

    used = load(
        write(
            training={"start_resolution": 4, "batch": 4},
            ray={"gpus_per_worker": 1, "stages": {4: {"gpus_per_worker": 0}}},
        )
    )
    assert re.fullmatch(
        r"from 4x4 on: 1 worker\(s\) on 1 CPU core\(s\) each, fp32: torch's own operations .*; Some GPU is unused, .*; "
        r"from 8x8 on: 1 worker\(s\) on Some GPU, fp32: .*; whole steps as CUDA graphs \(training\.cuda_graphs=auto\)",
        doctor._training(used),
    )
    shared = load(write(training={"batch": 8}, ray={"gpus_per_worker": 0.5, "workers": 2}))
    assert doctor._training(shared).endswith("; no CUDA graphs, because workers share a GPU")
    gpu.major = 7
    with pytest.raises(ConfigError, match=r"^train 8x8: training\.precision=bf16: Some GPU \(compute 7\.0\)"):
        doctor._training(load(write(training={"precision": "bf16", "batch": 4}, ray={"gpus_per_worker": 1})))
    assert dict(doctor._gpus())["gpu 0"].endswith("compute 7.0: fp32, fp16")
    assert "cuDNN 9.10.2" in facts["cuda"]
    assert "driver 550.54" in facts["cuda"]


@contextlib.contextmanager
def old_or_new_servers(mlflow_version, prefect_version):
    """Answer as an MLflow server without experiments and a Prefect server behind a login do, of any version."""
    answers = {
        "/health": (200, "OK"),
        "/version": (200, mlflow_version),
        "/api/health": (200, "true"),
        "/api/admin/version": (200, json.dumps(prefect_version)),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            code, text = answers.get(
                path, (404, '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no experiment"}')
            )
            if not path.endswith("/health") and self.headers["Authorization"] != LOGIN:
                code, text = 401, "Unauthorized"
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("mlflow_there", "prefect_there", "said"),
    [
        ("3.16.1", "3.7.8", "older than the client here"),
        ("3.18.0rc1", "4.0.0", "newer than the client here"),
        ("3.17.0", "3.8.0", None),
        ("<html>no version</html>", {"detail": "none"}, None),
    ],
)
def test_doctor_names_a_server_that_is_older_or_newer(write, monkeypatch, mlflow_there, prefect_there, said):
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from flows.cli import doctor
    from stylegan.config.file import load

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "se@cret")
    with old_or_new_servers(mlflow_there, prefect_there) as url:
        config = load(write(tracking={"uri": url}))
        login = {PREFECT_API_URL: f"{url}/api", PREFECT_API_AUTH_STRING: "me:se@cret"}
        with temporary_settings(login):
            findings = [doctor._try("mlflow", doctor._mlflow, config), doctor._try("prefect", doctor._prefect, config)]
        with temporary_settings(login | {PREFECT_API_AUTH_STRING: "me:another"}):
            refused = doctor._try("prefect", doctor._prefect, config)
    assert [(one.ok, one.warning) for one in findings] == [(True, said is not None)] * 2
    lines = [one.detail for one in findings]
    if said:
        assert lines[0].startswith(f"{url} answers, MLflow {mlflow_there}: {said}, {version('mlflow')}; ")
        assert lines[1].startswith(f"{url}/api answers, Prefect {prefect_there}: {said}, {version('prefect')}; ")
        assert ("mlflow db upgrade URL` with the URL of its database" in lines[0]) == (
            said == "older than the client here"
        )
    else:
        assert all(re.fullmatch(r"http://\S+ answers(, \w+ 3\.\d+\.0)?", line) for line in lines), lines
    assert (refused.ok, refused.warning) == (False, False)
    assert "wants another login; set PREFECT_API_AUTH_STRING" in refused.detail
