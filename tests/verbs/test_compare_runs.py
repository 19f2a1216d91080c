"""Runs side by side: what differs, what is more than chance, the page with its slider, and runs that only MLflow has."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from PIL import Image

from stylegan import storage
from stylegan.config.file import build, dump
from stylegan.config.sections import GateConfig
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation.report import Report
from stylegan.images import png_bytes
from stylegan.pipeline.run import Run
from stylegan.registry.gate import judge
from stylegan.tracking.connection import connect, resolve_uri
from stylegan.verbs.compare import compare, read_runs
from stylegan.verbs.compared_run import read_run
from stylegan.verbs.comparison_page import SCRIPT, comparison_page, write_comparison

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "root")


@pytest.fixture
def make_run(root):
    """make_run(name, fid, **settings): a run with curves, grids and, unless `fid` is None, a report; its config."""

    def make(name, fid=5.0, half=0.5, *, grids=(1, 2), rows=4, protocol="p", **settings):
        tree = {
            "name": name,
            "storage": {"root": root},
            "data": {"source": "digits", "resolution": 4, "channels": 1},
            "training": {"start_resolution": 4, "batch": 8, "stable_kimg": rows},
            "evaluation": {"num_images": 10},
        }
        for key, value in settings.items():
            section, _, field = key.partition("__")
            tree = tree | ({section: tree.get(section, {}) | {field: value}} if field else {section: value})
        config = build(tree)
        run = Run(config, write_shards(open_source(config.data), config.data, config.storage.root))
        (stage,) = run.stages
        points = [
            {
                "nimg": number * 1000,
                "resolution": 4,
                "metrics": {
                    "loss/d": 1 / number,
                    "time/img_per_sec": 100.0,
                    "time/sec_per_kimg": 10.0,
                    "time/path": 0.0,
                },
            }
            for number in range(1, rows + 1)
        ]
        uri = run.stage_uri(stage)
        storage.write_bytes(f"{uri}/stats.jsonl", "".join(json.dumps(row) + "\n" for row in points).encode())
        for kimg in grids:
            storage.write_bytes(f"{uri}/samples/{kimg:06d}.png", png_bytes(Image.new("L", (20, 20), kimg * 20)))
        storage.write_bytes(f"{run.uri}/config.yaml", dump(config).encode())
        if fid is not None:
            report = Report(
                protocol=protocol,
                dataset_fingerprint=run.shards.fingerprint,
                checkpoint_uri=f"{uri}/checkpoint-{rows:06d}000",
                metrics={"fid_classifier": fid, "separability_w_classifier": 2.0},
                intervals={"fid_classifier": (fid - half, fid + half)} if half else {},
            )
            storage.write_json(f"{run.uri}/report.json", report.model_dump(mode="json"))
        return config

    return make


def of(config):
    return Run(config, write_shards(open_source(config.data), config.data, config.storage.root)).uri


def side_by_side(*configs):
    return read_runs(None, [of(config) for config in configs])


def cells(comparison, metric="fid"):
    return next(row for row in comparison.metrics if row.metric == metric).values


def test_only_what_is_trained_or_measured_differently_is_a_difference(make_run):
    """The place of a run, its name and what it shows are no settings."""
    runs = side_by_side(
        make_run("a"), make_run("b", training__r1_gamma=3.0, snapshots__grid=3, ray__workers=2), make_run("c", seed=4)
    )
    comparison = compare(runs)
    assert comparison.settings == {"seed": ("0", "0", "4"), "training.r1_gamma": ("10.0", "3.0", "10.0")}
    assert comparison.data == {}


def test_values_are_judged_as_the_gate_does(make_run):
    runs = side_by_side(
        make_run("a", 5.0, 0.1),
        make_run("b", 4.0, 0.1, seed=1),
        make_run("c", 4.95, 0.1, seed=2),
        make_run("d", 1.0, 0.1, seed=3, protocol="q"),
    )
    comparison = compare(runs)
    first, better, chance, other = cells(comparison)
    assert (first.better, first.why_not) == (None, ())
    assert (better.better, better.beyond_chance) == (True, True)
    assert (chance.better, chance.beyond_chance) == (True, False)
    assert (other.better, other.why_not) == (None, ("measured under other settings",))
    assert "-b-" not in comparison.summary
    assert comparison.summary.startswith(f"{runs[1].label} is best by Fréchet distance (FID): 4.000 against 4.950")
    assert comparison.summary.endswith("1 other run cannot be compared by it.")
    for run, value in zip(runs[1:], cells(comparison)[1:], strict=True):
        verdict = judge(
            run.report, runs[0].report, GateConfig(min_improvement=0), challenger_version="2", champion_version="1"
        )
        assert verdict.promote == (value.better is True and value.beyond_chance is not False)


def test_the_best_differs_from_every_other_run(make_run):
    """One is not best beside the next one alone: a third one may have a wider interval."""
    configs = [make_run("a", 4.0, 0.1), make_run("b", 4.5, 0.1, seed=1), make_run("c", 4.6, 3.0, seed=2)]
    summary = compare(side_by_side(*configs)).summary
    assert summary.startswith("By Fréchet distance (FID) no run is best: a-")
    assert "4.000 against 4.600 of c-" in summary
    summary = compare(side_by_side(*configs[1::-1])).summary
    assert summary.startswith("a-")
    assert summary.endswith("which is more than chance explains at 95 %.")


def test_a_value_that_is_not_finite_is_not_best_and_does_not_hide_the_best(make_run):
    runs = side_by_side(
        make_run("a", float("nan"), 0), make_run("b", 5.0, 0.1, seed=1), make_run("c", 4.0, 0.1, seed=2)
    )
    comparison = compare(runs)
    assert comparison.summary.startswith("c-")
    assert comparison.summary.endswith("1 other run cannot be compared by it.")
    assert [value.better for value in cells(comparison)] == [None, True, True]


def test_equal_values_are_said_to_be_equal(make_run):
    summary = compare(side_by_side(make_run("a", 5.0), make_run("b", 5.0, seed=1))).summary
    assert re.fullmatch(r"By Fréchet distance \(FID\) \S+ and \S+ are equal \(5\.000\)\.", summary)


def test_one_model_measured_twice_is_not_compared(make_run):
    runs = side_by_side(make_run("a", 5.0, 0.1), make_run("b", 4.0, 0.1, evaluation__seed=5))
    assert runs[0].report.checkpoint_uri == runs[1].report.checkpoint_uri
    assert cells(compare(runs))[1].why_not == ("it is the same model",)


def test_another_value_of_a_like_name_is_not_taken_for_it(make_run):
    first, second = side_by_side(make_run("a"), make_run("b", seed=1))
    mixing = second.report.model_copy(update={"metrics": {"fid_mixing_classifier": 9.0}, "intervals": {}})
    comparison = compare([first, replace(second, report=mixing)])
    assert cells(comparison)[1] is None
    assert cells(comparison, "fid_mixing")[1].value == 9.0


def test_two_that_chance_explains_have_no_best(make_run):
    comparison = compare(side_by_side(make_run("a", 5.0), make_run("b", 4.9, seed=1)))
    assert comparison.summary.startswith("By Fréchet distance (FID) no run is best")


def test_a_run_that_trains_is_compared_by_its_curves(make_run):
    runs = side_by_side(make_run("a", None), make_run("b", None, rows=2, seed=1))
    comparison = compare(runs)
    assert [facts.kimg for facts in comparison.runs] == [4, 2]
    assert [facts.seconds for facts in comparison.runs] == pytest.approx([40, 20])
    assert [facts.images_per_second for facts in comparison.runs] == pytest.approx([100, 100])
    assert comparison.runs[0].path == "eager"
    assert comparison.summary == "No run has a value of fid yet."


def test_gpu_hours_are_those_that_all_workers_reserve(make_run):
    run = read_run(None, of(make_run("g", seed=9, ray__workers=2, ray__gpus_per_worker=1)))
    assert run.gpu_hours[-1] == pytest.approx(40 * 2 / 3600)


def test_the_page_is_one_file_whose_only_script_is_the_slider(make_run):
    runs = side_by_side(make_run("a", 5.0), make_run("b", 4.0, seed=1))
    page = comparison_page(runs, compare(runs))
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page or f"script-src 'sha256-{digest}'" in page
    assert re.findall(r"<script[^>]*>", page) == ["<script>"]
    assert SCRIPT in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count("data:image/webp;base64,") == 4
    assert "The latents differ" in page


def test_latents_are_the_same_where_seed_size_and_grid_are(make_run):
    runs = side_by_side(make_run("a"), make_run("b", training__r1_gamma=3.0))
    assert "The same latents at the same places" in comparison_page(runs, compare(runs))


def test_many_runs_have_a_row_each_and_few_a_column(make_run):
    configs = [make_run(name, 5.0 + place, 0.1, seed=place) for place, name in enumerate("abcde")]
    runs = side_by_side(*configs)
    heads = re.compile(r'<th scope="col" class="number"><code>seed</code></th>')
    assert heads.search(comparison_page(runs, compare(runs)))
    assert not heads.search(comparison_page(runs[:4], compare(runs[:4])))
    for some in (runs, runs[:4]):
        page = comparison_page(some, compare(some))
        assert page.count('<span class="mark bad">worse</span>') == len(some) - 1
        assert page.count('<th scope="col">Gate</th>') == 0  # no run was judged


def test_quality_is_the_first_curve_and_one_point_is_no_curve(make_run):
    first, second = side_by_side(make_run("a"), make_run("b", seed=1))
    quick = ("quick/fid_classifier_4x4", "quick/fid_classifier", "quick/kid_classifier")
    for number, row in enumerate(first.rows):
        row["metrics"] |= dict.fromkeys(quick[: 3 if number == 0 else 2], 9.0 - number)
    page = comparison_page([first, second], compare([first, second]))
    titles = re.findall(r"<h3>(.*)</h3>", page.partition('charts-kimg">')[2].partition('charts-hours">')[0])
    assert titles[0] == "Fréchet distance (FID), while training (classifier)"
    assert titles[-1] == "Fréchet distance (FID), while training (classifier 4x4)"
    assert not any("Kernel" in title for title in titles)
    assert "Loss of D in the game against G" in page  # what a curve means


def test_a_grid_stands_beside_one_of_nearly_the_same_kimg(make_run):
    runs = side_by_side(
        make_run("a", grids=(1, 100)), make_run("b", grids=(101,), seed=1), make_run("c", grids=(50,), seed=2)
    )
    page = comparison_page(runs, compare(runs))
    assert "at 101 kimg" in page
    assert "no grid near this kimg" in page


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_slider_shows_one_step_in_a_browser(make_run, tmp_path):
    runs = side_by_side(make_run("a", 5.0), make_run("b", 4.0, seed=1))
    path = tmp_path / "page.html"
    write_comparison(runs, compare(runs), str(path))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{path}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    frames = re.findall(r'<div class="frame"[^>]*>', shown)
    assert [" hidden" in frame for frame in frames] == [True, False]
    assert '<div class="slider">' in shown  # it is hidden where no script runs


def test_runs_that_only_mlflow_has_are_compared_by_what_was_logged(make_run, tmp_path, root):
    """A run of another program has params, curves and images."""
    config = make_run("a")
    uri = resolve_uri(config)
    client = connect(uri)
    experiment = client.create_experiment("elsewhere", artifact_location=f"file://{tmp_path}/artifacts")
    run = client.create_run(experiment, run_name="theirs")
    client.log_param(run.info.run_id, "training.r1_gamma", "7.0")
    for step in (1, 2):
        client.log_metric(run.info.run_id, "loss/d", 0.5, step=step)
    client.log_image(run.info.run_id, Image.new("L", (20, 20)), key="samples", step=2, synchronous=True)
    runs = read_runs(config, [of(config), run.info.run_id])
    comparison = compare(runs)
    assert comparison.runs[1].label == "theirs"
    assert comparison.settings["training.r1_gamma"] == ("10.0", "7.0")
    assert [row["nimg"] for row in runs[1].rows] == [1000, 2000]
    page = comparison_page(runs, comparison)
    assert page.count("data:image/webp;base64,") == 2
    assert "is not known" in page  # their latents
    assert (comparison.runs[1].seconds, comparison.runs[1].images_per_second) == (None, None)  # nothing tells its speed
    hours = page.partition('class="charts charts-hours"')[2]
    assert hours.count('class="curve series-1') > 0
    assert "theirs:" not in hours
    assert read_run(config, f"runs:/{run.info.run_id}").label == "theirs"


def test_an_mlflow_run_of_this_program_is_read_from_storage(make_run):
    config = make_run("m", 3.0, seed=11)
    client = connect(resolve_uri(config))
    folder = of(config)
    tags = {"stylegan.run_id": storage.name(folder)}
    run = client.create_run(client.create_experiment("own"), tags=tags)
    found = read_run(config, run.info.run_id)
    assert (found.uri, found.mlflow_run_id) == (folder, None)
    assert found.report.metrics["fid_classifier"] == 3.0


def test_the_page_is_an_artifact_of_a_common_parent(make_run, tmp_path):
    configs = [make_run("p", seed=21), make_run("q", seed=22)]
    client = connect(resolve_uri(configs[0]))
    experiment = client.create_experiment("sweep", artifact_location=f"file://{tmp_path}/artifacts")
    parent = client.create_run(experiment, run_name="sweep").info.run_id
    runs = side_by_side(*configs)
    assert write_comparison(runs, compare(runs), str(tmp_path / "a.html")) is None
    for run in runs:
        client.create_run(experiment, tags={"stylegan.run_id": run.run_id, "mlflow.parentRunId": parent})
    assert write_comparison(runs, compare(runs), str(tmp_path / "a.html")) == parent
    assert [file.path for file in client.list_artifacts(parent)] == ["comparison.html"]

    # Also where one of them is a run of another program.
    other = client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id
    runs.append(read_run(configs[0], other))
    assert write_comparison(runs, compare(runs), str(tmp_path / "a.html")) == parent
    client.set_tag(other, "mlflow.parentRunId", "0" * 32)
    assert write_comparison(runs, compare(runs), str(tmp_path / "a.html")) is None


def test_the_picture_of_forgetting_curves_lies_beside_the_page_and_in_mlflow(make_run, tmp_path):
    configs = [make_run("p", seed=31), make_run("q", seed=32)]
    client = connect(resolve_uri(configs[0]))
    experiment = client.create_experiment("sweep", artifact_location=f"file://{tmp_path}/artifacts")
    parent = client.create_run(experiment).info.run_id
    runs = side_by_side(*configs)
    for run in runs:
        client.create_run(experiment, tags={"stylegan.run_id": run.run_id, "mlflow.parentRunId": parent})
        for row in run.rows:
            row["metrics"] |= {"probe/accuracy": 0.5, "probe/accuracy/block1": 0.4}
    picture = tmp_path / "forgetting.png"
    assert write_comparison(runs, compare(runs), str(tmp_path / "a.html"), str(picture)) == parent
    assert [file.path for file in client.list_artifacts(parent)] == ["comparison.html", "forgetting.png"]
    logged = Image.open(client.download_artifacts(parent, "forgetting.png"))
    assert logged.tobytes() == Image.open(picture).tobytes()


@pytest.mark.parametrize("names", [(), ("a",), tuple("abcdefghijklmnopqrstu")])
def test_fewer_than_two_and_too_many_are_refused(names):
    with pytest.raises(ConfigError, match=rf"got {len(names)} run.s.; name 2 to 20"):
        read_runs(None, names)


def test_a_run_is_named_once(make_run):
    folder = of(make_run("a"))
    with pytest.raises(ConfigError, match="name each run once"):
        read_runs(None, [folder, storage.name(folder)], root=make_run("a").storage.root)


def test_what_is_no_run_says_where_it_was_looked_for(make_run, monkeypatch):
    config = make_run("a")
    with pytest.raises(ConfigError, match=r"no such model: no run in .*, no MLflow run"):
        read_run(config, "nonsense-of-mine")
    with pytest.raises(ConfigError, match="has no such run"):
        read_run(config, "0" * 32)
    assert not os.path.exists(f"{config.storage.root}/mlflow.db")  # a look makes no database
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(config.storage.root)
    with pytest.raises(ConfigError, match="no MLflow is named: give --config FILE or set MLFLOW_TRACKING_URI"):
        read_run(None, "0" * 32)


def test_a_run_is_meant_by_its_nearest_name(make_run):
    config = make_run("a")
    name = storage.name(of(config))
    with pytest.raises(ConfigError, match=f"did you mean {name}"):
        read_run(config, name[:-1] + "x")


def test_a_run_without_any_training_says_what_to_do(make_run):
    config = make_run("a", None, rows=3, seed=77, grids=())
    folder = of(config)
    run = Run(config, write_shards(open_source(config.data), config.data, config.storage.root))
    shutil.rmtree(run.stage_uri(run.stages[0]))
    with pytest.raises(StepError, match="has trained nothing yet; run its config"):
        read_run(None, folder)
