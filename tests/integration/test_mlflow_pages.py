"""MLflow's pages as a person opens them, in a browser: the prepared view, a run, its data set, a model and a version."""

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import torch
from mlflow_runs import png
from PIL import Image

from stylegan.config.file import load_config
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.report import Report
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator
from stylegan.registry import versions
from stylegan.registry.gate import judge
from stylegan.tracking.links import comparison_url, run_url
from stylegan.tracking.open_run import open_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.stack, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]


@pytest.fixture(scope="module")
def site(tmp_path_factory, tiny_config):
    """A server of MLflow with two finished runs, whose versions a gate has judged."""
    folder = tmp_path_factory.mktemp("mlflow")
    config = tiny_config(folder)
    runs = [_log(config, folder, number) for number in (0, 1)]
    return runs
