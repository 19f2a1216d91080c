"""One chunk: its files, the work that is not repeated, and the failures that concern one image or the whole chunk."""

import hashlib
import pickle
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.decode import UnreadableImage
from stylegan.data.sharding.build_chunk import build_chunk, scratch
from stylegan.data.sharding.chunks import ChunkRequest, Recipe, marker_uri, read_chunk, sample_key, tar_url
from stylegan.data.sources.base import Read, SourceImage
from stylegan.errors import StepError

PIXELS = {f"{number}.png": np.full((8, 8, 3), 20 * number, np.uint8) for number in range(6)}


def read(path: str) -> np.ndarray:
    """Read an image of an array source; some are missing, and one belongs to a store that does not answer."""
    if path == "down":
        raise StepError("s3://bucket: does not answer")
    return np.full((8, 8), int(path), np.uint8) if path.isdigit() else PIXELS[path]


def work(folder: Path, names: list[str] | None = None, **changes: object) -> tuple[Recipe, ChunkRequest]:
    images = tuple(SourceImage(name, 1, "token") for name in names or sorted(PIXELS))
    data = DataConfig(source="arrays", resolution=8)
    recipe = Recipe(uri=str(folder), open=partial(nullcontext, read), data=data, labels="class", threads=1)
    request = ChunkRequest(name="000007", images=images)
    of_recipe = {name: value for name, value in changes.items() if name in vars(recipe)}
    return replace(recipe, **of_recipe), replace(
        request, **{name: changes[name] for name in changes.keys() - of_recipe.keys()}
    )


def test_tars_and_marker(tmp_path):
    """The marker has a row for each image and the facts of the tars; no scratch folder remains."""
    assert build_chunk(*pickle.loads(pickle.dumps(work(tmp_path)))) == 6
    chunk = read_chunk(str(tmp_path), "000007")
    assert chunk.rows["path"].to_pylist() == sorted(PIXELS)
    assert chunk.rows["key"].to_pylist() == [sample_key(path) for path in sorted(PIXELS)]
    assert chunk.rows["source_sha256"].to_pylist() == [
        hashlib.sha256(PIXELS[path].tobytes()).digest() for path in sorted(PIXELS)
    ]
    for resolution in (4, 8):
        content = (tmp_path / tar_url(resolution, "000007")).read_bytes()
        assert chunk.tars[resolution] == (hashlib.sha256(content).hexdigest(), len(content))
    assert {path.name for path in tmp_path.iterdir()} == {"r0004", "r0008", "chunks"}


def read_slowly(path: str) -> np.ndarray:
    time.sleep(0.01)
    seen.add(threading.current_thread().name)
    return read(path)


seen: set[str] = set()


@pytest.mark.parametrize("change", [{"threads": 3}, {"open": partial(nullcontext, read_slowly)}])
def test_threads_change_no_byte(tmp_path, change):
    """The threads may be those of the recipe, or those that wait for a slow store."""
    names = [str(number) for number in range(40)]
    build_chunk(*work(tmp_path / "a", names))
    seen.clear()
    build_chunk(*work(tmp_path / "b", names, **change))
    assert ("open" not in change) or len(seen) > 8
    for name in (tar_url(4, "000007"), tar_url(8, "000007"), "chunks/000007.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_finished_chunk_is_not_done_again_unless_it_is_another(tmp_path):
    """For a finished chunk the source is not even opened. Other tokens, labels or settings make it another chunk; a
    damaged marker does not count.
    """
    build_chunk(*work(tmp_path))
    closed = {"open": lambda: pytest.fail("was opened")}
    assert build_chunk(*work(tmp_path, **closed)) == 6
    images = work(tmp_path)[1].images
    others = [
        {"images": (images[0]._replace(token="other"), *images[1:])},
        {"images": (images[0]._replace(label=0), *images[1:])},
        {"data": DataConfig(source="arrays", resolution=8, resize_filter="box")},
        {"known": (None,) * 6},
    ]
    for change in others:
        with pytest.raises(BaseException, match="was opened"):
            build_chunk(*work(tmp_path, **closed, **change))
    assert build_chunk(*work(tmp_path, **closed, data=DataConfig(source="arrays", resolution=8, max_rejected=5))) == 6
    marker = Path(marker_uri(str(tmp_path), "000007"))
    marker.write_bytes(marker.read_bytes()[:-20])
    with pytest.raises(BaseException, match="was opened"):
        build_chunk(*work(tmp_path, **closed))


def test_marker_comes_last(tmp_path):
    """If a tar cannot be moved to its place, there is no marker."""
    (tmp_path / tar_url(8, "000007")).mkdir(parents=True)
    with pytest.raises(StepError, match="storage: cannot write shards below"):
        build_chunk(*work(tmp_path))
    assert not (tmp_path / "chunks").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"r0004", "r0008"}


def test_one_images_fault_is_a_reject_the_stores_is_not(tmp_path):
    """A missing image is listed; a store that does not answer ends the chunk without a marker."""
    build_chunk(*work(tmp_path, ["0.png", "gone.png"]))
    (reject,) = read_chunk(str(tmp_path), "000007").rejected
    assert (reject["path"], reject["kind"], reject["bytes"]) == ("gone.png", "unreadable", None)
    assert "cannot be read" in reject["reason"]
    with pytest.raises(StepError, match="does not answer"):
        build_chunk(*work(tmp_path / "other", ["0.png", "down"]))
    assert not (tmp_path / "other" / "chunks").exists()


def test_chunk_of_rejects_has_no_tar(tmp_path):
    build_chunk(*work(tmp_path, ["gone.png", "gone too.png"], labels="attributes"))
    chunk = read_chunk(str(tmp_path), "000007")
    assert (chunk.rows.num_rows, chunk.tars, len(chunk.rejected)) == (0, {}, 2)
    assert "attributes" in chunk.rows.column_names
    assert not list(tmp_path.rglob("*.tar"))


def test_known_bytes_are_touched_not_written(tmp_path):
    """An image whose bytes are those of the parent is listed as touched, and has no row."""
    known = (hashlib.sha256(PIXELS["0.png"].tobytes()).digest(), b"x" * 32, None)
    build_chunk(*work(tmp_path, ["0.png", "1.png", "2.png"], known=known))
    chunk = read_chunk(str(tmp_path), "000007")
    assert chunk.touched == [0]
    assert chunk.rows["path"].to_pylist() == ["1.png", "2.png"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError(13, "Permission denied"), "unread"),
        (FileNotFoundError(2, "No such file"), "unread"),
        (OSError(5, "Input/output error"), "unread"),
        (MemoryError(), "unread"),
        (RuntimeError("session is closed"), "unread"),
        (zipfile.BadZipFile("the checksum of the member is wrong"), "unreadable"),
        (EOFError("10 bytes of 20"), "unreadable"),
        (UnreadableImage("2,000,000,000 bytes", "too large"), "too large"),
    ],
)
def test_only_what_the_bytes_prove_is_a_reject(tmp_path, error, kind):
    """The marker says of each failed read whether it is final."""

    def fail(path: str) -> np.ndarray:
        if path == "bad.png":
            raise error
        return read(path)

    build_chunk(*work(tmp_path, ["0.png", "bad.png"], open=partial(nullcontext, fail)))
    (reject,) = read_chunk(str(tmp_path), "000007").rejected
    assert (reject["path"], reject["kind"], reject["bytes"]) == ("bad.png", kind, None)


def test_memory_that_is_full_is_no_reject(tmp_path, monkeypatch):
    """A picture that does not fit into memory now may fit elsewhere."""

    def full(*_: object) -> None:
        raise UnreadableImage("no memory") from MemoryError()

    monkeypatch.setattr("stylegan.data.sharding.build_chunk.prepare", full)
    build_chunk(*work(tmp_path, ["0.png"]))
    (reject,) = read_chunk(str(tmp_path), "000007").rejected
    assert (reject["kind"], reject["bytes"]) == ("unread", None)


# --- images that could not be read ------------------------------------------------------------------------------------


class Store:
    """A source that counts its reads, and refuses some images."""

    def __init__(self, **refused: Exception) -> None:
        self.refused, self.reads, self.opened = refused, Counter[str](), 0

    def open(self) -> AbstractContextManager[Read]:
        self.opened += 1
        return nullcontext(self.read)

    def read(self, path: str) -> np.ndarray:
        self.reads[path] += 1
        if path in self.refused:
            raise self.refused[path]
        return read(path)


def marker_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which every read of a file of the storage adds its URI."""
    uris: list[str] = []
    read_bytes = storage.read_bytes

    def counted(uri: str) -> bytes:
        uris.append(uri)
        return read_bytes(uri)

    monkeypatch.setattr(storage, "read_bytes", counted)
    return uris


@pytest.mark.parametrize(
    ("error", "opened"),
    [(zipfile.BadZipFile("the checksum is wrong"), 1), (PermissionError(13, "Permission denied"), 2)],
)
def test_only_unread_images_open_the_source_again(tmp_path, monkeypatch, error, opened):
    """A reject that the bytes prove is final, so a resumed chunk needs no archive for it; the marker is read once."""
    store = Store(**{"1": error})
    build_chunk(*work(tmp_path, ["0", "1"], open=store.open))
    reads = marker_reads(monkeypatch)
    build_chunk(*work(tmp_path, ["0", "1"], open=store.open))
    assert (store.opened, store.reads) == (opened, {"0": 1, "1": opened})
    assert reads == [marker_uri(str(tmp_path), "000007")]


def test_image_that_is_readable_again(tmp_path):
    """It is read to find that out, and once more when its chunk is done again."""
    store = Store(**{"1": PermissionError(13, "Permission denied")})
    build_chunk(*work(tmp_path, ["0", "1"], open=store.open))
    again = Store()
    build_chunk(*work(tmp_path, ["0", "1"], open=again.open))
    chunk = read_chunk(str(tmp_path), "000007")
    assert (chunk.rows["path"].to_pylist(), chunk.rejected) == (["0", "1"], [])
    assert again.reads == {"0": 1, "1": 2}


@pytest.mark.parametrize("before", [None, PermissionError(13, "Permission denied")])
def test_chunk_that_another_process_did_meanwhile(tmp_path, monkeypatch, before):
    """Whoever gets the lock after it does nothing, whether the chunk was missing or could be read again."""
    if before is not None:
        build_chunk(*work(tmp_path, ["0", "1"], open=Store(**{"1": before}).open))
    other, mine = Store(), Store()

    @contextmanager
    def late(uri: str, name: str) -> Iterator[Path]:
        with monkeypatch.context() as patch:
            patch.setattr("stylegan.data.sharding.build_chunk.scratch", scratch)
            build_chunk(*work(tmp_path, ["0", "1"], open=other.open))
        with scratch(uri, name) as folder:
            yield folder

    monkeypatch.setattr("stylegan.data.sharding.build_chunk.scratch", late)
    build_chunk(*work(tmp_path, ["0", "1"], open=mine.open))
    assert mine.reads == ({} if before is None else {"1": 1})
    assert read_chunk(str(tmp_path), "000007").rows["path"].to_pylist() == ["0", "1"]
