"""A run on the stack that takes a minute, the first time: and what the list of processes showed meanwhile."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

CONFIG = {
    "name": "kept",
    "data": {"source": "digits", "resolution": 8, "channels": 1},
    "model": {"latent_size": 8, "mapping_layers": 1, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8},
    "training": {"start_resolution": 4, "batch": 4, "fade_kimg": 0.004, "stable_kimg": 0.008},
    "snapshots": {"grid": 2, "log_kimg": 0.004},
    "evaluation": {"features": "rotation", "metrics": ["fid"], "num_images": 100, "bootstrap": 0},
    "registry": {"gate": {"metric": "fid"}},
}


@dataclass
class Seen:
    """What could be seen of a run.

    Attributes:
        said: what the command printed.
        command_lines: of all processes of this machine while it ran.
    """

    said: str = ""
    command_lines: set[str] = field(default_factory=set)


_first: dict[Path, Seen] = {}


def trained(stack) -> Seen:
    """Let a run train on the stack, unless this function did so before; return what could be seen of that."""
    if stack.folder not in _first:
        _first[stack.folder] = train(stack)
    return _first[stack.folder]


def train(stack, *options: str) -> Seen:
    """Let `stylegan run` train a champion on the stack, or take it from the cache; `kept.yaml` is its config."""
    (stack.folder / "kept.yaml").write_text(yaml.safe_dump(CONFIG))
    seen, done = Seen(), threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    seen.command_lines.add("\0".join(process.cmdline()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seen.said = stack.stylegan("run", "kept.yaml", *options)
    finally:
        done.set()
        watcher.join()
    return seen
