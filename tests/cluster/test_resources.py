"""Requests of workers against the resources of a cluster."""

import os

import pytest

from stylegan.cluster.resources import _count_fitting, _describe, check_resources, describe_cluster, worker_bundle
from stylegan.cluster.session import ray_session
from stylegan.config.file import build
from stylegan.config.sections import RayConfig, RayStageOverride
from stylegan.errors import ConfigError
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


def test_shares_of_a_cpu_add_up():
    assert _count_fitting({"CPU": 1.0}, {"CPU": 0.1}) == 10


def test_resources_are_shown_without_those_of_ray_itself():
    shown = {"CPU": 4.0, "GPU": 1.0, "memory": 1e9, "object_store_memory": 1e9, "node:10.0.0.1": 1.0}
    assert _describe(shown | {"node:__internal_head__": 1.0}) == "4 CPU, 1 GPU"
    assert _describe({}) == "nothing"


def test_a_stage_that_no_node_can_hold_is_refused_with_what_there_is():
    fits, asks_too_much = build(TREE), build(TREE | {"ray": {"cpus_per_worker": 999}})
    with ray_session():
        check_resources(fits, stages(fits))
        assert describe_cluster() == f"1 node(s): {os.cpu_count()} CPU"
        with pytest.raises(
            ConfigError, match=r"stage 8x8 asks for 1 worker\(s\) with 999 CPU each, but the cluster has 1 node"
        ):
            check_resources(asks_too_much, stages(asks_too_much))
