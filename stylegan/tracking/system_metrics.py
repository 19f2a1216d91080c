"""Log the load of this machine and of the nodes that train as `system/{host}/...`: few points, however long a run is."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from stylegan.cluster.node_metrics import Load, LoadReader, host_name
from stylegan.errors import one_line

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger("stylegan")
PREFIX = "system/"
COUNTERS = "network_"  # with it begin what grows from the start on: its last value counts, not its mean
SAME_PACE = (
    360  # points of the system metrics before their interval doubles; an hour at MLflow's first interval of 10 s
)
STOP_SECONDS = 10.0  # that `stop` waits for a point which is being logged

ReadNodes = Callable[[], Mapping[str, Load]]


class SystemMetrics:
    """Logs system metrics on a thread of its own until it is stopped.

    The step of a point is its number, counted over the whole life of the run and the same for all machines. After each
    `SAME_PACE` points, a point stands for twice as long as before: it is the mean of all samples since the last one.

    No failure leaves this class: a point that cannot be logged is dropped, and the first one is logged as a warning.
    """

    def __init__(
        self, log: Callable[[list[tuple[int, dict[str, float]]]], None], *, step: int, read_nodes: ReadNodes
    ) -> None:
        """Prepare the thread.

        Args:
            log: logs the metrics of steps.
            step: of the first point, see `next_step`.
            read_nodes: returns the load of other machines by their names.
        """
        from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL

        self._log, self.step, self._read_nodes = log, step, read_nodes
        self._seconds = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or 10.0  # between two samples
        self._samples: list[Mapping[str, Load]] = []  # since the last point, each by machine
        self._warned = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="system-metrics", daemon=True)

    @property
    def samples_of_a_point(self) -> int:
        """The number of samples that the next point is the mean of."""
        return int(2 ** (self.step // SAME_PACE))

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; samples that are no point yet are dropped."""
        self._stop.set()
        self._thread.join(STOP_SECONDS)

    def _watch(self) -> None:
        here = host_name()
        try:
            reader = LoadReader()
        except Exception as error:
            self._warn(error)
            return
        while not self._stop.wait(self._seconds):
            try:
                self._samples.append({here: reader.read()} | dict(self._read_nodes()))
                if len(self._samples) >= self.samples_of_a_point and not self._stop.is_set():
                    self._add_point()
            except Exception as error:
                self._warn(error)

    def _warn(self, error: Exception) -> None:
        """Log a warning, but only the first of this object."""
        if not self._warned:
            logger.warning("system metrics are missing, the run goes on: %s", one_line(error))
        self._warned = True

    def _add_point(self) -> None:
        samples, self._samples = self._samples, []
        step, self.step = self.step, self.step + 1  # also if logging it fails: it may be in the store all the same
        hosts = dict.fromkeys(host for sample in samples for host in sample)
        means = {host: _means([sample[host] for sample in samples if host in sample]) for host in hosts}
        self._log([(step, {f"{PREFIX}{host}/{name}": value for name, value in means[host].items()}) for host in means])


def next_step(run: Run) -> int:
    """Return the step after the last one that a run has system metrics of."""
    # Private, but the only way to all last steps at once; MLflow's own monitor takes it, too.
    return max((metric.step for metric in run.data._metric_objs if metric.key.startswith(PREFIX)), default=-1) + 1


def _means(loads: list[Load]) -> Load:
    values = defaultdict[str, list[float]](list)
    for load in loads:
        for name, value in load.items():
            values[name].append(value)
    return {
        name: round(seen[-1] if name.startswith(COUNTERS) else sum(seen) / len(seen), 1)
        for name, seen in values.items()
    }
