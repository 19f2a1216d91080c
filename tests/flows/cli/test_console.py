"""The summary at the end of a run, whatever penalties it was trained with, and progress on a terminal."""

import io
import logging
import re

import pytest
from rich.console import Console

from flows.cli.console import Handler, print_summary
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


def show(handler, text="", *, progress=None, whole=None):
    """Send a record to the handler as the library does."""
    record = logging.makeLogRecord({"msg": text, "levelno": logging.INFO, "progress": progress, "whole": whole})
    handler.emit(record)


def test_progress_on_a_terminal_is_a_bar_for_the_work_and_one_for_the_whole_run():
    """At 80 columns both fit, the whole run is the last one, and what is done stays as a line."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    handler, name = Handler(console), "train 1024x1024 (9 of 9)"
    show(handler, whole=(0.2, "step 2 of 13, about 3.5 d left"))
    text = "4,000,000 of 16,000,000 img, 210 img/s, 1.5 d left, D 1.386, G 0.693"
    show(handler, progress=(name, 4, 16, text), whole=(0.3, "step 2 of 13, about 3.5 d left"))
    paper = Console(file=io.StringIO(), width=80)
    paper.print(handler.bars.get_renderable())
    lines = paper.file.getvalue().splitlines()
    assert [line[: len(name)].strip() for line in lines] == [name, "whole run"]
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].rstrip().endswith("4,000,000 of 16,000,000 img, 210 img/s")
    assert lines[1].rstrip().endswith("step 2 of 13, about 3.5 d left")
    show(handler, progress=(name, 16, 16, "16 of 16 img, done, D 1.386"), whole=(0.9, "step 2 of 13"))
    assert f"{name}: 16 of 16 img, done, D 1.386" in console.file.getvalue()
    assert list(handler.tasks) == ["whole run"]
    show(handler, whole=None)
    assert handler.bars is None


def test_work_that_is_interrupted_stays_as_a_line():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    handler = Handler(console)
    show(handler, progress=("train 8x8", 4, 16, "4 of 16 img, D 1.386"), whole=(0.2, "step 2 of 4"))
    handler.close()
    assert re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue()).endswith("train 8x8: 4 of 16 img, D 1.386\n")


def test_without_a_terminal_there_are_lines():
    console = Console(file=io.StringIO(), width=80)
    show(
        Handler(console),
        "train 8x8: 4 of 16 img; whole run about 4 min left",
        progress=("train 8x8", 4, 16, "4 of 16 img"),
    )
    assert console.file.getvalue() == "train 8x8: 4 of 16 img; whole run about 4 min left\n"
