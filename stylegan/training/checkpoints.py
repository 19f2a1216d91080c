"""Checkpoints that training does not wait for."""

from __future__ import annotations

import copy
from collections.abc import Callable
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

OnCheckpoint = Callable[[dict[str, float]], None]


class CheckpointWriter:
    """The checkpoints of a stage. The state is copied to host memory, and rank 0 writes the copy in the background.

    At most one is being written: the next one, and the end of the stage, wait for it on all ranks. Called on every rank.
    """

    def __init__(
        self, job: StageJob, state: TrainState, background: Background, on_checkpoint: OnCheckpoint | None
    ) -> None:
        self.job, self.state, self.background, self.on_checkpoint = job, state, background, on_checkpoint
        self._host_G = copy.deepcopy(state.G_ema).cpu() if distributed.rank() == 0 else None
        self._nimg = state.nimg  # of the last checkpoint
        self._writing: Future[None] | None = None  # the job that writes it (rank 0)
        self._point: dict[str, float] | None = None  # what `on_checkpoint` is to be told of it
        self._shared = False

    def write(self, curves: Curves) -> None:
        """Copy the state as it is now; the rest is done while training goes on.

        Raises:
            StepError: storage refused the last checkpoint, or ranks have drifted apart; nothing of this one is written then.
        """
        self.wait()
        state = self.state
        distributed.check_agreement(state.networks(), state.nimg)
        distributed.mean_(state.sums[name] for name in sorted(state.sums))  # one rank's file stands for all
        self._nimg, self._point = state.nimg, curves.newest()
        if distributed.rank() == 0:
            self._writing = self.background.submit(partial(self._save, state.nimg, state.snapshot(), curves.content()))

    def wait(self) -> None:
        """Until the last checkpoint is complete and every rank may count on it.

        Raises:
            StepError: storage refused it, or not every worker sees it.
        """
        if self._point is None:
            return
        if self._writing is not None:
            self._writing.result()
        distributed.barrier()
        if not self._shared:
            self._find()
        point, self._point = self._point, None
        if self.on_checkpoint:
            self.on_checkpoint(point)

    def finish(self) -> Checkpoint:
        """The newest checkpoint, after all work in the background is done. Raises as `wait`."""
        self.wait()
        self.background.wait()
        return self._find()

    def _find(self) -> Checkpoint:
        newest = newest_checkpoint(self.job.uri)
        check_shared(self.job, newest is not None and newest.nimg == self._nimg, self.state.device)
        self._shared = True
        return cast(Checkpoint, newest)

    def _save(self, nimg: int, snapshot: HostCopy[dict[str, object]], content: Callable[[], bytes]) -> None:
        """The curves first, so that they never end before a checkpoint that counts."""
        job = self.job
        storage.write_bytes(storage.join(job.uri, STATS), content())
        uri = checkpoint_uri(job.uri, nimg)
        record = Checkpoint(uri=uri, run_id=job.run_id, resolution=job.stage.resolution, nimg=nimg, digest=job.key)
        assert self._host_G is not None
        save_checkpoint(record, snapshot.get(), G_ema=self._host_G, label_names=job.label_names)
        prune(job.uri, job.config.snapshots.keep)


def check_shared(job: StageJob, sees: bool, device: torch.device) -> None:
    """Whether every rank sees in storage what rank 0 wrote; waits for all ranks. Raises StepError on all of them if one does not."""
    blind = (distributed.gather(torch.tensor(int(sees), device=device)) == 0).nonzero().flatten().tolist()
    if blind:
        raise StepError(
            f"storage.root={job.config.storage.root}: the workers of ranks {blind} do not see what the first one wrote there; "
            "give a folder or bucket that every node of the cluster reaches"
        )
