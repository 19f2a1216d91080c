"""A fixture for the training of a style transfer that is so small that it takes a moment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stylegan.config.file import build
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.evaluation.features import embedded_training
from stylegan.pipeline.run import Run
from stylegan.training.job import StageJob

TREE: dict[str, Any] = {
    "name": "t",
    "data": {"resolution": 16, "channels": 3},
    "transfer": {"kimg": 0.048, "batch": 4, "learning_rate": 0.003, "depth": 2},
    "snapshots": {"checkpoint_kimg": 0.016, "log_kimg": 0.012, "samples_kimg": 0.02, "grid": 3, "keep": 2},
    "evaluation": {"features": "rotation", "metrics": ["transfer"], "num_images": 6},
    "registry": {"gate": {"metric": "transfer_loss"}},
}


@pytest.fixture
def make_job(
    tmp_path: Path, draw_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., StageJob]:
    """Return make_job(name, **sections): a training of 12 steps on 40 images of two classes, stored in folder `name`.

    Values in `sections` replace those of the tree above. The embedded network is trained on 256 images only.
    """
    monkeypatch.setattr(embedded_training._Examples, "num_shown", 256)
    source = draw_images(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(20)])
    data = TREE["data"] | {"source": str(source)}
    root = str(tmp_path / "root")

    def make(name: str = "one", **sections: Any) -> StageJob:
        changed = {key: TREE.get(key, {}) | value for key, value in sections.items()}
        config = build(TREE | {"data": data, "storage": {"root": root}} | changed)
        run = Run(config, write_shards(open_source(config.data), config.data, root))
        return run.job(run.stages[0], None).model_copy(update={"uri": str(tmp_path / name)})

    return make
