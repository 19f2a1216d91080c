"""The model that is served: loaded once, and replaced beside the running requests when its alias moves."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import stylegan
from stylegan import storage
from stylegan.drawing.draw import no_noise, paint
from stylegan.errors import StepError, one_line
from stylegan.networks.generator import Generator
from stylegan.networks.weights import load_generator

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


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A loaded generator.

    Attributes:
        found: what it is.
        generator: in evaluation mode, on the device of the server.
        classes: names of the classes; empty if it is not class-conditional.
        digest: tells its pictures from those of other weights, devices and versions of this program.
    """

    found: Found
    generator: Generator
    classes: tuple[str, ...]
    digest: str

    @property
    def version(self) -> str:
        """The version in the registry, else the first characters of the digest."""
        return self.found.version or self.digest[:12]


def load(found: Found, device: str) -> ServedModel:
    """Read a generator onto a device, and draw with it once: the first image takes longer than all others.

    Raises:
        StepError: the checkpoint is gone or damaged.
    """
    uri = storage.join(found.checkpoint_uri, "generator.safetensors")
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        raise StepError(f"{found.name}: its checkpoint {found.checkpoint_uri} is gone; name another model") from None
    generator, names = load_generator(data, uri)
    generator = generator.to(device)
    digest = hashlib.sha256(f"{stylegan.__version__} {device} ".encode() + hashlib.sha256(data).digest()).hexdigest()
    paint(generator, generator.w_avg.expand(1, generator.num_layers, -1), no_noise(device))
    return ServedModel(found, generator, names if generator.num_labels else (), digest)


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

    def __init__(self, find: Callable[[], Found], device: str) -> None:
        """Find the model and load it.

        Args:
            find: returns what the model's name means now.
            device: `cpu` or `cuda`.

        Raises:
            ConfigError, StepError: there is no such model, or it cannot be loaded.
        """
        self.find, self.device = find, device
        self.current = load(find(), device)
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
                self.current = load(found, self.device)
                logger.info("%s: version %s is served now, after %s", found.name, self.current.version, old.version)
                del old
                if self.device == "cuda":
                    torch.cuda.empty_cache()
        except Exception as error:  # whatever it is, the old model goes on
            if self.trouble is None:
                logger.warning("%s: version %s stays: %s", old.found.name, old.version, one_line(error))
            self.trouble = one_line(error)
        else:
            if self.trouble is not None:
                logger.info("%s: the registry answers again", found.name)
            self.trouble, self.looked = None, time.time()
