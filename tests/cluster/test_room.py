"""Finding room for workers on a real Ray of two CPUs, and waiting for it."""

import logging

import pytest

from stylegan.cluster.notices import Board
from stylegan.cluster.room import Ask, is_placed, placed, wait_for_room, wait_for_workers
from stylegan.cluster.session import import_ray, ray_session
from stylegan.config.file import build
from stylegan.config.sections import RayConfig
from stylegan.errors import ConfigError, ExhaustedError
from stylegan.training.schedule import stages


@pytest.fixture(scope="module")
def _ray():
    with ray_session():
        import_ray()
        import ray

        ray.init(
            "local",
            num_cpus=2,
            labels={"zone": "a"},
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield


@pytest.mark.usefixtures("_ray")
class TestRoom:
    """All on one Ray, which takes seconds to start."""

    def test_the_largest_number_that_fits_now_is_taken(self):
        cluster, one = RayConfig(address="auto", wait_s=60), Ask({"CPU": 1.0}, {}, "train 8x8")
        assert wait_for_room(cluster, one, (1, 2, 4)) == 2
        with placed(one, 1) as other:
            assert is_placed(other, 30)
            assert wait_for_room(cluster, one, (1, 2)) == 1
        assert wait_for_room(cluster, one, (2,)) == 2

    def test_labels_count(self):
        cluster = RayConfig(address="auto", wait_s=0)
        assert wait_for_room(cluster, Ask({"CPU": 1.0}, {"zone": "a"}, "train 8x8"), (1,)) == 1
        with pytest.raises(ExhaustedError, match=r"room for 1 worker\(s\) with 1 CPU each on nodes with zone=b"):
            wait_for_room(cluster, Ask({"CPU": 1.0}, {"zone": "b"}, "train 8x8"), (1,))

    def test_what_does_not_come_is_waited_for_in_words_and_then_named(self, caplog):
        caplog.set_level(logging.INFO, logger="stylegan")
        ask = Ask({"CPU": 1.0, "GPU": 1.0}, {}, "train 8x8")
        with pytest.raises(ExhaustedError) as failed:
            wait_for_room(RayConfig(address="auto", wait_s=5), ask, (3,))
        asked = "room for 3 worker(s) with 1 CPU, 1 GPU each"
        assert str(failed.value).startswith(
            f"train 8x8: waited 5 s for {asked} (ray.wait_s=5); the cluster has 1 node(s): 2 CPU"
        )
        assert any(f"train 8x8: waiting for {asked}, for at most another" in line for line in caplog.messages)

    def test_a_ray_on_this_machine_is_not_waited_for(self):
        tree = {"name": "t", "data": {"source": "digits", "resolution": 8}}
        config = build(tree | {"ray": {"cpus_per_worker": 3}})
        with pytest.raises(ConfigError, match=r"asks for 1 worker\(s\) with 3 CPU each, but the cluster has 1 node"):
            wait_for_workers(config, stages(config)[0])
        config = build(tree | {"training": {"batch": 32}, "ray": {"workers": {"min": 1, "max": 8}}})
        assert wait_for_workers(config, stages(config)[0]) == 2

    def test_the_first_notice_stays_and_nothing_is_left_of_a_board(self):
        board, other = Board(), Board()
        assert board.read() is None
        board.post("drain", "n1 n2")
        board.post("grow")
        board.enter(0)
        board.enter(1)
        assert board.read() == ("drain", "n1 n2")
        assert list(board.nodes().values()) == [2]
        assert other.read() is None
        assert other.nodes() == {}
        board.clear()
        assert board.read() is None
        assert board.nodes() == {}
