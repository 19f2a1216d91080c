"""`stylegan doctor`: what works, what does not, and where weights are."""

import hashlib
import os

import fsspec
import pytest
from command_line import fail

from flows.cli.main import main
from stylegan.errors import StepError


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
    states = dict(line.split()[1::-1] for line in captured.out.splitlines())
    assert states == {"storage": "ok", "data": "ok", "metrics": "ok", "mlflow": "FAIL", "prefect": "ok", "ray": "ok"}
    assert "tracking.uri=http://127.0.0.1:9" in captured.out
    assert not (tmp_path / "root").exists()
