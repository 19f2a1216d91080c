"""The figures of the paper, of small generators: each shows what it says."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from resnets import write_resnet

from stylegan.config.sections import ModelConfig
from stylegan.drawing.draw import draw
from stylegan.drawing.figures import (
    DESTINATIONS,
    FIGURES,
    PSIS,
    SOURCES,
    TRUNCATED,
    VARIED,
    WALK,
    FigureRequest,
    draw_figure,
    draw_figures,
    film_frames,
    tiles,
)
from stylegan.images import to_uint8
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator

MODEL = ModelConfig(latent_size=8, mapping_layers=2, mapping_fmaps=8, fmap_base=64, fmap_max=8)


def make(resolution=16, num_labels=0, **model):
    torch.manual_seed(0)
    generator = Generator(MODEL.model_copy(update=model), resolution=resolution, channels=3, num_labels=num_labels)
    with torch.no_grad():
        for layer in generator.synthesis.layers:
            if layer.noise_weight is not None:
                layer.noise_weight.fill_(0.3)
        generator.w_avg.normal_()
    return generator.eval().requires_grad_(False)


@pytest.fixture
def stored(tmp_path):
    """stored(generator): the folder of a checkpoint with this generator."""

    def store(generator, name="model"):
        (tmp_path / name).mkdir()
        names = [str(number) for number in range(generator.num_labels)]
        (tmp_path / name / "generator.safetensors").write_bytes(save_generator(generator, names))
        return str(tmp_path / name)

    return store


def cells(png, columns, side=16):
    """The images [rows, columns, C, side, side] of a figure whose images of at most 64 pixels are drawn at 64."""
    sheet = np.asarray(Image.open(io.BytesIO(png)))
    rows, left = sheet.shape[0] // 67, sheet.shape[1] - columns * 67
    body = sheet[sheet.shape[0] - rows * 67 :, left:].reshape(rows, 67, columns, 67, 3)
    step = 64 // side
    return body[:, :64:step, :, :64:step].transpose(0, 2, 4, 1, 3)


def of(generator, seed, layers_of=None, layers=(), label=None, psi=None):
    """The image of a seed with stored noise, some layers from another seed."""

    def ws(seed, label):
        z = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))
        labels = None if label is None else torch.tensor([label])
        w = generator.mapping(z, labels)[:, None].repeat(1, generator.num_layers, 1)
        return generator.truncate(w, psi=psi, cutoff=8)

    mixed = ws(seed, label)
    for layer in layers:
        mixed[:, layer] = ws(layers_of, label)[:, layer]
    return to_uint8(generator.synthesis(mixed))[0].numpy()


def close(a, b):
    """Whether two images are the same, but for the last bit of batches of another size."""
    return np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_mixing_has_the_papers_layout(stored):
    """Sources above, destinations on the left; the first three rows take coarse styles, two middle ones, one fine ones."""
    generator = make()
    sheet = cells(draw_figure(FigureRequest("mixing", stored(generator))), 6)
    assert sheet.shape[:2] == (7, 6)
    assert close(sheet[0, 2], of(generator, SOURCES[1]))
    assert close(sheet[6, 0], of(generator, DESTINATIONS[5]))
    for row, layers in ((1, (0, 1)), (3, (0, 1)), (4, (2, 3)), (5, (2, 3)), (6, (4, 5))):
        expected = of(generator, DESTINATIONS[row - 1], SOURCES[4], layers)
        assert close(sheet[row, 5], expected)
        assert not close(sheet[row, 5], of(generator, DESTINATIONS[row - 1]))


def test_noise_shows_other_draws_and_where_they_differ(stored):
    generator = make()
    sheet = cells(draw_figure(FigureRequest("noise", stored(generator))), 6)
    assert sheet.shape[:2] == (2, 6)
    assert close(sheet[1, 0], of(generator, VARIED[1]))
    assert len({image.tobytes() for image in sheet[0]}) == 6
    deviation = sheet[0, 5].astype(int)
    assert np.array_equal(deviation[0], deviation[2])  # grey
    assert 10 < deviation.mean() < 250


def test_noise_layers_has_all_none_fine_and_coarse_noise(stored):
    generator = make()
    sheet = cells(draw_figure(FigureRequest("noise_layers", stored(generator))), 4)
    assert close(sheet[0, 0], of(generator, 1967))
    silent = make()
    for index in range(6):
        silent.synthesis.get_buffer(f"noise{index}").zero_()
    assert close(sheet[0, 1], of(silent, 1967))
    for index in (0, 1, 2, 3):
        silent.synthesis.get_buffer(f"noise{index}").copy_(generator.synthesis.get_buffer(f"noise{index}"))
    assert close(sheet[0, 3], of(silent, 1967))


def test_psi_goes_from_an_image_to_its_opposite(stored):
    """At 0 both rows have the average image."""
    generator = make()
    sheet = cells(draw_figure(FigureRequest("psi", stored(generator))), len(PSIS))
    for column, psi in enumerate(PSIS):
        assert close(sheet[1, column], of(generator, TRUNCATED[1], psi=psi))
    assert close(sheet[0, 3], sheet[1, 3])


def test_stages_shows_the_same_latents_of_each_stage(stored):
    low, high = make(8), make(16)
    request = FigureRequest("stages", stored(high), ((8, stored(low, "low")), (16, stored(high, "high"))))
    sheet = cells(draw_figure(request), 2)
    assert sheet.shape[:2] == (6, 2)
    assert np.array_equal(sheet[3, 1], draw(high, [3])[0])
    assert np.array_equal(sheet[3, 0][:, ::2, ::2], draw(low, [3])[0])


def test_classes_come_in_turn_or_are_one(stored):
    generator = make(num_labels=3)
    uri = stored(generator)
    sheet = cells(draw_figure(FigureRequest("mixing", uri)), 6)
    assert close(sheet[0, 5], of(generator, SOURCES[4], label=1))
    sheet = cells(draw_figure(FigureRequest("mixing", uri, label=2)), 6)
    assert close(sheet[0, 5], of(generator, SOURCES[4], label=2))


def test_numpy_latents_are_those_of_the_official_figures(stored):
    generator = make()
    sheet = cells(draw_figure(FigureRequest("mixing", stored(generator), rng="numpy")), 6)
    z = torch.from_numpy(np.random.RandomState(639).randn(1, 8)).float()
    assert close(sheet[0, 1], to_uint8(generator(z))[0].numpy())


def test_the_walk_ends_where_it_began_and_nothing_flickers(stored):
    with Image.open(io.BytesIO(draw_figure(FigureRequest(WALK, stored(make()))))) as film:
        frames = []
        for number in range(film.n_frames):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB")).astype(float))
    assert frames[0].shape == (128, 128, 3)
    steps = [np.abs(a - b).mean() for a, b in zip(frames, [*frames[1:], frames[0]], strict=True)]
    far = np.abs(frames[0] - frames[len(frames) // 2]).mean()
    assert max(steps) < far / 2


def test_figures_that_mean_nothing_for_a_model_are_skipped_with_the_reason(stored, tmp_path):
    uri = stored(make(styles=False, noise=False, const_input=False))
    drawn, skipped = draw_figures((*FIGURES, WALK), FigureRequest("", uri), str(tmp_path / "out"))
    assert set(drawn) == {"psi", "walk"}
    assert skipped == {
        "mixing": "this model has no styles (model.styles: false)",
        "noise": "this model has no noise (model.noise: false)",
        "noise_layers": "this model has no noise (model.noise: false)",
        "stages": "needs the ends of two stages at least; storage has none, or the model is of no run",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"psi.png", "walk.webp"}


def test_of_a_resnet_the_walk_alone_means_something(tmp_path):
    request = FigureRequest("", write_resnet(tmp_path / "model", "a", "b", "c"))
    drawn, skipped = draw_figures((*FIGURES, WALK), request, str(tmp_path / "out"))
    assert set(drawn) == {"walk"}
    assert skipped == {
        "mixing": "this model has no styles (model.architecture: resnet)",
        "noise": "this model has no noise (model.architecture: resnet)",
        "noise_layers": "this model has no noise (model.architecture: resnet)",
        "psi": "this model has no w to truncate (model.architecture: resnet)",
        "stages": "this model has one stage (model.architecture: resnet)",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"walk.webp"}


@pytest.mark.parametrize("name", [*FIGURES, WALK])
def test_equal_requests_draw_equal_bytes(stored, name):
    uri = stored(make(8))
    request = FigureRequest(name, uri, ((8, uri), (8, uri)))
    assert draw_figure(request) == draw_figure(request)


def test_large_images_are_averaged_down_for_a_page(stored):
    generator = make(32)
    uri = stored(generator)
    whole = draw_figure(FigureRequest("psi", uri))
    small = cells(draw_figure(FigureRequest("psi", uri, side=16)), len(PSIS))
    expected = cells(whole, len(PSIS), 32).astype(float).reshape(2, 6, 3, 16, 2, 16, 2).mean((4, 6))
    assert np.abs(small - expected).max() <= 0.51


def test_frames_do_not_depend_on_how_many_are_drawn_at_a_time():
    def images(cell, ws):
        return (ws[:, :1, :1, None] + cell).expand(-1, 1, 2, 2).byte()

    def walk(position):
        return torch.full((2, 1, 1), 10 * position)

    films = [
        [
            frame.tobytes()
            for frame in film_frames(images, walk, num_keys=3, count=7, columns=2, cell_side=2, at_once=at_once)
        ]
        for at_once in (1, 3, 7)
    ]
    assert films[0] == films[1] == films[2]
    assert len(films[0]) == 7


def test_tiles_lie_row_by_row():
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    sheet = np.asarray(tiles(images, 3, cell=4))
    assert sheet.shape == (8, 12)
    assert sheet[::4, ::4].tolist() == [[0, 1, 2], [3, 4, 5]]
