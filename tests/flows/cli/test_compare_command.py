"""`stylegan compare`: a table on the terminal, the record, the page, and mistakes in one line."""

import json

import pytest
from command_line import fail

from flows.cli.main import main
from stylegan import storage
from stylegan.config.file import dump, load
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.evaluation.report import Report
from stylegan.pipeline.run import Run


@pytest.fixture
def make_run(write):
    """make_run(fid, *overrides): the folder of a run with curves and a report."""

    def make(fid, *overrides):
        config = load(write(), list(overrides))
        run = Run(config, write_shards(open_source(config.data), config.data, config.storage.root))
        uri = run.stage_uri(run.stages[0])
        row = {"nimg": 1000, "resolution": 8, "metrics": {"loss/d": 1.0, "time/img_per_sec": 100.0, "time/path": 1.0}}
        storage.write_bytes(f"{uri}/stats.jsonl", (json.dumps(row) + "\n").encode())
        storage.write_bytes(f"{run.uri}/config.yaml", dump(config).encode())
        report = Report(
            protocol="p",
            dataset_fingerprint=run.shards.fingerprint,
            checkpoint_uri=f"{uri}/checkpoint-000001000",
            metrics={"fid_classifier": fid},
            intervals={"fid_classifier": (fid - 0.1, fid + 0.1)},
        )
        storage.write_json(f"{run.uri}/report.json", report.model_dump(mode="json"))
        return run.uri

    return make


def test_a_few_runs_have_columns_and_the_verdict_is_the_last_sentence(capsys, make_run, tmp_path):
    runs = [make_run(5.0), make_run(4.0, "training.r1_gamma=3", "seed=1")]
    page = tmp_path / "page.html"
    assert main(["compare", *runs, "--out", str(page)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert ["kimg", "1.000", "1.000"] in lines
    assert ["img/s", "of", "training", "100.0", "100.0"] in lines
    assert ["steps", "compiled", "compiled"] in lines
    assert ["training.r1_gamma", "10.0", "3.0"] in lines
    assert ["better"] in lines
    assert " ".join(lines[-2]).endswith(
        "4.000 against 5.000 of " + f"{storage.name(runs[0])}, which is more than chance explains at 95 %."
    )
    assert lines[-1] == ["page", str(page)]
    assert page.read_text().startswith("<!doctype html>")


def test_a_folder_gets_the_page_and_the_picture_of_the_forgetting_curves(capsys, make_run, tmp_path):
    """Runs that were not probed have no picture."""
    runs = [make_run(5.0), make_run(4.0, "seed=1")]
    folder = tmp_path / "compared"
    assert main(["compare", *runs, "--out", str(folder)]) == 0
    assert [path.name for path in folder.iterdir()] == ["comparison.html"]
    for stats in (tmp_path / "root/stages").glob("*/stats.jsonl"):
        row = json.loads(stats.read_text())
        row["metrics"]["probe/accuracy"] = 0.5
        stats.write_text(json.dumps(row) + "\n")
    capsys.readouterr()
    assert main(["compare", *runs, "--out", str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[-2:] == [["page", f"{folder}/comparison.html"], ["picture", f"{folder}/forgetting.png"]]
    assert (folder / "forgetting.png").read_bytes().startswith(b"\x89PNG")


def test_many_runs_have_rows_with_a_word_beside_each_value(capsys, make_run):
    runs = [make_run(5.0 - place, f"seed={place}") for place in range(5)]
    assert main(["compare", *runs]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line[:1].isdigit()]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [row[-2:] for row in rows[1:]] == [[f"{5.0 - place:.3f}", "better"] for place in range(1, 5)]
    assert "seed       0 (1); 1 (2); 2 (3); 3 (4); 4 (5)" in out
    assert "--out comparison.html writes one" in out


def test_the_record_is_one_line(capsys, make_run):
    runs = [make_run(5.0), make_run(4.0, "seed=1")]
    assert main(["compare", *runs, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["settings"] == {"seed": ["0", "1"]}
    assert record["gate_metric"] == "fid"
    value = record["metrics"][0]["values"][1]
    assert (value["better"], value["beyond_chance"], value["why_not"]) == (True, True, [])
    assert [run["path"] for run in record["runs"]] == ["compiled", "compiled"]


def test_the_page_on_standard_output_is_alone_there(capsysbinary, make_run):
    assert main(["compare", make_run(5.0), make_run(4.0, "seed=1"), "--out", "-"]) == 0
    out = capsysbinary.readouterr().out
    assert out.startswith(b"<!doctype html>")
    assert out.rstrip().endswith(b"</html>")


def test_mistakes_are_one_line(capsys, write, make_run, tmp_path):
    run = make_run(5.0)
    assert "got 1 run(s); name 2 to 20" in fail(capsys, 2, "compare", run)
    assert "must end in .html" in fail(capsys, 2, "compare", run, run, "--out", str(tmp_path / "page.pdf"))
    assert "name each run once" in fail(capsys, 2, "compare", run, run)
    name = storage.name(run)
    assert f"did you mean {name}?" in fail(capsys, 2, "compare", run, name[:-1] + "x", "--config", write())
    assert "no such model" in fail(capsys, 2, "compare", run, str(tmp_path))
