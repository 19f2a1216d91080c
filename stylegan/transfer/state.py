"""The whole state of the training of a style transfer, and its checkpoints in storage.

A checkpoint is a folder of three files, as that of a stage of a StyleGAN (`training/state.py`):

transfer.safetensors    encoder and decoder, usable alone
training.pt             moments of Adam and counters; plain values, loaded with `weights_only=True`
checkpoint.json         the `Checkpoint` record, written last
"""

from __future__ import annotations

import io
from contextlib import suppress

import torch
from torch import Tensor

from stylegan import storage
from stylegan.commands import shell_command
from stylegan.config.sections import TransferConfig
from stylegan.errors import DivergedError, StepError
from stylegan.networks.style_transfer import FILE, Encoder, Shape, StyleTransfer, load_transfer, save_transfer
from stylegan.training.state import MARKER, Checkpoint, load_adam, read_training


class TransferState:
    """The decoder in training, its optimizer, the image count, and the sums for the next point of the curves."""

    def __init__(
        self, shape: Shape, encoder: Encoder, transfer: TransferConfig, *, seed: int, device: torch.device
    ) -> None:
        """Make fresh weights, which depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = StyleTransfer(shape, encoder)
        self.network = network.to(device)
        self.transfer, self.device = transfer, device
        self.optimizer = torch.optim.Adam(self.network.decoder.parameters(), lr=transfer.learning_rate, fused=True)
        self.nimg = 0
        self.sums: dict[str, Tensor] = {}  # metric -> sum over the steps since the last point
        self.steps = 0  # number of those steps
        self.measured: dict[str, float] = {}

    @property
    def learning_rate(self) -> float:
        """The rate of the next step: it falls with their number."""
        return self.transfer.learning_rate / (1 + self.transfer.decay * (self.nimg // self.transfer.batch))

    def clear_sums(self) -> None:
        """Begin the sums for another point of the curves."""
        self.sums, self.steps = {}, 0

    def require_finite(self, name: str) -> None:
        """Raise DivergedError if a loss since the last point was not finite."""
        broken = [metric for metric, value in self.sums.items() if not value.isfinite()]
        if broken:
            raise DivergedError(
                f"{name}: {broken[0]} is not finite at {self.nimg / 1000:g} kimg; lower "
                f"transfer.learning_rate={self.transfer.learning_rate:g} or transfer.style_weight={self.transfer.style_weight:g}"
            )

    def save(self, record: Checkpoint) -> None:
        """Write a checkpoint, the marker last: a kill leaves either all of it or a folder that does not count."""
        buffer = io.BytesIO()
        saved = {
            "nimg": self.nimg,
            "optimizer": self.optimizer.state_dict(),
            "sums": {name: value.cpu() for name, value in self.sums.items()},
            "steps": self.steps,
        }
        torch.save(saved, buffer)
        try:
            storage.write_bytes(storage.join(record.uri, "training.pt"), buffer.getvalue())
            storage.write_bytes(storage.join(record.uri, FILE), save_transfer(self.network))
            storage.write_json(storage.join(record.uri, MARKER), record.model_dump())
        except StepError:
            with suppress(StepError):  # so that a full store has room for what a repeated run writes first
                storage.delete(record.uri)
            raise

    def resume(self, record: Checkpoint, *, key: str) -> None:
        """Load a checkpoint of the same training.

        Raises:
            StepError: it belongs to another config, or a file is missing or damaged.
        """
        if record.digest != key:
            raise StepError(
                f"checkpoint {record.uri} belongs to another config (key {record.digest}, this config gives {key}); "
                "use the config it was made with or another storage.root"
            )
        trained = read_transfer(record.uri)

        def load(saved: dict) -> None:
            self.network.load_state_dict(trained.state_dict())
            load_adam(self.optimizer, saved["optimizer"]["state"])
            self.sums = {name: value.to(self.device) for name, value in saved["sums"].items()}
            self.steps, self.nimg = int(saved["steps"]), int(saved["nimg"])

        read_training(record, load)


def read_transfer(checkpoint_uri: str) -> StyleTransfer:
    """Load the style transfer of a checkpoint, on the CPU, in evaluation mode.

    Raises:
        StepError: the folder contains none, or a damaged one.
    """
    uri = storage.join(checkpoint_uri, FILE)
    try:
        return load_transfer(storage.read_bytes(uri), uri)
    except FileNotFoundError:
        cure = "give the URI of a checkpoint-... folder of a style transfer"
        if storage.exists(storage.join(checkpoint_uri, "generator.safetensors")):
            sample = shell_command("stylegan", "sample", checkpoint_uri)
            cure = f"it is a StyleGAN, from which `{sample}` draws; the section transfer of a config trains a style transfer"
        raise StepError(f"{checkpoint_uri}: holds no {FILE}; {cure}") from None
