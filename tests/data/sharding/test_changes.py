"""Incremental sharding: the work grows with the change, and the content equals that of shards made anew."""

import errno
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data import payload
from stylegan.data.index import read_level, read_manifest, read_samples
from stylegan.data.sharding.changes import Change, plan_change
from stylegan.data.sharding.verify import verify
from stylegan.data.sharding.write_shards import count_unread, find_shards, read_shards, shard_key, write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.data.sources.unaltered import unaltered
from stylegan.errors import StepError, UnavailableError


@pytest.fixture
def folder(tmp_path, draw_images) -> Path:
    """40 images in two class folders."""
    return draw_images(tmp_path / "images", [f"{'cat' if number % 3 else 'dog'}/{number}.png" for number in range(40)])


def config(folder: Path, **changes: object) -> DataConfig:
    return DataConfig(**({"source": str(folder), "resolution": 8, "images_per_shard": 10} | changes))


def change(data: DataConfig, root: Path) -> Change:
    return plan_change(open_source(data), data, str(root))


def make(data: DataConfig, root: Path, seen: list[int] | None = None) -> ShardSet:
    return write_shards(
        open_source(data), data, str(root), progress=lambda done, _: seen.append(done) if seen is not None else None
    )


def paths(shards: ShardSet) -> set[str]:
    return set(read_samples(shards.uri, read_manifest(shards.uri), ["path"])["path"].to_pylist())


def images(shards: ShardSet) -> np.ndarray:
    level = read_level(shards, 8)
    tars = [Path(tar.uri).read_bytes() for tar in level.tars]
    places = zip(level.tar, level.offset, level.size, strict=True)
    return np.stack([payload.decode(tars[tar][offset : offset + size], level.suffix) for tar, offset, size in places])


def assert_as_made_anew(shards: ShardSet, data: DataConfig, root: Path) -> None:
    fresh = make(data.model_copy(update={"incremental": False}), root)
    assert fresh.fingerprint == shards.fingerprint
    assert (fresh.num_images, fresh.num_rejected) == (shards.num_images, shards.num_rejected)
    assert np.array_equal(images(fresh), images(shards))
    assert Path(fresh.uri, "rejected.jsonl").read_bytes() == Path(shards.uri, "rejected.jsonl").read_bytes()
    columns = ["path", "token", "label", "source_sha256", "sha256", "width", "height", "bytes", "key"]
    ours, theirs = (read_samples(found.uri, read_manifest(found.uri), columns) for found in (shards, fresh))
    assert ours.equals(theirs)
    assert verify(shards.uri).problems == ()


def own_tars(shards: ShardSet) -> list[Path]:
    return sorted(Path(shards.uri).rglob("*.tar"))


def test_first_set_has_no_parent(folder, tmp_path):
    data = config(folder)
    assert change(data, tmp_path) == Change(new=40, changed=0, deleted=0, kept=0, parent=None)
    shards = make(data, tmp_path)
    assert change(data, tmp_path) == Change(new=0, changed=0, deleted=0, kept=40, parent=storage.name(shards.uri))


def test_new_images_make_new_tars_only(folder, tmp_path, draw_images):
    """With three new images, three are read, one tar for each level is written, and the old tars are listed with it."""
    data, seen = config(folder), []
    old = make(data, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in own_tars(old)}
    draw_images(folder / "cat", ["a.png", "b.png", "c.png"], size=(30, 31))
    expected = Change(new=3, changed=0, deleted=0, kept=40, parent=storage.name(old.uri))
    assert change(data, tmp_path) == expected
    shards = make(data, tmp_path, seen)
    assert seen == [3]
    assert [path.parent.name for path in own_tars(shards)] == ["r0004", "r0008"]
    assert {path: path.stat().st_mtime_ns for path in own_tars(old)} == before
    urls = [entry["url"] for entry in read_manifest(shards.uri)["shardlist"]]
    assert sum(url.startswith(f"../{storage.name(old.uri)}/") for url in urls) == 4
    assert len(urls) == 5
    assert_as_made_anew(shards, data, tmp_path / "fresh")
    assert read_shards(old.uri) == old
    assert (len(paths(old)), len(paths(shards))) == (40, 43)
    assert verify(old.uri).problems == ()


def test_deleted_changed_and_touched(folder, tmp_path, draw_images):
    """A deleted image has no row any more, a changed one has a new row, and one with only another time is read and
    stays.
    """
    data = config(folder)
    old = make(data, tmp_path)
    (folder / "cat" / "1.png").unlink()
    draw_images(folder, ["cat/2.png"], size=(50, 50))
    os.utime(folder / "dog" / "3.png", (5, 5))
    assert change(data, tmp_path) == Change(new=0, changed=2, deleted=1, kept=37, parent=storage.name(old.uri))
    shards = make(data, tmp_path)
    assert shards.num_images == 39
    table = read_samples(shards.uri, read_manifest(shards.uri)).to_pylist()
    urls = [entry["url"] for entry in read_manifest(shards.uri)["shardlist"]]
    assert [row["path"] for row in table if not urls[row["tar"]].startswith("../")] == ["cat/2.png"]
    assert_as_made_anew(shards, data, tmp_path / "fresh")
    assert change(data, tmp_path) == Change(new=0, changed=0, deleted=0, kept=39, parent=storage.name(shards.uri))


def test_grandchildren_and_the_way_back(folder, tmp_path, draw_images):
    """Repeated changes list the tars of every ancestor; an older listing finds its own set again."""
    data, sets = config(folder), []
    for number in range(3):
        sets.append(make(data, tmp_path))
        draw_images(folder / "cat", [f"more{number}.png"], size=(40 + number, 40))
    last = make(data, tmp_path)
    folders = Counter(
        entry["url"].split("/")[1] for entry in read_manifest(last.uri)["shardlist"] if entry["url"].startswith("../")
    )
    assert folders == {storage.name(shards.uri): count for shards, count in zip(sets, (4, 1, 1), strict=True)}
    assert_as_made_anew(last, data, tmp_path / "fresh")
    for number in range(3):
        (folder / "cat" / f"more{number}.png").unlink()
    assert find_shards(open_source(data), data, str(tmp_path)) == sets[0]
    Path(sets[0].uri, "manifest.json").unlink()
    again = make(data, tmp_path)  # the newest is `last`, whose tars lie in this very folder
    assert again.fingerprint == sets[0].fingerprint
    assert verify(again.uri).problems == verify(last.uri).problems == ()


def test_tars_without_a_living_sample_are_listed_no_more(folder, tmp_path):
    """All images of one tar are deleted."""
    data = config(folder)
    old = make(data, tmp_path)
    level = read_level(old, 8)
    table = read_samples(old.uri, read_manifest(old.uri), ["path"])["path"].to_pylist()
    for row in np.flatnonzero(level.tar == 1):
        (folder / table[row]).unlink()
    shards = make(data, tmp_path)
    assert len(read_manifest(shards.uri)["shardlist"]) == 3
    assert own_tars(shards) == []
    assert_as_made_anew(shards, data, tmp_path / "fresh")


def test_more_than_half_dead_is_made_anew(folder, tmp_path):
    """This holds over several changes: the samples in the tars that would be listed count."""
    data = config(folder)
    old = make(data, tmp_path)
    for number in (1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20, 22, 23, 25, 26, 28, 29):
        (folder / "cat" / f"{number}.png").unlink()
    assert change(data, tmp_path).parent == storage.name(old.uri)
    make(data, tmp_path)
    (folder / "cat" / "31.png").unlink()
    assert change(data, tmp_path) == Change(new=19, changed=0, deleted=0, kept=0, parent=None)
    assert all(not entry["url"].startswith("../") for entry in read_manifest(make(data, tmp_path).uri)["shardlist"])


def test_changed_labels_are_changed_images(folder, tmp_path):
    """An image in another class needs a new tar, though its bytes are the same."""
    storage.write_json(
        str(folder / "dataset.json"),
        {"labels": [[f"{path.parent.name}/{path.name}", 0] for path in folder.rglob("*.png")]},
    )
    data = config(folder)
    old = make(data, tmp_path)
    labels = json.loads((folder / "dataset.json").read_bytes())["labels"]
    storage.write_json(
        str(folder / "dataset.json"), {"labels": [[path, int(path == "cat/2.png")] for path, _ in labels]}
    )
    assert change(data, tmp_path) == Change(new=0, changed=1, deleted=0, kept=39, parent=storage.name(old.uri))
    shards = make(data, tmp_path)
    assert read_manifest(shards.uri)["label_counts"] == {"0": 39, "1": 1}
    assert_as_made_anew(shards, data, tmp_path / "fresh")


def test_changed_attributes_are_changed_images(folder, tmp_path):
    """One vector of forty is changed; without a change nothing is done."""
    names = [f"{path.parent.name}/{path.name}" for path in folder.rglob("*.png")]
    storage.write_json(str(folder / "dataset.json"), {"labels": [[name, [1, 0]] for name in names]})
    data = config(folder)
    make(data, tmp_path)
    assert change(data, tmp_path).kept == 40
    storage.write_json(
        str(folder / "dataset.json"), {"labels": [[name, [1, int(name == "cat/2.png")]] for name in names]}
    )
    assert change(data, tmp_path).changed == 1
    assert_as_made_anew(make(data, tmp_path), data, tmp_path / "fresh")


def test_rejects_stay_rejects(folder, tmp_path, draw_images):
    """Rejects are not read again until they change; a repaired one is new content."""
    (folder / "cat" / "1.png").write_bytes(b"no image")
    data = config(folder, max_rejected=1)
    old = make(data, tmp_path)
    draw_images(folder / "cat", ["a.png"], size=(30, 31))
    assert change(data, tmp_path) == Change(new=1, changed=0, deleted=0, kept=40, parent=storage.name(old.uri))
    shards = make(data, tmp_path)
    assert (shards.num_images, shards.num_rejected) == (40, 1)
    assert_as_made_anew(shards, data, tmp_path / "fresh")
    with pytest.raises(StepError, match="1 of 41 images cannot be used"):
        make(config(folder), tmp_path)
    draw_images(folder / "cat", ["1.png"], size=(30, 33))
    assert change(data, tmp_path).changed == 1
    assert_as_made_anew(make(data, tmp_path), data, tmp_path / "fresh")


def test_duplicates_of_the_whole_set(folder, tmp_path):
    """A copy of an old image is rejected, or replaces it if it comes first; when the original is deleted, the copy
    counts.
    """
    data = config(folder)
    make(data, tmp_path)
    for number in range(8):
        shutil.copy(folder / "dog" / "0.png", folder / "dog" / f"copy{number}.png")
    shards = make(data, tmp_path)
    assert (shards.num_images, shards.num_rejected) == (40, 8)
    assert_as_made_anew(shards, data, tmp_path / "fresh")
    (kept,) = (path for path in paths(shards) if path == "dog/0.png" or path.startswith("dog/copy"))
    (folder / kept).unlink()
    assert change(data, tmp_path).changed == 8
    shards = make(data, tmp_path)
    assert (shards.num_images, shards.num_rejected) == (40, 7)
    assert_as_made_anew(shards, data, tmp_path / "fresh")


@pytest.mark.parametrize("lost", ["tar", "table", "manifest", "rejects"])
def test_parent_that_is_not_whole_is_not_used(folder, tmp_path, draw_images, lost):
    """Everything is then made anew."""
    data = config(folder)
    old = make(data, tmp_path)
    names = {
        "tar": "r0004/train-000002.tar",
        "table": "samples.parquet",
        "manifest": "manifest.json",
        "rejects": "rejected.jsonl",
    }
    Path(old.uri, names[lost]).unlink()
    draw_images(folder / "cat", ["a.png"], size=(30, 31))
    assert change(data, tmp_path) == Change(new=41, changed=0, deleted=0, kept=0, parent=None)
    assert_as_made_anew(make(data, tmp_path), data, tmp_path / "fresh")


def test_other_settings_or_sources_are_no_parents(folder, tmp_path, draw_images):
    """Resized images are no parent of a source whose images may not be resized, and nothing is if `incremental` is off."""
    data = config(folder)
    make(data, tmp_path)
    draw_images(folder / "cat", ["a.png"], size=(30, 31))
    copied = shutil.copytree(folder, tmp_path / "copied")
    for other in (
        config(folder, resize_filter="box"),
        config(copied),
        config(folder, labels="none"),
        config(folder, incremental=False),
    ):
        assert change(other, tmp_path).parent is None
    assert plan_change(unaltered(open_source(data), data), data, str(tmp_path)).parent is None
    with pytest.raises(StepError, match="expected 8x8"):
        write_shards(unaltered(open_source(data), data), data, str(tmp_path))


def test_interrupted_change_is_taken_up(folder, tmp_path, draw_images):
    """Files that an attempt with another parent, or without one, left in the folder do no harm."""
    data = config(folder)
    make(data, tmp_path)
    (newest,) = tmp_path.glob("datasets/newest-*.json")
    pointer = newest.read_bytes()
    draw_images(folder / "cat", ["a.png"], size=(30, 31))
    alone = make(config(folder, incremental=False), tmp_path)
    Path(alone.uri, "manifest.json").unlink()
    newest.write_bytes(pointer)
    before = {path: path.read_bytes() for path in own_tars(alone)}
    shards = make(data, tmp_path)
    assert shards.uri == alone.uri
    assert {path: path.read_bytes() for path in before} == before
    assert len(own_tars(shards)) == len(before) + 2
    assert_as_made_anew(shards, data, tmp_path / "fresh")


def test_incremental_on_s3(folder, tmp_path, draw_images, s3_server):
    """The same works with tars in a bucket."""
    data, root = config(folder), f"{s3_server()}/root"
    make(data, root)
    draw_images(folder / "cat", ["a.png"], size=(30, 31))
    assert plan_change(open_source(data), data, root).new == 1
    shards = write_shards(open_source(data), data, root)
    assert verify(shards.uri).problems == ()
    assert shards.fingerprint == make(data, tmp_path).fingerprint


def test_sets_name_their_reader(folder, tmp_path, draw_images):
    """The reader is part of a key. Plain folders, folders below one that is left out, and unaltered images have three
    readers.
    """
    nested = draw_images(tmp_path / "above" / "inner", ["cat/1.png", "dog/2.png"]).parent
    assert [open_source(config(path)).reader for path in (folder, nested)] == ["folder", "base"]
    assert unaltered(open_source(config(folder)), config(folder)).reader == "unaltered"


def newest(root: Path) -> Path:
    (pointer,) = Path(root, "datasets").glob("newest-*.json")
    return pointer


def test_a_pointer_to_a_name_that_no_folder_can_have_is_written_anew(folder, tmp_path):
    data = config(folder)
    old = make(data, tmp_path)
    for pointer in Path(tmp_path, "datasets").glob("*.json"):
        whole = pointer.read_bytes()
        pointer.write_text(json.dumps({"key": "x" * 300}))
        assert make(data, tmp_path) == old
        assert pointer.read_bytes() == whole


def test_a_set_that_lacks_what_leads_to_it_gets_it_at_the_next_call(folder, tmp_path, draw_images):
    """A process may be killed after the manifest. What it had still to write is written by the next call, which makes no
    image again, so that a later change builds on that set.
    """
    data = config(folder)
    old = make(data, tmp_path)
    names = {path.name: path.read_bytes() for path in Path(tmp_path, "datasets").glob("*.json")}
    assert len(names) == 2
    for name in names:
        Path(tmp_path, "datasets", name).unlink()
    seen: list[int] = []
    assert make(data, tmp_path, seen) == old
    assert {path.name: path.read_bytes() for path in Path(tmp_path, "datasets").glob("*.json")} == names

    # Killed when there was an older set already.
    draw_images(folder / "cat", ["a.png"], size=(30, 31))
    grown = make(data, tmp_path)
    newest(tmp_path).write_bytes(names[newest(tmp_path).name])
    assert make(data, tmp_path, seen) == grown
    assert seen == []
    draw_images(folder / "cat", ["b.png"], size=(31, 32))
    assert change(data, tmp_path) == Change(new=1, changed=0, deleted=0, kept=41, parent=storage.name(grown.uri))


@pytest.mark.parametrize("harm", [lambda path: path.write_bytes(b"{}"), Path.unlink], ids=["damaged", "missing"])
@pytest.mark.parametrize("name", ["card.json", "preview.png"])
def test_a_card_that_is_damaged_or_gone_is_made_anew(folder, tmp_path, caplog, name, harm):
    data = config(folder)
    shards = make(data, tmp_path)
    path = Path(shards.uri, name)
    content = path.read_bytes()
    harm(path)
    assert make(data, tmp_path) == shards
    assert path.read_bytes() == content
    assert f"{shards.uri}/card.json: was missing or damaged; written anew" in caplog.text


@pytest.mark.parametrize("content", [b"", b"[]", b'{"key": 3}', b'{"key": "../x"}'])
def test_a_damaged_file_that_leads_to_the_newest_set_is_told_before_all_is_sharded_anew(
    folder, tmp_path, draw_images, content
):
    data = config(folder)
    make(data, tmp_path)
    whole = newest(tmp_path).read_bytes()
    newest(tmp_path).write_bytes(content)
    draw_images(folder / "cat", ["a.png"], size=(30, 31))
    for step in (change, make):
        with pytest.raises(
            StepError, match=rf"^{newest(tmp_path)}: is damaged \([^\n]+\); shard the images as they were then"
        ):
            step(data, tmp_path)
    (folder / "cat" / "a.png").unlink()
    make(data, tmp_path)
    assert newest(tmp_path).read_bytes() == whole


@pytest.mark.parametrize("name", ["samples.parquet", "rejected.jsonl", "manifest.json", "r0004/train-000001.tar"])
def test_why_everything_is_made_anew_is_told(folder, tmp_path, draw_images, caplog, name):
    """A set that cannot be built on is named in a warning, unless it was deleted as a whole."""
    data = config(folder)
    shards = make(data, tmp_path)
    path = Path(shards.uri, name)
    path.unlink() if name.endswith(".tar") else path.write_bytes(b"none\n")
    draw_images(folder / "cat", ["a.png"], size=(30, 31))
    caplog.clear()
    assert change(data, tmp_path).parent is None
    assert (shards.uri if name.endswith(".tar") else str(path)) in caplog.text
    assert "sharded anew" in caplog.text


# --- images that could not be read -------------------------------------------------------------------------------------


@pytest.fixture
def away(monkeypatch) -> dict[str, OSError]:
    """Return a dictionary from the end of a path to the error that reading it raises; it also notes what was read."""
    broken: dict[str, OSError] = {}
    open_regular = storage.open_regular

    def refuse(path: str):
        if Path(path).parent.name in ("cat", "dog"):
            reads.append(Path(path).name)
        error = next((error for end, error in broken.items() if path.endswith(end)), None)
        if error is not None:
            raise error
        return open_regular(path)

    reads.clear()
    monkeypatch.setattr(storage, "open_regular", refuse)
    return broken


reads: list[str] = []
PASSING = [
    PermissionError(errno.EACCES, "Permission denied"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    OSError(errno.EIO, "Input/output error"),
    TimeoutError("timed out"),
    ConnectionResetError("reset by peer"),
    OSError(errno.ESTALE, "Stale file handle"),
]


@pytest.mark.parametrize("error", PASSING)
@pytest.mark.parametrize("incremental", [True, False])
def test_read_that_failed_is_tried_again(folder, tmp_path, away, error, incremental):
    """The same command after the repair reads that image, and it alone, and gives what it would have given at once."""
    data = config(folder, incremental=incremental)
    away["cat/2.png"] = error
    with pytest.raises(UnavailableError, match=r"1 of 40 images cannot be used \(1 unread\).*tried again by the same"):
        make(data, tmp_path)
    assert find_shards(open_source(data), data, str(tmp_path)) is None
    with pytest.raises(UnavailableError, match="1 unread"):
        make(data, tmp_path)
    away.clear()
    reads.clear()
    shards = make(data, tmp_path)
    assert set(reads) == {"2.png"}
    assert (shards.num_images, shards.num_rejected) == (40, 0)
    assert find_shards(open_source(data), data, str(tmp_path), final=True) == shards
    assert_as_made_anew(shards, data, tmp_path / "fresh")


def test_open_set_is_used_and_completed_later(folder, tmp_path, away):
    """If `max_rejected` allows it, the set goes without unread images. They are tried again; each result has its own key."""
    data = config(folder, max_rejected=2)
    away |= {"cat/2.png": PASSING[0], "dog/3.png": PASSING[1]}
    first = make(data, tmp_path)
    before = {path: path.read_bytes() for path in Path(first.uri).parent.rglob("*.tar")}
    assert (first.num_images, first.num_rejected, count_unread(first)) == (38, 2, 2)
    assert find_shards(open_source(data), data, str(tmp_path)) == first
    assert find_shards(open_source(data), data, str(tmp_path), final=True) is None
    assert change(data, tmp_path).kept == 38
    reads.clear()
    assert make(data, tmp_path) == first
    assert set(reads) == {"2.png", "3.png"}

    # One of them comes back, then the other.
    del away["cat/2.png"]
    second = make(data, tmp_path)
    assert (second.num_images, count_unread(second)) == (39, 1)
    away.clear()
    last = make(data, tmp_path)
    assert find_shards(open_source(data), data, str(tmp_path), final=True) == last
    assert len({first.uri, second.uri, last.uri}) == 3
    assert {path: path.read_bytes() for path in before} == before
    assert_as_made_anew(last, data, tmp_path / "fresh")
    assert [verify(shards.uri).problems for shards in (first, second, last)] == [(), (), ()]


def test_changed_source_reads_again_what_was_unread(folder, tmp_path, away, draw_images):
    """A new listing builds on an open set, without its failures."""
    data = config(folder, max_rejected=1)
    away["cat/2.png"] = PASSING[0]
    make(data, tmp_path)
    away.clear()
    draw_images(folder / "cat", ["new.png"], size=(30, 31))
    reads.clear()
    shards = make(data, tmp_path)
    assert set(reads) == {"new.png", "2.png"}
    assert (shards.num_images, shards.num_rejected) == (41, 0)
    assert_as_made_anew(shards, data, tmp_path / "fresh")


def test_source_that_is_away_leaves_nothing_behind(folder, tmp_path, away):
    """If no image can be read, there is no set at all; the same command works once they can."""
    data = config(folder, max_rejected=40)
    away[".png"] = PASSING[2]
    with pytest.raises(UnavailableError, match=r"40 of 40 images cannot be used \(40 unread\)"):
        make(data, tmp_path)
    assert not list(tmp_path.rglob("manifest.json"))
    away.clear()
    shards = make(data, tmp_path)
    assert shards.num_images == 40
    assert_as_made_anew(shards, data, tmp_path / "fresh")


def test_chunk_of_a_killed_attempt_is_done_again_if_its_images_can_be_read(folder, tmp_path, away):
    """The marker of a finished chunk does not keep a failure that is over; without a repair the chunk stays."""
    data = config(folder, max_rejected=1)
    away["cat/2.png"] = PASSING[0]
    (source, key) = open_source(data), shard_key(data, open_source(data))
    first = make(data, tmp_path)
    tars = {path: path.stat().st_mtime_ns for path in (tmp_path / "datasets" / key).rglob("*.tar")}
    shutil.rmtree(first.uri)
    (tmp_path / "datasets" / key / "open.json").unlink()
    for pointer in (tmp_path / "datasets").glob("newest-*"):
        pointer.unlink()
    reads.clear()
    assert make(data, tmp_path) == first
    assert set(reads) == {"2.png"}
    assert {path: path.stat().st_mtime_ns for path in tars} == tars

    shutil.rmtree(first.uri)
    away.clear()
    shards = make(data, tmp_path)
    assert find_shards(source, data, str(tmp_path), final=True) == shards
    assert_as_made_anew(shards, data, tmp_path / "fresh")


def test_what_the_bytes_prove_is_final(folder, tmp_path, away):
    """A damaged picture is not read again, unless it changes."""
    (folder / "cat/2.png").write_bytes(b"no picture")
    data = config(folder)
    for _ in range(2):
        with pytest.raises(StepError, match=r"\(1 unreadable\)") as caught:
            make(data, tmp_path)
        assert not isinstance(caught.value, UnavailableError)
    reads.clear()
    shards = make(data.model_copy(update={"max_rejected": 1}), tmp_path)
    assert reads == []
    assert find_shards(open_source(data), config(folder, max_rejected=1), str(tmp_path), final=True) == shards
