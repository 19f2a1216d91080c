"""What keeps a GPU from training a stage, and what its failures leave and say. The stages here train on a CPU."""

from itertools import count

import pytest
import torch

from stylegan.config.file import build
from stylegan.errors import ConfigError, StepError, UnavailableError
from stylegan.training.faults import check_gpus, check_named, check_stage
from stylegan.training.gpus import Device
from stylegan.training.loop import train_stage
from stylegan.training.schedule import stages
from stylegan.training.state import newest_checkpoint


def gpu(gib, name="NVIDIA A100-SXM4-40GB", capability=(8, 0), uuid="GPU-1"):
    return Device(name=name, memory=int(gib * 2**30), capability=capability, uuid=uuid)


def config(resolution=256, training=None, **ray):
    tree = {"name": "t", "data": {"source": "digits", "resolution": resolution}, "training": training or {}}
    return build(tree | {"ray": {"gpus_per_worker": 1} | ray})


def test_a_stage_that_cannot_fit_is_refused_with_what_is_needed_and_the_cure():
    """It takes about 9.9 GiB, in bf16 about 5. A GPU on which it might fit after all is left to try."""
    asked = config(training={"batch": 32, "precision": "tf32"})
    check_stage(asked, stages(asked)[-1], gpu(6))
    with pytest.raises(ConfigError) as caught:
        check_stage(asked, stages(asked)[-1], gpu(4))
    assert str(caught.value) == (
        "needs about 9.9 GiB of GPU memory for 32 images at a time, but NVIDIA A100-SXM4-40GB has 4.0 GiB; set "
        "training.max_batch_per_worker={256: 8}"
    )
    growing = config(
        1024, training={"batch": 64, "precision": "tf32"}
    )  # what is said holds for the stages after it, too
    with pytest.raises(ConfigError, match=r"set training\.max_batch_per_worker={256: 16, 512: 8, 1024: 4}$"):
        check_stage(growing, stages(growing)[-3], gpu(6))
    small = config(training={"batch": 4, "precision": "bf16"})
    with pytest.raises(ConfigError, match=r"use a GPU with more memory, or a smaller model\.fmap_max"):
        check_stage(small, stages(small)[-1], gpu(0.5))


@pytest.mark.parametrize(
    ("norm", "batch", "gib", "cure"),
    [
        ("batch", 256, 2, "use a GPU with more memory, more workers, or a smaller model.width"),
        ("self_modulated", 256, 2, "use a GPU with more memory, more workers, or a smaller model.width"),
        ("instance", 256, 2, "set training.max_batch_per_worker={32: 64}"),
        ("instance", 256, 1.2, "set training.max_batch_per_worker={32: 32}"),
    ],
)
def test_the_cure_for_a_resnet_is_one_that_it_has(norm, batch, gib, cure):
    """Statistics of a batch are not found in parts of it, and there are no groups of a minibatch."""
    tree = {"name": "t", "data": {"source": "digits", "resolution": 32}, "training": {"batch": batch}}
    model = {"architecture": "resnet", "norm": norm}
    asked = build(tree | {"model": model, "evaluation": {"metrics": ["fid"]}, "ray": {"gpus_per_worker": 1}})
    with pytest.raises(ConfigError) as caught:
        check_stage(asked, stages(asked)[0], gpu(gib))
    assert str(caught.value).endswith(f"; {cure}")


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_precisions_that_a_gpu_only_emulates_are_refused(precision):
    asked = config(64, {"precision": precision})
    check_stage(asked, stages(asked)[0], gpu(40))
    old = gpu(16, "Tesla V100-SXM2-16GB", (7, 0))
    with pytest.raises(
        ConfigError, match=rf"training\.precision={precision}: Tesla V100.*compute 7\.0.*use fp16 or fp32"
    ):
        check_stage(asked, stages(asked)[0], old)
    check_gpus(asked, stages(asked), [old, gpu(40)])  # one of them can
    with pytest.raises(ConfigError, match=r"^train 8x8: training\.precision"):
        check_gpus(asked, stages(asked), [old])
    named = config(64, {"precision": precision}, resources_per_worker={"accelerator_type:V100": 0.001})
    with pytest.raises(ConfigError, match=r"NVIDIA V100, which ray names for stage 8x8, does not compute in it"):
        check_named(named, stages(named))
    check_named(asked, stages(asked))


def test_stages_on_cpus_need_no_gpu():
    asked = config(64, {"precision": "bf16"}, gpus_per_worker=0)
    check_gpus(asked, stages(asked), [gpu(0.1, capability=(7, 0))])


# --- in the middle of a stage ---


@pytest.fixture
def failing(job, monkeypatch):
    """Return failing(error): the stage, and the error that ends it, if the fourth of its steps raises."""

    def train(error, expected=StepError):
        stage, updates = job(4, "one"), count()
        original = torch.optim.Adam.step

        def step(*arguments, **options):
            if next(updates) == 6:  # two in each step
                raise error
            return original(*arguments, **options)

        step.hooked = True
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.Adam, "step", step)
            with pytest.raises(expected) as caught:
                train_stage(stage)
        return stage, caught.value

    return train


def test_out_of_memory_leaves_the_checkpoint_and_says_what_to_lower(failing):
    """It would come again, so it is no UnavailableError, for which Ray's workers are started again."""
    stage, error = failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    newest = newest_checkpoint(stage.uri)
    assert newest.nimg == 12
    assert not isinstance(error, UnavailableError)
    assert str(error) == (
        "out of GPU memory (cpu) with 4 images at a time on each worker and training.precision=fp32; set "
        f"training.precision=bf16; the stage goes on from {newest.uri} (with another precision it starts anew)"
    )
    assert train_stage(stage).nimg == 16


def test_a_failed_gpu_may_work_again(failing):
    broken = getattr(torch, "AcceleratorError", None)
    text = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"
    stage, error = failing(broken(text) if broken else RuntimeError(text))
    assert isinstance(error, UnavailableError)
    assert "CUDA error: an illegal memory access was encountered; the stage goes on from " in str(error)
    assert f"{newest_checkpoint(stage.uri).uri}; if it happens again, the GPU or its driver may be faulty" in str(error)


def test_memory_that_a_library_of_cuda_lacks_is_told_the_same_way(failing):
    _, error = failing(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert str(error).startswith("out of GPU memory (cpu)")


def test_other_errors_are_left_as_they_are(failing):
    _, error = failing(RuntimeError("a defect"), RuntimeError)
    assert (type(error), str(error)) == (RuntimeError, "a defect")
