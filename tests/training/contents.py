"""What stages left in storage, for comparison."""

from pathlib import Path

import torch

from stylegan.training.curves import read_rows


def training_state(uri):
    """All that a checkpoint holds."""
    return torch.load(Path(uri, "training.pt"), weights_only=True)


def assert_same(one, other, path=""):
    """Two saved states are equal to the last bit."""
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
    """The points of a stage without the clock's metrics."""
    rows = read_rows(f"{uri}/stats.jsonl")
    return [(row["nimg"], {k: v for k, v in row["metrics"].items() if not k.startswith("time/")}) for row in rows]


def pictures(uri):
    """The bytes of the sample grids by name."""
    return {path.name: path.read_bytes() for path in Path(uri, "samples").iterdir()}
