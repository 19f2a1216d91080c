"""The whole state of training, and its checkpoints in storage.

A checkpoint is a folder: `generator.safetensors` (the averaged generator, usable alone), `training.pt` (everything else,
tensors and plain values only, loaded with `weights_only=True`) and `checkpoint.json`, the `Checkpoint` record, written last:
a folder without it does not count. Random numbers need no state: each step seeds its own from (seed, stage, nimg).
"""

from __future__ import annotations

import copy
import io
from contextlib import suppress

import torch
from torch import Tensor, nn

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.errors import StepError
from stylegan.networks.discriminator import Discriminator
from stylegan.networks.generator import Generator
from stylegan.networks.weights import load_generator, save_generator
from stylegan.records import Record
from stylegan.training.background import HostCopy
from stylegan.training.hardware import set_precision
from stylegan.training.schedule import Stage, lazy_correction

MARKER = "checkpoint.json"
FIRST_LOG2_SCALE = 16.0
Device = torch.device | str


class Checkpoint(Record):
    """A checkpoint in storage: `uri` its folder, `run_id` the run that wrote it, `digest` the key of its stage."""

    uri: str
    run_id: str
    resolution: int
    nimg: int
    digest: str


class TrainState:
    """G, D, the average of G, both optimizers, the image count and the running sums of the next point on the curves."""

    def __init__(self, config: Config, resolution: int, num_labels: int, device: Device = "cpu") -> None:
        shape = {"resolution": resolution, "channels": config.data.channels, "num_labels": num_labels}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.G = Generator(config.model, **shape).to(device)
            self.D = Discriminator(config.model, **shape, rotation=config.training.rotation is not None).to(device)
        self.precision = config.training.precision
        self.G_ema = self._average()
        self.device = torch.device(device)
        self.nimg = 0
        self.sums: dict[str, Tensor] = {}  # metric -> sum over the steps since the last point
        self.steps = 0  # number of those steps
        self.measured: dict[str, float] = {}  # by rank 0 for the next point: metric -> value
        self.skipped = self._per_player(0.0)  # updates skipped in a row because a gradient was not finite
        self.log2_scale = self._per_player(FIRST_LOG2_SCALE)  # of the losses in fp16

    def _average(self) -> Generator:
        """A copy of G, which computes in single precision, as everywhere outside training."""
        average = copy.deepcopy(self.G).eval().requires_grad_(False)
        set_precision(average, "fp32")
        set_precision(self.G, self.precision)
        set_precision(self.D, self.precision)
        return average

    def _per_player(self, value: float) -> dict[str, Tensor]:
        return {player: torch.tensor(value, device=self.device) for player in ("G", "D")}

    def reset_optimizers(self, config: Config, learning_rate: float) -> None:
        """Fresh Adam for both networks (beta powers and moments at zero)."""
        training = config.training

        def adam(network: nn.Module, correction: float) -> torch.optim.Adam:
            betas = (training.adam_beta1**correction, training.adam_beta2**correction)
            return torch.optim.Adam(
                network.parameters(), lr=learning_rate * correction, betas=betas, eps=training.adam_eps, fused=True
            )

        self.opt_G, self.opt_D = adam(self.G, 1.0), adam(self.D, lazy_correction(training.penalty_interval))

    def grow(self, config: Config) -> None:
        """Add the next resolution to all three networks; fresh weights depend on (seed, resolution) only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + 1000 * self.G.resolution * 2)
            self.G.grow()
            self.D.grow()
        self.G.to(self.device)
        self.D.to(self.device)
        old = self.G_ema.state_dict()
        self.G_ema = self._average()
        self.G_ema.load_state_dict({**self.G.state_dict(), **old})

    def networks(self) -> dict[str, nn.Module]:
        """All three by their names in a checkpoint."""
        return {"G": self.G, "D": self.D, "G_ema": self.G_ema}

    def state_dict(self) -> dict[str, object]:
        """Tensors and plain values; `load_state_dict` takes it back."""
        return {
            **{name: network.state_dict() for name, network in self.networks().items()},
            "opt_G": self.opt_G.state_dict(),
            "opt_D": self.opt_D.state_dict(),
            "nimg": self.nimg,
            "sums": self.sums,
            "steps": self.steps,
            "measured": self.measured,
            "skipped": self.skipped,
            "log2_scale": self.log2_scale,
        }

    def snapshot(self) -> HostCopy[dict[str, object]]:
        """`state_dict` as it is now, in host memory: training goes on while it is written."""
        return HostCopy(self.state_dict(), self.device)

    def load_networks(self, saved: dict) -> None:
        """Networks and image count only; the next stage starts with fresh optimizers."""
        for name, network in self.networks().items():
            network.load_state_dict(saved[name])
        self.nimg = saved["nimg"]

    def load_state_dict(self, saved: dict) -> None:
        """The whole state, as `state_dict` gave it."""
        self.load_networks(saved)
        self.opt_G.load_state_dict(saved["opt_G"])
        self.opt_D.load_state_dict(saved["opt_D"])
        self.sums = {name: value.to(self.device) for name, value in saved["sums"].items()}
        self.steps, self.measured = saved["steps"], saved["measured"]
        for name in ("skipped", "log2_scale"):
            setattr(self, name, {player: value.to(self.device) for player, value in saved[name].items()})


def start_stage(
    config: Config, stage: Stage, *, num_labels: int, previous: Checkpoint | None, device: Device = "cpu"
) -> TrainState:
    """The state at the first image of a stage: new networks, or those of the stage below, grown by one resolution.

    Raises:
        StepError: `previous` is not the end of the stage below in this config, or is damaged.
    """
    state = TrainState(config, previous.resolution if previous else stage.resolution, num_labels, device)
    if previous:
        state.load_networks(_read_training(previous.uri))
        state.grow(config)
        if state.G.resolution != stage.resolution or state.nimg != stage.start_nimg:
            raise StepError(
                f"checkpoint {previous.uri} ends {previous.resolution}x{previous.resolution} at {state.nimg} images; stage {stage.name} "
                f"of this config starts at {stage.start_nimg}: it belongs to another config; run the stage below again"
            )
    state.reset_optimizers(config, stage.learning_rate)
    return state


def resume_stage(
    config: Config, stage: Stage, record: Checkpoint, *, num_labels: int, key: str, device: Device = "cpu"
) -> TrainState:
    """The state of a checkpoint of the same stage.

    Raises:
        StepError: the checkpoint was made by another config, or is damaged.
    """
    if record.digest != key:
        raise StepError(
            f"checkpoint {record.uri} belongs to another config (key {record.digest}, this config gives {key}); "
            "use the config it was made with or another storage.root"
        )
    state = TrainState(config, stage.resolution, num_labels, device)
    state.reset_optimizers(config, stage.learning_rate)
    state.load_state_dict(_read_training(record.uri))
    return state


def save_checkpoint(record: Checkpoint, saved: dict, *, G_ema: Generator, label_names: tuple[str, ...]) -> None:
    """Write a checkpoint; the marker goes last, so a kill leaves either all of it or nothing that counts.

    Args:
        record: what it will be; `record.uri` must be `checkpoint_uri(stage_uri, record.nimg)`.
        saved: `TrainState.state_dict` at that image count, in host memory.
        G_ema: a generator of the same shape in host memory; it gets the averaged weights of `saved`.
        label_names: the classes that it knows.

    Raises:
        StepError: storage refuses.
    """
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    G_ema.load_state_dict(saved["G_ema"], assign=True)
    try:
        storage.write_bytes(storage.join(record.uri, "training.pt"), buffer.getvalue())
        storage.write_bytes(storage.join(record.uri, "generator.safetensors"), save_generator(G_ema, label_names))
        storage.write_json(storage.join(record.uri, MARKER), record.model_dump())
    except StepError:
        with suppress(StepError):  # a full store has room again for what is there already
            storage.delete(record.uri)
        raise


def checkpoint_uri(stage_uri: str, nimg: int) -> str:
    """The folder of a checkpoint: the order of the names is that of the image counts."""
    return storage.join(stage_uri, f"checkpoint-{nimg:09d}")


def checkpoints(stage_uri: str) -> list[str]:
    """URIs of the complete checkpoints of a stage, oldest first."""
    folders = [storage.join(stage_uri, name) for name in storage.names(stage_uri) if name.startswith("checkpoint-")]
    return [uri for uri in folders if storage.exists(storage.join(uri, MARKER))]


def newest_checkpoint(stage_uri: str) -> Checkpoint | None:
    """The newest complete checkpoint of a stage."""
    found = checkpoints(stage_uri)
    return read_checkpoint(found[-1]) if found else None


def read_checkpoint(uri: str) -> Checkpoint:
    """The record of a checkpoint folder. Raises StepError if it is none."""
    try:
        return Checkpoint.model_validate(storage.read_json(storage.join(uri, MARKER)) | {"uri": uri})
    except (FileNotFoundError, ValueError):
        raise StepError(
            f"{uri}: not a checkpoint (no readable {MARKER}); give the URI of a checkpoint-... folder of a stage"
        ) from None


def prune(stage_uri: str, keep: int) -> None:
    """Remove all but the newest checkpoints, and what an earlier kill left of others.

    The marker goes first, so a kill never leaves a broken checkpoint that counts.
    """
    kept = checkpoints(stage_uri)[-keep:]
    for name in storage.names(stage_uri):
        uri = storage.join(stage_uri, name)
        if name.startswith("checkpoint-") and uri not in kept:
            storage.delete(storage.join(uri, MARKER))
            storage.delete(uri)


def load_model(checkpoint_uri: str) -> tuple[Generator, tuple[str, ...]]:
    """The averaged generator of a checkpoint, in eval mode, and its label names. Raises StepError if there is none."""
    try:
        return load_generator(storage.read_bytes(storage.join(checkpoint_uri, "generator.safetensors")))
    except FileNotFoundError:
        raise StepError(
            f"{checkpoint_uri}: holds no generator.safetensors; give the URI of a checkpoint-... folder of a stage"
        ) from None


def _read_training(uri: str) -> dict:
    try:
        data = storage.read_bytes(storage.join(uri, "training.pt"))
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise StepError(
            f"checkpoint {uri} is incomplete: training.pt is missing; delete that folder and run the same command again"
        ) from None
    except Exception as error:
        if isinstance(error, StepError):
            raise
        raise StepError(
            f"checkpoint {uri}: training.pt is damaged ({type(error).__name__}); delete that folder and run again"
        ) from error
