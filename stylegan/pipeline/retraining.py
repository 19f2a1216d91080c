"""Decide whether a model is to be trained again: look at its source and its registry, apply the rules of `retrain`.

The look is one listing of the source and one of the registry. No image is read, and torch and Ray are not imported, so
that a check after which nothing is to be done takes seconds. What was trained on what is asked of the registry, whose
versions say it in their tags; a file in storage holds only a retraining that was begun and has not ended.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from stylegan import storage
from stylegan.config.file import build, read
from stylegan.config.tree import Config
from stylegan.data.sharding.changes import Change, change_since, settings_key, shard_key
from stylegan.data.sharding.write_shards import find_shards
from stylegan.data.shardset import MANIFEST, ShardSet
from stylegan.data.sources.open_source import DATE, open_source
from stylegan.errors import ConfigError, DamagedError, UnavailableError, UserError, shown
from stylegan.pipeline import lock
from stylegan.records import Record, digest
from stylegan.registry.aliases import CHAMPION
from stylegan.registry.contents import VersionFacts, list_registered
from stylegan.retry import storage_settings
from stylegan.tracking.connection import resolve_uri
from stylegan.training.identity import identity
from stylegan.uris import redact

if TYPE_CHECKING:
    from stylegan.evaluation.drift import Drift  # imports torch

logger = logging.getLogger("stylegan")

# Tags of a version: what it was trained for. Another helper of the registry writes what it was trained on.
CONFIG_KEY, LISTING, DAY = "stylegan.config_key", "stylegan.listing", "stylegan.date"
PARENT = "stylegan.parent_checkpoint"
BEGUN = "begun"  # name of the file of a retraining that has not ended, below {root}/retrain/{model}
BEGUN_CURE = "delete it, and the next check decides anew"
SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
MAX_DATES = 10_000

# Sections and keys that say how a run is carried out, or whom it tells; others decide what comes out of it.
_OF_NO_RESULT = {"name", "storage", "ray", "tracking", "snapshots", "retrain", "retention"}

Rule = Literal[
    "first",  # the registry has no version of the model, or none of this day
    "config",  # none was trained with this config
    "unfinished",  # a retraining that was begun goes on
    "registry",  # a version is not judged, or the champion has lost its alias
    "images",  # enough new images
    "age",  # fewer, but the newest version is older than max_age
    "drift",  # fewer, but they are different
    "unchanged",
    "few",
    "held",  # enough, but they are so different that somebody is to look first
    "locked",  # another retraining of the model is under way
]


class Check(Record):
    """What a look at the source and at the registry has found.

    Attributes:
        model: name of the registered model.
        source: `data.source`, with its day, as it may be shown.
        day: the day that stands for `{date}` in the source, YYYY-MM-DD; None for a source without it.
        listing: key of the listing: it changes when an image or a label may have changed.
        config_key: digest of everything of the config that decides what comes out of a run.
        num_images: images that are listed.
        label_names: their classes.
        registry: URI of the registry.
        newest: the newest version that was trained with this config (and for this day); None if there is none.
        others: the number of all other versions of the model.
        champion: the version with this alias, whatever its config.
        fingerprint: that of the images if they are sharded; looked for only without `newest`.
        new, changed, deleted: images since `newest` was trained; 0 without it.
    """

    model: str
    source: str
    day: str | None
    listing: str
    config_key: str
    num_images: int
    label_names: tuple[str, ...]
    registry: str
    newest: VersionFacts | None
    others: int
    champion: VersionFacts | None
    fingerprint: str | None = None
    new: int = 0
    changed: int = 0
    deleted: int = 0


class Start(Record):
    """From which weights a retraining starts, and why; `checkpoint` is that of the champion, None for new weights."""

    kind: Literal["scratch", "champion"]
    why: str
    checkpoint: str | None = None


class Decision(Record):
    """Whether to train, by which rule, and why; how to start if so."""

    train: bool
    rule: Rule
    reason: str
    start: Start | None = None


class Begun(Record):
    """A retraining that has begun; its file is deleted when it has ended.

    Attributes:
        since: when it began, ISO 8601 in UTC.
        config_key: as in `Check`; with another config it is not continued.
        decision: why it began, and from which weights.
        shards: the images that it trains on, as soon as they are sharded: it ends with these, whatever came since.
        version_tags: of the version that it registers.
    """

    since: str
    config_key: str
    decision: Decision
    version_tags: dict[str, str]
    shards: ShardSet | None = None


# --- days ---


def for_day(config: Config, day: date | str | None) -> Config:
    """Return the config with a day in place of `{date}` in `data.source`.

    Args:
        day: the day, as a date or YYYY-MM-DD; None is today, here. A source without `{date}` takes none.

    Raises:
        ConfigError: a day for a source without `{date}`, or it is no date.
    """
    source = config.data.source
    if DATE not in source:
        if day is not None:
            raise ConfigError(
                f"data.source={source}: has no {DATE}, in whose place a day could stand; write it where the path has "
                f"the day, such as /data/{DATE}/images"
            )
        return config
    day = parse_day(day) if isinstance(day, str) else day or datetime.now().astimezone().date()
    dated = config.model_copy(
        update={"data": config.data.model_copy(update={"source": source.replace(DATE, day.isoformat())})}
    )
    dated._arguments = (*config._arguments, "--set", f"data.source={dated.data.source}")
    return dated


def parse_day(text: str) -> date:
    """Parse YYYY-MM-DD. Raises ConfigError if it is no such day."""
    with suppress(ValueError):
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return date.fromisoformat(text)
    raise ConfigError(f"{text}: is no date; write it as 2026-03-31")


def parse_days(text: str) -> list[date]:
    """Parse `2026-03-01..2026-03-31`, both included, to its days, oldest first. Raises ConfigError for anything else."""
    first, dots, last = text.partition("..")
    if not dots:
        return [parse_day(first)]
    begin, end = parse_day(first), parse_day(last)
    if end < begin or (end - begin).days >= MAX_DATES:
        raise ConfigError(f"--dates {text}: must be A..B with A not after B, and at most {MAX_DATES:,} days")
    return [begin + timedelta(days=number) for number in range((end - begin).days + 1)]


# --- the look ---


def check(config: Config, day: str | None = None) -> Check:
    """Look at the source and at the registry; write nothing.

    Args:
        config: with the day in its source already, see `for_day`.
        day: that day.

    Raises:
        ConfigError: there is no such source, or its address cannot work.
        StepError: the source cannot be listed, or storage or the registry do not answer: never mistaken for "no images".
    """
    with storage_settings(config.storage):
        root = config.storage.root
        source = open_source(config.data, root)
        versions = list_registered(config)
        key = config_key(config)
        own = [version for version in versions if version.tags.get(CONFIG_KEY) == key]
        if day is not None:
            own = [version for version in own if version.tags.get(DAY) == day]
        newest, listing = (own[0] if own else None), shard_key(config.data, source)
        change = Change(0, 0, 0, len(source.images), None)
        if newest is not None and newest.tags.get(LISTING) != listing:
            trained_on = newest.tags.get("stylegan.dataset_key", "")
            found = change_since(source, trained_on, root) if trained_on else None
            change = found or Change(len(source.images), 0, 0, 0, None)
        shards = find_shards(source, config.data, root) if newest is None else None
    return Check(
        model=config.model_name,
        source=shown(redact(config.data.source), 200),
        day=day,
        listing=listing,
        config_key=key,
        num_images=len(source.images),
        label_names=source.label_names,
        registry=redact(resolve_uri(config)),
        newest=newest,
        others=len(versions) - len(own),
        champion=next((version for version in versions if CHAMPION in version.aliases), None),
        fingerprint=shards.fingerprint if shards else None,
        new=change.new,
        changed=change.changed,
        deleted=change.deleted,
    )


def config_key(config: Config) -> str:
    """Return the digest of what decides the result of a run, but for the images and the weights that it starts from."""
    values = config.identity(_OF_NO_RESULT)
    values["data"] = {"settings": settings_key(config.data)} | {
        name: values["data"][name] for name in ("labels", "label_file", "max_rejected")
    }
    values["registry"] = values["registry"]["gate"]
    values["training"].pop("warm_start", None)
    values["evaluation"].pop("weights", None)
    if values["transfer"] is None:  # champions from before there was this section stay those of the same config
        del values["transfer"]
    return digest(values)


def version_tags(check: Check) -> dict[str, str]:
    """Return the tags that a version gets, by which later checks find it."""
    tags = {CONFIG_KEY: check.config_key, LISTING: check.listing}
    return tags | ({DAY: check.day} if check.day else {})


def predict(config: Config, day: str | None = None) -> tuple[Decision, Config]:
    """Return what a retraining would decide now, and the config of the run that it would do; writes nothing.

    Args:
        day: as for `for_day`; unset is today.

    Raises:
        ConfigError, StepError: as `for_day`, `check` and `choose_start`.
    """
    if day is None and DATE in config.data.source:
        day = datetime.now().astimezone().date().isoformat()
    config = for_day(config, day)
    with storage_settings(config.storage):
        if other := busy(config):
            return other, config
    found = check(config, day)
    decision = decide(config, found, begun=find_begun(config, day))
    if decision.train and decision.start is None:
        decision = decision.model_copy(update={"start": choose_start(config, found, decision.rule)})
    return decision, start_config(config, decision.start)


def busy(config: Config) -> Decision | None:
    """Return the decision of a check while another retraining of the model surely is under way, None if none is.

    A holder of the lock that is silent does not count: whoever trains watches it, and takes over.
    """
    holder = lock.holder(config.storage.root, lock_name(config))
    if holder is None or not lock.beats(holder):
        return None
    return Decision(train=False, rule="locked", reason=str(lock.LockedError(holder)))


def lock_name(config: Config) -> str:
    """Return the name of the lock of the model, which a retraining holds while it works."""
    return f"model-{config.model_name}"


# --- the rules ---


def decide(config: Config, check: Check, *, begun: Begun | None = None, now: datetime | None = None) -> Decision:
    """Apply the rules, in the order of `Rule`; the first that holds decides. How to start is left to `choose_start`.

    Args:
        config: its section `retrain` has the thresholds.
        begun: a retraining of the model that has not ended.
        now: the present time, in UTC.
    """
    newest, retrain = check.newest, config.retrain
    if begun is not None and begun.config_key == check.config_key and begun.shards is not None:
        why = begun.decision.reason
        return Decision(
            train=True,
            rule="unfinished",
            reason=f"a retraining that was begun at {_minute(begun.since)} has not ended; it goes on ({why})",
            start=begun.decision.start,
        )
    if newest is None:
        if not check.others or check.day is not None:
            what = f"{check.model} of {check.day}" if check.day else check.model
            return Decision(
                train=True, rule="first", reason=f"the registry {check.registry} has no version of {what} yet"
            )
        reason = f"the config has changed: none of the {check.others} version(s) of {check.model} was trained with it"
        return Decision(train=True, rule="config", reason=reason)
    if fault := _registry_fault(check, newest):
        return Decision(train=True, rule="registry", reason=fault)

    # The images.
    fresh, trained_on = check.new + check.changed, int(newest.tags.get("stylegan.num_images", 0))
    least = max(retrain.min_new_images, math.ceil(retrain.min_new_share * trained_on))
    found = _images(check)
    since = f"version {newest.version} was trained at {_minute(newest.created)}"
    asked = f"at least {least:,} are asked for (retrain.min_new_images={retrain.min_new_images:,}" + (
        f", min_new_share={retrain.min_new_share:g})" if retrain.min_new_share else ")"
    )
    unchanged = not (fresh or check.deleted)
    if not unchanged and fresh >= least:
        return Decision(train=True, rule="images", reason=f"{found} since {since}; {asked}")

    # The age. Going on from the same champion on the same images would make the same model again.
    old = retrain.max_age is not None and _age(newest, now) >= _seconds(retrain.max_age)
    if old and (not unchanged or (retrain.start == "champion" and not _went_on(check, newest))):
        reason = f"{since}, longer ago than retrain.max_age={retrain.max_age}, and there are {found}"
        return Decision(train=True, rule="age", reason=reason)
    if unchanged:
        reason = (
            f"no new images since {_minute(newest.created)}, when version {newest.version} was trained on these "
            f"{check.num_images:,} (listing {check.listing})"
        )
        if old:
            reason += (
                "; retrain.max_age has passed, but the same images and config would make the same model again "
                "(retrain.start=champion would train it on)"
            )
        return Decision(train=False, rule="unchanged", reason=reason)
    return Decision(train=False, rule="few", reason=f"{found} since {since}; {asked}")


def with_drift(config: Config, decision: Decision, drift: Drift | None) -> Decision:
    """Return the decision after the drift of the new images was measured; `on_drift` says what a large one does.

    Args:
        drift: None if it was not measured.
    """
    threshold, action = config.retrain.drift_kid, config.retrain.on_drift
    if drift is None or threshold is None or decision.rule in ("unfinished", "registry"):
        return decision
    far = drift.low > threshold
    if far and decision.train and action == "hold":
        reason = (
            f"{drift.text}, above retrain.drift_kid={threshold:g}: look at {drift.preview}, then raise it or set "
            f"retrain.on_drift=log. It would have trained because of {decision.reason}"
        )
        return Decision(train=False, rule="held", reason=reason)
    if far and not decision.train and action == "train":
        reason = f"{drift.text}, above retrain.drift_kid={threshold:g}, although there are only {decision.reason}"
        return Decision(train=True, rule="drift", reason=reason, start=decision.start)
    return decision


def wants_drift(config: Config, check: Check, decision: Decision) -> bool:
    """Return whether the drift is to be measured before anything is skipped: few new images may be very different ones."""
    fresh = check.new + check.changed
    forces = config.retrain.on_drift == "train" and config.retrain.drift_kid is not None
    return decision.rule == "few" and bool(fresh) and forces and check.champion is not None


def _went_on(check: Check, newest: VersionFacts) -> bool:
    """Return whether a version went on from the present champion."""
    if check.champion is None:
        return False
    return newest.tags.get(PARENT) == identity(check.champion.tags.get("stylegan.checkpoint_uri", ""))


def _registry_fault(check: Check, newest: VersionFacts) -> str | None:
    """Return what the registry lacks that a run of the same config puts right; None if nothing."""
    if "gate.verdict" not in newest.tags and CHAMPION not in newest.aliases:
        return f"version {newest.version} of {check.model} is not judged yet"
    if check.champion is None and any(tag.startswith("champion.") for tag in newest.tags):
        return f"{check.model} has lost its alias {CHAMPION}, which version {newest.version} had"
    return None


def _images(check: Check) -> str:
    counts = [(check.new, "new"), (check.changed, "changed"), (check.deleted, "deleted")]
    found = [f"{number:,} {what}" for number, what in counts if number] or ["no new"]
    return f"{', '.join(found)} image(s)"


def _minute(time: str) -> str:
    """Return an ISO 8601 time in UTC as people read it."""
    return f"{time[:16].replace('T', ' ')} UTC"


def _age(version: VersionFacts, now: datetime | None) -> float:
    return ((now or datetime.now(UTC)) - datetime.fromisoformat(version.created)).total_seconds()


def _seconds(age: str) -> float:
    return float(age[:-1]) * SECONDS[age[-1]]


# --- the start ---


def choose_start(config: Config, check: Check, rule: Rule) -> Start:
    """Choose the weights that a retraining starts from: those of the run that it repeats, else as `retrain.start` says.

    Args:
        rule: the rule by which it trains. `registry` repeats the run of the newest version, and `first` one that storage
            has and a registry that was emptied or moved has not.

    Raises:
        ConfigError: `start: champion` without a champion that can be continued.
        StepError: storage does not answer.
    """
    repeated = None
    if rule == "registry" and check.newest is not None:
        repeated = _as_version(config, check.newest)
    elif rule == "first" and check.fingerprint is not None:
        with storage_settings(config.storage):
            repeated = _as_stored(config, check)
    if repeated is not None:
        return repeated
    wanted, champion = config.retrain.start, check.champion
    if wanted == "scratch":
        return Start(kind="scratch", why="retrain.start=scratch")
    obstacle = _obstacle(config, check)
    if wanted == "auto" and champion is not None and obstacle is None:
        obstacle = _better_anew(config, check, champion)
    if obstacle or champion is None:
        if wanted == "champion":
            raise ConfigError(f"retrain.start=champion: {obstacle}; set retrain.start=scratch or auto")
        return Start(kind="scratch", why=f"retrain.start=auto: {obstacle}")
    why = f"retrain.start={wanted}"
    if wanted == "auto":
        why += f": the champion, version {champion.version}, has these networks and most of these images"
    return Start(kind="champion", why=why, checkpoint=champion.checkpoint_uri(config.storage.root))


def _obstacle(config: Config, check: Check) -> str | None:
    """Return the reason for which training cannot go on from the champion, None if it can."""
    from stylegan.training.warm_start import warm_obstacle  # imports torch

    champion = check.champion
    if champion is None:
        return f"{check.model} has no champion yet"
    with storage_settings(config.storage):
        found = warm_obstacle(config, champion.checkpoint_uri(config.storage.root), check.label_names)
    return f"the champion, version {champion.version}, cannot be continued: {found}" if found else None


def _as_version(config: Config, version: VersionFacts) -> Start:
    """Return the start of the run that registered a version."""
    parent, why = version.tags.get(PARENT), f"as version {version.version}, whose run is repeated"
    if not parent:
        return Start(kind="scratch", why=why)
    uri = storage.join(storage.absolute(config.storage.root), "stages", parent)
    return Start(kind="champion", why=why, checkpoint=uri)


def _as_stored(config: Config, check: Check) -> Start | None:
    """Return the start of the newest judged run in storage with this config on these images, None if there is none."""
    root = storage.join(storage.absolute(config.storage.root), "runs")
    files = storage.files(root)
    judged = [path for path in files if path.startswith(f"{config.name}-") and path.endswith("/verdict.json")]
    for path in sorted(judged, key=lambda path: files[path].changed, reverse=True):
        run_id = path.partition("/")[0]
        uri = storage.join(root, run_id)
        with suppress(UserError, FileNotFoundError):
            report = storage.read_json(storage.join(uri, "report.json"), _Measured, cure="")
            stored = read(storage.read_bytes(storage.join(uri, "config.yaml")).decode(), uri)
            if (config_key(stored), report.dataset_fingerprint) == (check.config_key, check.fingerprint):
                warm, why = stored.training.warm_start, f"as run {run_id}, which storage has and the registry has not"
                return Start(
                    kind="champion" if warm else "scratch", why=why, checkpoint=warm.checkpoint if warm else None
                )
    return None


class _Measured(Record):
    """What is read of a report here."""

    dataset_fingerprint: str


def _better_anew(config: Config, check: Check, champion: VersionFacts) -> str | None:
    """Return why a champion that could be continued is not worth it, None if it is."""
    if champion.tags.get(CONFIG_KEY) != check.config_key:
        return f"the config has changed since the champion, version {champion.version}, was trained"
    fresh = check.new + check.changed
    if 2 * fresh > check.num_images:
        return f"{fresh:,} of {check.num_images:,} images are new, more than half"
    return None


def start_config(config: Config, start: Start | None) -> Config:
    """Return the config of the run that a retraining does: that of the user, with the champion to start from if so.

    Raises:
        ConfigError: the two do not fit together.
    """
    if start is None or start.checkpoint is None:
        return config
    values = config.model_dump(mode="json")
    values["training"]["warm_start"] = {"checkpoint": start.checkpoint, "kimg": config.retrain.warm_kimg}
    warm = build(values, "retrain.start=champion")
    options = (
        f"training.warm_start.checkpoint={start.checkpoint}",
        f"training.warm_start.kimg={config.retrain.warm_kimg:g}",
    )
    warm._arguments = (*config._arguments, *(argument for option in options for argument in ("--set", option)))
    return warm


# --- a retraining that has begun ---


def find_begun(config: Config, day: str | None = None) -> Begun | None:
    """Return a retraining of the model that has begun and not ended, None if there is none.

    Its images must still be in storage.

    Raises:
        StepError: storage does not answer.
    """
    with storage_settings(config.storage):
        uri = _begun_uri(config, day)
        try:
            begun = storage.read_json(uri, Begun, cure=BEGUN_CURE)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            logger.warning("%s", error)
            return None
        if begun.shards is None:
            return begun
        # The root may have moved.
        here = storage.join(storage.absolute(config.storage.root), "datasets", storage.name(begun.shards.uri))
        if not storage.exists(storage.join(here, MANIFEST)):
            return None
        return begun.model_copy(update={"shards": begun.shards.model_copy(update={"uri": here})})


class Retraining:
    """The file of a retraining under way, by which the next one goes on if this one is killed."""

    def __init__(self, config: Config, check: Check, decision: Decision, begun: Begun | None) -> None:
        self.uri = _begun_uri(config, check.day)
        if decision.rule == "unfinished" and begun is not None:
            self.record = begun
            return
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self.record = Begun(
            since=since, config_key=check.config_key, decision=decision, version_tags=version_tags(check)
        )

    def write(self, decision: Decision, shards: ShardSet) -> None:
        """Note the images that it trains on, from where on it is continued. Raises StepError if storage refuses."""
        self.record = self.record.model_copy(update={"decision": decision, "shards": shards})
        storage.write_json(self.uri, self.record.model_dump(mode="json"))

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Delete the file at the end of the block, unless it was interrupted or something did not answer.

        A mistake or a defect would come again; the next check decides anew.
        """
        try:
            yield
        except (UnavailableError, lock.LockedError):
            raise
        except Exception:
            with suppress(UserError):
                storage.delete(self.uri)
            raise
        storage.delete(self.uri)


def _begun_uri(config: Config, day: str | None) -> str:
    name = f"{BEGUN}-{day}.json" if day else f"{BEGUN}.json"
    return storage.join(storage.absolute(config.storage.root), "retrain", config.model_name, name)
