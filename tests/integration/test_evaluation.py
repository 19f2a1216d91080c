"""Test of an evaluation on Ray: a killed worker changes no number, and the numbers are those of a single process."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from stylegan import storage
from stylegan.cluster.parallel_map import parallel_map
from stylegan.cluster.session import ray_session
from stylegan.config.file import build
from stylegan.config.sections import EvaluationConfig, ModelConfig
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.evaluation.engine import evaluate
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator

TREE = {"name": "t", "data": {"source": "digits", "resolution": 8, "channels": 1}}


def tiny_checkpoint(folder):
    """Write a checkpoint with an untrained generator and return its URI."""
    torch.manual_seed(0)
    model = ModelConfig(latent_size=8, mapping_layers=2, mapping_fmaps=8, fmap_base=64, fmap_max=8)
    uri = str(folder / "checkpoint-000000000")
    storage.write_bytes(f"{uri}/generator.safetensors", save_generator(Generator(model, resolution=8, channels=1), ()))
    return uri


def test_a_killed_worker_costs_the_chunk_it_was_at(tmp_path):
    """After kill -9 of a Ray worker in the third chunk, that chunk is measured twice and all others once."""
    config = build(TREE)
    shards = write_shards(open_source(config.data), config.data, str(tmp_path))
    evaluation = EvaluationConfig(
        metrics=("fid", "kid", "pr", "ppl_wend"), num_images=1500, num_reals=500, ppl_samples=300, bootstrap=4
    )
    checkpoint, tries = tiny_checkpoint(tmp_path), tmp_path / "tries"
    tries.mkdir()

    def deadly_map(function, items):
        def noted(item):
            source = getattr(item, "source", None)
            if source is None:  # training of the feature network
                return function(item)

            # Count the attempts at each chunk in a file, and die at the first attempt at the third chunk.
            note = Path(tries, f"{source.name} {item.index}")
            with note.open("a") as file:
                file.write(".")
            if note.name == "generated 2" and note.stat().st_size == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(item)

        return parallel_map(noted, items, config)

    # Evaluate on Ray, and count the attempts.
    with ray_session():
        report = evaluate(checkpoint, shards, evaluation, root=str(tmp_path), pmap=deadly_map)
    counts = Counter({path.name: path.stat().st_size for path in tries.iterdir()})
    assert len(counts) == 2 + 6 + 2  # chunks of reals, images and paths
    assert counts.pop("generated 2") == 2
    assert set(counts.values()) == {1}

    # Compare with an evaluation in this process.
    alone = evaluate(checkpoint, shards, evaluation, root=str(tmp_path))
    assert report.protocols == alone.protocols
    assert report.metrics == pytest.approx(alone.metrics, rel=1e-6)
    assert len(report.metrics) == 8
