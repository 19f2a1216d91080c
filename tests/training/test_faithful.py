"""Rules of the official training loop that span several functions: what a step draws, when, and what it changes.

The rules of single functions are tested beside them: networks against their formulas, the schedule against the
published one, and whole steps number by number against the plain steps of the benchmarks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan.config.file import build
from stylegan.config.sections import ModelConfig, TrainingConfig
from stylegan.config.tree import Config
from stylegan.networks.discriminator import Discriminator
from stylegan.networks.generator import Generator
from stylegan.training import losses
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import TrainState
from stylegan.training.step import discriminator_step, generator_step, process_reals

BATCH = 8
LABELS = torch.arange(BATCH) % 3
MODEL = {"latent_size": 8, "mapping_layers": 2, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8}
PLAYERS = ("D", "G")


@dataclass
class Heard:
    """The inputs that the networks received in one step."""

    z: list[Tensor] = field(default_factory=list)
    w: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    ws: list[Tensor] = field(default_factory=list)
    noise: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)  # inputs of D
    classes: list[Tensor] = field(default_factory=list)  # inputs of D

    @property
    def cutoff(self) -> int:
        """The number of layers with the style of the first code."""
        return int((self.ws[0] == self.w[0][:, None]).all(0).all(1).sum())


class Run:
    """A stage that is trained step by step. Hooks on its networks record their inputs."""

    def __init__(self, resolution: int = 16, *, conditional: bool = True, **training: object) -> None:
        tree = {
            "name": "t",
            "data": {"source": "digits", "resolution": 32, "channels": 1},
            "model": MODEL | {"conditional": conditional},
            "training": {"batch": BATCH, "fade_kimg": 0.032, "stable_kimg": 0.032, "minibatch_repeats": 1, **training},
        }
        self.config: Config = build(tree)
        self.stage: Stage = next(stage for stage in stages(self.config) if stage.resolution == resolution)
        self.state = TrainState(self.config, resolution, 3 if conditional else 0)
        self.state.reset_optimizers(self.config, self.stage.learning_rate)
        self.state.nimg = self.stage.start_nimg + BATCH
        self.heard = Heard()
        self._listen()

    def step(self, player: str, *, labels: Tensor = LABELS, table: Tensor = LABELS) -> Heard:
        self.heard = Heard()
        if player == "D":
            reals = torch.arange(BATCH * self.stage.resolution**2).remainder(256).to(torch.uint8)
            shape = (BATCH, 1, self.stage.resolution, self.stage.resolution)
            discriminator_step(
                self.state, self.config, self.stage, reals.view(shape), labels if self.state.D.num_labels else None
            )
        else:
            generator_step(self.state, self.config, self.stage, table if self.state.D.num_labels else None)
        return self.heard

    def _listen(self) -> None:
        def mapped(_: nn.Module, args: tuple, w: Tensor) -> None:
            # Both codes of a mixture arrive in one call, one after the other.
            self.heard.z += args[0].split(BATCH)
            self.heard.labels += [None] if args[1] is None else args[1].split(BATCH)
            self.heard.w += w.detach().split(BATCH)

        def synthesised(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            def draw(*shape: int) -> Tensor:
                self.heard.noise.append(kwargs["noise"](*shape))
                return self.heard.noise[-1]

            self.heard.ws.append(args[0].detach())
            return args, kwargs | {"noise": draw}

        def judged(_: nn.Module, args: tuple, kwargs: dict) -> None:
            self.heard.images.append(args[0].detach())
            self.heard.classes.append(kwargs["labels"] if "labels" in kwargs else args[1])

        self.state.G.mapping.register_forward_hook(mapped)
        self.state.G.synthesis.register_forward_pre_hook(synthesised, with_kwargs=True)
        self.state.D.register_forward_pre_hook(judged, with_kwargs=True)


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    return {name for name, value in network.state_dict().items() if not torch.equal(before[name], value)}


def test_defaults_are_those_of_the_paper() -> None:
    """The defaults are config F on FFHQ: losses, Adam, averages, mixing, sizes."""
    training, model = TrainingConfig(), ModelConfig()
    assert (training.loss, training.r1_gamma, training.r2_gamma, training.penalty_interval) == (
        "nonsaturating",
        10,
        0,
        1,
    )
    assert (training.adam_beta1, training.adam_beta2, training.adam_eps, training.ema_kimg) == (0, 0.99, 1e-8, 10)
    assert (training.start_resolution, training.minibatch_repeats, training.learning_rate_scaling) == (8, 4, "none")
    assert (model.latent_size, model.mapping_layers, model.mapping_fmaps, model.mapping_lrmul) == (512, 8, 512, 0.01)
    assert (model.w_avg_beta, model.style_mixing_prob, model.mbstd_group, model.pixel_norm) == (0.995, 0.9, 4, False)
    assert model.styles
    assert model.const_input
    assert model.noise
    assert model.instance_norm
    assert model.blur


def test_everything_additive_starts_at_zero() -> None:
    """Biases (of styles too), noise weights and the average of w start at zero; the constant input starts at one."""
    G = Generator(ModelConfig(**MODEL), resolution=16, channels=3)
    D = Discriminator(ModelConfig(**MODEL), resolution=16, channels=3)
    zeros = [name for network in (G, D) for name, value in network.named_parameters() if not value.any()]
    assert {name.rsplit(".", 1)[1] for name in zeros} == {"bias", "noise_weight"}
    assert len(zeros) == sum(
        name.endswith(("bias", "noise_weight")) for network in (G, D) for name, _ in network.named_parameters()
    )
    assert not G.w_avg.any()
    assert (G.synthesis.layers[0].source.const == 1).all()


def test_r1_is_that_of_enlarged_images_with_labels_and_fade() -> None:
    """At each level a step at the native resolution uses gamma / 2 times the penalty on images enlarged to 32x32."""
    for levels, resolution in enumerate((32, 16, 8)):
        D = Discriminator(ModelConfig(**MODEL), resolution=resolution, channels=3, num_labels=3).double()
        native = torch.randn(BATCH, 3, resolution, resolution, dtype=torch.float64, requires_grad=True)
        large = native.detach().repeat_interleave(2**levels, 2).repeat_interleave(2**levels, 3).requires_grad_()
        inside = large.unflatten(3, (-1, 2**levels)).unflatten(2, (-1, 2**levels)).mean((3, 5))
        reference = losses.r1_penalty(D(inside, LABELS, alpha=0.3), large)
        penalty = losses.r1_penalty(D(native, LABELS, alpha=0.3), native)
        torch.testing.assert_close(reference, penalty / 4**levels)
        training = TrainingConfig(r1_gamma=10)
        total, _ = losses.penalties(training, levels, {"r1": (native, D(native, LABELS, alpha=0.3))})
        torch.testing.assert_close(total, 5 * reference.mean())


def test_nothing_changes_when_a_fade_starts_and_ends() -> None:
    """alpha 0 gives what the smaller networks give, alpha 1 ignores the old path, and neither end is a jump."""
    model = ModelConfig(**MODEL)
    G = Generator(model, resolution=8, channels=1).double()
    D = Discriminator(model, resolution=8, channels=1).double()
    z, reals = torch.randn(BATCH, 8, dtype=torch.float64), torch.randint(0, 256, (BATCH, 1, 16, 16)).to(torch.uint8)
    torch.set_default_dtype(torch.float64)
    try:
        before = D(G(z)), D(F.avg_pool2d(process_reals(reals, alpha=1.0), 2))
        G.grow()
        D.grow()

        def scores(alpha: float) -> tuple[Tensor, Tensor]:
            return D(G(z, alpha=alpha), alpha=alpha), D(process_reals(reals, alpha=alpha), alpha=alpha)

        torch.testing.assert_close(scores(0.0), before)
        torch.testing.assert_close(scores(1e-6), before, atol=1e-4, rtol=0)
        torch.testing.assert_close(scores(1 - 1e-6), scores(1.0), atol=1e-4, rtol=0)
        assert not torch.allclose(scores(1.0)[0], before[0], atol=1e-3)
        assert not torch.allclose(scores(1.0)[1], before[1], atol=1e-3)
    finally:
        torch.set_default_dtype(torch.float32)


def test_reals_reach_d_in_the_range_of_the_paper() -> None:
    """Bytes become byte * 2 / 255 - 1; during the fade a real is moved towards the means of its 2x2 pixels."""
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = process_reals(images, alpha=1.0)
    assert (x.min().item(), x.max().item()) == (-1, 1)
    torch.testing.assert_close(x.flatten(), torch.arange(256) * 2 / 255 - 1)
    means = F.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(process_reals(images, alpha=0.3), means + 0.3 * (x - means))


@pytest.mark.parametrize("mirror", [False, True])
def test_half_of_the_reals_are_mirrored_if_asked(mirror: bool) -> None:
    """Over many steps D sees about half of the images mirrored; without the option it sees none mirrored."""
    run, flipped = Run(mirror=mirror), 0
    run.state.nimg = run.stage.start_nimg + 32  # no fade
    for _ in range(40):
        reals = run.step("D").images[0]
        run.state.nimg += BATCH
        flipped += int((reals[:, 0, 0, 0] > reals[:, 0, 0, -1]).sum())  # rows of the images ascend
    if mirror:
        assert 0.4 < flipped / (40 * BATCH) < 0.6
    else:
        assert flipped == 0


def test_average_of_w_follows_the_first_code_in_both_steps() -> None:
    """w_avg = 0.995 w_avg + 0.005 * batch mean of f(z1), in the D step and in the G step, with or without mixing."""
    run, expected, mixed = Run(), torch.zeros(8), 0
    for _ in range(5):
        for player in PLAYERS:
            heard = run.step(player)
            expected = 0.995 * expected + 0.005 * heard.w[0].mean(0)
            mixed += int(heard.cutoff < run.state.G.num_layers)
            torch.testing.assert_close(run.state.G.w_avg, expected)
        run.state.nimg += BATCH
    assert mixed > 0


@pytest.mark.parametrize("player", PLAYERS)
def test_styles_are_mixed_for_the_whole_batch_within_the_current_layers(player: str) -> None:
    """Nine of ten steps mix, with every possible cutoff: layers below it have the first code, the others the second."""
    run, cutoffs = Run(), []
    for _ in range(100):
        heard = run.step(player)
        cutoffs.append(heard.cutoff)
        second = heard.w[-1][:, None].expand_as(heard.ws[0])
        assert torch.equal(heard.ws[0][:, heard.cutoff :], second[:, heard.cutoff :])
        run.state.nimg += BATCH
    layers = run.state.G.num_layers
    assert layers == 6
    assert set(cutoffs) == set(range(1, layers + 1))
    assert 0.03 <= cutoffs.count(layers) / len(cutoffs) <= 0.2


@pytest.mark.parametrize("player", PLAYERS)
def test_both_codes_of_a_mixture_have_the_labels_of_the_images(player: str) -> None:
    """z1, z2 and D receive the same labels."""
    run = Run()
    for _ in range(5):
        heard = run.step(player)
        assert all(torch.equal(labels, heard.labels[0]) for labels in [*heard.labels, heard.classes[-1]])
        run.state.nimg += BATCH


@pytest.mark.parametrize("player", PLAYERS)
def test_every_layer_and_image_has_its_own_noise_in_every_step(player: str) -> None:
    """Noise is fresh single-channel N(0, 1) at the resolution of the layer; no two maps are alike."""
    run = Run()
    first, second = run.step(player).noise, Run().step("G" if player == "D" else "D").noise
    run.state.nimg += BATCH
    later = run.step(player).noise
    assert [noise.shape for noise in first] == [(BATCH, 1, 4 << i // 2, 4 << i // 2) for i in range(6)]
    maps = torch.cat([noise.flatten(1)[:, :16] for step in (first, second, later) for noise in step])
    assert torch.corrcoef(maps).fill_diagonal_(0).abs().max() < 0.95
    assert torch.cat([noise.flatten() for noise in first]).std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("conditional", [False, True])
def test_the_players_draw_their_own_latents(conditional: bool) -> None:
    """The G step and the D step draw different z, and the two codes of a mixture differ."""
    run = Run(conditional=conditional)
    latents = [z for player in PLAYERS for z in run.step(player).z]
    assert len(latents) >= 3
    assert all(not torch.equal(a, b) for i, a in enumerate(latents) for b in latents[:i])
    assert torch.cat(latents).std().item() == pytest.approx(1, abs=0.15)


def test_fakes_have_the_labels_of_the_reals_in_the_d_step_and_of_the_data_set_in_the_g_step() -> None:
    """The G step draws uniformly from the table of all labels, independent of the batch."""
    run = Run()
    heard = run.step("D", labels=torch.full((BATCH,), 2), table=torch.tensor([0, 1]))
    assert all((labels == 2).all() for labels in [*heard.labels, *heard.classes])
    drawn = []
    for _ in range(60):
        drawn += run.step("G", labels=torch.full((BATCH,), 2), table=torch.tensor([0, 1, 1, 1])).labels[0].tolist()
        run.state.nimg += BATCH
    assert set(drawn) == {0, 1}
    assert drawn.count(1) / len(drawn) == pytest.approx(0.75, abs=0.08)


def test_gradients_reach_their_own_player_only() -> None:
    """The D step leaves G's weights and moments unchanged, the G step D's; the D step changes only a buffer of G."""
    run = Run()
    before = snapshot(run.state.G)
    run.step("D")
    assert changed(before, run.state.G) == {"w_avg"}
    assert not run.state.opt_G.state
    before, moments = snapshot(run.state.D), copy.deepcopy(run.state.opt_D.state_dict())
    run.step("G")
    assert changed(before, run.state.D) == set()
    for index, values in run.state.opt_D.state_dict()["state"].items():
        assert all(torch.equal(value, moments["state"][index][name]) for name, value in values.items())


def test_the_average_of_g_is_updated_in_the_d_step_only() -> None:
    """So the average lags one G step behind: after an iteration it has followed G as it was before its update."""
    run = Run()
    with torch.no_grad():
        for parameter in run.state.G.parameters():
            parameter.add_(1.0)
    before, current = snapshot(run.state.G_ema), snapshot(run.state.G)
    run.step("D")
    after = snapshot(run.state.G_ema)
    for name, _ in run.state.G.named_parameters():
        beta = 0.5 ** (BATCH / 10_000)
        torch.testing.assert_close(after[name], beta * before[name] + (1 - beta) * current[name])
    assert all(torch.equal(after[name], value) for name, value in run.state.G.named_buffers())
    run.step("G")
    assert changed(after, run.state.G_ema) == set()


def test_adam_has_no_momentum_and_one_rate_for_all() -> None:
    """beta1 0, beta2 0.99, epsilon 1e-8, no weight decay; the mapping network's layers slow it down, not Adam."""
    run = Run()
    for optimizer, network in ((run.state.opt_G, run.state.G), (run.state.opt_D, run.state.D)):
        (group,) = optimizer.param_groups
        assert (tuple(group["betas"]), group["eps"], group["weight_decay"], group["lr"]) == (
            (0, 0.99),
            1e-8,
            0,
            run.stage.learning_rate,
        )
        assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in network.parameters()}


def test_training_never_truncates() -> None:
    """Even far from w_avg the styles of a step are exactly those of the mapping network."""
    run = Run()
    run.state.G.w_avg += 100
    heard = run.step("G")
    assert heard.ws[0].abs().max() < 50
    assert torch.equal(heard.ws[0][:, 0], heard.w[0])
