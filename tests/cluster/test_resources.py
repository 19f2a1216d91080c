"""Requests of workers against the resources of a cluster."""

import os
import re

import pytest
import torch

from stylegan.cluster import resources
from stylegan.cluster.node_check import Look, NodeFacts
from stylegan.cluster.resources import (
    _count_fitting,
    _describe,
    check_gpu_nodes,
    check_resources,
    describe_cluster,
    runs_in,
    worker_bundle,
)
from stylegan.cluster.session import import_ray, ray_session
from stylegan.config.file import build
from stylegan.config.sections import RayConfig, RayStageOverride
from stylegan.errors import ConfigError
from stylegan.training.gpus import Device
from stylegan.training.schedule import stages

TREE = {"name": "t", "data": {"source": "digits", "resolution": 8}}


def test_a_bundle_names_what_is_asked_for_only():
    need = RayStageOverride(workers=1, cpus_per_worker=2, gpus_per_worker=0)
    assert worker_bundle(RayConfig(), need) == {"CPU": 2.0}
    assert worker_bundle(RayConfig(resources_per_worker={"fast": 1}), need) == {"CPU": 2.0, "fast": 1.0}


@pytest.mark.parametrize(
    ("node", "count"),
    [({"CPU": 8.0, "GPU": 2.0}, 2), ({"CPU": 3.0, "GPU": 2.0}, 1), ({"CPU": 8.0}, 0), ({"CPU": 0.3, "GPU": 1.0}, 0)],
)
def test_a_node_holds_whole_bundles(node, count):
    assert _count_fitting(node, {"CPU": 2.0, "GPU": 1.0}) == count


@pytest.mark.parametrize(
    ("ray", "nodes", "limits", "runs"),
    [
        ({}, [{"CPU": 2.0}], None, 2),
        ({}, [{"CPU": 2.0}, {"CPU": 3.0}], None, 5),
        ({"workers": 2}, [{"CPU": 2.0}, {"CPU": 3.0}], None, 2),
        ({"gpus_per_worker": 1}, [{"CPU": 64.0, "GPU": 1.0}], None, 1),  # never two on one GPU
        ({"gpus_per_worker": 0.5}, [{"CPU": 64.0, "GPU": 1.0}], None, 2),
        ({"stages": {8: {"cpus_per_worker": 2}}}, [{"CPU": 4.0}], None, 2),  # the stage that needs most
        ({"gpus_per_worker": 1}, [{"CPU": 4.0}], None, 1),  # it waits, or says what is missing
        ({"gpus_per_worker": 1}, [{"CPU": 4.0}], {"CPU": 32.0, "GPU": 4.0}, 4),  # an autoscaler brings them
        ({"label_selector": {"zone": "b"}}, [{"CPU": 8.0}], None, 1),
    ],
)
def test_so_many_runs_have_room_at_the_same_time(ray, nodes, limits, runs):
    training = {"start_resolution": 4, "batch": 16}
    config = build(TREE | {"training": training, "ray": ray})
    there = [{"Alive": True, "Resources": resources, "Labels": {"zone": "a"}} for resources in nodes]
    assert runs_in(there, config, stages(config), limits) == runs


def test_shares_of_a_cpu_add_up():
    assert _count_fitting({"CPU": 1.0}, {"CPU": 0.1}) == 10


def test_resources_are_shown_without_those_of_ray_itself():
    shown = {"CPU": 4.0, "GPU": 1.0, "memory": 1e9, "object_store_memory": 1e9, "node:10.0.0.1": 1.0}
    assert _describe(shown | {"node:__internal_head__": 1.0}) == "4 CPU, 1 GPU"
    assert _describe({}) == "nothing"


def test_what_no_node_can_do_is_refused_with_what_there_is():
    """Ray is told of a GPU that torch cannot use. A Ray of our own is looked at from here, a cluster by a task on its node."""
    fits, asks_too_much = build(TREE), build(TREE | {"ray": {"cpus_per_worker": 999}})
    ours = build(TREE | {"ray": {"gpus_per_worker": 1}})
    joined = build(TREE | {"ray": {"gpus_per_worker": 1, "address": "auto"}})
    with ray_session():
        import_ray()
        import ray

        ray.init("local", num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        for config in (fits, ours, joined):
            assert check_resources(config, stages(config)) is None
        assert describe_cluster() == f"1 node(s): {os.cpu_count()} CPU, 1 GPU"
        with pytest.raises(
            ConfigError, match=r"stage 8x8 asks for 1 worker\(s\) with 999 CPU each, but the cluster has 1 node"
        ):
            check_resources(asks_too_much, stages(asks_too_much))
        may_grow = build(TREE | {"ray": {"cpus_per_worker": 999, "address": "auto"}})
        line = check_resources(may_grow, stages(may_grow))
        assert re.fullmatch(
            r"stage 8x8 asks .* 999 CPU each, but the cluster has 1 node.* now; it will wait .* 1800 s \(ray\.wait_s\)",
            line,
        )
        assert check_resources(may_grow, stages(may_grow) * 2).endswith("(ray.wait_s) (and so will 1 more stage(s))")
        check_gpu_nodes(fits, stages(fits))
        if not torch.cuda.is_available():
            with pytest.raises(ConfigError, match=r"^ray\.gpus_per_worker: torch .* cannot use a GPU"):
                check_gpu_nodes(ours, stages(ours))
            with pytest.raises(ConfigError, match=r"^train 8x8: torch .* cannot use a GPU.* \(node [0-9.]+\)$"):
                check_gpu_nodes(joined, stages(joined))


def test_a_stage_is_refused_only_if_too_few_nodes_can_train_it(monkeypatch, caplog):
    """One node has an old GPU, one a new one without Triton, one does not answer. Two workers fit on the last two."""
    import ray

    nodes = [
        {"Alive": True, "NodeID": name, "NodeManagerAddress": name, "Resources": {"CPU": 4.0, "GPU": 1.0}}
        for name in ("old", "new", "silent")
    ]
    old = Device(name="Tesla V100", memory=16 * 2**30, capability=(7, 0))
    newer = old.model_copy(update={"capability": (9, 0)})
    looks = {"old": Look(devices=(old,)), "new": Look(devices=(newer,), triton="pip install triton"), "silent": Look()}
    monkeypatch.setattr(resources, "connect", lambda _: None)
    monkeypatch.setattr(resources, "look_at", lambda found: [looks[node["NodeID"]] for node in found])
    monkeypatch.setattr(ray, "nodes", lambda: nodes)

    def check(workers, seen=()):
        asked = {"address": "auto", "gpus_per_worker": 1, "workers": workers}
        config = build(TREE | {"training": {"precision": "bf16", "batch": 48}, "ray": asked})
        check_gpu_nodes(config, stages(config), seen)

    check(2)
    assert [record.getMessage() for record in caplog.records] == [
        "Triton is missing on 1 of 3 nodes, so steps on GPUs are made of plain operations and take longer: "
        "`pip install triton`"
    ]
    refused = pytest.raises(ConfigError, match=r"^train 8x8: training\.precision=bf16: Tesla V100.* \(node old\)$")
    with refused:
        check(3)

    # What was seen a moment ago is not looked at again.
    seen = [NodeFacts(name=name, node_id=name, head=False, resources={}, look=look) for name, look in looks.items()]
    looks.clear()
    check(2, seen)
    with refused:
        check(3, seen)


def test_workers_that_could_get_gpus_of_two_models_are_refused(monkeypatch):
    """One worker has one model whatever it is; labels, or the model that Ray gives the nodes, may choose."""
    import ray

    kinds = {"a": ("NVIDIA A100-SXM4-40GB", "A100"), "h": ("NVIDIA H100 PCIe", "H100")}
    nodes = [
        {
            "Alive": True,
            "NodeID": name,
            "NodeManagerAddress": name,
            "Resources": {"CPU": 8.0, "GPU": 4.0, f"accelerator_type:{kind}": 1.0},
            "Labels": {"zone": name},
        }
        for name, (_, kind) in kinds.items()
    ]
    devices = {name: Device(name=model, memory=40 * 2**30, capability=(9, 0)) for name, (model, _) in kinds.items()}
    monkeypatch.setattr(resources, "connect", lambda _: None)
    monkeypatch.setattr(
        resources, "look_at", lambda found: [Look(devices=(devices[node["NodeID"]],) * 4) for node in found]
    )
    monkeypatch.setattr(resources, "_warn_of_triton", lambda _: None)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)

    def check(**settings):
        asked = {"address": "auto", "gpus_per_worker": 1, "workers": 2} | settings
        config = build(TREE | {"training": {"batch": 48}, "ray": asked})
        check_gpu_nodes(config, stages(config))

    mixed = r"^train 8x8: .* \(NVIDIA A100-SXM4-40GB and NVIDIA H100 PCIe\).*"
    with pytest.raises(ConfigError, match=mixed + r"set ray\.accelerator_type=A100 or ray\.accelerator_type=H100$"):
        check()
    with pytest.raises(ConfigError, match=mixed):
        check(label_selector={"zone": "in(a, h)"})
    check(workers=1)
    check(accelerator_type="H100")
    check(label_selector={"zone": "a"})
    for node in nodes:
        node["Resources"] = {"CPU": 8.0, "GPU": 4.0}
    with pytest.raises(ConfigError, match=mixed + r"set ray\.label_selector to labels"):
        check()
