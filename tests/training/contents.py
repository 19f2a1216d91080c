"""Helpers that read what stages left in storage and compare it, and one that kills a stage."""

from pathlib import Path

import pytest
import torch

from stylegan import storage
from stylegan.training.curves import read_rows
from stylegan.training.loop import train_stage


def training_state(uri):
    """Read the training state of a checkpoint."""
    return torch.load(Path(uri, "training.pt"), weights_only=True)


def assert_same(one, other, path=""):
    """Assert that two saved states are equal to the last bit."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{path}/{number}")
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{path}: {text}")
    else:
        assert one == other, path


def curves(uri):
    """Read the points of a stage, without the metrics of time."""
    rows = read_rows(f"{uri}/stats.jsonl")
    return [(row["nimg"], {k: v for k, v in row["metrics"].items() if not k.startswith("time/")}) for row in rows]


def pictures(uri):
    """Read the files of the sample grids, by name."""
    return {path.name: path.read_bytes() for path in Path(uri, "samples").iterdir()}


def train_killed(job, monkeypatch, device="cpu", after=2):
    """Train a stage and kill it when its second checkpoint, or that of another number, is complete, before the next image."""
    write, written = storage.write_json, []

    def die_after_some(uri, content):
        write(uri, content)
        written.append(uri)
        if len(written) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", die_after_some)
        with pytest.raises(KeyboardInterrupt):
            train_stage(job, device=device)
