"""`stylegan project` and `stylegan edit`: what they print, and their exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from flows.cli.main import main
from stylegan.config.sections import ModelConfig
from stylegan.evaluation.directions import Direction, write_directions
from stylegan.evaluation.features.embedded import METADATA, FeatureFacts
from stylegan.networks.classifier import Classifier
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator

MODEL = ModelConfig(latent_size=8, mapping_layers=1, mapping_fmaps=8, fmap_base=64, fmap_max=8)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with an untrained model of two classes, its directions, a feature network, a picture."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    generator = Generator(MODEL, resolution=8, channels=1, num_labels=2)
    (tmp_path / "model" / "generator.safetensors").write_bytes(save_generator(generator, ("cat", "dog")))
    write_directions(str(tmp_path), [Direction("Smiling", np.eye(8, dtype=np.float32)[2], 0.5, 0.1)])
    facts = FeatureFacts(
        kind="rotation", resolution=8, channels=1, label_names=("a", "b"), accuracy=1, dataset_fingerprint=""
    )
    network = Classifier(resolution=8, channels=1, num_classes=2)
    (tmp_path / "net.safetensors").write_bytes(save(network.state_dict(), {METADATA: facts.model_dump_json()}))
    Image.new("RGB", (20, 10), "red").save(tmp_path / "red.png")
    return tmp_path


PROJECT = ("project", "model", "red.png", "--features", "net.safetensors", "--steps", "2", "--out", "found")


def test_a_projection_is_a_table_for_people_and_a_line_for_programs(place: Path, capsys) -> None:
    assert main([*PROJECT, "--label", "dog"]) == 0
    out, err = capsys.readouterr()
    head, row, *_, legend, end = out.splitlines()
    assert head.split() == ["distance", "PSNR", "w", "seconds"]
    assert row.startswith("red.png (dog)  ")
    assert " dB " in row
    assert "large residual: " in out
    assert "by rotation" in legend
    assert end == f"1 of 1 picture(s) projected: {place}/found/red"
    assert "red.png: 20x10 with 3 channel(s), converted as sharding does: the central square, 8x8, grey" in err
    assert main([*PROJECT, "--label", "dog", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["images"][0]["cached"]
    assert main([*PROJECT, "--label", "dog"]) == 0
    assert "(there already)" in capsys.readouterr().out


def test_a_bad_picture_is_one_line_and_the_exit_code(place: Path, capsys) -> None:
    (place / "red.png").write_bytes(b"none")
    assert main([*PROJECT]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == ["0 of 1 picture(s) projected"]
    assert [line for line in err.splitlines() if "red.png" in line] == ["red.png: not an image in a known format"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("project", "model"), "IMAGE is missing; give one or more pictures"),
        ((*PROJECT, "--label", "cow"), "--label cow: no such class; the classes are cat, dog"),
        ((*PROJECT, "--space", "z"), '--space. Choose from: "w", "w+"'),
        (("project", "model", "red.png"), "give --features URI"),
        (("edit", "model", "--attribute", "smile", "--directions", "."), "did you mean Smiling?"),
        (("edit", "model", "--attribute", "Smiling"), "has no run, which would have directions"),
        (("edit", "model", "--attribute", "a", "--strength", "x"), "--strength x: must be a range such as -3..3"),
        (("edit", "model", "--attribute", "a", "--w", "w.npz", "--seeds", "1"), "give one of the two"),
        (("edit", "model", "--attribute", "a", "--noise", "x"), "--noise x: must be own, stored, none, or a seed"),
    ],
)
def test_a_mistake_is_one_line(place: Path, capsys, monkeypatch, arguments: tuple[str, ...], said: str) -> None:
    monkeypatch.setenv("STYLEGAN_WEIGHTS", str(place / "weights"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(place / "hub"))
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_an_edit_takes_strengths_below_zero(place: Path, capsys) -> None:
    edit = ("edit", "model", "--attribute", "Smiling", "--directions", ".", "--seeds", "0-1", "--out", "strip.png")
    assert main([*edit, "--strength", "-2..2"]) == 0
    said = "2 image(s) of class cat with Smiling at 5 strengths from -2 to 2 in strip.png\n"
    assert capsys.readouterr().out == said
    assert main([*edit, "--strength=-1,1", "--label", "dog", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["strengths"], record["label"], record["attribute"]) == ([-1, 1], "dog", "Smiling")
