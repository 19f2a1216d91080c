"""Small generators of the architecture resnet, whose statistics are settled as those of a checkpoint are."""

from pathlib import Path

import torch

from stylegan.config.sections import ModelConfig, Norm
from stylegan.networks.generator import Generator
from stylegan.networks.normalisation import of_batch, settle
from stylegan.networks.weights import save_generator


def make_resnet(num_labels: int = 0, *, channels: int = 3, norm: Norm | None = None, seed: int = 0) -> Generator:
    """Return a 32x32 generator with a few channels, in evaluation mode, whose images differ visibly."""
    torch.manual_seed(seed)
    model = ModelConfig(architecture="resnet", latent_size=8, width=1 / 32, conditional=num_labels > 0, norm=norm)
    generator = Generator(model, resolution=32, channels=channels, num_labels=num_labels)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "norm" in name:  # classes are all alike at the start of training
                parameter += torch.randn_like(parameter) / 2
    z = torch.randn(64, 8)
    labels = torch.arange(64) % num_labels if num_labels else None
    settle(generator, of_batch(generator), lambda: generator(z, labels))
    return generator.eval().requires_grad_(False)


def write_resnet(folder: Path, *names: str, **options: object) -> str:
    """Write such a generator with these classes into the folder of a checkpoint, and return its URI."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = make_resnet(len(names), **options)  # type: ignore[arg-type]
    (folder / "generator.safetensors").write_bytes(save_generator(generator, names))
    return str(folder)
