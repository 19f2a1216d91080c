"""Latents of seeds, and files of latents."""

import io

import numpy as np
import pytest
import torch

from stylegan.config.sections import ModelConfig
from stylegan.drawing.draw import draw, noise_of, of_file, of_seed, paint_latents, parse_noise
from stylegan.drawing.latents import Latents, check_seed, latent, latents_bytes, parse_latents, read_latents
from stylegan.errors import ConfigError
from stylegan.networks.generator import Generator, random_noise

MODEL = ModelConfig(latent_size=8, mapping_layers=1, mapping_fmaps=8, fmap_base=64, fmap_max=8)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    made = Generator(MODEL, resolution=8, channels=3).eval().requires_grad_(False)
    for layer in made.synthesis.layers:
        layer.noise_weight.fill_(0.3)
    made.w_avg.normal_()
    return made


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_numpy_draws_the_latents_of_the_official_scripts():
    """They call `numpy.random.RandomState(seed).randn(size)` for each image."""
    z, _ = latent(639, 512, "numpy")
    assert np.array_equal(z.numpy(), np.random.RandomState(639).randn(1, 512).astype(np.float32))
    assert not torch.equal(z, latent(639, 512)[0])


def test_an_image_of_a_seed_is_that_of_the_generator_itself(generator):
    stream = torch.Generator().manual_seed(5)
    z = torch.randn(1, 8, generator=stream)
    expected = generator(z, noise=random_noise(stream, "cpu"), truncation_psi=0.5)
    assert torch.equal(draw(generator, [5], psi=0.5), (expected * 127.5 + 127.5).round().clamp(0, 255).byte())


@pytest.mark.parametrize("noise", ["own", "stored", "none", 7])
def test_each_kind_of_noise_is_the_one_it_says(generator, noise):
    """The same noise gives the same image, any other kind another one; and seeds share only noise that is not their own."""
    z, stream = latent(3, 8)
    w = generator.mapping(z)[:, None].expand(-1, 4, -1)
    maps = {
        "own": random_noise(stream, "cpu"),
        "stored": None,
        "none": lambda layer, n, side: torch.zeros(n, 1, side, side),
        7: random_noise(torch.Generator().manual_seed(7), "cpu"),
    }
    expected = generator.synthesis(w, noise=maps[noise])
    images = {kind: draw(generator, [3], noise=kind) for kind in maps}
    assert torch.equal(images[noise], (expected * 127.5 + 127.5).round().clamp(0, 255).byte())
    assert sum(torch.equal(images[noise], image) for image in images.values()) == 1


def test_noise_is_read_from_text():
    assert [parse_noise(text) for text in ("own", "stored", "none", "12")] == ["own", "stored", "none", 12]
    assert (parse_noise(None), parse_noise(None, "numpy")) == ("own", "stored")
    for text in ("", "-1", "1.5", "Own", "9" * 19, "²"):
        with pytest.raises(ConfigError, match=r"^--noise .*: must be own, stored, none, or a seed from 0 to "):
            parse_noise(text)


@pytest.mark.parametrize(("seed", "rng", "most"), [(10**18, "torch", 10**18 - 1), (2**32, "numpy", 2**32 - 1)])
def test_seeds_have_an_end(seed, rng, most):
    with pytest.raises(ConfigError, match=f"^seed {seed}: must be from 0 to {most}"):
        latent(seed, 8, rng)
    check_seed(most, rng)


@pytest.mark.parametrize("noise", ["own", "stored"])
def test_a_file_of_latents_draws_the_same_image(generator, tmp_path, noise):
    """With its noise, and without the stored one."""
    given = of_seed(generator, 4, None, noise=noise)
    (tmp_path / "w.npz").write_bytes(latents_bytes(given))
    (found,) = read_latents(str(tmp_path / "w.npz"), generator).rows()
    assert bool(found.noise) == (noise == "own")
    assert torch.equal(paint_latents(generator, of_file(generator, found)), draw(generator, [4], noise=noise))
    assert torch.equal(
        paint_latents(generator, of_file(generator, found, psi=0.0, noise="none")),
        draw(generator, [11], psi=0.0, noise="none"),
    )


@pytest.mark.parametrize("shape", [(2, 4, 8), (2, 1, 8), (2, 8)])
def test_styles_may_be_one_for_all_layers(generator, shape):
    """StyleGAN2-ADA's projector writes [1, num_layers, L]; others write one w."""
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = parse_latents(npz(w=w), generator, "x")
    assert found.ws.shape == (2, 4, 8)
    assert np.array_equal(found.ws[1, -1], w[1] if len(shape) == 2 else w[1, -1])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PK\x03\x04 half of a file", "is not a .npz file with an array `w`"),
        (npz(z=np.zeros((1, 8))), "is not a .npz file with an array `w`"),
        (npz(w=np.array([{"a": 1}], dtype=object)), "is not a .npz file with an array `w`"),
        (npz(w=np.zeros((1, 18, 512))), r"has shape \[1, 18, 512\]; this model needs \[N, 4, 8\]"),
        (npz(w=np.zeros((0, 4, 8))), "has shape"),
        (npz(w=np.full((1, 4, 8), np.nan)), "has values that are not finite"),
        (npz(w=np.zeros((1, 4, 8)), noise0=np.zeros((1, 1, 4, 4))), "its noise is that of another model"),
    ],
)
def test_what_is_no_file_of_this_models_latents_is_one_line(generator, data, says):
    """An object array would need a pickle, which is never read."""
    with pytest.raises(ConfigError, match=rf"^--w x: .*{says}") as caught:
        parse_latents(data, generator, "--w x")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(generator, tmp_path):
    with pytest.raises(ConfigError, match=r"^--w .*w\.npz: there is no such file"):
        read_latents(str(tmp_path / "w.npz"), generator)


def test_the_bits_of_an_image_do_not_depend_on_the_others(generator):
    many = draw(generator, range(6))
    assert all(torch.equal(many[seed], draw(generator, [seed])[0]) for seed in range(6))


def test_noise_of_many_cells_goes_to_each_in_turn(generator):
    two = [of_seed(generator, seed, None) for seed in (1, 2)]
    joined = Latents(
        torch.cat([one.ws for one in two] * 2),
        tuple(torch.cat(maps) for maps in zip(*(one.noise for one in two), strict=True)),
    )
    images = paint_latents(generator, joined, batch=4)
    assert (images[:2].int() - draw(generator, [1, 2]).int()).abs().max() <= 1
    assert torch.equal(images[:2], images[2:])
    assert noise_of("own", None) is None


@pytest.mark.parametrize(("resolution", "threads"), [(64, 1), (128, 2)])
def test_small_images_are_drawn_by_one_thread(monkeypatch, resolution, threads):
    """Two sum in another order, so the bits would depend on the number of processors; afterwards there are as many as before."""
    generator = Generator(MODEL, resolution=resolution, channels=1).eval().requires_grad_(False)
    seen, forward = [], type(generator.synthesis).forward

    def spy(*arguments, **options):
        seen.append(torch.get_num_threads())
        return forward(*arguments, **options)

    monkeypatch.setattr(type(generator.synthesis), "forward", spy)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        draw(generator, [0, 1])
        assert (seen, torch.get_num_threads()) == ([threads] * 2, 2)
    finally:
        torch.set_num_threads(before)
