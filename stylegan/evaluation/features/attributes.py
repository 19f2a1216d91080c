"""Classifiers of binary attributes for linear separability (Karras et al. 2019, appendix C), trained on labelled shards.

The architecture of the discriminator without minibatch standard deviation at up to 256x256, one network per attribute, Adam with a
learning rate of 1e-3, minibatches of 8, 150,000 images. The paper's attributes are the 40 of CelebA; here they are the attributes
of the shards or, where images have classes instead, "is of class k". Classifiers depend on the images alone, not on any generator,
and are kept under {root}/features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from stylegan import storage
from stylegan.config.sections import EvaluationConfig, ModelConfig
from stylegan.data.loading.loader import ImageTable, load_images
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.features.embedded import SMALLEST_SET, Pmap
from stylegan.evaluation.metrics.numerics import exact_float32, stream
from stylegan.evaluation.metrics.ppl import LARGEST_INPUT, average_down
from stylegan.images import to_float
from stylegan.networks.discriminator import Discriminator
from stylegan.progress import Progress
from stylegan.records import digest

VERSION = 1  # raise it whenever the training changes what comes out
BATCH = 8
LEARNING_RATE = 1e-3
MODEL = ModelConfig(mbstd_group=1)  # the paper's, whatever the run trains


class AttributeNet:
    """Trained classifiers, one for each attribute, from the bytes of their files."""

    def __init__(self, files: list[bytes], device: str = "cpu") -> None:
        self.networks = [_load(data).to(device) for data in files]

    @torch.no_grad()
    def attributes(self, images: Tensor) -> Tensor:
        """[N, A] logits, positive: has it, of float images [N, C, r, r] in [-1, 1]; above 256x256 they are averaged down, as in v1."""
        small = average_down(images)
        return torch.stack([network(small) for network in self.networks], dim=1)


def attribute_names(shards: ShardSet) -> tuple[str, ...]:
    """The attributes of a set: its own, or else its classes; none in an unlabelled set."""
    return shards.attribute_names or shards.label_names


def attribute_values(shards: ShardSet, table: ImageTable) -> np.ndarray:
    """[N, A] booleans: which image has which of the attributes `attribute_names(shards)`."""
    if shards.attribute_names:
        assert table.attributes is not None
        return table.attributes > 0
    return table.labels[:, None] == np.arange(len(shards.label_names))


def obtain_attributes(
    evaluation: EvaluationConfig, shards: ShardSet, *, root: str, device: str = "cpu", pmap: Pmap = map
) -> list[str]:
    """URIs of the classifiers, in the order of the attributes: from {root}/features, or trained now and kept there, one by one.

    Args:
        evaluation: its `attributes_kimg` and `seed` decide.
        pmap: trains them on workers.

    Raises:
        StepError, fit to be a reason for skipping: neither attributes nor classes, or too few images to train on.
    """
    names = attribute_names(shards)
    if not names:
        raise StepError("attribute classifiers learn from labels, which these images do not have; give labelled images")
    if shards.num_images < SMALLEST_SET:
        raise StepError(
            f"{shards.num_images} images are too few to train attribute classifiers; at least {SMALLEST_SET} are needed"
        )
    kimg, seed = evaluation.attributes_kimg, evaluation.seed
    key = digest([VERSION, shards.fingerprint, max(shards.resolutions), names, kimg, seed])
    folder = storage.join(storage.absolute(root), "features", f"attributes-{key}")
    uris = [storage.join(folder, f"{index:04d}.safetensors") for index in range(len(names))]
    there = set(storage.names(folder))
    requests = [
        AttributeRequest(shards, k, kimg, seed, device, uri)
        for k, uri in enumerate(uris)
        if storage.name(uri) not in there
    ]
    progress = Progress("evaluate: attribute classifiers", len(uris), "networks")
    for request, accuracy in zip(requests, pmap(train_attribute, requests), strict=True):
        progress.update(
            request.index + 1, f"{names[request.index]}: {accuracy:.1%} of the held-out images are told right"
        )
    return uris


@dataclass(frozen=True)
class AttributeRequest:
    """What a worker needs to train the classifier of attribute `index` and write it to `uri`."""

    shards: ShardSet
    index: int
    kimg: float
    seed: int
    device: str
    uri: str


def train_attribute(request: AttributeRequest) -> float:
    """Train and write one classifier; gives its accuracy on held-out images. Runs on any worker."""
    table = load_images(request.shards, max(request.shards.resolutions))
    lesson = _Lesson(table, attribute_values(request.shards, table)[:, request.index], request)
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
        torch.manual_seed(stream("attribute", request.index, request.seed, "weights").initial_seed())
        side = min(table.images.shape[-1], LARGEST_INPUT)
        network = Discriminator(MODEL, resolution=side, channels=table.images.shape[1]).to(request.device)
    with exact_float32():
        _fit(network, lesson, request.kimg)
        accuracy = _accuracy(network, lesson)
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    storage.write_bytes(request.uri, safetensors.torch.save(weights))
    return accuracy


class _Lesson:
    """Images to learn from, and those held out (a tenth, at most 5,000)."""

    def __init__(self, table: ImageTable, values: np.ndarray, request: AttributeRequest) -> None:
        self.table, self.values, self.device = table, values, request.device
        self.generator = stream("attribute", request.index, request.seed)
        order = torch.randperm(len(values), generator=self.generator)
        self.held_out, self.learnt = order.tensor_split([min(max(len(order) // 10, 1), 5000)])

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Random images that are not held out, and which of them have the attribute."""
        return self.examples(self.learnt[torch.randint(len(self.learnt), (size,), generator=self.generator)])

    def examples(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n, C, r, r] in [-1, 1] and 1.0 or 0.0 [n]."""
        images = to_float(torch.from_numpy(self.table.images[chosen.numpy()]).to(self.device))
        return average_down(images), torch.from_numpy(self.values[chosen.numpy()]).to(self.device, torch.float32)


def _fit(network: Discriminator, lesson: _Lesson, kimg: float) -> None:
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, betas=(0.0, 0.99), eps=1e-8)
    for _ in range(math.ceil(kimg * 1000 / BATCH)):
        images, answers = lesson.batch(BATCH)
        loss = functional.binary_cross_entropy_with_logits(network(images), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _accuracy(network: Discriminator, lesson: _Lesson) -> float:
    num_right = 0
    for chosen in lesson.held_out.split(64):
        images, answers = lesson.examples(chosen)
        num_right += int(((network(images) > 0) == (answers > 0)).sum())
    return num_right / len(lesson.held_out)


def _load(data: bytes) -> Discriminator:
    state = safetensors.torch.load(data)
    num_levels = sum(name.startswith("from_rgb.") and name.endswith(".weight") for name in state)
    with torch.device("meta"):  # nothing is drawn: loading leaves the global random state alone
        network = Discriminator(MODEL, resolution=2 << num_levels, channels=state["from_rgb.0.weight"].shape[1])
    network.to_empty(device="cpu").load_state_dict(state)  # copies: in memory the weights lie as the layers want them
    return network.eval().requires_grad_(False)
