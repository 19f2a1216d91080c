"""Projections of uploaded pictures: one at a time, in a process of its own that leaves the processor to the pictures."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import secrets
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

import numpy as np
import torch

from stylegan.data.decode import UnreadableImage
from stylegan.drawing.latents import Latents, latents_bytes, parse_latents
from stylegan.drawing.project import Distance, Projection, Space, project
from stylegan.errors import UserError, one_line, shown
from stylegan.evaluation.metrics.numerics import exact_float32
from stylegan.networks.weights import load_generator, save_generator
from stylegan.serving.arguments import Refused
from stylegan.serving.models import ProjectionMeans, ServedModel

logger = logging.getLogger("stylegan")
MOST_WAITING = 4  # projections behind the one that runs
MOST_KEPT = 100  # finished ones, the newest
PATIENCE = 900.0  # seconds of one projection
NICE = 19  # the lowest priority
RETRY_AFTER = 20  # seconds, for whoever finds the queue full

State = Literal["waiting", "running", "done", "failed"]


class FullError(Exception):
    """So many projections wait already that no other one is taken."""


@dataclass(eq=False)
class UploadedProjection:
    """A projection from its upload on. Only the thread that projects changes it."""

    id: str
    model: ServedModel
    means: ProjectionMeans
    pixels: np.ndarray
    space: Space
    steps: int
    message: str
    state: State = "waiting"
    step: int = 0
    figures: dict[str, float | None] = field(default_factory=dict)
    w_file: bytes = b""
    latents: Latents | None = None
    dropped: bool = False

    def describe(self) -> dict[str, Any]:
        """Return what the app says of it."""
        return {
            "id": self.id,
            "state": self.state,
            "step": self.step,
            "steps": self.steps,
            "space": self.space,
            "version": self.model.version,
            **{name: self.figures.get(name) for name in ("distance", "psnr", "w_distance")},
            "message": self.message,
            "image": f"/image.png?w={self.id}",
        }


class Projections:
    """The projections of one server, in memory."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._all: OrderedDict[str, UploadedProjection] = OrderedDict()
        self._waiting: deque[UploadedProjection] = deque()
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._work, name="project", daemon=True).start()

    def close(self) -> None:
        """End the projection under way, and drop all others."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def add(self, model: ServedModel, picture: bytes, *, space: Space, steps: int) -> UploadedProjection:
        """Put a picture into the queue.

        Args:
            model: into whose latent space it is projected.
            picture: bytes of an image file.
            space, steps: as for `project`.

        Raises:
            Refused: it is no picture, or the model has nothing to compare images with.
            FullError: the queue is full.
        """
        if model.means is None:
            raise Refused(f"this model cannot project pictures: {model.no_means}")
        if len(self._waiting) >= MOST_WAITING:
            raise FullError
        if not picture.startswith((b"\x89PNG", b"\xff\xd8\xff")) and (picture[:4], picture[8:12]) != (b"RIFF", b"WEBP"):
            raise Refused("the body: must be a PNG, JPEG or WebP file")  # no decoder of other formats meets strangers
        try:
            pixels, converted = model.means.convert(picture)
        except UnreadableImage as error:
            raise Refused(f"the picture: {one_line(error, 200)}; send another one") from None
        new = UploadedProjection(secrets.token_urlsafe(16), model, model.means, pixels, space, steps, message=converted)
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                raise FullError
            self._all[new.id] = new
            self._waiting.append(new)
            over = len(self._all) - MOST_KEPT
            for old in [one for one in self._all.values() if one.state in ("done", "failed")][: max(over, 0)]:
                del self._all[old.id]
            self._changed.notify()
        return new

    def get(self, name: str) -> UploadedProjection | None:
        """Return a projection by its id."""
        return self._all.get(name)

    def drop(self, name: str) -> bool:
        """End and forget a projection; return whether there was one."""
        with self._changed:
            found = self._all.pop(name, None)
            if found is None:
                return False
            found.dropped = True
            if found in self._waiting:
                self._waiting.remove(found)
        return True

    def latents(self, name: str, model: ServedModel) -> Latents:
        """Return the latents of a finished projection. Raises Refused if this model has none of this id."""
        found = self.get(name)
        if found is None:
            raise Refused(f"w={shown(name, 40)}: there is no such projection; upload the picture again")
        if found.latents is None:
            raise Refused(f"w={shown(name, 40)}: this projection is {found.state}; wait until it is done")
        if found.model.digest != model.digest:
            raise Refused(
                f"w={shown(name, 40)}: is of version {found.model.version}, and version {model.version} is served now; "
                "upload the picture again"
            )
        return found.latents

    # --- the thread that projects ---

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                one = self._waiting.popleft()
                one.state = "running"
            try:
                self._run(one)
            except Exception as error:  # one that fails does not end the others
                logger.warning("a projection has failed: %s", one_line(error))
                one.state, one.message = "failed", one_line(error)

    def _run(self, one: UploadedProjection) -> None:
        """Project in a process of its own, which can be ended at any moment."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        weights = save_generator(one.model.generator, [str(number) for number in range(len(one.model.classes))])
        arguments = (theirs, os.getpid(), weights, one.means.distance, one.pixels, one.space, one.steps, self.device)
        process = context.Process(target=_project, args=arguments, name="projection", daemon=True)
        process.start()
        theirs.close()
        deadline = time.monotonic() + PATIENCE
        try:
            while one.state == "running" and not one.dropped and not self._closed:
                if time.monotonic() > deadline:
                    one.state, one.message = "failed", f"took longer than {PATIENCE:g} s; ask for fewer steps"
                elif ours.poll(0.2):
                    self._hear(one, ours)
        finally:
            process.kill()
            process.join()
            ours.close()

    def _hear(self, one: UploadedProjection, connection: Connection) -> None:
        try:
            kind, content = connection.recv()
        except (EOFError, OSError):
            one.state, one.message = "failed", "the process that projects has ended, perhaps for lack of memory"
            return
        if kind == "step":
            one.step, one.figures = content[0], {"distance": content[1]}
        elif kind == "error":
            one.state, one.message = "failed", content
        else:
            w_file, one.figures, remarks = content
            one.latents = parse_latents(w_file, one.model.generator, "w.npz")
            one.message = "; ".join(filter(None, [one.message, *remarks]))
            one.w_file, one.step = w_file, one.steps
            one.state = "done"


def _project(
    connection: Connection,
    parent: int,
    weights: bytes,
    distance: Distance,
    pixels: np.ndarray,
    space: Space,
    steps: int,
    device: str,
) -> None:
    """Project in this process, and say how far it is. It ends with the server, also with one that was killed."""
    os.nice(NICE)
    torch.set_num_threads(max(torch.get_num_threads() // 2, 1))

    def on_step(step: int, steps: int, far: float, image: torch.Tensor) -> None:
        connection.send(("step", (step, far)))
        if os.getppid() != parent:
            raise SystemExit

    try:
        generator, _ = load_generator(weights)
        with exact_float32():
            found = project(
                generator,
                torch.from_numpy(pixels),
                space=space,
                distance=distance,
                steps=steps,
                on_step=on_step,
                device=device,
            )
    except UserError as error:
        connection.send(("error", str(error)))
        return
    connection.send(("done", (latents_bytes(found.latents), _figures(found), found.remarks)))


def _figures(found: Projection) -> dict[str, float | None]:
    """Return the figures of a projection; None stands for a PSNR without end, which JSON does not have."""
    return {
        "distance": found.distance,
        "psnr": found.psnr if math.isfinite(found.psnr) else None,
        "w_distance": found.w_distance,
    }
