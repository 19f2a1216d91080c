"""One stage in a process of its own, for tests that kill it: `python train_alone.py JOB`, the fields of the job as JSON."""

import json
import sys

import torch

from stylegan.config.file import build
from stylegan.data.shardset import ShardSet
from stylegan.training.job import StageJob
from stylegan.training.loop import train_stage
from stylegan.training.schedule import Stage
from stylegan.training.state import Checkpoint

if __name__ == "__main__":
    torch.set_num_threads(1)
    plain = json.loads(sys.argv[1])
    train_stage(
        StageJob(
            config=build(plain["config"]),
            stage=Stage(**plain["stage"]),
            shards=ShardSet.model_validate(plain["shards"]),
            key="k",
            run_id="r",
            uri=plain["uri"],
            previous=Checkpoint.model_validate(plain["previous"]),
        )
    )
