"""Which network sees the images for which metric: its role, its name and its digest.

| role | metrics | features: classifier, rotation or a URI | features: inception |
|---|---|---|---|
| pooled | fid, kid, is, fid_mixing, truncation | the embedded network | Inception-v3, pool3 |
| manifold | pr, truncation | the embedded network | VGG16, fc2 |
| distance | ppl_* | the embedded network's maps | LPIPS on VGG16 |
| attributes | separability | its classes, one versus the rest | a classifier per attribute or class, trained on the shards |

The name is the last part of a metric's key in reports (`fid_inception`), the digest a part of its protocol: numbers from different
networks never compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args

from torch import Tensor, nn

from stylegan import storage
from stylegan.config.sections import EvaluationConfig, Metric
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.features import public_weights as weights
from stylegan.evaluation.features.attributes import AttributeNet, attribute_names, obtain_attributes
from stylegan.evaluation.features.embedded import FeatureNet, Pmap, check_embedded, load_features, obtain_features
from stylegan.networks.inception import FEATURES as INCEPTION_FEATURES
from stylegan.networks.inception import load_inception
from stylegan.networks.vgg import FEATURES as VGG16_FEATURES
from stylegan.networks.vgg import load_lpips, load_vgg16

Role = Literal["pooled", "manifold", "distance", "attributes"]
ROLES: tuple[Role, ...] = get_args(Role)
# Of the published protocols: name, files, length of the vectors and how they are kept.
PUBLISHED: dict[Role, tuple[str, tuple[weights.Kind, ...], int, str]] = {
    "pooled": ("inception", ("inception",), INCEPTION_FEATURES, "float32"),
    "manifold": ("vgg16", ("vgg16",), VGG16_FEATURES, "float16"),
    "distance": ("lpips", ("vgg16", "lpips"), 0, "float32"),
}


def roles_of(metric: Metric) -> tuple[Role, ...]:
    """The roles that a metric needs."""
    if metric.startswith("ppl"):
        return ("distance",)
    special: dict[str, tuple[Role, ...]] = {
        "pr": ("manifold",),
        "separability": ("attributes",),
        "truncation": ("pooled", "manifold"),
    }
    return special.get(metric, ("pooled",))


@dataclass(frozen=True)
class Network:
    """A network by the files that any worker can read; `sha256` is the digest of them all.

    `num_features` is the length of its vectors, which are kept as `dtype`.
    """

    name: str
    uris: tuple[str, ...]
    sha256: str
    num_features: int = 0
    dtype: str = "float32"


@dataclass(frozen=True)
class Spaces:
    """The network of every role that is needed; `missing` says why a role has none."""

    networks: dict[Role, Network]
    missing: dict[Role, str] = field(default_factory=dict)
    attribute_names: tuple[str, ...] = ()
    embedded: str = ""  # the name of the network that serves all roles, if it is one of those
    facts: dict[str, float] = field(default_factory=dict)  # about the networks, for the report
    independent: bool = False  # an image may have any number of the attributes: they are no classes

    def __getitem__(self, role: Role) -> Network:
        """Raises StepError, fit to be a reason for skipping, if there is none."""
        if role not in self.networks:
            raise StepError(self.missing[role])
        return self.networks[role]

    @property
    def exclusive(self) -> bool:
        """Whether an image has one of the attributes only: they are classes, of which there are more than two."""
        return len(self.attribute_names) > 2 and not self.independent

    def name(self, role: Role) -> str:
        """What the network of a role is called, whether there is one or not."""
        return self.embedded or (PUBLISHED[role][0] if role in PUBLISHED else role)


def check_features(evaluation: EvaluationConfig, labelled: bool) -> None:
    """Whether the networks that the metrics need can be had for such data, as far as this machine knows; downloads nothing.

    Public weight files that are not there yet are left to `weights.fetch_all`.

    Raises:
        ConfigError: `classifier` without labels, a URI where there is no file, or a file of another kind.
    """
    if not evaluation.metrics:
        return
    if evaluation.features != "inception":
        check_embedded(evaluation, labelled)
        return
    weights.missing(evaluation)


def obtain_spaces(
    evaluation: EvaluationConfig, shards: ShardSet, *, root: str, device: str = "cpu", pmap: Pmap = map
) -> Spaces:
    """The networks that the metrics need; what has to be trained on the shards is trained now, by workers.

    Args:
        root: storage root; below {root}/features lies what workers read, the published networks too: they may have no way to the
            place these came from.

    Raises:
        ConfigError: as `check_features` and `obtain_features`.
        StepError: too few images to train on.
    """
    roles = {role for metric in evaluation.metrics for role in roles_of(metric)}
    if not roles:
        return Spaces({})
    if evaluation.features != "inception":
        return _embedded(obtain_features(evaluation, shards, root=root, device=device, pmap=pmap), roles, evaluation)
    files = {kind: _publish(kind, evaluation, root) for kind in weights.needed(evaluation)}
    networks: dict[Role, Network] = {}
    missing: dict[Role, str] = {}
    for role in roles & PUBLISHED.keys():
        name, kinds, num_features, dtype = PUBLISHED[role]
        uris, digests = zip(*(files[kind] for kind in kinds), strict=True)
        networks[role] = Network(name, uris, weights.join_digests(digests), num_features, dtype)
    if "attributes" in roles:
        try:
            uris = tuple(obtain_attributes(evaluation, shards, root=root, device=device, pmap=pmap))
            networks["attributes"] = Network(
                "attributes", uris, weights.join_digests(_sha256(storage.read_bytes(uri)) for uri in uris)
            )
        except StepError as error:
            missing["attributes"] = str(error)
    return Spaces(networks, missing, attribute_names(shards), independent=bool(shards.attribute_names))


def _embedded(features: FeatureNet, roles: set[Role], evaluation: EvaluationConfig) -> Spaces:
    network = Network(features.name, (features.uri,), features.sha256, features.network.num_features)
    missing: dict[Role, str] = {}
    if features.name != "classifier":
        missing["attributes"] = (
            f"needs the posteriors of a classifier, but evaluation.features={evaluation.features} tells rotations apart; "
            "give labels and evaluation.features=classifier, or the URI of a classifier"
        )
    facts = {f"{features.name}_accuracy": features.facts.accuracy}
    return Spaces(
        dict.fromkeys(roles - missing.keys(), network), missing, features.facts.label_names, features.name, facts
    )


def _publish(kind: weights.Kind, evaluation: EvaluationConfig, root: str) -> tuple[str, str]:
    """URI below the root and digest of a weight file."""
    data, sha256 = weights.fetch(kind, getattr(evaluation.weights, kind))
    uri = storage.join(storage.absolute(root), "features", f"{kind}-{sha256[:10]}.pth")
    if not storage.exists(uri):
        storage.write_bytes(uri, data)
    return uri, sha256


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- on a worker ------------------------------------------------------------------------------------------------------


def recognise(spaces: Spaces, images: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """[N, D] pooled features and [N, K] log posteriors of images of eight bits, as float [N, C, r, r] in [-1, 1] (here and below)."""
    network = open_network(spaces["pooled"], device)
    found: tuple[Tensor, Tensor] = network.recognise(images) if isinstance(network, FeatureNet) else network(images)
    return found


def place(spaces: Spaces, images: Tensor, device: str) -> Tensor:
    """[N, D] features of images of eight bits, among which precision and recall count neighbours."""
    network = open_network(spaces["manifold"], device)
    found: Tensor = network.recognise(images)[0] if isinstance(network, FeatureNet) else network.fc2(images)
    return found


@lru_cache(maxsize=len(ROLES))
def open_network(network: Network, device: str) -> Any:
    """The network on its device, loaded once per process: a FeatureNet, InceptionV3, VGG16, LPIPS or AttributeNet.

    Raises:
        StepError: a file is not the one it was.
    """
    files = [storage.read_bytes(uri) for uri in network.uris]
    if weights.join_digests(map(_sha256, files)) != network.sha256:
        raise StepError(f"{network.uris[0]}: changed during the evaluation; run the same command again")
    if network.name == "attributes":
        return AttributeNet(files, device)
    published: dict[str, Callable[..., nn.Module]] = {
        "inception": load_inception,
        "vgg16": load_vgg16,
        "lpips": load_lpips,
    }
    return (
        published[network.name](*files).to(device)
        if network.name in published
        else load_features(network.uris[0], device)
    )
