"""Project images on any worker, each into the files that people want of it: latents, a picture, a film of the search."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from stylegan.drawing.film import film_bytes, film_format
from stylegan.drawing.latents import latents_bytes
from stylegan.drawing.perceptual import PerceptualDistance
from stylegan.drawing.project import PROJECTION_VERSION, OnStep, Projection, Space, project
from stylegan.errors import UserError
from stylegan.evaluation.generate import generator_at, sha256
from stylegan.evaluation.metrics.numerics import exact_float32
from stylegan.images import grid, png_bytes, to_uint8
from stylegan.progress import Progress
from stylegan.records import Record, digest

W_FILE, PICTURE, FILM = "w.npz", "projection.png", "search"
FRAMES, FPS, REST = 100, 20, 20  # of a film, and how often the last frame is repeated at its end
CELL = 128  # pixels: the least side of an image in picture and film


@dataclass(frozen=True)
class ProjectionRequest:
    """A request to a worker: project one image.

    Attributes:
        generator_uri, generator_sha256: the file of the generator, and its digest.
        distance: in which images are compared.
        pixels: the image, uint8 [C, r, r].
        space, steps, seed, label: as for `project`.
        device: torch device of the worker.
        shows_steps: whether the steps are the progress that people see; else the images are.
    """

    generator_uri: str
    generator_sha256: str
    distance: PerceptualDistance
    pixels: np.ndarray
    space: Space
    steps: int
    seed: int
    label: int | None
    device: str
    shows_steps: bool = False

    @property
    def key(self) -> str:
        """A digest of everything that decides the result."""
        facts = [self.generator_sha256, self.distance.network.sha256, self.space, self.steps, self.seed, self.label]
        return digest([PROJECTION_VERSION, *facts, sha256(self.pixels.tobytes()), list(self.pixels.shape)])


class ProjectionFigures(Record):
    """The figures of a projection.

    Attributes:
        distance: the perceptual distance of what was found from the image; `start_distance`: that of the start.
        psnr: in dB; None: the images are equal.
        w_distance: of w from its mean, in deviations.
        label: the class that the search began in; None for a model without classes.
        seconds: that it took.
        remarks: what they mean, if the model does not draw such an image.
    """

    distance: float
    start_distance: float
    psnr: float | None
    w_distance: float
    label: int | None
    seconds: float
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Projected:
    """The result of a request: figures and files by name, or the error that it ended with."""

    figures: ProjectionFigures | None
    files: dict[str, bytes]
    error: str = ""


def project_image(request: ProjectionRequest) -> Projected:
    """Project one image. Runs on any worker; an image that cannot be projected is no error of the others."""
    begun = time.monotonic()
    target, frames = torch.tensor(request.pixels), list[torch.Tensor]()
    every = max(request.steps // FRAMES, 1)
    progress = Progress("project", request.steps, "steps") if request.shows_steps else None

    def on_step(step: int, steps: int, distance: float, image: torch.Tensor) -> None:
        if (step - 1) % every == 0:
            frames.append(to_uint8(image)[0].cpu())
        if progress:
            progress.update(step, f"distance {distance:.4f}")

    try:
        with exact_float32():
            found = _project(request, target, on_step)
        seconds = time.monotonic() - begun
        files = {
            W_FILE: latents_bytes(found.latents),
            PICTURE: png_bytes(_beside(target, found.image, ("target", "projected"))),
        }
        films = [_beside(target, frame) for frame in frames] + [_beside(target, found.image)] * REST
        files |= _film(films)
    except UserError as error:
        return Projected(None, {}, str(error))
    figures = ProjectionFigures(
        distance=found.distance,
        start_distance=found.history[0],
        psnr=found.psnr if np.isfinite(found.psnr) else None,
        w_distance=found.w_distance,
        label=found.label,
        seconds=round(seconds, 3),
        remarks=found.remarks,
    )
    return Projected(figures, files)


def _project(request: ProjectionRequest, target: torch.Tensor, on_step: OnStep) -> Projection:
    generator = generator_at(request.generator_uri, request.generator_sha256, request.device)
    return project(
        generator,
        target,
        space=request.space,
        distance=request.distance,
        steps=request.steps,
        seed=request.seed,
        label=request.label,
        on_step=on_step,
        device=request.device,
    )


def _beside(target: torch.Tensor, image: torch.Tensor, heads: tuple[str, ...] = ()) -> Image.Image:
    return grid([target, image], 2, cell=CELL, heads=heads)


def _film(frames: list[Image.Image]) -> dict[str, bytes]:
    """Return the film by its name, in the format that this machine can write."""
    name = f"{FILM}{film_format()}"
    return {name: film_bytes(film_format(), iter(frames), count=len(frames), fps=FPS)}
