"""Makes the steps of a stage: on a GPU each kind of step is recorded once, as a CUDA graph, and then replayed.

A step is one to three thousand kernels. Up to about 64x64 the host takes longer to start them than the GPU to run them;
a replay starts all of them at once. It reads its inputs from fixed tensors, into which those of the present step are
copied first, and it changes the same weights, moments and sums as the step that was recorded. Nothing else may differ
between two steps of one kind, so there is a graph for each of these: D with and without a gradient penalty, G with and
without the term for turned fakes, each with and without a fade.

The numbers are those of the eager step: the same kernels on the same inputs. So a run may go on without graphs, or with
them, from any checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from stylegan.config.sections import TrainingConfig
from stylegan.config.tree import Config
from stylegan.errors import StepError
from stylegan.networks.replay import capture, why_not_recorded
from stylegan.training import distributed
from stylegan.training.schedule import Stage
from stylegan.training.state import TrainState
from stylegan.training.step import update_discriminator, update_generator
from stylegan.training.step_inputs import Share, StepInputs, discriminator_inputs, generator_inputs

# Steps of a kind before one is recorded. They make what the first steps alone make, such as Adam's moments, and let the
# libraries choose their kernels.
WARM_UPS = 2
MOST_AWAITED = 64  # steps between two gradient penalties, up to which recording waits for them
logger = logging.getLogger("stylegan")


class Recorder(Protocol):
    """Records what a function does to tensors, and does it again."""

    def forget(self) -> None:
        """Prepare for other recordings; those so far are gone."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Call the function in the surroundings in which it will be recorded."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what the function would do, without doing it, and return what does it."""


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory: no tensor outlives the replay that makes it."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def forget(self) -> None:
        """Begin another pool of memory, because the graphs of the last one are gone."""
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], None]) -> None:
        """Call the function on the stream of the recordings."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            function()
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record the function as a CUDA graph."""
        return capture(function, pool=self._pool, stream=self._stream)[0].replay


def cuda_recorder(training: TrainingConfig, device: torch.device) -> Recorder | None:
    """Return what records the steps on a device, None if they are not to be recorded there.

    Raises:
        StepError: `training.cuda_graphs` is true, and it cannot be.
    """
    problem = why_not_recordable(training, device)
    if problem is None:
        return CudaRecorder(device)
    if training.cuda_graphs is True:
        raise StepError(f"training.cuda_graphs=true: {problem}; use auto")
    return None


def why_not_recordable(training: TrainingConfig, device: torch.device) -> str | None:
    """Return the reason for which steps are not recorded on a device, None if they are."""
    if device.type != "cuda":
        return f"steps on a {device.type} are not recorded"
    if training.cuda_graphs is False:
        return "training.cuda_graphs is false"
    if distributed.world_size() > 1 and dist.get_backend() != "nccl":
        return f"the workers communicate by {dist.get_backend()}, which a graph cannot contain (NCCL can be)"
    return None


class StepRunner:
    """Makes the steps of a stage, one after the other."""

    def __init__(
        self,
        config: Config,
        stage: Stage,
        state: TrainState,
        label_table: Tensor | None = None,
        *,
        path: str = "eager",
        recorder: Callable[[], Recorder | None] | None = None,
    ) -> None:
        """Prepare the steps.

        Args:
            config: that of the run.
            stage: the present one.
            state: changed by every step.
            label_table: the labels of the data set on the device, int64 [num_images]; None if unconditional.
            path: how operations are computed when no step is replayed, one of `curves.PATHS`.
            recorder: makes the recorder; unset, that for the device of the state.
        """
        self.config, self.stage, self.state, self.label_table, self.path = config, stage, state, label_table, path
        self.share = Share.of(config, stage, state.device)
        self._recorder = recorder() if recorder else cuda_recorder(config.training, state.device)
        # GPUs draw the same numbers whether or not a step is recorded.
        self._static = state.device.type == "cuda" or self._recorder is not None
        self._inputs: dict[Hashable, StepInputs] = {}  # that recorded steps read
        self._warm_ups: dict[Hashable, int] = {}
        self._replays: dict[Hashable, Callable[[], None]] = {}

    def reset_optimizers(self) -> None:
        """Give both networks a fresh Adam, for which steps are recorded anew."""
        self._inputs, self._warm_ups, self._replays = {}, {}, {}
        if self._recorder is not None:
            self._recorder.forget()
        self.state.reset_optimizers(self.config, self.stage.learning_rate)

    def step(self, reals: Tensor, labels: Tensor | None) -> str:
        """Train D, then G in every `d_steps`-th step. The caller raises `state.nimg` afterwards.

        Args:
            reals: this rank's images, uint8 [batch / ranks, C, r, r].
            labels: their classes, int64 [batch / ranks]; None if unconditional.

        Returns:
            How the step was made, one of `curves.PATHS`: "graph" if both parts were replayed, otherwise `path`.
        """
        config, stage, state, share = self.config, self.stage, self.state, self.share
        nimg, fades = state.nimg, stage.alpha(state.nimg) < 1

        penalty = stage.has_penalty(nimg)
        inputs = discriminator_inputs(config, stage, nimg, share, reals, labels, static=self._static)
        update_D = partial(update_discriminator, state, config, stage, share, has_penalty=penalty)
        replayed_D = self._make(("D", fades), penalty, inputs, update_D)

        if not stage.updates_G(nimg):
            return "graph" if replayed_D else self.path
        inputs = generator_inputs(config, stage, nimg, share, self.label_table, static=self._static)
        turns = isinstance(inputs.turned_weight, Tensor)
        update_G = partial(update_generator, state, config, share)
        replayed_G = self._make(("G", fades, turns), None, inputs, update_G)
        return "graph" if replayed_D and replayed_G else self.path

    def _make(
        self, shapes: Hashable, variant: Hashable, inputs: StepInputs, update: Callable[[StepInputs], None]
    ) -> bool:
        """Make one player's step and return whether it was replayed.

        Args:
            shapes: what steps have in common that read inputs of the same shapes.
            variant: which of these steps it is.
            inputs: those of the step.
            update: makes the step from its inputs.
        """
        if self._recorder is None:
            update(inputs)
            return False

        # Copy the inputs to where the recorded step reads them.
        if shapes not in self._inputs:
            self._inputs[shapes] = inputs.map_tensors(torch.clone)
        else:
            self._inputs[shapes].copy_(inputs)
        update_own = partial(update, self._inputs[shapes])

        # Record the step once it is warm, and the other kinds are that come soon.
        kind = (shapes, variant)
        if kind not in self._replays and self._is_warm(kind):
            reason = self._try_to_record(kind, update_own)
            if reason:  # what a failed recording held in memory is free by now
                self._stop_recording(reason)
                update(inputs)
                return False

        if kind in self._replays:
            self._replays[kind]()
            return True
        self._recorder.warm_up(update_own)
        self._warm_ups[kind] = self._warm_ups.get(kind, 0) + 1
        return False

    def _is_warm(self, kind: Hashable) -> bool:
        """Return whether a step may be recorded.

        What is recorded keeps memory for all layer outputs. So the steps with a gradient penalty, which need most, are
        warmed up before anything is recorded, unless they are far apart.
        """
        if self._warm_ups.get(kind, 0) < WARM_UPS:
            return False
        if self.stage.penalty_interval > MOST_AWAITED:
            return True
        fades = self.stage.alpha(self.state.nimg) < 1
        return self._warm_ups.get((("D", fades), True), 0) >= WARM_UPS

    def _try_to_record(self, kind: Hashable, update_own: Callable[[], None]) -> str | None:
        """Record a step; return the reason if that fails."""
        assert self._recorder is not None
        try:
            self._replays[kind] = self._recorder.record(update_own)
        except Exception as error:  # what a graph cannot contain raises errors of many types
            return why_not_recorded(error)
        return None

    def _stop_recording(self, reason: str) -> None:
        self._recorder, self._inputs, self._replays = None, {}, {}
        for network in (self.state.G, self.state.D):
            network.zero_grad(set_to_none=True)
        if self.config.training.cuda_graphs is True:
            raise StepError(f"training.cuda_graphs=true: a step could not be recorded ({reason}); use auto")
        logger.warning(
            "train %s: steps are not recorded as CUDA graphs, which small resolutions profit from (%s); they go on "
            "without; training.cuda_graphs=false does not try",
            self.stage.name,
            reason,
        )
