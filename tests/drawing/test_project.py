"""Projection: a model's own images come back, whatever is asked for; what the model does not draw is said."""

import math

import pytest
import torch
from torch import Tensor

from stylegan.config.sections import ModelConfig
from stylegan.drawing import project as projection
from stylegan.drawing.draw import draw, of_file, paint_latents
from stylegan.drawing.latents import latents_bytes, parse_latents
from stylegan.drawing.project import Projection, learning_rate_ramp, noise_penalty, project, psnr
from stylegan.errors import StepError
from stylegan.evaluation.features.embedded import FeatureFacts, FeatureNet
from stylegan.networks.classifier import Classifier
from stylegan.networks.generator import Generator

MODEL = ModelConfig(latent_size=16, mapping_layers=2, mapping_fmaps=16, mapping_lrmul=0.1, fmap_base=64, fmap_max=16)


def untrained(num_labels: int = 0, **model: object) -> Generator:
    """Return an 8x8 generator whose images differ, by their noise too, and are not cut off at black and white."""
    torch.manual_seed(0)
    generator = Generator(MODEL.model_copy(update=model), resolution=8, channels=1, num_labels=num_labels)
    for layer in generator.synthesis.layers:
        if layer.noise_weight is not None:
            torch.nn.init.constant_(layer.noise_weight, 0.1)
    generator.synthesis.to_rgb[-1].weight.data *= 0.3
    if num_labels:
        generator.mapping.label_concat.data *= 20  # which drowns z
    return generator.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def distance():
    """Return the distance of an untrained feature network; its structure alone makes it perceptual enough."""
    torch.manual_seed(1)
    network = Classifier(resolution=8, channels=1, num_classes=2).eval().requires_grad_(False)
    facts = FeatureFacts(
        kind="rotation", resolution=8, channels=1, label_names=("a", "b"), accuracy=1, dataset_fingerprint=""
    )
    return FeatureNet(network, facts, "", "").distance


def found(generator: Generator, target: Tensor, distance, **options: object) -> Projection:
    return project(generator, target, **{"distance": distance, "steps": 200} | options)


def test_an_image_of_the_model_is_recovered(distance) -> None:
    """Each with its own noise, within the steps and the decibels that are promised; the file of latents draws it again."""
    generator = untrained()
    for target in draw(generator, [3, 4, 5]):
        result = found(generator, target, distance)
        assert result.psnr > 30
        assert result.distance < 0.05 * result.history[0]
        assert 0.3 < result.w_distance < projection.UNUSUAL
        assert result.remarks == ()
        (latents,) = parse_latents(latents_bytes(result.latents), generator, "w.npz").rows()
        assert torch.equal(paint_latents(generator, of_file(generator, latents))[0], result.image)
        assert psnr(result.image, target) == result.psnr


def test_all_layers_of_w_are_alike_and_those_of_w_plus_are_not(distance) -> None:
    generator = untrained()
    target = draw(generator, [3])[0]
    w, plus = (found(generator, target, distance, steps=60, space=space) for space in ("w", "w+"))
    assert w.ws.shape == plus.ws.shape == (1, 4, 16)
    assert (w.ws == w.ws[:, :1]).all()
    assert not (plus.ws == plus.ws[:, :1]).all()


def test_a_seed_gives_the_same_bits_and_another_seed_others(distance) -> None:
    generator = untrained()
    target = draw(generator, [3])[0]
    first, again, other = (found(generator, target, distance, steps=20, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.ws, again.ws)
    assert all(torch.equal(a, b) for a, b in zip(first.noise, again.noise, strict=True))
    assert first.history == again.history
    assert not torch.equal(first.ws, other.ws)


def test_the_class_is_found_or_given(distance) -> None:
    generator = untrained(num_labels=3)
    for label in range(3):
        target = draw(generator, [9], labels=[label])[0]
        assert found(generator, target, distance, steps=1).label == label
        assert found(generator, target, distance, steps=1, label=2).label == 2
    assert found(untrained(), draw(untrained(), [9])[0], distance, steps=1).label is None


def test_what_the_model_does_not_draw_is_said(distance) -> None:
    """A chessboard; of a small image, w+ with its noise maps can make nearly anything, w cannot."""
    generator = untrained()
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2 * 255).byte()[None]
    (remark,) = found(generator, board, distance, space="w").remarks
    assert remark.startswith("large residual: ")
    figures = {
        "ws": torch.zeros(1, 4, 16),
        "noise": (),
        "image": board,
        "label": None,
        "history": (1.0,),
        "typical": 2.0,
    }
    assert Projection(**figures, distance=0.01, psnr=31, w_distance=1.2).remarks == ()
    assert len(Projection(**figures, distance=0.01, psnr=12, w_distance=2.5).remarks) == 2


@pytest.mark.parametrize("switch", ["noise", "styles", "const_input", "instance_norm"])
def test_every_kind_of_generator_can_be_projected(distance, switch: str) -> None:
    generator = untrained(**{switch: False})
    result = found(generator, draw(generator, [3])[0], distance, steps=30)
    assert len(result.noise) == (0 if switch == "noise" else 4)
    assert math.isfinite(result.psnr)
    assert result.distance <= result.history[0] * 1.01


def test_each_step_is_heard_of_and_may_end_the_search(distance) -> None:
    generator = untrained()
    target, heard = draw(generator, [3])[0], []

    def listen(step: int, steps: int, far: float, image: Tensor) -> None:
        heard.append((step, steps, far, tuple(image.shape)))

    result = found(generator, target, distance, steps=5, on_step=listen)
    assert [step for step, *_ in heard] == [1, 2, 3, 4, 5]
    assert [far for *_, far, _ in heard] == list(result.history)
    assert {(steps, shape) for _, steps, _, shape in heard} == {(5, (1, 1, 8, 8))}

    def cancel(step: int, *_: object) -> None:
        if step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        found(generator, target, distance, on_step=cancel)


def test_another_shape_is_an_error(distance) -> None:
    with pytest.raises(StepError, match=r"shape \[3, 8, 8\], the model makes images of \[1, 8, 8\]"):
        project(untrained(), torch.zeros(3, 8, 8, dtype=torch.uint8), distance=distance)


def test_the_learning_rate_rises_and_falls_as_published() -> None:
    ramp = [learning_rate_ramp(done / 1000) for done in (0, 25, 50, 500, 750, 875, 999)]
    assert ramp == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0], abs=1e-4)


@pytest.mark.parametrize("side", [4, 8, 32])
def test_the_penalty_of_white_noise_is_the_same_at_every_size_and_that_of_a_picture_is_more(side: int) -> None:
    """At 1024x1024 a map's own term is 2 / 1024^2 in expectation, as published; each level of its pyramid adds as much."""
    stream = torch.Generator().manual_seed(0)
    white = [noise_penalty([torch.randn(1, 1, side, side, generator=stream)]).item() for _ in range(400)]
    levels = max(side // 8, 1).bit_length()
    assert sum(white) / 400 == pytest.approx(levels * 2 / 1024**2, rel=0.35)
    picture = torch.ones(1, 1, side, side)
    picture[..., : side // 2, :] = -1
    assert noise_penalty([picture]) > 5 * sum(white) / 400


def test_noise_maps_keep_mean_and_variance(distance) -> None:
    generator = untrained()
    result = found(generator, draw(generator, [3])[0], distance, steps=10)
    for part in result.noise:
        assert part.mean().item() == pytest.approx(0, abs=1e-5)
        assert part.square().mean().item() == pytest.approx(1, abs=1e-4)
