"""Train the embedded feature network to classify images, or to recognise their rotation.

The result is a pure function of images, seed and device. The budget of 20,000 to 150,000 images is small beside any GAN
training.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from stylegan.data.loading.loader import ImageTable
from stylegan.evaluation.metrics.numerics import exact_float32, stream
from stylegan.images import to_float
from stylegan.networks.classifier import Classifier

BATCH = 128
LEARNING_RATE = 5e-3


def train_network(
    kind: str, table: ImageTable, *, num_classes: int, seed: int, device: str = "cpu"
) -> tuple[Classifier, float]:
    """Train a network and return it with its accuracy on held-out images.

    Args:
        kind: `classifier` learns `table.labels`; `rotation` learns to recognise 0, 90, 180 and 270 degrees (4 classes).
        table: at least 2 images.
        num_classes: classes of the output.
        seed: decides the first weights, the held-out images and the order of the others.
        device: torch device of the training.
    """
    _, channels, resolution, _ = table.images.shape
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
        torch.manual_seed(stream("weights", kind, seed).initial_seed())
        network = Classifier(resolution=resolution, channels=channels, num_classes=num_classes)
    network.to(device)
    examples = _Examples(kind, table, stream("lesson", kind, seed), device)
    with exact_float32():
        _fit(network, examples)
        return network, _accuracy(network, examples)


class _Examples:
    """The examples of a training: images to learn from, and held-out images (a tenth of all, at most 5,000)."""

    def __init__(self, kind: str, table: ImageTable, generator: torch.Generator, device: str) -> None:
        self.kind, self.table, self.generator, self.device = kind, table, generator, device
        order = torch.randperm(len(table.labels), generator=generator)
        num_held = min(max(len(order) // 10, 1), 5000)
        self.held_out, self.training = order[:num_held], order[num_held:]
        self.queue = self.training[:0]

    @property
    def num_shown(self) -> int:
        """The number of images that a training shows: some epochs of a small set, less than three of a big one."""
        num = len(self.training)
        return min(max(10 * num, 20_000), 60 * num, 150_000)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the next training images, each shifted by up to an eighth of its side, and their classes."""
        while len(self.queue) < size:
            epoch = self.training[torch.randperm(len(self.training), generator=self.generator)]
            self.queue = torch.cat([self.queue, epoch])
        chosen, self.queue = self.queue[:size], self.queue[size:]
        images, classes = self.at(chosen)
        return _shift(images, self.generator), classes

    def at(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [n, C, r, r] in [-1, 1] and classes [n].

        For `rotation`, each image is turned by a random multiple of 90 degrees, which is its class.
        """
        images = to_float(torch.from_numpy(self.table.images[chosen.numpy()]).to(self.device))
        if self.kind == "classifier":
            return images, torch.from_numpy(self.table.labels[chosen.numpy()]).to(self.device)
        turns = torch.randint(0, 4, (len(chosen),), generator=self.generator).to(self.device)
        for quarter in (1, 2, 3):
            images[turns == quarter] = torch.rot90(images[turns == quarter], quarter, (2, 3))
        return images, turns


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move every image by a random offset of its own; the border is repeated."""
    num, _, side, _ = images.shape
    reach = side // 8
    padded = functional.pad(images, (reach,) * 4, mode="replicate")

    # [N, side] indices into the padded rows and columns.
    rows, columns = (
        torch.randint(0, 2 * reach + 1, (num, 1), generator=generator).to(images.device)
        + torch.arange(side, device=images.device)
        for _ in range(2)
    )

    # Indices around a slice put the sliced axis last: [N, H, W, C].
    return padded[
        torch.arange(num, device=images.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]
    ].permute(0, 3, 1, 2)


def _fit(network: Classifier, examples: _Examples) -> None:
    """Train by AdamW under a one-cycle learning rate until `num_shown` images were shown."""
    size = min(BATCH, len(examples.training))
    num_steps = math.ceil(examples.num_shown / size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.2)
    network.train()
    for _ in range(num_steps):
        images, classes = examples.batch(size)
        loss = functional.cross_entropy(network(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _accuracy(network: Classifier, examples: _Examples) -> float:
    """Return the share of the held-out images that are classified correctly, in [0, 1]."""
    network.eval()
    num_right = 0
    for chosen in examples.held_out.split(256):
        images, classes = examples.at(chosen)
        num_right += int((network(images).argmax(dim=1) == classes).sum())
    return num_right / len(examples.held_out)
