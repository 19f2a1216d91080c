"""A fixture that opens the same MLflow run again and again."""

import pytest
from mlflow_runs import SHARDS

from stylegan.tracking.open_run import open_run


@pytest.fixture
def opened(make_config):
    """A function that opens the same run again and again; all are stopped at the end."""
    runs = []

    def open_again(run_id="tiny-0123"):
        runs.append(open_run(make_config(), run_id, SHARDS))
        return runs[-1]

    yield open_again
    for run in runs:
        run.stop_system_metrics()
