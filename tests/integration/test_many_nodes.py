"""Stages on clusters of several nodes: a lost node, one that is taken away, more that come, and an autoscaler."""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from clusters import Machines
from conftest import TREE
from mlflow import MlflowClient

from stylegan.cluster import stage_launch
from stylegan.config.file import build
from stylegan.errors import Stopped
from stylegan.pipeline import steps
from stylegan.pipeline.steps import Pipeline
from stylegan.training.curves import read_rows
from stylegan.training.schedule import stages
from stylegan.training.state import Checkpoint, newest_checkpoint

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _without_tokens(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


def make_config(root, kimg=2.4, checkpoint_kimg=0.2, **ray):
    """Return the config of a stage that can be trained by one or two workers."""
    training = {"start_resolution": 8, "stable_kimg": kimg, "batch": 8, "ema_kimg": 0.2}
    snapshots = {"checkpoint_kimg": checkpoint_kimg, "log_kimg": 0.1, "samples_kimg": 50, "grid": 2}
    return build(TREE | {"storage": {"root": str(root)}, "training": training, "snapshots": snapshots, "ray": ray})


def train(config, *acts):
    """Train the stage of a config and return its last checkpoint, calling each act when the image count of it is reached.

    Args:
        config: that of the run.
        acts: pairs of a number of images in its curves, and a function that is called then.
    """
    failures = []

    def act(uri):
        try:
            for nimg, function in acts:
                wait_for(lambda nimg=nimg: trained(uri) >= nimg)
                function()
        except BaseException as error:
            failures.append(error)

    with Pipeline(config) as pipeline:
        shards = pipeline.shard().record
        stage = stages(config)[0]
        threading.Thread(target=act, args=(pipeline.run(shards).stage_uri(stage),), daemon=True).start()
        checkpoint = pipeline.train(shards, stage, None).record
    assert not failures
    return checkpoint


def trained(uri):
    """Return the image count of the newest point in the curves of a stage."""
    return max((row["nimg"] for row in read_rows(f"{uri}/stats.jsonl")), default=0)


def weights(checkpoint):
    """Return the digest of the whole state of a checkpoint."""
    state = torch.load(Path(checkpoint.uri, "training.pt"), weights_only=True)
    tensors = [tensor for name in ("G", "D", "G_ema") for tensor in state[name].values()]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def events(root):
    """Return the events in MLflow, in order: name, kimg, value."""
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (run,) = client.search_runs(["1"])
    names = [name for name in run.data.metrics if name.startswith("events/")]
    points = [point for name in names for point in client.get_metric_history(run.info.run_id, name)]
    return [(point.key, point.step, point.value) for point in sorted(points, key=lambda point: point.timestamp)]


def lines(caplog):
    """Return what was logged."""
    return [record.getMessage() for record in caplog.records if record.name == "stylegan"]


def wait_for(condition, seconds=120):
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value


def test_a_lost_node_costs_the_work_since_the_newest_checkpoint_and_no_bit(tmp_path, caplog):
    """Two workers on two nodes, of which one is killed and another one comes: as on one machine without a failure."""
    caplog.set_level(logging.INFO, logger="stylegan")
    undisturbed = train(make_config(tmp_path / "one", workers=2))
    with Machines() as machines:
        machines.add()
        second = machines.add()
        config = make_config(tmp_path / "two", workers=2, address=machines.address, max_failures=1)

        def kill():
            machines.kill(second)
            wait_for(lambda: any("lost node" in line for line in lines(caplog)))
            wait_for(lambda: "waiting for room for 2 worker(s)" in lines(caplog)[-1])
            machines.add()

        found = train(config, (500, kill))
    assert weights(found) == weights(undisturbed)
    (lost,) = [line for line in lines(caplog) if "lost node" in line]
    assert lost.startswith("train 8x8: lost node ")
    assert "with 1 of 2 worker(s); its workers start again from " in lost
    ((name, kimg, workers),) = events(tmp_path / "two")
    assert (name, workers) == ("events/worker_lost", 1)
    assert 0 <= kimg <= 5


def drain(machines, node):
    """Announce that a node is taken away in a minute, as a preemption hook does."""
    ray = str(Path(sys.executable).with_name("ray"))
    options = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command = [ray, "drain-node", "--address", machines.address, "--node-id", node, *options]
    subprocess.run([*command, "--deadline-remaining-seconds", "60"], env=machines.env, check=True, capture_output=True)


def test_a_range_of_workers_grows_and_gives_way_to_a_preemption_without_losing_a_step(tmp_path, caplog, monkeypatch):
    """One worker, two once a second node is there, one again when that is drained.

    That the model is that of a fixed number is tested in tests/training/test_worker_numbers.py.
    """
    import ray

    caplog.set_level(logging.INFO, logger="stylegan")
    monkeypatch.setattr(stage_launch, "GROW_SECONDS", 1.0)
    with Machines() as machines:
        machines.add()
        workers = {"min": 1, "max": 3}  # three do not divide a batch of 8
        config = make_config(
            tmp_path, 4.0, 100.0, workers=workers, address=machines.address, max_failures=0, wait_s=120
        )  # no checkpoint is due: those that there are were written because the workers stop

        def preempt():
            wait_for(lambda: any("goes on with 2 worker(s)" in line for line in lines(caplog)))
            at = newest_checkpoint(stage).nimg
            assert at >= 400
            wait_for(lambda: trained(stage) > at)
            (newest,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in before]
            drain(machines, newest)

        def grow():
            before.update(node["NodeID"] for node in ray.nodes())
            machines.add()

        before, stage = set(), None
        with Pipeline(config) as pipeline:
            stage = pipeline.run(pipeline.shard().record).stage_uri(stages(config)[0])
        found = train(config, (400, grow), (600, preempt))
    happened = events(tmp_path)
    assert [name for name, _, _ in happened] == ["events/resized", "events/preempted", "events/resized"]
    assert [value for _, _, value in happened] == [2, 1, 1]
    assert 0 < happened[0][1] < happened[1][1] == happened[2][1]
    assert found.nimg == 4000


def readers():
    """Return the number of actors that read the load of nodes."""
    from ray._private.state import actors

    return sum(each["ActorClassName"] == "NodeReader" and each["State"] == "ALIVE" for each in actors().values())


def hosts(root):
    """Return the machines that MLflow has system metrics of, each with the number of its points."""
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (run,) = client.search_runs(["1"])
    end = "/cpu_utilization_percentage"
    names = [name for name in run.data.metrics if name.startswith("system/") and name.endswith(end)]
    return {name: len(client.get_metric_history(run.info.run_id, name)) for name in names}


def test_every_node_that_trains_has_system_metrics(tmp_path, caplog, monkeypatch):
    """Two nodes, of which one is killed: its metrics end, those of the others go on, and no reader is left."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.5")
    caplog.set_level(logging.INFO, logger="stylegan")
    with Machines() as machines:
        machines.add()
        second = machines.add()
        config = make_config(tmp_path, 15.0, workers={"min": 1, "max": 2}, address=machines.address, max_failures=1)

        def kill():
            wait_for(lambda: len(hosts(tmp_path)) == 3 and min(hosts(tmp_path).values()) >= 2)
            found.append(readers())
            machines.kill(second)
            wait_for(lambda: any("goes on with 1 worker(s)" in line for line in lines(caplog)))
            before = sorted(hosts(tmp_path).values())[1]
            wait_for(lambda: sorted(hosts(tmp_path).values())[1] >= before + 6)
            found.append(readers())

        class Closing(steps.NodeMetrics):
            def __exit__(self, *error):
                super().__exit__(*error)
                wait_for(lambda: not readers())
                ends.append(len(found))

        found, ends = [], []
        monkeypatch.setattr(steps, "NodeMetrics", Closing)
        train(config, (200, kill))
    assert found == [2, 1]  # this process reads the machine of the head itself
    assert ends == [2]
    fewest, *_, most = sorted(hosts(tmp_path).values())
    assert fewest < most - 4
    assert not any("system metrics" in line for line in lines(caplog))


def test_an_autoscaler_brings_the_nodes_that_a_stage_waits_for(tmp_path, caplog):
    """A small stage has one worker on one node; the next asks for two, and the second node comes."""
    import ray

    caplog.set_level(logging.INFO, logger="stylegan")
    with Pipeline(make_config(tmp_path / "root")) as pipeline:
        pipeline.shard()  # here, since its tasks would bring both nodes
    kind = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    with Machines(autoscaling={"worker": kind}) as machines:
        tree = make_config(tmp_path / "root", kimg=0.4).model_dump(mode="json")
        tree["training"] |= {"start_resolution": 4, "fade_kimg": 0.2}
        tree["ray"] |= {"address": machines.address, "workers": 2, "stages": {4: {"workers": 1}}}
        config, nodes = build(tree), []
        with Pipeline(config) as pipeline:
            shards, previous = pipeline.shard().record, None
            for stage in stages(config):
                previous = pipeline.train(shards, stage, previous).record
                nodes.append(sum(node["Alive"] for node in ray.nodes()) - 1)
    assert nodes == [1, 2]
    assert any("train 4x4: waiting for room for 1 worker(s)" in line for line in lines(caplog))
    assert os.listdir(tmp_path / "root" / "stages")


def test_sigterm_to_a_worker_stops_the_run_in_order_and_it_goes_on_from_there(tmp_path):
    """The stage has a checkpoint of that moment, although none is due, and the run in MLflow is stopped, not failed."""
    config = make_config(tmp_path, 2.4, 100.0)

    def terminate():
        (worker,) = [process for process in psutil.process_iter() if process.name().startswith("ray::RayTrainWork")]
        worker.terminate()

    with pytest.raises(
        Stopped, match=r"^train 8x8: the worker of rank 0 was sent SIGTERM, so the run is stopped at "
    ) as stop:
        train(config, (500, terminate))
    assert stop.value.number == signal.SIGTERM
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs(["1"])
    assert run.info.status == "KILLED"
    with Pipeline(config) as pipeline:
        stage = pipeline.run(pipeline.shard().record).stage_uri(stages(config)[0])
    assert 500 <= newest_checkpoint(stage).nimg < 2400
    assert train(config).nimg == 2400


def test_a_head_that_does_not_come_back_is_one_line_and_a_new_cluster_goes_on_from_storage(make_place):
    """Ray itself would end the program after a minute, with a stack of C++."""
    tree = make_config("unused").model_dump(mode="json", include={"training", "snapshots"})
    place = make_place(**tree)
    place.env["RAY_AUTH_MODE"] = "disabled"
    with Machines(head_cpus=1) as machines:
        process = place.start(
            "train", str(place.config), "--set", f"ray.address={machines.address}", "--set", "ray.wait_s=3"
        )
        (stats,) = wait_for(lambda: list(Path(place.root).glob("stages/*/stats.jsonl")))
        wait_for(lambda: trained(stats.parent) >= 500)
        machines.kill(machines.head)
        assert process.wait(120) == 1
    lines = [line for line in place.errors().splitlines() if line.startswith("stylegan: ")]
    assert lines[-1].startswith(f"stylegan: ray.address={machines.address}: nothing answers there")
    assert lines[-1].endswith("s, ray.wait_s=3)")
    assert f"train 8x8: the head of the cluster (ray.address={machines.address}) does not answer" in place.errors()
    assert "Traceback" not in place.errors()
    at = newest_checkpoint(str(stats.parent)).nimg
    assert at >= 400
    with Machines(head_cpus=1) as machines:
        assert place.json("train", str(place.config), "--set", f"ray.address={machines.address}")["nimg"] == 2400
    place.wait_until_empty()


@pytest.mark.parametrize(("phase", "away"), [("train", 25), ("train", 0), ("evaluate", 25)])
def test_a_run_survives_the_loss_of_its_head(phase, away, make_place):
    """It joins the next cluster at the same address, and the step goes on; the weights are those of an undisturbed stage."""
    tree = make_config("unused").model_dump(mode="json", include={"training", "snapshots"})
    place = make_place(**tree)
    undisturbed = train(make_config(place.folder / "undisturbed"))
    place.env["RAY_AUTH_MODE"] = "disabled"
    with Machines(head_cpus=1) as machines:
        process = place.start("run", str(place.config), "--json", "--set", f"ray.address={machines.address}")
        (stats,) = wait_for(lambda: list(Path(place.root).glob("stages/*/stats.jsonl")))
        wait_for(lambda: trained(stats.parent) >= (500 if phase == "train" else 2400))
        if phase == "evaluate":
            wait_for(lambda: "\nevaluate: " in place.errors())
        machines.kill(machines.head)
        time.sleep(away)
        with Machines(head_cpus=1, port=int(machines.address.rpartition(":")[2])):
            assert process.wait(180) == 0, place.errors()
    summary = json.loads((place.folder / "stdout").read_text())
    assert weights(Checkpoint.model_validate(summary["checkpoints"][-1])) == weights(undisturbed)
    assert [name for name, _, _ in events(place.root)] == ["events/head_lost"] * (phase == "train")
    assert "Traceback" not in place.errors()
    place.wait_until_empty()
