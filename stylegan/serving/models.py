"""The model that is served: loaded once, and replaced beside the running requests when its alias moves."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

import stylegan
from stylegan import storage
from stylegan.drawing.directions import Direction, directions_of
from stylegan.drawing.draw import no_noise, paint
from stylegan.drawing.project import Distance
from stylegan.errors import StepError, UserError, one_line
from stylegan.networks.generator import Generator
from stylegan.networks.weights import load_generator
from stylegan.serving.recorded import Paint, record
from stylegan.training.state import refuse_transfer

logger = logging.getLogger("stylegan")
POLL_SECONDS = 10.0  # between two looks at an alias; loading a large model takes some more


@dataclass(frozen=True)
class Found:
    """What the text that names a model means at this moment.

    Attributes:
        name: the registered model, else the run or checkpoint as it was named.
        version: its number in the registry, None for a run or a checkpoint.
        alias: the alias that is followed, None if the text names one model for ever.
        run_id: the run that made it, None if that is not known.
        run_uri: the folder of that run, None if storage no longer has it.
        checkpoint_uri: the folder of its checkpoint.
    """

    name: str
    version: str | None
    alias: str | None
    run_id: str | None
    run_uri: str | None
    checkpoint_uri: str


@dataclass(frozen=True)
class ProjectionMeans:
    """What a model's pictures are projected with.

    Attributes:
        convert: brings the bytes of a picture into the form of the model's images: uint8 [C, r, r], and what was done to
            it in words. Raises UnreadableImage.
        distance: in which images are compared.
    """

    convert: Callable[[bytes], tuple[np.ndarray, str]]
    distance: Distance


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A loaded generator.

    Attributes:
        found: what it is.
        generator: in evaluation mode, on the device of the server.
        classes: names of the classes; empty if it is not class-conditional.
        digest: tells its pictures from those of other weights, devices and versions of this program.
        recorded: draws one image faster than `paint`, with the same bits; None where nothing does.
        directions: of its attributes, by name.
        means: for projections, None if it has none; `no_means` says why.
    """

    found: Found
    generator: Generator
    classes: tuple[str, ...]
    digest: str
    recorded: Paint | None
    directions: Mapping[str, Direction]
    means: ProjectionMeans | None
    no_means: str

    @property
    def version(self) -> str:
        """The version in the registry, else the first characters of the digest."""
        return self.found.version or self.digest[:12]


Means = Callable[[Found, Generator], ProjectionMeans]  # raises UserError if there are none


def load(found: Found, device: str, means_of: Means) -> ServedModel:
    """Read a generator onto a device, and draw with it once: the first image takes longer than all others.

    Raises:
        StepError: the checkpoint is gone or damaged.
    """
    uri = storage.join(found.checkpoint_uri, "generator.safetensors")
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        refuse_transfer(found.checkpoint_uri)
        raise StepError(f"{found.name}: its checkpoint {found.checkpoint_uri} is gone; name another model") from None
    generator, names = load_generator(data, uri)
    directions = directions_of(found.run_uri, generator) if found.run_uri else ()
    means, no_means = None, ""
    try:
        means = means_of(found, generator)
    except UserError as error:
        no_means = str(error)
    facts = [
        stylegan.__version__,
        device,
        *(f"{one.name} {one.scale} {one.normal.tobytes().hex()}" for one in directions),
    ]
    generator = generator.to(device)
    paint(generator, generator.w_avg.expand(1, generator.num_layers, -1), no_noise(device))
    return ServedModel(
        found,
        generator,
        names if generator.num_labels else (),
        hashlib.sha256(hashlib.sha256(data).digest() + "\n".join(facts).encode()).hexdigest(),
        record(generator),
        {one.name: one for one in directions},
        means,
        no_means,
    )


class Models:
    """The model that new requests are drawn with.

    A model whose alias is followed is looked up again every POLL_SECONDS on a thread of its own. A new version is loaded
    beside the old one, and takes its place in one step: a request keeps the model that it began with. While the registry
    or the new checkpoint cannot be read, the old one goes on.

    Attributes:
        current: the model.
        trouble: why the last look failed, None if it did not.
        looked: when the last look succeeded, in seconds since 1970.
    """

    def __init__(self, find: Callable[[], Found], device: str, means_of: Means) -> None:
        """Find the model and load it.

        Args:
            find: returns what the model's name means now.
            device: `cpu` or `cuda`.
            means_of: returns what pictures are projected with.

        Raises:
            ConfigError, StepError: there is no such model, or it cannot be loaded.
        """
        self.find, self.device, self.means_of = find, device, means_of
        self.current = load(find(), device, means_of)
        self.trouble: str | None = None
        self.looked = time.time()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow-alias", daemon=True)

    def start(self) -> None:
        """Begin to follow the alias, if the model has one."""
        if self.current.found.alias:
            self._thread.start()

    def close(self) -> None:
        """Follow it no longer."""
        self._end.set()

    def _follow(self) -> None:
        while not self._end.wait(POLL_SECONDS):
            self.look()

    def look(self) -> None:
        """Look the model up, and load it if it is another one."""
        old = self.current
        try:
            found = self.find()
            if found != old.found:
                self.current = load(found, self.device, self.means_of)
                logger.info("%s: version %s is served now, after %s", found.name, self.current.version, old.version)
                del old
                if self.device.startswith("cuda"):
                    torch.cuda.empty_cache()
        except Exception as error:  # whatever it is, the old model goes on
            if self.trouble is None:
                logger.warning("%s: version %s stays: %s", old.found.name, old.version, one_line(error))
            self.trouble = one_line(error)
        else:
            if self.trouble is not None:
                logger.info("%s: the registry answers again", found.name)
            self.trouble, self.looked = None, time.time()
