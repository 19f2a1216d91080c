"""Two gloo ranks: what they gather, how they notice that they have drifted apart, and how they train a whole stage."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from contents import training_state

from stylegan.config.file import build
from stylegan.errors import ConfigError, StepError
from stylegan.training import distributed, faults
from stylegan.training.gpus import Device
from stylegan.training.graphs import StepRunner
from stylegan.training.loop import train_stage
from stylegan.training.schedule import stages
from stylegan.training.state import newest_checkpoint, start_stage


def test_fingerprint_sees_every_change_of_one_element_and_order():
    """A changed element, another order and the sign of a zero change the fingerprint, in every dtype of a network."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64):
        tensor = torch.arange(24).to(dtype).reshape(2, 3, 4)
        prints = {int(distributed.fingerprint(tensor))}
        for place in range(24):
            other = tensor.clone()
            other.view(-1)[place] += 1
            prints.add(int(distributed.fingerprint(other)))
        prints.add(int(distributed.fingerprint(tensor.flip(0))))
        assert len(prints) == 26
    assert distributed.fingerprint(torch.tensor(0.0)) != distributed.fingerprint(torch.tensor(-0.0))
    nan = torch.tensor([1.0, float("nan")])
    assert distributed.fingerprint(nan) == distributed.fingerprint(nan.clone())


def raised(function, *arguments):
    """Assert that the call raises StepError, and return its message."""
    with pytest.raises(StepError) as caught:
        function(*arguments)
    return str(caught.value)


def drift_at_48(step):
    """Return the step with a fault: at 48 images it leaves a weight a little off, as a faulty device would."""

    def drifting(runner, *arguments):
        path = step(runner, *arguments)
        if runner.state.nimg == 48:
            runner.state.G.mapping.layers[0].bias.data[2] += 1e-6
        return path

    return drifting


def told_about_gpus(rank, chips, **ray):
    """Return what the ranks are told if their GPUs have these chips; nothing if they may train."""
    asked = build({"name": "t", "data": {"source": "digits", "resolution": 8}, "ray": {"workers": 2} | ray})
    job = SimpleNamespace(config=asked, stage=stages(asked)[0])
    facts = Device(name="NVIDIA H100", memory=80 * 2**30, capability=(9, 0), uuid=chips[rank])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "device_facts", lambda device: facts)
        try:
            faults.check_device(job, torch.device("cuda", 0))
        except ConfigError as error:
            return str(error)
    return ""


def on_rank(rank, folder, jobs):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {"gathered": distributed.gather(torch.tensor([rank, 10])).tolist()}
    found["one gpu"] = told_about_gpus(rank, ("GPU-1", "GPU-1"), gpus_per_worker=1)
    found["one gpu shared"] = told_about_gpus(rank, ("GPU-1", "GPU-1"), gpus_per_worker=0.5)
    found["two gpus"] = told_about_gpus(rank, ("GPU-1", "GPU-2"), gpus_per_worker=1)
    stage = jobs["whole"]
    state = start_stage(stage.config, stage.stage, num_labels=2, previous=stage.previous)
    distributed.check_agreement(state.networks(), state.nimg)
    if rank == 1:
        weight = state.D.head.conv.weight.data
        weight[1, 2, 0, 1] = torch.nextafter(weight[1, 2, 0, 1], torch.tensor(9.0))
    found["drifted"] = raised(distributed.check_agreement, state.networks(), state.nimg)
    points = []
    found["record"] = train_stage(stage, on_checkpoint=points.append).model_dump()
    found["points"] = [point["progress/kimg"] for point in points]
    if rank == 1:
        StepRunner.step = drift_at_48(StepRunner.step)
    found["drifted in training"] = raised(train_stage, jobs["drifting"])
    found["other weights"] = raised(train_stage, jobs["other weights"][rank])
    found["other storage"] = raised(train_stage, jobs["other storage"][rank])
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()  # lets gloo's thread release the tensors gathered last, which is too late when Python exits
    dist.destroy_process_group()


def test_two_ranks_train_a_stage_and_notice_what_differs(job, tmp_path):
    """Both ranks return the same record of the checkpoint, and raise the same one line when something is wrong."""
    training = {"batch": 8, "stable_kimg": 0.024}
    previous = train_stage(job(4, "below", training=training))
    folder = tmp_path / "other"
    saved = training_state(previous.uri)
    saved["D"]["head.dense0.weight"][3, 4] += 1
    folder.mkdir()
    torch.save(saved, folder / "training.pt")
    changed = previous.model_copy(update={"uri": str(folder)})
    jobs = {
        "whole": job(8, "whole", previous=previous, training=training),
        "drifting": job(8, "drifting", previous=previous, training=training),
        "other weights": [job(8, "weights", previous=start, training=training) for start in (previous, changed)],
        "other storage": [job(8, name, previous=previous, training=training) for name in ("here", "there")],
    }
    mp.spawn(on_rank, (str(tmp_path), jobs), nprocs=2)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    found = ranks[0]
    assert found["gathered"] == [[0, 10], [1, 10]]
    assert found["one gpu"].startswith(
        "ray.gpus_per_worker=1: the workers of ranks [0, 1] have one and the same GPU (NVIDIA H100, GPU-1); set "
        "ray.workers=1, or ray.gpus_per_worker=0.5 to let them share it, "
    )
    assert found["one gpu shared"] == found["two gpus"] == ""
    assert found["drifted"].startswith(
        "ranks disagree at 24 images: D head.conv.weight (the first of 1 tensors) differs between ranks [0] and [1]; "
    )
    assert found["points"] == [0.04, 0.048, 0.064, 0.072]
    assert found["record"]["nimg"] == 72
    assert training_state(found["record"]["uri"])["nimg"] == 72
    assert found["drifted in training"].startswith("ranks disagree at 64 images: ")
    assert newest_checkpoint(jobs["drifting"].uri).nimg == 48
    assert "ranks disagree at 24 images: D head.dense0.weight" in found["other weights"]
    assert found["other storage"].startswith(
        "storage.root=stylegan-data: the workers of ranks [1] do not see what the first one wrote"
    )
    assert newest_checkpoint(jobs["other storage"][0].uri) is None  # noticed before any training
