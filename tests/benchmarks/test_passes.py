"""Tests of the counts of what a step makes a GPU do: nothing but convolutions and our kernels passes over feature maps."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is missing: `make test-kernels` installs it beside torch's CPU build")

from benchmarks.bench import make_config
from benchmarks.passes import PRODUCTS, Count, bytes_of, count_step, main

from stylegan.training.cost import GPU_CONTEXT_GIB, stage_memory, step_flops
from stylegan.training.schedule import stages

RESOLUTION, BATCH = 64, 8
pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="launches are counted, not started: `make test-kernels`"
    ),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("lazy", [True, False])
def test_nothing_else_passes_over_feature_maps(precision: str, lazy: bool) -> None:
    """Check all parts of a step, in both players, with R1. The smallest maps, 4x4, are left to torch."""
    operations = count_step((RESOLUTION, BATCH), precision=precision, lazy=lazy, fmap_max=64).operations
    assert {operation.part for operation in operations} == {"D", "G", *(["D with R1"] if lazy else [])}
    smallest = BATCH * 64 * 8 * 8  # numbers of the maps at 8x8
    others = [
        operation
        for operation in operations
        if not operation.is_own and operation.name not in PRODUCTS and is_of_features(operation.shape, smallest)
    ]
    assert others == []


def is_of_features(shape: tuple[int, ...], smallest: int) -> bool:
    """Return whether a tensor is a feature map, not images, weights or sums of tiles."""
    is_square = len(shape) == 4 and shape[2] == shape[3]
    return is_square and shape[0] == BATCH and shape[1] > 3 and torch.Size(shape).numel() >= smallest


def test_passes_of_a_layer() -> None:
    """Check how often the finest maps are read or written, by the bytes of all kernels of the package.

    G: statistics (read), style (read, write), and in its backward pass sums (read twice), gradient (read twice, write),
    for each of two layers; after the enlarging one also the write of what it blurs.
    """
    operations = count_step((RESOLUTION, BATCH), fmap_max=64).operations
    shape = (BATCH, 64, RESOLUTION, RESOLUTION)
    size = torch.Size(shape).numel() * 2  # bytes, in bf16

    def passes(name: str, part: str) -> float:
        return sum(o.bytes for o in operations if o.part == part and o.shape == shape and o.name == name) / size

    assert passes("_epilogue_statistics_kernel", "G") == pytest.approx(1 + 2, rel=0.05)
    assert passes("_epilogue_style_kernel", "G") == pytest.approx(2 + 2, rel=0.05)
    assert passes("_epilogue_sums_kernel", "G") == pytest.approx(2 + 2, rel=0.05)
    assert passes("_epilogue_backward_kernel", "G") == pytest.approx(3 + 3, rel=0.05)


def test_products_are_those_of_the_networks() -> None:
    """Check the operations of convolutions against the count that `plan` uses."""
    found = sum(o.flops for o in count_step((RESOLUTION, BATCH), fmap_max=64).operations if o.part in ("D", "G"))
    config = make_config(RESOLUTION, 64, BATCH, {"precision": "bf16", "penalty_interval": 10**6}, device="cuda")
    assert found == pytest.approx(step_flops(config, RESOLUTION) * BATCH, rel=0.03)


@pytest.mark.parametrize(("size", "precision", "measured"), [
    ((256, 32), "bf16", 4596), ((256, 32), "tf32", 9439), ((64, 64), "bf16", 2536), ((1024, 8), "bf16", 4820)
])  # fmt: skip
def test_peak_of_memory(size: tuple[int, int], precision: str, measured: float) -> None:
    """Check the counted peak, in MiB, against what one H200 had with plain operations, and against what `plan` tells."""
    lazy = precision == "bf16"
    peak = max(count_step(size, precision=precision, lazy=lazy).peaks.values()) / 2**20
    settings = {"precision": precision} | ({"penalty_interval": 16} if lazy else {})
    config = make_config(size[0], 512, size[1], settings, device="cuda")
    told = 1024 * (stage_memory(config, stages(config)[-1]) - GPU_CONTEXT_GIB)
    assert peak == pytest.approx(measured, rel=0.1)
    assert peak == pytest.approx(told, rel=0.15)


def test_the_official_batch_at_1024_fits_40_gb() -> None:
    """Check in bf16, with an eighth left for CUDA and its libraries."""
    assert max(count_step((1024, 32)).peaks.values()) < 40e9 * 7 / 8


def test_bytes_of_a_tensor_are_those_in_memory() -> None:
    assert bytes_of(torch.zeros(2, 3)) == 24
    assert bytes_of(torch.zeros(1, 3).expand(5, 3)) == 12


def test_views_cost_nothing_and_copies_count_twice() -> None:
    count = Count()
    with count.part("p"):
        x = torch.zeros(4, 4)
        x.view(16).mul(2)
        torch.zeros(4, 4).copy_(x)
    assert [(o.name, o.bytes) for o in count.operations] == [
        ("zeros", 64), ("mul", 128), ("zeros", 64), ("copy_", 128)
    ]  # fmt: skip


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--size", "8", "4", "--fmap-max", "16", "--top", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:5]] == ["D, bf16", "D with R1, bf16", "G, bf16"]
    assert len([line for line in lines if line.endswith("GB")]) == 3
