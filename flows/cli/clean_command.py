"""The command that deletes what nothing needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.cli.arguments import AsJson, ConfigFile, Overrides, load
from flows.cli.console import print_json
from stylegan.errors import printable
from stylegan.places import shown_bytes

if TYPE_CHECKING:
    from stylegan.config.tree import Config
    from stylegan.pipeline.retention import CleanUp

LISTED = 20  # names of items that people are shown


def gc(config: ConfigFile, /, *, dry_run: bool = False, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Delete sets, stages, runs and old versions that nothing needs, as `retention` in the config says.

    What the versions with an alias, the newest versions and runs and all running work need is kept, and what belongs to
    other models. The first clean-up marks what is not needed, a later one deletes it (retention.grace_days).

    Parameters
    ----------
    dry_run
        Only say what would be marked and deleted; write nothing.

    Examples
    --------
    stylegan gc faces.yaml --dry-run
    stylegan gc faces.yaml --set retention.versions=3 --set retention.grace_days=0
    """
    settings = load(config, overrides)
    from stylegan.pipeline.retention import clean_up

    found = clean_up(settings, dry_run=dry_run)
    if as_json:
        print_json(found)
    else:
        _print(settings, found)


def _print(config: Config, found: CleanUp) -> None:
    """Print what a clean-up has found and done."""
    would = "would be " if found.dry_run else ""
    print(f"{'':<22}{'before':>9}{'freed':>12}{'after':>12}")
    for kind, number in sorted(found.before.items()):
        freed = found.freed.get(kind, 0)
        print(f"{kind:<22}{shown_bytes(number):>9}{shown_bytes(freed):>12}{shown_bytes(number - freed):>12}")
    for why, number in sorted(found.kept.items()):
        print(f"kept       {number:,}: {why}, with all that they need")
    for title, names in (("deleted", found.deleted), ("marked", found.marked)):
        if names:
            more = f", and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
            print(f"{title:<11}{would}{len(names):,}: {printable(', '.join(names[:LISTED]))}{more}")
    if found.marked:
        same = "the same command without --dry-run" if found.dry_run else "the same command"
        print(f"           marked ones are deleted after {config.retention.grace_days:g} day(s), by {same}")
    if not (found.deleted or found.marked):
        print("nothing to delete: everything here is needed by what is kept")
    for problem in found.damaged:
        print(f"damaged    {printable(problem)}")
    if found.stopped:
        print(f"stopped    {printable(found.stopped)}")
    for note in found.notes:
        print(f"note       {printable(note)}")
