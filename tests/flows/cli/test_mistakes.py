"""Mistakes on the command line: one line each, with the command that was meant."""

import pytest
from command_line import fail

from stylegan.commands import shell_command

PLAN = "plan configs/quickstart.yaml"


def meant(line: str) -> str:
    """The arguments of the command between the last two backquotes of a line, without the program."""
    command = line.split("`")[-2]
    program = shell_command("stylegan")
    assert command.startswith(program)
    return command.removeprefix(program).strip()


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("trian c.yaml --until 8", "train c.yaml --until 8"),
        ("configs/quickstart.yaml --json", "run configs/quickstart.yaml --json"),
        ("run c.yaml --dry-run -s seed=3", "plan c.yaml -s seed=3"),
        ("plan c.yaml --dry-run", "plan c.yaml"),
        (f"{PLAN} -s data.resolution 32", f"{PLAN} --set data.resolution=32"),
        (f"{PLAN} --set data.resolution = 32", f"{PLAN} --set data.resolution=32"),
        (f"{PLAN} -s data.resolution= 32 --json", f"{PLAN} --set data.resolution=32 --json"),
        (f"{PLAN} data.resolution 32", f"{PLAN} --set data.resolution=32"),
        (f"{PLAN} data.resolution=32", f"{PLAN} --set data.resolution=32"),
        (f"{PLAN} seed=1", f"{PLAN} --set seed=1"),
        (f"{PLAN} training.stages.8.batch=4", f"{PLAN} --set training.stages.8.batch=4"),
        ("plan configs/quickstart", PLAN),
        ("plan quickstrat.yml", PLAN),
    ],
)
def test_the_command_that_was_meant_is_named(capsys, typed, right):
    assert meant(fail(capsys, 2, *typed.split())) == right


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("dance", "dance: no such command; there are plan, run, retrain"),
        ("--dry-run c.yaml", "--dry-run: a command comes first; there are plan, run"),
        ("sample x --seed 3", "--seed: no option of `sample`; did you mean --seeds?"),
        ("train c.yaml --untill=8", "--untill: no option of `train`; did you mean --until?"),
        ("run c.yaml --resolution 32", "did you mean --set data.resolution=32?"),
        ("run c.yaml --seed=3", "did you mean --set seed=3 or --set evaluation.seed=3?"),
        ("run c.yaml --workers --json", "did you mean --set ray.workers=VALUE?"),
        ("run c.yaml --gpus 2", "give --set ray.workers=N --set ray.gpus_per_worker=1"),
        ("run c.yaml --resume", "goes on where it stopped, by itself; leave it out"),
        ("run c.yaml --outdir x", "give --set storage.root=FOLDER"),
        ("plan c.yaml --qqq", "--qqq: no option of `plan` (see `"),
        ("plan c.yaml d.yaml", "d.yaml: more than `plan` takes (see `"),
        ("plan", f"CONFIG requires an argument, such as `{shell_command('stylegan')} {PLAN}`"),
        (f"{PLAN} -s data.resolution", "must be key.path=value, e.g. --set data.resolution=VALUE"),
        ("plan data.resolution=32", "is no config file, but a value of the config; give it after the file: --set data"),
    ],
)
def test_what_is_wrong_is_named_with_the_cure(capsys, typed, says):
    assert says in fail(capsys, 2, *typed.split())


def test_a_run_below_another_root_is_found(capsys, tmp_path, monkeypatch):
    """The line says where it was searched, and the command with the run's folder works from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "faces-data" / "runs" / "faces-0123456789"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    for typed in ("sample faces-0123456789 --seeds 0-3", "export faces-0123456789 --out x.onnx"):
        line = fail(capsys, 2, *typed.split())
        assert f"no such run in {tmp_path}/stylegan-data/runs" in line
        assert meant(line) == typed.replace("faces-0", "faces-data/runs/faces-0", 1)
    assert "is damaged" in fail(
        capsys, 1, "evaluate", "faces-0123456789", "--set", f"storage.root={tmp_path}/faces-data/"
    )
    line = fail(capsys, 2, "sample", "other-0123456789")
    assert "the default storage.root (--config FILE names another; or give the folder of the run)" in line
    line = fail(capsys, 2, "evaluate", "faces-012345678", "--set", f"storage.root={tmp_path}/faces-data")
    assert meant(line).startswith("evaluate faces-0123456789 --set")
