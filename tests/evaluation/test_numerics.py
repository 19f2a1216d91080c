"""Named random streams and exact arithmetic."""

import torch

from stylegan.evaluation.numerics import exact_float32, stream


def test_a_stream_depends_on_its_name_alone() -> None:
    torch.manual_seed(5)
    first = torch.randn(4, generator=stream(1, "fid", 0))
    torch.manual_seed(6)
    assert torch.equal(first, torch.randn(4, generator=stream(1, "fid", 0)))


def test_streams_of_other_names_differ() -> None:
    keys = [(1, "fid", 0), (1, "fid", 1), (2, "fid", 0), (1, "ppl", 0), (1, "fid0"), ("1", "fid", 0)]
    assert len({stream(*key).initial_seed() for key in keys}) == len(keys)


def test_exact_arithmetic_ends_with_the_block() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
            assert torch.backends.cudnn.deterministic
        assert torch.get_float32_matmul_precision() == "high"
        assert not torch.backends.cudnn.deterministic
    finally:
        torch.set_float32_matmul_precision("highest")
