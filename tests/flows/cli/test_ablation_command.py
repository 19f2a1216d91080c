"""`stylegan ablation`: its plan, its mistakes, and what it prints."""

import json

from command_line import fail
from rich.console import Console

from flows.cli import ablation_command
from flows.cli.main import main
from stylegan.verbs.ablation import Ablation, Cell, Order, TableRow, Value


def test_the_plan_touches_nothing_and_counts_what_is_shared(capsys, write, tmp_path):
    """Rows e and f have no stage in common; their seeds neither."""
    config = write(evaluation={"metrics": ["fid"]})
    assert main(["ablation", "table1", config, "--rows", "e,f", "--seeds", "2", "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [child["label"] for child in plan["children"]] == ["e, seed=0", "e, seed=1", "f, seed=0", "f, seed=1"]
    assert (plan["stages"], plan["distinct"], plan["cached"]) == (4, 4, 0)
    assert main(["ablation", "table1", config, "--rows", "e,f", "--seeds", "2", "--plan"]) == 0
    assert (
        "4 runs with 4 stages: 4 different ones are trained once each (0 are shared), 0 of them are in storage"
        in capsys.readouterr().out
    )
    assert not (tmp_path / "root").exists()


def test_equal_rows_are_planned_once(capsys, write):
    """A config that mixes no styles is row e already."""
    config = write(evaluation={"metrics": ["fid"]})
    same = ["--rows", "e,f", "--seeds", "1", "-s", "model.style_mixing_prob=0"]
    assert main(["ablation", "table1", config, *same, "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["stages"], plan["distinct"]) == (2, 1)
    assert plan["children"][1]["shared"] == ["shard", "train 8x8"]


def test_mistakes_are_one_line_before_any_work(capsys, write, tmp_path):
    config = write(evaluation={"metrics": ["fid"]})
    line = fail(capsys, 2, "ablation", "table1", config, "--rows", "a,style-0")
    assert "--rows style-0: table1 has no such row; its rows are a,b,c,d,e,f" in line
    assert "--seeds 0: must be from 1" in fail(capsys, 2, "ablation", "table1", config, "--seeds", "0")
    assert "--at-once 0: must be at least 1" in fail(capsys, 2, "ablation", "table1", config, "--at-once", "0")
    assert "table3" in fail(capsys, 2, "ablation", "table3", config)
    line = fail(capsys, 2, "ablation", "table1", config, "--out", "page.pdf", "--rows", "f")
    assert "--out page.pdf: must end in .html or .htm" in line
    assert not (tmp_path / "root").exists()


def test_the_terminal_shows_the_paper_beside_ours_and_the_pairs(capsys, monkeypatch):
    monkeypatch.setattr(ablation_command, "Console", lambda: Console(width=120))
    cells = {
        row: Cell(
            metric="fid",
            paper={"FFHQ": paper},
            values=tuple(
                Value(seed=seed, value=value, interval=(value - 1, value + 1)) for seed, value in enumerate(ours)
            ),
        )
        for row, paper, ours in (("e", 4.42, (30.0, 31.0)), ("f", 4.40, (20.0, 21.0)))
    }
    result = Ablation(
        key="table1",
        name="Table 1",
        subject="s",
        config="c",
        data="d",
        seeds=(0, 1),
        comparable=False,
        statement="only the order of rows does.",
        rows=tuple(
            TableRow(row=row, title=f"{row.upper()}: noise", kimg=30, runs={}, cells=(cell,))
            for row, cell in cells.items()
        ),
        orders=(
            Order(metric="fid", latents=1, first="f", second="e", paper=(4.40, 4.42), gain=10, bound=3, agrees=True),
        ),
        notes=("why",),
        missing=("e, seed=2",),
    )
    ablation_command._print(result)
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("F: noise"))
    assert row.split() == ["F:", "noise", "30", "4.400", "20.50", "±", "0.707", "(2)", "19.79", "to", "21.21"]
    assert "pairs: 1 of 1 pair decided: 1 as in the paper, 0 the other way round" in out
    assert "  as in the paper, the first better: f e" in out
    assert "only the order of rows does." in out
    assert "without a finished evaluation: e, seed=2" in out
