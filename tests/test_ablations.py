"""The configs of the paper's tables: each differs from config F in what its row says, and each of them trains."""

from pathlib import Path

import pytest
import torch

from stylegan.config.file import flatten, load
from stylegan.data.shardset import ShardSet
from stylegan.networks.discriminator import Discriminator
from stylegan.networks.generator import Generator
from stylegan.pipeline.keys import make_keys
from stylegan.training.schedule import stages
from stylegan.training.state import start_stage
from stylegan.training.step import discriminator_step, generator_step

FOLDER = Path(__file__).parents[1] / "configs/ablations"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
TINY = [
    "data.resolution=8",
    "training.start_resolution=8",
    "training.batch=4",
    "training.total_kimg=1",
    "ray.workers=1",
    "model.fmap_base=64",
    "model.fmap_max=8",
    "model.latent_size=8",
    "model.mapping_fmaps=8",
]
TRADITIONAL = {
    "model.styles": "false",
    "model.const_input": "false",
    "model.noise": "false",
    "model.pixel_norm": "true",
    "model.instance_norm": "false",
    "model.style_mixing_prob": "0.0",
}
NO_MIXING = {"model.style_mixing_prob": "0.0"}
TABLE_2 = {"evaluation.metrics": '["fid", "fid_mixing"]'}
# The differences from config F in the tables of Karras et al. 2019 (1: a to f, 2: mixing, 4: traditional and style).
DIFFERENCES = {
    "a": TRADITIONAL
    | {
        "model.mapping_layers": "0",
        "model.blur": "false",
        "training.start_resolution": "4",
        "training.total_kimg": "12000.0",
        "training.loss": "wgan",
        "training.r1_gamma": "0.0",
        "training.gp_weight": "10.0",
        "training.drift_weight": "0.001",
    },
    "b": TRADITIONAL | {"model.mapping_layers": "0"},
    "c": NO_MIXING | {"model.const_input": "false", "model.noise": "false"},
    "d": NO_MIXING | {"model.noise": "false"},
    "e": NO_MIXING,
    "f": {},
    "mixing-000": TABLE_2 | NO_MIXING,
    "mixing-050": TABLE_2 | {"model.style_mixing_prob": "0.5"},
    "mixing-090": TABLE_2,
    "mixing-100": TABLE_2 | {"model.style_mixing_prob": "1.0"},
    "traditional-0": TRADITIONAL | {"model.mapping_layers": "0"},
    "traditional-8": TRADITIONAL,
    "style-0": {"model.mapping_layers": "0"},
    "style-1": {"model.mapping_layers": "1"},
    "style-2": {"model.mapping_layers": "2"},
    "style-8": {},
}


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_every_row_of_the_tables_has_a_config():
    assert sorted(DIFFERENCES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_row_differs_from_the_published_config_in_what_the_table_says(name):
    common = flatten(load(FOLDER / "../ffhq-1024.yaml"))
    found = flatten(load(FOLDER / f"{name}.yaml"))
    assert found.keys() == common.keys()
    assert {key: value for key, value in found.items() if value != common[key] and key != "name"} == DIFFERENCES[name]
    names = [load(path).name for path in FOLDER.glob("*.yaml")]
    assert len(set(names)) == len(names)  # each name is a model of its own in the registry


@pytest.mark.parametrize(
    ("name", "of_g", "of_d"),
    [
        ("a", 23_079_115, 23_087_249),  # ProGAN's table 2: 23.1 million each
        ("b", 23_079_115, 23_087_249),
        ("traditional-8", 23_079_115 + 2_101_248, 23_087_249),
        ("d", 26_219_627 - 5_088, 23_087_249),  # one noise weight for each feature map of each layer
        ("f", 26_219_627, 23_087_249),
        ("style-0", 26_219_627 - 2_101_248, 23_087_249),
        ("style-2", 26_219_627 - 2_101_248 * 6 // 8, 23_087_249),
    ],
)
def test_parameters_at_1024_are_the_published_ones(name, of_g, of_d):
    model = load(FOLDER / f"{name}.yaml").model
    with torch.device("meta"):
        assert num_parameters(Generator(model, resolution=1024, channels=3)) == of_g
        assert num_parameters(Discriminator(model, resolution=1024, channels=3)) == of_d


@pytest.mark.parametrize(
    ("name", "twin"), [("mixing-000", "e"), ("mixing-090", "f"), ("traditional-0", "b"), ("style-8", "f")]
)
def test_rows_of_two_tables_are_trained_once(name, twin):
    """Their stages have the same keys, so the second run reads them from storage."""
    shards = ShardSet(uri="x", fingerprint="f", num_images=70_000, resolutions=(1024,), label_names=(), num_rejected=0)
    one, other = (make_keys(load(FOLDER / f"{row}.yaml"), shards).stages for row in (name, twin))
    assert one == other


def test_lengths_of_training():
    """ProGAN has nine stages from 4x4 and 12,000 kimg; all others have eight from 8x8 and 25,000."""
    for name in NAMES:
        plan = stages(load(FOLDER / f"{name}.yaml"))
        first, number, kimg = (4, 9, 12_000) if name == "a" else (8, 8, 25_000)
        assert (plan[0].resolution, len(plan)) == (first, number)
        assert abs(plan[-1].end_nimg / 1000 - kimg) < 1


@pytest.fixture(params=NAMES)
def tiny(request):
    """A row at 8x8 with a few channels: its name, config, stage, and state after one step of each player."""
    config = load(FOLDER / f"{request.param}.yaml", TINY)
    stage = stages(config)[0]
    state = start_stage(config, stage, num_labels=0, previous=None)
    reals = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    discriminator_step(state, config, stage, reals, None)
    generator_step(state, config, stage, None)
    return request.param, config, stage, state


def test_every_row_trains_and_has_the_parts_of_its_row(tiny):
    name, config, stage, state = tiny
    fresh = start_stage(config, stage, num_labels=0, previous=None)
    for player in ("G", "D"):
        now, before = (dict(getattr(one, player).named_parameters()) for one in (state, fresh))
        assert all(value.isfinite().all() for value in now.values())
        # All weights learn, except the RGB layers of the old resolution, which only a fade uses.
        still = [key for key, value in now.items() if torch.equal(value, before[key])]
        assert [key for key in still if not key.startswith(("from_rgb.0", "synthesis.to_rgb.0"))] == []
    assert all(value.isfinite() for value in state.sums.values())
    assert ("loss/gp" in state.sums, "loss/r1" in state.sums) == ((True, False) if name == "a" else (False, True))
    parts = {key for key, _ in state.G.named_parameters()}
    traditional = name in ("a", "b") or name.startswith("traditional")
    assert any("noise_weight" in key for key in parts) == (not traditional and name not in ("c", "d"))
    assert any(".style." in key for key in parts) == (not traditional)
    assert ("synthesis.layers.0.source.const" in parts) == (not traditional and name != "c")
    assert len(state.G.mapping.layers) == config.model.mapping_layers
    assert state.D.blocks[0].conv0.blurs == state.G.synthesis.layers[2].blurs == (name != "a")
