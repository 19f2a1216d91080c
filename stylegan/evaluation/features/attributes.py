"""Classifiers of binary attributes, trained on labelled shards, for linear separability (Karras et al. 2019, app. C).

There is one network per attribute, with the architecture of the discriminator without mini-batch standard deviation, at
up to 256x256. Adam trains it with a learning rate of 1e-3 and mini-batches of 8 on 150,000 images.

The paper's attributes are the 40 of CelebA. Here they are the attributes of the shards or, where images have classes
instead, "is of class k". Classifiers depend on the images alone, not on any generator, and are kept under
{root}/features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from stylegan import storage
from stylegan.config.sections import EvaluationConfig, ModelConfig
from stylegan.data.loading.loader import DEFAULT_LOADING, ImageTable, LoaderSettings, load_images
from stylegan.data.shardset import ShardSet
from stylegan.errors import DamagedError, StepError, one_line
from stylegan.evaluation.features.embedded import SMALLEST_SET, Pmap
from stylegan.evaluation.metrics.numerics import exact_float32, stream
from stylegan.evaluation.metrics.ppl import LARGEST_INPUT, average_down
from stylegan.images import to_float
from stylegan.networks.discriminator import Discriminator
from stylegan.networks.weights import read_tensors
from stylegan.progress import Progress
from stylegan.records import digest

ATTRIBUTES_VERSION = 1  # raise it whenever a change of the training gives other weights
BATCH = 8
LEARNING_RATE = 1e-3
MODEL = ModelConfig(mbstd_group=1)  # the paper's, whatever the run trains


class AttributeNet:
    """Trained classifiers, one for each attribute, from their URIs and the bytes of their files.

    Raises:
        DamagedError: a file does not hold what was written there.
    """

    def __init__(self, files: Mapping[str, bytes], device: str = "cpu") -> None:
        self.networks = [_load(data, uri).to(device) for uri, data in files.items()]

    @torch.no_grad()
    def attributes(self, images: Tensor) -> Tensor:
        """Compute logits [N, A] of float images [N, C, r, r] in [-1, 1]; a positive logit means "has the attribute".

        Images above 256x256 are averaged down, as in v1.
        """
        small = average_down(images)
        return torch.stack([network(small) for network in self.networks], dim=1)


def attribute_names(shards: ShardSet) -> tuple[str, ...]:
    """Return the attributes of a set: its own, or else its classes; empty for an unlabelled set."""
    return shards.attribute_names or shards.label_names


def attribute_values(shards: ShardSet, table: ImageTable) -> np.ndarray:
    """Return booleans [N, A]: True where an image has that one of `attribute_names(shards)`."""
    if shards.attribute_names:
        assert table.attributes is not None
        return table.attributes > 0
    return table.labels[:, None] == np.arange(len(shards.label_names))


def obtain_attributes(
    evaluation: EvaluationConfig,
    shards: ShardSet,
    *,
    root: str,
    device: str = "cpu",
    pmap: Pmap = map,
    loading: LoaderSettings = DEFAULT_LOADING,
) -> list[str]:
    """Return the URIs of the classifiers in {root}/features, in the order of the attributes; train the missing ones.

    Args:
        evaluation: its `attributes_kimg` and `seed` decide.
        shards: the labelled images to train on, at their largest resolution.
        root: storage root.
        device: torch device of the training.
        pmap: carries each training to a worker.
        loading: the settings of loading the images.

    Raises:
        StepError: the images have neither attributes nor classes, or are too few to train on. The message becomes the
            skip reason.
    """
    names = attribute_names(shards)
    if not names:
        raise StepError("attribute classifiers learn from labels, which these images do not have; give labelled images")
    if shards.num_images < SMALLEST_SET:
        raise StepError(
            f"{shards.num_images} images are too few to train attribute classifiers; at least {SMALLEST_SET} are needed"
        )

    # One file per attribute, in a folder named after all that decides the weights.
    kimg = evaluation.attributes_kimg
    folder = storage.join(storage.absolute(root), "features", classifiers_folder(evaluation, shards))
    uris = [storage.join(folder, f"{index:04d}.safetensors") for index in range(len(names))]

    # Train the missing ones.
    finished = set(storage.names(folder))
    requests = [
        AttributeRequest(shards, index, kimg, evaluation.seed, device, uri, loading)
        for index, uri in enumerate(uris)
        if storage.name(uri) not in finished
    ]
    progress = Progress("evaluate: attribute classifiers", len(uris), "networks")
    for request, accuracy in zip(requests, pmap(train_attribute, requests), strict=True):
        detail = f"{names[request.index]}: {accuracy:.1%} of the held-out images are classified correctly"
        progress.update(request.index + 1, detail)
    return uris


def classifiers_folder(evaluation: EvaluationConfig, shards: ShardSet) -> str:
    """Return the name of the folder in {root}/features of the classifiers that are trained on these images."""
    kimg, names = evaluation.attributes_kimg, attribute_names(shards)
    facts = [ATTRIBUTES_VERSION, shards.fingerprint, max(shards.resolutions), names, kimg, evaluation.seed]
    return f"attributes-{digest(facts)}"


@dataclass(frozen=True)
class AttributeRequest:
    """A request to a worker: train the classifier of attribute `index` and write it to `uri`."""

    shards: ShardSet
    index: int
    kimg: float
    seed: int
    device: str
    uri: str
    loading: LoaderSettings = DEFAULT_LOADING


def train_attribute(request: AttributeRequest) -> float:
    """Train and write one classifier, and return its accuracy on held-out images. Runs on any worker."""
    # Examples and first weights, both from named streams.
    table = load_images(request.shards, max(request.shards.resolutions), settings=request.loading)
    examples = _Examples(table, attribute_values(request.shards, table)[:, request.index], request)
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
        torch.manual_seed(stream("attribute", request.index, request.seed, "weights").initial_seed())
        side = min(table.images.shape[-1], LARGEST_INPUT)
        network = Discriminator(MODEL, resolution=side, channels=table.images.shape[1]).to(request.device)

    # Training.
    with exact_float32():
        _fit(network, examples, request.kimg)
        accuracy = _accuracy(network, examples)

    # The file is written last: its existence means that the training is finished.
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    storage.write_bytes(request.uri, safetensors.torch.save(weights))
    return accuracy


class _Examples:
    """The examples of one attribute: images to learn from, and held-out images (a tenth of all, at most 5,000)."""

    def __init__(self, table: ImageTable, values: np.ndarray, request: AttributeRequest) -> None:
        self.table, self.values, self.device = table, values, request.device
        self.generator = stream("attribute", request.index, request.seed)
        order = torch.randperm(len(values), generator=self.generator)
        self.held_out, self.training = order.tensor_split([min(max(len(order) // 10, 1), 5000)])

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Return random training images and whether they have the attribute, as `at` does."""
        return self.at(self.training[torch.randint(len(self.training), (size,), generator=self.generator)])

    def at(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [n, C, r, r] in [-1, 1], and [n] 1.0 where an image has the attribute, else 0.0."""
        images = to_float(torch.from_numpy(self.table.images[chosen.numpy()]).to(self.device))
        return average_down(images), torch.from_numpy(self.values[chosen.numpy()]).to(self.device, torch.float32)


def _fit(network: Discriminator, examples: _Examples, kimg: float) -> None:
    """Train by Adam until `kimg` thousand images were shown."""
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, betas=(0.0, 0.99), eps=1e-8)
    for _ in range(math.ceil(kimg * 1000 / BATCH)):
        images, answers = examples.batch(BATCH)
        loss = functional.binary_cross_entropy_with_logits(network(images), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _accuracy(network: Discriminator, examples: _Examples) -> float:
    """Return the share of the held-out images that are classified correctly, in [0, 1]."""
    num_right = 0
    for chosen in examples.held_out.split(64):
        images, answers = examples.at(chosen)
        num_right += int(((network(images) > 0) == (answers > 0)).sum())
    return num_right / len(examples.held_out)


def _load(data: bytes, uri: str) -> Discriminator:
    """Build a classifier from the bytes of its file; the weights say how large its images are."""
    try:
        state = read_tensors(data)
        num_levels = sum(name.startswith("from_rgb.") and name.endswith(".weight") for name in state)
        with torch.device("meta"):  # draws no weights: loading leaves the global random state alone
            network = Discriminator(MODEL, resolution=2 << num_levels, channels=state["from_rgb.0.weight"].shape[1])
        # `load_state_dict` copies, so that in memory the weights have the layout that the layers want.
        network.to_empty(device="cpu").load_state_dict(state)
    except MemoryError:
        raise
    except Exception as error:  # damaged and foreign files raise errors of many types
        raise DamagedError(
            f"{uri}: is not a classifier of attributes ({one_line(error, 200)}); delete it and run the same command "
            "again, which trains it anew"
        ) from error
    return network.eval().requires_grad_(False)
