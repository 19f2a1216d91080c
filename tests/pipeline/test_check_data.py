"""Images that a run cannot use are refused before anything is written."""

import pytest

from stylegan.config.file import build
from stylegan.errors import ConfigError
from stylegan.pipeline.check_data import check_data

TREE = {"name": "t", "data": {"source": "digits", "resolution": 32}, "training": {"start_resolution": 8}}


@pytest.mark.parametrize("change", [{"model": {"conditional": True}}, {"snapshots": {"probe_kimg": 10}}])
def test_what_needs_labels_is_refused_before_anything_is_written(change):
    config = build(TREE | change | {"evaluation": {"features": "rotation", "metrics": ["fid"]}})
    check_data(config, 1000, ("a", "b"))
    with pytest.raises(
        ConfigError, match=r"needs labels, but data.source=digits has none; put the images in class folders"
    ):
        check_data(config, 1000, ())


@pytest.mark.parametrize("change", [{"model": {"conditional": True}}, {"snapshots": {"probe_kimg": 10}}])
def test_attributes_are_no_classes(change):
    """They serve the evaluation; where classes are needed the line says so, elsewhere such data are as good as unlabelled ones."""
    config = build(TREE | change | {"evaluation": {"features": "rotation", "metrics": ["fid"]}})
    with pytest.raises(
        ConfigError, match=r"has attributes only \(2\), which serve evaluation; put the images in class folders"
    ):
        check_data(config, 1000, (), ("smiling", "hat"))
    check_data(build(TREE | {"evaluation": {"features": "rotation", "metrics": ["fid"]}}), 1000, (), ("smiling", "hat"))
    with pytest.raises(ConfigError, match=r"evaluation\.features=classifier: needs class labels"):
        check_data(build(TREE), 1000, (), ("smiling", "hat"))


def test_quick_metrics_need_their_network_too():
    """No metric at the end, one while training: without labels there is no classifier."""
    quiet = {"evaluation": {"metrics": []}}
    check_data(build(TREE | quiet), 1000, ())
    with pytest.raises(ConfigError, match=r"evaluation\.features=classifier: needs class labels"):
        check_data(build(TREE | quiet | {"snapshots": {"metrics_kimg": 10}}), 1000, ())
