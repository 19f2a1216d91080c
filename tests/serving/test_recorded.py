"""A recorded generator: the same bits, from several threads at once; none where it gains nothing."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from resnets import make_resnet

from stylegan.config.sections import ModelConfig
from stylegan.drawing.draw import noise_of, paint
from stylegan.networks.generator import Generator
from stylegan.serving import recorded
from stylegan.serving.recorded import record


def make(resolution=16, **model):
    torch.manual_seed(0)
    settings = ModelConfig(latent_size=8, mapping_layers=2, mapping_fmaps=8, fmap_base=64, fmap_max=8, **model)
    generator = Generator(settings, resolution=resolution, channels=3).eval().requires_grad_(False)
    for layer in generator.synthesis.layers:
        if layer.noise_weight is not None:
            layer.noise_weight.fill_(0.3)
    return generator


@pytest.mark.parametrize("model", [{}, {"noise": False}, {"styles": False, "const_input": False, "pixel_norm": True}])
def test_a_recording_draws_the_same_bits_on_any_thread(model):
    generator = make(**model)
    repeat = record(generator)
    assert repeat is not None
    ws = torch.randn(40, generator.num_layers, len(generator.w_avg))
    kinds = ["stored", "none", 3, 4]

    def both(number):
        noise = [noise_of(kinds[number % 4], None) for _ in range(2)]
        row = ws[number : number + 1]
        return torch.equal(repeat(row, noise[0]), paint(generator, row, noise[1]))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(both, range(40)))


@pytest.mark.parametrize("num_labels", [0, 3])
@pytest.mark.parametrize("norm", [None, "self_modulated", "adaptive_instance"])
def test_a_recorded_resnet_draws_the_same_bits(num_labels, norm):
    generator = make_resnet(num_labels, norm=norm)
    repeat = record(generator)
    assert repeat is not None
    for row in torch.randn(8, 1, 1, len(generator.w_avg)):
        assert torch.equal(repeat(row, None), paint(generator, row, None))


def test_large_images_are_not_recorded():
    assert record(make(128)) is None


def test_a_recording_that_draws_something_else_is_not_used(monkeypatch, caplog):
    generator = make()
    caplog.set_level("INFO", "stylegan")
    monkeypatch.setattr(recorded, "paint", lambda *arguments: paint(*arguments) ^ 1)
    assert record(generator) is None
    assert "draws other bits" in caplog.text


def test_a_network_that_cannot_be_recorded_is_drawn_as_elsewhere(monkeypatch, caplog):
    def fail(*arguments, **options):
        raise RuntimeError("no tracer here")

    caplog.set_level("INFO", "stylegan")
    monkeypatch.setattr(recorded.torch.jit, "trace", fail)
    assert record(make()) is None
    assert "cannot be recorded (no tracer here)" in caplog.text
