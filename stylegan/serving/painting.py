"""Draw the pictures of requests: a queue, threads that draw, encoders beside them, and a store of what was drawn last."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from stylegan.drawing.directions import apply
from stylegan.drawing.draw import CUTOFF, given_noise, noise_of, paint, styles
from stylegan.drawing.interpolate import slerp
from stylegan.drawing.latents import latent
from stylegan.images import picture, picture_bytes, to_uint8
from stylegan.networks.generator import Generator, NoiseFn
from stylegan.serving.arguments import Wanted
from stylegan.serving.models import ServedModel

GATHER_SECONDS = 0.004  # on a GPU: how long a batch waits for more images
BATCH, BATCH_PIXELS = 64, 2**22  # most images of a batch, and most pixels
MOST_THREADS = 8
MOST_QUEUED = 1024  # images
MOST_WAIT = 15.0  # seconds that a new image may have to wait, as far as that can be foretold
PATIENCE = 60.0  # seconds after which a request is given up
LOOK_SECONDS = 0.5  # between two looks whether the one who asked is still there
KEPT_BYTES = 64 * 2**20  # of encoded pictures


class BusyError(Exception):
    """There is more to draw than can be done soon; `retry_after` are seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(retry_after)
        self.retry_after = max(round(retry_after), 1)


class GoneError(Exception):
    """The one who has asked is gone."""


def etag(model: ServedModel, wanted: Wanted, ending: str) -> str:
    """Return what a picture is known by: equal tags are equal bytes."""
    return hashlib.sha256(f"{model.digest} {wanted.key} {ending}".encode()).hexdigest()[:40]


@dataclass(eq=False)
class _Job:
    """A picture to draw."""

    model: ServedModel
    wanted: Wanted
    ending: str
    done: asyncio.Future[bytes]
    waiting: int = 0  # requests that want it


class Painter:
    """Draws pictures with any model, in the order of the requests.

    On a CPU a picture is drawn by itself, so that it has the bits that `stylegan sample` draws; pictures of a recorded
    generator on as many threads as there are processors, others one after the other. On a GPU those that arrive within
    GATHER_SECONDS are drawn together. What is asked for twice at a time is drawn once.
    """

    def __init__(self, device: str) -> None:
        """Start the threads; call it on the event loop that will wait for pictures."""
        self.together = device.startswith("cuda")
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Job] = deque()
        self._arrived = threading.Condition()
        self._closed = False
        self._jobs: dict[str, _Job] = {}  # under way, by etag; on the loop's thread alone, like the two that follow
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._seconds = 0.0  # that an image takes
        self._alone = threading.Lock()  # of what uses several processors by itself
        self._encoders = ThreadPoolExecutor(4, thread_name_prefix="encode")
        self._threads = 1 if self.together else min(len(os.sched_getaffinity(0)), MOST_THREADS)
        for number in range(self._threads):
            threading.Thread(target=self._work, name=f"draw-{number}", daemon=True).start()

    def close(self) -> None:
        """End the threads; nothing may be under way."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
        self._encoders.shutdown(wait=False)

    async def pictures(
        self,
        model: ServedModel,
        wanted: Sequence[Wanted],
        ending: str,
        is_gone: Callable[[], Awaitable[bool]],
    ) -> list[bytes]:
        """Return the pictures as files.

        Args:
            model: what draws them.
            wanted: what is drawn.
            ending: `.png` or `.webp`.
            is_gone: returns whether nobody waits for them any more.

        Raises:
            BusyError: it would take too long.
            GoneError: nobody waits for them any more.
        """
        tags = [etag(model, one, ending) for one in wanted]
        new = {tag for tag in tags if tag not in self._jobs and tag not in self._kept}
        if new:
            self._require_room(len(new))
        kept = {tag: self._take(tag) for tag in tags if tag in self._kept}
        jobs = {}
        for tag, one in zip(tags, wanted, strict=True):
            if tag not in kept and tag not in jobs:
                jobs[tag] = self._jobs.get(tag) or self._submit(tag, model, one, ending)
                jobs[tag].waiting += 1
        try:
            await self._wait([job.done for job in jobs.values()], is_gone)
        finally:
            for job in jobs.values():
                job.waiting -= 1
        return [kept[tag] if tag in kept else jobs[tag].done.result() for tag in tags]

    async def _wait(self, futures: Sequence[asyncio.Future[bytes]], is_gone: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + PATIENCE
        left = {future for future in futures if not future.done()}
        while left:
            _, left = await asyncio.wait(left, timeout=LOOK_SECONDS)
            if left and time.monotonic() > deadline:
                raise BusyError(MOST_WAIT)
            if left and await is_gone():
                raise GoneError

    def _require_room(self, number: int) -> None:
        queued = len(self._jobs)
        if queued and (queued + number > MOST_QUEUED or queued * self._seconds > MOST_WAIT):
            raise BusyError(queued * self._seconds)

    def _submit(self, tag: str, model: ServedModel, wanted: Wanted, ending: str) -> _Job:
        job = _Job(model, wanted, ending, self._loop.create_future())
        self._jobs[tag] = job

        def finish(future: asyncio.Future[bytes]) -> None:
            del self._jobs[tag]
            if not future.cancelled() and not future.exception():
                self._keep(tag, future.result())

        job.done.add_done_callback(finish)
        with self._arrived:
            self._queue.append(job)
            self._arrived.notify()
        return job

    # --- what was drawn last ---

    def _take(self, tag: str) -> bytes:
        self._kept.move_to_end(tag)
        return self._kept[tag]

    def _keep(self, tag: str, data: bytes) -> None:
        self._kept[tag] = data
        self._kept_bytes += len(data)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    # --- the threads that draw ---

    def _work(self) -> None:
        while batch := self._next_batch():
            begun = time.monotonic()
            try:
                images = self._draw(batch)
            except Exception as error:
                for job in batch:
                    self._tell(job, error)
                continue
            seconds = (time.monotonic() - begun) / len(batch) / self._threads
            self._seconds = 0.9 * self._seconds + 0.1 * seconds if self._seconds else seconds
            with suppress(RuntimeError):  # the server has ended meanwhile
                for job, image in zip(batch, images, strict=True):
                    self._encoders.submit(self._encode, job, image)
            del batch, images

    def _next_batch(self) -> list[_Job]:
        """Wait for jobs; return those that are drawn next, all of one model. None are left when the painter is closed."""
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return []
            if self.together:
                time.sleep(GATHER_SECONDS)
            batch = self._take_batch()
            if batch:
                return batch

    def _take_batch(self) -> list[_Job]:
        batch: list[_Job] = []
        with self._arrived:
            while self._queue and len(batch) < self._most(self._queue[0]) and _alike(batch, self._queue[0]):
                job = self._queue.popleft()
                if job.waiting:
                    batch.append(job)
                else:
                    self._loop.call_soon_threadsafe(self._give_up, job)
        return batch

    def _give_up(self, job: _Job) -> None:
        """End a job for which nobody waits, unless somebody has come in this moment."""
        if not job.waiting:
            job.done.cancel()
            return
        with self._arrived:
            self._queue.append(job)
            self._arrived.notify()

    def _most(self, job: _Job) -> int:
        return min(BATCH, max(BATCH_PIXELS // job.model.generator.resolution**2, 1)) if self.together else 1

    def _draw(self, batch: Sequence[_Job]) -> Tensor:
        generator = batch[0].model.generator
        latents = [prepare(job.model, job.wanted) for job in batch]
        if len(batch) == 1:
            if batch[0].model.recorded:
                return batch[0].model.recorded(*latents[0])
            with self._alone:
                return paint(generator, *latents[0])
        ws, noises = torch.cat([ws for ws, _ in latents]), [noise for _, noise in latents]
        with torch.no_grad():
            return to_uint8(generator.synthesis(ws, noise=_side_by_side(generator, noises))).cpu()

    def _encode(self, job: _Job, image: Tensor) -> None:
        try:
            data: bytes | Exception = picture_bytes(picture(image, cell=job.wanted.side), job.ending)
        except Exception as error:
            data = error
        self._tell(job, data)

    def _tell(self, job: _Job, result: bytes | Exception) -> None:
        def settle() -> None:
            if not job.done.done():
                if isinstance(result, Exception):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)

        with suppress(RuntimeError):  # the server has ended meanwhile
            self._loop.call_soon_threadsafe(settle)


def _alike(batch: Sequence[_Job], job: _Job) -> bool:
    return not batch or batch[0].model is job.model


@torch.no_grad()
def prepare(model: ServedModel, wanted: Wanted) -> tuple[Tensor, NoiseFn | None]:
    """Return the styles of a picture, ws [1, num_layers, L], and its noise: None means the maps of the generator."""
    generator = model.generator
    device, size = generator.w_avg.device, generator.model.latent_size
    if wanted.latents is None:
        z, stream = latent(wanted.seed, size)
        noise = noise_of(wanted.noise, stream, device)
        if wanted.to is not None:
            z = slerp(z, latent(wanted.to, size)[0], wanted.t)
        ws = styles(generator, z, wanted.label, psi=wanted.psi)
    else:
        maps, own = wanted.latents.noise, wanted.noise == "own"
        noise = given_noise(maps, device) if own and maps else noise_of(wanted.noise, None, device)
        ws = generator.truncate(wanted.latents.ws.to(device), psi=wanted.psi, cutoff=CUTOFF)
    if wanted.mix is not None:
        fine = styles(generator, latent(wanted.mix, size)[0], wanted.label, psi=wanted.psi)
        ws = torch.cat([ws[:, : wanted.crossover], fine[:, wanted.crossover :]], dim=1)
    for name, strength in wanted.edits:
        ws = apply(ws, model.directions[name], strength)
    return ws, noise


def _side_by_side(generator: Generator, noises: Sequence[NoiseFn | None]) -> NoiseFn:
    """Return the noise of a batch whose images have noise of their own."""

    def draw(layer: int, n: int, resolution: int) -> Tensor:
        stored = generator.synthesis.get_buffer(f"noise{layer}")
        return torch.cat([stored if noise is None else noise(layer, 1, resolution) for noise in noises])

    return draw
