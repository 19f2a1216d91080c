"""Say in one line what keeps a GPU from training a stage: before the first step, and when it fails in the middle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from stylegan.config.sections import OF_BATCH
from stylegan.config.tree import Config
from stylegan.errors import ConfigError, StepError, UnavailableError, UserError, one_line
from stylegan.training import distributed
from stylegan.training.cost import micro_batch, stage_memory_for
from stylegan.training.gpus import Device, device_facts, target
from stylegan.training.job import StageJob
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import newest_checkpoint

# A stage is refused only if even this share of its estimated memory is more than the GPU has: the estimate may be too
# large, and a stage that would fit must never be refused.
SURELY = 0.5
GPU_FAILURE = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)  # older versions of torch have no name for it
# Parts of messages for which torch has no error class of its own.
NO_MEMORY = (
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)
BROKEN = ("CUDA error", "CUDA driver error", "cuDNN error", "CUDNN_STATUS_", "CUBLAS_STATUS_")


# --- before the first step ---


def check_gpus(config: Config, wanted: Sequence[Stage], devices: Sequence[Device]) -> None:
    """Check that one of these GPUs can train the stages of a config that ask for one; without any, nothing is known.

    Raises:
        ConfigError: none can train a stage, which the line names.
    """
    for stage in wanted:
        if devices and config.workers_at(stage.resolution).gpus_per_worker:
            failures = [failure for device in devices if (failure := unfit(config, stage, device))]
            if len(failures) == len(devices):
                raise ConfigError(f"train {stage.name}: {failures[0]}")


def unfit(config: Config, stage: Stage, device: Device) -> str | None:
    """Return why a GPU cannot train a stage, as `check_stage` says it; None if it can."""
    try:
        check_stage(config, stage, device)
    except ConfigError as error:
        return str(error)
    return None


def check_stage(config: Config, stage: Stage, device: Device) -> None:
    """Check that a GPU can train a stage.

    Raises:
        ConfigError: it does not compute in `training.precision`, or has too little memory by any estimate.
    """
    precision = config.training.precision
    if not device.computes(precision):
        raise ConfigError(
            f"training.precision={precision}: {device.name} (compute {device.capability[0]}.{device.capability[1]}) does not "
            "compute in it, which needs compute 8.0; use fp16 or fp32"
        )
    images = micro_batch(config, stage)
    needed = stage_memory_for(config, stage, images)
    if SURELY * needed > device.gib:
        raise ConfigError(
            f"needs about {needed:.1f} GiB of GPU memory for {images} images at a time, but {device.name} has "
            f"{device.gib:.1f} GiB; {_less_memory(config, stage, device)}"
        )


def check_named(config: Config, wanted: Sequence[Stage]) -> None:
    """Check that the GPUs which the config names for these stages compute in the precision. Raises ConfigError if not."""
    precision = config.training.precision
    for stage in wanted:
        gpu = target(config, stage.resolution)
        on_gpus = config.workers_at(stage.resolution).gpus_per_worker
        if on_gpus and gpu.known == "named" and gpu.kind and precision not in gpu.kind.tflops:
            raise ConfigError(
                f"training.precision={precision}: {gpu.name}, which ray names for stage {stage.name}, does not compute in it; "
                "use fp16 or fp32, or another ray.accelerator_type"
            )


def check_device(job: StageJob, device: torch.device) -> None:
    """Check on a worker that its GPU can train the stage and is its own. Every rank must call this; CPUs pass.

    Raises:
        ConfigError: as `check_stage`, or several ranks have one GPU although the config does not share it.
    """
    if device.type != "cuda":
        return
    facts = device_facts(device)
    check_stage(job.config, job.stage, facts)
    part = job.config.workers_at(job.stage.resolution).gpus_per_worker or 0
    if 0 < part < 1:
        return
    chips = distributed.texts("gpu", facts.uuid)
    for chip in dict.fromkeys(filter(None, chips)):
        ranks = [rank for rank, other in enumerate(chips) if other == chip]
        if len(ranks) > 1:
            raise ConfigError(
                f"ray.gpus_per_worker={part:g}: the workers of ranks {ranks} have one and the same GPU ({facts.name}, {chip}); "
                f"set ray.workers=1, or ray.gpus_per_worker={1 / len(ranks):.2g} to let them share it, or start each Ray node "
                "with the number of GPUs that it really has (--num-gpus)"
            )


# --- in the middle of a stage ---


@contextmanager
def gpu_failures(job: StageJob, device: torch.device) -> Iterator[None]:
    """Turn failures of a GPU in the block into one line that says what to lower, or what to do.

    Raises:
        StepError: its memory was not enough; the same would happen again.
        UnavailableError: it failed in another way, which may not come again.
    """
    try:
        yield
    except UserError:
        raise
    except RuntimeError as error:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(part in text for part in NO_MEMORY):
            raise StepError(_out_of_memory(job, device)) from error
        if isinstance(error, GPU_FAILURE) or any(part in text for part in BROKEN):
            reason = one_line(RuntimeError(text.strip().partition("\n")[0]), 160)
            raise UnavailableError(
                f"the GPU ({_name(device)}) failed: {type(error).__name__}: {reason}; the stage goes on from "
                f"{_origin(job)}; if it happens again, the GPU or its driver may be faulty: see `nvidia-smi` and `dmesg`"
            ) from error
        raise


def _out_of_memory(job: StageJob, device: torch.device) -> str:
    config, stage, facts, found = job.config, job.stage, None, ""
    with suppress(RuntimeError, AssertionError, ValueError):  # where CUDA does not answer any more
        facts = device_facts(device)
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
        rest = max(total - free - own, 0)
        found = f", {total / 2**30:.1f} GiB: {own / 2**30:.1f} held by this worker, {rest / 2**30:.1f} by all else"
    cure = _less_memory(config, stage, facts)
    anew = " (with another precision it starts anew)" if "precision" in cure else ""
    return (
        f"out of GPU memory ({facts.name if facts else device}{found}) with {micro_batch(config, stage)} images at a time on "
        f"each worker and training.precision={config.training.precision}; {cure}; the stage goes on from {_origin(job)}{anew}"
    )


def _less_memory(config: Config, stage: Stage, device: Device | None) -> str:
    """Return what to set so that this stage takes less memory, and that those after it fit the GPU, too."""
    cures, half = [], micro_batch(config, stage) // 2
    limits = {stage.resolution: _fitting(config, stage, half, device)}
    divides = not (config.model.is_resnet and config.model.norm_used in OF_BATCH)  # whether a share may go in parts
    if divides and limits[stage.resolution] >= config.model.group:
        for later in stages(config) if device else ():
            if later.resolution > stage.resolution:
                limit = _fitting(config, later, micro_batch(config, later), device)
                if limit < list(limits.values())[-1]:
                    limits[later.resolution] = limit
        entries = ", ".join(f"{resolution}: {limit}" for resolution, limit in limits.items())
        cures.append(f"training.max_batch_per_worker={{{entries}}}")
    # Two bytes for a number take as much memory as half of the images.
    if config.training.precision in ("fp32", "tf32") and (
        device is None or stage_memory_for(config, stage, half) <= device.gib
    ):
        cures.append(f"training.precision={'bf16' if device is None or device.computes('bf16') else 'fp16'}")
    if cures:
        return f"set {' or '.join(cures)}"
    others = ", or a smaller model.fmap_max"
    if config.model.is_resnet:
        others = f"{'' if divides else ', more workers'}, or a smaller model.width"
    return f"use a GPU with more memory{others}"


def _fitting(config: Config, stage: Stage, images: int, device: Device | None) -> int:
    """Return how many images at a time fit a GPU, at most `images`, in whole groups where there are as many."""
    group = config.model.group
    while device and images >= 2 * group and stage_memory_for(config, stage, images) > device.gib:
        images //= 2
    return images // group * group or images


def _name(device: torch.device) -> str:
    with suppress(RuntimeError, AssertionError, ValueError):
        return f"{torch.cuda.get_device_name(device)}, {device}"
    return str(device)


def _origin(job: StageJob) -> str:
    """Return where a stage goes on, in words."""
    with suppress(StepError):
        newest = newest_checkpoint(job.uri)
        return newest.uri if newest else "the start of the stage"
    return "its newest checkpoint"
