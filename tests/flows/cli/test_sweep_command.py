"""The command of many runs: its mistakes, its plan, its tables and the lines of runs that failed."""

import json
import re

import pytest
import yaml
from command_line import TREE, fail

from flows.children import SweptChild
from flows.cli import sweep_command
from flows.cli.main import main
from flows.sweep import Swept
from stylegan.config.file import load
from stylegan.errors import StepError


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The path of a config of two stages, whose folder is the working one."""
    monkeypatch.chdir(tmp_path)
    tree = TREE | {"training": {"start_resolution": 4, "batch": 4}, "evaluation": {"metrics": ["fid"]}}
    tree["data"] = {"source": "digits", "resolution": 8, "channels": 1}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "space.yaml").write_text("training.r1_gamma: {low: 0.1, high: 10, log: true}\n")
    return "t.yaml"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("sweep", "a sweep needs a config: CONFIG, or --configs FILE FILE ..."),
        ("sweep t.yaml --grid seed", "--grid seed: must be key.path=a,b"),
        ("sweep t.yaml --seeds 0", "--seeds 0: must be at least 1"),
        ("sweep t.yaml --seeds 1.5", "'1.5' is no whole number"),
        ("sweep t.yaml --at-once 0", "--at-once 0: must be at least 1"),
        ("sweep t.yaml --grid training.r1_gama=1,2", "did you mean training.r1_gamma?"),
        ("sweep t.yaml --configs nowhere.yaml", "nowhere.yaml: no such config file"),
        ("sweep t.yaml --images 10", "--images 10: is for --plan"),
        ("sweep t.yaml --dry-run --seeds 2", "sweep t.yaml --seeds 2 --plan`"),
        ("sweep t.yaml --trials 3", "--trials: is for --optimize eval/METRIC"),
        ("sweep t.yaml --space space.yaml", "--space: is for --optimize eval/METRIC"),
        ("sweep t.yaml --optimize eval/fid --trials 3", "--optimize eval/fid: needs --space FILE too"),
        ("sweep t.yaml --optimize eval/fid --space space.yaml", "--optimize eval/fid: needs --trials N too"),
        ("sweep --optimize eval/fid --space space.yaml --trials 3", "--optimize eval/fid: needs CONFIG too"),
        (
            "sweep t.yaml --optimize eval/fid --space space.yaml --trials 3 --seeds 2",
            "--seeds with --optimize eval/fid",
        ),
        ("sweep t.yaml --optimize eval/kid --space space.yaml --trials 3", "has a better direction: eval/fid"),
        ("sweep t.yaml --optimize eval/fid --space gone.yaml --trials 3", "--space gone.yaml: cannot be read as text"),
    ],
)
def test_a_mistake_is_one_line_and_touches_nothing(capsys, config, tmp_path, typed, says):
    assert says in fail(capsys, 2, *typed.split())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["space.yaml", "t.yaml"]


def test_the_plan_says_what_is_shared_and_touches_nothing(capsys, config, tmp_path):
    typed = ["sweep", config, "--grid", "training.stable_kimg.8=1,2", "--seeds", "2", "--plan"]
    assert main(typed) == 0
    text = capsys.readouterr().out
    assert (
        "4 runs with 8 stages: 6 different ones are trained once each (2 are shared), 0 of them are in storage" in text
    )
    assert main([*typed, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["stages"], record["distinct"], record["to_train"]) == (8, 6, 6)
    assert [child["shared"] for child in record["children"]] == [
        [],
        ["shard"],
        ["shard", "train 4x4"],
        ["shard", "train 4x4"],
    ]
    assert record["seconds"] > 0
    assert main([*typed, "--images", "5000", "--set", "data.source=s3://nowhere/x"]) == 0
    assert "6 different ones" in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["space.yaml", "t.yaml"]


def test_the_plan_of_a_search_is_that_of_a_trial(capsys, config, tmp_path):
    assert main(["sweep", config, "--optimize", "eval/fid", "--space", "space.yaml", "--trials", "7", "--plan"]) == 0
    assert re.search(r"so 7 take .* at most", " ".join(capsys.readouterr().out.split()))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["space.yaml", "t.yaml"]


def test_the_table_has_every_run_and_the_spread_over_seeds(capsys, config):
    """And with it the sentence that the interval of one run does not hold that spread."""
    rows = [
        SweptChild(
            label=f"training.r1_gamma=[1], seed={seed}",
            group="training.r1_gamma=[1]",
            name="t",
            state="done",
            cached=seed == 1,
            kimg=4.5,
            train_seconds=7200,
            metrics={"fid_classifier": value, "classifier_accuracy": 0.9},
            intervals={"fid_classifier": (value - 1, value + 1)},
            aliases=("champion",) if seed == 1 else (),
        )
        for seed, value in ((0, 12.0), (1, 10.0))
    ]
    rows.append(SweptChild(label="seed=2", name="t", state="failed", why="no room.", command="stylegan run t.yaml"))
    swept = Swept(sweep_id="t-sweep-1", parent="abc", children=tuple(rows))
    from stylegan.pipeline.sweep import Child

    children = [Child(label=row.label, overrides=(), config=load(config)) for row in rows]
    sweep_command._print_swept(swept, children)
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    first = lines.index("training.r1_gamma=[1], 12.00 4.5 2.0 h done")
    assert lines[first + 1 : first + 4] == [
        "seed=0 (11.00 to 13.00)",
        "training.r1_gamma=[1], 10.00 4.5 2.0 h cached (champion)",
        "seed=1 (9.000 to 11.00)",
    ]
    assert "seed=2 failed" in lines
    assert "training.r1_gamma=[1] fid_classifier 2 11.00 1.414" in lines
    assert "accuracy" not in text
    assert sweep_command.NOTE in " ".join(text.split())
    assert "MLflow run abc (t-sweep-1), with all runs below it" in lines

    with pytest.raises(StepError, match="1 of 3 runs failed; the same command does these again, and no other"):
        sweep_command._report_failures(swept.failed, len(rows))
    assert "seed=2: no room; by itself: `stylegan run t.yaml`" in capsys.readouterr().err
