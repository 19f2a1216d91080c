"""The whole state of training, and its checkpoints in storage.

A checkpoint is a folder of three files:

generator.safetensors   the averaged generator, usable alone
training.pt             everything else: tensors and plain values only, loaded with `weights_only=True`
checkpoint.json         the `Checkpoint` record, written last: a folder without it does not count

Random number generators have no state to save: each step seeds its own from (seed, stage, nimg).
"""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Callable
from contextlib import suppress

import torch
from pydantic import NonNegativeInt, PositiveInt, TypeAdapter
from torch import Tensor, nn
from typing_extensions import TypedDict

from stylegan import storage
from stylegan.commands import shell_command
from stylegan.config.tree import Config
from stylegan.errors import DamagedError, StepError, one_line
from stylegan.networks.discriminator import Discriminator, make_discriminator
from stylegan.networks.generator import Generator
from stylegan.networks.normalisation import of_batch
from stylegan.networks.style_transfer import FILE as TRANSFER
from stylegan.networks.weights import load_generator, require_finite, save_generator
from stylegan.records import Record
from stylegan.training import distributed
from stylegan.training.background import HostCopy
from stylegan.training.hardware import set_precision
from stylegan.training.schedule import Stage, lazy_correction

MARKER = "checkpoint.json"
# Failures of the machine, which say nothing about a file. Older versions of torch have no AcceleratorError, which is
# any failure of a GPU but lack of memory.
MACHINE_ERRORS = (MemoryError, torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))
FIRST_LOG2_SCALE = 16.0
Device = torch.device | str


class Checkpoint(Record):
    """A checkpoint in storage."""

    uri: str  # of its folder
    run_id: str  # of the run that wrote it
    resolution: PositiveInt
    nimg: NonNegativeInt
    digest: str  # the key of its stage


class TrainState:
    """G, D, the average of G, both optimizers, the image count, and the sums for the next point of the curves."""

    def __init__(self, config: Config, resolution: int, num_labels: int, device: Device = "cpu") -> None:
        shape = {"resolution": resolution, "channels": config.data.channels, "num_labels": num_labels}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.G = Generator(config.model, **shape).to(device)
            rotates = config.training.rotation is not None
            self.D = make_discriminator(config.model, **shape, rotation=rotates).to(device)
        self.precision = config.training.precision
        self._set_precision()
        self.G_ema = self._copy_for_average()
        for layer in of_batch(self.G):  # not of the average, whose statistics every rank finds by itself
            layer.ranks = distributed.mean if distributed.world_size() > 1 else None
        self.device = torch.device(device)
        self.nimg = 0
        self.sums: dict[str, Tensor] = {}  # metric -> sum over the steps since the last point
        self.steps = 0  # number of those steps
        self.measured: dict[str, float] = {}  # metric -> value that rank 0 measured for the next point
        # Updates skipped in a row because a gradient was not finite, by their kind (see `update.update`).
        self.skipped = self._per_player(0.0)
        self.log2_scale = self._per_player(FIRST_LOG2_SCALE)  # of the losses in fp16

    def _set_precision(self) -> None:
        set_precision(self.G, self.precision)
        set_precision(self.D, self.precision)

    def _copy_for_average(self) -> Generator:
        """Return a copy of G that computes in single precision, as every network outside training does."""
        average = copy.deepcopy(self.G).eval().requires_grad_(False)
        set_precision(average, "fp32")
        return average

    def _per_player(self, value: float) -> dict[str, Tensor]:
        return {player: torch.tensor(value, device=self.device) for player in ("G", "D")}

    def clear_sums(self) -> None:
        """Begin the sums for another point of the curves, in place: recorded steps add to these tensors."""
        for value in self.sums.values():
            value.zero_()
        self.steps, self.measured = 0, {}

    def reset_optimizers(self, config: Config, learning_rate: float) -> None:
        """Give both networks a fresh Adam: moments and beta powers at zero. D's is corrected for lazy penalties."""
        training = config.training

        def adam(network: nn.Module, correction: float) -> torch.optim.Adam:
            return torch.optim.Adam(
                network.parameters(),
                lr=learning_rate * correction,
                betas=(training.adam_beta1**correction, training.adam_beta2**correction),
                eps=training.adam_eps,
                fused=True,
                capturable=self.device.type == "cuda",  # a step can be recorded as a CUDA graph
            )

        self.opt_G, self.opt_D = adam(self.G, 1.0), adam(self.D, lazy_correction(training.penalty_interval))

    def grow(self, config: Config) -> None:
        """Add the next resolution to all three networks. The fresh weights depend on (seed, resolution) only."""
        # Grow G and D.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + 1000 * self.G.resolution * 2)
            self.G.grow()
            assert isinstance(self.D, Discriminator)
            self.D.grow()
        self.G.to(self.device)
        self.D.to(self.device)
        self._set_precision()

        # Grow the average of G: it keeps its old weights and copies the fresh ones of G.
        old = self.G_ema.state_dict()
        self.G_ema = self._copy_for_average()
        self.G_ema.load_state_dict({**self.G.state_dict(), **old})

    def networks(self) -> dict[str, nn.Module]:
        """Return all three networks by their names in a checkpoint."""
        return {"G": self.G, "D": self.D, "G_ema": self.G_ema}

    def state_dict(self) -> dict[str, object]:
        """Return the whole state as tensors and plain values, for `load_state_dict`."""
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
        """Copy the present `state_dict` to host memory, so that training can go on while the copy is written."""
        return HostCopy(self.state_dict(), self.device)

    def load_networks(self, saved: dict) -> None:
        """Load the networks and the image count only, because the next stage starts with fresh optimizers."""
        for name, network in self.networks().items():
            require_finite(saved[name])
            network.load_state_dict(saved[name])
        self.nimg = saved["nimg"]

    def load_state_dict(self, saved: dict) -> None:
        """Load the whole state from what `state_dict` returned."""
        self.load_networks(saved)
        load_adam(self.opt_G, saved["opt_G"]["state"])
        load_adam(self.opt_D, saved["opt_D"]["state"])
        self.sums = self._numbers(saved["sums"])
        values = _PLAIN.validate_python({name: saved[name] for name in ("steps", "measured")})
        self.steps, self.measured = values["steps"], values["measured"]
        self.skipped |= self._numbers(saved["skipped"])
        self.log2_scale |= self._numbers(saved["log2_scale"])

    def _numbers(self, saved: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return numbers that are tensors, on the device. Raises ValueError if one is no number."""
        for name, value in saved.items():
            if value.shape != () or not value.is_floating_point():
                raise ValueError(f"{name} is no number")
        return {name: value.to(self.device) for name, value in saved.items()}


class _Plain(TypedDict):
    """The plain values of a state."""

    steps: NonNegativeInt
    measured: dict[str, float]


_PLAIN = TypeAdapter(_Plain)


def load_adam(optimizer: torch.optim.Optimizer, saved: dict[int, dict[str, Tensor]]) -> None:
    """Load the moments of an optimizer; its settings stay those of the config. Raises ValueError for other weights.

    torch itself looks at neither names nor shapes, and a step would fail or compute nonsense.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in saved.items():
        require_finite(values)
        shape = parameters[number].shape
        wanted = {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}
        if {name: value.shape for name, value in values.items()} != wanted or (values["exp_avg_sq"] < 0).any():
            raise ValueError(f"the moments of weight {number} are not those of Adam")
    optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})


def start_stage(
    config: Config, stage: Stage, *, num_labels: int, previous: Checkpoint | None, device: Device = "cpu"
) -> TrainState:
    """Return the state at the first image of a stage.

    Its networks are new without `previous`, and otherwise those of the stage below, grown by one resolution. A warm start
    takes the whole state of `previous`, both optimizers included, as it is.

    Raises:
        StepError: `previous` is not the end of the stage below in this config, or not the checkpoint of its warm start,
            or is damaged.
    """
    if config.training.warm_start and previous:
        return _go_on(config, stage, previous, num_labels=num_labels, device=device)
    state = TrainState(config, previous.resolution if previous else stage.resolution, num_labels, device)
    if previous:
        read_training(previous, state.load_networks)
        state.grow(config)
        if state.G.resolution != stage.resolution or state.nimg != stage.start_nimg:
            raise StepError(
                f"checkpoint {previous.uri} ends {previous.resolution}x{previous.resolution} at {state.nimg} images, "
                f"but stage {stage.name} of this config starts at {stage.start_nimg}: it belongs to another config; "
                "run the stage below again"
            )
    state.reset_optimizers(config, stage.learning_rate)
    return state


def _go_on(config: Config, stage: Stage, origin: Checkpoint, *, num_labels: int, device: Device) -> TrainState:
    """Return the state of a checkpoint of another run, with which this stage starts; the sums for its curves are empty."""
    cure = "give another checkpoint to training.warm_start, or remove it"
    if (origin.resolution, origin.nimg) != (stage.resolution, stage.start_nimg):
        raise StepError(
            f"checkpoint {origin.uri} is of {origin.resolution}x{origin.resolution} at {origin.nimg} images, but stage "
            f"{stage.name} of this config starts at {stage.start_nimg}; {cure}"
        )
    state = _load_whole(config, stage, origin, num_labels=num_labels, device=device, cure=cure)
    state.sums, state.steps, state.measured = {}, 0, {}
    return state


def resume_stage(
    config: Config, stage: Stage, record: Checkpoint, *, num_labels: int, key: str, device: Device = "cpu"
) -> TrainState:
    """Return the state of a checkpoint of the same stage.

    Raises:
        StepError: the checkpoint belongs to another config, or is damaged.
    """
    if record.digest != key:
        raise StepError(
            f"checkpoint {record.uri} belongs to another config (key {record.digest}, this config gives {key}); "
            "use the config it was made with or another storage.root"
        )
    return _load_whole(config, stage, record, num_labels=num_labels, device=device)


def _load_whole(
    config: Config, stage: Stage, record: Checkpoint, *, num_labels: int, device: Device, cure: str | None = None
) -> TrainState:
    state = TrainState(config, stage.resolution, num_labels, device)
    state.reset_optimizers(config, stage.learning_rate)
    read_training(record, state.load_state_dict, cure=cure)
    return state


def save_checkpoint(record: Checkpoint, saved: dict, *, G_ema: Generator, label_names: tuple[str, ...]) -> None:
    """Write a checkpoint, the marker last: a kill leaves either all of it or a folder that does not count.

    Args:
        record: of the new checkpoint; `record.uri` must be `checkpoint_uri(stage_uri, record.nimg)`.
        saved: `TrainState.state_dict` at that image count, in host memory.
        G_ema: a generator of the same shape in host memory; it receives the averaged weights of `saved`.
        label_names: the classes that it is trained with.

    Raises:
        StepError: storage refuses.
    """
    # Serialise.
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    G_ema.load_state_dict(saved["G_ema"], assign=True)

    # Write.
    try:
        storage.write_bytes(storage.join(record.uri, "training.pt"), buffer.getvalue())
        storage.write_bytes(storage.join(record.uri, "generator.safetensors"), save_generator(G_ema, label_names))
        storage.write_json(storage.join(record.uri, MARKER), record.model_dump())
    except StepError:
        # Delete the incomplete checkpoint, so that a full store has room for what a repeated run writes first.
        with suppress(StepError):
            storage.delete(record.uri)
        raise


def checkpoint_uri(stage_uri: str, nimg: int) -> str:
    """Return the folder of a checkpoint. Folder names sort by image count."""
    return storage.join(stage_uri, f"checkpoint-{nimg:09d}")


def checkpoints(stage_uri: str) -> list[str]:
    """Return the URIs of the complete checkpoints of a stage, oldest first."""
    folders = [storage.join(stage_uri, name) for name in storage.names(stage_uri) if name.startswith("checkpoint-")]
    return [uri for uri in folders if storage.exists(storage.join(uri, MARKER))]


def newest_checkpoint(stage_uri: str) -> Checkpoint | None:
    """Return the newest complete checkpoint of a stage, None before the first one. Raises as `read_checkpoint`."""
    complete = checkpoints(stage_uri)
    if not complete:
        return None
    newest = read_checkpoint(complete[-1])
    check_folder(newest, newest.uri, origin=storage.join(newest.uri, MARKER), cure=_cure(newest.uri))
    return newest


def read_checkpoint(uri: str) -> Checkpoint:
    """Read the record of a checkpoint folder, wherever that is now.

    Raises:
        DamagedError: the record is not what was written there.
        StepError: the folder is not a checkpoint.
    """
    try:
        record = storage.read_json(storage.join(uri, MARKER), Checkpoint, cure=_cure(uri))
    except FileNotFoundError:
        raise StepError(
            f"{uri}: not a checkpoint (no readable {MARKER}); give the URI of a checkpoint-... folder of a stage"
        ) from None
    return record.model_copy(update={"uri": uri})


def check_folder(record: Checkpoint, uri: str, *, origin: str, cure: str) -> None:
    """Raise DamagedError, about the file `origin`, unless the record is that of a checkpoint in the folder `uri`."""
    if storage.name(uri) != storage.name(checkpoint_uri("", record.nimg)):
        raise DamagedError(f"{origin}: is damaged (nimg: {record.nimg} is not that of {storage.name(uri)}); {cure}")


def _cure(uri: str) -> str:
    return (
        f"delete {uri} and run the same command again, which goes on from the checkpoint before it, or from the start of "
        "the stage if there is none"
    )


def prune(stage_uri: str, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a stage, and the incomplete ones that an earlier kill left.

    The marker of each is deleted first, so a kill never leaves a broken checkpoint that counts.
    """
    kept = checkpoints(stage_uri)[-keep:]
    for name in storage.names(stage_uri):
        uri = storage.join(stage_uri, name)
        if name.startswith("checkpoint-") and uri not in kept:
            storage.delete(storage.join(uri, MARKER))
            storage.delete(uri)


def load_model(checkpoint_uri: str) -> tuple[Generator, tuple[str, ...]]:
    """Load the averaged generator of a checkpoint, in evaluation mode, and its label names.

    Raises:
        StepError: the folder contains no generator, or a damaged one.
    """
    uri = storage.join(checkpoint_uri, "generator.safetensors")
    try:
        return load_generator(storage.read_bytes(uri), uri)
    except FileNotFoundError:
        refuse_transfer(checkpoint_uri)
        raise StepError(
            f"{checkpoint_uri}: holds no generator.safetensors; give the URI of a checkpoint-... folder of a stage"
        ) from None


def refuse_transfer(checkpoint_uri: str) -> None:
    """Raise StepError if the folder of a checkpoint holds a style transfer, which draws with another verb."""
    if storage.exists(storage.join(checkpoint_uri, TRANSFER)):
        verb = shell_command("stylegan", "transfer", "CONTENT", "STYLE", "--model", checkpoint_uri)
        raise StepError(f"{checkpoint_uri}: is a style transfer, with which `{verb}` draws; give a StyleGAN")


def read_training(record: Checkpoint, load: Callable[[dict], None], *, cure: str | None = None) -> None:
    """Read training.pt of a checkpoint and hand its content to a `load_...` method of a state, which checks it.

    `cure` is for errors about a checkpoint that must not be deleted, as one of this run may be.

    Raises:
        DamagedError: the file cannot be read, or holds another state than the record says.
        StepError: the file is missing, or storage does not answer.
    """
    uri = storage.join(record.uri, "training.pt")
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        cure = cure or "delete that folder and run the same command again"
        raise StepError(f"checkpoint {record.uri} is incomplete: training.pt is missing; {cure}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # torch does not look at the checksums that it writes
            if changed := archive.testzip():
                raise ValueError(f"its part {changed} has changed since it was written")
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if saved["nimg"] != record.nimg:
            raise ValueError(f"it holds the state at {saved['nimg']} images, the checkpoint is that at {record.nimg}")
        load(saved)
    except MACHINE_ERRORS:
        raise
    except Exception as error:  # torch.load and load_state_dict raise errors of many types
        problem = f"{type(error).__name__}: {one_line(error, 200)}"
        raise DamagedError(f"{uri}: is damaged ({problem}); {cure or _cure(record.uri)}") from error
