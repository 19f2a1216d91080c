"""Strips of edited images: rows, columns, what moves, and what is said where there are no directions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from resnets import write_resnet

from stylegan.config.sections import ModelConfig
from stylegan.drawing.directions import apply
from stylegan.drawing.draw import draw, of_seed, paint
from stylegan.drawing.latents import Latents, latents_bytes
from stylegan.errors import ConfigError
from stylegan.evaluation.directions import DIRECTIONS, Direction, write_directions
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator
from stylegan.verbs import edit as verb
from stylegan.verbs.edit import draw_edits, edit, parse_strengths

MODEL = ModelConfig(latent_size=8, mapping_layers=1, mapping_fmaps=8, fmap_base=64, fmap_max=8)
SMILE = Direction("Smiling", np.eye(8, dtype=np.float32)[2], 0.5, 0.1)


def untrained(num_labels: int = 0, **model: object) -> Generator:
    torch.manual_seed(0)
    return Generator(MODEL.model_copy(update=model), resolution=8, channels=3, num_labels=num_labels)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with an untrained generator and the directions of an evaluation."""
    (tmp_path / "generator.safetensors").write_bytes(save_generator(untrained(2), ("cat", "dog")))
    write_directions(str(tmp_path), [SMILE])
    return tmp_path


def strip(place: Path, **options: object):
    given = {"attribute": "Smiling", "strengths": [-2, 0, 2], "seeds": [7, 9], "directions": str(place)}
    record = edit(None, str(place), **given | {"out": str(place / "strip.png")} | options)
    return record, Image.open(place / "strip.png")


def test_a_strip_has_a_row_for_each_seed_and_a_column_for_each_strength(place: Path) -> None:
    record, sheet = strip(place, label="dog", psi=0.5)
    assert (record.strengths, record.rows, record.label) == ((-2, 0, 2), ("seed 7", "seed 9"), "dog")
    assert (record.scale, record.entropy) == (0.5, 0.1)
    pixels = np.asarray(sheet)
    left, bottom = pixels.shape[1] - 3 * 67, pixels.shape[0] - 24  # the name of the attribute is below
    for row, seed in enumerate((7, 9)):
        middle = draw(untrained(2), [seed], labels=[1], psi=0.5)[0].numpy()
        corner = pixels[bottom - (2 - row) * 67 :, left + 67 :][:64:8, :64:8]
        assert np.array_equal(corner.transpose(2, 0, 1), middle)


def test_an_edit_moves_w_and_holds_the_noise() -> None:
    generator = untrained()
    latents = of_seed(generator, 3, None)
    low, same, high = draw_edits(generator, latents, SMILE, [-1, 0, 1])
    assert torch.equal(same, draw(generator, [3])[0])
    moved = Latents(apply(latents.ws, SMILE, 1), latents.noise)
    assert torch.equal(high, paint(generator, moved.ws, lambda layer, *_: latents.noise[layer])[0])
    assert not torch.equal(low, high)


def test_latents_of_a_file_are_edited(place: Path) -> None:
    latents = of_seed(untrained(2), 7, 1)
    (place / "smith").mkdir()
    (place / "smith" / "w.npz").write_bytes(latents_bytes(latents))
    from_file, sheet = strip(place, w=[str(place / "smith" / "w.npz")], seeds=())
    pixels = np.asarray(sheet)[:-24, -3 * 67 :]
    _, sheet = strip(place, seeds=[7], label="1")
    assert np.array_equal(pixels, np.asarray(sheet)[:-24, -3 * 67 :])
    assert (from_file.rows, from_file.label) == (("smith",), "")


@pytest.mark.parametrize(
    ("text", "strengths"),
    [
        ("-3..3", [-3, -2, -1, 0, 1, 2, 3]),
        ("0..1.5", [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]),
        ("2..0", [2, 1, 0]),
        ("-2,0,.5", [-2, 0, 0.5]),
        ("4", [4]),
    ],
)
def test_strengths_are_ranges_and_lists(text: str, strengths: list[float]) -> None:
    assert parse_strengths(text) == strengths


@pytest.mark.parametrize("text", ["", "a", "1..", "..2", "1..2..3", "5..5", "-11..3", "1,,2", "nan", "inf..3", "1e3"])
def test_other_strengths_are_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a range such as -3..3 or a list such as -2,0,2, from -10 to 10"):
        parse_strengths(text)


def test_what_cannot_be_edited_is_one_line(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"--attribute smile: no such attribute; did you mean Smiling\?"):
        strip(place, attribute="smile")
    with pytest.raises(ConfigError, match=r"--label cow: no such class"):
        strip(place, label="cow")
    with pytest.raises(ConfigError, match=r"are too many for one grid"):
        strip(place, seeds=range(10_000), strengths=[1] * 64)
    (place / "generator.safetensors").write_bytes(save_generator(untrained(), ()))
    with pytest.raises(ConfigError, match=r"--label cat: this model is not class-conditional"):
        strip(place, label="cat")
    (place / "generator.safetensors").write_bytes(save_generator(untrained(styles=False), ()))
    with pytest.raises(ConfigError, match=r"has no styles to edit \(it was trained with model.styles: false\)$"):
        strip(place)
    write_resnet(place)
    with pytest.raises(ConfigError, match=r"has no styles to edit \(it was trained with model.architecture: resnet\)$"):
        strip(place)


def test_a_model_without_directions_says_how_to_get_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run, a run by other metrics, and a run from before they were kept."""
    with pytest.raises(
        ConfigError, match=r"has no run, .* evaluate .* --data IMAGES --metrics separability --out results"
    ):
        strip(place, directions=None)
    with pytest.raises(ConfigError, match=r"--directions .*empty: holds no directions.safetensors; "):
        strip(place, directions=str(place / "empty"))
    run = place / "runs" / "tiny-0123456789"
    run.mkdir(parents=True)
    found = verb.find_model(None, str(place))
    monkeypatch.setattr(verb, "find_model", lambda *_: verb.Model("tiny", "run", found.checkpoint_uri, str(run)))
    record = {"protocol": "", "dataset_fingerprint": "", "checkpoint_uri": "", "metrics": {}}
    (run / "report.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"was not evaluated with the metric separability; .* --metrics separability"):
        strip(place, directions=None)
    facts = {"Smiling": {"entropy_w": 0.1, "entropy_z": 0.2, "share": 0.5, "error": None}}
    (run / "report.json").write_text(json.dumps(record | {"attributes": facts}))
    with pytest.raises(ConfigError, match=rf"holds no {DIRECTIONS}; `.*evaluate {run}` fits the hyperplanes"):
        strip(place, directions=None)
    write_directions(str(run), [SMILE])
    assert strip(place, directions=None)[0].attribute == "Smiling"
