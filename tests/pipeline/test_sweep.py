"""The configs of many runs, what they share, and the values over seeds."""

import itertools
from pathlib import Path

import pytest

from stylegan import storage
from stylegan.config.file import load
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.errors import ConfigError
from stylegan.pipeline.run import Run
from stylegan.pipeline.sweep import make_children, parse_grid, plan_sweep, shared_keys, spreads, sweep_id
from stylegan.training.state import MARKER

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"name: tiny\nseed: 5\nstorage: {{root: {tmp_path / 'root'}}}\n"
        "data: {source: digits, resolution: 16, channels: 1}\nmodel: {latent_size: 8, fmap_base: 64, fmap_max: 8}\n"
        "training: {start_resolution: 4, batch: 4, stable_kimg: {4: 1, 8: 1, 16: 1}, fade_kimg: 1}\n"
        "evaluation: {metrics: [fid]}\n"
    )
    return path


def test_a_grid_has_all_combinations_each_for_every_seed(config):
    grid = ("training.r1_gamma=0.1,1", "evaluation.metrics=[fid,pr],fid")
    children = make_children(config, ["name=other"], grid=grid, seeds=2)
    expected = list(itertools.product(["0.1", "1"], ["[fid,pr]", "fid"], [5, 6]))
    assert len({child.label for child in children}) == len(children) == 8
    for child, (gamma, metrics, seed) in zip(children, expected, strict=True):
        assert child.label == f"training.r1_gamma={gamma}, evaluation.metrics={metrics}, seed={seed}"
        assert child.group == child.label.removesuffix(f", seed={seed}")
        assert (child.config.name, child.config.seed) == ("other", seed)
        assert child.config.training.r1_gamma == float(gamma)
        assert child.config.evaluation.metrics == tuple(metrics.strip("[]").split(","))
        assert child.config == load(config, child.overrides)  # what its printed command runs
        assert child.config.command("run").count("--set") == len(child.overrides)


def test_the_first_seed_is_that_of_the_config(config):
    """So the run that is there already is the first of them."""
    first, second = make_children(config, seeds=2)
    assert first.config == load(config)
    assert (second.label, second.config.seed) == ("seed=6", 6)
    (alone,) = make_children(config)
    assert (alone.label, alone.group, alone.overrides) == ("tiny", "", ())


def test_the_shipped_ablations_are_configs_of_their_own(tmp_path):
    files = sorted((CONFIGS / "ablations").glob("?.yaml"))
    shared = ["data.source=digits", "data.channels=1", f"storage.root={tmp_path}"]
    children = make_children(None, shared, configs=files)
    assert [child.label for child in children] == ["a", "b", "c", "d", "e", "f"]
    assert {child.config.name for child in children} == {f"table1-{letter}" for letter in "abcdef"}
    both = make_children(files[0], shared, configs=files[1:3], grid={"seed": ["1", "2"]})
    assert [child.label for child in both][:3] == ["a, seed=1", "a, seed=2", "b, seed=1"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"grid": ["training.r1_gamma"]}, "--grid training.r1_gamma: must be key.path=a,b"),
        ({"grid": ["training.r1_gamma=1,,2"]}, "must be key.path=a,b"),
        ({"grid": ["training.r1_gama=1,2"]}, "unknown key training.r1_gama; did you mean training.r1_gamma?"),
        ({"grid": ["training.r1_gamma=1,x"]}, "training.r1_gamma='x': must be a number"),
        ({"grid": ["seed=1,2", "seed=3"]}, "--grid seed=3: seed has values already"),
        ({"grid": ["seed=1,2"], "seeds": 2}, "--seeds 2 with --grid seed=1,2: give one of them"),
        ({"grid": ["training.r1_gamma=1,1.0"]}, "two runs of the sweep are the same: training.r1_gamma=1 and "),
        ({"grid": ["storage.root=a,b"]}, "storage.root: is a in storage.root=a and b in storage.root=b"),
        ({"grid": ["ray.address=auto,null"]}, "the runs of a sweep share it"),
        ({"seeds": 0}, "--seeds 0: must be at least 1"),
        ({"seeds": 2000}, "the grid has 2,000 runs; at most 1,000"),
        ({"configs": ["nowhere.yaml"]}, "nowhere.yaml: no such config file"),
    ],
)
def test_a_mistake_is_one_line(config, arguments, says):
    with pytest.raises(ConfigError) as caught:
        make_children(config, **arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sweep_without_a_config_is_a_mistake():
    with pytest.raises(ConfigError, match="a sweep needs a config"):
        make_children(None)


def test_commas_in_brackets_and_quotes_belong_to_a_value():
    found = parse_grid(["a.b=[1,2],[3]", "c={4: 1, 8: 2},3", "d='x,y',\"z\""])
    assert found == {"a.b": ("[1,2]", "[3]"), "c": ("{4: 1, 8: 2}", "3"), "d": ("'x,y'", '"z"')}


def test_the_id_of_a_sweep_is_that_of_its_values(config, tmp_path):
    grid = ["training.r1_gamma=0.1,1"]
    children = make_children(config, grid=grid)
    moved = make_children(config, [f"storage.root={tmp_path / 'moved'}", "ray.cpus_per_worker=2"], grid=grid)
    turned = make_children(config, grid=["training.r1_gamma=1,0.1"])
    assert sweep_id("s", children) == sweep_id("s", moved) == sweep_id("s", turned)
    assert sweep_id("s", children) != sweep_id("s", make_children(config, grid=grid, seeds=2))
    assert sweep_id("s", children) != sweep_id("other", children)


def test_runs_share_the_stages_below_the_one_in_which_they_differ(config):
    """Before the images are sharded and after it: the plan knows what will be trained once."""
    children = make_children(config, grid=["training.stable_kimg.16=1,2", "evaluation.num_images=100,200"])

    def check() -> None:
        keys = [shared_keys(child.config) for child in children]
        assert keys[0] == keys[1] != keys[2] == keys[3]
        assert keys[0][:2] == keys[2][:2]

    check()
    plan = plan_sweep(children)
    assert (plan.stages, plan.distinct, plan.cached, plan.to_train) == (12, 4, 0, 4)
    below = ("shard", "train 4x4", "train 8x8")
    assert [child.shared for child in plan.children] == [(), (*below, "train 16x16"), below, (*below, "train 16x16")]
    alone = plan_sweep(children[:1])
    assert plan_sweep(children[:2]).seconds == pytest.approx(alone.seconds)
    assert not Path(children[0].config.storage.root).exists()  # touches nothing

    first = children[0].config
    shards = write_shards(open_source(first.data), first.data, first.storage.root)
    check()
    run = Run(first, shards)
    assert shared_keys(first) == tuple(map(run.stage_key, run.stages))


def test_a_finished_stage_counts_for_all_that_share_it(config):
    children = make_children(config, grid=["training.stable_kimg.16=1,2"])
    first = children[0].config
    shards = write_shards(open_source(first.data), first.data, first.storage.root)
    run = Run(first, shards)
    stage = run.stages[0]
    uri = f"{run.stage_uri(stage)}/checkpoint-{stage.end_nimg:09d}"
    record = {"uri": uri, "run_id": "r", "resolution": 4, "digest": run.stage_key(stage), "nimg": stage.end_nimg}
    storage.write_json(f"{run.stage_uri(stage)}/done.json", record)
    storage.write_json(f"{uri}/{MARKER}", record)
    plan = plan_sweep(children)
    assert (plan.distinct, plan.cached, plan.to_train) == (4, 1, 3)
    assert [child.shared for child in plan.children] == [(), ("train 8x8",)]


def test_a_plan_of_data_that_is_not_here_looks_at_nothing(config):
    children = make_children(config, ["data.source=s3://nowhere/x"], grid=["training.stable_kimg.16=1,2"])
    plan = plan_sweep(children, images=1000)
    assert (plan.stages, plan.distinct, plan.cached) == (6, 4, 0)


def test_the_spread_is_that_of_a_sample_and_only_over_seeds():
    rows = [
        ("a", {"fid": 10.0, "pr": 1.0}),
        ("a", {"fid": 14.0}),
        ("b", {"fid": 1.0}),
        ("", {"fid": 5.0}),
        ("", {"fid": 6.0}),
        ("a", {"fid": float("nan")}),
    ]
    (only,) = spreads(rows)
    assert (only.group, only.key, only.count, only.mean) == ("a", "fid", 2, 12.0)
    assert only.std == pytest.approx(8**0.5)
