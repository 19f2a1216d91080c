"""Project pictures: find the latents with which a model makes them, one picture or folders of them, on Ray."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import torch

from stylegan import storage
from stylegan.cluster.parallel_map import evaluation_means
from stylegan.cluster.session import ray_session
from stylegan.config.addresses import check_argument
from stylegan.config.file import build
from stylegan.config.sections import DataConfig
from stylegan.config.tree import Config
from stylegan.data.decode import UnreadableImage, prepare
from stylegan.data.sources.base import DAMAGE, explained, is_image
from stylegan.data.sources.open_source import open_source
from stylegan.data.sources.unaltered import measured
from stylegan.drawing.latents import check_seed
from stylegan.drawing.perceptual import perceptual_distance
from stylegan.drawing.project import SPACES, Space
from stylegan.drawing.projected import (
    Projected,
    ProjectionFigures,
    ProjectionRequest,
    project_image,
)
from stylegan.errors import ConfigError, DamagedError, StepError, one_line
from stylegan.networks.generator import Generator
from stylegan.networks.weights import load_generator
from stylegan.outputs import output_folder, write_output
from stylegan.progress import Progress
from stylegan.records import Record
from stylegan.retry import storage_settings
from stylegan.verbs.find_model import find_model, run_config
from stylegan.verbs.sample import classes_of

logger = logging.getLogger("stylegan")
MARKER = "projection.json"
MOST_STEPS = 100_000


class ProjectedImage(Record):
    """One picture and what became of it.

    Attributes:
        image: the picture, as a path or URL.
        folder: with w.npz, projection.png (before and after) and the film of the search.
        key: digest of everything that decides the result.
        files: their names.
        converted: how the picture was brought into the form of the model's images; empty if it had it.
        figures: None if the picture could not be projected.
        error: the reason for that.
        cached: it was in the folder already.
    """

    image: str
    folder: str = ""
    key: str = ""
    files: tuple[str, ...] = ()
    converted: str = ""
    figures: ProjectionFigures | None = None
    error: str = ""
    cached: bool = False


class Projections(Record):
    """All pictures of a command, in their order.

    Attributes:
        checkpoint_uri: the model.
        network: that compares the images.
        space, steps: as they were asked for.
        classes: of the model.
        images: what became of each.
    """

    checkpoint_uri: str
    network: str
    space: Space
    steps: int
    classes: tuple[str, ...]
    images: tuple[ProjectedImage, ...]

    @property
    def num_failed(self) -> int:
        """The number of pictures that could not be projected."""
        return sum(bool(image.error) for image in self.images)


def project_images(
    config: Config | None,
    model: str,
    sources: Sequence[str],
    *,
    space: Space = "w+",
    steps: int = 500,
    seed: int = 0,
    label: str | None = None,
    features: str | None = None,
    out: str,
) -> Projections:
    """Project pictures, and write a folder of files for each.

    Pictures of another shape or mode are converted as sharding does it for the model's run. A picture that cannot be
    read or projected does not end the others. What the folder holds already is not done again: the same model, settings
    and pixels give the same files. Several pictures run in parallel on Ray, by the section `ray` of the run or config.

    Args:
        config, model: as for `find_model`.
        sources: pictures, or folders and archives of them, as paths or URLs.
        space, steps, seed: as for `project`.
        label: class of all pictures, by name or number; None searches each in all classes.
        features: as for `perceptual_distance`.
        out: folder for a folder of each picture.

    Raises:
        ConfigError: a value is not allowed, no such model or source, or no network to compare images with.
        StepError: the model is damaged, a source has no pictures, or the folder cannot be written.
    """
    target = output_folder(out)
    if space not in SPACES:
        raise ConfigError(f"--space {space}: must be {' or '.join(SPACES)}")
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"--steps {steps}: must be from 1 to {MOST_STEPS:,}, usually 500")
    check_seed(seed)
    found = find_model(config, model)
    uri = storage.join(found.checkpoint_uri, "generator.safetensors")
    data = storage.read_bytes(uri)
    generator, names = load_generator(data, uri)
    check_projects(generator, model)
    classes = classes_of([label] if label is not None else [], names)
    settings = picture_settings(found.run_uri, config, generator)
    with storage_settings(settings.storage), ExitStack() as stack:
        pictures = list(_pictures(sources, settings))
        alone = len(pictures) == 1
        means = _means_here() if alone else evaluation_means(settings)
        if not alone:
            stack.enter_context(ray_session())
        distance = perceptual_distance(
            generator, found.run_uri, config=config, features=features, device=means["device"]
        )

        def ask(pixels: np.ndarray) -> ProjectionRequest:
            return ProjectionRequest(
                generator_uri=uri,
                generator_sha256=hashlib.sha256(data).hexdigest(),
                distance=distance,
                pixels=pixels,
                space=space,
                steps=steps,
                seed=seed,
                label=classes[0] if classes else None,
                device=means["device"],
                shows_steps=alone,
            )

        batch = _Batch(pictures, settings, generator, target, ask)
        images = batch.run(means["pmap"])
    return Projections(
        checkpoint_uri=found.checkpoint_uri,
        network=distance.network.name,
        space=space,
        steps=steps,
        classes=names,
        images=tuple(images),
    )


def check_projects(generator: Generator, model: str) -> None:
    """Raise ConfigError if a generator, named so, has no w into which pictures can be projected."""
    if not generator.model.has_w:
        raise ConfigError(
            f"{model}: has no w to project pictures into (it was trained with model.architecture: resnet)"
        )


def picture_settings(run_uri: str | None, config: Config | None, generator: Generator) -> Config:
    """Return the config that says how pictures are converted and where Ray is: the given one, the run's, or defaults."""
    if config is not None or run_uri is not None:
        own = run_config(run_uri) if run_uri is not None else None
        found = config or own
        assert found is not None
        data = (own or found).data
    else:
        tree = {"name": "projection", "data": {"source": "projection", "resolution": generator.resolution}}
        found = build(tree | {"training": {"start_resolution": min(generator.resolution, 8)}}, "--set", [])
        data = found.data
    shape = {"resolution": generator.resolution, "channels": generator.channels}
    return found.model_copy(update={"data": data.model_copy(update=shape)})


def _means_here() -> dict[str, Any]:
    """Return by what means a single picture is projected: in this process, which a Ray would be slower to start than."""
    return {"pmap": map, "device": "cuda" if torch.cuda.is_available() else "cpu"}


@dataclass(frozen=True)
class _Picture:
    """A picture that is read when it is needed. `name` is that of its folder."""

    origin: str
    name: str
    read: Callable[[], bytes | np.ndarray]


def _pictures(sources: Sequence[str], settings: Config) -> Iterator[_Picture]:
    """List the pictures of all sources, each with a name of its own.

    Raises:
        ConfigError: there is no such source, or it is none of pictures.
    """
    listed = [entry for source in sources for entry in _listed(source, settings)]
    stems = Counter(os.path.splitext(path)[0] for _, path, _ in listed)
    taken = set[str]()
    for origin, path, read in listed:
        stem = os.path.splitext(path)[0]
        name = stem if stems[stem] == 1 else path
        while name in taken:  # the same path in another source
            name += "-2"
        taken.add(name)
        yield _Picture(origin, name, read)


def _listed(source: str, settings: Config) -> Iterator[tuple[str, str, Callable[[], bytes | np.ndarray]]]:
    """Yield origin, relative path and reader of each picture of one source."""
    check_argument("IMAGE", source)
    uri = storage.absolute(source)
    if is_image(storage.name(uri)) and storage.exists(uri):
        yield source, storage.name(uri), partial(storage.read_bytes, uri)
        return
    try:
        opened = open_source(DataConfig(source=source, resolution=4, labels="none"), settings.storage.root)
    except ConfigError as error:
        raise ConfigError(str(error).replace("data.source=", "IMAGE ", 1)) from error
    except StepError as error:
        raise StepError(str(error).replace("data.source=", "IMAGE ", 1)) from error

    def read(path: str) -> bytes | np.ndarray:
        with opened.open() as reader, explained(source):
            return reader(path)

    for image in opened.images:
        yield storage.join(source, image.path), image.path, partial(read, image.path)


class _Batch:
    """The pictures of a command: what is done already, what is wrong with them, and what workers are asked for."""

    def __init__(
        self,
        pictures: Sequence[_Picture],
        settings: Config,
        generator: Generator,
        target: str,
        ask: Callable[[np.ndarray], ProjectionRequest],
    ) -> None:
        self.pictures, self.settings, self.generator, self.target, self.ask = pictures, settings, generator, target, ask
        self.done: dict[int, ProjectedImage] = {}
        self.asked: list[tuple[int, ProjectedImage]] = []
        self.progress = Progress("project", len(pictures)) if len(pictures) > 1 else None

    def run(self, pmap: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]) -> list[ProjectedImage]:
        """Project all pictures; requests are made as workers take them, so that few pictures are in memory."""
        requests = self._requests()
        first = list(islice(requests, 1))  # if there is nothing to do, no Ray need start
        for number, result in enumerate(pmap(project_image, chain(first, requests)) if first else ()):
            position, image = self.asked[number]
            self._finish(position, image, result)
        return [self.done[position] for position in range(len(self.pictures))]

    def _requests(self) -> Iterator[ProjectionRequest]:
        for position, picture in enumerate(self.pictures):
            image = ProjectedImage(image=picture.origin, folder=storage.join(self.target, picture.name))
            try:
                pixels, converted = convert_picture(picture.read(), self.settings.data)
            except (UnreadableImage, FileNotFoundError, *DAMAGE) as error:
                self._keep(position, image.model_copy(update={"error": one_line(error, 200), "folder": ""}))
                continue
            request = self.ask(pixels)
            image = image.model_copy(update={"key": request.key, "converted": converted})
            if kept := self._kept(image):
                self._keep(position, kept)
                continue
            self.asked.append((position, image))
            yield request

    def _kept(self, image: ProjectedImage) -> ProjectedImage | None:
        """Return what the folder of a picture holds of this very projection."""
        marker = storage.join(image.folder, MARKER)
        try:
            found = storage.read_json(marker, ProjectedImage, cure="it is made anew")
        except FileNotFoundError:
            return None
        except DamagedError as error:
            logger.warning("%s", error)
            return None
        whole = found.key == image.key and all(storage.exists(storage.join(image.folder, name)) for name in found.files)
        return (
            image.model_copy(update={"figures": found.figures, "files": found.files, "cached": True}) if whole else None
        )

    def _finish(self, position: int, image: ProjectedImage, result: Projected) -> None:
        """Write the files of a picture; the marker comes last, so that a kill leaves a folder that does not count."""
        if result.error:
            self._keep(position, image.model_copy(update={"error": result.error, "folder": ""}))
            return
        for name, content in result.files.items():
            write_output(storage.join(image.folder, name), content)
        image = image.model_copy(update={"figures": result.figures, "files": tuple(result.files)})
        storage.write_json(storage.join(image.folder, MARKER), image.model_dump(mode="json"))
        self._keep(position, image)

    def _keep(self, position: int, image: ProjectedImage) -> None:
        self.done[position] = image
        if image.error:
            logger.warning("%s: %s", image.image, image.error)
        elif image.converted:
            logger.info("%s: %s", image.image, image.converted)
        if self.progress:
            self.progress.update(len(self.done))


def convert_picture(content: bytes | np.ndarray, data: DataConfig) -> tuple[np.ndarray, str]:
    """Bring a picture into the form of the model's images, as sharding does.

    Returns:
        uint8 [C, r, r], and what was done to it in words; empty if it had that form.

    Raises:
        UnreadableImage: it is no picture, or none that sharding accepts.
    """
    shape = measured(content)
    side, mode = data.resolution, "grey" if data.channels == 1 else "RGB"
    if shape[:2] == (side, side):  # an image of the model itself, or of its shards: no part of it is cut off
        data = data.model_copy(update={"crop": "center", "min_size": 0})
    pixels = prepare(content, data).levels[side]
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    words = ""
    if shape != (side, side, data.channels):
        parts = {"center": "the central square", "wide": "the central 4:3 part", "celeba": "the face region"}
        part = f"{parts[data.crop]}, " if shape[0] != shape[1] or data.crop != "center" else ""
        words = (
            f"{shape[0]}x{shape[1]} with {shape[2]} channel(s), converted as sharding does: {part}{side}x{side}, {mode}"
        )
    return np.array(pixels, order="C"), words
