"""The forgetting curves of runs: how they are read, and the picture of runs side by side."""

from types import SimpleNamespace

import pytest

from stylegan.verbs.forgetting import compared_picture, is_probed, limits_of, read_layers


def row(kimg, **metrics):
    return {"nimg": int(kimg * 1000), "resolution": 32, "metrics": metrics}


def probed(kimg, last, *blocks):
    numbered = {f"probe/accuracy/block{number}": value for number, value in enumerate(blocks, start=1)}
    return row(kimg, **{"loss/d": 1.0, "probe/accuracy": last} | numbered)


def run(label, *rows):
    return SimpleNamespace(label=label, rows=list(rows))


def test_layers_are_read_in_the_order_of_d_and_points_without_a_probe_left_out():
    blocks = [0.1 * number for number in range(1, 12)]
    layers = read_layers([row(0.5, **{"loss/d": 1.0}), probed(1, 0.5, *blocks), probed(2, 0.4, 0.2)])
    assert list(layers) == ["last features", *(f"block {number}" for number in range(1, 12))]
    assert layers["last features"] == [(1.0, 0.5), (2.0, 0.4)]
    assert layers["block 1"] == [(1.0, 0.1), (2.0, 0.2)]
    assert limits_of(layers.values()) == (0.1, pytest.approx(1.1))


def test_a_picture_has_a_chart_for_each_layer_of_any_run():
    """One run was probed by its last features only, as before there were others, and one not at all."""
    runs = [run("a", probed(1, 0.5, 0.4, 0.3), probed(2, 0.5, 0.4, 0.3)), run("b", probed(1, 0.4)), run("c", row(1))]
    assert compared_picture(runs).size == (2 * (3 * 400 + 28), 2 * 335)
    assert compared_picture(runs[1:]).size == (2 * (400 + 28), 2 * 335)


def test_runs_that_were_not_probed_have_no_picture():
    assert compared_picture([run("a", row(1)), run("b")]) is None
    assert not is_probed([run("a", row(1)), run("b")])
    assert is_probed([run("a", row(1)), run("b", probed(1, 0.5))])
