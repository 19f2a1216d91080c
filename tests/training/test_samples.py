"""Sample grids: the fixed latents and the pictures drawn from them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stylegan.training.background import Background
from stylegan.training.samples import MIN_CELL, sample_latents, write_reals, write_samples
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
    assert Image.open(path).size == (2 * MIN_CELL, 2 * MIN_CELL)


def test_reals_are_shown_as_they_are(job):
    stage = job(4, "one")
    images = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_reals(stage, images)
    sheet = np.asarray(Image.open(Path(stage.uri, "samples", "reals.png")))
    cell = sheet[MIN_CELL:, :MIN_CELL][:: MIN_CELL // 4, :: MIN_CELL // 4]
    assert (cell == images[2].permute(1, 2, 0).numpy()).all()
