"""Feature spaces: decide which network measures the images for which metric, and compute features with it.

| role | metrics | features: classifier, rotation or a URI | features: inception |
|---|---|---|---|
| pooled | fid, kid, is, fid_mixing, truncation | the embedded network | Inception-v3, pool3 |
| manifold | pr, truncation | the embedded network | VGG16, fc2 |
| distance | ppl_* | the embedded network's maps | LPIPS on VGG16 |
| attributes | separability | its classes, one versus the rest | classifiers of attributes or classes of the shards |
| style | transfer | the embedded network's maps | VGG16's maps |

The name of the network is the last part of a metric's key in reports (`fid_inception`). Its digest is part of the
metric's protocol, so numbers from different networks never compare.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, get_args

from torch import Tensor, nn

from stylegan import storage
from stylegan.config.sections import EvaluationConfig
from stylegan.data.loading.loader import DEFAULT_LOADING, LoaderSettings
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.features import public_weights as weights
from stylegan.evaluation.features.attributes import AttributeNet, attribute_names, obtain_attributes
from stylegan.evaluation.features.embedded import FeatureNet, Pmap, check_embedded, load_features, obtain_features
from stylegan.evaluation.features.public_weights import PUBLISHED, WeightName
from stylegan.evaluation.metric_table import METRICS, Role
from stylegan.networks.inception import load_inception
from stylegan.networks.vgg import load_lpips, load_vgg16

logger = logging.getLogger("stylegan")
ROLES: tuple[Role, ...] = get_args(Role)
# Copies of public weights that this process has read or written: (uri, sha256). They are large, so each is checked once.
_INTACT: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Network:
    """A reference to a network's weight files, which any worker can read.

    Attributes:
        name: the last part of the keys in reports; it also decides the architecture.
        uris: the files.
        sha256: the digest of all files.
        num_features: the length of its feature vectors.
        dtype: the dtype that its feature vectors are stored in.
    """

    name: str
    uris: tuple[str, ...]
    sha256: str
    num_features: int = 0
    dtype: str = "float32"


@dataclass(frozen=True)
class Spaces:
    """The networks of an evaluation, by role.

    Attributes:
        networks: the network of each role that the metrics need.
        missing: the reason for each needed role without a network.
        attribute_names: the attributes of the role `attributes`.
        embedded: the name of the embedded network if it serves all roles, else empty.
        facts: values about the networks, for the report.
        independent: True if an image may have any number of the attributes; False if the attributes are classes.
    """

    networks: dict[Role, Network]
    missing: dict[Role, str] = field(default_factory=dict)
    attribute_names: tuple[str, ...] = ()
    embedded: str = ""
    facts: dict[str, float] = field(default_factory=dict)
    independent: bool = False

    def __getitem__(self, role: Role) -> Network:
        """Return the network of a role. Raises StepError if it has none; the message becomes the skip reason."""
        if role not in self.networks:
            raise StepError(self.missing[role])
        return self.networks[role]

    @property
    def exclusive(self) -> bool:
        """True if the attributes are classes, of which an image has exactly one, and there are more than two."""
        return len(self.attribute_names) > 2 and not self.independent

    def name(self, role: Role) -> str:
        """Return the name of a role's network; it is defined even if the network is missing."""
        if self.embedded:
            return self.embedded
        return PUBLISHED[role].name if role in PUBLISHED else role


def check_features(evaluation: EvaluationConfig, labelled: bool) -> None:
    """Check that this machine can provide the networks that the metrics need for such data; download nothing.

    Public weight files that are not here yet pass the check; `public_weights.fetch_all` downloads them.

    Raises:
        ConfigError: `classifier` without labels, a URI without a file, or a file of another kind.
    """
    if not evaluation.metrics:
        return
    if evaluation.features != "inception":
        check_embedded(evaluation, labelled)
        return
    weights.missing(evaluation)


def obtain_spaces(
    evaluation: EvaluationConfig,
    shards: ShardSet,
    *,
    root: str,
    device: str = "cpu",
    pmap: Pmap = map,
    loading: LoaderSettings = DEFAULT_LOADING,
) -> Spaces:
    """Return the networks that the metrics need; let workers train those that are trained on the shards.

    Args:
        evaluation: its metrics and `features` decide which networks are needed.
        shards: the reals.
        root: storage root. Workers read all networks from {root}/features. The published networks are copied there too,
            because a worker may be unable to reach their source.
        device: torch device of the training.
        pmap: `map`, or a parallel one that carries the training to workers.
        loading: the settings of loading the images to train on.

    Raises:
        ConfigError: as `check_features` and `obtain_features`.
        StepError: too few images to train on.
    """
    roles = {role for metric in evaluation.metrics for role in METRICS[metric].roles}
    if not roles:
        return Spaces({})

    # One embedded network for every role.
    if evaluation.features != "inception":
        features = obtain_features(evaluation, shards, root=root, device=device, pmap=pmap, loading=loading)
        return _embedded(features, roles, evaluation)

    # The published networks.
    files = {name: _copy_below_root(name, evaluation, root) for name in weights.needed(evaluation)}
    networks = {role: _published(role, files) for role in ROLES if role in roles & PUBLISHED.keys()}

    # Attribute classifiers of these shards; without them only the metrics of this role are skipped.
    missing: dict[Role, str] = {}
    if "attributes" in roles:
        try:
            found = obtain_attributes(evaluation, shards, root=root, device=device, pmap=pmap, loading=loading)
            uris = tuple(found)
            sha256 = weights.join_digests(_sha256(storage.read_bytes(uri)) for uri in uris)
            networks["attributes"] = Network("attributes", uris, sha256)
        except StepError as error:
            missing["attributes"] = str(error)
    return Spaces(networks, missing, attribute_names(shards), independent=bool(shards.attribute_names))


def lpips_network(evaluation: EvaluationConfig, root: str) -> Network:
    """Return the published network of distances, with its files copied to {root}/features. Raises as `fetch`."""
    return _published(
        "distance", {name: _copy_below_root(name, evaluation, root) for name in PUBLISHED["distance"].files}
    )


def _published(role: Role, files: Mapping[WeightName, tuple[str, str]]) -> Network:
    """Return the network of a role of PUBLISHED; `files` has the URI and the digest of each of its files."""
    published = PUBLISHED[role]
    uris, digests = zip(*(files[name] for name in published.files), strict=True)
    return Network(published.name, uris, weights.join_digests(digests), published.num_features, published.dtype)


def embedded_network(features: FeatureNet) -> Network:
    """Return the reference to an embedded network."""
    return Network(features.name, (features.uri,), features.sha256, features.network.num_features)


def _embedded(features: FeatureNet, roles: set[Role], evaluation: EvaluationConfig) -> Spaces:
    """Return the spaces in which one embedded network serves every role; only a classifier serves `attributes`."""
    network = embedded_network(features)
    missing: dict[Role, str] = {}
    if features.name != "classifier":
        missing["attributes"] = (
            f"needs the posteriors of a classifier, but evaluation.features={evaluation.features} tells rotations "
            "apart; give labels and evaluation.features=classifier, or the URI of a classifier"
        )
    return Spaces(
        networks=dict.fromkeys(roles - missing.keys(), network),
        missing=missing,
        attribute_names=features.facts.label_names,
        embedded=features.name,
        facts={f"{features.name}_accuracy": features.facts.accuracy},
    )


def _copy_below_root(name: WeightName, evaluation: EvaluationConfig, root: str) -> tuple[str, str]:
    """Copy a public weight file to {root}/features and return its URI there and its digest."""
    data, sha256 = weights.fetch(name, getattr(evaluation.weights, name))
    uri = storage.join(storage.absolute(root), "features", f"{name}-{sha256[:10]}.pth")
    if not _holds(uri, sha256):
        storage.write_bytes(uri, data)
    _INTACT.add((uri, sha256))
    return uri, sha256


def _holds(uri: str, sha256: str) -> bool:
    """Return whether a file has these bytes; one with others is damaged, and named in a warning."""
    if (uri, sha256) in _INTACT:
        return storage.exists(uri)
    try:
        found = _sha256(storage.read_bytes(uri))
    except FileNotFoundError:
        return False
    if found != sha256:
        logger.warning("%s: is damaged (its SHA-256 is %s, not %s); it is written anew", uri, found, sha256)
    return found == sha256


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- on a worker ------------------------------------------------------------------------------------------------------


def recognise(spaces: Spaces, images: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """Compute the pooled features [N, D] and the log posteriors [N, K] of images.

    Args:
        images: float [N, C, r, r] in [-1, 1], quantised to eight bits.
    """
    network = open_network(spaces["pooled"], device)
    found: tuple[Tensor, Tensor] = network.recognise(images) if isinstance(network, FeatureNet) else network(images)
    return found


def manifold_features(spaces: Spaces, images: Tensor, device: str) -> Tensor:
    """Compute the features [N, D] among which precision and recall count neighbours.

    Args:
        images: float [N, C, r, r] in [-1, 1], quantised to eight bits.
    """
    network = open_network(spaces["manifold"], device)
    found: Tensor = network.recognise(images)[0] if isinstance(network, FeatureNet) else network.fc2(images)
    return found


@lru_cache(maxsize=len(ROLES))
def open_network(network: Network, device: str) -> Any:
    """Load a network to its device, once per process: a FeatureNet, InceptionV3, VGG16, LPIPS or AttributeNet.

    Raises:
        StepError: a file has changed since the digest was taken, or is damaged.
    """
    files = {uri: storage.read_bytes(uri) for uri in network.uris}
    if weights.join_digests(map(_sha256, files.values())) != network.sha256:
        raise StepError(f"{', '.join(network.uris)}: changed during the evaluation; run the same command again")
    if network.name == "attributes":
        return AttributeNet(files, device)
    published: dict[str, Callable[..., nn.Module]] = {
        "inception": load_inception,
        "vgg16": load_vgg16,
        "lpips": load_lpips,
    }
    if network.name in published:
        return published[network.name](*files.values()).to(device)
    ((uri, data),) = files.items()
    return load_features(uri, device, data=data)
