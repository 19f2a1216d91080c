"""Small models on disk, as a server finds them."""

import torch
from resnets import write_resnet

from stylegan.config.sections import ModelConfig
from stylegan.errors import ConfigError
from stylegan.evaluation.directions import Direction, write_directions
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator
from stylegan.serving.models import Found

LABELS = ("cat", "dog", "owl")


def no_means(found, generator):
    raise ConfigError("there is no network to compare images with")


def write_model(folder, *, seed=0, labels=LABELS, resolution=16):
    """Write a generator with random weights, visible noise and a direction; return what it is found as."""
    torch.manual_seed(seed)
    model = ModelConfig(
        latent_size=6, mapping_layers=2, mapping_fmaps=8, fmap_base=64, fmap_max=8, conditional=bool(labels)
    )
    generator = Generator(model, resolution=resolution, channels=3, num_labels=len(labels))
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "noise_weight" in name:  # zero at the start of training
                parameter.fill_(0.3)
        generator.w_avg.normal_()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "generator.safetensors").write_bytes(save_generator(generator, labels))
    normal = torch.nn.functional.normalize(torch.randn(6), dim=0).numpy()
    write_directions(str(folder), [Direction("smile", normal, 0.5, 0.1)])
    return Found("digits", str(seed + 1), "champion", "digits-1", str(folder), str(folder))


def write_served_resnet(folder, *, version="1", labels=LABELS):
    """Write a 32x32 resnet; return what it is found as."""
    uri = write_resnet(folder, *labels)
    return Found("photos", version, "champion", "photos-1", uri, uri)
