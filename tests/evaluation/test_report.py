"""The record of an evaluation: its way through JSON, and its values for people."""

import json
import math
import runpy
from collections.abc import Callable
from typing import Any

import pytest

from stylegan.evaluation import protocol as protocol_module
from stylegan.evaluation import report as report_module
from stylegan.evaluation.features import embedded as features_module
from stylegan.evaluation.report import Report


@pytest.fixture
def report() -> Callable[..., Report]:
    """Return `report(**fields)`, which makes a report with some fields."""

    def make(**fields: Any) -> Report:
        return Report(**({"protocol": "p", "dataset_fingerprint": "f", "checkpoint_uri": "c", "metrics": {}} | fields))

    return make


def test_numbers_that_are_not_finite_survive_json(report: Callable[..., Report]) -> None:
    """Both ways of writing a report (storage and registry) write JSON that every reader accepts."""
    metrics = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1 / 3}
    found = report(
        metrics=metrics, intervals={"a": (math.nan, math.inf)}, curves={"truncation": [{"psi": 0.5, "fid": math.nan}]}
    )
    assert found.model_dump()["metrics"] == metrics
    for text in (found.model_dump_json(), json.dumps(found.model_dump(mode="json"), allow_nan=False)):
        assert json.loads(text, parse_constant=pytest.fail)["metrics"] == {
            "a": "NaN",
            "b": "Infinity",
            "c": "-Infinity",
            "d": 1 / 3,
        }
        for again in (Report.model_validate_json(text), Report.model_validate(json.loads(text))):
            assert repr(again) == repr(found)


def test_a_report_of_an_earlier_version_still_loads() -> None:
    old = {
        "protocol": "p",
        "dataset_fingerprint": "f",
        "checkpoint_uri": "c",
        "metrics": {"fid_classifier": 1.0},
        "figures": {},
        "skipped": {},
    }
    found = Report.model_validate(old)
    assert (found.intervals, found.protocols, found.curves, found.attributes, found.settings) == ({}, {}, {}, {}, {})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the module is imported already
def test_the_version_of_an_evaluation_follows_metrics_and_features(monkeypatch: pytest.MonkeyPatch) -> None:
    assert report_module.EVALUATION_VERSION == (protocol_module.PROTOCOL_VERSION, features_module.FEATURES_VERSION)
    monkeypatch.setattr(features_module, "FEATURES_VERSION", 1000)
    assert runpy.run_module("stylegan.evaluation.report")["EVALUATION_VERSION"] == (
        protocol_module.PROTOCOL_VERSION,
        1000,
    )
