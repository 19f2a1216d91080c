"""Trains one stage in its own process, for tests that kill it: `python train_alone.py JOB`, a `StageJob` as JSON."""

import sys

import torch

from stylegan.training.job import StageJob
from stylegan.training.loop import train_stage

if __name__ == "__main__":
    torch.set_num_threads(1)
    train_stage(StageJob.model_validate_json(sys.argv[1]))
