"""Data sets for people: what `stylegan shard` prints of one, its proof, and what Prefect shows of it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stylegan import storage
from stylegan.config import Config
from stylegan.config_file import load
from stylegan.data.card import PREVIEW, REJECTED, DatasetCard, read_card
from stylegan.data.shards import ShardSet
from stylegan.errors import ConfigError, StepError

if TYPE_CHECKING:
    from stylegan.data.verify import Verification
    from stylegan.steps import Done

LISTED = 20  # classes or attributes in the table on the terminal
PATHS = 3  # of rejects, for each kind


def print_shards(shards: ShardSet, *, cached: bool) -> None:
    """Images, labels, rejects by kind with the first paths, and where everything is, on standard output."""
    card, console = read_card(shards.uri), Console()
    print(f"{'taken from storage' if cached else 'done'}: {shards.num_images:,} images, fingerprint {shards.fingerprint}")
    if card is not None:
        print("\n".join(_lines(card)))
        if card.counts:
            console.print(_counts_table(card))
        if card.rejected:
            console.print(_rejects_table(card))
            print(f"rejected    {storage.join(shards.uri, REJECTED)}")
        print(f"preview     {storage.join(shards.uri, PREVIEW)}")
    print(f"shards      {shards.uri}")


def _lines(card: DatasetCard) -> Iterator[str]:
    widths, heights = card.widths, card.heights
    enlarged = f"; {card.num_upscaled:,} were enlarged" if card.num_upscaled else ""
    median = f"median {widths.median:g}x{heights.median:g}"
    colours = "grey" if card.channels == 1 else "RGB"
    yield f"images      {card.resolution}x{card.resolution} {colours} from {card.source}, {card.num_bytes / 1e6:,.1f} MB in all resolutions"
    yield f"originals   {widths.min}x{heights.min} to {widths.max}x{heights.max}, {median}{enlarged}"
    yield f"labels      {f'{len(card.counts):,} {card.counted}' if card.counted else 'none'}"


def _counts_table(card: DatasetCard) -> Table:
    table = Table()
    table.add_column("attribute" if card.counted == "attributes" else "class")
    table.add_column("images", justify="right")
    for name, number in list(card.counts.items())[:LISTED]:
        table.add_row(escape(name), f"{number:,}")
    if len(card.counts) > LISTED:
        table.add_row(f"... and {len(card.counts) - LISTED:,} more", "")
    return table


def _rejects_table(card: DatasetCard) -> Table:
    table = Table()
    for heading, right in (("left out", False), ("images", True), ("such as", False)):
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "such as")
    for kind, number in card.rejected.items():
        paths = card.examples.get(kind, ())[:PATHS]
        table.add_row(kind, f"{number:,}", escape(", ".join(paths) + (" ..." if number > len(paths) else "")))
    return table


def make_shards(config: Config) -> Done[ShardSet]:
    """The first step of the pipeline alone, which needs no MLflow. Raises as `Pipeline.shard`."""
    from stylegan import cluster
    from stylegan.steps import Pipeline

    with cluster.session():
        return Pipeline(config).shard()


def verify_shards(target: str, overrides: list[str], *, as_json: bool) -> None:
    """Read a set again, that of a config (YAML file), on its Ray, or the one at a URI, here; each problem is a line of output.

    Raises:
        ConfigError: overrides for a URI.
        StepError: there are problems, the config is not sharded yet, or there is no set at the URI.
    """
    found = _verify(target, overrides)
    if as_json:
        print(json.dumps(vars(found)), flush=True)
    else:
        for problem in found.problems:
            print(problem)
    if found.problems:
        raise StepError(f"shard --verify {target}: {len(found.problems)} problem(s), each in a line of the output")
    if not as_json:
        print(f"whole: {found.num_images:,} images in {found.num_tars:,} tars of {target} are what their manifest says")


def _verify(target: str, overrides: list[str]) -> Verification:
    from stylegan import cluster
    from stylegan.data.shards import find_shards
    from stylegan.data.sources import open_source
    from stylegan.data.verify import verify
    from stylegan.progress import Progress

    progress = Progress("verify", 1, "tars").reach
    if not target.endswith((".yaml", ".yml")):
        if overrides:
            raise ConfigError(f"--set {overrides[0]}: is for a config; {target} is the URI of a set")
        return verify(target, progress=progress)
    config = load(target, overrides)
    shards = find_shards(open_source(config.data), config.data, storage.absolute(config.storage.root))
    if shards is None:
        raise StepError(f"shard --verify: the images of {target} are not sharded yet; run `stylegan shard {target}` first")
    with cluster.session():
        return verify(shards.uri, pmap=cluster.cpu_map(config, shards.num_images), progress=progress)


def publish_shards(shards: ShardSet) -> None:
    """Card, rejects and a sheet of images on the task run's page in Prefect."""
    from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

    from flows.hooks import thumbnail

    card = read_card(shards.uri)
    if card is None:
        return
    key = f"data-{re.sub(r'[^a-z0-9-]', '-', shards.fingerprint.lower())}"
    rows = [{"reason": kind, "images": number, "such as": ", ".join(card.examples.get(kind, ()))} for kind, number in card.rejected.items()]
    description = f"Images of {card.source} that were left out; all are in {storage.join(shards.uri, REJECTED)}"
    create_table_artifact(rows or [{"reason": "none", "images": 0, "such as": ""}], key=f"{key}-rejected", description=description)
    sheet = base64.b64encode(thumbnail(storage.read_bytes(storage.join(shards.uri, PREVIEW)))).decode()
    create_image_artifact(f"data:image/png;base64,{sheet}", key=f"{key}-preview", description="What the network will see")
    create_markdown_artifact(_markdown(card, shards), key=f"{key}-card", description=f"Data set {shards.fingerprint}")


def _markdown(card: DatasetCard, shards: ShardSet) -> str:
    lines = [f"## Data set {shards.fingerprint}: {shards.num_images:,} images", *(f"- {' '.join(line.split())}" for line in _lines(card))]
    lines += [f"- left out: {sum(card.rejected.values()):,}, of which {card.num_duplicates:,} have the bytes of another", ""]
    if card.counts:
        lines += ["| " + ("attribute" if card.counted == "attributes" else "class") + " | images |", "|---|---|"]
        lines += [f"| {_cell(name)} | {number:,} |" for name, number in list(card.counts.items())[:100]]
    return "\n".join([*lines, "", f"Shards `{shards.uri}`"])


def _cell(text: str) -> str:
    """Text in a table of Markdown: class names come from folders, and may hold anything."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(text.split()))
