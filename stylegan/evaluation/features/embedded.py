"""The embedded feature network: a small network, trained once per data set on its own images, or given by URI.

It serves every role and needs no downloaded weights. Metrics carry its name (`fid_classifier`, `fid_rotation`) and
never compare with published ones. All runs on the same data share one network through storage.
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
from pydantic import ConfigDict
from torch import Tensor
from torch.nn import functional

from stylegan import storage
from stylegan.config.sections import EvaluationConfig
from stylegan.data.index import image_shape
from stylegan.data.loading.loader import DEFAULT_LOADING, LoaderSettings, load_images
from stylegan.data.shardset import ShardSet
from stylegan.errors import ConfigError, DamagedError, StepError, one_line, shown
from stylegan.evaluation.features.embedded_training import train_network
from stylegan.networks.classifier import Classifier
from stylegan.networks.weights import read_tensors
from stylegan.progress import Progress
from stylegan.records import Record, digest

FEATURES_VERSION = 1  # raise it whenever a change of architecture or training gives other features
SMALLEST_SET = 10  # images; fewer leave too few to hold out
METADATA = "stylegan.features"  # one key, because safetensors writes several in random order
EmbeddedKind = Literal["classifier", "rotation"]
EMBEDDED_KINDS = get_args(EmbeddedKind)
ALLOWED = (
    "use classifier, rotation, inception, or the URI of a .safetensors file that classifier or rotation has written"
)
Pmap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


class FeatureFacts(Record):
    """The facts that are stored in the file of a network, beside its weights."""

    model_config = ConfigDict(extra="forbid")

    version: int = FEATURES_VERSION
    kind: EmbeddedKind
    resolution: int
    channels: int
    label_names: tuple[str, ...]
    accuracy: float  # share of the held-out images that are classified correctly
    dataset_fingerprint: str


@dataclass(frozen=True)
class FeatureNet:
    """A trained network that measures images. All methods take float images [N, C, r, r] in [-1, 1] on its device.

    `sha256` is the digest of the file at `uri`, which contains weights and facts.
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
        """Compute features [N, D] and the logarithms [N, K] of the class probabilities.

        Quantise generated images to eight bits before.
        """
        pooled = self.network.pooled(images)
        return pooled, functional.log_softmax(self.network.head(pooled), dim=1)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute perceptual distances [N] after Zhang et al. 2018 with unit weights; crops of images work too.

        It can be differentiated in both.

        Each map is normalised to unit length over its channels. Squared differences are summed over channels, averaged
        over pixels and summed over maps.
        """
        total = torch.zeros(len(a), device=a.device)
        for x, y in zip(self.network.maps(a), self.network.maps(b), strict=True):
            total = total + (_unit(x) - _unit(y)).square().sum(dim=1).mean(dim=(1, 2))
        return total

    @torch.no_grad()
    def attributes(self, images: Tensor) -> Tensor:
        """Compute logits [N, K] of one attribute per class, "is of this class": log p - log(1 - p)."""
        return one_versus_rest(self.recognise(images)[1])


def one_versus_rest(log_posteriors: Tensor) -> Tensor:
    """Compute log p - log(1 - p) of [N, K >= 2] logarithms of probabilities, exactly for p near 1 too."""
    likely, best = log_posteriors.max(dim=1, keepdim=True)

    # At most one class has p > 0.5. Its 1 - p loses all digits near p = 1, so the other classes are summed instead.
    rest = torch.log1p(-log_posteriors.exp().clamp(max=0.5))
    others = log_posteriors.scatter(1, best, -torch.inf).logsumexp(dim=1, keepdim=True)
    return log_posteriors - torch.where(log_posteriors == likely, others, rest)


def _unit(x: Tensor) -> Tensor:
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


def check_embedded(evaluation: EvaluationConfig, labelled: bool) -> None:
    """Check that the embedded network `evaluation.features` can be trained or read for such data.

    Raises:
        ConfigError: `classifier` without labels, a URI without a file, or a file of another kind.
    """
    if evaluation.features == "classifier" and not labelled:
        raise ConfigError(
            "evaluation.features=classifier: needs class labels, which these images do not have; set "
            "evaluation.features=rotation, or give the URI of a .safetensors file that was trained on labelled images of "
            "the same size"
        )
    if evaluation.features not in EMBEDDED_KINDS:
        load_features(evaluation.features)


def digest_of_features(uri: str) -> str:
    """Return the SHA-256 of the file of a network. Raises ConfigError if there is no such file."""
    return hashlib.sha256(_read_file(uri)).hexdigest()


def load_features(uri: str, device: str = "cpu", *, data: bytes | None = None) -> FeatureNet:
    """Read a network that `obtain_features` has written.

    The `uri` of the result is absolute, because workers have other working directories.

    Args:
        uri: the file.
        device: the torch device of the network.
        data: the content of the file, if it is known already.

    Raises:
        ConfigError: there is no such file, or it is not a feature network of this version.
    """
    data = _read_file(uri) if data is None else data
    try:
        return _open(data, uri, device)
    except DamagedError as error:
        raise ConfigError(f"evaluation.features={error}; {ALLOWED}") from error


def _open(data: bytes, uri: str, device: str) -> FeatureNet:
    """Build a network from the bytes of its file. Raise DamagedError, without a cure, if they hold no such network."""
    try:
        facts = _read_facts(data)
        with torch.device("meta"):  # draws no weights: loading leaves the global random state alone
            network = Classifier(
                resolution=facts.resolution, channels=facts.channels, num_classes=len(facts.label_names)
            )
        network.load_state_dict(read_tensors(data), assign=True)
    except MemoryError:
        raise
    except Exception as error:  # damaged and foreign files raise errors of many types
        raise DamagedError(
            f"{uri}: is not a feature network of this version of the program ({one_line(error, 200)})"
        ) from error
    network.to(device).eval().requires_grad_(False)
    return FeatureNet(network, facts, hashlib.sha256(data).hexdigest(), storage.absolute(uri))


def _read_file(uri: str) -> bytes:
    try:
        return storage.read_bytes(storage.absolute(uri))
    except FileNotFoundError:
        raise ConfigError(f"evaluation.features={uri}: there is no such file; {ALLOWED}") from None


def _read_facts(data: bytes) -> FeatureFacts:
    """Parse the facts in the header of a .safetensors file. Raises ValueError for another version."""
    length = int.from_bytes(data[:8], "little")
    facts = FeatureFacts.model_validate_json(json.loads(data[8 : 8 + length])["__metadata__"][METADATA])
    if facts.version != FEATURES_VERSION:
        raise ValueError(f"version {facts.version}")
    return facts


def obtain_features(
    evaluation: EvaluationConfig,
    shards: ShardSet,
    *,
    root: str,
    device: str = "cpu",
    pmap: Pmap = map,
    loading: LoaderSettings = DEFAULT_LOADING,
) -> FeatureNet:
    """Return the network that `evaluation.features` names, on the CPU.

    A URI is read. The network of `classifier` or `rotation` is read from {root}/features, or trained and written there.

    Args:
        evaluation: its `features` and `seed` decide. The seed of a run does not, so runs with several seeds stay
            comparable.
        shards: the images to train on, at their largest resolution.
        root: storage root.
        device: torch device of the training.
        pmap: carries the training to a worker.
        loading: the settings of loading the images.

    Raises:
        ConfigError: as `check_embedded`; or fewer than two classes; or the network is for images of another shape.
        DamagedError: the network in {root}/features is not what was written there.
        StepError: too few images to train on.
    """
    # Train a network that is not in storage yet.
    check_embedded(evaluation, bool(shards.label_names))
    uri = evaluation.features
    if evaluation.features in EMBEDDED_KINDS:
        uri = storage.join(storage.absolute(root), "features", network_file(evaluation, shards))
        if not storage.exists(uri):
            kind = cast(EmbeddedKind, evaluation.features)
            _train_on_worker(TrainRequest(kind, shards, evaluation.seed, device, uri, loading), pmap)

        # Our own file: the user has no other to give.
        try:
            features = _open(storage.read_bytes(uri), uri, "cpu")
        except DamagedError as error:
            raise DamagedError(f"{error}; delete it and run the same command again, which trains it anew") from error
    else:
        features = load_features(uri)

    # Refuse a network for images of another shape.
    shape = (features.facts.channels, features.facts.resolution)
    data_shape = image_shape(shards)[:2]
    if shape != data_shape:
        raise ConfigError(
            f"evaluation.features={uri}: measures {_shown_shape(*shape)} images, the data set has "
            f"{_shown_shape(*data_shape)}; use classifier, rotation, or a network that was trained on images of this "
            "shape"
        )
    return features


def network_file(evaluation: EvaluationConfig, shards: ShardSet) -> str:
    """Return the name of the file in {root}/features of the network that is trained on these images."""
    facts = [FEATURES_VERSION, evaluation.features, shards.fingerprint, max(shards.resolutions), evaluation.seed]
    return f"{evaluation.features}-{digest(facts)}.safetensors"


def _shown_shape(channels: int, resolution: int) -> str:
    """Format the shape of images for people: `8x8 grey`."""
    return f"{resolution}x{resolution} {'grey' if channels == 1 else 'RGB'}"


@dataclass(frozen=True)
class TrainRequest:
    """A request to a worker: train a network of this kind and write it to `uri`."""

    kind: EmbeddedKind
    shards: ShardSet
    seed: int
    device: str
    uri: str
    loading: LoaderSettings = DEFAULT_LOADING


def _train_on_worker(request: TrainRequest, pmap: Pmap) -> None:
    """Let a worker train a network. Raises ConfigError for fewer than two classes, StepError for too few images."""
    shards, progress = request.shards, Progress(f"evaluate: {request.kind} features", request.shards.num_images)
    if request.kind == "classifier" and len(shards.label_names) < 2:
        raise ConfigError(
            f"evaluation.features=classifier: the images have only the class {shown(shards.label_names[0])!r}, at least 2 "
            "are needed; set evaluation.features=rotation"
        )
    if shards.num_images < SMALLEST_SET:
        raise StepError(
            f"{shards.uri}: {shards.num_images} images are too few to train evaluation.features={request.kind}; "
            f"at least {SMALLEST_SET} are needed, or give the URI of a trained network"
        )
    progress.update(0, "training")
    (accuracy,) = pmap(train_features, [request])
    progress.update(shards.num_images, f"{accuracy:.1%} of the held-out images are classified correctly")


def train_features(request: TrainRequest) -> float:
    """Train and write one network, and return its accuracy on held-out images. Runs on any worker."""
    shards = request.shards
    table = load_images(shards, max(shards.resolutions), settings=request.loading)
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
