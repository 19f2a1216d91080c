"""An evaluation on the terminal."""

import re

import pytest

from flows.cli.reports import print_metrics, print_report
from stylegan.evaluation.page.published import Comparison, compare
from stylegan.evaluation.report import Report

REPORT = Report(
    protocol="whole",
    dataset_fingerprint="f",
    checkpoint_uri="c",
    metrics={"separability_w_classifier": 1.0, "recall_classifier": 0.013, "fid_classifier": 2.06},
    intervals={"fid_classifier": (1.9, 2.2)},
    protocols={"fid_classifier": "p1", "recall_classifier": "p2", "separability_w_classifier": "p3"},
    skipped={"is_[red]": "no [labels]"},
    curves={"truncation": [{"psi": 0.5, "fid": 3.0}]},
)


@pytest.mark.parametrize("columns", ["80", "120"])
def test_metrics_are_a_table_that_fits_and_a_legend(columns, capsys, monkeypatch):
    """No line of table and legend is broken at 80 columns: values, keys and meanings stay whole."""
    monkeypatch.setenv("COLUMNS", columns)
    print_metrics(REPORT, "evaluation")
    lines = [" ".join(re.split(r"\s+", line)).strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == "metric value 95 % interval key"
    assert lines[3:8] == [
        "Fréchet distance (FID) ↓ 2.060 1.900 to 2.200 fid_classifier",
        "Recall ↑ 0.013 recall_classifier",
        "Separability in W ↓ 1.000 separability_w_classifier",
        "warning Recall is 0.013: the images have few varieties, the same few again and again (mode collapse).",
        "skipped is_[red]: no [labels]",
    ]
    assert "Recall Share of the real images that the model can draw" in lines
    assert lines[-1] == "protocols fid p1, recall p2, separability_w p3"


def test_published_figures_that_do_not_compare_are_one_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    published = compare(REPORT)
    print_report(REPORT, title="t", published=published, page="r.html")
    shown = capsys.readouterr().out
    assert f"{len(published)} published figures do not compare: other network, other settings" in shown
    assert "published for" not in shown
    assert "ψ" in shown

    same = Comparison(published[0].published, "fid_inception", 4.5, (4.4, 4.6), ())
    print_report(REPORT, title="t", published=[same], page="r.html")
    shown = capsys.readouterr().out
    assert re.search(r"FFHQ 1024 +4.4 +4.500", shown)
    assert "do not compare" not in shown
    assert shown.splitlines()[-1] == "report      r.html"
