"""The summary at the end of a run, whatever penalties it was trained with."""

import pytest

from flows.cli.console import print_summary
from stylegan.config.file import build
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.report import Report
from stylegan.pipeline.steps import Summary
from stylegan.registry.gate import Verdict
from stylegan.registry.versions import ModelVersion

CONFIG = build({"name": "t", "data": {"source": "digits", "resolution": 8}})
POINT = {"progress/resolution": 8.0, "progress/kimg": 1.0, "time/img_per_sec": 10.0}
SCORES = {"loss/d": 1.0, "loss/g": 2.0, "scores/real": 3.0, "scores/fake": 4.0}


@pytest.mark.parametrize(
    ("penalties", "words"),
    [
        ([{"loss/r1": 0.125}], ["R1", "0.125"]),
        ([{"loss/gp": 0.125}], ["GP", "0.125"]),
        ([{"loss/gp": 0.125}, {}], ["GP", "0.125", " - "]),  # no step of the last point had one
        ([{}], ["R1", " - "]),
    ],
)
def test_the_penalty_of_the_run_has_the_column(penalties, words, capsys):
    summary = Summary(
        run_id="t-1",
        mlflow_run_id="m",
        shards=ShardSet(uri="x", fingerprint="f", num_images=9, resolutions=(8,), label_names=(), num_rejected=0),
        checkpoints=(),
        stages=tuple(POINT | SCORES | penalty for penalty in penalties),
        report=Report(protocol="p", dataset_fingerprint="f", checkpoint_uri="c", metrics={}, figures={}, skipped={}),
        version=ModelVersion(name="t", version="1", aliases=()),
        verdict=Verdict(promote=True, reasons=("first",), champion=None, challenger="1"),
        grid="g.png",
        page="r.html",
    )
    print_summary(CONFIG, summary)
    shown = capsys.readouterr().out
    assert [word for word in words if word not in shown] == [], shown
