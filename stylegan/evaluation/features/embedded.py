"""The embedded feature network: small, trained once per data set on its own images, or given by URI. It serves every role.

It needs no downloaded weights. Metrics carry its name (`fid_classifier`, `fid_rotation`) and never compare with published ones. All
runs on the same data share one network through storage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import safetensors
import safetensors.torch
import torch
from pydantic import ConfigDict, ValidationError
from torch import Tensor
from torch.nn import functional

from stylegan import storage
from stylegan.config.sections import EvaluationConfig
from stylegan.data.loading.loader import load_images
from stylegan.data.shardset import ShardSet
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation.features.embedded_training import train_network
from stylegan.networks.classifier import Classifier
from stylegan.progress import Progress
from stylegan.records import Record, digest

VERSION = 1  # raise it whenever the architecture or its training changes what comes out
SMALLEST_SET = 10  # images; below it there is nothing to hold out
METADATA = "stylegan.features"  # one key: several would be written in random order
Kind = Literal["classifier", "rotation"]
KINDS = get_args(Kind)
Pmap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


class FeatureFacts(Record):
    """What is written beside the weights."""

    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    kind: Kind
    resolution: int
    channels: int
    label_names: tuple[str, ...]
    accuracy: float  # share of the held-out images that are told right
    dataset_fingerprint: str


@dataclass(frozen=True)
class FeatureNet:
    """A trained network that measures images; all methods take float images [N, C, r, r] in [-1, 1] on its device.

    `sha256` is the digest of the file at `uri`, weights and facts.
    """

    network: Classifier
    facts: FeatureFacts
    sha256: str
    uri: str

    @property
    def name(self) -> str:
        """`classifier` or `rotation`: the last part of the names of metrics."""
        return self.facts.kind

    @torch.no_grad()
    def recognise(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[N, D] features and [N, K] logarithms of the class probabilities. Quantise generated images to eight bits first."""
        pooled = self.network.pooled(images)
        return pooled, functional.log_softmax(self.network.head(pooled), dim=1)

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """[N] perceptual distances after Zhang et al. 2018 with unit weights; crops of images are fine too.

        Each map is normalised to unit length over its channels; squared differences are summed over channels, averaged over
        pixels and summed over maps.
        """
        total = torch.zeros(len(a), device=a.device)
        for x, y in zip(self.network.maps(a), self.network.maps(b), strict=True):
            total += (_unit(x) - _unit(y)).square().sum(dim=1).mean(dim=(1, 2))
        return total

    @torch.no_grad()
    def attributes(self, images: Tensor) -> Tensor:
        """[N, K] logits of one attribute per class: is it this class, or one of the others? log p - log(1 - p)."""
        return one_versus_rest(self.recognise(images)[1])


def one_versus_rest(log_posteriors: Tensor) -> Tensor:
    """log p - log(1 - p) of [N, K >= 2] logarithms of probabilities, exact for p near 1 too."""
    likely, best = log_posteriors.max(dim=1, keepdim=True)
    rest = torch.log1p(
        -log_posteriors.exp().clamp(max=0.5)
    )  # at most one class has more, and its rest is summed instead
    others = log_posteriors.scatter(1, best, -torch.inf).logsumexp(dim=1, keepdim=True)
    return log_posteriors - torch.where(log_posteriors == likely, others, rest)


def _unit(x: Tensor) -> Tensor:
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


def check_embedded(evaluation: EvaluationConfig, labelled: bool) -> None:
    """Whether an embedded network `evaluation.features` can be had for such data.

    Raises:
        ConfigError: `classifier` without labels, a URI where there is no file, or a file of another kind.
    """
    if evaluation.features == "classifier" and not labelled:
        raise ConfigError(
            "evaluation.features=classifier: needs class labels, which these images do not have; set evaluation.features=rotation, "
            "or give the URI of a .safetensors file that was trained on labelled images of the same size"
        )
    if evaluation.features not in KINDS:
        load_features(evaluation.features)


def load_features(uri: str, device: str = "cpu") -> FeatureNet:
    """Read a network that `obtain_features` has written. The `uri` of what is given back is absolute: workers have other folders.

    Raises:
        ConfigError: no such file, or not one of these.
    """
    allowed = (
        "use classifier, rotation, inception, or the URI of a .safetensors file that classifier or rotation has written"
    )
    try:
        data = storage.read_bytes(storage.absolute(uri))
    except FileNotFoundError:
        raise ConfigError(f"evaluation.features={uri}: there is no such file; {allowed}") from None
    try:
        facts = _facts(data)
        with torch.device("meta"):  # nothing is drawn: loading leaves the global random state alone
            network = Classifier(
                resolution=facts.resolution, channels=facts.channels, num_classes=len(facts.label_names)
            )
        network.load_state_dict(safetensors.torch.load(data), assign=True)
    except (ValidationError, ValueError, LookupError, TypeError, RuntimeError, safetensors.SafetensorError):
        raise ConfigError(
            f"evaluation.features={uri}: is not a feature network of this version of the program; {allowed}"
        ) from None
    network.to(device).eval().requires_grad_(False)
    return FeatureNet(network, facts, hashlib.sha256(data).hexdigest(), storage.absolute(uri))


def _facts(data: bytes) -> FeatureFacts:
    length = int.from_bytes(data[:8], "little")
    facts = FeatureFacts.model_validate_json(json.loads(data[8 : 8 + length])["__metadata__"][METADATA])
    if facts.version != VERSION:
        raise ValueError(f"version {facts.version}")
    return facts


def obtain_features(
    evaluation: EvaluationConfig, shards: ShardSet, *, root: str, device: str = "cpu", pmap: Pmap = map
) -> FeatureNet:
    """The network that `evaluation.features` names, on the CPU: from the URI, from {root}/features, or trained now and kept there.

    Args:
        evaluation: its `features` and `seed` decide; the seed of a run does not, so runs with several seeds stay comparable.
        device: where it is trained.
        pmap: carries the training to a worker.

    Raises:
        ConfigError: as `check_embedded`; fewer than two classes; or the network is for images of another shape.
        StepError: too few images to train on.
    """
    check_embedded(evaluation, bool(shards.label_names))
    uri = evaluation.features
    if evaluation.features in KINDS:
        key = digest([VERSION, evaluation.features, shards.fingerprint, max(shards.resolutions), evaluation.seed])
        uri = storage.join(storage.absolute(root), "features", f"{evaluation.features}-{key}.safetensors")
        if not storage.exists(uri):
            _train_on_worker(TrainRequest(cast(Kind, evaluation.features), shards, evaluation.seed, device, uri), pmap)
    found = load_features(uri)
    shape, data_shape = (
        (found.facts.channels, found.facts.resolution),
        load_images(shards, max(shards.resolutions)).images.shape,
    )
    if shape != data_shape[1:3]:
        raise ConfigError(
            f"evaluation.features={uri}: measures {_shape(*shape)} images, the data set has {_shape(*data_shape[1:3])}; "
            "use classifier, rotation, or a network that was trained on images of this shape"
        )
    return found


def _shape(channels: int, resolution: int) -> str:
    return f"{resolution}x{resolution} {'grey' if channels == 1 else 'RGB'}"


@dataclass(frozen=True)
class TrainRequest:
    """What a worker needs to train a network and write it to `uri`."""

    kind: Kind
    shards: ShardSet
    seed: int
    device: str
    uri: str


def _train_on_worker(request: TrainRequest, pmap: Pmap) -> None:
    shards, progress = request.shards, Progress(f"evaluate: {request.kind} features", request.shards.num_images)
    if request.kind == "classifier" and len(shards.label_names) < 2:
        raise ConfigError(
            f"evaluation.features=classifier: the images have only the class {shards.label_names[0]!r}, at least 2 are needed; "
            "set evaluation.features=rotation"
        )
    if shards.num_images < SMALLEST_SET:
        raise StepError(
            f"{shards.uri}: {shards.num_images} images are too few to train evaluation.features={request.kind}; "
            f"at least {SMALLEST_SET} are needed, or give the URI of a trained network"
        )
    progress.update(0, "training")
    (accuracy,) = pmap(train_features, [request])
    progress.update(shards.num_images, f"{accuracy:.1%} of the held-out images are told right")


def train_features(request: TrainRequest) -> float:
    """Train and write one network; gives its held-out accuracy. Runs on any worker."""
    shards = request.shards
    table = load_images(shards, max(shards.resolutions))
    label_names = shards.label_names if request.kind == "classifier" else ("0", "90", "180", "270")
    network, accuracy = train_network(
        request.kind, table, num_classes=len(label_names), seed=request.seed, device=request.device
    )
    facts = FeatureFacts(
        kind=request.kind,
        resolution=network.resolution,
        channels=network.channels,
        label_names=label_names,
        accuracy=accuracy,
        dataset_fingerprint=shards.fingerprint,
    )
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    storage.write_bytes(request.uri, safetensors.torch.save(weights, {METADATA: facts.model_dump_json()}))
    return accuracy
