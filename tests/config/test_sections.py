"""Tests of reading configs: merging, overriding, and mistakes as one line that names key, value and cure."""

import json
import math
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stylegan.config.file import build, dump, flatten, load
from stylegan.config.resolutions import RESOLUTIONS, at_resolution
from stylegan.config.sections import Section
from stylegan.config.tree import Config
from stylegan.errors import ConfigError
from stylegan.records import digest

SMALL = {"name": "small", "data": {"source": "digits", "resolution": 32}}


def written(folder: Path, tree: object, name: str = "config.yaml") -> Path:
    """Write a config file, from text or plain values, and return its path."""
    path = folder / name
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path


def mistake(path: Path, *overrides: str) -> str:
    """Return the message of the ConfigError that a file and its overrides cause; it must be one line."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_train(tmp_path):
    """A name, a source and a resolution are a complete config; the rest has the defaults of StyleGAN v1."""
    config = load(written(tmp_path, SMALL))
    assert config.resolutions == (8, 16, 32)
    assert config.model_name == "small"
    assert (config.model.latent_size, config.training.r1_gamma, config.training.adam_beta1) == (512, 10.0, 0.0)
    assert [config.batch_at(r) for r in RESOLUTIONS] == [128, 128, 128, 64, 32, 16, 8, 4, 4]


def test_missing_file(tmp_path):
    """The message names a file that does not exist."""
    assert mistake(tmp_path / "none.yaml").startswith(f"{tmp_path}/none.yaml: no such config file")


def test_folder_instead_of_a_file(tmp_path, monkeypatch):
    """A folder is no config: the line names those in it, else how a config names images."""
    assert f"is a folder, and a config is a YAML file; images are named in it: `data: {{source: {tmp_path}" in mistake(
        tmp_path
    )
    for name in ("faces.yaml", "cats.yml"):
        (tmp_path / name).touch()
    (tmp_path / ".hidden.yaml").touch()
    far = tmp_path.with_name("far").joinpath(*"abcdefghijklmnopqrstuvwxyz")
    far.mkdir(parents=True)
    monkeypatch.chdir(far)  # from a folder nearby the names would be shorter from there
    assert mistake(tmp_path).endswith(f"give a config file of it: {tmp_path}/cats.yml, {tmp_path}/faces.yaml")
    (tmp_path / "cats.yml").unlink()
    assert mistake(tmp_path).endswith(f"did you mean {tmp_path}/faces.yaml?")


def test_a_list_on_the_command_line_needs_no_brackets():
    """Brackets are patterns for shells. A file has one form, which editors know."""

    def evaluated(override):
        tree = {"name": "t", "data": {"source": "digits", "resolution": 32}}
        return build(tree, overrides=[override])

    assert evaluated("evaluation.metrics=fid").evaluation.metrics == ("fid",)
    assert evaluated("evaluation.metrics=fid, pr").evaluation.metrics == ("fid", "pr")
    assert evaluated("evaluation.metrics=[fid,pr]").evaluation.metrics == ("fid", "pr")
    assert evaluated("evaluation.metrics=[]").evaluation.metrics == ()
    assert evaluated("evaluation.psi=0.7").evaluation.psi == (0.7,)
    assert evaluated("evaluation.psi=0.5,1").evaluation.psi == (0.5, 1.0)
    assert evaluated("snapshots.metrics=kid").snapshots.metrics == ("kid",)
    with pytest.raises(ConfigError, match=r"evaluation.metrics.1='foo': input should be 'fid'"):
        evaluated("evaluation.metrics=fid,foo")
    with pytest.raises(ConfigError, match=r"evaluation.metrics=None: must be a list"):
        evaluated("evaluation.metrics=null")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [a\nb: 2", "line 2: not valid YAML"),
        ("", "must hold `key: value` lines, found nothing"),
        ("- a\n- b", "found a list"),
        ("name", "found a single value"),
        (
            "name: a\n\tb: c",
            "line 2: not valid YAML (found character '\\t' that cannot start any token); replace the tab",
        ),
        ("name: a\nseed: \x01", "line 2: not valid YAML"),
    ],
)
def test_bad_yaml(tmp_path, text, words):
    """The message gives the line of text that is not YAML, and the type of YAML that is not a mapping."""
    assert words in mistake(written(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.sorce=x", "unknown key data.sorce; did you mean data.source?"),
        ("trainng.batch=8", "unknown key trainng; did you mean training?"),
        ("registry.gate.metrik=fid", "did you mean registry.gate.metric?"),
        ("training.stages.8.bach=4", "unknown key training.stages.8.bach; did you mean training.stages.8.batch?"),
        ("ray.stages.8.zzz=4", "known here: workers, cpus_per_worker, gpus_per_worker"),
        ("storage.zzz=1", "unknown key storage.zzz; known here: root"),
        ("data.resolution=33", "data.resolution=33: must be a power of two from 4 to 1024; the nearest is 32"),
        ("data.resolution=2048", "data.resolution=2048: must be a power of two from 4 to 1024; the nearest is 1024"),
        ("data.resolution=large", "data.resolution='large'"),
        ("data.channels=2", "data.channels=2: input should be 1 or 3"),
        ("data.labels=folders", "data.labels='folders'"),
        ("name=My Run", "name='My Run'"),
        ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
        ("training.batch=0", "training.batch.4=0: input should be greater than or equal to 1"),
        ("training.batch={}", "training.batch={}"),
        ("training.fade_kimg=-1", "training.fade_kimg.4=-1"),
        ("training.learning_rate=.nan", "training.learning_rate.4=nan: input should be a finite number"),
        ("training.total_kimg=.inf", "training.total_kimg=inf: input should be a finite number"),
        ("snapshots.log_kimg=0", "snapshots.log_kimg.4=0: input should be greater than or equal to 0.001"),
        (
            "training.start_resolution=64",
            "training.start_resolution=64: must be a power of two from 4 to data.resolution=32",
        ),
        ("training.start_resolution=12", "training.start_resolution=12: must be a power of two"),
        ("training.stages.64.batch=4", "training.stages.64: no such stage; the stages are [8, 16, 32]"),
        ("ray.stages.4.workers=1", "ray.stages.4: no such stage"),
        ("ray.workers=3", "training.batch at 8x8 is 128: not divisible by its 3 workers; use a multiple of 3"),
        ("training.batch=6", "not divisible by model.mbstd_group=4"),
        ("registry.gate.metric=kid", "registry.gate.metric=kid: not among evaluation.metrics="),
        ("evaluation.metrics=[fid, lpips]", "evaluation.metrics.1='lpips'"),
        ("evaluation.num_reals=some", "evaluation.num_reals"),
        ("evaluation.psi=[0.5, 1.5]", "evaluation.psi.1=1.5"),
    ],
)
def test_wrong_values_and_keys(tmp_path, override, words):
    """The message names the file, the key, the value and what is allowed."""
    path = written(tmp_path, SMALL)
    message = mistake(path, override)
    assert message.startswith(f"{path}: ")
    assert words in message


def test_conditional_needs_labels(tmp_path):
    """A conditional model on unlabelled data cannot start."""
    message = mistake(written(tmp_path, SMALL), "model.conditional=true", "data.labels=none")
    assert message.endswith("set data.labels=auto or model.conditional=false")


def test_missing_key_says_what_it_is(tmp_path):
    """The message explains a missing key."""
    assert "data.source is missing; Folder, archive or data set" in mistake(
        written(tmp_path, {"name": "a", "data": {"resolution": 8}})
    )
    assert "name is missing; Lower case letters" in mistake(written(tmp_path, {"data": SMALL["data"]}))


def test_misspelt_key_is_reported_before_the_missing_one(tmp_path):
    """`sorce` is why `source` is missing."""
    tree = {"name": "a", "data": {"sorce": "digits", "resolution": 8}}
    assert "unknown key data.sorce; did you mean data.source?" in mistake(written(tmp_path, tree))


def test_overrides(tmp_path):
    """--set reads YAML values, later ones win, missing sections are made, and one stage may be changed."""
    path = written(tmp_path, SMALL | {"training": {"batch": 8}})
    config = load(
        path,
        [
            "seed=1",
            "seed=2",
            "training.batch.16=16",
            "model.noise=false",
            "ray.stages.16.workers=2",
            "training.learning_rate=1e-3",
        ],
    )
    assert config.seed == 2
    assert config.training.batch == {4: 8, 16: 16}
    assert config.model.noise is False
    assert config.training.learning_rate == {4: 0.001}
    assert [config.workers_at(r).workers for r in (8, 16)] == [1, 2]


@pytest.mark.parametrize("override", ["seed", "=3", "training..batch=3", ".seed=1"])
def test_override_that_is_none(tmp_path, override):
    """The message shows the form of an override to one without key or value."""
    assert mistake(written(tmp_path, SMALL), override).startswith(f"--set {override}: must be key.path=value")


def test_base_is_merged_key_by_key(tmp_path):
    """A config replaces single keys of its base. The path is relative to the config; a base may have a base."""
    (tmp_path / "sub").mkdir()
    written(tmp_path, SMALL | {"seed": 1, "training": {"batch": 8, "mirror": True}}, "root.yaml")
    written(tmp_path, {"base": "root.yaml", "seed": 2, "training": {"batch": 16}}, "middle.yaml")
    config = load(written(tmp_path / "sub", {"base": "../middle.yaml", "name": "top"}))
    assert (config.name, config.seed, config.training.mirror, config.training.batch) == ("top", 2, True, {4: 16})


def test_base_that_is_missing_or_leads_back(tmp_path):
    """The message names a base that does not exist, and a loop of bases ends."""
    assert "gone.yaml: no such config file" in mistake(written(tmp_path, {"base": "gone.yaml"}))
    written(tmp_path, {"base": "b.yaml"}, "a.yaml")
    assert "lead back to itself" in mistake(written(tmp_path, {"base": "a.yaml"}, "b.yaml"))


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("/dev/zero", "has more than 1,048,576 bytes"),
        ("large.yaml", "has more than 1,048,576 bytes"),
        ('"a\\0b"', "cannot be read as text (embedded null byte)"),
        ("loop.yaml", "cannot be read as text"),
    ],
)
def test_a_base_that_is_no_file_of_text(tmp_path, base, says):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "large.yaml").write_text("#" * (2**20 + 1))
    assert says in mistake(written(tmp_path, f"name: a\nbase: {base}\n"))


def test_an_empty_path_is_no_config():
    assert "the path of the config is empty" in mistake("")


def test_dump_loads_back(tmp_path):
    """The dumped config loads as the same config."""
    config = load(
        written(tmp_path, SMALL), ["training.batch.16=64", "ray.stages.8.workers=2", "training.total_kimg=7000"]
    )
    assert load(written(tmp_path, dump(config), "resolved.yaml")) == config


def test_digest_sees_values_not_spelling(tmp_path):
    """Key order and a written-out default do not change the digest; every value does."""
    plain = load(written(tmp_path, SMALL))
    assert digest(
        load(written(tmp_path, {"data": {"resolution": 32, "source": "digits", "channels": 3}, "name": "small"}))
    ) == digest(plain)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    changed = {
        digest(load(written(tmp_path, SMALL), [override]))
        for override in ("seed=1", "model.noise=false", "training.batch.32=32")
    }
    assert len(changed | {digest(plain)}) == 4


def test_flatten_names_every_value(tmp_path):
    """Every value has its dotted key and is text."""
    flat = flatten(load(written(tmp_path, SMALL)))
    assert flat["data.source"] == "digits"
    assert flat["training.batch.32"] == "64"
    assert flat["tracking.uri"] == "null"
    assert all(isinstance(value, str) for value in flat.values())


@given(
    table=st.dictionaries(st.sampled_from(RESOLUTIONS), st.integers(), min_size=1),
    resolution=st.sampled_from(RESOLUTIONS),
)
def test_table_by_resolution(table, resolution):
    """An entry holds from its resolution up to the next; below the first entry the first holds."""
    below = [key for key in sorted(table) if key <= resolution]
    assert at_resolution(table, resolution) == table[below[-1] if below else min(table)]


def test_config_cannot_be_changed():
    """Sections are frozen."""
    config: Config = build(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_overriding_one_entry_of_a_table_keeps_the_defaults_of_the_others(tmp_path):
    """Another learning rate at 1024 does not change the rate at 8."""
    path = written(tmp_path, SMALL | {"data": {"source": "digits", "resolution": 1024}})
    config = load(path, ["training.learning_rate.1024=0.1"])
    assert config.training.learning_rate == {4: 0.001, 128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.1}
    assert load(path, ["training.stages.16.batch=4"]).batch_at(16) == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.total_kimg=2400", "take 2400 already"),
        ("training.stages.8.fade_kimg=1", "the first stage has nothing to fade in from"),
        ("training.batch.12=3", "12 is no resolution"),
        ("model.styles=false", "set model.const_input=false or model.styles=true"),
        ("registry.name=a/b", "registry.name='a/b'"),
        ("seed=99999999999", "seed=99999999999"),
    ],
)
def test_what_could_not_train_is_refused(tmp_path, override, words):
    assert words in mistake(written(tmp_path, SMALL), override)


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("configs/**/*.yaml")), ids=lambda path: path.name
)
def test_shipped_configs_are_sound(path):
    assert load(path).resolutions


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("seed: yes", "line 3: seed='yes': must be a whole number"),
        ("seed: true", "line 3: seed=True: must be a whole number"),
        ("seed: 1.0", "line 3: seed=1.0: must be a whole number; write 1"),
        ("seed: '12'", "seed='12': must be a whole number; write 12"),
        ("seed: 1_000", "seed='1_000': must be a whole number; write 1000"),
        ("seed: 1e3", "seed=1000.0: must be a whole number; write 1000"),
        ("seed: 12:30", "seed='12:30': must be a whole number"),
        ("seed: 0b101", "seed='0b101': must be a whole number"),
        ("seed: 2026-11-26", "seed='2026-11-26': must be a whole number"),
        ("seed:", "seed=None: must be a whole number; write one, or remove the key to get its default"),
        ("seed: 0123", "line 3: seed: 0123 begins with a zero"),
        ("model:\n  noise: yes", "line 4: model.noise='yes': must be true or false; write true"),
        ("model:\n  noise: 0", "model.noise=0: must be true or false; write false"),
        ("model:\n  noise: 'true'", "model.noise='true': must be true or false; write true"),
        ("model: {style_mixing_prob: '0.5'}", "must be a number; write 0.5"),
        ("model: {style_mixing_prob: true}", "model.style_mixing_prob=True: must be a number"),
        ("model:", "model=None: must be a section"),
        ("model: [noise]", "model=['noise']: must be a section"),
        ("tracking: {experiment: 123}", "line 3: tracking.experiment=123: must be text; put it in quotes"),
        ("tracking: {experiment: true}", "tracking.experiment=True: must be text; put it in quotes"),
        ("training: {fade_kimg: no}", "line 3: training.fade_kimg.4='no': must be a number"),
        ("training: {fade_kimg: {4: 1, '4': 2}}", "a resolution is given twice"),
        ("training: {stages: {8: {batch: 4}, '8': {batch: 8}}}", "a resolution is given twice"),
        ("training: {batch: true}", "training.batch.4=True: input should be"),
        ("training: {stages: {true: {batch: 4}}}", "the key true is no name"),
        ("evaluation: {metrics: fid}", "line 3: evaluation.metrics='fid': must be a list; write [fid]"),
        ("evaluation: {num_reals: 1.0}", "evaluation.num_reals=1.0"),
        ("evaluation: {num_reals: true}", "evaluation.num_reals=True"),
        ("evaluation: {psi: ['0.5']}", "line 3: evaluation.psi.0='0.5': must be a number; write 0.5"),
        ("snapshots: {metrics_kimg: 1e-6}", "must be 0, or at least 0.001"),
        ("training: {total_kimg: 1e999}", "input should be a finite number"),
        ("training: {batch: 8}\ntraining: {mirror: true}", "line 4: training: is given twice (first in line 3)"),
    ],
)
def test_types_are_strict_and_the_message_has_line_key_and_cure(tmp_path, lines, words):
    path = written(tmp_path, f"name: small\ndata: {{source: digits, resolution: 32}}\n{lines}\n")
    message = mistake(path)
    assert message.startswith(f"{path}: ")
    assert words in message


def test_channels_are_a_number(tmp_path):
    """Python takes true and 1.0 for 1."""
    for value in ("true", "1.0"):
        assert f"data.channels={value.title()}: input should be 1 or 3" in mistake(
            written(tmp_path, SMALL), f"data.channels={value}"
        )


def test_the_line_is_that_of_the_file_which_has_the_value(tmp_path):
    """A value of a base is a mistake in the base; one that was replaced is a mistake in the file, or of --set."""
    base = written(
        tmp_path,
        "data: {source: digits, resolution: 32}\nmodel:\n  noise: yes\ntraining:\n  batch:\n    4: x\n",
        "base.yaml",
    )
    top = written(tmp_path, "base: base.yaml\nname: a\ntraining: {batch: 8}\n", "top.yaml")
    assert mistake(top).startswith(f"{base}: line 3: model.noise='yes'")
    top.write_text("base: base.yaml\nname: a\ntraining:\n  batch: 0\nmodel: {noise: true}\n")
    assert mistake(top).startswith(f"{top}: line 4: training.batch.4=0")
    assert mistake(top, "training.batch=true").startswith(f"{top}: training.batch.4=True")


def test_checks_of_several_values_name_the_line_too(tmp_path):
    path = written(tmp_path, "name: a\ndata: {source: digits, resolution: 32}\ntraining:\n  start_resolution: 64\n")
    assert mistake(path).startswith(f"{path}: line 4: training.start_resolution=64: ")


def test_a_file_of_another_encoding(tmp_path):
    """A byte order mark is no part of the first key; other encodings are refused with the line."""
    path = tmp_path / "a.yaml"
    text = "name: a\ndata: {source: /data/größe, resolution: 8}\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load(path).data.source == "/data/größe"
    for encoding, line in (("latin-1", 2), ("utf-16", 1)):
        path.write_bytes(text.encode(encoding))
        assert f"{path}: line {line}: is not UTF-8 text; save the file as UTF-8" in mistake(path)


def test_a_base_that_is_no_path(tmp_path):
    assert "line 1: base=5: must be the path of another config" in mistake(written(tmp_path, "base: 5\nname: a"))


@pytest.mark.parametrize("source", ["/data/set #2", "/data/a: b", "s3://b/{000..009}.tar", "[ab]*.png", "-", "yes"])
def test_text_of_an_override_is_taken_whole(tmp_path, source):
    assert load(written(tmp_path, SMALL), [f"data.source={source}"]).data.source == source


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("name.x=1", "--set name.x=1: name is a single value; it has no key x"),
        ("seed=", "--set seed=: has no value"),
        ("name=123", "name=123: must be text; put it in quotes"),
        ("seed= 5", "seed=' 5': must be a whole number; write 5"),
        ("training=batch: 4", "training='batch: 4': must be a section"),
    ],
)
def test_overrides_that_are_half_right(tmp_path, override, words):
    assert words in mistake(written(tmp_path, SMALL), override)


def test_json_means_the_same(tmp_path):
    """A deployment hands a config over as JSON, in which the keys of tables are text, and lists are lists."""
    config = load(
        written(tmp_path, SMALL), ["training.batch.16=16", "training.stages.16.fade_kimg=1", "evaluation.psi=[1]"]
    )
    tree = json.loads(config.model_dump_json())
    assert set(tree["training"]["batch"]) > {"4", "16"}
    assert build(tree) == config
    assert build(tree, "config", ["training.batch.16=32"]).batch_at(16) == 32
    assert build(tree, "config", ["training.stages.16.batch=4"]).training.stages[16].fade_kimg == 1


def numeric_fields(model=Config, path=()):
    """Yield the path of every numeric field, and a table's with its resolution."""
    for name, field in model.model_fields.items():
        text = str(field.annotation) + str(field.metadata)
        section = next(
            (
                kind
                for kind in (field.annotation, *get_args(field.annotation))
                if isinstance(kind, type) and issubclass(kind, Section)
            ),
            None,
        )
        if section:
            yield from numeric_fields(section, (*path, name))
        elif (
            ("int" in text or "float" in text)
            and "bool" not in text
            and name not in ("stages", "psi", "resources_per_worker")
        ):
            yield (*path, name)


def test_words_of_ray_are_understood_as_people_mean_them():
    """`local` is a Ray of its own. To Ray a space in a list of labels would be a part of the next one."""
    tree = {"name": "a", "data": {"source": "digits", "resolution": 8}}
    ray = {"address": "local", "label_selector": {"region": "in(eu-1, eu-2)"}}
    config = build(tree | {"ray": ray})
    assert config.ray.address is None
    assert config.workers_at(8).label_selector == {"region": "in(eu-1,eu-2)"}


def test_no_number_is_without_bounds():
    """No field takes a negative number, one beyond any machine, one that is none, or another type."""
    paths = list(numeric_fields())
    assert len(paths) > 70
    for path in paths:
        for value in (-1, 1e300, 10**30, True, "7", math.nan, -math.inf):
            tree = {"name": "a", "data": {"source": "digits", "resolution": 8}}
            section = tree
            for key in path[:-1]:
                section = section.setdefault(key, {})
            if "warm_start" in path:
                section["checkpoint"] = "/stages/0008-0123456789/checkpoint-000001000"
            section[path[-1]] = value
            with pytest.raises(ConfigError, match=re.escape(".".join(path))) as caught:
                build(tree)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ray.resources_per_worker={a100: -1}", "ray.resources_per_worker.a100=-1"),
        ("ray.resources_per_worker={a100: .nan}", "finite number"),
        ("ray.resources_per_worker={GPU: 1}", "set ray.gpus_per_worker"),
        ("ray.resources_per_worker={'a b': 1}", "'a b' is no name of a resource"),
        ("ray.workers=0", "ray.workers=0"),
        ("ray.gpus_per_worker=1.5", "must be whole above 1"),
        ("ray.stages.8.gpus_per_worker=-1", "ray.stages.8.gpus_per_worker=-1"),
        ("ray.address=head", "ray.address='head'"),
        ("ray.address=me:secret@head:6379", "ray.address="),
        (f"name={'a' * 201}", "at most 200 characters"),
        ("name=-a", "name='-a'"),
        ("name=..", "name='..'"),
        ("registry.name='a '", "registry.name='a '"),
        ("registry.name=a:b", "registry.name='a:b'"),
        (f"registry.name={'a' * 245}", "at most 200 characters"),
        ("tracking.experiment=' a'", "tracking.experiment=' a'"),
        ('tracking.experiment="a\\nb"', "tracking.experiment="),
        (f"tracking.experiment={'a' * 501}", "at most 256 characters"),
        ("registry.gate.metric='f i d'", "registry.gate.metric='f i d'"),
    ],
)
def test_names_and_resources_that_an_engine_would_refuse_later(tmp_path, override, words):
    assert words in mistake(written(tmp_path, SMALL), override)


def test_a_name_of_digits_in_a_table_of_names_stays_text(tmp_path):
    """Only tables by resolution have numbers as keys."""
    path = tmp_path / "a.yaml"
    path.write_text("name: a\ndata: {source: digits, resolution: 8}\n")
    config = load(path, ["ray.resources_per_worker.1=2", "training.batch.8=16"])
    assert config.ray.resources_per_worker == {"1": 2}
    assert config.training.batch[8] == 16
