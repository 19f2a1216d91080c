"""Files of published weights are read as plain tensors or refused in one line."""

import pickle
from pathlib import Path

import pytest
import torch
from public_weights import file_bytes

from stylegan.errors import ConfigError
from stylegan.networks.pretrained import as_rgb, read_state

SHAPES = {"a.weight": (2, 3), "a.bias": (2,)}
GOOD = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}


def _read(data: bytes) -> dict[str, torch.Tensor]:
    return read_state(data, SHAPES, network="Tiny", cure="give tiny.pth", optional=["a.count"])


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_both_formats_of_pytorch(zipped: bool, tmp_path: Path) -> None:
    """The published files are in the format from before 2020; half precision becomes float32, counters are left out."""
    torch.save(
        GOOD | {"a.bias": torch.ones(2).half(), "a.count": torch.tensor(5)},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=zipped,
    )
    state = _read((tmp_path / "a.pth").read_bytes())
    assert {name: (value.dtype, value.tolist()) for name, value in state.items()} == {
        "a.weight": (torch.float32, [[1.0] * 3] * 2),
        "a.bias": (torch.float32, [1.0] * 2),
    }


def test_reads_what_was_saved_on_a_gpu(tmp_path: Path) -> None:
    """The published heads of LPIPS name `cuda:0` as the place of their tensors; they are read on machines without a GPU."""
    torch.save(GOOD, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    cpu, cuda = (
        b"X" + len(name).to_bytes(4, "little") + name for name in (b"cpu", b"cuda:0")
    )  # as pickle writes strings
    data = (tmp_path / "a.pth").read_bytes()
    assert data.count(cpu) == 1  # the second tensor refers to it
    assert _read(data.replace(cpu, cuda))["a.weight"].tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            GOOD | {"AuxLogits.fc.weight": torch.ones(1)},
            "'AuxLogits.fc.weight' is no part of this network; 1 such names",
        ),
        ({"a.bias": torch.zeros(2)}, "'a.weight' is missing; 1 such names"),
        (GOOD | {"a.bias": torch.zeros(3)}, r"'a.bias' has the shape \[3\], not \[2\]"),
        (GOOD | {"a.bias": torch.tensor([0.0, float("nan")])}, "'a.bias' has values that are not finite"),
        (GOOD | {"a.bias": torch.zeros(2, dtype=torch.int64)}, "'a.bias' is no tensor of real numbers"),
        (GOOD | {"a.bias": torch.zeros(2).to_sparse()}, "'a.bias' is no tensor of real numbers"),
        (GOOD | {"a.bias": [0.0, 0.0]}, "'a.bias' is no tensor of real numbers"),
        (GOOD | {7: torch.ones(1), "line\nbreak" * 100: 1}, "'7' is no part of this network; 2 such names"),
        ([GOOD], "it holds a list, not a state dict"),
    ],
)
def test_refuses_other_content(content: dict, reason: str) -> None:
    """The message says what is wrong with it and what to give instead."""
    with pytest.raises(ConfigError, match=rf"^Tiny: this file does not hold its weights \({reason}\); give tiny.pth$"):
        _read(file_bytes(content))


class _Act:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_runs_nothing_of_the_file(tmp_path: Path) -> None:
    """A pickle that acts when it is read is refused before it acts."""
    for data in (
        file_bytes(GOOD | {"act": _Act(tmp_path / "acted")}),
        pickle.dumps(_Act(tmp_path / "acted"), protocol=2),
    ):
        with pytest.raises(ConfigError, match=r"^Tiny: these \d+ bytes do not hold its weights .*; give tiny.pth$"):
            _read(data)
    assert not (tmp_path / "acted").exists()


@pytest.mark.parametrize("data", [b"", b"<!DOCTYPE html>", file_bytes(GOOD)[:-200], file_bytes(GOOD)[:700]])
def test_refuses_damaged_files_in_one_line(data: bytes) -> None:
    """Nothing, a web page, and a file that is cut short."""
    with pytest.raises(
        ConfigError, match=rf"^Tiny: these {len(data)} bytes do not hold its weights \([^\n]*\); give tiny.pth$"
    ):
        _read(data)


def test_grey_is_repeated() -> None:
    """One channel becomes three equal ones; three stay."""
    grey, colour = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    assert torch.equal(as_rgb(grey), torch.cat([grey] * 3, dim=1))
    assert as_rgb(colour) is colour
