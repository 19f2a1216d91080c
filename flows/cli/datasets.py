"""`stylegan shard`: write a set of shards, print what it holds, or verify it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stylegan import storage
from stylegan.config.file import load
from stylegan.config.tree import Config
from stylegan.data.dataset_card import PREVIEW, REJECTED, DatasetCard, describe_card, read_card
from stylegan.data.shardset import ShardSet
from stylegan.errors import ConfigError, StepError, printable, shown
from stylegan.retry import insist, storage_settings

if TYPE_CHECKING:
    from stylegan.data.sharding.verify import Verification
    from stylegan.pipeline.steps import Done

LISTED = 20  # classes or attributes in the table on the terminal
PATHS = 3  # of rejects, for each kind


def print_shards(shards: ShardSet, *, cached: bool) -> None:
    """Print images, labels, rejects by kind with the first paths, and where everything is, on standard output."""
    card, console = read_card(shards.uri), Console()
    print(
        f"{'taken from storage' if cached else 'done'}: {shards.num_images:,} images, fingerprint {shards.fingerprint}"
    )
    if card is not None:
        print("\n".join(describe_card(card)))
        if card.counts:
            console.print(_counts_table(card))
        if card.rejected:
            console.print(_rejects_table(card))
            print(f"rejected    {storage.join(shards.uri, REJECTED)}")
        print(f"preview     {storage.join(shards.uri, PREVIEW)}")
    print(f"shards      {shards.uri}")


def _counts_table(card: DatasetCard) -> Table:
    table = Table()
    table.add_column("attribute" if card.counted == "attributes" else "class")
    table.add_column("images", justify="right")
    for name, number in list(card.counts.items())[:LISTED]:
        table.add_row(escape(shown(name)), f"{number:,}")
    if len(card.counts) > LISTED:
        table.add_row(f"... and {len(card.counts) - LISTED:,} more", "")
    return table


def _rejects_table(card: DatasetCard) -> Table:
    table = Table()
    for heading, right in (("left out", False), ("images", True), ("such as", False)):
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "such as")
    for kind, number in card.rejected.items():
        paths = card.examples.get(kind, ())[:PATHS]
        table.add_row(
            kind, f"{number:,}", escape(printable(", ".join(paths)) + (" ..." if number > len(paths) else ""))
        )
    return table


def make_shards(config: Config) -> Done[ShardSet]:
    """Run the first step of the pipeline alone, which needs no MLflow. Raises as `Pipeline.shard`."""
    from stylegan.cluster.session import ray_session
    from stylegan.pipeline.preflight import use_places
    from stylegan.pipeline.steps import Pipeline

    with ray_session(), storage_settings(config.storage):
        use_places(config)
        return insist(Pipeline(config).shard)


def verify_shards(target: str, overrides: list[str], *, as_json: bool) -> None:
    """Read every byte of a set again and print each problem as a line.

    Args:
        target: a YAML file (its set is read on its Ray), or the URI of a set (it is read in this process).

    Raises:
        ConfigError: overrides were given for a URI.
        StepError: there are problems, the config is not sharded yet, or there is no set at the URI.
    """
    found = _verify(target, overrides)
    if as_json:
        print(json.dumps(vars(found)), flush=True)
    else:
        for problem in found.problems:
            print(printable(problem))
    if found.problems:
        raise StepError(f"shard --verify {target}: {len(found.problems)} problem(s), each in a line of the output")
    if not as_json:
        print(f"whole: {found.num_images:,} images in {found.num_tars:,} tars of {target} are what their manifest says")


def _verify(target: str, overrides: list[str]) -> Verification:
    from stylegan.cluster.parallel_map import cpu_map
    from stylegan.cluster.session import ray_session
    from stylegan.data.sharding.verify import verify
    from stylegan.data.sharding.write_shards import find_shards
    from stylegan.data.sources.open_source import open_source
    from stylegan.progress import Progress

    if not target:
        raise ConfigError("shard --verify: names no set; give a YAML file or the URI of a set")
    progress = Progress("verify", 1, "tars").reach
    if not target.endswith((".yaml", ".yml")):
        if overrides:
            raise ConfigError(f"--set {overrides[0]}: belongs to a config; {target} is the URI of a set")
        return verify(target, progress=progress)
    config = load(target, overrides)
    with ray_session(), storage_settings(config.storage):
        source = open_source(config.data, config.storage.root)
        shards = find_shards(source, config.data, storage.absolute(config.storage.root))
        if shards is None:
            raise StepError(
                f"shard --verify: the images of {target} are not sharded yet; run `{config.command('shard')}` first"
            )
        return verify(shards.uri, pmap=cpu_map(config, shards.num_images), progress=progress)
