"""Delete what nothing needs any more: sets, stages, runs, what measures them, runs of MLflow and old versions.

What is needed is a question of reachability, see `reachability.py`. This file has the rules and the two phases.

What no root reaches is marked, and deleted by a later clean-up if it was marked `grace_days` ago, is still not reached,
and nothing in it has changed since. Until then it may be used again, so all that it needs stays as well: an item goes
only with, and after, everything that leads to it. What marks a folder as complete is deleted first. So a kill at any
moment leaves neither a folder that counts as complete and is not, nor one that leads to something deleted, and the next
clean-up goes on.

A run that works is a root. One that begins takes its lock first and then waits until no clean-up is under way; a clean-up
looks at the locks before each deletion and ends when a new one is there. So either the clean-up has seen the run, or the
run looks into storage after the last deletion. Work without a lock, such as sharding, is protected by its files, which
are younger than an hour.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from stylegan import storage
from stylegan.commands import shell_command
from stylegan.config.sections import RetentionConfig
from stylegan.config.tree import Config
from stylegan.data.shardset import MANIFEST
from stylegan.errors import DamagedError, StepError
from stylegan.pipeline import lock
from stylegan.pipeline.reachability import MLFLOW_ROOM, VERSION_ROOM, Item, Look
from stylegan.records import Record
from stylegan.registry import versions
from stylegan.retry import storage_settings
from stylegan.tracking.connection import resolve_uri
from stylegan.tracking.removal import delete_run, frees_bytes
from stylegan.uris import redact

logger = logging.getLogger("stylegan")

MARKS = "gc/marked.json"
CURE = "delete it, and the next clean-up marks anew"
DAY = 86_400.0
# Files that mark their folder as complete, or lead to it.
MARKERS = (MANIFEST, "done.json", "checkpoint.json", "report.json", "verdict.json", "config.yaml")


class AnotherCleanUpError(StepError):
    """Raised when another process cleans up the same root."""


class CleanUp(Record):
    """What a clean-up has found and done.

    Attributes:
        dry_run: whether it has only looked.
        before: bytes by kind.
        kept: number of items that are kept, by the reason; what these need is kept, too.
        marked: names of items that are marked, or would be.
        deleted: names of items that were deleted, or would be, in this order.
        freed: bytes of the deleted ones, by kind.
        stopped: why it ended early; empty if it did not.
        damaged: what could not be read; it is kept with all that it may need.
        notes: what is left to others, a sentence each.
    """

    dry_run: bool
    before: dict[str, int]
    kept: dict[str, int]
    marked: tuple[str, ...]
    deleted: tuple[str, ...]
    freed: dict[str, int]
    stopped: str = ""
    damaged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def freed_bytes(self) -> int:
        """The bytes that were freed."""
        return sum(self.freed.values())


class Mark(Record):
    """A mark: since when an item is not needed, and the newest time of its files then, both in seconds since 1970."""

    since: float
    changed: float


# --- what goes: pure ---


def reached(items: Mapping[str, Item], starts: Iterable[str] | None = None) -> set[str]:
    """Return the names of all items that some items reach, these included; `starts` unset means the roots."""
    found = set[str]()
    front = list(starts) if starts is not None else [name for name, item in items.items() if item.why]
    while front:
        name = front.pop()
        if name not in found and name in items:
            found.add(name)
            front += items[name].reaches
    return found


def garbage(items: Mapping[str, Item], retention: RetentionConfig) -> list[Item]:
    """Return the items that no root reaches, in the order in which they may go.

    An item comes after all that lead to it, and is as young as the youngest of these; the oldest come first. With
    `max_gib` there are only as many as bring the size down to that.
    """
    kept = reached(items)
    loose = _oldest_first([item for name, item in items.items() if name not in kept])
    if retention.max_gib is None:
        return loose
    size, limit, chosen = sum(item.num_bytes for item in items.values()), retention.max_gib * 2**30, list[Item]()
    for item in loose:
        if size <= limit:
            break
        chosen.append(item)
        size -= item.num_bytes
    return chosen


def _oldest_first(loose: Sequence[Item]) -> list[Item]:
    """Sort items so that each comes after all that lead to it, as far as there is no circle, and the oldest are first.

    It is the reverse of the order in which a search in depth, which begins at the youngest item, leaves them.
    """
    there = {item.name: item for item in sorted(loose, key=lambda item: (-item.changed, item.name))}
    left, seen = list[Item](), set[str]()
    for start in there:
        path = [] if start in seen else [(start, iter(there[start].reaches))]
        seen.add(start)
        while path:
            name, further = path[-1]
            following = next((one for one in further if one in there and one not in seen), None)
            if following is None:
                left.append(there[name])
                path.pop()
            else:
                seen.add(following)
                path.append((following, iter(there[following].reaches)))
    return left[::-1]


def due(
    items: Mapping[str, Item], loose: Sequence[Item], marks: Mapping[str, Mark], retention: RetentionConfig, now: float
) -> tuple[list[Item], dict[str, Mark]]:
    """Return which of the loose items are to be deleted now, in their order, and the marks of all loose ones.

    An item is due if it was marked `grace_days` ago, has not changed since, and nothing that stays leads to it. One that is
    not loose any more, or has changed, loses its mark.
    """
    kept_marks = dict[str, Mark]()
    for item in loose:
        mark = marks.get(item.name)
        # Older than its mark is one of which a clean-up that was killed has deleted the newest file.
        same = mark is not None and item.changed <= mark.changed
        kept_marks[item.name] = mark if mark is not None and same else Mark(since=now, changed=item.changed)
    ripe = {name for name, mark in kept_marks.items() if now - mark.since >= retention.grace_days * DAY}
    needed = reached(items, [name for name in items if name not in ripe])
    return [item for item in loose if item.name in ripe and item.name not in needed], kept_marks


# --- the clean-up ---


def clean_up(config: Config, *, dry_run: bool = False, now: float | None = None) -> CleanUp:
    """Mark and delete what nothing needs, as `retention` says.

    Args:
        config: names root, registry and model. What belongs to other models and registries is kept.
        dry_run: only look; write nothing.
        now: the present time, in seconds since 1970.

    Raises:
        ConfigError, StepError: storage or the registry do not answer, or the registry is not that of the root: nothing
            was deleted then.
        AnotherCleanUpError: another clean-up is under way.
    """
    root, now = storage.absolute(config.storage.root), time.time() if now is None else now
    with storage_settings(config.storage):
        if dry_run:
            return _clean_up(config, root, now, dry_run=True)
        try:
            with lock.hold(root, lock.CLEAN_UP, run_id=lock.CLEAN_UP, what="stylegan gc"):
                return _clean_up(config, root, now, dry_run=False)
        except lock.LockedError as error:
            other = error.holder
            raise AnotherCleanUpError(
                f"{root}: is cleaned up already, since {other.since} (on {other.host}, pid {other.pid}); wait until "
                "that has ended"
            ) from None


def _clean_up(config: Config, root: str, now: float, *, dry_run: bool) -> CleanUp:
    before = _read_marks(root)
    look = Look(config, root, now, marked=before)
    items = look.items()
    loose = garbage(items, config.retention)
    wanted, marks = due(items, loose, before, config.retention, now)
    deleted, stopped = (wanted, "") if dry_run else _delete_all(config, look, wanted, marks)
    gone = {item.name for item in deleted}
    notes: tuple[str, ...] = ()
    if not frees_bytes(config) and any(name.startswith((MLFLOW_ROOM, VERSION_ROOM)) for name in gone):
        notes = (
            f"the server at {redact(resolve_uri(config))} frees the bytes of its part by `{shell_command('mlflow', 'gc')}` beside it",
        )
    return CleanUp(
        dry_run=dry_run,
        before=_bytes(items.values()),
        kept=_counts(items.values()),
        marked=tuple(sorted(marks.keys() - gone)),
        deleted=tuple(item.name for item in deleted),
        freed=_bytes(deleted),
        stopped=stopped,
        damaged=tuple(look.damaged.values()),
        notes=notes,
    )


def _delete_all(
    config: Config, look: Look, wanted: Sequence[Item], marks: Mapping[str, Mark]
) -> tuple[list[Item], str]:
    """Write the marks and delete items; return those that are gone, and why it ended early."""
    _write_marks(
        look.root, marks
    )  # with those of what is deleted now, so that one that is killed goes on without a grace
    deleted, stopped = list[Item](), ""
    try:
        for item in wanted:
            stopped = look.new_work()
            if stopped or not _delete(config, look.root, item):
                break
            deleted.append(item)
    finally:
        gone = {item.name for item in deleted}
        _write_marks(look.root, {name: mark for name, mark in marks.items() if name not in gone})
    if not stopped and len(deleted) < len(wanted):
        stopped = f"{wanted[len(deleted)].name} got an alias meanwhile; the next clean-up goes on"
    return deleted, stopped


def _bytes(items: Iterable[Item]) -> dict[str, int]:
    found = dict[str, int]()
    for item in items:
        found[item.kind] = found.get(item.kind, 0) + item.num_bytes
    return found


def _counts(items: Iterable[Item]) -> dict[str, int]:
    found = dict[str, int]()
    for item in items:
        if item.why:
            found[item.why] = found.get(item.why, 0) + 1
    return found


def _read_marks(root: str) -> dict[str, Mark]:
    try:
        return storage.read_json(storage.join(root, MARKS), dict[str, Mark], cure=CURE)
    except FileNotFoundError:
        return {}
    except DamagedError as error:
        logger.warning("%s", error)
        return {}


def _write_marks(root: str, marks: Mapping[str, Mark]) -> None:
    if marks or storage.exists(storage.join(root, MARKS)):
        storage.write_json(storage.join(root, MARKS), {name: mark.model_dump() for name, mark in marks.items()})


def _delete(config: Config, root: str, item: Item) -> bool:
    """Delete an item, its markers first; return False for a version that has got an alias since the look."""
    room, _, name = item.name.partition("/")
    if room == MLFLOW_ROOM:
        delete_run(config, name)
        return True
    if room == VERSION_ROOM:
        return versions.delete_version(config, name)
    uri = storage.join(root, item.name)
    for path in storage.files(uri):
        if storage.name(path) in MARKERS:
            storage.delete(storage.join(uri, path))
    storage.delete(uri)
    return True
