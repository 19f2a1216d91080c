"""Small generators of the architecture resnet, settled as those of a checkpoint, and a network that sees their images."""

from pathlib import Path

import torch
from safetensors.torch import save

from stylegan.config.sections import ModelConfig, Norm
from stylegan.evaluation.features.embedded import METADATA, FeatureFacts
from stylegan.networks.classifier import Classifier
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


@torch.no_grad()
def write_features(folder: Path, generator: Generator, *names: str) -> str:
    """Write an untrained classifier that finds its first class in half of the images, and return the file's path."""
    torch.manual_seed(0)
    channels = generator.channels
    network = Classifier(resolution=32, channels=channels, num_classes=len(names)).eval()
    network.head.weight[0] *= 1000
    network.head.weight[1:] = 0
    network.head.bias.zero_()
    labels = torch.arange(64) % generator.num_labels if generator.num_labels else None
    network.head.bias[0] = -network(generator(torch.randn(64, 8), labels))[:, 0].median()
    facts = FeatureFacts(
        kind="classifier", resolution=32, channels=channels, label_names=names, accuracy=0.5, dataset_fingerprint=""
    )
    path = folder / "features.safetensors"
    path.write_bytes(save(network.state_dict(), {METADATA: facts.model_dump_json()}))
    return str(path)
