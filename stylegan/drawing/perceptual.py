"""The perceptual distance by which images are projected: in the feature space that the model was evaluated with."""

from __future__ import annotations

import os
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from stylegan import storage
from stylegan.config.sections import EvaluationConfig, StorageConfig
from stylegan.config.tree import Config
from stylegan.errors import ConfigError, shown
from stylegan.evaluation.features.embedded import EMBEDDED_KINDS, FeatureNet, load_features
from stylegan.evaluation.features.public_weights import PUBLISHED, cache_folder, locate
from stylegan.evaluation.features.spaces import Network, embedded_network, lpips_network, open_network
from stylegan.evaluation.metrics.ppl import average_down
from stylegan.evaluation.page.write_page import read_report
from stylegan.evaluation.report import Report
from stylegan.networks.generator import Generator
from stylegan.networks.vgg import SMALLEST

GIVE = "give --features URI of a .safetensors file that classifier or rotation has written, or --features inception"


@dataclass(frozen=True)
class PerceptualDistance:
    """A perceptual distance, which any worker can compute: images [N, C, r, r] in [-1, 1] of two batches -> [N].

    It can be differentiated in both. `network` is a reference to the files, which are read at the first call.
    """

    network: Network
    device: str = "cpu"

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances [N]. Raises StepError if the files of the network have changed or are gone."""
        if (
            self.network.name == "lpips"
        ):  # as path lengths: at most 256x256; what VGG16 cannot halve often enough is enlarged
            a, b = (_enlarged(average_down(images)) for images in (a, b))
        distances: Tensor = open_network(self.network, self.device).distance(a, b)
        return distances


def perceptual_distance(
    generator: Generator,
    run_uri: str | None,
    *,
    config: Config | None = None,
    features: str | None = None,
    device: str = "cpu",
) -> PerceptualDistance:
    """Return the distance in which a model's images are compared.

    It is that of the network which the model's run was evaluated with: LPIPS on VGG16 for `evaluation.features:
    inception`, and else the embedded network. A model without a run takes that of the config, or LPIPS if its weights are
    on this machine.

    Args:
        generator: whose images are compared.
        run_uri: folder of the model's run; None for imported weights and other checkpoints without one.
        config: of a model without a run; its storage.root has the embedded network.
        features: another network: `inception`, or the URI of an embedded one.
        device: torch device of the comparison.

    Raises:
        ConfigError: which network is meant cannot be known, it is gone, or it is for images of another shape.
        DamagedError: the report of the run is damaged.
    """
    network = _network(run_uri, config, features, generator)
    if not isinstance(network, FeatureNet):
        return PerceptualDistance(network, device)
    facts = network.facts
    if (facts.channels, facts.resolution >= generator.resolution) != (generator.channels, True):
        raise ConfigError(
            f"{network.uri}: compares images of {facts.resolution}x{facts.resolution} with {facts.channels} channel(s), this "
            f"model makes {generator.resolution}x{generator.resolution} with {generator.channels}; {GIVE}"
        )
    return PerceptualDistance(embedded_network(network), device)


def _network(
    run_uri: str | None, config: Config | None, features: str | None, generator: Generator
) -> Network | FeatureNet:
    evaluation = config.evaluation if config else EvaluationConfig()
    root = storage.absolute((config.storage if config else StorageConfig()).root)
    if features is not None and features != "inception":
        return _given(features, "--features ")
    if features is None and run_uri is not None:
        root = os.path.dirname(os.path.dirname(run_uri))
        report = read_report(run_uri)
        if report is None:
            raise ConfigError(f"{run_uri}: is not evaluated yet, which names the network to compare with; {GIVE}")
        features = str(report.settings.get("features"))
        if features in EMBEDDED_KINDS:
            return _of_report(report, features, run_uri, root)
        if features != "inception":
            return _given(features, "evaluation.features=")
    if features is None and config is not None and evaluation.features != "inception":
        if evaluation.features not in EMBEDDED_KINDS:
            return _given(evaluation.features, "evaluation.features=")
        return _only(root, evaluation.features, generator)
    if features is None and config is None:  # nothing says which: what is on this machine, but no large download
        missing = [name for name in PUBLISHED["distance"].files if locate(name).path is None]
        if missing:
            raise ConfigError(
                f"this model has no run that names the network to compare with, and the weights {', '.join(missing)} of "
                f"LPIPS are not in {cache_folder()}; {GIVE}, which downloads them, or --config of its run"
            )
    return lpips_network(evaluation, root)


def _given(uri: str, origin: str) -> FeatureNet:
    try:
        return load_features(uri)
    except ConfigError as error:
        raise ConfigError(str(error).replace("evaluation.features=", origin, 1)) from error


def _of_report(report: Report, kind: str, run_uri: str, root: str) -> FeatureNet:
    """Return the network that a run was evaluated with, by its digest. Raises ConfigError if it is gone."""
    sha256 = (report.settings.get("networks") or {}).get(kind)
    for network in _stored(root, kind):
        if network.sha256 == sha256:
            return network
    raise ConfigError(
        f"{run_uri}: the network that it was evaluated with ({kind}, SHA-256 {str(sha256)[:10]}...) is not in "
        f"{storage.join(root, 'features')}; {GIVE}"
    )


def _only(root: str, kind: str, generator: Generator) -> FeatureNet:
    """Return the only network below a root for such images. Raises ConfigError if there are none or several."""
    shape = (generator.channels, generator.resolution)
    found = [one for one in _stored(root, kind) if (one.facts.channels, one.facts.resolution) == shape]
    if len(found) != 1:
        names = f" ({shown(', '.join(storage.name(one.uri) for one in found), 200)})" if found else ""
        raise ConfigError(
            f"{storage.join(root, 'features')}: has {len(found)} {kind} networks{names} for images of "
            f"{shape[1]}x{shape[1]} with {shape[0]} channel(s), one is needed; {GIVE}"
        )
    return found[0]


def _stored(root: str, kind: str) -> list[FeatureNet]:
    folder = storage.join(root, "features")
    names = [name for name in storage.names(folder) if name.startswith(f"{kind}-") and name.endswith(".safetensors")]
    found = []
    for name in names:
        try:
            found.append(load_features(storage.join(folder, name)))
        except ConfigError:  # of another version, or damaged: none that can be meant
            continue
    return found


def _enlarged(images: Tensor) -> Tensor:
    side = images.shape[-1]
    return functional.interpolate(images, scale_factor=SMALLEST // side, mode="nearest") if side < SMALLEST else images
