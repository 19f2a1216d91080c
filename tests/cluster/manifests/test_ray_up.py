"""The YAML of `ray up`, checked by the schema and the reader of the installed Ray."""

import json
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
from ray.autoscaler._private.util import prepare_config, validate_config
from test_kuberay import TREE

from stylegan.cluster.manifests.ray_up import Machines, cluster_yaml
from stylegan.config.file import build
from stylegan.errors import ConfigError

SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
AWS = {"provider": "aws", "region": "eu-central-1", "instance_types": ("g6e.xlarge", "a100:p4d.24xlarge")}
LOCAL = {"provider": "local", "head": "gpu0", "workers": ("gpu1", "gpu2")}


def prepared(options, **ray):
    """Return a cluster as `ray up` has it, after it has read, filled and checked the document."""
    document = cluster_yaml(build(TREE | {"ray": TREE["ray"] | ray}), Machines(**options))
    jsonschema.validate(document, SCHEMA)
    filled = prepare_config(document)
    validate_config(filled)
    return filled


def test_machines_of_aws_are_started_for_the_stage_that_needs_them():
    found = prepared(AWS | {"image": "r.example.com/stylegan:0.1.0"}, label_selector={"ray.io/market-type": "spot"})
    kinds = found["available_node_types"]
    machines = {name: (kind["node_config"]["InstanceType"], kind["max_workers"]) for name, kind in kinds.items()}
    assert machines == {
        "head": ("m6i.2xlarge", 0),
        "gpu": ("g6e.xlarge", 8),
        "a100": ("p4d.24xlarge", 8),
        "shards": ("m6i.2xlarge", 16),
    }
    assert all(kind["min_workers"] == 0 for kind in kinds.values())
    assert found["max_workers"] == 32
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert kinds["a100"]["resources"] == {"CPU": 1, "GPU": 1, "accelerator_type:A100": 1}
    assert kinds["gpu"]["labels"] == {"ray.io/market-type": "spot"}
    assert found["docker"]["image"] == "r.example.com/stylegan:0.1.0"


def test_machines_that_are_there_are_all_used_and_the_head_runs_no_work():
    found = prepared(LOCAL | {"ssh_user": "me"})
    assert (found["provider"]["head_ip"], found["provider"]["worker_ips"]) == ("gpu0", ["gpu1", "gpu2"])
    assert found["max_workers"] == 2
    assert found["auth"] == {"ssh_user": "me"}
    assert "--num-cpus=0 --num-gpus=0" in found["head_start_ray_commands"][-1]
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in found[commands][-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (AWS | {"region": None}, "--region : must be a region of AWS"),
        (AWS | {"instance_types": ()}, r"--instance-type: is missing for group gpu, .* 1 GPU\(s\), 1 CPU\(s\)"),
        (AWS | {"instance_types": ("big",)}, "--instance-type big: must be a type of machine"),
        (AWS | {"instance_types": ("x:g6e.xlarge",)}, "no group x; there are head, gpu, a100, shards"),
        (AWS | {"head": "gpu0"}, "--head and --worker name machines that are there"),
        (AWS | {"image": "stylegan"}, "--image stylegan: may be another image"),
        (LOCAL | {"region": "eu-central-1"}, "are for --provider aws"),
        (LOCAL | {"workers": ()}, "--provider local starts Ray on machines that are there; name them"),
        (LOCAL | {"workers": ("gpu 1",)}, "--worker gpu 1: is no name or address of a host"),
        (LOCAL | {"workers": ("gpu0",)}, "--worker: a host is named twice"),
        (LOCAL | {"ssh_user": "a b"}, "--ssh-user a b: is no name of a user"),
    ],
)
def test_mistakes_are_one_line_with_the_cure(options, message):
    with pytest.raises(ConfigError, match=message):
        prepared(options)
