"""The databases in tests/infra/old, which minor versions of MLflow and Prefect before the pinned ones have written."""

import gzip
import sqlite3
from contextlib import closing
from pathlib import Path

OLD = Path(__file__).parent / "infra" / "old"


def sql(name: str, kind: str) -> str:
    """Return the SQL of the database of `mlflow` or `prefect`, of `sqlite` or `postgresql`."""
    return gzip.decompress((OLD / f"{name}.{kind}.sql.gz").read_bytes()).decode()


def restore(name: str, path: Path) -> Path:
    """Make a SQLite file of a dump, and return its path."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(sql(name, "sqlite"))
    return path


def require_everything(client) -> None:
    """Check that MLflow has what `old/make.py` has logged: two runs with curves, two versions, a champion."""
    experiment = client.get_experiment_by_name("stylegan")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    assert [run.info.run_name for run in runs] == ["tiny-0000", "tiny-0001"]
    assert all(run.data.params["data.source"] == "digits" for run in runs)
    curve = client.get_metric_history(runs[1].info.run_id, "loss/d")
    assert [(point.step, round(point.value, 3)) for point in curve][:2] == [(0, 1.2), (3, 1.131)]
    assert len(curve) == 20
    champion = client.get_model_version_by_alias("tiny", "champion")
    assert (str(champion.version), champion.run_id) == ("2", runs[1].info.run_id)
    assert str(client.get_model_version_by_alias("tiny", "previous").version) == "1"
