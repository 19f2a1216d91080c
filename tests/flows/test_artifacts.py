"""The artifacts of a run in Prefect."""

import base64
import io

import pytest
from PIL import Image
from prefect import flow
from prefect.artifacts import Artifact

from flows import tasks
from stylegan.config.file import build
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
        return tasks.call(tasks.shard, Pipeline(config))

    for _ in range(2):
        shards = once()
    found = {part: Artifact.get(f"data-{shards.fingerprint}-{part}") for part in ("rejected", "preview", "card")}
    assert "unreadable" in found["rejected"].data
    assert "a/broken.png" in found["rejected"].data
    preview = Image.open(io.BytesIO(base64.b64decode(found["preview"].data.partition(",")[2])))
    assert preview.size == (3 * 66 - 2, 14 + 3 * 66 - 2)
    assert f"## Data set {shards.fingerprint}: 9 images" in found["card"].data
    assert "| b\\|\\* | 3 |" in found["card"].data
    assert r"| two\\nlines\\x1b | 3 |" in found["card"].data
