"""Delete what nothing needs any more: sets, stages, runs, what measures them, runs of MLflow and old versions.

What is needed is a question of reachability. The roots are the versions behind aliases, the newest versions of the model,
the newest runs, what is young, and what works now. A version reaches its run and the stage of its checkpoint; a run its
images, all its stages, and the networks and statistics that measured it; a set the sets whose tars it lists. Stages and
sets are shared, and everything is found by keys and names: nothing depends on where the root was when it was written.

Deletion has two phases. What is not reached is marked, and deleted by a later clean-up if it was marked `grace_days` ago,
is still not reached, and nothing in it has changed since. Before each deletion the locks are looked at again: a run that
has begun meanwhile ends the clean-up. What marks a folder as complete is deleted first, so a kill leaves nothing that
counts, and the next clean-up goes on. A run that takes a set or a stage from storage in the very moment of its deletion
fails, and makes it again when it is repeated: nothing is lost that cannot be made again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from stylegan import storage
from stylegan.config.file import read
from stylegan.config.sections import RetentionConfig
from stylegan.config.tree import Config
from stylegan.data.index import find_manifest
from stylegan.data.shardset import MANIFEST, ShardSet
from stylegan.errors import ConfigError, DamagedError, StepError, UserError
from stylegan.evaluation.features.attributes import classifiers_folder
from stylegan.evaluation.features.embedded import EMBEDDED_KINDS, network_file
from stylegan.pipeline import lock
from stylegan.pipeline.keys import former_stage_keys, make_keys, stage_keys
from stylegan.pipeline.retraining import BEGUN, Begun
from stylegan.records import Record
from stylegan.registry import versions
from stylegan.registry.contents import list_registered
from stylegan.retry import storage_settings
from stylegan.tracking.removal import delete_run, list_runs
from stylegan.training.identity import identity
from stylegan.training.schedule import stages

logger = logging.getLogger("stylegan")

MARKS = "gc/marked.json"
LOCK = "clean-up"
CURE = "delete it, and the next clean-up marks anew"
DAY = 86_400.0
# Rooms of a root whose folders (or files) are items, with what they are for people.
ROOMS = {
    "datasets": "sets",
    "stages": "stages",
    "runs": "runs",
    "evaluations": "evaluations",
    "features": "networks that measure",
    "stats": "networks that measure",
}
MLFLOW, VERSIONS = "MLflow", "versions"
# Files that mark their folder as complete, or lead to it.
MARKERS = (MANIFEST, "done.json", "checkpoint.json", "report.json", "verdict.json", "config.yaml")


class Item(Record):
    """Something that can be deleted.

    Attributes:
        name: its path below the root; `mlflow/{id}` for a run of MLflow, `versions/{number}` for a version.
        kind: what it is for people.
        num_bytes: its size.
        changed: the newest time of its files, in seconds since 1970.
        reaches: names of what it needs.
        why: why it is kept, for a root; empty for anything else.
    """

    name: str
    kind: str
    num_bytes: int
    changed: float
    reaches: tuple[str, ...] = ()
    why: str = ""


class CleanUp(Record):
    """What a clean-up has found and done.

    Attributes:
        dry_run: whether it has only looked.
        before: bytes by kind.
        kept: number of items that are kept, by the reason.
        marked: names of items that were marked, or would be.
        deleted: names of items that were deleted, or would be, the oldest first.
        freed: bytes of the deleted ones, by kind.
        stopped: why it ended early; empty if it did not.
        damaged: what could not be read, and was kept with everything like it.
    """

    dry_run: bool
    before: dict[str, int]
    kept: dict[str, int]
    marked: tuple[str, ...]
    deleted: tuple[str, ...]
    freed: dict[str, int]
    stopped: str = ""
    damaged: tuple[str, ...] = ()

    @property
    def freed_bytes(self) -> int:
        """The bytes that were freed."""
        return sum(self.freed.values())


class _Mark(Record):
    since: float
    changed: float


# --- what goes: pure ---


def reached(items: Mapping[str, Item]) -> set[str]:
    """Return the names of all items that a root reaches, the roots included."""
    found, front = set[str](), [name for name, item in items.items() if item.why]
    while front:
        name = front.pop()
        if name not in found and name in items:
            found.add(name)
            front += items[name].reaches
    return found


def garbage(items: Mapping[str, Item], retention: RetentionConfig) -> list[Item]:
    """Return the items that nothing needs, the oldest first; with `max_gib` only as many as bring the size down to that.

    An item comes before what it reaches: a run before its stages.
    """
    kept = reached(items)
    loose = sorted(
        (item for name, item in items.items() if name not in kept), key=lambda item: (item.changed, item.name)
    )
    if retention.max_gib is None:
        return loose
    size, limit, chosen = sum(item.num_bytes for item in items.values()), retention.max_gib * 2**30, []
    for item in loose:
        if size <= limit:
            break
        chosen.append(item)
        size -= item.num_bytes
    return chosen


def due(
    loose: Sequence[Item], marks: Mapping[str, _Mark], retention: RetentionConfig, now: float
) -> tuple[list[Item], dict[str, _Mark]]:
    """Return which of the loose items are to be deleted now, and the marks afterwards.

    An item is due if it was marked `grace_days` ago and has not changed since. One that is not loose any more, or has
    changed, loses its mark.
    """
    deleted, left = [], dict[str, _Mark]()
    for item in loose:
        mark = marks.get(item.name)
        if mark is None or mark.changed != item.changed:
            mark = _Mark(since=now, changed=item.changed)
        if now - mark.since >= retention.grace_days * DAY:
            deleted.append(item)
        else:
            left[item.name] = mark
    return deleted, left


# --- the clean-up ---


def clean_up(config: Config, *, dry_run: bool = False, now: float | None = None) -> CleanUp:
    """Mark and delete what nothing needs, as `retention` says.

    Args:
        config: names root, registry and model.
        dry_run: only look; write nothing.
        now: the present time, in seconds since 1970.

    Raises:
        ConfigError, StepError: storage or the registry do not answer: nothing was deleted then.
        LockedError: another clean-up is under way.
    """
    root = storage.absolute(config.storage.root)
    with storage_settings(config.storage):
        if dry_run:
            return _clean_up(config, root, True, time.time() if now is None else now)
        with lock.hold(root, LOCK, run_id=LOCK, what="stylegan gc"):
            return _clean_up(config, root, False, time.time() if now is None else now)


def _clean_up(config: Config, root: str, dry_run: bool, now: float) -> CleanUp:
    look = _Look(config, root, now)
    items = look.items()
    before: dict[str, int] = {}
    for item in items.values():
        before[item.kind] = before.get(item.kind, 0) + item.num_bytes
    kept: dict[str, int] = {}
    for item in items.values():
        if item.why:
            kept[item.why] = kept.get(item.why, 0) + 1
    retention = config.retention
    loose = garbage(items, retention)
    wanted, marks = due(loose, _read_marks(root), retention, now)
    marked = tuple(sorted(marks))
    deleted: list[Item] = []
    stopped = ""
    if dry_run:
        deleted = wanted
    else:
        _write_marks(root, marks)
        for item in wanted:
            if stopped := look.new_work():
                break
            if _delete(config, root, item):
                deleted.append(item)
    freed: dict[str, int] = {}
    for item in deleted:
        freed[item.kind] = freed.get(item.kind, 0) + item.num_bytes
    return CleanUp(
        dry_run=dry_run,
        before=before,
        kept=kept,
        marked=marked,
        deleted=tuple(item.name for item in deleted),
        freed=freed,
        stopped=stopped,
        damaged=tuple(look.damaged.values()),
    )


def _read_marks(root: str) -> dict[str, _Mark]:
    try:
        return storage.read_json(storage.join(root, MARKS), dict[str, _Mark], cure=CURE)
    except FileNotFoundError:
        return {}
    except DamagedError as error:
        logger.warning("%s", error)
        return {}


def _write_marks(root: str, marks: Mapping[str, _Mark]) -> None:
    if marks or storage.exists(storage.join(root, MARKS)):
        storage.write_json(storage.join(root, MARKS), {name: mark.model_dump() for name, mark in marks.items()})


def _delete(config: Config, root: str, item: Item) -> bool:
    """Delete an item, its markers first; return whether it is gone."""
    room, _, name = item.name.partition("/")
    if room == "mlflow":
        delete_run(config, name)
        return True
    if room == VERSIONS:
        return versions.delete_version(config, name)
    uri = storage.join(root, item.name)
    inside = storage.files(uri)
    for path in inside:
        if storage.name(path) in MARKERS:
            storage.delete(storage.join(uri, path))
    storage.delete(uri)
    return True


class _Look:
    """What a root and its registry hold, as items with what they reach.

    What cannot be read is kept, with everything that it might reach: all of the same name or kind.
    """

    def __init__(self, config: Config, root: str, now: float) -> None:
        self.config, self.root, self.now = config, root, now
        self.damaged: dict[str, str] = {}  # name of an item -> what is wrong with it
        self.working = frozenset(holder.run_id for holder in lock.held(root) if holder.name != LOCK)
        self.files = storage.files(root)
        self.folders: dict[str, dict[str, storage.FileFacts]] = {}
        for path, facts in self.files.items():
            parts = path.split("/")
            if parts[0] not in ROOMS or len(parts) < 2 or (parts[0] == "datasets" and len(parts) == 2):
                continue
            depth = 3 if parts[0] == "stats" else 2
            self.folders.setdefault("/".join(parts[:depth]), {})["/".join(parts[depth:])] = facts

    def new_work(self) -> str:
        """Return in words that a run has begun since the look, empty if none has."""
        new = {one.run_id for one in lock.held(self.root) if one.name != LOCK} - self.working
        return f"run {min(new)} has begun meanwhile; the next clean-up goes on" if new else ""

    def items(self) -> dict[str, Item]:
        """Return all items by name."""
        sets = self._sets()
        found = {}
        for name, files in self.folders.items():
            found[name] = Item(
                name=name,
                kind=ROOMS[name.partition("/")[0]],
                num_bytes=sum(facts.num_bytes for facts in files.values()),
                changed=max(facts.changed for facts in files.values()),
            )
        edges = self._edges(sets)
        whys = self._whys(found)
        found |= self._registered(edges)
        return {
            name: item.model_copy(
                update={
                    "reaches": (*item.reaches, *edges.get(name, ())),
                    "why": item.why or whys.get(name, ""),
                }
            )
            for name, item in found.items()
        }

    # --- sets ---

    def _sets(self) -> dict[str, ShardSet]:
        """Return the finished sets by the names of their folders."""
        found = {}
        for name in self.folders:
            room, _, key = name.partition("/")
            if room != "datasets":
                continue
            uri = storage.join(self.root, name)
            try:
                manifest = find_manifest(uri)
            except StepError as error:
                self.damaged[name] = str(error)
                continue
            if manifest is not None:
                found[key] = ShardSet.from_manifest(uri, manifest)
        return found

    def _tars(self, key: str) -> set[str]:
        """Return the names of the sets whose tars a set lists."""
        with suppress(StepError):
            manifest = find_manifest(storage.join(self.root, "datasets", key))
            urls = [entry["url"] for level in manifest["datasets"] for entry in level["shardlist"]] if manifest else []
            return {f"datasets/{url.split('/')[1]}" for url in urls if url.startswith("../")}
        return set()

    # --- what reaches what ---

    def _edges(self, sets: Mapping[str, ShardSet]) -> dict[str, set[str]]:
        """Return what each folder reaches."""
        edges: dict[str, set[str]] = {}
        for key in sets:
            edges[f"datasets/{key}"] = self._tars(key)
        for name in self.folders:
            room, _, run_id = name.partition("/")
            if room == "runs":
                edges[name] = self._of_run(run_id, sets)
        return edges

    def _of_run(self, run_id: str, sets: Mapping[str, ShardSet]) -> set[str]:
        """Return what a run reaches; everything that it may reach if that cannot be told."""
        uri = storage.join(self.root, "runs", run_id, "config.yaml")
        try:
            text = storage.read_bytes(uri).decode("utf-8-sig", errors="replace")
            config = read(text, uri, [f"storage.root={self.root}"])
        except FileNotFoundError:
            return set()  # was begun and never said what it is; or half deleted
        except ConfigError as error:
            self.damaged[f"runs/{run_id}"] = f"{uri}: {error}"
            return {
                name for name in self.folders if name.partition("/")[0] in ("datasets", "stages", "features", "stats")
            }
        for key, shards in sets.items():
            found = set[str]()
            matched = False
            for keys in {stage_keys(config, shards), former_stage_keys(config, shards)}:
                with suppress(UserError):
                    if make_keys(config, shards, keys).run_id == run_id:
                        matched = True
                names = (f"{stage.resolution:04d}-{one}" for stage, one in zip(stages(config), keys, strict=True))
                found |= {f"stages/{name}" for name in names}
            if matched:
                return found | {f"datasets/{key}"} | self._measured_by(config, shards) | self._warm(config)
        return self._trained_by(run_id) | self._warm(config)

    def _trained_by(self, run_id: str) -> set[str]:
        """Return the stages that a run has trained, for one whose images are gone."""
        found = set()
        for name, files in self.folders.items():
            if name.startswith("stages/") and (records := [file for file in files if file.endswith("checkpoint.json")]):
                with suppress(UserError, FileNotFoundError, AttributeError):
                    record = storage.read_json(
                        storage.join(self.root, name, max(records)), dict[str, str | int], cure=CURE
                    )
                    if record.get("run_id") == run_id:
                        found.add(name)
        return found

    def _warm(self, config: Config) -> set[str]:
        warm = config.training.warm_start
        return {f"stages/{warm.identity.partition('/')[0]}"} if warm else set()

    def _measured_by(self, config: Config, shards: ShardSet) -> set[str]:
        """Return the networks and statistics by which a run is measured, at all of its resolutions."""
        evaluation, found = config.evaluation, set[str]()
        for resolution in shards.resolutions:
            view = shards.up_to(resolution)
            if evaluation.features in EMBEDDED_KINDS:
                found.add(f"features/{network_file(evaluation, view)}")
            found.add(f"features/{classifiers_folder(evaluation, view)}")
        found |= {name for name in self.folders if name.startswith("features/") and name.endswith(".pth")}
        return found | {
            name for name in self.folders if name.startswith("stats/") and shards.fingerprint in storage.name(name)
        }

    # --- the roots ---

    def _whys(self, found: Mapping[str, Item]) -> dict[str, str]:
        """Return why folders are kept whatever points at them."""
        retention, whys = self.config.retention, dict[str, str]()
        runs = sorted(
            (item for name, item in found.items() if name.startswith("runs/")), key=lambda item: -item.changed
        )
        whys |= {item.name: f"the newest {retention.runs} run(s)" for item in runs[: retention.runs]}
        if retention.days is not None:
            limit = self.now - retention.days * DAY
            whys |= {
                name: f"younger than {retention.days:g} day(s)" for name, item in found.items() if item.changed > limit
            }
        for run_id in self.working:
            whys[f"runs/{run_id}"] = "runs that work"
        for begun in self._begun():
            if begun.shards is not None:
                whys[f"datasets/{storage.name(begun.shards.uri)}"] = "retrainings that go on"
            start = begun.decision.start
            if start is not None and start.checkpoint:
                whys[f"stages/{identity(start.checkpoint).partition('/')[0]}"] = "retrainings that go on"
        whys |= dict.fromkeys(self.damaged, "could not be read")
        whys |= {name: "public networks" for name in found if name.startswith("features/") and name.endswith(".pth")}
        return whys

    def _begun(self) -> list[Begun]:
        found = []
        for path in self.files:
            if path.startswith("retrain/") and storage.name(path).startswith(BEGUN):
                try:
                    found.append(storage.read_json(storage.join(self.root, path), Begun, cure=CURE))
                except FileNotFoundError:
                    continue
                except DamagedError as error:
                    self.damaged[path] = str(error)
        return found

    def _registered(self, edges: dict[str, set[str]]) -> dict[str, Item]:
        """Return the versions of the model and the runs of MLflow as items.

        A run of the pipeline reaches that of MLflow, and a version both, since its page leads there.
        """
        retention, found = self.config.retention, dict[str, Item]()
        logged = list_runs(self.config)
        of_run: dict[str, list[str]] = {}
        for run in logged:
            of_run.setdefault(run.run_id, []).append(f"mlflow/{run.mlflow_run_id}")
            artifacts = run.artifact_uri.rpartition("/mlartifacts/")[2]
            inside = [facts for path, facts in self.files.items() if path.startswith(f"mlartifacts/{artifacts}/")]
            # One whose folder is gone is garbage; one whose folder stays, stays.
            alive = f"runs/{run.run_id}" in self.folders or run.run_id in self.working
            found[f"mlflow/{run.mlflow_run_id}"] = Item(
                name=f"mlflow/{run.mlflow_run_id}",
                kind=MLFLOW,
                num_bytes=sum(facts.num_bytes for facts in inside),
                changed=run.changed,
                why="" if alive or run.changed < self.now - DAY else "runs of MLflow of today",
            )
        protected = versions.protected_versions(self.config)
        for place, version in enumerate(list_registered(self.config)):
            why = ""
            if version.version in protected:
                why = "versions with an alias"
            elif place < retention.versions:
                why = f"the newest {retention.versions} version(s)"
            run_id = version.tags.get("stylegan.run_id", "")
            checkpoint = identity(version.tags.get("stylegan.checkpoint_uri", "")).partition("/")[0]
            found[f"{VERSIONS}/{version.version}"] = Item(
                name=f"{VERSIONS}/{version.version}",
                kind=VERSIONS,
                num_bytes=self._model_bytes(version.tags.get(versions.MODEL_ID, "")),
                changed=_seconds(version.created),
                reaches=(f"runs/{run_id}", f"stages/{checkpoint}", *of_run.get(run_id, ())),
                why=why,
            )
        for name, reaches in edges.items():
            room, _, run_id = name.partition("/")
            if room == "runs":
                reaches.update(of_run.get(run_id, ()))
        return found

    def _model_bytes(self, model_id: str) -> int:
        """Return the bytes of a logged model, as far as they are below the root."""
        inside = f"/models/{model_id}/"
        return sum(facts.num_bytes for path, facts in self.files.items() if model_id and inside in path)


def _seconds(time_text: str) -> float:
    return datetime.fromisoformat(time_text).timestamp()
