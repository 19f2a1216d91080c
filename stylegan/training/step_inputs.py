"""What a step reads besides the weights: images, labels, random numbers, and the weight of the newest resolution.

Every random number of a step is drawn for the global batch, from a generator seeded by (seed, stage, nimg, player), and
then cut to this rank's share. So a resumed run repeats the draws of the killed one, and the number of ranks changes
nothing but rounding. That holds for devices of one kind: a CPU and GPUs of other models draw other numbers from the same
seed. Among mixed GPUs every rank then has a global batch of its own to cut from, and the samples are as independent as
ever, but a run cannot be repeated on other machines.

Drawing the global batch on every rank costs little: noise has 2.7 times as many numbers as the image has pixels, and
the networks take thousands of operations for each of them. Ranks that drew their share only could not draw the same
numbers for another number of ranks.

All numbers are drawn before the step. So a step that was recorded once can be replayed on the numbers of another one
(see `graphs.py`), and a step may put its share through the networks in several parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from stylegan.config.sections import ModelConfig
from stylegan.config.tree import Config
from stylegan.networks.generator import count_layers, layer_resolution
from stylegan.training import distributed
from stylegan.training.schedule import Stage
from stylegan.training.selfsupervision import turned_positions, weight_g

PLAYERS = ("D", "G")


@dataclass(frozen=True)
class Part:
    """Images of a rank's share that go through the networks at once."""

    rows: Tensor | None  # their positions in the share; None: all of it
    turned: Tensor  # positions, among them, of those that are turned for self-supervision


@dataclass(frozen=True)
class Share:
    """The samples of every batch of a stage that this rank works on, in parts of the same size."""

    positions: Tensor  # of its samples in the global batch, int64 [n], on the device
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, config: Config, stage: Stage, device: torch.device) -> Share:
        """Return the share of this rank."""
        group = config.model.group
        positions = distributed.own_share(stage.batch, group)
        number, parts = config.parts_at(stage.resolution, distributed.world_size()), list[Part]()
        for part in range(number):
            # Groups of the share are those of the batch: the same number of samples, at equal distances.
            rows = distributed.whole_groups(len(positions), min(group, stage.batch), part=part, parts=number)
            turned = turned_positions(config, stage, positions[rows]).to(device)
            parts.append(Part(rows.to(device) if number > 1 else None, turned))
        return cls(positions.to(device), tuple(parts))


@dataclass(frozen=True)
class StepInputs:
    """The values that one player's step reads besides the weights, for the n images of a share or of a part of it."""

    z: Tensor  # [n, L]
    mixed_z: Tensor | None  # latents of the second style, [n, L]; None: styles are not mixed
    cutoff: int | Tensor  # the layer from which on the second style holds
    noise: tuple[Tensor, ...]  # of each layer, [n, 1, r, r]; none without noise
    alpha: float | Tensor  # weight of the newest resolution
    labels: Tensor | None = None  # int64 [n]
    reals: Tensor | None = None  # uint8 [n, C, r, r]; D only
    flips: Tensor | None = None  # which reals to mirror, bool [n]
    between: Tensor | None = None  # for the points of a gradient penalty between reals and fakes, [n] in [0, 1]
    turned_weight: float | Tensor = 0.0  # of the term for turned fakes; G only

    def part(self, part: Part) -> StepInputs:
        """Return the inputs of a part of the share."""
        if part.rows is None:
            return self
        rows = part.rows
        return self.map_tensors(lambda tensor: tensor.index_select(0, rows) if tensor.ndim else tensor)

    def tensors(self) -> list[Tensor]:
        """Return all tensors; those of two steps of one kind are in the same order."""
        values = [getattr(self, field.name) for field in fields(self)]
        return [*(value for value in values if isinstance(value, Tensor)), *self.noise]

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> StepInputs:
        """Return the same inputs with other tensors."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        mapped = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **mapped, noise=tuple(map(function, self.noise)))

    def copy_(self, other: StepInputs) -> None:
        """Copy the tensors of other inputs of the same kind into these."""
        pairs = list(zip(self.tensors(), other.tensors(), strict=True))
        for dtype in {own.dtype for own, _ in pairs}:  # tensors of one type are copied by one kernel
            alike = [(own, new) for own, new in pairs if own.dtype == dtype]
            torch._foreach_copy_([own for own, _ in alike], [new for _, new in alike])


@dataclass
class Draws:
    """The random numbers of one player's step, for the samples of this rank."""

    batch: int  # size of the global batch
    positions: Tensor  # of this rank's samples in it
    tensors: torch.Generator
    host: np.random.Generator  # for decisions that the host makes

    @classmethod
    def of(cls, config: Config, stage: Stage, nimg: int, player: str, positions: Tensor) -> Draws:
        """Return the draws of a step, which depend on (config.seed, stage, nimg, player) alone."""
        seeds = np.random.SeedSequence([config.seed, stage.resolution, nimg, PLAYERS.index(player)]).spawn(2)
        seed = int(seeds[0].generate_state(1, np.uint64)[0] >> 1)
        tensors = torch.Generator(positions.device).manual_seed(seed)
        return cls(stage.batch, positions, tensors, np.random.default_rng(seeds[1]))

    def normal(self, *shape: int) -> Tensor:
        """Draw from N(0, 1), [own share, *shape]."""
        return self._own(torch.randn(self.batch, *shape, generator=self.tensors, device=self.positions.device))

    def uniform(self) -> Tensor:
        """Draw from U(0, 1), [own share]."""
        return self._own(torch.rand(self.batch, generator=self.tensors, device=self.positions.device))

    def _own(self, whole: Tensor) -> Tensor:
        return whole if len(self.positions) == self.batch else whole.index_select(0, self.positions)


def discriminator_inputs(
    config: Config, stage: Stage, nimg: int, share: Share, reals: Tensor, labels: Tensor | None, *, static: bool
) -> StepInputs:
    """Draw the numbers of a D step.

    Args:
        config: that of the run.
        stage: the present one.
        nimg: the image count.
        share: of this rank.
        reals: this rank's images, uint8 [batch / ranks, C, r, r], on any device.
        labels: their classes, int64 [batch / ranks]; None if unconditional.
        static: whether to give what changes from step to step as tensors, so that a recorded step can read it. The
            second latents are then drawn in every step, also where styles are not mixed.
    """
    training, device = config.training, share.positions.device
    draws = Draws.of(config, stage, nimg, "D", share.positions)
    flips = draws.uniform() < 0.5 if training.mirror else None
    inputs = _generator_draws(config, stage, nimg, draws, static=static)
    return replace(
        inputs,
        labels=None if labels is None else labels.to(device, non_blocking=True),
        reals=reals.to(device, non_blocking=True),
        flips=flips,
        between=draws.uniform() if training.gp_weight else None,
    )


def generator_inputs(
    config: Config, stage: Stage, nimg: int, share: Share, label_table: Tensor | None, *, static: bool
) -> StepInputs:
    """Draw the numbers of a G step; arguments as for `discriminator_inputs`.

    Args:
        label_table: the labels of the data set, int64 [num_images], from which labels are drawn; None if unconditional.
    """
    rotation = config.training.rotation
    draws = Draws.of(config, stage, nimg, "G", share.positions)
    labels = None if label_table is None else label_table[(draws.uniform() * len(label_table)).long()]
    inputs = _generator_draws(config, stage, nimg, draws, static=static)
    weight = weight_g(rotation, nimg) if rotation else 0.0
    # At the weight 0 the term is only a metric, in a step of its own kind.
    turned_weight = inputs.z.new_full((), weight) if static and weight else weight
    return replace(inputs, labels=labels, turned_weight=turned_weight)


def _generator_draws(config: Config, stage: Stage, nimg: int, draws: Draws, *, static: bool) -> StepInputs:
    """Draw what G reads: latents, whether and from which layer on styles are mixed, and noise."""
    model, alpha = config.model, stage.alpha(nimg)
    last = 1 if model.is_resnet else count_layers(stage.resolution)
    z, cutoff = draws.normal(model.latent_size), last
    mixes = model.has_styles and model.style_mixing_prob > 0
    if mixes and draws.host.random() < model.style_mixing_prob:
        cutoff = int(draws.host.integers(1, last))
    mixed_z = draws.normal(model.latent_size) if cutoff < last or (static and mixes) else None
    noise = _noise(model, draws, last)
    if not static:
        return StepInputs(z, mixed_z, cutoff, noise, alpha)
    return StepInputs(
        z,
        mixed_z,
        torch.full((), cutoff, device=z.device) if mixes else cutoff,
        noise,
        z.new_full((), alpha) if alpha < 1 else alpha,
    )


def _noise(model: ModelConfig, draws: Draws, layers: int) -> tuple[Tensor, ...]:
    sides = [layer_resolution(index) for index in range(layers)] if model.has_noise else []
    return tuple(draws.normal(1, side, side) for side in sides)
