"""Every record that a finished run has left, with every damage: one line with the file and the cure, or made anew.

The run is made once, in this process. Each test damages one file of it, calls commands in this process, and puts the
file back.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from flows.cli.main import main
from stylegan import storage
from stylegan.config.file import load
from stylegan.config.tree import Config
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.errors import UserError
from stylegan.evaluation.engine import evaluate
from stylegan.pipeline.run import Run
from stylegan.pipeline.steps import Pipeline
from stylegan.training.loop import train_stage

TREE = {
    "name": "tiny",
    "model": {"latent_size": 8, "mapping_layers": 1, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8},
    "training": {"start_resolution": 4, "batch": 4, "fade_kimg": 0.004, "stable_kimg": 0.008},
    "snapshots": {"grid": 2, "log_kimg": 0.004},
    "evaluation": {"features": "rotation", "metrics": ["fid"], "num_images": 100, "bootstrap": 0},
}


@dataclass
class Finished:
    """A finished run: its config file, its config, its records in storage."""

    path: str
    config: Config
    shards: ShardSet
    run: Run

    def file(self, name: str) -> Path:
        """Return the path of one of its files."""
        last = Path(self.run.stage_uri(self.run.stages[-1]))
        (checkpoint,) = last.glob("checkpoint-*")
        (newest,) = Path(self.shards.uri).parent.glob("newest-*.json")
        places = {
            "done.json": last,
            "stats.jsonl": last,
            "checkpoint.json": checkpoint,
            "generator.safetensors": checkpoint,
            "training.pt": checkpoint,
            "newest.json": newest.parent,
            "manifest.json": Path(self.shards.uri),
            "samples.parquet": Path(self.shards.uri),
            "card.json": Path(self.shards.uri),
            "preview.png": Path(self.shards.uri),
            "rejected.jsonl": Path(self.shards.uri),
            "samples.png": Path(self.run.uri),
        }
        return newest if name == "newest.json" else places.get(name, Path(self.run.uri)) / name


def repeat(config: Config) -> None:
    """Do every step as `run` does; nothing is left to do, so that no engine but MLflow is needed."""
    with Pipeline(config) as pipeline:
        shards, checkpoints = pipeline.shard().record, [None]
        for stage in pipeline.run(shards).stages:
            checkpoints.append(pipeline.train(shards, stage, checkpoints[-1]).record)
        report = pipeline.evaluate(shards, checkpoints[-1]).record
        version = pipeline.register(shards, checkpoints[-1], report).record
        verdict = pipeline.gate(shards, version, report).record
        pipeline.summarize(shards, checkpoints[1:], report, version, verdict)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, empty_database, draw_images) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "root").mkdir()
    shutil.copy(empty_database, folder / "root" / "mlflow.db")
    source = draw_images(folder / "images", [f"{number}.png" for number in range(24)], size=(8, 8), mode="L")
    (source / "broken.png").write_bytes(b"none")
    data = {"source": str(source), "resolution": 8, "channels": 1, "max_rejected": 1}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TREE | {"storage": {"root": str(folder / "root")}, "data": data}))
    config = load(str(path))
    run = Run(config, write_shards(open_source(config.data), config.data, config.storage.root))
    checkpoint = None
    for stage in run.stages:
        checkpoint = train_stage(run.job(stage, checkpoint))
    report = evaluate(checkpoint.uri, run.shards, config.evaluation, root=run.root, out_uri=run.uri)
    storage.write_json(f"{run.uri}/report.json", report.model_dump(mode="json"))
    repeat(config)
    return Finished(str(path), config, run.shards, run)


JSON = {
    "an object": b"{}",
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "a text": b'"x"',
    "nothing": b"",
    "binary": bytes(range(256)),
    "no UTF-8": b'{"uri": "\xff\xfe"}',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
}


def field_by_field(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield a JSON object without each of its fields, and with each of a wrong type or NaN."""
    record = json.loads(content)
    for key in record:
        yield f"without {key}", json.dumps({name: value for name, value in record.items() if name != key}).encode()
        for wrong in ({"x": [None]}, float("nan")):
            yield f"{key}={wrong}", json.dumps(record | {key: wrong}).encode()


@contextmanager
def damaged(path: Path, content: bytes | None) -> Iterator[None]:
    """Put other bytes (None: a folder) in the place of a file during the block."""
    whole = path.read_bytes()
    path.unlink()
    try:
        path.mkdir() if content is None else path.write_bytes(content)
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(whole)


def outcome(capsys, call: Callable[[], object]) -> tuple[int, str]:
    """Return the exit code and all that was said. An error that is not one line ends the test."""
    capsys.readouterr()
    try:
        code = call()
    except UserError as error:
        return 1, str(error)
    printed, said = capsys.readouterr()
    assert "Traceback" not in said
    if code:
        assert len([line for line in said.splitlines() if line.startswith("stylegan: ")]) == 1, said
    return int(code or 0), " ".join(f"{printed} {said}".split())


def command(finished: Finished, verb: str) -> Callable[[], object]:
    """Return a call of a verb on the finished run."""
    out = str(Path(finished.path).parent / "out")
    set_root = ["--set", f"storage.root={finished.run.root}"]
    run = [finished.run.run_id, "--config", finished.path]
    arguments = {
        "plan": ["plan", finished.path],
        "shard": ["shard", finished.path],
        "verify": ["shard", "--verify", finished.shards.uri],
        "evaluate": ["evaluate", finished.path],
        "evaluate a run": ["evaluate", finished.run.run_id, *set_root],
        "sample a run": ["sample", *run, "--seeds", "0", "--out", f"{out}.png"],
        "sample a checkpoint": [
            *("sample", str(finished.file("checkpoint.json").parent), "--seeds", "0", "--out", f"{out}.png")
        ],
        "export": ["export", *run, "--out", f"{out}.safetensors"],
        "register": ["register", finished.path],
    }
    return (lambda: repeat(finished.config)) if verb == "run" else lambda: main(arguments[verb])


VERBS = (
    *("plan", "run", "shard", "verify", "evaluate", "evaluate a run", "register"),
    *("sample a run", "sample a checkpoint", "export"),
)
# A verb that needs the record.
NEEDED_BY = {
    "manifest.json": "plan",
    "samples.parquet": "verify",
    "done.json": "plan",
    "stats.jsonl": "run",
    "report.json": "plan",
    "verdict.json": "plan",
    "config.yaml": "evaluate a run",
    "checkpoint.json": "sample a checkpoint",
    "generator.safetensors": "sample a run",
}
# Changes of one field that leave the record whole. Only estimates need the speed of a stage in done.json, and only pages its hardware.
_REPORT = ("intervals", "protocols", "settings", "attributes", "curves", "figures", "skipped")
_WRONG = ("without {}", "{}={{'x': [None]}}", "{}=nan")
ANYTHING_GOES = {
    "report.json": {*(f"without {key}" for key in _REPORT), "settings={'x': [None]}"},
    "manifest.json": {
        *(way.format(key) for key in ("__kind__", "wids_version") for way in _WRONG),
        *("without parent", "without images_fingerprint"),
    },
    "verdict.json": {"without models", "without against"},  # that of an earlier release
    "done.json": {way.format(key) for key in ("img_per_sec", "model", "ray", "work", "hardware") for way in _WRONG},
}
MADE_ANEW = ("card.json", "preview.png", "newest.json")


@pytest.mark.parametrize("name", NEEDED_BY)
def test_a_damaged_record_is_one_line_with_its_file_and_the_cure(finished, capsys, name):
    path = finished.file(name)
    call, content = command(finished, NEEDED_BY[name]), path.read_bytes()
    damages: dict[str, bytes | None] = JSON | {"cut": content[: len(content) // 2].rstrip(), "a folder": None}
    if name.endswith(".json"):
        damages |= dict(field_by_field(content))
    lines = {what: f"{line.decode()}\n".encode() for what, line in JSON.items() if what in ("an object", "a list")}
    if name == "stats.jsonl":  # a last line without its end is still being written
        damages = lines | {"a folder": None, "binary": bytes(range(256)) + b"\n"}
    for what, wrong in damages.items():
        if what in ANYTHING_GOES.get(name, ()):
            continue
        with damaged(path, wrong):
            code, said = outcome(capsys, call)
        assert code == 1, (what, said)
        assert "\n" not in said
        assert str(path) in said, (what, said)
        assert "delete" in said or "again" in said or "move it away" in said, (what, said)
    assert outcome(capsys, call)[0] == 0


@pytest.mark.parametrize("name", MADE_ANEW)
def test_what_costs_nothing_is_made_anew_with_a_warning(finished, capsys, caplog, name):
    path = finished.file(name)
    whole = path.read_bytes()
    for what, wrong in (JSON | {"cut": whole[: len(whole) // 2]}).items():
        caplog.clear()
        with damaged(path, wrong):
            assert outcome(capsys, command(finished, "shard"))[0] == 0, what
            assert path.read_bytes() == whole, what
        assert str(path) in caplog.text, what


@pytest.mark.parametrize(
    "name", [*NEEDED_BY, *MADE_ANEW, "training.pt", "rejected.jsonl", "samples.png", "growth.webp"]
)
def test_no_verb_ends_in_a_traceback(finished, capsys, name):
    """A verb that needs the record names it or its set, which is then made whole by the next run; the others work."""
    path = finished.file(name)
    named = str(path.parent if name == "samples.parquet" else path)
    for verb in VERBS:
        with damaged(path, b"{}\n"):
            code, said = outcome(capsys, command(finished, verb))
        assert code in (0, 1)
        assert code == 0 or named in said, (verb, said)


def test_a_damaged_marker_never_lets_a_finished_stage_be_trained_again(finished, capsys):
    """It is not taken for finished; the cure is followed, and the stage goes on from its end."""
    path = finished.file("done.json")
    record = json.loads(path.read_bytes())
    for wrong in ({"uri": "elsewhere"}, {"nimg": 4}, {"digest": "0123456789"}, {"resolution": 4}):
        with damaged(path, json.dumps(record | wrong).encode()):
            for verb in ("plan", "run", "register", "evaluate"):
                code, said = outcome(capsys, command(finished, verb))
                assert code == 1
                assert f"{path}: is damaged" in said
    path.unlink()
    below, stage = finished.run.find_stage(finished.run.stages[0]), finished.run.stages[-1]
    before = os.stat(finished.file("training.pt")).st_mtime_ns
    train_stage(finished.run.job(stage, below))
    assert os.stat(finished.file("training.pt")).st_mtime_ns == before
    assert {**json.loads(path.read_bytes()), "img_per_sec": 0} == {**record, "img_per_sec": 0}


def test_an_entry_of_the_future_is_no_damage(finished, capsys):
    for name in ("manifest.json", "done.json", "report.json", "verdict.json", "checkpoint.json", "card.json"):
        path = finished.file(name)
        with damaged(path, json.dumps(json.loads(path.read_bytes()) | {"of_the_future": {"x": 1}}).encode()):
            for verb in ("plan", "shard", "evaluate", "sample a checkpoint"):
                assert outcome(capsys, command(finished, verb))[0] == 0, (name, verb)


def test_a_report_from_before_directions_were_kept_is_still_done(finished, capsys):
    """No step measures anything because of it; `edit` says how to get them."""
    path = finished.file("report.json")
    facts = {"left": {"entropy_w": 0.1, "entropy_z": 0.2, "share": 0.5, "error": None}}
    with damaged(path, json.dumps(json.loads(path.read_bytes()) | {"attributes": facts}).encode()):
        before = path.read_bytes()
        for verb in ("plan", "run", "evaluate"):
            assert outcome(capsys, command(finished, verb))[0] == 0, verb
        code, said = outcome(capsys, lambda: main(["edit", finished.run.uri, "--attribute", "left"]))
        assert code == 2
        assert f"evaluate {finished.run.uri}` fits the hyperplanes of its report again" in said
        assert path.read_bytes() == before
        assert not finished.file("directions.safetensors").exists()
        finished.file("directions.safetensors").write_bytes(b"none")
        code, said = outcome(capsys, lambda: main(["edit", finished.run.uri, "--attribute", "left"]))
        assert code == 1
        assert f"{finished.file('directions.safetensors')}: is damaged" in said
        finished.file("directions.safetensors").unlink()
