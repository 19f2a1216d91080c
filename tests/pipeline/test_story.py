"""The story of a run: verdict, differences to other runs by the gate's own function, and how it was made."""

import json

import pytest

from stylegan import storage
from stylegan.config.file import build, dump
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.evaluation.report import Report
from stylegan.pipeline.run import Run
from stylegan.pipeline.story import hours_by_stage, parts_of, story_key, tell
from stylegan.registry.gate import Verdict
from stylegan.tracking.presentation import EarlierRun

VERDICT = Verdict(promote=True, reasons=("It is better.",), champion="1", challenger="2")


@pytest.fixture
def make_run(tmp_path):
    """make_run(**training): a trained run of 4x4 images with curves; and its report, with an FID of `fid`."""

    def make(fid=5.0, *, protocol="p", gpus=None, **training):
        tree = {
            "name": "t",
            "storage": {"root": str(tmp_path / "root")},
            "data": {"source": "digits", "resolution": 4, "channels": 1},
            "training": {"start_resolution": 4, "batch": 8, "stable_kimg": 4} | training,
            "evaluation": {"num_images": 10},
        }
        config = build(tree | ({"ray": {"gpus_per_worker": gpus}} if gpus else {}))
        run = Run(config, write_shards(open_source(config.data), config.data, config.storage.root))
        uri = run.stage_uri(run.stages[0])
        rows = [
            {"nimg": kimg * 1000, "resolution": 4, "metrics": {"loss/d": 1.0, "time/img_per_sec": 50.0}}
            for kimg in range(1, 5)
        ]
        storage.write_bytes(f"{uri}/stats.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        checkpoint = f"{uri}/checkpoint-000004000"
        record = {
            "uri": checkpoint,
            "run_id": run.run_id,
            "resolution": 4,
            "nimg": 4000,
            "digest": run.stage_key(run.stages[0]),
        }
        storage.write_json(f"{checkpoint}/checkpoint.json", record)
        hardware = {"device": "Abacus 9", "workers": 2, "hosts": ["a", "b"], "torch": "2.13.0"}
        storage.write_json(f"{uri}/done.json", record | {"hardware": hardware})
        storage.write_bytes(f"{run.uri}/config.yaml", dump(config).encode())
        report = Report(
            protocol=protocol,
            dataset_fingerprint=run.shards.fingerprint,
            checkpoint_uri=checkpoint,
            metrics={"fid_classifier": fid, "classifier_accuracy": 0.9},
            intervals={"fid_classifier": (fid - 0.1, fid + 0.1)},
        )
        storage.write_json(f"{run.uri}/report.json", report.model_dump(mode="json"))
        return run, report

    return make


def test_before_the_gate_a_run_tells_how_it_was_made(make_run):
    story = tell(make_run()[0])
    assert (story.key, story.headline, story.promoted, story.champion, story.previous) == ("", "", None, None, None)
    assert story.facts["Images shown"] == "4 kimg"
    assert story.facts["Training"].startswith("80 s, 50.00 images per second")
    assert story.facts["Device"] == "Abacus 9"
    assert story.facts["Workers"] == "2 on a, b"
    assert "torch 2.13.0" in story.facts["Versions"]
    assert "GPU-hours" not in story.facts


def test_the_champion_is_compared_as_by_the_gate_and_its_settings_too(make_run):
    _, old = make_run(5.0)
    run, report = make_run(4.0, r1_gamma=3.0)
    story = tell(run, report, verdict=VERDICT, against=old)
    assert story.headline == (
        "Version 2 of t is champion: Fréchet distance (FID) 4.000, 20 % better, more than chance explains "
        "(champion: version 1)."
    )
    (metric,) = story.champion.metrics  # an accuracy of the measuring network is better in no direction
    assert (metric.key, metric.outcome) == ("fid_classifier", "better")
    assert [setting.text for setting in story.champion.settings] == ["training.r1_gamma: 10.0 -> 3.0"]
    assert "r1_gamma: 3.0" in story.changed
    assert "mixing" not in story.changed
    assert "mixing" in story.config


def test_what_does_not_compare_says_why(make_run):
    _, old = make_run(5.0, protocol="q")
    run, report = make_run(4.0, r1_gamma=3.0)
    (metric,) = tell(run, report, verdict=VERDICT, against=old).champion.metrics
    assert (metric.outcome, metric.words) == ("incomparable", "does not compare: measured under other settings")


def test_the_run_before_is_told_once(make_run):
    first, old = make_run(5.0)
    run, report = make_run(4.9, r1_gamma=3.0)
    previous = EarlierRun(run_id=first.run_id, settings={"training.r1_gamma": "10.0"})
    (metric,) = tell(run, report, previous=previous).previous.metrics
    assert metric.words == "2 % better, within what chance explains"
    assert tell(run, report, verdict=VERDICT, against=old, previous=previous).previous is None  # it is the champion


def test_an_earlier_run_whose_files_are_gone_is_told_by_its_settings(make_run):
    run, report = make_run(4.0)
    previous = EarlierRun(run_id="t-0000", settings={"training.r1_gamma": "1.0"})
    told = tell(run, report, previous=previous).previous
    assert told.metrics == ()
    assert ("training.r1_gamma", "1.0", "10.0") in [(one.key, one.old, one.new) for one in told.settings]


def test_hours_of_gpus_are_those_of_all_workers(make_run):
    assert hours_by_stage(make_run()[0]) == [(4000, 4, pytest.approx(80 / 3600), 0.0)]
    ((_, _, hours, gpus),) = hours_by_stage(make_run(gpus=1, r1_gamma=2.0)[0])
    assert gpus == pytest.approx(hours)


def test_each_verdict_has_a_key_of_its_own():
    assert story_key(VERDICT) == story_key(VERDICT.model_copy())
    assert story_key(VERDICT) != story_key(VERDICT.model_copy(update={"promote": False}))


def test_the_command_is_that_of_the_command_line_else_of_the_kept_config(make_run):
    run, _ = make_run()
    assert tell(run).command.endswith(f"stylegan run {run.uri}/config.yaml")
    run.config._arguments = ("faces.yaml", "--set", "seed=1")
    assert tell(run).command.endswith("stylegan run faces.yaml --set seed=1")


def test_the_page_has_curves_and_the_beginnings_of_stages(make_run):
    run, _ = make_run()
    parts = parts_of(run, tell(run))
    assert [row["nimg"] for row in parts.rows] == [1000, 2000, 3000, 4000]
    assert parts.starts == {4: 0}
