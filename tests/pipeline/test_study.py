"""The study of a search: its space, its journal in storage, and what is repeated after a kill."""

import sys

import pytest

from stylegan import storage
from stylegan.config.file import load
from stylegan.errors import ConfigError, DamagedError
from stylegan.pipeline.study import STUDIES, Objective, Study, check_space, read_space

SPACE = (
    "training.r1_gamma: {low: 0.01, high: 10, log: true}\n"
    "model.mapping_layers: {low: 1, high: 5, step: 2}\n"
    "model.style_mixing_prob: [0, 0.5, 0.9]\n"
)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "name: tiny\ndata: {source: digits, resolution: 8, channels: 1}\nevaluation: {metrics: [fid, pr]}\n"
    )
    return path


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return read_space(path)


def search(config, space, count, *, reopened=False):
    """Return the overrides of trials, each of which is told a value; `reopened`: by a new process each."""
    found = []
    study = Study(config, Objective(key="eval/fid"), space)
    for number in range(count):
        trial = study.ask()
        if reopened:  # killed between asking and telling
            study = Study(config, Objective(key="fid"), space)
            (trial,) = study.left_open()
        assert trial.number == number
        found.append(trial.overrides)
        study.tell(number, float(abs(number - 3)))
    assert study.best().overrides == found[3]
    assert study.value(3) == 0
    return found


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_search_that_was_killed_tries_the_same(config, space, tmp_path, where, s3_server):
    """A trial that was under way keeps its settings, and the next ones are those of a search that was not killed."""
    roots = [s3_server() if where == "s3" else str(tmp_path / name) for name in ("a", "b")]
    first, second = (load(config, [f"storage.root={root}"]) for root in roots)
    expected = search(first, space, 9)
    assert len(set(expected)) == 9
    assert search(second, space, 9, reopened=True) == expected
    assert len(storage.names(storage.join(roots[0], STUDIES))) == 1


def test_every_trial_is_a_config_within_the_space(config, space, tmp_path):
    settings = load(config, [f"storage.root={tmp_path}"])
    for overrides in search(settings, space, 8):
        trial = load(config, overrides)
        assert 0.01 <= trial.training.r1_gamma <= 10
        assert trial.model.mapping_layers in (1, 3, 5)
        assert trial.model.style_mixing_prob in (0, 0.5, 0.9)


def test_a_trial_that_is_worse_than_the_median_is_pruned_after_the_first_ones(config, space, tmp_path):
    settings = load(config, [f"storage.root={tmp_path}"])
    study = Study(settings, Objective(key="fid"), space)
    for _ in range(5):
        trial = study.ask()
        assert not study.report(trial.number, 4, 10.0 + trial.number)
        study.tell(trial.number, 1.0)
    good, bad = study.ask(), study.ask()
    assert not study.report(good.number, 4, 9.0)
    assert study.report(bad.number, 4, 30.0)
    assert study.reported(bad.number) == {4}
    study.tell(bad.number, None, pruned=True)
    study.tell(good.number, None)  # diverged
    assert Study(settings, Objective(key="fid"), space).left_open() == []
    assert study.value(bad.number) is None


def test_higher_is_better_where_it_is(config, space, tmp_path):
    study = Study(load(config, [f"storage.root={tmp_path}"]), Objective(key="eval/recall"), space)
    for value in (0.1, 0.7, 0.3):
        study.tell(study.ask().number, value)
    assert study.best().number == 1


def test_another_space_or_config_is_another_study(config, space, tmp_path):
    settings = load(config, [f"storage.root={tmp_path}"])
    names = {
        Study(one, Objective(key=key), dimensions).name
        for one, key, dimensions in [
            (settings, "fid", space),
            (settings, "recall", space),
            (settings, "fid", space[:1]),
            (load(config, [f"storage.root={tmp_path}", "seed=1"]), "fid", space),
        ]
    }
    assert len(names) == 4
    moved = load(config, [f"storage.root={tmp_path / 'moved'}", "ray.cpus_per_worker=2"])
    assert Study(moved, Objective(key="fid"), space).name in names


def test_a_damaged_journal_is_named_with_its_cure(config, space, tmp_path):
    settings = load(config, [f"storage.root={tmp_path}"])
    study = Study(settings, Objective(key="fid"), space)
    uri = storage.join(tmp_path, STUDIES, study.name, "journal.jsonl")
    storage.write_bytes(uri, b'{"op_code": 0}\n[1')
    with pytest.raises(DamagedError, match="delete it to begin the study anew"):
        Study(settings, Objective(key="fid"), space)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must hold lines such as"),
        ("- 1\n", "must hold lines such as"),
        ("a: {low: 1, high: 2\n", "line"),
        ("seed: 1\ntraining.r1_gamma: 3\n", "line 1: seed: must be a list of values, or {low: 0.01, high: 10}"),
        ("training.r1_gamma: [1]\n", "line 1: training.r1_gamma: a list must have two or more single values"),
        ("training.r1_gamma: [1, 1]\n", "has a value twice"),
        ("training.r1_gamma: [[1], [2]]\n", "single values"),
        ("training.r1_gamma: {low: 1}\n", "training.r1_gamma.high: must be a number, and is null"),
        ("training.r1_gamma: {low: a, high: 2}\n", 'training.r1_gamma.low: must be a number, and is "a"'),
        ("training.r1_gamma: {low: 3, high: 1}\n", "low=3 must be below high=1"),
        ("training.r1_gamma: {low: 0, high: 1, log: true}\n", "log needs low above 0"),
        ("training.r1_gamma: {low: 1, high: 2, log: 1}\n", "log: must be true or false, and is 1"),
        ("training.r1_gamma: {low: 1, high: 2, step: 0}\n", "step: must be above 0, and is 0"),
        ("training.r1_gamma: {low: 1, high: 2, stepp: 1}\n", "training.r1_gamma.stepp: is not known"),
        ("training.r1_gama: {low: 1, high: 2}\n", "unknown key training.r1_gama; did you mean training.r1_gamma?"),
        ("training.r1_gamma: {low: -1, high: 2}\n", "training.r1_gamma=-1: "),
        ("model.mapping_layers: {low: 1.5, high: 2}\n", "model.mapping_layers=1.5: must be a whole number"),
    ],
)
def test_a_mistake_in_a_space_is_one_line(config, tmp_path, text, says):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        check_space(path, read_space(path), load(config))
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_optimised_must_be_measured_and_have_a_direction(config, space):
    settings = load(config)
    for key in ("eval/kid", "eval/fid_mixing", "nonsense"):
        with pytest.raises(ConfigError, match=r"--optimize eval/.*: eval/fid, eval/precision, eval/recall"):
            Objective(key=key).check(settings)
    assert Objective(key="eval/fid").of({"fid_mixing_classifier": 1.0, "fid_classifier": 2.0}) == 2.0
    assert Objective(key="fid_inception").of({"fid_classifier": 2.0, "fid_inception": 3.0}) == 3.0
    assert Objective(key="fid").of({"fid_classifier": float("nan")}) is None


def test_without_optuna_the_cure_is_said(config, space, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'stylegan-pipeline\[sweep\]'"):
        Study(load(config), Objective(key="fid"), space)
