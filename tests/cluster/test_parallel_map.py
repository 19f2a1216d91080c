"""The parallel maps: where chunks are sharded, and the order of results."""

import os

import pytest

from stylegan.cluster import parallel_map
from stylegan.cluster.parallel_map import cpu_map
from stylegan.cluster.session import RAY_ENV, ray_session
from stylegan.config.file import build
from stylegan.errors import StepError, UnavailableError


def settings(**sections):
    return build({"name": "t", "data": {"source": "/images", "resolution": 8, "images_per_shard": 10}} | sections)


def test_a_set_of_one_chunk_is_sharded_here():
    assert cpu_map(settings(), 10) is map
    assert cpu_map(settings(), 11) is not map
    assert cpu_map(settings(ray={"address": "auto"}, storage={"root": "/shared"}), 1) is not map


@pytest.mark.parametrize(
    ("source", "root", "here"), [("/images", "s3://b/r", True), ("s3://b/i", "s3://b/r", False), ("/i", "/r", False)]
)
def test_a_cluster_shards_what_it_can_see(source, root, here):
    """With a bucket for storage, a folder of this machine is not on the other nodes."""
    config = settings(ray={"address": "auto"}, storage={"root": root}, data={"source": source, "resolution": 8})
    assert (cpu_map(config, 10**6) is map) == here


def test_memory_is_of_this_process():
    assert cpu_map(settings(data={"source": "memory://x", "resolution": 8}), 10**6) is map


def test_a_single_item_starts_no_ray(monkeypatch):
    """An incremental set may have one chunk only, which is known when the first is asked for."""
    monkeypatch.setattr(parallel_map, "connect", lambda _: pytest.fail("starts Ray"))
    pmap = cpu_map(settings(), 100)
    assert list(pmap(abs, iter([-3]))) == [3]
    assert list(pmap(abs, iter([]))) == []


def test_a_task_that_never_fits_into_memory_ends_with_the_cure(monkeypatch):
    """Ray repeats it as often as RAY_ENV says, not for ever."""
    import ray

    def killed(_reference):
        raise ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory")

    monkeypatch.setattr(ray, "wait", lambda references, timeout: (references, []))
    monkeypatch.setattr(ray, "get", killed)
    with pytest.raises(StepError, match="memory of its node was short; give the node more memory, or raise") as caught:
        parallel_map.result_of(None)
    assert not isinstance(caught.value, UnavailableError)
    assert 0 < int(RAY_ENV["RAY_task_oom_retries"]) < 10


def test_items_are_done_on_ray_in_order_whatever_training_needs():
    """Training asks for a GPU that does not exist, but a chunk takes one CPU. An error of a worker is raised here."""
    import ray

    def fail_at_three(number):  # a nested one is pickled by value: workers cannot import tests
        if number == 3:
            raise StepError("number three is damaged")
        return number, os.getpid(), os.environ["STYLEGAN_PATIENCE"]

    pmap = cpu_map(settings(ray={"gpus_per_worker": 1}, storage={"patience_s": 7}), 100)
    with ray_session():
        results = list(pmap(fail_at_three, iter(range(3))))
        assert [(number, patience) for number, _, patience in results] == [(0, "7.0"), (1, "7.0"), (2, "7.0")]
        assert os.getpid() not in {pid for _, pid, _ in results}
        with pytest.raises(StepError, match="number three is damaged"):
            list(pmap(fail_at_three, iter(range(5))))
        assert ray.is_initialized()
    assert not ray.is_initialized()


def test_tasks_with_a_gpu_share_a_process():
    """Ray alone would start a process for each, which loads torch and all networks again. It takes our word for the GPU."""
    import ray

    config = settings(ray={"gpus_per_worker": 1})
    os.environ |= RAY_ENV
    ray.init("local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert len(set(parallel_map.parallel_map(lambda _: os.getpid(), range(4), config))) == 1
    finally:
        ray.shutdown()
