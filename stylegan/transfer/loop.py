"""Train a style transfer from its newest checkpoint, or from its start, to its end, in one process.

It leaves the files in storage that a stage of a StyleGAN leaves (`training/loop.py`), so whatever follows a stage follows
this. Images are the clock: what is shown and the learning rate are pure functions of the number of images so far.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stylegan import storage
from stylegan.data.loading.loader import ImageTable, LoaderSettings, load_images
from stylegan.evaluation.features.spaces import obtain_spaces, open_network
from stylegan.images import png_bytes, to_float
from stylegan.networks.style_transfer import encoder_of, shape_of
from stylegan.retry import storage_settings
from stylegan.training import distributed
from stylegan.training.background import Background
from stylegan.training.checkpoints import OnCheckpoint
from stylegan.training.cost import speed_record
from stylegan.training.curves import STATS, Curves
from stylegan.training.faults import gpu_failures
from stylegan.training.hardware import describe_hardware, tuned
from stylegan.training.job import StageJob
from stylegan.training.loop import is_due
from stylegan.training.samples import cell_of
from stylegan.training.state import Checkpoint, checkpoint_uri, newest_checkpoint, prune
from stylegan.training.stop import StageStopped, StopRequests
from stylegan.transfer.losses import content_losses, style_losses, target_of
from stylegan.transfer.measure import measured_network
from stylegan.transfer.pairs import Pairs, split
from stylegan.transfer.pictures import draw_sheet
from stylegan.transfer.state import TransferState


def train_transfer(
    job: StageJob,
    *,
    device: torch.device | str = "cpu",
    on_checkpoint: OnCheckpoint | None = None,
    stop: Callable[[], bool] | None = None,
) -> Checkpoint:
    """Train until `job.stage.end_nimg` and return the record of the last checkpoint.

    Args:
        job: of a config with the section `transfer`.
        device: where the networks are.
        on_checkpoint: called for each checkpoint once it is complete, with the newest point of its curves.
        stop: whether the training is asked to stop early; called before every step.

    Raises:
        StageStopped: as asked, after a checkpoint.
        ConfigError: the encoder cannot be had, or the images lack the classes of the styles.
        StepError: shards or checkpoints are damaged or belong to another config, storage refuses, training diverged, or
            the GPU failed. All files that were complete in storage by then remain.
    """
    with storage_settings(job.config.storage), gpu_failures(job, torch.device(device)):
        return _train(job, distributed.select_device(device), on_checkpoint, stop)


def _train(
    job: StageJob, device: torch.device, on_checkpoint: OnCheckpoint | None, stop: Callable[[], bool] | None
) -> Checkpoint:
    # Open the data and the state.
    config, stage = job.config, job.stage
    assert config.transfer is not None
    table = load_images(job.shards, stage.resolution, settings=LoaderSettings.of(config))
    pairs = split(table.labels, job.shards.label_names, config.transfer, config.data.source)
    state, resumed_at = _open_state(job, device), None
    newest = newest_checkpoint(job.uri)
    if newest:
        state.resume(newest, key=job.key)
        resumed_at = newest.nimg

    with tuned(config.training, device), Background() as background, Curves(job, state, background) as curves:
        stop_requests, begun_at = StopRequests(stop, device), state.nimg
        while True:
            # Decide whether it is done, or is to stop early.
            done = state.nimg >= stage.end_nimg
            stopped = not done and stop_requests.arrived()

            # Report. A checkpoint is written after everything else that is due at its image count.
            if state.nimg != resumed_at:
                if (done or is_due(job, state, "log_kimg")) and state.steps:
                    state.require_finite(f"train {stage.name}")
                    state.measured = {"progress/lr": state.learning_rate}
                    curves.add_point(table.corrupt)
                in_last_kimg = state.nimg // 1000 >= stage.end_nimg // 1000
                if done or (is_due(job, state, "samples_kimg") and not in_last_kimg):
                    _write_sheet(job, state, table, pairs)
                if done or (stopped and state.nimg > begun_at) or is_due(job, state, "checkpoint_kimg"):
                    state.require_finite(f"train {stage.name}")
                    newest = _write_checkpoint(job, state, curves)
                    if on_checkpoint:
                        on_checkpoint(curves.newest()())
            background.check()
            if done:
                break
            if stopped:
                raise StageStopped(f"train {stage.name}: stopped at {state.nimg} images, as asked")

            # Train the decoder.
            with curves.waits:
                chosen = pairs.batch(state.nimg, stage.batch, seed=config.seed, resolution=stage.resolution)
                contents, styles = (_floats(table, numbers, device) for numbers in chosen)
            with curves.steps:
                _step(state, contents, styles)
            state.nimg += stage.batch
            state.steps += 1

    # Mark it as finished.
    assert newest is not None
    prune(job.uri, 1)
    facts = speed_record(config, curves.mean_speed()) | {"hardware": describe_hardware(device).model_dump()}
    storage.write_json(storage.join(job.uri, "done.json"), newest.model_dump() | facts)
    return newest


def _open_state(job: StageJob, device: torch.device) -> TransferState:
    """Return the state at the first image, with the encoder that the config asks for."""
    config = job.config
    assert config.transfer is not None
    root = storage.absolute(config.storage.root)
    spaces = obtain_spaces(
        config.evaluation, job.shards, root=root, device=device.type, loading=LoaderSettings.of(config)
    )
    network = measured_network(open_network(spaces["style"], "cpu"))
    shape = shape_of(
        network, channels=config.data.channels, depth=config.transfer.depth, resolution=job.stage.resolution
    )
    return TransferState(shape, encoder_of(network, shape), config.transfer, seed=config.seed, device=device)


def _step(state: TransferState, contents: Tensor, styles: Tensor) -> None:
    """Update the decoder by one batch (equations 10 to 13), and add the losses to the sums."""
    network = state.network
    with torch.no_grad():
        style_maps = network.encoder.maps(styles)
        target = target_of(network.encoder.maps(contents), style_maps)
    maps = network.encoder.maps(network.decoder(target))
    content, style = content_losses(maps, target).mean(), style_losses(maps, style_maps).mean()
    for group in state.optimizer.param_groups:
        group["lr"] = state.learning_rate
    state.optimizer.zero_grad()
    (content + state.transfer.style_weight * style).backward()
    state.optimizer.step()
    for name, loss in (("loss/content", content), ("loss/style", style)):
        state.sums[name] = state.sums.get(name, 0) + loss.detach()


def _floats(table: ImageTable, numbers: np.ndarray, device: torch.device) -> Tensor:
    """Return images as floats in [-1, 1] on the device."""
    return to_float(torch.from_numpy(np.ascontiguousarray(table.images[numbers])).to(device))


def _write_sheet(job: StageJob, state: TransferState, table: ImageTable, pairs: Pairs) -> None:
    """Draw held-out contents in held-out styles; a sheet has as many rows and columns as `snapshots.grid` says."""
    side = job.config.snapshots.grid - 1
    contents, styles = (
        torch.from_numpy(np.array(table.images[numbers[np.arange(side) % len(numbers)]]))
        for numbers in (pairs.held_contents, pairs.held_styles[::-1])
    )
    sheet = draw_sheet(state.network, contents, styles, cell=cell_of(job.config))
    storage.write_bytes(storage.join(job.uri, f"samples/{state.nimg // 1000:06d}.png"), png_bytes(sheet))


def _write_checkpoint(job: StageJob, state: TransferState, curves: Curves) -> Checkpoint:
    """Write the curves, then the checkpoint: so the stored curves always reach as far as a complete checkpoint."""
    storage.write_bytes(storage.join(job.uri, STATS), curves.content()())
    uri = checkpoint_uri(job.uri, state.nimg)
    record = Checkpoint(uri=uri, run_id=job.run_id, resolution=job.stage.resolution, nimg=state.nimg, digest=job.key)
    state.save(record)
    prune(job.uri, job.config.snapshots.keep)
    return record
