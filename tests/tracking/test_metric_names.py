"""The table of metric names: README.md shows it, the code logs nothing else, and no chart says the same everywhere."""

import ast
import re
from pathlib import Path

import pytest
from mlflow_runs import points, row

from stylegan.evaluation.features.spaces import PUBLISHED
from stylegan.evaluation.metric_table import METRICS
from stylegan.tracking import metric_names
from stylegan.tracking.metric_names import UnknownMetricWarning, constant_names, find
from stylegan.training.schedule import PENALTIES

PACKAGE = Path(metric_names.__file__).parents[1]
# Text of the form of a name; other code has paths and types of that form, training has none.
NAME = re.compile(r"[a-z]+/[a-z_*]+(/[a-z_*]+)?")
PREFIX = re.compile(r"(loss|scores|optim|progress|time|probe|rotation|quick|eval|gate|drift|events|system)/\S+")


def test_readme_shows_the_table():
    """`make metric-names` was run after the last change of the table."""
    assert metric_names.main(["--check"]) == 0


def test_a_stale_readme_is_found_and_written(tmp_path, monkeypatch, capsys):
    copy = tmp_path / "tracking" / "README.md"
    copy.parent.mkdir()
    copy.write_text(f"# A\n\n{metric_names.BEGIN}old\n{metric_names.END}\nThe rest.\n")
    monkeypatch.setattr(metric_names, "README", copy)
    assert metric_names.main(["--check"]) == 1
    assert "tracking/README.md: does not match stylegan/tracking/metric_names.py; run `make metric-names`" in (
        capsys.readouterr().err
    )
    assert metric_names.main([]) == metric_names.main(["--check"]) == 0
    assert copy.read_text().startswith("# A\n\n<!-- Begin")
    assert copy.read_text().endswith("-->\n\nThe rest.\n")
    assert "| `loss/g` |" in copy.read_text()


def names_in(path):
    """Yield the metric names that a file spells, with each part that it computes as `*`."""
    tree = ast.parse(path.read_text())
    pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            text = node.value
        else:
            continue
        form = NAME if "training" in path.parts else PREFIX
        if form.fullmatch(text):
            yield text


def test_every_name_that_the_code_spells_is_in_the_table():
    """Those with a computed part must have a row that begins like them; their values are looked at below."""
    spelled = {name for path in PACKAGE.rglob("*.py") if path.name != "metric_names.py" for name in names_in(path)}
    assert {"loss/d", "scores/fake", "rotation/weight_g", "probe/accuracy", "progress/lr", "time/path"} <= spelled
    assert {"loss/*", "quick/**", "eval/*", "events/*"} <= spelled
    rows = [row.name for row in metric_names.metric_names()]
    for name in spelled:
        start, computed, _ = name.partition("*")
        assert any(row.startswith(start) for row in rows) if computed else find(name), name


def test_every_computed_name_is_in_the_table():
    assert all(find(name) for name in PENALTIES)
    networks = {published.name for published in PUBLISHED.values()} | {"classifier", "rotation", "attributes"}
    for facts in METRICS.values():
        for value in facts.values:
            for network in networks:
                assert bool(find(f"eval/{value}_{network}")) == bool(facts.gate)  # a curve is no number
                assert bool(find(f"quick/{value}_{network}_64x64")) == facts.quick
    assert find("eval/rotation_accuracy").unit == "share"
    assert find("system/gpu-7.example.org/gpu_11_power_usage_watts").unit == "W"


def test_a_name_belongs_to_one_row():
    filled = [re.sub(r"\{(\w+)\}", "7", row.name) for row in metric_names.metric_names()]
    for name in [*filled, "eval/is_std_inception", "eval/fid_mixing", "quick/fid_classifier_8x8"]:
        assert sum(row.matches(name) for row in metric_names.metric_names()) == 1, name
    assert not find("eval/fid_classifier_8x8")
    assert not find("loss/dd")


def test_an_unknown_name_is_a_warning_and_is_logged_all_the_same(opened):
    """Here in the tests the warning is an error, unless it is expected: see pyproject.toml."""
    run = opened()
    with pytest.warns(UnknownMetricWarning, match=r"metric_names\.py lacks loss/other"):
        assert run.log_rows([row(1, **{"loss/other": 2.0})]) == 1
    assert points(run, "loss/other") == [(1, 2.0)]
    with pytest.raises(UnknownMetricWarning):
        run.log_event("unheard", 1, nimg=0)


@pytest.mark.parametrize(
    ("training", "varying"),
    [
        ({}, set()),
        ({"start_resolution": 4}, {"progress/alpha"}),
        ({"start_resolution": 4, "fade_kimg": 0}, set()),
        ({"start_resolution": 4, "batch": {4: 8, 8: 4}}, {"progress/alpha", "progress/batch"}),
        (
            {"start_resolution": 4, "fade_kimg": 0, "learning_rate": {4: 0.001, 8: 0.002}},
            {"progress/lr"},
        ),
        ({"rotation": {"decay_kimg": 1}}, {"rotation/weight_g"}),
    ],
)
def test_what_the_config_makes_constant_has_no_chart(make_config, training, varying):
    config = make_config(training={"batch": 4} | training)
    every = {"progress/alpha", "progress/lr", "progress/batch", "rotation/weight_g", "time/path"}
    assert every - constant_names(config) == varying
    assert "progress/resolution" not in constant_names(config)
    on_gpu = make_config(training={"batch": 4} | training, ray={"gpus_per_worker": 1})
    assert constant_names(config) - constant_names(on_gpu) == {"time/path"}


def test_constants_of_the_rows_are_not_logged(opened):
    run = opened()  # of one stage, on a CPU
    run.log_rows([row(1, **{"progress/lr": 0.001, "time/path": 0.0, "time/img_per_sec": 9.0})])
    logged = set(run.client.get_run(run.mlflow_run_id).data.metrics)
    assert logged == {"loss/g", "time/img_per_sec", "progress/kimg"}
