"""Files of published weights are read as plain tensors or refused with a message of one line."""

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
    """Check both formats; the published files are in the older one, from before 2020.

    Half precision becomes float32, and counters are left out.
    """
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


def test_reads_files_that_were_saved_on_a_gpu(tmp_path: Path) -> None:
    """Check that tensors saved on `cuda:0`, as in the published heads of LPIPS, are read on machines without a GPU."""
    torch.save(GOOD, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    # Strings as pickle writes them.
    cpu, cuda = (b"X" + len(name).to_bytes(4, "little") + name for name in (b"cpu", b"cuda:0"))
    data = (tmp_path / "a.pth").read_bytes()
    assert data.count(cpu) == 1  # the second tensor refers to it
    assert _read(data.replace(cpu, cuda))["a.weight"].tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            GOOD | {"AuxLogits.fc.weight": torch.ones(1)},
            "'AuxLogits.fc.weight' is not part of this network; 1 such names",
        ),
        ({"a.bias": torch.zeros(2)}, "'a.weight' is missing; 1 such names"),
        (GOOD | {"a.bias": torch.zeros(3)}, r"'a.bias' has the shape \[3\], not \[2\]"),
        (GOOD | {"a.bias": torch.tensor([0.0, float("nan")])}, "'a.bias' has values that are not finite"),
        (GOOD | {"a.bias": torch.zeros(2, dtype=torch.int64)}, "'a.bias' is not a tensor of real numbers"),
        (GOOD | {"a.bias": torch.zeros(2).to_sparse()}, "'a.bias' is not a tensor of real numbers"),
        (GOOD | {"a.bias": [0.0, 0.0]}, "'a.bias' is not a tensor of real numbers"),
        (GOOD | {7: torch.ones(1), "line\nbreak" * 100: 1}, "'7' is not part of this network; 2 such names"),
        ([GOOD], "it holds a list, not a state dict"),
    ],
)
def test_refuses_other_content(content: dict, reason: str) -> None:
    """Check that the message says what is wrong with the file and what to give instead."""
    with pytest.raises(ConfigError, match=rf"^Tiny: this file does not hold its weights \({reason}\); give tiny.pth$"):
        _read(file_bytes(content))


class _Hostile:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_runs_nothing_of_the_file(tmp_path: Path) -> None:
    """Check that a pickle which would run code when it is read is refused before it does."""
    for data in (
        file_bytes(GOOD | {"act": _Hostile(tmp_path / "acted")}),
        pickle.dumps(_Hostile(tmp_path / "acted"), protocol=2),
    ):
        with pytest.raises(ConfigError, match=r"^Tiny: these \d+ bytes do not hold its weights .*; give tiny.pth$"):
            _read(data)
    assert not (tmp_path / "acted").exists()


@pytest.mark.parametrize("data", [b"", b"<!DOCTYPE html>", file_bytes(GOOD)[:-200], file_bytes(GOOD)[:700]])
def test_refuses_damaged_files_in_one_line(data: bytes) -> None:
    """Check an empty file, a web page and files that are cut short."""
    with pytest.raises(
        ConfigError, match=rf"^Tiny: these {len(data)} bytes do not hold its weights \([^\n]*\); give tiny.pth$"
    ):
        _read(data)


def test_grey_is_repeated() -> None:
    """Check that one channel becomes three equal ones and that three channels stay unchanged."""
    grey, colour = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    assert torch.equal(as_rgb(grey), torch.cat([grey] * 3, dim=1))
    assert as_rgb(colour) is colour
