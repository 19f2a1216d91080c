"""List what a storage root holds: runs, sets and models, with their sizes, from one listing and its small records.

It imports neither networks nor MLflow, so that a command answers at once; only `with_models` needs MLflow. What belongs
to whom is read from records, not from keys: a stage belongs to the run that trained it, so the sizes of runs add up
although runs share stages.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import NonNegativeInt, PositiveInt

from stylegan import storage
from stylegan.config.file import build, load
from stylegan.config.tree import Config
from stylegan.config.yaml_text import read as read_yaml
from stylegan.data.shardset import MANIFEST
from stylegan.errors import ConfigError, StepError, UnavailableError, UserError
from stylegan.evaluation.metric_table import rank
from stylegan.pipeline.lock import LOCKS, Holder, lives, run_lock
from stylegan.places import nearest
from stylegan.records import Record
from stylegan.registry.contents import RegisteredVersion, list_versions
from stylegan.tracking.connection import resolve_uri

T = TypeVar("T")
READERS = 16  # records read at the same time
STAGE = re.compile(r"(\d{4})-[0-9a-f]{10}")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Folders below a root, by what they are for people.
ROOMS = {
    "datasets": "sets",
    "stages": "stages",
    "runs": "runs",
    "evaluations": "evaluations",
    "features": "networks that measure",
    "stats": "networks that measure",
    "mlflow.db": "MLflow",
    "mlartifacts": "MLflow",
    "ray": "Ray",
    LOCKS: "locks",
    "studies": "studies",
}


class StoredStage(Record):
    """A stage: the run that trained it, and how far. `nimg` counts over all stages; None before its first checkpoint."""

    name: str
    run_id: str
    resolution: int
    finished: bool
    nimg: int | None
    num_bytes: int
    damaged: str = ""


class StoredRun(Record):
    """A run.

    Attributes:
        run_id: as other commands take it.
        state: started, `in 8x8` (a stage is under way, or was stopped), `trained 8x8` (up to a stage that is not the
            last one), trained, evaluated (not judged yet), or finished; before it `running, ` if a process works on it.
        changed: when it last did something, ISO 8601 in UTC.
        num_images: of its set; None if that is not known.
        kimg: of its newest checkpoint; None before the first one.
        metrics: of its report, in the order of the report.
        num_bytes: of its folder and of the stages that it trained.
        damaged: the problem with a record, if there is one.
    """

    run_id: str
    state: str
    changed: str
    num_images: int | None
    kimg: float | None
    metrics: dict[str, float]
    num_bytes: int
    damaged: str = ""


class StoredSet(Record):
    """A set of shards.

    Attributes:
        key: the name of its folder.
        uri: its folder, as `stylegan shard --verify` takes it.
        source: where its images came from; empty if its card is gone.
        fingerprint: that of the images; empty for a set that is not finished.
        num_images: None for a set that is not finished.
        resolutions: 4, 8, ...
        num_classes: of its labels.
        changed: when it was finished, ISO 8601 in UTC.
        num_bytes: of its folder.
        damaged: the problem with a record, if there is one.
    """

    key: str
    uri: str
    source: str
    fingerprint: str
    num_images: int | None
    resolutions: tuple[int, ...]
    num_classes: int
    changed: str
    num_bytes: int
    damaged: str = ""


class Inventory(Record):
    """The runs, sets and models of a root, the newest first.

    Attributes:
        root: the storage root.
        tracking_uri: the MLflow of the newest run; None if no run says where that is.
        models: the versions in that registry; empty until `with_models` has read them.
        no_models: why the registry could not be read; empty if it could.
        num_bytes: of everything, by purpose.
        free_bytes: on the disk of the root; None for other stores.
    """

    root: str
    runs: tuple[StoredRun, ...]
    sets: tuple[StoredSet, ...]
    stages: tuple[StoredStage, ...]
    tracking_uri: str | None
    num_bytes: dict[str, int]
    free_bytes: int | None
    models: tuple[RegisteredVersion, ...] = ()
    no_models: str = ""

    @property
    def is_empty(self) -> bool:
        """True if nothing was made here yet."""
        return not (self.runs or self.sets or self.stages)


# --- what is read of the records; whole ones belong to their steps ---


class _Report(Record):
    checkpoint_uri: str
    dataset_fingerprint: str
    metrics: dict[str, float]


class _Checkpoint(Record):
    run_id: str
    resolution: PositiveInt
    nimg: NonNegativeInt


class _Manifest(Record):
    fingerprint: str
    num_images: PositiveInt
    resolutions: tuple[PositiveInt, ...]
    label_names: tuple[str, ...]


class _Card(Record):
    source: str


def take_inventory(root: str, config: Config | None = None) -> Inventory:
    """Read what a root holds but the models; a damaged record is named and ends nothing. Writes nothing.

    Args:
        root: the storage root.
        config: says where the registry is; unset, the newest run says it.

    Raises:
        ConfigError: the root is a local folder that does not exist.
        StepError: the store does not answer.
    """
    root = storage.absolute(root)
    if storage.is_local(root) and not storage.exists(root) and config is None:
        raise ConfigError(f"{root}: no such folder; give a storage root, or the YAML file of a run")
    return _Root(root, config).inventory()


def with_models(inventory: Inventory) -> Inventory:
    """Read the registry of an inventory too; a registry that does not answer is named. Writes nothing.

    The import of MLflow takes several seconds, so print first what is known without it.
    """
    if inventory.tracking_uri is None:
        return inventory
    try:
        return inventory.model_copy(update={"models": list_versions(inventory.tracking_uri)})
    except UserError as error:
        return inventory.model_copy(update={"no_models": str(error)})


class _Root:
    """The listing of a root, and the folders in it."""

    def __init__(self, root: str, config: Config | None) -> None:
        self.root, self.config = root, config
        self.files = storage.files(root)
        self.folders: dict[tuple[str, str], dict[str, storage.FileFacts]] = {}  # (room, name) -> files in it
        for path, facts in self.files.items():
            parts = path.split("/", 2)
            if len(parts) == 3:
                self.folders.setdefault((parts[0], parts[1]), {})[parts[2]] = facts

    def inventory(self) -> Inventory:
        """Read the records and put them together."""
        with ThreadPoolExecutor(READERS, "inventory") as pool:
            sets = list(pool.map(self._set, self._names("datasets")))
            stages = list(pool.map(self._stage, filter(STAGE.fullmatch, self._names("stages"))))
            read = list(pool.map(self._run_records, self._names("runs")))
            running = list(pool.map(self._is_running, self._names("runs")))
        runs = [self._run(*records, sets, stages) for records in read]
        runs = [
            run.model_copy(update={"state": f"running, {run.state}"}) if is_running else run
            for run, is_running in zip(runs, running, strict=True)
        ]
        num_bytes: dict[str, int] = {}
        for path, facts in self.files.items():
            room = ROOMS.get(path.partition("/")[0], "other files")
            num_bytes[room] = num_bytes.get(room, 0) + facts.num_bytes
        return Inventory(
            root=self.root,
            runs=tuple(_newest_first(runs)),
            sets=tuple(_newest_first(sets)),
            stages=tuple(stages),
            tracking_uri=self._tracking_uri(),
            num_bytes=num_bytes,
            free_bytes=shutil.disk_usage(nearest(self.root)).free if storage.is_local(self.root) else None,
        )

    def _names(self, room: str) -> list[str]:
        return [name for above, name in self.folders if above == room]

    def _uri(self, *parts: str) -> str:
        return storage.join(self.root, *parts)

    def _size(self, room: str, name: str) -> int:
        return sum(facts.num_bytes for facts in self.folders[room, name].values())

    def _read(self, kind: type[T], room: str, name: str, file: str, problems: list[str]) -> T | None:
        """Read a record if the listing has it; one that is damaged or must not be read is a problem."""
        if file not in self.folders[room, name]:
            return None
        try:
            return storage.read_json(self._uri(room, name, file), kind, cure="")
        except FileNotFoundError:  # deleted meanwhile
            return None
        except UnavailableError:  # the store is away: so is everything else in it
            raise
        except StepError:
            problems.append(file)
            return None

    def _set(self, key: str) -> StoredSet:
        problems: list[str] = []
        files = self.folders["datasets", key]
        manifest = self._read(_Manifest, "datasets", key, MANIFEST, problems)
        card = self._read(_Card, "datasets", key, "card.json", problems)
        return StoredSet(
            key=key,
            uri=self._uri("datasets", key),
            source=card.source if card else "",
            fingerprint=manifest.fingerprint if manifest else "",
            num_images=manifest.num_images if manifest else None,
            resolutions=manifest.resolutions if manifest else (),
            num_classes=len(manifest.label_names) if manifest else 0,
            changed=_date([files[MANIFEST]] if MANIFEST in files else files.values()),
            num_bytes=self._size("datasets", key),
            damaged=_named(problems),
        )

    def _stage(self, name: str) -> StoredStage:
        problems: list[str] = []
        done = self._read(_Checkpoint, "stages", name, "done.json", problems)
        newest = done
        for file in sorted(self.folders["stages", name], reverse=True):
            if newest is None and re.fullmatch(r"checkpoint-\d+/checkpoint.json", file):
                newest = self._read(_Checkpoint, "stages", name, file, problems)
        return StoredStage(
            name=name,
            run_id=newest.run_id if newest else "",
            resolution=int(name[:4]),
            finished=done is not None,
            nimg=newest.nimg if newest else None,
            num_bytes=self._size("stages", name),
            damaged=_named(problems),
        )

    def _run_records(self, run_id: str) -> tuple[str, _Report | None, bool, list[str]]:
        """Return the id, the report if there is one, whether the gate has judged, and what is damaged."""
        problems: list[str] = []
        report = self._read(_Report, "runs", run_id, "report.json", problems)
        verdict = self._read(dict[str, Any], "runs", run_id, "verdict.json", problems)
        return run_id, report, bool(verdict), problems

    def _is_running(self, run_id: str) -> bool:
        """Return whether a process works on a run, by the newest record of its lock."""
        lock = run_lock(run_id)
        files = self.folders.get((LOCKS, lock))
        holder = self._read(Holder, LOCKS, lock, max(files), []) if files else None
        return holder is not None and lives(holder)

    def _run(
        self,
        run_id: str,
        report: _Report | None,
        judged: bool,
        problems: list[str],
        sets: list[StoredSet],
        stages: list[StoredStage],
    ) -> StoredRun:
        files, own = self.folders["runs", run_id], [stage for stage in stages if stage.run_id == run_id]
        problems = problems + [f"{stage.name}/{stage.damaged}" for stage in own if stage.damaged]
        nimg = max((stage.nimg for stage in own if stage.nimg is not None), default=None)
        wanted = {"report.json", "verdict.json"} & files.keys()
        changed = [files[name] for name in wanted] if report else list(files.values())
        if report:
            found = CHECKPOINT.search(report.checkpoint_uri)
            nimg = int(found[1]) if found else nimg
            state = "finished" if judged else "evaluated"
            images = [
                one.num_images for one in sets if one.num_images and one.fingerprint == report.dataset_fingerprint
            ]
        else:
            # Its config is written anew by every command; what it trained says more about its time.
            state, images = self._unfinished(run_id, own, sets, problems)
            trained = [facts for stage in own for facts in self.folders["stages", stage.name].values()]
            changed = trained or changed
        metrics = report.metrics if report else {}
        return StoredRun(
            run_id=run_id,
            state=state,
            changed=_date(changed),
            num_images=next(iter(images), None),
            kimg=nimg / 1000 if nimg is not None else None,
            metrics=dict(sorted(metrics.items(), key=lambda item: (rank(item[0]), item[0]))),
            num_bytes=self._size("runs", run_id) + sum(stage.num_bytes for stage in own),
            damaged=_named(problems),
        )

    def _unfinished(
        self, run_id: str, own: list[StoredStage], sets: list[StoredSet], problems: list[str]
    ) -> tuple[str, list[int]]:
        """Return the state of a run without a report, and the images of the sets of its source."""
        try:
            data = self._config(run_id)["data"]
            source, resolution = str(data["source"]), int(data["resolution"])
        except (UserError, KeyError, TypeError, ValueError):
            problems.append("config.yaml")
            source, resolution = "", 0
        images = [stored.num_images for stored in _newest_first(sets) if stored.num_images and stored.source == source]
        if not own:
            return "started", images
        last = max(own, key=lambda stage: stage.resolution)
        side = f"{last.resolution}x{last.resolution}"
        if not last.finished:
            return f"in {side}", images
        return ("trained" if last.resolution == resolution else f"trained {side}"), images

    def _config(self, run_id: str) -> dict[str, Any]:
        """Return the config of a run as plain values. Raises UserError."""
        uri = self._uri("runs", run_id, "config.yaml")
        try:
            value = read_yaml(storage.read_bytes(uri).decode("utf-8-sig", errors="replace"), uri).value
        except FileNotFoundError:
            raise StepError(f"{uri}: is gone") from None
        if not isinstance(value, dict):
            raise StepError(f"{uri}: is no config")
        return value

    def _tracking_uri(self) -> str | None:
        """Return the URI of the registry that the config names, or the newest run; None if neither does."""
        config = self.config
        runs = [run_id for run_id in self._names("runs") if "config.yaml" in self.folders["runs", run_id]]
        newest = lambda run_id: self.folders["runs", run_id]["config.yaml"].changed  # noqa: E731
        for run_id in sorted(runs, key=newest, reverse=True):
            if config is None:
                with suppress(UserError):  # a damaged config is named at its run
                    config = build(self._config(run_id), run_id, [f"storage.root={self.root}"])
        return resolve_uri(config) if config else None


def _named(files: list[str]) -> str:
    return ", ".join(files)


def _date(facts: Iterable[storage.FileFacts]) -> str:
    """Return the newest time of some files, ISO 8601 in UTC."""
    seconds = max((one.changed for one in facts), default=0.0)
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


Dated = TypeVar("Dated", StoredRun, StoredSet)


def _newest_first(records: list[Dated]) -> list[Dated]:
    return sorted(records, key=lambda record: record.changed, reverse=True)


# --- roots ---


class Roots(Record):
    """The storage roots that a person in the working folder means.

    Attributes:
        local: folders in which something was made.
        elsewhere: such as a bucket, with the path of the config that names it.
    """

    local: tuple[str, ...]
    elsewhere: dict[str, str]


def roots_here() -> Roots:
    """Return the storage roots in the working folder, and those of the configs in it and its configs/. Asks no store."""
    here = Path.cwd()
    local = {str(path.resolve()): None for path in sorted([here, *_folders(here)]) if _is_root(path)}
    elsewhere: dict[str, str] = {}
    for file in sorted([*here.glob("*.y*ml"), *here.glob("configs/*.y*ml")]):
        with suppress(UserError, OSError):  # other YAML files are no configs
            root = load(file).storage.root
            if not storage.is_local(root):
                elsewhere.setdefault(storage.absolute(root), str(file.relative_to(here)))
            elif _is_root(path := Path(storage.absolute(root))):
                local[str(path.resolve())] = None
    return Roots(local=tuple(local), elsewhere=elsewhere)


def _folders(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir()]
    return []


def _is_root(folder: Path) -> bool:
    with suppress(OSError):
        if any(STAGE.fullmatch(path.name) for path in _folders(folder / "stages")):
            return True
        marks = (f"datasets/*/{MANIFEST}", "runs/*/config.yaml")
        return any(next(folder.glob(mark), None) is not None for mark in marks)
    return False
