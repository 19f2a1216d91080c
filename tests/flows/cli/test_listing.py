"""`stylegan ls`: what it prints, and where it looks."""

import json

from command_line import fail

from flows.cli.main import main
from stylegan.errors import StepError


def test_a_set_and_a_run_are_listed_with_what_other_commands_take(capsys, write, draw_images, tmp_path, monkeypatch):
    source = draw_images(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(5)])
    config = write(source)
    monkeypatch.chdir(tmp_path)
    assert main(["ls"]) == 0
    assert "nothing yet: looked at the storage roots in this folder" in capsys.readouterr().out
    assert main(["ls", config]) == 0
    assert f"stylegan run {config}` makes something" in capsys.readouterr().out
    assert main(["shard", config]) == 0
    capsys.readouterr()
    for arguments in ([], [config], ["--root", str(tmp_path / "root")]):
        assert main(["ls", *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        row = next(line for line in lines if str(source) in line).split()
        assert row[1:7] == ["finished", *row[2:3], "10", "2", "8x8", str(source)]
        check = next(line for line in lines if line.startswith("check")).split(maxsplit=1)[1]
        assert check.endswith(f"stylegan shard --verify root/datasets/{row[0]}")
        assert main(check.split()[1:]) == 0
        capsys.readouterr()


def test_a_run_is_printed_in_80_columns_and_as_json(capsys, tmp_path, monkeypatch):
    run = tmp_path / "x-data" / "runs" / "quickstart-c15ffd2a40"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("name: quickstart\ndata: {source: digits, resolution: 16}\n")
    report = {"checkpoint_uri": "a/0016-c/checkpoint-000054000", "dataset_fingerprint": "f"}
    (run / "report.json").write_text(
        json.dumps(report | {"metrics": {"fid_classifier": 2.64, "recall_classifier": 0.03}})
    )
    monkeypatch.chdir(tmp_path)
    assert main(["ls"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("quickstart-c15ffd2a40"))
    assert row.split()[1::2][:1] == ["evaluated"]
    assert row.split()[3:6] == ["54", "2.64", "0.030"]
    assert len(row.rstrip()) <= 80
    assert "stylegan sample x-data/runs/quickstart-c15ffd2a40 --out grid.png" in out
    assert main(["ls", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    (root,) = json.loads(line)["roots"]
    assert root["runs"][0]["metrics"] == {"fid_classifier": 2.64, "recall_classifier": 0.03}


def test_a_root_that_is_away_or_fails_hides_no_other(capsys, write, tmp_path, monkeypatch):
    """A bucket that only a config names is never asked; a root that cannot be read is one line after the others."""
    from stylegan import storage

    for name in ("broken", "whole"):
        (tmp_path / name / "runs" / f"{name}-1").mkdir(parents=True)
        (tmp_path / name / "runs" / f"{name}-1" / "config.yaml").write_text("name: a\ndata: {source: digits}\n")
    (tmp_path / "away.yaml").write_text(
        "name: a\nstorage: {root: s3://bucket/x}\ndata: {source: digits, resolution: 8}\n"
    )
    real = storage.files

    def files(uri):
        assert not uri.startswith("s3")
        if uri.endswith("broken"):
            raise StepError("storage: cannot list broken: no permission")
        return real(uri)

    monkeypatch.setattr(storage, "files", files)
    monkeypatch.chdir(tmp_path)
    assert main(["ls"]) == 1
    out, err = capsys.readouterr()
    assert "whole-1" in out
    assert "not looked at: s3://bucket/x of away.yaml; `" in out
    assert "stylegan ls away.yaml` looks there" in out
    assert err.splitlines() == ["stylegan: storage: cannot list broken: no permission"]
    assert main(["ls", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert [run["run_id"] for root in answer["roots"] for run in root["runs"]] == ["whole-1"]
    assert answer["not_looked_at"] == [{"root": "s3://bucket/x", "config": "away.yaml"}]
    assert answer["failures"] == ["storage: cannot list broken: no permission"]


def test_mistakes(capsys, write, tmp_path):
    assert "no such folder" in fail(capsys, 2, "ls", "--root", str(tmp_path / "none"))
    assert "not both" in fail(capsys, 2, "ls", write(), "--root", str(tmp_path))
    assert "name one" in fail(capsys, 2, "ls", "--set", "seed=1")
    assert "is empty" in fail(capsys, 2, "ls", "--root", "")
