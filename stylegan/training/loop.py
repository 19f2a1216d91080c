"""Training of one stage, from its newest checkpoint (or its start) to its end. Runs in one process or on every rank.

{stage_uri}/checkpoint-{nimg}/   see training/state.py
{stage_uri}/stats.jsonl          points of the curves, one JSON object a line
{stage_uri}/samples/{kimg}.png   grids of the averaged generator at fixed latents; reals.png what D is shown
{stage_uri}/done.json            the record of the last checkpoint, written last of all
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan import storage
from stylegan.config import Config, at_resolution
from stylegan.data.loader import load_images, sample_indices
from stylegan.data.shards import ShardSet
from stylegan.errors import StepError
from stylegan.images import grid, png_bytes
from stylegan.networks.generator import Generator, random_noise
from stylegan.training import distributed
from stylegan.training.cost import speed_record
from stylegan.training.schedule import Stage, crossed
from stylegan.training.state import Checkpoint, TrainState, newest_checkpoint, prune, resume_stage, save_checkpoint, start_stage
from stylegan.training.step import discriminator_step, generator_step, process_reals

MIN_CELL = 64  # pixels: small images are enlarged to this in sample grids


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """All that a worker needs to know to train one stage."""

    config: Config
    stage: Stage
    shards: ShardSet
    key: str
    run_id: str
    uri: str  # the stage's folder in storage
    previous: Checkpoint | None  # the end of the stage below

    @property
    def conditional(self) -> bool:
        """Whether G and D see labels."""
        return self.config.model.conditional


def train_stage(job: StageJob, *, device: torch.device | str = "cpu", on_checkpoint: Callable[[dict], None] | None = None) -> Checkpoint:
    """Train until `job.stage.end_nimg`; a finished stage returns at once, an interrupted one goes on from its newest checkpoint.

    Args:
        job: the same on every rank.
        device: where the networks live.
        on_checkpoint: called on every rank after each checkpoint with the newest point of the curves.

    Raises:
        StepError: shards or checkpoints are damaged or belong to another config, or training diverged.
    """
    config, stage = job.config, job.stage
    data = load_images(job.shards, stage.resolution)
    label_table = torch.from_numpy(np.array(data.labels)).to(device) if job.conditional else None
    newest, num_labels = newest_checkpoint(job.uri), len(_label_names(job))
    if newest:
        state = resume_stage(config, stage, newest, num_labels=num_labels, key=job.key, device=device)
    else:
        state = start_stage(config, stage, num_labels=num_labels, previous=job.previous, device=device)
    curves = Curves(job, state)
    distributed.barrier()  # every rank has looked for the newest checkpoint before the first writes another
    if state.nimg == stage.start_nimg:
        write_reals(job, torch.from_numpy(data.images[: config.snapshots.grid**2].copy()))
    share = distributed.own_share(stage.batch, config.model.mbstd_group).numpy()

    while True:
        before, done = max(state.nimg - stage.batch, stage.start_nimg), state.nimg >= stage.end_nimg
        if curves.due(before) or (done and state.steps):
            curves.add_point()
        last_kimg = state.nimg // 1000 == stage.end_nimg // 1000  # the name of the final grid
        if done or (_due(config.snapshots.samples_kimg, stage, before, state.nimg) and not last_kimg):
            write_samples(job, state)
        saved = newest is not None and newest.nimg == state.nimg
        if not saved and (done or _due(config.snapshots.checkpoint_kimg, stage, before, state.nimg)):
            newest = write_checkpoint(job, state, curves)
            if on_checkpoint:
                on_checkpoint(curves.newest())
        if done:
            break

        if stage.resets_optimizers(state.nimg):
            state.reset_optimizers(config, stage.learning_rate)
        indices = sample_indices(
            len(data.images), seed=config.seed, stage=stage.resolution, start=state.nimg - stage.start_nimg, count=stage.batch
        )[share]
        labels = label_table[torch.from_numpy(indices).to(label_table.device)] if label_table is not None else None
        discriminator_step(state, config, stage, torch.from_numpy(data.images[indices]), labels)
        generator_step(state, config, stage, label_table)
        state.nimg += stage.batch
        state.steps += 1

    assert newest is not None
    if distributed.rank() == 0:
        storage.write_json(storage.join(job.uri, "done.json"), newest.model_dump() | speed_record(config, curves.mean_speed()))
        prune(job.uri, 1)
    distributed.barrier()
    return newest


class Curves:
    """The points of the curves of a stage: means since the last point, on rank 0 also kept in `stats.jsonl`."""

    def __init__(self, job: StageJob, state: TrainState) -> None:
        self.job, self.state = job, state
        self.uri = storage.join(job.uri, "stats.jsonl")
        self.rows = [row for row in read_rows(self.uri) if row["nimg"] <= state.nimg]
        self.clock, self.nimg = time.monotonic(), state.nimg
        self.written = self.clock

    def due(self, before: int) -> bool:
        """Whether a point is due at this image count and not there yet (a resumed stage may have it)."""
        here = self.state.nimg
        return _due(self.job.config.snapshots.log_kimg, self.job.stage, before, here) and self.state.steps > 0

    def add_point(self) -> None:
        """Close the running means into a point. Called on every rank."""
        state, stage = self.state, self.job.stage
        names = sorted(state.sums)
        means = [state.sums[name] / state.steps for name in names]
        distributed.mean_(means)
        now = time.monotonic()
        speed = (state.nimg - self.nimg) / max(now - self.clock, 1e-9)
        metrics = dict(zip(names, torch.stack(means).tolist(), strict=True)) | {
            "progress/kimg": state.nimg / 1000,
            "progress/alpha": stage.alpha(state.nimg),
            "progress/resolution": float(stage.resolution),
            "progress/lr": stage.learning_rate,
            "progress/batch": float(stage.batch),
            "time/img_per_sec": speed,
            "time/sec_per_kimg": 1000 / max(speed, 1e-9),
        }
        self.rows.append({"nimg": state.nimg, "resolution": stage.resolution, "metrics": metrics})
        state.sums, state.steps = {}, 0
        self.clock, self.nimg = now, state.nimg
        if now - self.written > 2:  # an object store takes whole files only
            self.write()

    def write(self) -> None:
        """Bring storage up to date (rank 0)."""
        self.written = time.monotonic()
        if distributed.rank() == 0:
            storage.write_bytes(self.uri, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def newest(self) -> dict[str, float]:
        """The metrics of the last point, empty before the first."""
        return dict(self.rows[-1]["metrics"]) if self.rows else {}

    def mean_speed(self) -> float:
        """Images per second over the points of the stage."""
        seconds = [row["metrics"]["time/sec_per_kimg"] for row in self.rows]
        return 1000 * len(seconds) / sum(seconds) if seconds else 0.0


def read_rows(uri: str) -> list[dict]:
    """The points in a `stats.jsonl`; none if it is not there."""
    try:
        return [json.loads(line) for line in storage.read_bytes(uri).splitlines()]
    except FileNotFoundError:
        return []


def write_checkpoint(job: StageJob, state: TrainState, curves: Curves) -> Checkpoint:
    """Save on rank 0 (the curves first, so that they never end before a checkpoint) and wait for it on the others."""
    distributed.mean_(state.sums[name] for name in sorted(state.sums))  # one rank's file stands for all
    if distributed.rank() == 0:
        curves.write()
        save_checkpoint(state, job.uri, run_id=job.run_id, key=job.key, label_names=_label_names(job))
        prune(job.uri, job.config.snapshots.keep)
    distributed.barrier()
    newest = newest_checkpoint(job.uri)
    if newest is None or newest.nimg != state.nimg:
        raise StepError(
            f"storage.root={job.config.storage.root}: this worker does not see the checkpoint that the first one wrote; "
            "give a folder or bucket that every node of the cluster reaches"
        )
    return newest


def sample_latents(config: Config, label_names: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
    """The fixed z of a run's grids, [n, latent], and their labels (a column a class, in turn) for n = grid * grid."""
    side = config.snapshots.grid
    z = torch.randn(side * side, config.model.latent_size, generator=torch.Generator().manual_seed(config.seed))
    labels = torch.arange(side * side) % side % len(label_names) if label_names else None
    return z, labels


def write_samples(job: StageJob, state: TrainState) -> None:
    """The grid of the averaged generator at the fixed latents (rank 0); no truncation."""
    if distributed.rank() == 0:
        z, labels = sample_latents(job.config, _label_names(job))
        images = render(state.G_ema, z, labels, alpha=job.stage.alpha(state.nimg), device=state.device)
        _write_grid(job, images, f"samples/{state.nimg // 1000:06d}.png")


def write_reals(job: StageJob, images: Tensor) -> None:
    """The first real images as D is shown them (rank 0), uint8 [N, C, r, r]."""
    if distributed.rank() == 0:
        _write_grid(job, process_reals(images, alpha=1.0), "samples/reals.png")


@torch.no_grad()
def render(G: Generator, z: Tensor, labels: Tensor | None, *, alpha: float = 1.0, device: torch.device | str = "cpu") -> Tensor:
    """Images [N, C, r, r] on the CPU, 16 at a time, with noise that is the same at every call."""
    noise = random_noise(torch.Generator(device).manual_seed(0), device)
    batches = [slice(i, i + 16) for i in range(0, len(z), 16)]
    return torch.cat(
        [G(z[b].to(device), None if labels is None else labels[b].to(device), alpha=alpha, noise=noise).cpu() for b in batches]
    )


def _write_grid(job: StageJob, images: Tensor, name: str) -> None:
    scale = max(MIN_CELL // images.shape[-1], 1)
    large = F.interpolate(images, scale_factor=scale, mode="nearest")
    storage.write_bytes(storage.join(job.uri, name), png_bytes(grid(large, job.config.snapshots.grid)))


def _due(table: dict[int, float], stage: Stage, before: int, now: int) -> bool:
    """A multiple of the interval was passed by the last step; never at the very start of a stage."""
    return now > before and crossed(at_resolution(table, stage.resolution), before, now)


def _label_names(job: StageJob) -> tuple[str, ...]:
    return job.shards.label_names if job.conditional else ()
