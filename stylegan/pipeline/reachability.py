"""What a storage root and its registry hold, as items with what they need: the graph by which `retention.py` cleans up.

The roots are versions behind aliases, the newest versions and runs, what is young, and what works now. A version reaches
its run, its images and the stage of its checkpoint; a run its images, all its stages, its run of MLflow, and the networks
and statistics that measured it; a set those whose tars it lists; a stage what was measured of its checkpoints. Stages and
sets are shared, and everything is found by keys and names: nothing depends on where the root was when it was written.

What cannot be read is kept, with all that it may need. So is what a clean-up with this config cannot judge: runs and
versions of other models, and runs that are in another registry.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import datetime

from stylegan import storage
from stylegan.config.file import read
from stylegan.config.tree import Config
from stylegan.data.dataset_card import read_card
from stylegan.data.index import find_manifest
from stylegan.data.sharding.changes import read_pointer
from stylegan.data.shardset import Manifest, ShardSet
from stylegan.errors import ConfigError, DamagedError, StepError, UnavailableError, UserError
from stylegan.evaluation.features.attributes import classifiers_folder
from stylegan.evaluation.features.embedded import EMBEDDED_KINDS, network_file
from stylegan.evaluation.page.write_page import read_report
from stylegan.evaluation.report import Report
from stylegan.pipeline import lock
from stylegan.pipeline.keys import former_stage_keys, make_keys, stage_keys
from stylegan.pipeline.retraining import BEGUN, Begun, start_config
from stylegan.records import Record
from stylegan.registry import versions
from stylegan.registry.contents import VersionFacts, list_all
from stylegan.tracking.connection import resolve_uri
from stylegan.tracking.removal import LoggedRun, list_runs
from stylegan.training.identity import identity
from stylegan.training.schedule import stages
from stylegan.uris import redact, without_login

DAY = 86_400.0
FRESH = 3_600.0  # seconds in which a file may still be part of work that holds no lock, such as sharding
CURE = "delete it"
# Rooms of a root whose folders (or files) are items, with what they are for people.
ROOMS = {
    "datasets": "sets",
    "stages": "stages",
    "runs": "runs",
    "evaluations": "evaluations",
    "features": "networks that measure",
    "stats": "networks that measure",
}
MLFLOW_ROOM, VERSION_ROOM = "mlflow", "versions"
PARTIAL_KIND = "partial files"


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


class _Set:
    """A finished set with its manifest, both from one look."""

    def __init__(self, uri: str, manifest: Manifest) -> None:
        self.shards = ShardSet.from_manifest(uri, manifest)
        urls = (entry["url"] for level in manifest["datasets"] for entry in level["shardlist"])
        self.others = {f"datasets/{url.split('/')[1]}" for url in urls if url.startswith("../")}


class Look:
    """One look at a root and its registry.

    Attributes:
        root: storage root.
        damaged: by the name of an item, or a path, what is wrong with it.
    """

    def __init__(self, config: Config, root: str, now: float, *, marked: Collection[str] = ()) -> None:
        """Take the locks first, then the listing: what begins in between is new to `new_work`.

        Args:
            config: names the registry, the model, and what is kept.
            root: storage root.
            now: the present time, in seconds since 1970.
            marked: names that an earlier clean-up has marked.

        Raises:
            StepError: storage does not answer.
        """
        self.config, self.root, self.now, self.marked = config, root, now, marked
        self.damaged: dict[str, str] = {}
        self._working = frozenset(one.run_id for one in lock.held(root) if one.name != lock.CLEAN_UP)
        self._files = storage.files(root)
        self._folders: dict[str, dict[str, storage.FileFacts]] = {}
        for path, facts in self._files.items():
            parts = path.split("/")
            is_pointer = parts[0] == "datasets" and len(parts) == 2
            if parts[0] in ROOMS and len(parts) > 1 and not is_pointer and not path.endswith(storage.PARTIAL):
                depth = 3 if parts[0] == "stats" else 2
                self._folders.setdefault("/".join(parts[:depth]), {})["/".join(parts[depth:])] = facts
        self._sets = dict(self._read_sets())
        self._configs = dict(self._read_configs())

    def new_work(self) -> str:
        """Return in words that work has begun of which this look does not know all that it needs; empty if none has."""
        for holder in lock.held(self.root):
            if holder.name == lock.CLEAN_UP:
                continue
            # A run writes its config right after it has taken its lock.
            unknown = holder.name == lock.run_lock(holder.run_id) and holder.run_id not in self._configs
            if holder.run_id not in self._working or unknown:
                return f"{lock.describe(holder)}; the next clean-up goes on"
        return ""

    def items(self) -> dict[str, Item]:
        """Return all items by name.

        Raises:
            ConfigError, StepError: storage or the registry do not answer, or the registry is not that of this root.
        """
        logged, registered = list_runs(self.config), list_all(resolve_uri(self.config))
        self._require_registry(registered)
        found = {
            item.name: item for item in (*self._stored(), *self._logged(logged), *self._versions(registered, logged))
        }
        edges, whys = self._edges(logged), self._whys(found)
        fresh = {
            name: "changed within the last hour" for name, item in found.items() if item.changed > self.now - FRESH
        }
        return {
            name: item.model_copy(
                update={
                    "reaches": (*item.reaches, *edges.get(name, ())),
                    "why": item.why or whys.get(name, "") or fresh.get(name, ""),
                }
            )
            for name, item in found.items()
        }

    def _require_registry(self, registered: tuple[VersionFacts, ...]) -> None:
        """Raise StepError if runs of this root were registered, and the registry knows nothing of the model.

        It was moved, emptied, or is another one: nobody can say then what the champion needs.
        """
        if any(version.name == self.config.model_name for version in registered):
            return
        for run_id, config in self._configs.items():
            if self._is_own(config) and "verdict.json" in self._folders[f"runs/{run_id}"]:
                raise StepError(
                    f"{redact(resolve_uri(self.config))}: this registry has no version of {self.config.model_name}, though "
                    f"{self.root} has runs that were registered ({run_id}); nothing is deleted before tracking.uri names "
                    "the registry that has them"
                )

    def _is_own(self, config: Config | None) -> bool:
        """Return whether a run's config is of the model, and in the registry, that is cleaned up."""
        if config is None:
            return False
        places = {without_login(resolve_uri(one)) for one in (config, self.config)}
        return config.model_name == self.config.model_name and len(places) == 1

    # --- what there is ---

    def _stored(self) -> Iterator[Item]:
        """Yield what the root holds: folders, and what killed writers have left in them."""
        for name, files in self._folders.items():
            yield Item(
                name=name,
                kind=ROOMS[name.partition("/")[0]],
                num_bytes=sum(facts.num_bytes for facts in files.values()),
                changed=max(facts.changed for facts in files.values()),
            )
        for path, facts in self._files.items():
            if path.endswith(storage.PARTIAL) and path.partition("/")[0] in ROOMS:
                yield Item(name=path, kind=PARTIAL_KIND, num_bytes=facts.num_bytes, changed=facts.changed)

    def _logged(self, logged: tuple[LoggedRun, ...]) -> Iterator[Item]:
        """Yield the runs of MLflow that belong to this root.

        The embedded MLflow of a folder has no others. A server may have those of other roots, so a run there counts only
        if this root has its folder, or had it when it was marked.
        """
        embedded = self.config.tracking.uri is None and storage.is_local(self.root)
        for run in logged:
            name = f"{MLFLOW_ROOM}/{run.mlflow_run_id}"
            if embedded or f"runs/{run.run_id}" in self._folders or name in self.marked:
                folder = f"mlartifacts/{run.artifact_uri.rpartition('/mlartifacts/')[2]}/"
                sizes = (facts.num_bytes for path, facts in self._files.items() if path.startswith(folder))
                yield Item(
                    name=name,
                    kind="MLflow",
                    num_bytes=sum(sizes),
                    changed=run.changed,
                    why="MLflow shows them as running" if run.running else "",
                    reaches=(f"runs/{run.run_id}",) if run.running else (),
                )

    def _versions(self, registered: tuple[VersionFacts, ...], logged: tuple[LoggedRun, ...]) -> Iterator[Item]:
        """Yield the versions of the registry."""
        retention, name = self.config.retention, self.config.model_name
        protected, place = versions.protected_versions(self.config), 0
        for version in registered:
            own = version.name == name
            if not own:
                why = "versions of other models"
            elif version.version in protected:
                why = "versions with an alias"
            else:
                why = f"the newest {retention.versions} version(s)" if place < retention.versions else ""
            place += own
            tags = version.tags
            inside = f"/models/{tags.get(versions.MODEL_ID, '')}/"
            yield Item(
                name=f"{VERSION_ROOM}/{version.version}" if own else f"{VERSION_ROOM}/{version.name}/{version.version}",
                kind="versions",
                num_bytes=sum(facts.num_bytes for path, facts in self._files.items() if inside in path),
                changed=datetime.fromisoformat(version.created).timestamp(),
                reaches=(
                    f"runs/{tags.get('stylegan.run_id', '')}",
                    f"datasets/{tags.get('stylegan.dataset_key', '')}",
                    _stage_of(tags.get("stylegan.checkpoint_uri", "")),
                    *(
                        f"{MLFLOW_ROOM}/{run.mlflow_run_id}"
                        for run in logged
                        if run.run_id == tags.get("stylegan.run_id")
                    ),
                ),
                why=why,
            )

    # --- records ---

    def _read_sets(self) -> Iterator[tuple[str, _Set]]:
        """Yield the finished sets by the names of their items."""
        for name in self._in("datasets"):
            uri = storage.join(self.root, name)
            try:
                manifest = find_manifest(uri)
            except UnavailableError:
                raise
            except StepError as error:
                self.damaged[name] = str(error)
                continue
            if manifest is not None:
                yield name, _Set(uri, manifest)

    def _read_configs(self) -> Iterator[tuple[str, Config | None]]:
        """Yield the config of each run that has written one by its id; None for one that cannot be read."""
        for name in self._in("runs"):
            uri = storage.join(self.root, name, "config.yaml")
            try:
                text = storage.read_bytes(uri).decode("utf-8-sig", errors="replace")
                yield storage.name(name), read(text, uri, [f"storage.root={self.root}"])
            except FileNotFoundError:
                continue  # half deleted
            except ConfigError as error:
                self.damaged[name] = f"{error}; it is kept, with all that it may need; {CURE} if nobody needs this run"
                yield storage.name(name), None

    def _in(self, room: str) -> list[str]:
        return [name for name in self._folders if name.startswith(f"{room}/")]

    # --- what reaches what ---

    def _edges(self, logged: tuple[LoggedRun, ...]) -> dict[str, set[str]]:
        """Return what each folder reaches."""
        edges = {name: set[str]() for name in self._folders}
        for name in self._in("datasets"):
            edges[name] |= self._of_set(name)
            if key := self._open_set(name):  # the folder of a listing, which leads to the set that lacks some of it
                edges.get(f"datasets/{key}", set()).add(name)
        for run_id, config in self._configs.items():
            edges[f"runs/{run_id}"] |= self._of_run(run_id, config)
        for run in logged:
            own = edges.get(f"runs/{run.run_id}", set())
            own.add(f"{MLFLOW_ROOM}/{run.mlflow_run_id}")
            if run.parent:  # the run of a sweep stays as long as one of its children
                own.add(f"{MLFLOW_ROOM}/{run.parent}")
        for name in self._in("evaluations"):
            if report := self._report(name):
                edges.get(_stage_of(report.checkpoint_uri), set()).add(name)
        return edges

    def _of_set(self, name: str) -> set[str]:
        """Return the sets whose tars a set lists, or will list: unfinished chunks are named after the set below."""
        if name in self._sets:
            return self._sets[name].others
        if name in self.damaged:
            return set(self._in("datasets"))
        chunks = (path for path in self._folders[name] if path.startswith("chunks/"))
        return {f"datasets/{storage.name(path).rpartition('-')[0]}" for path in chunks}

    def _open_set(self, name: str) -> str | None:
        if "open.json" not in self._folders[name]:
            return None
        try:
            return read_pointer(storage.join(self.root, name, "open.json"))
        except DamagedError as error:
            self.damaged[name] = str(error)
            return None

    def _of_run(self, run_id: str, config: Config | None) -> set[str]:
        """Return what a run reaches; everything that it may reach if that cannot be told."""
        anything = {name for room in ("datasets", "stages", "features", "stats") for name in self._in(room)}
        if config is None:
            return anything
        report = self._report(f"runs/{run_id}")
        found = _stages_below(config) | ({_stage_of(report.checkpoint_uri)} if report else set())
        for name, one in self._sets.items():
            if report is not None and report.dataset_fingerprint != one.shards.fingerprint:
                continue
            for keys in {stage_keys(config, one.shards), former_stage_keys(config, one.shards)}:
                own = _stage_names(config, keys)
                try:
                    same = own[-1] == _stage_of(report.checkpoint_uri) if report else False
                    if same or make_keys(config, one.shards, keys).run_id == run_id:
                        found |= {name, *own, *self._measured_by(config, one.shards)}
                except ConfigError:  # a network that measured it is gone, so its id cannot be computed
                    return anything
        if not found & self._sets.keys():
            # Its images are gone, or cannot be read now: then nobody knows its keys.
            found |= anything if self.damaged.keys() & set(self._in("datasets")) else self._trained_by(run_id)
        return found

    def _report(self, name: str) -> Report | None:
        try:
            return read_report(storage.join(self.root, name)) if "report.json" in self._folders[name] else None
        except DamagedError as error:
            self.damaged[name] = str(error)
            return None

    def _trained_by(self, run_id: str) -> set[str]:
        """Return the stages that a run has trained."""
        found = set[str]()
        for name in self._in("stages"):
            markers = [file for file in self._folders[name] if file.endswith("checkpoint.json")]
            with suppress(FileNotFoundError, DamagedError):
                uri = storage.join(self.root, name, max(markers, default="none"))
                if markers and storage.read_json(uri, dict[str, str | int], cure=CURE).get("run_id") == run_id:
                    found.add(name)
        return found

    def _measured_by(self, config: Config, shards: ShardSet) -> set[str]:
        """Return the networks and statistics by which a run is measured, at all of its resolutions."""
        evaluation, found = config.evaluation, set[str]()
        for resolution in shards.resolutions:
            view = shards.up_to(resolution)
            if evaluation.features in EMBEDDED_KINDS:
                found.add(f"features/{network_file(evaluation, view)}")
            found.add(f"features/{classifiers_folder(evaluation, view)}")
        return found | {name for name in self._in("stats") if shards.fingerprint in storage.name(name)}

    # --- the roots ---

    def _whys(self, found: Mapping[str, Item]) -> dict[str, str]:
        """Return why items are kept whatever leads to them; the first reason counts."""
        retention, whys = self.config.retention, dict[str, str]()
        own = [found[f"runs/{run_id}"] for run_id, config in self._configs.items() if self._is_own(config)]
        for run_id in self._working:
            whys[f"runs/{run_id}"] = "runs that work"
        for item in sorted(own, key=lambda item: -item.changed)[: retention.runs]:
            whys.setdefault(item.name, f"the newest {retention.runs} run(s)")
        for run_id, config in self._configs.items():
            if config is not None and not self._is_own(config):
                whys.setdefault(f"runs/{run_id}", "runs of other models or registries")
        for name in self._of_begun():
            whys.setdefault(name, "retrainings that go on")
        for name in self._of_source():
            whys.setdefault(name, "the newest images of data.source")
        for name in found:
            if name in self.damaged:
                whys.setdefault(name, "could not be read")
            elif name.startswith("features/") and name.endswith(".pth"):
                whys.setdefault(name, "public networks")
            elif retention.days is not None and found[name].changed > self.now - retention.days * DAY:
                whys.setdefault(name, f"younger than {retention.days:g} day(s)")
        return whys

    def _of_begun(self) -> set[str]:
        """Return what retrainings need that have begun and not ended."""
        found = set[str]()
        for path in self._files:
            if not (path.startswith("retrain/") and storage.name(path).startswith(BEGUN)):
                continue
            try:
                begun = storage.read_json(storage.join(self.root, path), Begun, cure=CURE)
            except FileNotFoundError:
                continue
            except DamagedError as error:
                self.damaged[path] = str(error)
                continue
            if begun.decision.start is not None and begun.decision.start.checkpoint:
                found.add(_stage_of(begun.decision.start.checkpoint))
            if begun.shards is not None:
                found.add(f"datasets/{storage.name(begun.shards.uri)}")
                with suppress(UserError):  # of another config, or its start is gone: then it is not continued
                    config = start_config(self.config, begun.decision.start)
                    found.update(_stage_names(config, stage_keys(config, begun.shards)))
        return found

    def _of_source(self) -> set[str]:
        """Return the newest sets of the source, on which its next one builds."""
        newest = set[str]()
        for path in self._files:
            if path.startswith("datasets/newest-"):
                with suppress(DamagedError):
                    newest.add(f"datasets/{read_pointer(storage.join(self.root, path))}")
        cards = {name: read_card(self._sets[name].shards.uri) for name in newest & self._sets.keys()}
        return {name for name, card in cards.items() if card and card.source == self.config.data.source}


def _stage_of(checkpoint_uri: str) -> str:
    """Return the name of the item of a checkpoint's stage."""
    return f"stages/{identity(checkpoint_uri).partition('/')[0]}"


def _stage_names(config: Config, keys: tuple[str, ...]) -> list[str]:
    return [f"stages/{stage.resolution:04d}-{key}" for stage, key in zip(stages(config), keys, strict=True)]


def _stages_below(config: Config) -> set[str]:
    """Return the stage that a training goes on from, if it begins with a checkpoint."""
    warm = config.training.warm_start
    return {_stage_of(warm.checkpoint)} if warm else set()
