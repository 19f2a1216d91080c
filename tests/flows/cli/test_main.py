"""The command as a whole: exit codes, one line for every mistake, clean standard output."""

import json
import os
import subprocess
import sys

import pytest
from command_line import fail

import stylegan
from flows.cli import app


@pytest.mark.parametrize("verb", ["plan", "run", "launch", "shard", "train", "evaluate", "register"])
def test_missing_config_is_bad_usage_for_every_verb(capsys, verb):
    assert "nowhere.yaml: no such config file" in fail(capsys, 2, verb, "nowhere.yaml")


def test_usage_mistakes(capsys, write):
    assert "dance" in fail(capsys, 2, "dance")
    assert "CONFIG" in fail(capsys, 2, "plan")
    assert "--until 9: no such stage; the stages are 8" in fail(capsys, 2, "train", write(), "--until", "9")
    assert "must be key.path=value" in fail(capsys, 2, "plan", write(), "--set", "seed")


@pytest.mark.parametrize("value", ["7.6", "8.0", "1_6", "08", "\u0668", "true", "null", "", "[8]", "'8'", "nan", "1e1"])
def test_a_number_of_an_option_is_one_of_a_config(capsys, write, value):
    assert f"--until: {value!r} is no whole number" in fail(capsys, 2, "train", write(), f"--until={value}")
    if value not in ("7.6", "8.0", "1e1", "nan"):
        assert f"--psi: {value!r} is no number" in fail(capsys, 2, "sample", "any", f"--psi={value}")


def test_a_root_that_a_model_is_searched_in_is_read_as_in_a_config(capsys, tmp_path):
    for value, says in {
        f"'{tmp_path}/a b'": f"no run in {tmp_path}/a b/runs",
        "s3:/bucket": "did you mean s3://bucket?",
        "[a]": "must be text",
        "": "has no value",
    }.items():
        assert says in fail(capsys, 2, "evaluate", "any-0123456789", "--set", f"storage.root={value}")


def test_an_empty_argument_is_not_the_same_as_none(capsys, tmp_path, monkeypatch):
    """It comes from a variable of the shell that is not set. The working folder must not be taken for what it names."""
    monkeypatch.chdir(tmp_path)
    for arguments in (["plan", ""], ["doctor", ""], ["sample", "any", "--config", ""], ["promote", "any", "--config="]):
        assert "the path of the config is empty" in fail(capsys, 2, *arguments)
    for arguments in (["evaluate", "", "--data", "digits"], ["sample", ""], ["export", "", "--out", "x.safetensors"]):
        assert "MODEL is empty" in fail(capsys, 2, *arguments)
    assert "names no set" in fail(capsys, 2, "shard", "--verify", "")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.btach=4", "unknown key training.btach; did you mean training.batch?"),
        ("data.resolution=24", "data.resolution=24: must be a power of two from 4 to 1024; the nearest is 16"),
        ("ray.workers=3", "not divisible by its 3 workers; use a multiple of 3"),
        ("model.conditional=true", "model.conditional=true needs labels"),
        ("evaluation.features=classifier", "needs class labels"),
    ],
)
def test_config_mistakes_name_key_value_and_cure(capsys, write, draw_images, tmp_path, override, says):
    source = draw_images(tmp_path / "flat", [f"{i}.png" for i in range(8)])
    config = write(source, evaluation={"metrics": ["fid"], "features": "rotation"})
    assert says in fail(capsys, 2, "shard", config, "--set", override)


def test_server_addresses_where_nobody_is(capsys, write):
    assert "tracking.uri=http://127.0.0.1:9" in fail(capsys, 1, "train", write(tracking={"uri": "http://127.0.0.1:9"}))
    assert "sqlite:///" in fail(capsys, 2, "train", write(tracking={"uri": "/some/folder"}))


def test_json_on_a_terminal_still_goes_to_standard_output(tmp_path, write, draw_images):
    """Progress bars on standard error must not swallow what a shell redirects to a file."""
    source = draw_images(tmp_path / "images", [f"{i}.png" for i in range(8)])
    master, terminal = os.openpty()
    with open(tmp_path / "out", "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.main", "shard", write(source), "--json"], stdout=out, stderr=terminal
        )
        assert process.wait(60) == 0
    os.close(terminal)
    assert "shard" in os.read(master, 65536).decode()
    os.close(master)
    assert json.loads((tmp_path / "out").read_text())["num_images"] == 8


WATCHED = """
import contextlib, io, json, sys
from flows.cli.main import main
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
# What a command needs for its work takes seconds to import. A mistake must not wait for it.
HEAVY = {
    "torch",
    "numpy",
    "scipy",
    "sklearn",
    "pandas",
    "pyarrow",
    "PIL",
    "fsspec",
    "jinja2",
    "ray",
    "mlflow",
    "prefect",
}
PARSER, CONFIG = {"cyclopts", "rich"}, {"pydantic", "ruamel"}


def test_help_and_mistakes_do_not_wait_for_heavy_libraries(tmp_path):
    """Each answer may have imported what the answers before it had, and no more."""
    config = tmp_path / "c.yaml"
    config.write_text("name: t\ndata: {source: digits, resolution: 8}\n")
    wrong = str(tmp_path / "wrong.yaml")
    (tmp_path / "wrong.yaml").write_text("name: t\ndata: {source: digits, resolution: 8, crob: wide}\n")
    verbs = ("plan", "run", "launch", "shard", "train", "evaluate", "register", "doctor")
    answers = {
        (("--version",),): (0, HEAVY | PARSER | CONFIG),
        (("--help",), ("plan", "--help"), ("sample", "--help")): (0, HEAVY | CONFIG),
        (("trian", str(config)), ("plan",), ("sample", "x", "--seeds", "x"), ("promote", "x", "-s", "a=1")): (
            2,
            HEAVY | CONFIG,
        ),
        (
            *((verb, str(config), "--set", "training.btach=4") for verb in verbs),
            *((verb, wrong) for verb in verbs),
            *((verb, "nowhere.yaml") for verb in verbs),
            *(
                (verb, "x", "--config", wrong)
                for verb in ("sample", "export", "promote", "rollback")
                if verb != "export"
            ),
            ("export", "x", "--out", "x.onnx", "--config", wrong),
            ("train", str(config), "--until", "9"),
            ("plan", str(config), "data.resolution", "32"),
            ("run", str(config), "--seed", "3"),
            ("evaluate", "x", "--metrics", "fit"),
            ("launch", str(config), "--address", "http://h:8265", "--set", "storage.root=here"),
            *((verb, "x", "--address", "h:6379") for verb in ("logs", "stop")),
            ("jobs", "--address", "h:6379"),
        ): (2, HEAVY),
    }
    lines = [list(arguments) for group in answers for arguments in group]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(lines)], capture_output=True, text=True, check=True, timeout=120
    )
    wanted = [(arguments, *answer) for group, answer in answers.items() for arguments in group]
    for (arguments, code, unwanted), line in zip(wanted, done.stdout.splitlines(), strict=True):
        found, modules = json.loads(line)
        assert found == code, arguments
        assert not unwanted & set(modules), arguments


def test_the_version_is_printed_by_the_command_itself():
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == (f"{stylegan.__version__}\n", "")


@pytest.mark.parametrize(
    ("given", "spared"),
    [
        ({}, None),
        ({"http_proxy": "http://p:1"}, "localhost,127.0.0.1,::1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "intern.example"}, "intern.example,localhost,127.0.0.1,::1"),
        ({"http_proxy": "http://p:1", "no_proxy": "*"}, "*"),
    ],
)
def test_a_proxy_is_not_asked_for_what_is_on_this_machine(monkeypatch, given, spared):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("no_proxy", "NO_PROXY"):  # so that they are put back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    app._spare_this_machine()
    assert os.environ.get("no_proxy") == spared
