"""Measure a style transfer: its content and style loss on pairs of held-out images, by the network of the config.

The report is that of any model, so that registry and gate treat it as any other. All models are measured on the same
pairs, and drawing them takes no chance, so the values have no interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.data.loading.loader import ImageTable, LoaderSettings, load_images
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.features.embedded import FeatureNet, Pmap
from stylegan.evaluation.features.spaces import Spaces, obtain_spaces, open_network
from stylegan.evaluation.protocol import protocol_of, value_key
from stylegan.evaluation.report import Report
from stylegan.images import png_bytes, quantise, to_float
from stylegan.networks.classifier import Classifier
from stylegan.networks.style_transfer import encoder_of, shape_of
from stylegan.networks.vgg import VGG16Maps
from stylegan.progress import Progress
from stylegan.records import digest
from stylegan.training.samples import cell_of
from stylegan.transfer.losses import content_losses, style_losses, target_of
from stylegan.transfer.pairs import split
from stylegan.transfer.pictures import draw_sheet
from stylegan.transfer.state import read_transfer

MEASURE_VERSION = 1  # raise it whenever a loss is measured in another way
CHUNK, AT_ONCE = 64, 8  # pairs of a task, and of a forward pass
SHEET = 8  # contents, and styles, of the figure


@dataclass(frozen=True)
class Request:
    """A request to a worker: measure the pairs from `start` on, at most CHUNK of them."""

    checkpoint_uri: str
    shards: ShardSet
    config: Config
    spaces: Spaces
    start: int
    device: str


def measured_network(network: Any) -> VGG16Maps | Classifier:
    """Return the layers of a network of the role `style`, as `open_network` returns it."""
    found: VGG16Maps | Classifier = network.network if isinstance(network, FeatureNet) else network
    return found


def evaluate_transfer(
    checkpoint_uri: str,
    shards: ShardSet,
    config: Config,
    *,
    root: str,
    pmap: Pmap = map,
    device: str = "cpu",
    out_uri: str | None = None,
    loading: LoaderSettings | None = None,
) -> Report:
    """Measure the style transfer of a checkpoint on held-out images.

    Args:
        checkpoint_uri: folder with a transfer.safetensors for images of as many channels.
        shards: the images, of which the last ones are held out.
        config: its `transfer` and `evaluation` say what is measured, whatever the model was trained with.
        root: storage root, which keeps the networks.
        pmap: `map`, or a parallel one that keeps the order.
        device: torch device of the workers.
        out_uri: folder for the figure; None: no figure.
        loading: the settings of loading the images.

    Raises:
        ConfigError: the network of `evaluation.features` cannot be read or trained for these images.
        StepError: the checkpoint has no style transfer, or one for other images.
    """
    evaluation, transfer = config.evaluation, config.transfer
    assert transfer is not None
    table, loading = _table(shards, config), loading or LoaderSettings.of(config)
    network = read_transfer(checkpoint_uri)
    if network.shape.channels != table.images.shape[1]:
        raise StepError(
            f"{checkpoint_uri}: is for images of {network.shape.channels} channels, the data set has {table.images.shape[1]}; train "
            "one on it"
        )
    spaces = obtain_spaces(evaluation, shards, root=root, device=device, pmap=pmap, loading=loading)

    # Measure in parallel; the mean is taken in the order of the pairs.
    pairs = split(table.labels, shards.label_names, transfer, config.data.source)
    count = len(pairs.held_out(evaluation.num_images, seed=evaluation.seed)[0])
    requests = [Request(checkpoint_uri, shards, config, spaces, start, device) for start in range(0, count, CHUNK)]
    progress, parts = Progress("evaluate: pairs", count), list[np.ndarray]()
    for part in pmap(measure_pairs, requests):
        parts.append(part)
        progress.update(sum(map(len, parts)))
    content, style = np.concatenate(parts).mean(0).tolist()
    values = {
        "transfer_loss": content + transfer.style_weight * style,
        "content_loss": content,
        "style_loss": style,
    }

    # What the values compare by.
    decides = {"depth": transfer.depth, "style_weight": transfer.style_weight, "style_classes": transfer.style_classes}
    protocol = digest([MEASURE_VERSION, protocol_of("transfer", shards, evaluation, spaces), count, decides])
    metrics = {value_key("transfer", name, spaces): value for name, value in values.items()}
    settings = {
        "features": evaluation.features,
        "num_images": count,
        "num_held_out": len(pairs.held_contents),
        "resolution": max(shards.resolutions),
        "seed": evaluation.seed,
        "networks": {network.name: network.sha256 for network in spaces.networks.values()},
        **decides,
    }
    return Report(
        protocol=protocol,
        dataset_fingerprint=shards.fingerprint,
        checkpoint_uri=checkpoint_uri,
        metrics=metrics | spaces.facts,
        protocols=dict.fromkeys(metrics, protocol),
        settings=settings,
        figures={"transfers": draw_figure(checkpoint_uri, shards, config, out_uri)} if out_uri else {},
    )


def draw_figure(checkpoint_uri: str, shards: ShardSet, config: Config, out_uri: str) -> str:
    """Write transfers.png: held-out contents in held-out styles. Return its URI."""
    assert config.transfer is not None
    table = _table(shards, config)
    pairs = split(table.labels, shards.label_names, config.transfer, config.data.source)
    contents, styles = (
        torch.from_numpy(np.array(table.images[numbers[:SHEET]]))
        for numbers in (pairs.held_contents, pairs.held_styles[::-1])
    )
    sheet = draw_sheet(read_transfer(checkpoint_uri), contents, styles, cell=cell_of(config))
    uri = storage.join(out_uri, "transfers.png")
    storage.write_bytes(uri, png_bytes(sheet))
    return uri


@torch.no_grad()
def measure_pairs(request: Request) -> np.ndarray:
    """Return content and style loss of the pairs of a request, float64 [n, 2]. Runs on any worker.

    What was drawn is measured as people get it, in eight bits.
    """
    config, device = request.config, request.device
    evaluation, transfer = config.evaluation, config.transfer
    assert transfer is not None
    table = _table(request.shards, config)
    model = read_transfer(request.checkpoint_uri).to(device)
    network = measured_network(open_network(request.spaces["style"], "cpu"))
    shape = shape_of(
        network, channels=config.data.channels, depth=transfer.depth, resolution=max(request.shards.resolutions)
    )
    encoder = encoder_of(network, shape).to(device)
    pairs = split(table.labels, request.shards.label_names, transfer, config.data.source)
    chosen = pairs.held_out(evaluation.num_images, seed=evaluation.seed)
    found = []
    for start in range(request.start, min(request.start + CHUNK, len(chosen[0])), AT_ONCE):
        stop = min(start + AT_ONCE, request.start + CHUNK)
        contents, styles = (
            to_float(torch.from_numpy(np.array(table.images[numbers[start:stop]])).to(device)) for numbers in chosen
        )
        drawn = to_float(quantise(model(contents, styles)))
        maps, style_maps = encoder.maps(drawn), encoder.maps(styles)
        target = target_of(encoder.maps(contents), style_maps)
        found.append(torch.stack([content_losses(maps, target), style_losses(maps, style_maps)], 1).double().cpu())
    return torch.cat(found).numpy()


def _table(shards: ShardSet, config: Config) -> ImageTable:
    return load_images(shards, max(shards.resolutions), settings=LoaderSettings.of(config))
