"""The artifacts of a run in Prefect."""

import base64
import io

import pytest
from PIL import Image
from prefect import flow
from prefect.artifacts import Artifact

from flows import artifacts, tasks
from flows.attempts import call
from stylegan.config.file import build
from stylegan.evaluation.report import Report
from stylegan.pipeline.steps import Pipeline

pytestmark = pytest.mark.usefixtures("prefect_api")


def test_a_data_set_shows_card_rejects_and_preview(draw_images, tmp_path):
    """Artifacts of the shard task, also when the set was there already; names of classes cannot break the table."""
    source = draw_images(
        tmp_path / "images", [f"{c}/{i}.png" for c in ("a", "b|*", "two\nlines\x1b") for i in range(3)]
    )
    (source / "a" / "broken.png").write_bytes(b"no image")
    data = {"source": str(source), "resolution": 8, "max_rejected": 1}
    tree = {"name": "t", "data": data, "storage": {"root": str(tmp_path / "root")}}
    config = build(tree | {"training": {"batch": 4}, "evaluation": {"metrics": []}})

    @flow(persist_result=False)
    def once():
        return call(tasks.shard, Pipeline(config))

    for _ in range(2):
        shards = once()
    found = {part: Artifact.get(f"data-{shards.fingerprint}-{part}") for part in ("rejected", "preview", "card")}
    assert "unreadable" in found["rejected"].data
    assert "a/broken.png" in found["rejected"].data
    preview = Image.open(io.BytesIO(base64.b64decode(found["preview"].data.partition(",")[2])))
    assert preview.width == 3 * (64 + 3) + 3  # three classes of enlarged images, with gutters
    assert preview.height > preview.width  # the names stand above three rows
    assert f"## Data set {shards.fingerprint}: 9 images" in found["card"].data
    assert "| b\\|\\* | 3 |" in found["card"].data
    assert r"| two\\nlines\\x1b | 3 |" in found["card"].data


def test_the_metrics_of_a_run_are_those_of_the_terminal_and_the_page():
    """Names and order are those of all tables of metrics; a warning takes the place of the meaning."""
    report = Report(
        protocol="p",
        dataset_fingerprint="f",
        checkpoint_uri="c",
        metrics={"recall_classifier": 0.01, "fid_classifier": 2.5},
        intervals={"fid_classifier": (2.4, 2.6)},
        skipped={"is_classifier": "no labels"},
    )
    rows = [list(row.values()) for row in artifacts._metric_table(report)]
    assert [row[:3] for row in rows] == [
        ["Fréchet distance (FID), classifier ↓", "2.500", "2.400 to 2.600"],
        ["Recall, classifier ↑", "0.010", ""],
        ["Inception score, classifier", "skipped", ""],
    ]
    assert [row[3].partition(" ")[0] for row in rows] == ["How", "Recall", "no"]
    assert [row[4] for row in rows] == ["fid_classifier", "recall_classifier", "is_classifier"]
