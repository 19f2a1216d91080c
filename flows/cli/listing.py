"""`stylegan ls`: the runs, sets and models of storage roots, with their sizes."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.cli.arguments import AsJson, Overrides
from stylegan.commands import shell_command
from stylegan.errors import ConfigError, UserError, printable
from stylegan.uris import is_local, redact

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from stylegan.config.tree import Config
    from stylegan.pipeline.inventory import Inventory

PATIENCE_S = 5.0  # a store that is away is not waited for
WIDE = 200  # columns of a table that goes to a file or a pipe: ids are never cut


def ls(
    config: str | None = None,
    /,
    *,
    root: Annotated[str | None, Parameter(help="A storage root: a folder or any fsspec URL.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """List the runs, data sets and models below a storage root, with their sizes.

    Parameters
    ----------
    config
        YAML file of a run: its storage root. Without it and without --root, the roots in this folder, and those on
        this machine that the configs in it and in configs/ name.

    Examples
    --------
    stylegan ls
    stylegan ls configs/quickstart.yaml
    stylegan ls --root s3://bucket/stylegan --json
    """
    from flows.cli.console import print_error
    from stylegan.config.file import load
    from stylegan.pipeline.inventory import roots_here, take_inventory, with_models
    from stylegan.retry import storage_settings

    if root is not None and (config is not None or overrides):
        raise ConfigError("--root: give a CONFIG (with --set) or --root, not both")
    if config is None and overrides:
        command = shell_command("stylegan", "ls", "CONFIG", "--set", overrides[0])
        raise ConfigError(f"--set {overrides[0]}: changes a config; name one: `{command}`")
    if root == "":
        raise ConfigError("--root: is empty; give a folder or a URL")
    settings = load(config, overrides or []) if config is not None else None
    elsewhere: dict[str, str] = {}
    if settings:
        roots, where = [settings.storage.root], f"the storage root of {config}"
    elif root is not None:
        roots, where = [root], "--root"
    else:
        here = roots_here()
        roots, elsewhere = list(here.local), here.elsewhere
        where = "the storage roots in this folder, and those of the configs in it and in configs/"
    found: list[Inventory] = []
    failures: list[UserError] = []
    with storage_settings(_impatient(settings)):
        for place in roots:
            try:
                found.append(take_inventory(place, settings))
            except UserError as error:  # it does not hide the others
                failures.append(error)
        if as_json:
            _print_json(where, [with_models(inventory) for inventory in found], elsewhere, failures)
        elif found or not failures:
            _print(where, found, config, settings)
            _print_elsewhere(elsewhere)
    for failure in failures[:-1]:
        print_error(str(failure))
    if failures:
        raise failures[-1]


def _impatient(settings: Config | None) -> Any:
    from stylegan.config.sections import StorageConfig

    return (settings.storage if settings else StorageConfig()).model_copy(update={"patience_s": PATIENCE_S})


def _print_json(where: str, found: list[Inventory], elsewhere: dict[str, str], failures: list[UserError]) -> None:
    import json

    if failures and not found:
        return
    roots = [inventory.model_dump(mode="json") for inventory in found]
    others = [{"root": redact(uri), "config": config} for uri, config in elsewhere.items()]
    failed = [str(failure) for failure in failures]
    print(json.dumps({"looked_at": where, "roots": roots, "not_looked_at": others, "failures": failed}), flush=True)


def _print_elsewhere(elsewhere: dict[str, str]) -> None:
    """Print the roots that only a command with their config looks at, since a store may not answer."""
    if elsewhere:
        names = ", ".join(f"{redact(uri)} of {config}" for uri, config in elsewhere.items())
        command = shell_command("stylegan", "ls", next(iter(elsewhere.values())))
        there = "there" if len(elsewhere) == 1 else "at the first"
        print()
        print(printable(f"not looked at: {names}; `{command}` looks {there}"))


def _print(where: str, found: list[Inventory], config: str | None, settings: Config | None) -> None:
    """Print what every root holds, or the command that makes something."""
    whole = [inventory for inventory in found if not inventory.is_empty]
    if not whole:
        places = f" ({', '.join(inventory.root for inventory in found)})" if found else ""
        make = (
            settings.command("run")
            if settings
            else shell_command("stylegan", "run", config or "configs/quickstart.yaml")
        )
        print(printable(f"nothing yet: looked at {where}{places}; `{make}` makes something"))
        return
    print(printable(f"looked at {where}"))
    for inventory in whole:
        _print_root(inventory, config)


def _print_root(inventory: Inventory, config: str | None) -> None:
    from rich.console import Console

    from stylegan.pipeline.inventory import with_models
    from stylegan.places import shown_bytes
    from stylegan.tracking.connection import from_here

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    root = _as_typed(inventory.root)
    print(f"\n{printable(redact(root))}")
    _print_table(console, "runs", _runs(inventory))
    _print_table(console, "sets", _sets(inventory))
    sys.stdout.flush()  # to read the models takes longer
    inventory = with_models(inventory)
    _print_table(console, "models", _models(inventory))
    if inventory.no_models:
        print(f"\nmodels cannot be read: {printable(inventory.no_models)}")

    # Sizes, and what to do with all this.
    rooms = sorted(inventory.num_bytes.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{name} {shown_bytes(size)}" for name, size in rooms if size)
    free = f"; {shown_bytes(inventory.free_bytes)} free" if inventory.free_bytes is not None else ""
    line = f"size     {shown_bytes(sum(inventory.num_bytes.values()))}: {parts}{free}"
    print(f"\n{textwrap.fill(line, console.width, subsequent_indent=' ' * 9)}")
    run = next((run for run in inventory.runs if run.state in ("trained", "evaluated", "finished")), None)
    if run:
        model = [run.run_id, "--config", config] if config else [f"{root}/runs/{run.run_id}"]
        draw = ["sample", *model, "--out", "grid.png"]
        if any(key.startswith("transfer_loss") for key in run.metrics):
            draw = ["transfer", "CONTENT", "STYLE", "--model", *model, "--out", "transfer.png"]
        print(f"draw     {shell_command('stylegan', *draw)}")
    if inventory.sets:
        print(f"check    {shell_command('stylegan', 'shard', '--verify', _as_typed(inventory.sets[0].uri))}")
    if inventory.models and inventory.tracking_uri:
        print(
            f"browse   {shell_command('mlflow', 'ui', '--backend-store-uri', redact(from_here(inventory.tracking_uri)))}"
            if not inventory.tracking_uri.startswith("http")
            else f"browse   {redact(inventory.tracking_uri)}"
        )


def _print_table(console: Console, title: str, table: Table) -> None:
    if table.row_count:
        print(f"\n{title}")
        console.print(table)


def _runs(inventory: Inventory) -> Table:
    from stylegan.places import shown_bytes

    first = {next(iter(run.metrics)) for run in inventory.runs if run.metrics}
    heading = next(iter(first)).replace("_", "\n", 1) if len(first) == 1 else "first metric"
    table = _table("run", "state", "date", "images", "kimg", heading, "recall", "size")
    for run in inventory.runs:
        key = next(iter(run.metrics), None)
        value = "" if key is None else f"{run.metrics[key]:.3g}" if len(first) == 1 else f"{key} {run.metrics[key]:.3g}"
        recall = next((f"{value:.3f}" for name, value in run.metrics.items() if name.startswith("recall_")), "")
        state = f"{run.state}, damaged: {run.damaged}" if run.damaged else run.state
        images = "" if run.num_images is None else f"{run.num_images:,}"
        kimg = "" if run.kimg is None else f"{run.kimg:g}"
        _row(table, run.run_id, state, run.changed[:10], images, kimg, value, recall, shown_bytes(run.num_bytes))
    return table


def _sets(inventory: Inventory) -> Table:
    from stylegan.places import shown_bytes

    table = _table("set", "state", "date", "images", "classes", "up to", "source", "size")
    for found in inventory.sets:
        state = f"damaged: {found.damaged}" if found.damaged else "finished" if found.fingerprint else "not finished"
        images = "" if found.num_images is None else f"{found.num_images:,}"
        side = f"{max(found.resolutions)}x{max(found.resolutions)}" if found.resolutions else ""
        classes = str(found.num_classes) if found.num_classes else ""
        size = shown_bytes(found.num_bytes)
        _row(table, found.key, state, found.changed[:10], images, classes, side, found.source, size)
    return table


def _models(inventory: Inventory) -> Table:
    table = _table("model", "aliases", "date", "run", "first metric")
    for version in inventory.models:
        metric = next((f"{key} {value:.3g}" for key, value in version.metrics.items()), "")
        aliases = ", ".join(version.aliases)
        _row(table, f"{version.name}/{version.version}", aliases, version.created[:10], version.run_id, metric)
    return table


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in headings:
        left = heading in ("run", "set", "model", "state", "aliases", "source", "date")
        # What is pasted into other commands is never cut or broken.
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading in ("run", "set", "model"))
    return table


def _row(table: Table, *cells: str) -> None:
    from rich.markup import escape

    table.add_row(*(escape(printable(cell)) for cell in cells))


def _as_typed(uri: str) -> str:
    """Return a path below the working folder relative to it, and anything else as it is."""
    return os.path.relpath(uri) if is_local(uri) and uri.startswith(os.getcwd() + os.sep) else uri
