"""Tests of launching on Ray: impossible resources, an address without a cluster, and joining a running cluster."""

import os

import pytest
from clusters import Machines, free_port


def test_impossible_resources_are_refused_with_what_the_cluster_has(make_place):
    """A stage whose workers fit on no node does not wait for them, and the message says what the cluster has."""
    place = make_place()
    place.run("train", str(place.config), "--set", "ray.cpus_per_worker=999", code=2)
    (line,) = [line for line in place.errors().splitlines() if line.startswith("stylegan: ")]
    assert "asks for 1 worker(s) with 999 CPU each" in line
    assert f"the cluster has 1 node(s): {os.cpu_count()} CPU" in line
    place.wait_until_empty()


def test_a_closed_address_is_one_line(make_place):
    """An address where no cluster answers is not waited for."""
    place = make_place()
    address = f"127.0.0.1:{free_port()}"
    place.run("run", str(place.config), "--set", f"ray.address={address}", code=1)
    assert (
        "Error logging" not in place.errors()
    )  # Prefect prints it for lines that are logged after its server has ended
    assert f"stylegan: ray.address={address}: nothing answers there" in place.errors()


@pytest.mark.long
def test_joins_a_running_cluster_with_two_workers(make_place):
    """With `ray.address` the stage trains on that cluster with two gloo ranks, and does not stop the cluster."""
    place = make_place()
    place.env |= {"RAY_AUTH_MODE": "disabled"}
    with Machines(head_cpus=2, env=place.env) as machines:
        there = ("--set", f"ray.address={machines.address}", "--set", "ray.workers=2")
        assert place.json("train", str(place.config), "--until", "4", *there)["nimg"] == 1000
        assert machines.head.poll() is None
    place.wait_until_empty()
