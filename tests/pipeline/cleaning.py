"""A small root for tests of the clean-up: two runs on two sets, the second built on the first, with versions."""

import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from stylegan import storage
from stylegan.config.file import dump
from stylegan.config.tree import Config
from stylegan.evaluation.report import Report
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator
from stylegan.pipeline.retention import DAY, CleanUp, clean_up
from stylegan.pipeline.run import Run
from stylegan.pipeline.steps import Pipeline
from stylegan.registry import versions
from stylegan.tracking.connection import connect, resolve_uri
from stylegan.training.schedule import stages
from stylegan.training.state import Checkpoint

TRAINING = {"batch": 4, "start_resolution": 4, "fade_kimg": 0, "stable_kimg": 1}


@dataclass
class World:
    """A root: the config of its runs, and the runs, the oldest first."""

    config: Config
    runs: list[Run]

    @property
    def root(self) -> str:
        return self.runs[0].root

    @property
    def client(self):
        return connect(resolve_uri(self.config))

    def forget(self, alias: str = "previous") -> None:
        """Remove an alias; without `previous` nothing needs the first run any more."""
        self.client.delete_registered_model_alias(self.config.model_name, alias)

    def listing(self) -> dict[str, int]:
        """Return the sizes of all files but those that every connection and every lock change."""
        found = storage.files(self.root)
        return {path: facts.num_bytes for path, facts in found.items() if not path.startswith(("mlflow.db", "locks/"))}

    def clean(self, *, days: float = 2, **options: object) -> CleanUp:
        """Clean up as if it were some days later, since nothing that is an hour old is touched."""
        return clean_up(self.config, now=time.time() + days * DAY, **options)

    def with_retention(self, **values: object) -> "World":
        retention = self.config.retention.model_copy(update=values)
        return replace(self, config=self.config.model_copy(update={"retention": retention}))


def make_run(config: Config, fid: float) -> Run:
    """Make all that a run leaves in storage and registry, without training; promote its version."""
    with Pipeline(config) as pipeline:
        shards = pipeline.shard().record
        run = pipeline.run(shards)
        for stage in stages(config):
            uri = storage.join(run.stage_uri(stage), f"checkpoint-{stage.end_nimg:09d}")
            generator = Generator(config.model, resolution=stage.resolution, channels=1)
            storage.write_bytes(f"{uri}/generator.safetensors", save_generator(generator, ()))
            record = Checkpoint(
                uri=uri,
                run_id=run.run_id,
                resolution=stage.resolution,
                nimg=stage.end_nimg,
                digest=run.stage_key(stage),
            )
            storage.write_json(f"{uri}/checkpoint.json", record.model_dump())
            storage.write_json(f"{run.stage_uri(stage)}/done.json", record.model_dump())
        report = Report(
            protocol="p", dataset_fingerprint=shards.fingerprint, checkpoint_uri=uri, metrics={"fid_rotation": fid}
        )
        storage.write_bytes(f"{run.uri}/config.yaml", dump(config).encode())
        storage.write_json(f"{run.uri}/report.json", report.model_dump(mode="json"))
        storage.write_bytes(f"{run.root}/stats/rotation-x/{shards.fingerprint}.npz", b"x")
        version = pipeline.register(shards, record, report).record
        versions.promote(resolve_uri(config), config.model_name, version.version)
        pipeline.gate(shards, version, report)
    return run


def make_world(tiny_config, draw_images, folder: Path, *, root: str, tracking: str | None = None, **sections) -> World:
    """Make the root; the first run looks old."""
    source = draw_images(folder / "images", [f"{number}.png" for number in range(8)])
    config = tiny_config(
        root,
        tracking={"uri": tracking},
        data={"source": str(source), "resolution": 8, "channels": 1},
        evaluation={"metrics": ["fid"], "features": "rotation"},
        training=TRAINING,
        retention={"grace_days": 0.0, "versions": 1, "runs": 1},
        **sections,
    )
    first = make_run(config, 10.0)
    if storage.is_local(root):
        for name in ("report.json", "config.yaml", "verdict.json"):
            os.utime(f"{first.uri}/{name}", (1, 1))
    draw_images(folder / "images", [f"{number}.png" for number in range(8, 12)])
    return World(config, [first, make_run(config, 5.0)])


def copy_world(world: World, root: Path) -> World:
    """Copy a local root with the times of its files: it works wherever it is."""
    shutil.copytree(world.root, root)
    config = world.config.model_copy(update={"storage": world.config.storage.model_copy(update={"root": str(root)})})
    return World(config, [Run(config, _moved(run, root)) for run in world.runs])


def _moved(run: Run, root: Path):
    return run.shards.model_copy(update={"uri": str(root / "datasets" / storage.name(run.shards.uri))})
