"""Networks are written as bytes and a generator is read back; other bytes are refused with a message of one line."""

import json

import pytest
import torch
from safetensors import torch as safetensors_torch

from stylegan.config.sections import ModelConfig
from stylegan.errors import DamagedError, StepError
from stylegan.networks.discriminator import Discriminator
from stylegan.networks.generator import Generator
from stylegan.networks.weights import load_generator, save_discriminator, save_generator

SMALL = ModelConfig(latent_size=8, mapping_fmaps=8, mapping_layers=2, fmap_max=4, fmap_base=64)


def _generator(num_labels: int = 0) -> Generator:
    torch.manual_seed(0)
    generator = Generator(SMALL, resolution=16, channels=1, num_labels=num_labels)
    generator.w_avg += torch.randn(8)
    return generator


@pytest.mark.parametrize("num_labels", [0, 2])
def test_round_trip(num_labels: int) -> None:
    """Check that weights, buffers, sizes and label names are restored, and that the loaded network is for inference."""
    generator = _generator(num_labels)
    loaded, names = load_generator(save_generator(generator, ["cat", "dog"]))
    assert names == ("cat", "dog")
    assert (loaded.model, loaded.resolution, loaded.channels, loaded.num_labels) == (SMALL, 16, 1, num_labels)
    assert loaded.state_dict().keys() == generator.state_dict().keys()
    assert all(torch.equal(value, generator.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    z, labels = torch.randn(2, 8), torch.tensor([0, 1])
    assert torch.equal(loaded(z, labels, truncation_psi=0.7), generator(z, labels, truncation_psi=0.7))


@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("num_labels", [0, 2])
def test_a_discriminator_can_be_rebuilt_from_its_file(num_labels: int, rotation: bool) -> None:
    """Check that the file contains weights, sizes, label names and whether there is a second head."""
    torch.manual_seed(0)
    discriminator = Discriminator(SMALL, resolution=16, channels=3, num_labels=num_labels, rotation=rotation)
    data = save_discriminator(discriminator, ["cat", "dog"])
    header = _header(data, "stylegan.discriminator")
    assert header.pop("label_names") == ["cat", "dog"]
    rebuilt = Discriminator(ModelConfig.model_validate(header.pop("model")), **header)
    rebuilt.load_state_dict(safetensors_torch.load(data))
    assert (rebuilt.model, rebuilt.resolution, rebuilt.channels, rebuilt.num_labels) == (SMALL, 16, 3, num_labels)
    assert (rebuilt.rotation is not None) == rotation
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 1, 0])
    assert torch.equal(rebuilt(images, labels), discriminator(images, labels))
    assert data == save_discriminator(rebuilt, ["cat", "dog"])


def test_a_discriminator_is_not_mistaken_for_a_generator() -> None:
    """Check that the header says which network a file contains."""
    discriminator = Discriminator(SMALL, resolution=16, channels=1)
    with pytest.raises(StepError, match=r"^generator: these [^\n]*give a generator.safetensors"):
        load_generator(save_discriminator(discriminator, []))


def test_loaded_generator_can_grow_and_be_averaged() -> None:
    """Check that the loaded tensors are ordinary ones: they can be overwritten, and new layers can be added."""
    loaded, _ = load_generator(save_generator(_generator(), []))
    loaded.update_w_avg(torch.ones(8), 0.0)
    loaded.grow()
    assert (loaded.w_avg == 1).all()
    assert loaded(torch.randn(2, 8)).shape == (2, 1, 32, 32)


def test_equal_generators_give_equal_bytes() -> None:
    """Check that the bytes can be compared and hashed."""
    data = save_generator(_generator(), ["a", "b", "c"])
    assert data == save_generator(_generator(), ["a", "b", "c"])
    assert data == save_generator(load_generator(data)[0], ["a", "b", "c"])


def test_loading_draws_no_random_numbers() -> None:
    """Check that a loop that loads a generator continues with the same random numbers."""
    data = save_generator(_generator(), [])
    state = torch.get_rng_state()
    load_generator(data)
    assert torch.equal(torch.get_rng_state(), state)


def test_label_names_must_match_a_conditional_generator() -> None:
    """Check that one name for two classes is refused."""
    with pytest.raises(StepError, match=r"^label_names: 1 names for a generator with 2 classes[^\n]*$"):
        save_generator(_generator(2), ["cat"])


def _header(data: bytes, key: str) -> dict:
    """Read the header of a network's file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"][key])


def _with_header(data: bytes, **changes: object) -> bytes:
    """Return the same tensors with a changed header."""
    header = _header(data, "stylegan.generator")
    return safetensors_torch.save(
        safetensors_torch.load(data), metadata={"stylegan.generator": json.dumps(header | changes)}
    )


def _damaged() -> dict[str, bytes]:
    """Return files that are not a generator's, by their damage."""
    data = save_generator(_generator(), [])
    return {
        "empty": b"",
        "text": b"<html>404 Not Found</html>" * 20,
        "cut short": data[: len(data) // 2],
        "cut in the header": data[:100],
        "header flipped": data[:8] + b"x" + data[9:],
        "other safetensors": safetensors_torch.save({"a": torch.zeros(2)}),
        "other header": safetensors_torch.save({"a": torch.zeros(2)}, metadata={"stylegan.generator": "[]"}),
        "other resolution": _with_header(data, resolution=32),
        "no resolution": _with_header(data, resolution=None),
        "unknown model key": _with_header(data, model={"depth": 3}),
        "broken json": safetensors_torch.save({}, metadata={"stylegan.generator": "{"}),
    }


@pytest.mark.parametrize("kind", _damaged())
def test_other_bytes_are_refused_in_one_line(kind: str) -> None:
    """Check that the message is one line that says what to give instead, whatever is wrong with the bytes."""
    with pytest.raises(StepError) as caught:
        load_generator(_damaged()[kind])
    message = str(caught.value)
    assert message.startswith("generator: these ")
    assert "\n" not in message
    assert "give a generator.safetensors" in message


def test_a_lack_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that nobody is told to delete a whole file because the machine is full."""

    def fail(_data: bytes) -> None:
        raise MemoryError("full")

    data = save_generator(_generator(), [])
    monkeypatch.setattr(safetensors_torch, "load", fail)
    with pytest.raises(MemoryError, match="full"):
        load_generator(data)


def test_loaded_weights_have_the_memory_format_of_fresh_ones() -> None:
    """Check that loading restores memory formats, which a file does not contain."""
    generator = _generator()
    loaded = load_generator(save_generator(generator, ()))[0]
    assert [p.stride() for p in loaded.parameters()] == [p.stride() for p in generator.parameters()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    """Check that a file whose pictures would be black is named, with the weight."""
    generator = _generator()
    generator.synthesis.to_rgb[0].weight.data.view(-1)[0] = value  # type: ignore[union-attr]
    with pytest.raises(DamagedError, match=r"^x: [^\n]*to_rgb.0.weight has values that are not finite[^\n]*delete"):
        load_generator(save_generator(generator, []), "x")
