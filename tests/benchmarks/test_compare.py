"""Comparison of tensors with the yardstick."""

import pytest
import torch
from benchmarks.compare import assert_near, deviations


def test_a_tensor_that_is_off_is_named_with_its_distance() -> None:
    """Check that deviations are relative to the norm of the whole tensor, and that None counts as zeros."""
    plain = {"a": torch.full((4,), 2.0), "b": torch.ones(3), "none": None, "zero": torch.zeros(2)}
    ours = plain | {"a": plain["a"] * 1.001, "none": torch.zeros(3), "zero": None}
    assert deviations(ours, plain, allowed=0.002) == []
    with pytest.raises(
        AssertionError, match=r"^1 of 4 tensors differ:\na: off by 0\.001 of its norm 4; allowed is 1e-05"
    ):
        assert_near(ours, plain, allowed=1e-5)


@pytest.mark.parametrize("value", [torch.tensor([1.0, float("nan")]), torch.zeros(2), None])
def test_nan_zeros_and_none_are_off(value: torch.Tensor | None) -> None:
    assert len(deviations({"a": value}, {"a": torch.ones(2)}, allowed=0.5)) == 1


def test_names_must_be_the_same() -> None:
    assert deviations({"a": None}, {"b": None}, allowed=1) == ["a: only in one of the two", "b: only in one of the two"]
