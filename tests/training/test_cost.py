"""Estimates for a plan: speed from finished stages, and memory that grows with the networks."""

import pytest

from stylegan import storage
from stylegan.config.file import build
from stylegan.training.cost import measured_speed, speed_record, stage_cost, step_flops
from stylegan.training.schedule import stages


def config(root, training=None, **ray):
    model = {"latent_size": 16, "mapping_fmaps": 16, "fmap_base": 256, "fmap_max": 16}
    data = {"source": "digits", "resolution": 32}
    return build(
        {
            "name": "t",
            "storage": {"root": str(root)},
            "data": data,
            "model": model,
            "training": {"batch": 16} | (training or {}),
            "ray": ray,
        }
    )


def test_without_a_finished_stage_speed_is_estimated_from_this_machine(tmp_path):
    small, large = (stage_cost(config(tmp_path), stage) for stage in stages(config(tmp_path))[::2])
    assert small.images_per_second > 2 * large.images_per_second > 0
    assert 0 < small.memory_gib < large.memory_gib


def test_nothing_is_guessed_about_gpus_or_other_machines(tmp_path):
    stage = stages(config(tmp_path))[0]
    assert stage_cost(config(tmp_path, gpus_per_worker=1), stage).images_per_second is None
    assert stage_cost(config(tmp_path, address="1.2.3.4:5"), stage).images_per_second is None


def test_a_finished_stage_of_the_same_networks_and_launch_gives_the_speed(tmp_path):
    here = config(tmp_path)
    stage = stages(here)[0]
    storage.write_json(f"{tmp_path}/stages/0008-abc/done.json", speed_record(here, 123.0))
    assert measured_speed(here, stage) == 123.0
    assert measured_speed(here, stages(here)[1]) is None
    assert measured_speed(config(tmp_path, workers=2), stage) is None


def test_penalties_and_self_supervision_cost_passes_through_d(tmp_path):
    """A step takes 8 passes through D without penalties.

    R1 adds 3 in every step, or 6 in every sixteenth step. Turning a quarter of the batch four ways adds 5.
    """

    def passes(**training):
        return step_flops(config(tmp_path, training), 32)

    none, every, lazy, turned = (
        passes(r1_gamma=0),
        passes(),
        passes(penalty_interval=16),
        passes(r1_gamma=0, rotation={}),
    )
    one = (every - none) / 3
    assert lazy - none == pytest.approx(6 / 16 * one)
    assert turned - none == pytest.approx(5 * one)


def test_the_speed_of_other_work_is_not_used(tmp_path):
    here = config(tmp_path)
    storage.write_json(f"{tmp_path}/stages/0008-abc/done.json", speed_record(here, 123.0))
    for change in ({"precision": "bf16"}, {"compile": True}, {"penalty_interval": 4}, {"rotation": {}}):
        assert measured_speed(config(tmp_path, change), stages(here)[0]) is None


def test_more_workers_need_less_memory_each(tmp_path):
    stage = stages(config(tmp_path))[-1]
    one, two = (stage_cost(config(tmp_path, workers=count), stage).memory_gib for count in (1, 2))
    assert two < one
