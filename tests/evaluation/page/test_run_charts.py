"""What the page of a run shows beside its report: curves, film strip, verdict, differences, and how it was made."""

import math
import re

import pytest
from PIL import Image

from stylegan.evaluation.page.html import RunParts, render
from stylegan.evaluation.page.run_charts import film_strip, run_charts
from stylegan.evaluation.page.run_story import Against, ComparedMetric, Setting, Story
from stylegan.evaluation.page.write_page import write_page
from stylegan.evaluation.report import Report
from stylegan.images import png_bytes
from stylegan.training.samples import Frame

EVIL = "<script>alert('x')</script>&\"'"
STARTS = {8: 0, 16: 10_000}
REPORT = Report(protocol="p", dataset_fingerprint="f", checkpoint_uri="c", metrics={"fid_x": 3.0})


def row(nimg, **metrics):
    return {"nimg": nimg, "resolution": 8 if nimg <= 10_000 else 16, "metrics": metrics}


ROWS = [
    row(5_000, **{"loss/d": 0.9, "loss/g": 1.1, "time/img_per_sec": 300.0}),
    row(5_000, **{"quick/fid_x_8x8": 90.0}),
    row(10_000, **{"loss/d": 0.8, "loss/g": math.nan, "time/img_per_sec": 310.0}),
    row(15_000, **{"quick/fid_x": 60.0}),
    row(20_000, **{"quick/fid_x": 3.0}),
    row(20_000, **{"loss/d": 0.7, "loss/g": 1.3, "time/img_per_sec": 200.0}),
]
METRIC = ComparedMetric(
    key="fid_x",
    value=3.0,
    other=4.0,
    interval=(2.9, 3.1),
    other_interval=None,
    outcome="better",
    words="25 % better, chance not tested",
)
STORY = Story(
    key="k1",
    headline="Version 2 is champion.",
    promoted=True,
    reasons=("It is better.",),
    champion=Against(
        name="the champion, version 1",
        run_id="run-1",
        metrics=(METRIC,),
        settings=(Setting(key="training.r1_gamma", old="10", new="0.1"),),
    ),
    previous=Against(name="the run before it", run_id="run-0", metrics=(), settings=None),
    command="stylegan run run.yaml",
    facts={"Device": "a GPU"},
    changed="seed: 3\n",
    config="name: t\nseed: 3\n",
    links={"This run in MLflow": "http://127.0.0.1:5000/#/runs/1", "Open it": "mlflow ui"},
)


def frames(count=2, shade=9):
    png = png_bytes(Image.new("L", (8, 8), shade))
    return [Frame(resolution=8, kimg=number + 1, images=(png, png)) for number in range(count)]


def page(story=STORY, rows=ROWS, film=()):
    return render(REPORT, told=RunParts(story=story, rows=rows, starts=STARTS, film=film))


def test_quality_comes_first_with_a_curve_for_each_resolution_and_what_was_not_measured_has_no_chart():
    charts = run_charts(ROWS, STARTS)
    assert [one.heading for one in charts] == [
        "Fréchet distance (FID), quick ↓",
        "Losses",
        "Speed in images per second",
    ]
    assert [(curve.name, curve.last) for curve in charts[0].chart.curves] == [("8x8", 90.0), ("16x16", 3.0)]
    assert charts[0].description.endswith("over kimg; at the end: 8x8 90, 16x16 3.")
    assert [tick.label for tick in charts[1].chart.marks] == ["16x16"]


def test_a_quality_that_changes_by_much_has_a_logarithmic_axis():
    few = [row(nimg, **{"quick/fid_x": value}) for nimg, value in ((11_000, 4.0), (12_000, 3.0))]
    labels = [[tick.label for tick in run_charts(rows, STARTS)[0].chart.y_ticks] for rows in (ROWS, few)]
    assert labels == [["2", "5", "10", "20", "50", "100"], ["3", "3.2", "3.4", "3.6", "3.8", "4"]]


def test_a_loss_that_is_not_finite_is_a_gap_and_a_run_without_points_has_no_chart():
    (losses,) = [one.chart for one in run_charts(ROWS, STARTS) if one.heading == "Losses"]
    assert [curve.path.count("M") for curve in losses.curves] == [1, 2]
    assert run_charts([], STARTS) == []
    assert run_charts([row(1, **{"loss/d": math.nan})], STARTS) == []


def test_the_page_tells_verdict_differences_and_how_it_was_made():
    text = page(film=frames())
    places = [
        text.index(part)
        for part in (
            'class="verdict promoted"',
            "Version 2 is champion.",
            "It is better.",
            "<h2>Curves</h2>",
            "<h2>How the images grew</h2>",
            "<h2>Against the champion, version 1</h2>",
            "25 % better, chance not tested",
            "training.r1_gamma",
            "<h2>Against the run before it</h2>",
            "Its report is not at hand",
            "Its settings are not at hand",
            "<h2>How it was made</h2>",
            "stylegan run run.yaml",
        )
    ]
    assert places == sorted(places)
    assert '<a href="http://127.0.0.1:5000/#/runs/1" rel="noreferrer">' in text
    assert "<code>mlflow ui</code>" in text
    assert len(re.findall(r'alt="8x8 at \d kimg" class="sharp"', text)) == 4


@pytest.mark.parametrize(("promoted", "says"), [(True, "verdict promoted"), (False, "verdict kept")])
def test_the_verdict_has_the_colour_of_the_decision(promoted, says):
    assert f'class="{says}"' in page(STORY.model_copy(update={"promoted": promoted}))


def test_before_the_gate_there_is_no_verdict():
    text = page(Story(command="c", changed="", config=""))
    assert 'aria-label="Verdict"' not in text
    assert "stylegan-story" not in text
    assert "<h2>Curves</h2>" in text


def test_strings_of_a_story_are_never_markup_and_no_script_is_a_link():
    metric = METRIC.model_copy(update={"words": EVIL})
    other = Against(name=EVIL, run_id=EVIL, metrics=(metric,), settings=(Setting(key=EVIL, old=EVIL, new=None),))
    story = Story(
        headline=EVIL, promoted=False, reasons=(EVIL,), champion=other, command=EVIL, facts={EVIL: EVIL},
        changed=EVIL, config=EVIL, links={EVIL: "javascript:alert(1)"},
    )  # fmt: skip
    text = page(story)
    assert "<script" not in text
    assert "href=" not in text


def test_a_page_that_tells_another_story_is_written_again_and_one_that_tells_it_is_not(tmp_path):
    """The page of before the gate is replaced by that with the verdict; a repeat of the evaluation leaves that one."""
    folder, told = str(tmp_path), []

    def parts(story):
        told.append(story.key)
        return RunParts(story=story, rows=ROWS, starts=STARTS, film=[])

    def write(story, key):
        write_page(REPORT, folder, title="t", told=lambda: parts(story), key=key)
        return (tmp_path / "report.html").read_text()

    before = Story(command="c", changed="", config="")
    assert "is champion" not in write(before, "")
    with_verdict = write(STORY, STORY.key)
    assert "is champion" in with_verdict
    assert write(before, "") == write(STORY, STORY.key) == with_verdict
    other = write(STORY.model_copy(update={"key": "k2", "headline": "Kept."}), "k2")
    assert "Kept." in other
    assert told == ["", "k1", "k2"]


def test_the_images_of_a_film_are_within_the_page():
    (one,) = film_strip(frames(1))
    assert (one["resolution"], one["kimg"], one["sharp"]) == ("8x8", "1 kimg", True)
    assert [uri[:22] for uri in one["images"]] == ["data:image/png;base64,"] * 2
