"""Keys name finished work in storage: those of version 0.1 stay as they are, so that an upgrade repeats nothing."""

import json
from pathlib import Path

import pytest

from stylegan.cluster.job_package import make_package
from stylegan.config.file import build, load
from stylegan.config.sections import DataConfig, EvaluationConfig
from stylegan.config.tree import Config
from stylegan.data.sharding.changes import newest_uri
from stylegan.data.sharding.write_shards import shard_key
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.base import Source
from stylegan.data.sources.open_source import open_source
from stylegan.evaluation.features.spaces import Network, Spaces
from stylegan.evaluation.protocol import protocol_of
from stylegan.evaluation.quick import rows_name
from stylegan.pipeline.keys import gate_key, make_keys, stage_keys
from stylegan.pipeline.retraining import config_key
from stylegan.pipeline.study import Objective, study_name
from stylegan.pipeline.sweep import make_children, sweep_id, with_overrides
from stylegan.training.cost import speed_record

ROOT = Path(__file__).parents[2]
# Written by version 0.1: keys of every shipped config, of every metric, and of the newest set of every kind of source.
KNOWN = json.loads(Path(__file__).with_name("keys-0.1.json").read_text())
SHARDS = ShardSet.model_validate(KNOWN["shards"])
TREE = {
    "name": "t",
    "data": {"source": "/data/images", "resolution": 32},
    "storage": {"root": "/root"},
    "ray": {"address": "head:10001"},
}
TRANSFER = {
    "transfer": {},
    "evaluation": {"metrics": ["transfer"]},
    "registry": {"gate": {"metric": "transfer_loss"}},
}


@pytest.mark.parametrize("path", KNOWN["configs"])
def test_keys_of_a_config(path: str) -> None:
    config, known = load(ROOT / path), KNOWN["configs"][path]
    snapshots = config.snapshots.model_copy(update={"metrics_kimg": {4: 5.0}, "metrics": ("fid", "kid", "is", "pr")})
    assert make_keys(config, SHARDS).model_dump(mode="json") == known["run"]
    assert gate_key(config, "3") == known["gate"]
    assert rows_name(config.model_copy(update={"snapshots": snapshots}), config.data.resolution) == known["quick"]
    assert speed_record(config, 1.0) == known["speed"] | {"img_per_sec": 1.0}


def test_every_shipped_config_of_then_is_still_there() -> None:
    assert [path for path in KNOWN["configs"] if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("sections", "known"),
    [
        ({}, ["e1335ed405", "t-study-35e8059244", "s-88cba59577", "0d5f452d0d"]),
        (
            {"model": {"conditional": True, "label_scale": 0.2}, "training": {"rotation": {}}},
            ["d2eee2fbb2", "t-study-5f5139ef61", "s-c7729ed236", "a00f54e41f"],
        ),
        (TRANSFER, ["51e6299202", "t-study-4b3857c535", "s-01284b10dd", "0d5f452d0d"]),
    ],
    ids=["defaults", "conditional", "transfer"],
)
def test_digests_of_a_whole_config(sections: dict, known: list[str]) -> None:
    """What is trained again, a study, a sweep and the work of a job are found as before there were other architectures."""
    config = build(TREE | sections)
    found = [config_key(config), study_name(config, Objective(key="fid"), ()), sweep_id("s", make_children(config))]
    assert [*found, make_package(config).work] == known


@pytest.mark.parametrize(
    "override", ["model.width=0.5", "model.norm=self_modulated", "model.latent_size=64", "training.d_steps=2"]
)
def test_what_decides_a_resnet_is_part_of_every_key(override: str) -> None:
    def keys(config: Config) -> list[str]:
        found = [config_key(config), study_name(config, Objective(key="fid"), ()), sweep_id("s", make_children(config))]
        return [*found, make_package(config).work, *stage_keys(config, SHARDS)]

    config = build(TREE | {"model": {"architecture": "resnet"}, "evaluation": {"metrics": ["fid"]}})
    pairs = list(zip(keys(config), keys(with_overrides(config, [override])), strict=True))
    assert [one for one, other in pairs if one == other] == []
    assert keys(config) == keys(with_overrides(config, ["model.norm=batch"]))  # which is what the default means


@pytest.mark.parametrize("metric", KNOWN["protocols"]["published"])
def test_protocol_of_a_metric(metric: str) -> None:
    shapes = {"pooled": ("inception", 2048, "float32"), "manifold": ("vgg16", 4096, "float16")}
    shapes |= {"distance": ("lpips", 0, "float32"), "attributes": ("attributes", 0, "float32")}
    networks = {
        role: Network(name, (f"{name}.pth",), name * 3, size, dtype) for role, (name, size, dtype) in shapes.items()
    }
    embedded = dict.fromkeys(networks, Network("classifier", ("c.safetensors",), "abc", 128))
    spaces = {"published": Spaces(networks), "embedded": Spaces(embedded, embedded="classifier")}
    found = {name: protocol_of(metric, SHARDS, EvaluationConfig(), space) for name, space in spaces.items()}
    assert found == {name: KNOWN["protocols"][name][metric] for name in spaces}


def test_what_decides_a_style_transfer_is_part_of_its_key_and_how_it_is_made_is_not() -> None:
    config = load(ROOT / "configs/style-transfer.yaml")

    def key(*overrides: str) -> tuple[str, ...]:
        return stage_keys(with_overrides(config, list(overrides)), SHARDS)

    for override in (
        "seed=1", "transfer.style_weight=5", "transfer.style_classes=[china]", "transfer.kimg=20", "transfer.depth=3",
        "evaluation.features=classifier", "evaluation.seed=1", "data.channels=1",
    ):  # fmt: skip
        assert key(override) != key(), override
    for override in ("ray.cpus_per_worker=1", "snapshots.log_kimg=1", "evaluation.num_images=9", "name=other"):
        assert key(override) == key(), override


def test_a_precision_is_part_of_a_key_where_a_metric_depends_on_it() -> None:
    def key(**evaluation: object) -> str:
        changes = {"evaluation": EvaluationConfig(**evaluation), "snapshots": config.snapshots}  # type: ignore[arg-type]
        return make_keys(config.model_copy(update=changes), SHARDS).evaluation

    config = load(ROOT / "configs" / "quickstart.yaml")
    assert key(metrics=("fid",), precision="fp32") == key(metrics=("fid",))
    assert len({key(metrics=("fid",), precision=name) for name in ("fp32", "tf32", "bf16", "fp16")}) == 4
    assert key(metrics=("ppl_wend",), precision="bf16") == key(metrics=("ppl_wend",))


@pytest.mark.parametrize("reader", KNOWN["newest"])
def test_newest_set_of_a_source(reader: str) -> None:
    """In version 0.1 the key held the module that read the images; the names stay, wherever that code is now."""
    source = Source("s3://bucket/images", "sig", [], (), (), lambda: None, reader)
    data = DataConfig(source=source.uri, resolution=16)
    assert newest_uri(source, data, "s3://bucket/root") == f"s3://bucket/root/datasets/{KNOWN['newest'][reader]}"


def test_set_of_the_quickstart() -> None:
    data = DataConfig(source="digits", resolution=16, channels=1)
    assert shard_key(data, open_source(data)) == KNOWN["digits"]
