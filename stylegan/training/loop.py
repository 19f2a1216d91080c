"""Trains one stage from its newest checkpoint, or from its start, to its end. Runs in one process or on every rank.

The stage leaves these files in storage:

{stage_uri}/checkpoint-{nimg}/   see state.py
{stage_uri}/stats.jsonl          see curves.py
{stage_uri}/samples/             see samples.py
{stage_uri}/done.json            the record of the last checkpoint, written last of all
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import torch

from stylegan import storage
from stylegan.config.resolutions import at_resolution
from stylegan.data.loading.lazy_images import filling
from stylegan.data.loading.loader import ImageTable, LoaderSettings, batches, load_images, prefetch
from stylegan.data.loading.order import sample_indices, upcoming
from stylegan.errors import StepError
from stylegan.retry import storage_settings
from stylegan.training import distributed
from stylegan.training.background import Background
from stylegan.training.checkpoints import CheckpointWriter, OnCheckpoint, check_shared
from stylegan.training.cost import speed_record
from stylegan.training.curves import Counted, Curves
from stylegan.training.faults import check_device, gpu_failures
from stylegan.training.graphs import StepRunner
from stylegan.training.hardware import describe_hardware, operations_path, tuned
from stylegan.training.job import StageJob
from stylegan.training.samples import write_reals, write_samples
from stylegan.training.schedule import crossed
from stylegan.training.settle_average import settle_average
from stylegan.training.state import Checkpoint, TrainState, newest_checkpoint, prune, resume_stage, start_stage
from stylegan.training.stop import StageStopped, StopRequests
from stylegan.training.update import CHECK_EVERY, DivergenceCheck


def train_stage(
    job: StageJob,
    *,
    device: torch.device | str = "cpu",
    on_checkpoint: OnCheckpoint | None = None,
    stop: Callable[[], bool] | None = None,
) -> Checkpoint:
    """Train until `job.stage.end_nimg` and return the record of the last checkpoint.

    A finished stage returns at once. An interrupted stage resumes from its newest checkpoint. Files are written in the
    background, so the call of `on_checkpoint` comes late: when the next checkpoint is due, or at the end of the stage.

    Args:
        job: the same on every rank.
        device: where the networks are.
        on_checkpoint: called on every rank for each checkpoint once it is complete, with the newest point of its
            curves.
        stop: whether the stage is asked to stop early; it must return at once. One process calls it before every step.
            Of several ranks, rank 0 calls it about once a second, and the others follow it. None on every rank or on
            none.

    Raises:
        StageStopped: as asked, after a checkpoint.
        ConfigError: the GPU cannot train this stage, or several ranks have one GPU; nothing was trained.
        StepError: shards or checkpoints are damaged or belong to another config, storage refuses, the ranks disagree,
            training diverged, or the GPU failed. All files that were complete in storage by then remain.
    """
    with storage_settings(job.config.storage), gpu_failures(job, torch.device(device)):
        numbered = distributed.select_device(device)
        check_device(job, numbered)
        return _train_stage(job, numbered, on_checkpoint, stop)


def _train_stage(
    job: StageJob, device: torch.device, on_checkpoint: OnCheckpoint | None, stop: Callable[[], bool] | None
) -> Checkpoint:
    # Open the data.
    config, stage = job.config, job.stage
    table = load_images(job.shards, stage.resolution, settings=LoaderSettings.of(config))

    # Open the state, and start the data order at its image count.
    state, resumed_at = open_stage(job, table, device)
    label_table = torch.from_numpy(table.labels).to(device) if config.model.conditional else None
    source = batches(table, own_order(job, table, state.nimg))

    with (
        tuned(config.training, device),
        Background() as background,
        Curves(job, state, background) as curves,
        filling(table.images, groups_ahead(job, table, state.nimg)),
        prefetch(source, device, ahead=table.ahead) as training_batches,
    ):
        checkpoints = CheckpointWriter(job, state, background, on_checkpoint)
        runner = StepRunner(config, stage, state, label_table, path=operations_path(config.training, device))
        divergence = DivergenceCheck(state)
        stop_requests, begun_at = StopRequests(stop, device), state.nimg
        while True:
            # Decide whether the stage is done, or is to stop early.
            done = state.nimg >= stage.end_nimg
            stopped = not done and stop_requests.arrived()

            # Report. A checkpoint is written after everything else that is due at its image count, so nothing is left
            # to report right after training has resumed from one.
            if state.nimg != resumed_at:
                # Probe D, for the next point of the curves.
                if done or is_due(job, state, "probe_kimg"):
                    probe_features(job, state, table)

                # Add a point to the curves.
                if (done or is_due(job, state, "log_kimg")) and state.steps:
                    curves.add_point(table.corrupt)

                # Settle the average, before it draws or is stored. File names of grids are in kimg, and within its last
                # kimg a stage draws only the grid of its end.
                in_last_kimg = state.nimg // 1000 >= stage.end_nimg // 1000
                draws = done or (is_due(job, state, "samples_kimg") and not in_last_kimg)
                stores = done or (stopped and state.nimg > begun_at) or is_due(job, state, "checkpoint_kimg")
                if draws or stores:
                    settle_average(state, config, stage, label_table)

                # Draw samples.
                if draws:
                    write_samples(job, state, background)

                # Write a checkpoint.
                if stores:
                    checkpoints.write(curves)

            # Stop if work in the background has failed, or if training has diverged.
            background.check()
            if done or state.nimg // stage.batch % CHECK_EVERY == 0:
                divergence.check(last=done)

            if done:
                break
            if stopped:
                checkpoints.wait()
                raise StageStopped(f"train {stage.name}: stopped at {state.nimg} images, as asked")

            # Reset Adam at the start of the stage and at the end of its fade. A warm start goes on with its moments.
            if not job.is_warm and stage.resets_optimizers(state.nimg):
                runner.reset_optimizers()

            # Train D, then G if it is its turn.
            with curves.waits:
                images, labels = next(training_batches)
            with curves.steps:
                curves.took(runner.step(images, labels if config.model.conditional else None))
            state.nimg += stage.batch
            state.steps += 1
        newest = checkpoints.finish()

    # Mark the stage as finished.
    hardware = describe_hardware(device)
    if distributed.rank() == 0:
        prune(job.uri, 1)
        facts = speed_record(config, curves.mean_speed()) | {"hardware": hardware.model_dump()}
        storage.write_json(storage.join(job.uri, "done.json"), newest.model_dump() | facts)
    distributed.barrier()
    return newest


def open_stage(job: StageJob, table: ImageTable, device: torch.device) -> tuple[TrainState, int | None]:
    """Load the newest checkpoint, or make the state at the start of the stage.

    Returns:
        The state, and the image count of its checkpoint; None at the start of the stage.

    Raises:
        StepError: the ranks do not see the same storage or do not have the same weights, there is no checkpoint, neither
            its own nor one to start from; or as `start_stage` and `resume_stage`.
    """
    config, stage, num_labels = job.config, job.stage, len(job.label_names)

    # Write the grid of reals, unless an earlier run did.
    reals = storage.join(job.uri, "samples", "reals.png")
    if distributed.rank() == 0 and not storage.exists(reals):
        write_reals(job, table)
    distributed.barrier()

    # Check that all ranks see that grid and the newest checkpoint of rank 0.
    newest = newest_checkpoint(job.uri)
    nimg = distributed.gather(torch.tensor(newest.nimg if newest else -1, device=device)).tolist()
    check_shared(job, storage.exists(reals) and nimg[0] == nimg[distributed.rank()], device)

    # Load or make the state, and check that it is the same on all ranks.
    if newest is None and job.previous is None and job.is_warm:
        raise StepError(f"{job.uri}: its checkpoints are gone; run the same command again, which starts it anew")
    if newest is None and job.previous is None and stage.resolution > config.grown_resolutions[0]:
        raise StepError(
            f"{job.uri}: its checkpoints are gone, and so is the end of the stage below; run the same command again, "
            "which trains that stage first"
        )
    if newest:
        state = resume_stage(config, stage, newest, num_labels=num_labels, key=job.key, device=device)
    else:
        state = start_stage(config, stage, num_labels=num_labels, previous=job.previous, device=device)
    distributed.check_agreement(state.networks(), state.nimg)
    return state, newest.nimg if newest else None


def own_order(job: StageJob, table: ImageTable, nimg: int) -> Iterator[np.ndarray]:
    """Yield the indices of the images that this rank shows D, batch by batch without end, from an image count on."""
    stage, share = job.stage, distributed.own_share(job.stage.batch, job.config.model.group).numpy()
    for start in count(nimg - stage.start_nimg, stage.batch):
        indices = sample_indices(
            len(table.images), seed=job.config.seed, stage=stage.resolution, start=start, count=stage.batch
        )
        yield indices[share]


def groups_ahead(job: StageJob, table: ImageTable, nimg: int) -> Iterator[range]:
    """Yield the groups of images that the rest of the stage shows, in order.

    Groups of which it shows less than half are left out: they are not worth being read whole.
    """
    stage = job.stage
    start, count = nimg - stage.start_nimg, max(stage.end_nimg - nimg, 0)
    return upcoming(
        len(table.images), seed=job.config.seed, stage=stage.resolution, start=start, count=count, least=0.5
    )


def is_due(job: StageJob, state: Counted, setting: str) -> bool:
    """Return whether the last step passed a multiple of an interval of `config.snapshots`.

    Nothing is due at the very start of a stage, nor for an interval that is not set.
    """
    intervals = getattr(job.config.snapshots, setting)
    before = max(state.nimg - job.stage.batch, job.stage.start_nimg)
    return intervals is not None and crossed(at_resolution(intervals, job.stage.resolution), before, state.nimg)


def probe_features(job: StageJob, state: TrainState, table: ImageTable) -> None:
    """Probe D's features for the next point of the curves (rank 0), if the config asks for it."""
    snapshots, stage = job.config.snapshots, job.stage
    if snapshots.probe_kimg is None or distributed.rank() != 0:
        return
    from stylegan.training.probe import probe, probe_indices  # takes a second, because it imports scikit-learn

    indices = probe_indices(len(table.images), count=snapshots.probe_images, seed=job.config.seed)
    images, labels = torch.from_numpy(table.images[indices]), torch.from_numpy(table.labels[indices])
    state.measured |= probe(
        state.D, images, labels, alpha=stage.alpha(state.nimg), seed=job.config.seed, batch=stage.batch
    )
