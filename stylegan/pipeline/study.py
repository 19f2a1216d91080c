"""A search for the best settings by Optuna: its space, its study beside the root, and which trial comes next.

    training.r1_gamma: {low: 0.01, high: 10, log: true}     # a number; log: its logarithm is drawn evenly
    model.mapping_layers: {low: 2, high: 8, step: 2}        # a whole number, as its bounds are whole
    model.style_mixing_prob: [0, 0.5, 0.9]                  # one of these

The study is a journal in storage, `{root}/studies/{name}/journal.jsonl`, which only the holder of the sweep's lock writes.
A trial that was under way when its process ended is still open there, and goes on with the same settings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from stylegan import storage
from stylegan.commands import pip_install
from stylegan.config.tree import Config
from stylegan.config.yaml_text import read as read_yaml
from stylegan.data.shardset import ShardSet
from stylegan.errors import ConfigError, DamagedError
from stylegan.evaluation.metric_table import METRICS, Direction, describe, split_key
from stylegan.evaluation.quick import quick_evaluation, rows_name
from stylegan.pipeline.run import Run
from stylegan.pipeline.sweep import with_overrides
from stylegan.records import Record, digest
from stylegan.training.curves import read_rows
from stylegan.training.schedule import Stage

if TYPE_CHECKING:
    import optuna

STUDIES = "studies"  # folder below a storage root
RANDOM_TRIALS = 5  # the first ones, which the sampler and the pruner need before they know anything
Value = bool | int | float | str | None


class Dimension(Record):
    """The values that a key may have: those from `low` to `high`, or one of `choices`."""

    key: str
    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    log: bool = False
    choices: tuple[Value, ...] = ()

    def suggest(self, trial: optuna.trial.Trial) -> Value:
        """Return the value of a trial; one that it has already stays."""
        if self.choices:
            found: Value = trial.suggest_categorical(self.key, list(self.choices))
            return found
        assert self.low is not None
        assert self.high is not None
        if all(isinstance(bound, int) for bound in (self.low, self.high, self.step or 1)):
            return trial.suggest_int(self.key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)


def read_space(path: str | Path) -> tuple[Dimension, ...]:
    """Read the file of a space.

    Raises:
        ConfigError: it is no such file; the line names the place and what is allowed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--space {path}: cannot be read as text ({error}); give the path of a YAML file") from None
    document = read_yaml(text, str(path))
    if not isinstance(document.value, dict) or not document.value:
        raise ConfigError(f"{path}: must hold lines such as `training.r1_gamma: {{low: 0.01, high: 10, log: true}}`")
    return tuple(
        _dimension(f"{path}: line {document.lines.get((str(key),), 1)}: {key}", str(key), value)
        for key, value in document.value.items()
    )


def check_space(path: str | Path, space: Sequence[Dimension], config: Config) -> None:
    """Check that the config takes the ends of every range, and every choice. Raises ConfigError."""
    for dimension in space:
        for value in dimension.choices or (dimension.low, dimension.high):
            try:
                with_overrides(config, [f"{dimension.key}={json.dumps(value)}"])
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None


def _dimension(place: str, key: str, value: Any) -> Dimension:
    if isinstance(value, list):
        if len(value) < 2 or any(isinstance(one, dict | list) for one in value):
            raise ConfigError(f"{place}: a list must have two or more single values, such as [0, 0.5, 0.9]")
        if len({json.dumps(one) for one in value}) < len(value):
            raise ConfigError(f"{place}: {json.dumps(value)} has a value twice; leave one out")
        return Dimension(key=key, choices=tuple(value))
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: must be a list of values, or {{low: 0.01, high: 10}}")
    if unknown := [name for name in value if name not in ("low", "high", "step", "log")]:
        raise ConfigError(f"{place}.{unknown[0]}: is not known; a range has low, high, step and log")
    for name in ("low", "high", "step"):
        number = value.get(name)
        if (number is not None or name != "step") and type(number) not in (int, float):
            raise ConfigError(f"{place}.{name}: must be a number, and is {json.dumps(number)}")
    low, high, step, log = value["low"], value["high"], value.get("step"), value.get("log", False)
    if type(log) is not bool:
        raise ConfigError(f"{place}.log: must be true or false, and is {json.dumps(log)}")
    if low >= high:
        raise ConfigError(f"{place}: low={low:g} must be below high={high:g}")
    if log and (low <= 0 or step is not None):
        raise ConfigError(f"{place}: log needs low above 0, and has no step")
    if step is not None and step <= 0:
        raise ConfigError(f"{place}.step: must be above 0, and is {step:g}")
    return Dimension(key=key, low=low, high=high, step=step, log=log)


class Objective(Record):
    """What is optimised: a value of the report."""

    key: str  # such as fid, or fid_classifier

    @field_validator("key")
    @classmethod
    def _without_prefix(cls, key: str) -> str:
        return key.removeprefix("eval/")

    @property
    def value_name(self) -> str:
        """The name of the value, without that of a network."""
        return split_key(self.key)[0]

    @property
    def direction(self) -> Direction | None:
        """The direction of improvement, None if there is none."""
        return describe(self.key).better

    def check(self, config: Config) -> None:
        """Check that a run of this config measures it. Raises ConfigError."""
        values = [value for one in config.evaluation.metrics for value in METRICS[one].values.items()]
        good = [name for name, facts in values if facts.better]
        if self.value_name not in good:
            raise ConfigError(
                f"--optimize eval/{self.key}: must be a value that evaluation.metrics measures and that has a better "
                f"direction: {', '.join(f'eval/{one}' for one in good)}"
            )

    def of(self, metrics: Mapping[str, float]) -> float | None:
        """Return its value, None if there is none that is a finite number."""
        name, network = split_key(self.key)
        for key, value in metrics.items():
            if (key == self.key or (not network and split_key(key)[0] == name)) and math.isfinite(value):
                return value
        return None


class Trial(Record):
    """One trial: its number in the study, and the overrides that make its config."""

    number: int
    overrides: tuple[str, ...]

    @property
    def label(self) -> str:
        """What it is called: its number, and its settings in short."""
        return f"trial {self.number}: {', '.join(map(_short, self.overrides))}"


def _short(override: str) -> str:
    key, _, text = override.partition("=")
    value = json.loads(text)
    return f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"


class Study:
    """A study of Optuna in storage. Hold the lock of its sweep: only one process writes it.

    Args:
        config: of which the trials differ in the keys of the space alone; its seed is that of the sampler, too.
        objective: what is optimised.
        space: what is tried.

    Raises:
        ConfigError: Optuna is not installed, or no run of the config measures the objective.
        DamagedError: the journal is not what was written.
        StepError: storage does not answer.
    """

    def __init__(self, config: Config, objective: Objective, space: Sequence[Dimension]) -> None:
        require_optuna()
        objective.check(config)
        self.config, self.objective, self.space = config, objective, tuple(space)
        self.name = study_name(config, objective, space)
        import optuna
        from optuna.storages import JournalStorage

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        root = storage.absolute(config.storage.root)
        journal = _journal(storage.join(root, STUDIES, self.name, "journal.jsonl"))
        self._study = optuna.create_study(
            study_name=self.name,
            storage=JournalStorage(journal),
            direction="maximize" if objective.direction == "higher" else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=RANDOM_TRIALS, n_warmup_steps=0),
            load_if_exists=True,
        )
        self._open = {trial.number: self._trial(trial._trial_id) for trial in self._trials("RUNNING")}

    @property
    def begun(self) -> int:
        """The number of trials so far, whatever their state."""
        return len(self._study.trials)

    def left_open(self) -> list[Trial]:
        """Return the trials that were begun and have no result yet, in order."""
        return [self._as_record(number) for number in sorted(self._open)]

    def ask(self) -> Trial:
        """Begin a trial, and return it."""
        trial = self._study.ask()
        self._open[trial.number] = trial
        return self._as_record(trial.number)

    def report(self, number: int, step: int, value: float) -> bool:
        """Note the quick value of a trial at the end of a stage; return whether it is not worth going on with it."""
        trial = self._open[number]
        if step not in self.reported(number):
            trial.report(value, step)
        return bool(trial.should_prune())

    def reported(self, number: int) -> frozenset[int]:
        """Return the steps of a trial that have a value."""
        return frozenset(self._study.trials[number].intermediate_values)

    def tell(self, number: int, value: float | None, *, pruned: bool = False) -> None:
        """End a trial.

        Args:
            number: its number.
            value: of the objective; None if there is none, and never will be.
            pruned: whether it was stopped as not worth going on with.
        """
        from optuna.trial import TrialState

        state = TrialState.PRUNED if pruned else TrialState.FAIL if value is None else TrialState.COMPLETE
        self._study.tell(self._open.pop(number), None if pruned else value, state=state)

    def best(self) -> Trial | None:
        """Return the best trial of those that came to their end, None without any."""
        if not self._trials("COMPLETE"):
            return None
        best = self._study.best_trial
        return Trial(
            number=best.number, overrides=tuple(f"{key}={json.dumps(value)}" for key, value in best.params.items())
        )

    def value(self, number: int) -> float | None:
        """Return the value of a trial; None if it has none."""
        return self._study.trials[number].value if self._study.trials[number].state.name == "COMPLETE" else None

    def _trials(self, state: str) -> list[Any]:
        return [trial for trial in self._study.trials if trial.state.name == state]

    def _trial(self, trial_id: int) -> optuna.trial.Trial:
        import optuna

        return optuna.trial.Trial(self._study, trial_id)

    def _as_record(self, number: int) -> Trial:
        """Return a trial with all its settings, which are drawn now if that was not done yet."""
        from optuna.samplers import TPESampler

        # A sampler for each trial: one that is repeated after a kill draws what it would have drawn.
        seed = int(digest([self.config.seed, number]), 16) % 2**32
        self._study.sampler = TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS, constant_liar=True)
        trial = self._open[number]
        values = {dimension.key: dimension.suggest(trial) for dimension in self.space}
        return Trial(number=number, overrides=tuple(f"{key}={json.dumps(value)}" for key, value in values.items()))


def study_name(config: Config, objective: Objective, space: Sequence[Dimension]) -> str:
    """Return the name of a study: the same command finds it again, with more trials, too."""
    values = config.identity({"storage", "ray", "tracking"})
    return f"{config.name}-study-{digest([values, objective, *space])}"


def require_optuna() -> None:
    """Raise ConfigError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--optimize needs Optuna, which is not installed ({error}); run `{pip_install('stylegan-pipeline[sweep]')}`"
        ) from None


def is_measured_early(config: Config, objective: Objective) -> bool:
    """Return whether quick metrics measure the objective in a stage before the last one."""
    quick = {
        metric for resolution in config.resolutions[:-1] for metric in quick_evaluation(config, resolution).metrics
    }
    return any(objective.value_name in METRICS[metric].values for metric in quick)


def stage_value(run: Run, stage: Stage, objective: Objective, shards: ShardSet) -> float | None:
    """Return the quick value of the objective at the end of a stage; None if it is not measured, or not yet.

    Raises:
        DamagedError, StepError: the rows cannot be read.
    """
    name = rows_name(run.config, stage.resolution, shards)
    if name is None:
        return None
    suffix = "" if stage.resolution == run.config.data.resolution else f"_{stage.resolution}x{stage.resolution}"
    for row in reversed(read_rows(storage.join(run.stage_uri(stage), name))):
        if row["nimg"] >= stage.end_nimg:
            values = row["metrics"].items()
            return objective.of({key.removeprefix("quick/").removesuffix(suffix): value for key, value in values})
    return None


def _journal(uri: str) -> Any:
    """Return the journal of a study in storage: a line for each entry, written whole, so that it is never half there."""
    from optuna.storages.journal import BaseJournalBackend

    class Journal(BaseJournalBackend):
        def __init__(self) -> None:
            self._lines = _read_lines(uri)

        def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
            return [dict(line) for line in self._lines[log_number_from:]]

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            lines = [*self._lines, *logs]
            storage.write_bytes(uri, "".join(json.dumps(line) + "\n" for line in lines).encode())
            self._lines = lines

    return Journal()


def _read_lines(uri: str) -> list[dict[str, Any]]:
    try:
        text = storage.read_bytes(uri).decode()
    except FileNotFoundError:
        return []
    try:
        return [dict(json.loads(line)) for line in text.splitlines()]
    except (ValueError, TypeError):
        raise DamagedError(
            f"{uri}: is damaged (it has a line that is no entry of a study); delete it to begin the study anew: trials "
            "that it tries again are taken from storage"
        ) from None
