"""Whole steps against the plain steps of the benchmarks: equal draws give equal weights, averages and moments of Adam.

The tests use double precision, because Adam without momentum turns the rounding of a gradient near zero into a whole
step of the learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from benchmarks.compare import assert_near
from benchmarks.plain import Draws, PlainDiscriminator, PlainGenerator, PlainTraining
from torch import Tensor, nn

from stylegan.config.file import build
from stylegan.config.tree import Config
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import TrainState
from stylegan.training.step import discriminator_step, generator_step

BATCH = 8
LABELS = torch.arange(40) % 3  # of the data set
# Allowed difference after three iterations, relative to the norm of each tensor. Updating the average of G after the G
# step instead of before it differs by 1e-6.
ALLOWED = 1e-9


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def configure(conditional: bool) -> Config:
    """Return a config whose middle stage of three has a native R1 weight of a quarter of that at 32x32."""
    return build(
        {
            "name": "t",
            "data": {"source": "digits", "resolution": 32, "channels": 1},
            "model": {
                "latent_size": 8,
                "mapping_layers": 2,
                "mapping_fmaps": 8,
                "fmap_base": 64,
                "fmap_max": 8,
                "style_mixing_prob": 0.7,
                "conditional": conditional,
            },
            "training": {
                "batch": BATCH,
                "fade_kimg": 0.032,
                "stable_kimg": 0.032,
                "minibatch_repeats": 1,
                "r1_gamma": 10,
                "ema_kimg": 10,
                "learning_rate": 0.002,
            },
        }
    )


class Recorder:
    """Records what G receives in a step: latents, labels, noise, and the first layer with the second style."""

    def __init__(self, G: nn.Module) -> None:
        self.mapped: list[tuple[Tensor, Tensor | None, Tensor]] = []
        self.noise: list[Tensor] = []
        self.cutoff = 0
        G.mapping.register_forward_hook(lambda _, args, w: self.mapped.append((args[0], args[1], w)))
        G.synthesis.register_forward_pre_hook(self._listen, with_kwargs=True)

    def _listen(self, _: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        self.noise = []
        (ws,), draw = args, kwargs["noise"]
        self.cutoff = int((ws == self.mapped[0][2][: len(ws), None]).all(0).all(1).sum())

        def recorded(*shape: int) -> Tensor:
            self.noise.append(draw(*shape))
            return self.noise[-1]

        return args, kwargs | {"noise": recorded}

    def draws(self) -> tuple[Draws, Tensor | None]:
        """Return the draws of the last step and the labels of its fakes, and forget them."""
        ((z, labels, _),) = self.mapped  # one or two latents of every image
        self.mapped = []
        return Draws(z[:BATCH], z[-BATCH:], self.cutoff, self.noise), None if labels is None else labels[:BATCH]


def shake(state: TrainState) -> None:
    """Add random numbers to every constant parameter.

    Instance normalisation would amplify the rounding of a constant channel ten thousand times. With zero biases in D,
    pixels whose mean is exactly 0 would be at the kink of the leaky ReLU.
    """
    torch.manual_seed(1)
    for parameter in [*state.G.parameters(), *state.D.parameters()]:
        if parameter.detach().unique().numel() == 1:
            parameter.data += torch.randn_like(parameter) * 0.3
    state.G_ema.load_state_dict(state.G.state_dict())


def plain_training(state: TrainState, stage: Stage) -> PlainTraining:
    """Return plain training that starts from the same networks."""
    shape = {"resolution": stage.resolution, "channels": 1, "num_labels": state.G.num_labels}
    G, D = PlainGenerator(state.G.model, **shape), PlainDiscriminator(state.D.model, **shape)
    G.load_state_dict(state.G.state_dict())
    D.load_state_dict(state.D.state_dict())
    training = PlainTraining(G, D, learning_rate=stage.learning_rate)
    training.gamma = 10 / 4
    return training


def faded(images: Tensor, alpha: float) -> Tensor:
    """Scale uint8 [N, 1, r, r] to [-1, 1] and move each 2x2 pixels towards their mean by 1 - alpha."""
    x = images.double() / 127.5 - 1
    blocks = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    means = blocks.mean((3, 5), keepdim=True)
    return (means + alpha * (blocks - means)).flatten(4, 5).flatten(2, 3)


def numbers(training: TrainState | PlainTraining) -> dict[str, Tensor]:
    """Return weights and buffers of G, D and the average of G, and the second moments of both Adams."""
    found = {
        f"{name}.{key}": value
        for name in ("G", "D", "G_ema")
        for key, value in getattr(training, name).state_dict().items()
    }
    for name in ("G", "D"):
        moments, network = getattr(training, f"opt_{name}").state, getattr(training, name)
        found |= {
            f"Adam of {name}.{key}": moments[p]["exp_avg_sq"] for key, p in network.named_parameters() if p in moments
        }
    return found


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("images_into_stage", [8, 40])
def test_three_iterations(conditional: bool, images_into_stage: int) -> None:
    """D step, average and G step, three times in a row: within the fade, and after it."""
    config = configure(conditional)
    stage, labels = stages(config)[1], LABELS if conditional else None
    state = TrainState(config, stage.resolution, 3 if conditional else 0)
    state.reset_optimizers(config, stage.learning_rate)
    state.nimg = stage.start_nimg + images_into_stage
    shake(state)
    plain, recorder = plain_training(state, stage), Recorder(state.G)
    data = torch.randint(
        0, 256, (3, BATCH, 1, stage.resolution, stage.resolution), generator=torch.Generator().manual_seed(0)
    )
    mixed = 0
    for images in data.to(torch.uint8):
        alpha, of_reals = stage.alpha(state.nimg), None if labels is None else labels[:BATCH]
        discriminator_step(state, config, stage, images, of_reals)
        draws, of_fakes = recorder.draws()
        assert of_reals is None or torch.equal(of_fakes, of_reals), (
            "the fakes of the D step have the labels of its reals"
        )
        plain.d_step(faded(images, alpha), of_reals, draws, alpha=alpha)
        generator_step(state, config, stage, labels)
        draws, of_fakes = recorder.draws()
        plain.g_step(of_fakes, draws, alpha=alpha)
        mixed += int(draws.cutoff < state.G.num_layers)
        state.nimg += stage.batch
    assert mixed > 0
    assert (0 < alpha < 1) == (images_into_stage < 32)
    assert_near(numbers(state), numbers(plain), allowed=ALLOWED)
