"""Writes the checkpoints of a stage while training goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from functools import partial
from typing import cast

import torch

from stylegan import storage
from stylegan.errors import StepError
from stylegan.training import distributed
from stylegan.training.background import Background, HostCopy
from stylegan.training.curves import STATS, Curves
from stylegan.training.job import StageJob
from stylegan.training.state import Checkpoint, TrainState, checkpoint_uri, newest_checkpoint, prune, save_checkpoint

WAIT_SECONDS = 60.0  # after which the other ranks hear that rank 0 still writes
OnCheckpoint = Callable[[dict[str, float]], None]  # called with the newest point of the curves in a checkpoint


class CheckpointWriter:
    """Writes the checkpoints of a stage.

    `write` copies the state to host memory, and the background thread of rank 0 stores the copy. Only one checkpoint is
    written at a time: the next `write`, and `finish`, wait for it on all ranks. Every rank must call every public
    method.
    """

    def __init__(
        self, job: StageJob, state: TrainState, background: Background, on_checkpoint: OnCheckpoint | None
    ) -> None:
        self.job, self.state, self.background, self.on_checkpoint = job, state, background, on_checkpoint
        # A generator in host memory that receives the averaged weights of each checkpoint (rank 0).
        self._host_G = copy.deepcopy(state.G_ema).cpu() if distributed.rank() == 0 else None
        self._nimg = state.nimg  # image count of the last checkpoint
        self._writing: Future[None] | None = None  # the job that writes the last checkpoint (rank 0)
        # Gives the point for `on_checkpoint`; None while no checkpoint is written.
        self._point: Callable[[], dict[str, float]] | None = None
        self._shared = False  # whether all ranks are known to see the same storage

    def write(self, curves: Curves) -> None:
        """Copy the present state and start to write the copy.

        Raises:
            StepError: storage refused the last checkpoint, or the ranks have drifted apart. This checkpoint is not
                written then.
        """
        # Finish the last checkpoint.
        self.wait()

        # Check that the networks are the same on all ranks.
        state = self.state
        distributed.check_agreement(state.networks(), state.nimg)

        # Replace the running sums by their mean over ranks, because only rank 0 writes them.
        distributed.mean_(state.sums[name] for name in sorted(state.sums))

        # Copy the state, and write the copy in the background.
        self._nimg, self._point = state.nimg, curves.newest()
        if distributed.rank() == 0:
            write_copy = partial(self._write_copy, state.nimg, state.snapshot(), curves.content())
            self._writing = self.background.submit(write_copy)

    def wait(self) -> None:
        """Wait until the last checkpoint is complete on all ranks, then call `on_checkpoint`.

        Raises:
            StepError: storage refused the checkpoint, or a worker does not see it.
        """
        if self._point is None:
            return
        while not self._is_written():
            pass
        if not self._shared:
            self._read_newest()
        point, self._point = self._point, None
        if self.on_checkpoint:
            self.on_checkpoint(point())

    def _is_written(self) -> bool:
        """Wait for a short while, and return on all ranks whether the last checkpoint is written.

        The others hear from rank 0 in time, however long it waits for storage: their communication never times out.
        """
        written = True
        if self._writing is not None:
            written = not futures.wait([self._writing], WAIT_SECONDS).not_done
            if written:
                self._writing.result()
        return bool(distributed.of_first_rank(torch.tensor(int(written), device=self.state.device)))

    def finish(self) -> Checkpoint:
        """Wait for all work in the background and return the newest checkpoint. Raises StepError as `wait`."""
        self.wait()
        self.background.wait()
        return self._read_newest()

    def _read_newest(self) -> Checkpoint:
        newest = newest_checkpoint(self.job.uri)
        check_shared(self.job, newest is not None and newest.nimg == self._nimg, self.state.device)
        self._shared = True
        return cast(Checkpoint, newest)

    def _write_copy(self, nimg: int, snapshot: HostCopy[dict[str, object]], content: Callable[[], bytes]) -> None:
        """Write the curves, then the checkpoint: so the stored curves always reach as far as a complete checkpoint."""
        job = self.job
        storage.write_bytes(storage.join(job.uri, STATS), content())
        uri = checkpoint_uri(job.uri, nimg)
        record = Checkpoint(uri=uri, run_id=job.run_id, resolution=job.stage.resolution, nimg=nimg, digest=job.key)
        assert self._host_G is not None
        save_checkpoint(record, snapshot.get(), G_ema=self._host_G, label_names=job.label_names)
        prune(job.uri, job.config.snapshots.keep)


def check_shared(job: StageJob, visible: bool, device: torch.device) -> None:
    """Check that every rank sees what rank 0 wrote to storage. Waits for all ranks.

    Args:
        job: names the storage in the error.
        visible: whether this rank sees it.
        device: where the ranks exchange their answers; the GPU of this rank with NCCL.

    Raises:
        StepError: a rank does not see it; raised on all ranks.
    """
    answers = distributed.gather(torch.tensor(int(visible), device=device))
    blind = (answers == 0).nonzero().flatten().tolist()
    if blind:
        raise StepError(
            f"storage.root={job.config.storage.root}: the workers of ranks {blind} do not see what the first one wrote "
            "there; give a folder or bucket that every node of the cluster reaches"
        )
