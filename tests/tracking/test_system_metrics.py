"""System metrics in MLflow: of every machine, on from where they stopped, few in a long run, and never in its way."""

import logging
import time

import pytest
from mlflow_runs import points

from stylegan.cluster.node_metrics import host_name
from stylegan.tracking import system_metrics
from stylegan.tracking.metric_names import find
from stylegan.tracking.system_metrics import SystemMetrics

HERE = f"system/{host_name()}/cpu_utilization_percentage"


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_they_go_on_where_they_stopped(opened):
    for _ in range(2):
        run = opened()
        before = len(points(run, HERE))
        wait_for(lambda run=run, before=before: len(points(run, HERE)) >= before + 2)
        run.finish("KILLED")
    steps = [step for step, _ in points(run, HERE)]
    assert len(steps) >= 4
    assert steps == list(range(len(steps)))
    names = [name for name in run.client.get_run(run.mlflow_run_id).data.metrics if name.startswith("system/")]
    assert {name.rpartition("/")[0] for name in names} == {f"system/{host_name()}"}
    assert len(names) >= 8
    assert all(find(name) for name in names)


def test_those_of_a_long_run_stay_few(opened, monkeypatch):
    """The interval of the points doubles again and again, also over interruptions."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.001")
    monkeypatch.setattr(system_metrics, "SAME_PACE", 3)
    for steps in (7, 10):
        run = opened()
        metrics = run._system
        wait_for(lambda metrics=metrics, steps=steps: metrics.step >= steps)
        assert metrics.samples_of_a_point == 2 ** (metrics.step // 3) >= 4
        run.finish("KILLED")


def test_a_point_is_the_mean_of_its_samples_and_each_machine_has_its_own(monkeypatch):
    """A counter, such as received bytes, is its last value. A machine that comes later has the mean of what there is."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.001")
    monkeypatch.setattr(system_metrics, "SAME_PACE", 2)
    samples = iter(
        [
            {"a": {"cpu": 1.0, "network_receive_megabytes": 5.0}},
            {"a": {"cpu": 2.0, "network_receive_megabytes": 7.0}, "b": {"gpu": 8.0}},
        ]
    )
    rows = []
    metrics = SystemMetrics(rows.append, step=2, read_nodes=lambda: next(samples, {}))
    metrics.start()
    wait_for(lambda: rows)
    metrics.stop()
    found = {name: value for step, values in rows[0] for name, value in values.items() if step == 2}
    others = {name: value for name, value in found.items() if not name.startswith(f"system/{host_name()}/")}
    assert others == {"system/a/cpu": 1.5, "system/a/network_receive_megabytes": 7.0, "system/b/gpu": 8.0}
    assert HERE in found


def test_what_fails_is_one_warning_and_the_next_point_follows(caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.001")
    steps = []

    def log(rows):
        steps.append(rows[0][0])
        if len(steps) <= 2:
            raise OSError("no answer")

    metrics = SystemMetrics(log, step=0, read_nodes=dict)
    with caplog.at_level(logging.WARNING, "stylegan"):
        metrics.start()
        wait_for(lambda: len(steps) >= 4)
        metrics.stop()
    assert steps[:4] == [0, 1, 2, 3]  # a step whose fate is unknown is not used again
    assert [record.getMessage() for record in caplog.records] == [
        "system metrics are missing, the run goes on: no answer"
    ]


def test_the_nodes_of_a_stage_are_read_while_it_trains(opened):
    run = opened()
    name = "system/gpu-7/gpu_0_utilization_percentage"
    with run.with_nodes(lambda: {"gpu-7": {"gpu_0_utilization_percentage": 97.0}}):
        wait_for(lambda: points(run, name))
    step = run._system.step + 1  # a sample may be under way
    wait_for(lambda: run._system.step > step + 1)
    assert max(step for step, _ in points(run, name)) <= step
    assert points(run, name)[0][1] == 97.0
