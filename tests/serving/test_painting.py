"""The queue of pictures: what is drawn once, together, too late or for nobody."""

import asyncio
import io
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from served_models import no_means, write_model

from stylegan.serving import painting
from stylegan.serving.arguments import PictureQuery, understand
from stylegan.serving.models import load
from stylegan.serving.painting import BusyError, GoneError, Painter


@pytest.fixture
def model(tmp_path):
    return load(write_model(tmp_path / "model"), "cpu", no_means)


async def here() -> bool:
    return False


def wanted(model, **arguments):
    return understand(PictureQuery(**arguments), model, lambda name, model: None)


def pixels(data):
    return np.array(Image.open(io.BytesIO(data))).astype(int)


def run(task):
    """Run `task(painter)` on a loop of its own; return what it returns."""

    async def main():
        painter = Painter("cpu")
        try:
            return await asyncio.wait_for(task(painter), 60)
        finally:
            painter.close()

    return asyncio.run(main())


class Gate:
    """Holds the thread that draws until it is opened, and counts what is drawn."""

    def __init__(self, monkeypatch):
        self.open, self.drawn = threading.Event(), []
        before = Painter._draw

        def draw(painter, batch):
            assert self.open.wait(30)
            self.drawn.append(len(batch))
            return before(painter, batch)

        monkeypatch.setattr(Painter, "_draw", draw)


@pytest.fixture
def gate(monkeypatch):
    return Gate(monkeypatch)


def test_what_is_asked_for_twice_is_drawn_once(model, gate):
    async def task(painter):
        gate.open.set()
        same = [wanted(model, seed=1), wanted(model, seed=1), wanted(model, seed=2)]
        first, second = await asyncio.gather(
            painter.pictures(model, same, ".png", here), painter.pictures(model, same[1:], ".png", here)
        )
        third = await painter.pictures(model, same, ".png", here)
        assert first == third
        assert first[1:] == second
        return first

    first, twin, other = run(task)
    assert first == twin != other
    assert sum(gate.drawn) == 2


def test_the_store_of_pictures_is_bounded_and_drops_the_oldest(model, monkeypatch):
    async def task(painter):
        size = len((await painter.pictures(model, [wanted(model, seed=0)], ".png", here))[0])
        monkeypatch.setattr(painting, "KEPT_BYTES", 10 * size)
        for seed in range(30):
            await painter.pictures(model, [wanted(model, seed=seed)], ".png", here)
        assert painter._kept_bytes == sum(map(len, painter._kept.values())) <= 10 * size
        assert painting.etag(model, wanted(model, seed=29), ".png") in painter._kept
        assert painting.etag(model, wanted(model, seed=0), ".png") not in painter._kept

    run(task)


def test_on_a_gpu_what_arrives_together_is_drawn_together(model, gate, monkeypatch):
    """Every image of a batch keeps its own noise: own, stored, none, or of a seed. The way is the same on a CPU."""
    monkeypatch.setattr(painting, "BATCH", 5)
    many = [
        wanted(model, seed=n, noise=noise)
        for n, noise in enumerate(["own", "stored", "none", "7", "own", "own", "own"])
    ]

    async def task(painter):
        alone = await painter.pictures(model, many, ".png", here)
        painter._kept.clear()
        gate.drawn.clear()
        painter.together = True
        return alone, await painter.pictures(model, many, ".png", here)

    gate.open.set()
    alone, together = run(task)
    assert gate.drawn == [5, 2]
    for one, other in zip(alone, together, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1  # sums in another order
    assert len(set(together)) == 7


def test_versions_are_not_mixed_in_a_batch(model, gate, tmp_path):
    other = load(write_model(tmp_path / "other", seed=1), "cpu", no_means)

    async def task(painter):
        painter.together = True
        asked = [
            painter.pictures(one, [wanted(one, seed=n)], ".png", here) for n, one in enumerate([model, other, model])
        ]
        tasks = [asyncio.create_task(one) for one in asked]
        await asyncio.sleep(0.05)
        gate.open.set()
        await asyncio.gather(*tasks)

    run(task)
    assert gate.drawn == [1, 1, 1]


def test_more_than_can_be_drawn_soon_is_refused_with_a_time(model, gate):
    async def task(painter):
        gate.open.set()
        await painter.pictures(model, [wanted(model, seed=0)], ".png", here)
        gate.open.clear()
        painter._seconds = 5.0
        waiting = [
            asyncio.create_task(painter.pictures(model, [wanted(model, seed=seed)], ".png", here))
            for seed in range(1, 5)
        ]
        await asyncio.sleep(0.05)
        with pytest.raises(BusyError) as caught:
            await painter.pictures(model, [wanted(model, seed=9)], ".png", here)
        assert caught.value.retry_after == 20
        assert await painter.pictures(model, [wanted(model, seed=0)], ".png", here)  # what is there is no work
        gate.open.set()
        await asyncio.gather(*waiting)
        painter._seconds = 0.001
        await painter.pictures(model, [wanted(model, seed=9)], ".png", here)

    run(task)


def test_nothing_is_drawn_for_those_who_are_gone(model, gate, monkeypatch):
    monkeypatch.setattr(painting, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(painting, "MOST_THREADS", 1)

    async def task(painter):
        gone = False

        async def is_gone():
            return gone

        first = asyncio.create_task(painter.pictures(model, [wanted(model, seed=1)], ".png", here))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(painter.pictures(model, [wanted(model, seed=2)], ".png", is_gone))
        await asyncio.sleep(0.05)
        gone = True
        with pytest.raises(GoneError):
            await second
        gate.open.set()
        await first
        await asyncio.sleep(0.1)
        assert sum(gate.drawn) == 1
        await painter.pictures(model, [wanted(model, seed=2)], ".png", here)
        assert not painter._jobs

    run(task)


def test_a_request_that_waits_too_long_is_given_up(model, gate, monkeypatch):
    monkeypatch.setattr(painting, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(painting, "PATIENCE", 0.1)

    async def task(painter):
        with pytest.raises(BusyError):
            await painter.pictures(model, [wanted(model, seed=1)], ".png", here)
        gate.open.set()

    run(task)


def test_a_failure_reaches_whoever_asked_and_nobody_else(model):
    broken = replace(model, recorded=lambda *_: 1 / 0)

    async def task(painter):
        with pytest.raises(ZeroDivisionError):
            await painter.pictures(broken, [wanted(model, seed=1)], ".png", here)
        assert await painter.pictures(model, [wanted(model, seed=1)], ".png", here)

    run(task)
