"""What MLflow shows of a run beside its numbers, in a real store."""

import pytest
from mlflow_runs import SHARDS

from stylegan.evaluation.page.run_story import Against, ComparedMetric, Setting, Story
from stylegan.evaluation.report import Report
from stylegan.tracking.open_run import open_run
from stylegan.tracking.presentation import (
    COLOURS,
    MAX_NOTE,
    colour_of,
    difference_text,
    differing,
    find_run_before,
    note_of,
    note_tags,
)
from stylegan.tracking.views import DIFFERENCE_TAG


@pytest.fixture
def start(make_config):
    """start(run_id, **sections): open the MLflow run of a config; its client and tags."""
    runs = []

    def opened(run_id, **sections):
        runs.append(open_run(make_config(**sections), run_id, SHARDS))
        return runs[-1]

    yield opened
    for run in runs:
        run.stop_system_metrics()


def tags(run):
    return run.client.get_run(run.mlflow_run_id).data.tags


def test_each_run_has_a_colour_of_its_own_that_stays():
    colours = [colour_of(f"faces-{number:010x}") for number in range(40)]
    assert set(colours) <= set(COLOURS)
    assert len(set(colours)) > 10
    assert colour_of("faces-1") == colour_of("faces-1")


def test_a_run_says_what_it_differs_in_from_the_first_of_its_name(start):
    first = start("tiny-1")
    second = start("tiny-2", training={"batch": 4, "r1_gamma": 3.0}, snapshots={"grid": 2})
    assert tags(first)[DIFFERENCE_TAG] == "the first of its name"
    told = tags(second)[DIFFERENCE_TAG]
    assert "training.r1_gamma=3.0" in told
    assert "snapshots" not in told  # what a run shows is no setting of its training
    assert tags(second)["mlflow.runColor"] == colour_of("tiny-2")
    assert tags(second)["stylegan.version"]


def test_the_run_before_is_the_last_one_of_the_same_name(start):
    one, two, three = (start(f"tiny-{number}", seed=number) for number in range(3))
    client = one.client
    assert find_run_before(client, one.mlflow_run_id) is None
    assert find_run_before(client, three.mlflow_run_id).run_id == "tiny-1"
    assert find_run_before(client, three.mlflow_run_id, first=True).run_id == "tiny-0"
    assert two.run_before().settings["seed"] == "0"


def test_differences_leave_out_where_a_run_works():
    old = {"seed": "0", "storage.root": "a", "name": "x", "model.noise": "true"}
    new = {"seed": "1", "storage.root": "b", "name": "y", "model.styles": "true"}
    assert differing(new, old) == [("seed", "0", "1"), ("model.noise", "true", None), ("model.styles", None, "true")]
    assert difference_text(differing(new, old)) == "seed=1, model.noise=none, model.styles=true"
    assert len(difference_text([("key", "a", "b" * 1000)])) == 250


def story(**more):
    metric = ComparedMetric(
        key="fid_classifier",
        value=1.0,
        other=2.0,
        interval=None,
        other_interval=None,
        outcome="better",
        words="50 % better",
    )
    return Story(
        key="k",
        headline="Version 2 of faces is champion: FID 1.000.",
        promoted=True,
        reasons=("because | it is",),
        champion=Against(
            name="the champion, version 1",
            run_id="faces-1",
            metrics=(metric,),
            settings=(Setting(key="training.r1_gamma", old="10", new="1"),),
        ),
        command="stylegan run faces.yaml",
        changed="",
        config="",
        links={"This run": "http://host/#/experiments/1/runs/2"},
        **more,
    )


def report(**metrics):
    return Report(
        protocol="p", dataset_fingerprint="f", checkpoint_uri="c", metrics=metrics, figures={"grid": "grid.png"}
    )


def test_a_note_begins_with_the_verdict_and_ends_with_the_command():
    text = note_of(story(), report(fid_classifier=1.0), "0" * 32)
    assert text.startswith("**Version 2 of faces is champion: FID 1.000.**\n")
    assert "because \\| it is" in text
    assert "| Fréchet distance (FID), classifier ↓ | 1.000 |" in text
    assert f"(get-artifact?path=figures%2Fgrid.png&run_uuid={'0' * 32})" in text
    assert "- fid_classifier: 50 % better\n- `training.r1_gamma: 10 -> 1`" in text
    assert "[This run](http://host/#/experiments/1/runs/2)" in text
    assert text.endswith("```sh\nstylegan run faces.yaml\n```")


def test_a_note_is_no_longer_than_mlflow_holds():
    many = {f"fid_{'x' * 60}{number}": 1.0 for number in range(200)}
    text = note_of(story(), report(**many), "0" * 32)
    assert len(text) <= MAX_NOTE
    assert text.endswith("```sh\nstylegan run faces.yaml\n```")


def test_a_note_that_a_person_has_written_stays(start):
    run = start("tiny-1")
    run.log_note("ours")
    run.log_note("ours again")
    assert tags(run)["mlflow.note.content"] == "ours again"
    run.client.set_tag(run.mlflow_run_id, "mlflow.note.content", "theirs")
    run.log_note("ours, later")
    assert tags(run)["mlflow.note.content"] == "theirs"


def test_a_kill_between_the_tags_of_a_note_makes_it_nobody_elses():
    first = note_tags({}, "one")
    cut = first | {name: value for name, value in note_tags(first, "two").items() if name != "mlflow.note.content"}
    assert note_tags(cut, "three")["mlflow.note.content"] == "three"


def test_a_story_is_told_once(start, tmp_path):
    run = start("tiny-1")
    page = tmp_path / "report.html"
    page.write_text("<p>told</p>")
    assert not run.tells("k")
    run.log_story("k", "the note", {"stylegan.verdict": "promoted"}, str(page))
    assert run.tells("k")
    assert tags(run)["mlflow.note.content"] == "the note"
    assert "report.html" in [file.path for file in run.client.list_artifacts(run.mlflow_run_id)]
