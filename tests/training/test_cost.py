"""Estimates for a plan: speed from finished stages, and memory that grows with the networks."""

import pytest
import torch

from stylegan import storage
from stylegan.config.file import build
from stylegan.networks.discriminator import make_discriminator
from stylegan.networks.generator import Generator
from stylegan.training import cost
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


def test_what_is_not_known_is_not_guessed(tmp_path):
    """CPUs of another machine may be of any kind. GPUs are said to be like one that was measured."""
    stage = stages(config(tmp_path))[0]
    assert stage_cost(config(tmp_path, address="1.2.3.4:5"), stage).images_per_second is None
    for address in (None, "1.2.3.4:5"):
        cost = stage_cost(config(tmp_path, gpus_per_worker=1, address=address), stage)
        assert cost.images_per_second > 0
        assert "H200" in cost.basis


@pytest.mark.parametrize(
    ("resolution", "batch", "precision", "lazy", "measured"),
    [
        (256, 32, "tf32", False, 185),
        (64, 64, "tf32", False, 469),
        (32, 64, "tf32", False, 918),
        (256, 32, "bf16", True, 270),
        (64, 64, "bf16", True, 772),
        (32, 64, "bf16", True, 1343),
        (1024, 8, "bf16", True, 66),
    ],
)
def test_the_speed_on_a_gpu_is_near_the_measured_one(tmp_path, resolution, batch, precision, lazy, measured):
    training = {"batch": batch, "precision": precision, "penalty_interval": 16 if lazy else 1}
    tree = {"name": "t", "storage": {"root": str(tmp_path)}, "data": {"source": "x", "resolution": resolution}}
    asked = build(tree | {"training": training, "ray": {"gpus_per_worker": 1}})
    assert stage_cost(asked, stages(asked)[-1]).images_per_second == pytest.approx(measured, rel=0.35)


@pytest.mark.parametrize(
    ("resolution", "batch", "precision", "lazy", "mib"),
    [
        (256, 32, "tf32", False, 9439),
        (64, 64, "tf32", False, 4862),
        (32, 64, "tf32", False, 2344),
        (256, 32, "bf16", True, 4596),
        (256, 32, "fp16", True, 4597),
        (256, 8, "bf16", True, 1812),
        (64, 64, "bf16", True, 2536),
        (32, 64, "bf16", True, 1582),
        (1024, 8, "bf16", True, 4820),
    ],
)
def test_the_memory_of_a_gpu_is_near_the_measured_peak(tmp_path, resolution, batch, precision, lazy, mib):
    """What torch had allocated at its peak on one H200; CUDA's own share is not in these figures."""
    training = {"batch": batch, "precision": precision, "penalty_interval": 16 if lazy else 1}
    tree = {"name": "t", "storage": {"root": str(tmp_path)}, "data": {"source": "x", "resolution": resolution}}
    asked = build(tree | {"training": training, "ray": {"gpus_per_worker": 1}})
    tensors = cost.stage_memory(asked, stages(asked)[-1]) - cost.GPU_CONTEXT_GIB
    assert tensors * 1024 == pytest.approx(mib, rel=0.1)


def on_gpu(root, kind, precision, **ray):
    named = {f"accelerator_type:{kind}": 0.001}
    return config(root, {"precision": precision}, gpus_per_worker=1, resources_per_worker=named, **ray)


def test_other_gpus_are_scaled_by_their_datasheets_and_it_is_said(tmp_path):
    """A V100 has neither TF32 nor the bandwidth of an A100; what was measured is told apart from what was not."""
    speeds = {}
    for kind in ("V100", "A100", "A100-80G", "H100", "H200"):
        asked = on_gpu(tmp_path, kind, "fp16")
        found = stage_cost(asked, stages(asked)[-1])
        speeds[kind] = found.images_per_second
        assert ("(measured)" in found.basis, "estimated" in found.basis) == (kind == "H200", kind != "H200")
    assert sorted(speeds, key=speeds.__getitem__) == ["V100", "A100", "A100-80G", "H100", "H200"]
    assumed = config(tmp_path, {"precision": "fp16"}, gpus_per_worker=1)
    assert "yours is not known" in stage_cost(assumed, stages(assumed)[-1]).basis
    unknown = on_gpu(tmp_path, "L4", "fp16")
    assert stage_cost(unknown, stages(unknown)[-1]).images_per_second is None
    assert cost.counted_seconds(unknown, stages(unknown)[-1]) > 0  # its ratio to other stages is known


def test_gpu_hours_are_those_that_the_workers_reserve(tmp_path):
    def hours(**ray):
        asked = config(tmp_path, **ray)
        return cost.gpu_hours(asked, stages(asked)[0], 7200)

    assert hours() == 0
    assert hours(gpus_per_worker=1, workers=4) == 8
    assert hours(gpus_per_worker=0.5, workers=2) == 2


def test_a_finished_stage_of_the_same_networks_and_launch_gives_the_speed(tmp_path):
    here = config(tmp_path)
    stage = stages(here)[0]
    storage.write_json(f"{tmp_path}/stages/0008-abc/done.json", speed_record(here, 123.0))
    assert measured_speed(here, stage) == 123.0
    assert stage_cost(here, stage).basis == "finished stages"
    assert stage_cost(here, stage, stored=False).images_per_second != 123.0
    assert measured_speed(here, stages(here)[1]) is None
    assert measured_speed(config(tmp_path, workers=2), stage) is None


def test_small_stages_take_the_time_in_which_steps_are_started(tmp_path):
    """4x4 is hardly faster than the start of its steps allows, on cores and on a GPU."""
    here, there = config(tmp_path), config(tmp_path, gpus_per_worker=1)
    for some in (here, there):
        small, large = (cost.counted_seconds(some, stage) for stage in stages(some)[::2])
        assert (cost.BLOCK_SECONDS * 2 if some is here else cost.GPU_HOST_SECONDS) / 16 < small < large
    assert cost.counted_evaluation(here, 32, 200) == pytest.approx(2 * cost.counted_evaluation(here, 32, 100))


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


def test_an_update_of_g_costs_in_the_steps_that_have_one(tmp_path):
    """Two passes through D and three through G, and with a quarter turned four ways two more through D."""

    def passes(**training):
        return step_flops(config(tmp_path, {"r1_gamma": 0} | training), 32)

    flops_G, flops_D, _, _ = cost._counts(config(tmp_path), 32)
    assert passes() - passes(d_steps=4) == pytest.approx(3 / 4 * (3 * flops_G + 2 * flops_D))
    turned = passes(rotation={}) - passes(rotation={}, d_steps=4)
    assert turned == pytest.approx(3 / 4 * (3 * flops_G + (2 + 2) * flops_D))


def resnet(root, resolution=32, **model):
    tree = {"name": "t", "storage": {"root": str(root)}, "data": {"source": "digits", "resolution": resolution}}
    return build(tree | {"model": {"architecture": "resnet"} | model, "evaluation": {"metrics": ["fid"]}})


@pytest.mark.parametrize("resolution", [32, 64, 128])
def test_the_cost_of_a_resnet_is_that_of_its_networks(tmp_path, resolution):
    asked = resnet(tmp_path, resolution)
    (stage,) = stages(asked)
    networks = [kind(asked.model, resolution=resolution, channels=3) for kind in (Generator, make_discriminator)]
    _, _, parameters, outputs = cost._counts(asked, resolution)
    assert parameters == sum(weight.numel() for network in networks for weight in network.parameters())
    narrow = resnet(tmp_path, resolution, width=0.5)
    assert step_flops(narrow, resolution) < step_flops(asked, resolution) / 3
    assert stage_cost(narrow, stages(narrow)[0]).memory_gib < stage_cost(asked, stage).memory_gib
    # Classes, a normalisation from z and that of D's weights change neither blocks nor the sizes of what they give.
    for model in ({"conditional": True}, {"norm": "self_modulated"}, {"spectral_norm": True}):
        assert cost._counts(resnet(tmp_path, resolution, **model), resolution)[3] == pytest.approx(outputs, rel=0.01)


def test_the_speed_of_other_work_is_not_used(tmp_path):
    here = config(tmp_path)
    storage.write_json(f"{tmp_path}/stages/0008-abc/done.json", speed_record(here, 123.0))
    for change in ({"precision": "bf16"}, {"compile": True}, {"penalty_interval": 4}, {"rotation": {}}, {"d_steps": 2}):
        assert measured_speed(config(tmp_path, change), stages(here)[0]) is None


def test_more_workers_need_less_memory_each(tmp_path):
    stage = stages(config(tmp_path))[-1]
    one, two = (stage_cost(config(tmp_path, workers=count), stage).memory_gib for count in (1, 2))
    assert two < one


def test_a_type_that_the_cores_compute_slowly_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_core_flops", lambda dtype: 1e9 if dtype == torch.bfloat16 else 2e10)
    bf16, fp32 = (config(tmp_path, {"precision": name}) for name in ("bf16", "fp32"))
    basis = stage_cost(bf16, stages(bf16)[0]).basis
    assert basis.endswith("cores, which compute bf16 about 20 times slower than fp32 (training.precision)")
    assert stage_cost(fp32, stages(fp32)[0]).basis == "the speed of this machine's cores"
