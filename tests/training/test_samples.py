"""Sample grids: the fixed latents, the pictures drawn from them, and the animation of a run."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from stylegan.data.loading.loader import ImageTable
from stylegan.errors import StepError
from stylegan.images import png_bytes
from stylegan.training import samples
from stylegan.training.background import Background
from stylegan.training.samples import _write_grid, draw_growth, read_film, sample_latents, write_reals, write_samples
from stylegan.training.state import start_stage


def test_latents_depend_on_the_seed_alone_and_columns_are_classes(job):
    config = job(4, "one").config
    z, labels = sample_latents(config, ("a", "b"))
    assert z.shape == (4, 8)
    assert labels.tolist() == [0, 1, 0, 1]
    assert torch.equal(z, sample_latents(config, ())[0])
    assert sample_latents(config, ())[1] is None


def test_grid_shows_the_weights_at_the_call_and_is_reproducible(job):
    """Weights that change after the call change nothing, and the same weights give the same bytes again."""
    stage = job(4, "one")
    path = Path(stage.uri, "samples", "000000.png")
    state = start_stage(stage.config, stage.stage, num_labels=2, previous=None)
    pictures = []
    for change in (1.0, 3.0):
        before = {name: value.clone() for name, value in state.G_ema.state_dict().items()}
        with Background() as background:
            write_samples(stage, state, background)
            with torch.no_grad():
                state.G_ema.synthesis.to_rgb[-1].bias.add_(change)
        state.G_ema.load_state_dict(before)
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1]
    assert Image.open(path).width == 3 + 2 * 67


def sheet(uri):
    """The cells of a 2x2 grid, row by row, as the 4x4 images that were enlarged."""
    pixels = np.asarray(Image.open(uri))
    top = pixels.shape[0] - 2 * 67
    return [pixels[y : y + 64 : 16, x : x + 64 : 16] for y in (top, top + 67) for x in (3, 70)]


@pytest.mark.parametrize(
    ("conditional", "labels", "expected"),
    [
        (False, [-1] * 6, [0, 1, 2, 3]),
        (True, [1, 1, 1, 0, 0, 0], [3, 0, 4, 1]),
        (True, [1, 1, 1, 1, 0, 1], [4, 0, None, 1]),
    ],
)
def test_reals_are_shown_as_they_are_in_the_columns_of_the_samples(job, conditional, labels, expected):
    """A class with too few images leaves cells empty."""
    stage = job(4, "one", model={"conditional": conditional})
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), dtype=np.uint8)
    write_reals(stage, ImageTable(images, np.array(labels)))
    for cell, number in zip(sheet(Path(stage.uri, "samples", "reals.png")), expected, strict=True):
        assert (cell == (230 if number is None else images[number].transpose(1, 2, 0))).all()


def test_grids_of_all_stages_have_one_size(job):
    """So that one sees a run grow; class names are above the columns."""
    sizes = set()
    for resolution in (4, 8):
        stage = job(resolution, "one")
        state = start_stage(stage.config, stage.stage, num_labels=2, previous=None)
        with Background() as background:
            write_samples(stage, state, background)
        images = np.zeros((4, 3, resolution, resolution), np.uint8)
        write_reals(stage, ImageTable(images, np.array([0, 1, 0, 1])))
        for path in Path(stage.uri, "samples").iterdir():
            picture = Image.open(path)
            sizes.add(picture.size)
            head = np.asarray(picture.crop((0, 0, picture.width, picture.height - 2 * 67)))
            assert [(half < 150).any() for half in np.array_split(head, 2, axis=1)] == [True, True]
    assert len(sizes) == 1


def stage_folder(folder, grids):
    """Make the folder of a stage with grids of one shade, by kimg."""
    (folder / "samples").mkdir(parents=True)
    for kimg, shade in grids.items():
        (folder / "samples" / f"{kimg:06d}.png").write_bytes(png_bytes(Image.new("L", (90, 60), shade)))
    (folder / "samples" / "reals.png").write_bytes(png_bytes(Image.new("L", (90, 60), 255)))
    return str(folder)


def shades(animation):
    with Image.open(io.BytesIO(animation)) as image:
        frames = [frame.convert("L").copy() for frame in ImageSequence.Iterator(image)]
    return [round(frame.getpixel((5, 5)) / 10) * 10 for frame in frames], frames[0].size


def test_a_run_grows_stage_by_stage(tmp_path, monkeypatch):
    """Grids are chosen evenly from each stage, up to its last one, and the same grids give the same bytes."""
    low = stage_folder(tmp_path / "low", {5: 10, 6: 20})
    high = stage_folder(tmp_path / "high", {kimg: 30 + 10 * kimg for kimg in range(11)})
    animation = draw_growth({4: low, 8: high})
    assert animation == draw_growth({4: low, 8: high})
    assert shades(animation) == ([10, 20, *range(30, 140, 10)], (90, 84))
    monkeypatch.setattr(samples, "FRAMES", 6)
    monkeypatch.setattr(samples, "FRAME_SIDE", 45)
    assert shades(draw_growth({4: low, 8: high})) == ([10, 20, 30, 80, 130], (45, 54))


def test_a_grid_that_is_damaged_is_left_out_of_the_animation(tmp_path, caplog):
    folder = stage_folder(tmp_path / "stage", {1: 100, 2: 0, 3: 200})
    (tmp_path / "stage" / "samples" / "000002.png").write_bytes(b"none")
    assert shades(draw_growth({4: folder}))[0] == [100, 200]
    assert "000002.png: is not a picture" in caplog.text
    with pytest.raises(StepError, match="hold no sample grid"):
        draw_growth({4: str(tmp_path / "gone")})


def draw_grids(job, resolution, kimgs):
    """Write a sample grid for each kimg whose images have the shade of the kimg and their number; return its folder."""
    stage = job(resolution, "one")
    for kimg in kimgs:
        shades = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1) + 10 * kimg
        _write_grid(stage, shades.expand(4, 3, resolution, resolution), f"samples/{kimg:06d}.png")
    return stage.uri


def test_a_film_shows_the_same_latents_over_the_whole_run(job):
    """Each stage has its share of the frames, up to its last one; the images have their own pixels."""
    low, high = draw_grids(job, 4, range(1, 10)), draw_grids(job, 8, range(10, 13))
    film = read_film(job(8, "one").config, {4: low, 8: high})
    assert [(frame.resolution, frame.kimg) for frame in film] == [
        *((4, kimg) for kimg in (1, 2, 3, 4, 6, 7, 8, 9)),
        *((8, kimg) for kimg in (10, 11, 12)),
    ]
    for frame in film:
        images = [Image.open(io.BytesIO(png)) for png in frame.images]
        assert [image.size for image in images] == [(frame.resolution, frame.resolution)] * 2
        assert [image.getpixel((0, 0))[0] for image in images] == [10 * frame.kimg, 10 * frame.kimg + 1]


def test_a_film_goes_without_grids_that_are_damaged_or_of_another_size(job):
    """A run with another snapshots.grid may have drawn those of a stage that both have."""
    folder = draw_grids(job, 4, [1, 2, 3])
    Path(folder, "samples", "000002.png").write_bytes(b"no picture")
    config = job(4, "one").config
    assert [frame.kimg for frame in read_film(config, {4: folder})] == [1, 3]
    larger = config.model_copy(update={"snapshots": config.snapshots.model_copy(update={"grid": 3})})
    assert read_film(larger, {4: folder}) == []
    assert read_film(config, {4: f"{folder}-gone"}) == []
