"""A fixture for stages so small that a whole one trains in a moment."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stylegan.config.file import build
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.training.job import StageJob
from stylegan.training.schedule import stages

TREE = {
    "name": "t",
    "data": {"resolution": 8, "channels": 3},
    "model": {
        "latent_size": 8,
        "mapping_layers": 1,
        "mapping_fmaps": 8,
        "fmap_base": 64,
        "fmap_max": 8,
        "conditional": True,
    },
    "training": {"start_resolution": 4, "batch": 4, "fade_kimg": 0.024, "stable_kimg": 0.016},
    "snapshots": {"checkpoint_kimg": 0.012, "log_kimg": 0.008, "samples_kimg": 0.016, "grid": 2, "keep": 2},
}


@pytest.fixture(scope="session")
def job_in(draw_images: Callable[..., Path]) -> Callable[[Path], Callable[..., StageJob]]:
    """Return job_in(folder), which gives the function `job` for another folder than that of a single test."""
    return lambda folder: _job_in(folder, draw_images)


@pytest.fixture
def job(tmp_path: Path, job_in: Callable[[Path], Callable[..., StageJob]]) -> Callable[..., StageJob]:
    """Return job(resolution, name, previous=None, **sections), which makes a stage on 12 images of two classes.

    The stage is stored in folder `name`. The 4x4 stage has 4 steps; the 8x8 stage goes from 16 to 56 images and fades
    in until 48. Values in `sections` replace those of the tree above.
    """
    return job_in(tmp_path)


def _job_in(folder: Path, draw_images: Callable[..., Path]) -> Callable[..., StageJob]:
    source = draw_images(folder / "images", [f"{c}/{i}.png" for c in "ab" for i in range(6)])
    data = TREE["data"] | {"source": str(source)}
    config = build(TREE | {"data": data})
    shards = write_shards(open_source(config.data), config.data, str(folder / "root"))

    def make(resolution, name, previous=None, **sections):
        changed = {key: TREE[key] | value for key, value in sections.items()}
        config = build(TREE | {"data": data} | changed)
        stage = next(stage for stage in stages(config) if stage.resolution == resolution)
        uri = str(folder / name / str(resolution))
        return StageJob(config=config, stage=stage, shards=shards, key="k", run_id="r", uri=uri, previous=previous)

    return make
