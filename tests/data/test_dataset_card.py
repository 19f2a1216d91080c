"""The card of a data set: its numbers, mean and sheet; the same set gives the same bytes; it can be read from storage
again.
"""

import base64
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from stylegan import storage
from stylegan.data import dataset_card, payload
from stylegan.data.dataset_card import read_card, read_rejected, write_card
from stylegan.errors import StepError

SIDE = 16


def make_set(
    folder: Path,
    num: int = 12,
    *,
    channels: int = 3,
    resolution: int = SIDE,
    tars: int = 2,
    labels=None,
    attributes=None,
):
    """Make tars, table and manifest of random images. One byte precedes each payload, so that offsets matter."""
    shape = (resolution, resolution, 3) if channels == 3 else (resolution, resolution)
    images = np.random.default_rng(0).integers(0, 256, (num, *shape), dtype=np.uint8)
    places, entries = [], []
    per_tar = -(-num // tars)
    for tar in range(tars):
        content = b""
        for image in images[tar * per_tar : (tar + 1) * per_tar]:
            data = payload.encode(image, resolution)
            places.append((tar, len(content) + 1, len(data)))
            content += b"x" + data
        url = f"r{resolution:04d}/train-{tar:06d}.tar"
        storage.write_bytes(storage.join(str(folder), url), content)
        entries.append({"url": url, "filesize": len(content)})
    tar_of, offset, size = zip(*places, strict=True)
    columns = {
        "width": pa.array([10 + i for i in range(num)], pa.int32()),
        "height": pa.array([20] * num, pa.int32()),
        "label": pa.array([-1] * num if labels is None else labels, pa.int32()),
        "tar": pa.array(tar_of, pa.int32()),
        f"offset_{resolution:04d}": pa.array(offset, pa.int64()),
        f"size_{resolution:04d}": pa.array(size, pa.int32()),
    }
    if attributes is not None:
        columns["attributes"] = pa.array(attributes, pa.list_(pa.uint8()))
    manifest = {
        "fingerprint": "f" * 16,
        "num_images": num,
        "label_names": [] if labels is None else [f"class {k}" for k in range(max(labels) + 1)],
        "attribute_names": [] if attributes is None else [f"attribute {k}" for k in range(len(attributes[0]))],
        "parameters": {"resolution": resolution, "channels": channels, "crop": "center", "resize_filter": "box"},
        "datasets": [{"resolution": resolution, "suffix": payload.suffix(resolution), "shardlist": entries}],
    }
    return images, manifest, pa.table(columns)


def written(folder: Path, manifest, table, rejected=()):
    return write_card(str(folder), manifest, table, rejected, source="/images")


def read_png(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)))


def test_numbers_of_a_set(tmp_path):
    """Counts, sizes, bytes and the number of enlarged images agree with the table; the card can be read again."""
    _, manifest, table = make_set(tmp_path, labels=[0, 0, 2] * 4)
    made = written(tmp_path, manifest, table)
    assert made.counts == {"class 0": 8, "class 1": 0, "class 2": 4}
    assert made.counted == "classes"
    assert (made.widths.min, made.widths.median, made.widths.max) == (10, 15.5, 21)
    assert (made.heights.min, made.heights.max) == (20, 20)
    assert made.num_upscaled == 6  # widths from 10 to 15
    assert made.num_bytes == sum(path.stat().st_size for path in tmp_path.glob("r0016/*"))
    assert (made.num_images, made.resolution, made.channels, made.crop, made.source) == (12, 16, 3, "center", "/images")
    assert read_card(str(tmp_path)) == made
    assert json.loads((tmp_path / "card.json").read_text())["fingerprint"] == "f" * 16


@pytest.mark.parametrize(
    ("crop", "resolution", "enlarged"), [("center", 16, 6), ("wide", 16, 0), ("celeba", 128, 0), ("celeba", 256, 12)]
)
def test_what_was_enlarged_depends_on_the_crop(tmp_path, crop, resolution, enlarged):
    """`center` uses the shorter side; `wide` never enlarges; the faces of CelebA have 128 pixels."""
    _, manifest, table = make_set(tmp_path)
    manifest["parameters"] |= {"crop": crop, "resolution": resolution}
    assert written(tmp_path, manifest, table).num_upscaled == enlarged


def test_attributes_are_counted_one_by_one(tmp_path):
    """An image counts for each attribute that it has."""
    _, manifest, table = make_set(tmp_path, 4, attributes=[[1, 1], [0, 1], [0, 0], [0, 1]])
    made = written(tmp_path, manifest, table)
    assert (made.counted, made.counts) == ("attributes", {"attribute 0": 1, "attribute 1": 3})


def test_no_labels(tmp_path):
    """A set without labels has no counts."""
    _, manifest, table = make_set(tmp_path)
    made = written(tmp_path, manifest, table)
    assert (made.counted, made.counts) == (None, {})


def test_rejects_by_kind(tmp_path):
    """Kinds are sorted by frequency, with a few paths of each; duplicates have a count of their own."""
    _, manifest, table = make_set(tmp_path)
    order = [*range(500, 1000), *range(500), *range(1000, 2500)]
    rejected = [{"path": f"{i:05d}.png", "kind": "duplicate"} for i in order] + [{"path": "a", "kind": "truncated"}]
    made = written(tmp_path, manifest, table, iter(rejected))
    assert list(made.rejected.items()) == [("duplicate", 2500), ("truncated", 1)]
    assert made.examples == {"duplicate": tuple(f"{i:05d}.png" for i in range(5)), "truncated": ("a",)}
    assert made.num_duplicates == 2500


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_of_the_images(tmp_path, channels):
    """The mean is that of all images of a small set, over both tars, rounded; mean.png and the card contain the same
    one.
    """
    images, manifest, table = make_set(tmp_path, channels=channels)
    made = written(tmp_path, manifest, table)
    mean = read_png((tmp_path / "mean.png").read_bytes())
    assert mean.shape == images.shape[1:]
    assert (mean == np.floor(images.mean(0) + 0.5)).all()
    assert base64.b64decode(made.mean_png) == (tmp_path / "mean.png").read_bytes()
    assert made.mean_of == 12


def test_mean_of_a_large_set_is_that_of_its_first_images(tmp_path, monkeypatch):
    """The table is in the order of hashes, so its first images are a fair sample."""
    monkeypatch.setattr(dataset_card, "MEAN_OF", 5)
    images, manifest, table = make_set(tmp_path)
    assert written(tmp_path, manifest, table).mean_of == 5
    assert (read_png((tmp_path / "mean.png").read_bytes()) == np.floor(images[:5].mean(0) + 0.5)).all()


@pytest.mark.parametrize(("gap", "span", "reads"), [(0, 2**25, 12), (2**18, 2**25, 2), (2**18, 3000, 4)])
def test_places_are_read_alone_or_together(tmp_path, monkeypatch, gap, span, reads):
    """Distant payloads are read one by one, near ones together up to a limit; the pixels are the same."""
    monkeypatch.setattr(dataset_card, "GAP", gap)
    monkeypatch.setattr(dataset_card, "SPAN", span)
    asked = []
    monkeypatch.setattr(
        storage, "read_range", lambda *place, read=storage.read_range: asked.append(place) or read(*place)
    )
    images, manifest, table = make_set(tmp_path)
    written(tmp_path, manifest, table)
    assert len(asked) == 2 * reads  # for the mean and for the sheet
    assert (read_png((tmp_path / "mean.png").read_bytes()) == np.floor(images.mean(0) + 0.5)).all()


def test_sheet_has_a_column_for_each_class(tmp_path):
    """A column shows the enlarged first images of a class below its name; a class without images has no column."""
    images, manifest, table = make_set(tmp_path, labels=[0, 2, 2, 0] * 3)
    written(tmp_path, manifest, table)
    sheet = read_png((tmp_path / "preview.png").read_bytes())
    assert sheet.shape[1:] == (3 + 2 * 67, 3)
    top = sheet.shape[0] - 6 * 67
    assert (sheet[top : top + 64, 3:67] == images[0].repeat(4, 0).repeat(4, 1)).all()
    assert (sheet[top + 67 : top + 131, 70:134] == images[2].repeat(4, 0).repeat(4, 1)).all()
    assert (sheet[:top, 3:67] < 128).any()  # a name
    assert (sheet[:top, 67:70] == 230).all()


def test_long_names_and_many_classes(tmp_path):
    """A name is cut to the width of its column; of many classes ten are shown, from the first to the last."""
    _, manifest, table = make_set(tmp_path, 40, labels=list(range(40)))
    manifest["label_names"] = [f"a class with a very long name {k}" for k in range(40)]
    written(tmp_path, manifest, table)
    sheet = read_png((tmp_path / "preview.png").read_bytes())
    assert sheet.shape[1] == 3 + 10 * 67
    top = sheet.shape[0] - 67
    assert all((sheet[:top, 67 * x : 67 * x + 2] == 230).all() for x in range(11))


def test_sheet_without_classes(tmp_path):
    """The sheet shows as many images as there are."""
    images, manifest, table = make_set(tmp_path, channels=1)
    written(tmp_path, manifest, table)
    sheet = read_png((tmp_path / "preview.png").read_bytes())
    assert sheet.shape == (3 + 2 * 67, 3 + 10 * 67)
    assert (sheet[70:134, 3:67] == images[10].repeat(4, 0).repeat(4, 1)).all()
    assert (sheet[70:, 2 * 67 + 3 :] == 230).all()


def test_large_images_are_shown_from_a_smaller_level(tmp_path):
    """At 256x256 the sheet is made from 128x128, whose payloads are PNG, and the mean from 64x64."""
    _, manifest, table = make_set(tmp_path, 3, resolution=128)
    _, small, places = make_set(tmp_path, 3, resolution=64)
    for name in ("offset_0064", "size_0064"):
        table = table.append_column(name, places[name])
    manifest["datasets"] += [*small["datasets"], {"resolution": 256, "suffix": "png", "shardlist": []}]
    written(tmp_path, manifest, table)
    assert read_png((tmp_path / "preview.png").read_bytes()).shape == (6 + 134, 6 + 3 * 134, 3)
    assert read_png((tmp_path / "mean.png").read_bytes()).shape == (64, 64, 3)


def test_same_set_same_bytes(tmp_path):
    """Neither the path of the folder nor the time changes a byte."""
    results = []
    for name in ("a", "b"):
        _, manifest, table = make_set(tmp_path / name, labels=[0, 1] * 6)
        written(tmp_path / name, manifest, table, [{"path": "x", "kind": "too small"}])
        results.append([(tmp_path / name / file).read_bytes() for file in ("card.json", "preview.png", "mean.png")])
    assert results[0] == results[1]


def test_tars_of_an_older_set(tmp_path):
    """The manifest of an incremental set names tars in the folder beside it."""
    _, manifest, table = make_set(tmp_path / "old")
    for entry in manifest["datasets"][0]["shardlist"]:
        entry["url"] = f"../old/{entry['url']}"
    written(tmp_path / "new", manifest, table)
    assert (tmp_path / "new" / "preview.png").exists()


def test_damaged_tar_is_told(tmp_path):
    """A damaged payload is reported with its tar and offset."""
    _, manifest, table = make_set(tmp_path)
    tar = tmp_path / "r0016" / "train-000001.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(StepError, match=r"train-000001.tar: the image at byte 1 is not"):
        written(tmp_path, manifest, table)


def test_no_card(tmp_path):
    """A set without a readable card is still a set."""
    assert read_card(str(tmp_path)) is None
    (tmp_path / "card.json").write_text("{}")
    assert read_card(str(tmp_path)) is None


def test_rejects_are_read_in_part_or_whole(tmp_path):
    """A missing list raises FileNotFoundError, a damaged one is reported in one line."""
    with pytest.raises(FileNotFoundError):
        read_rejected(str(tmp_path))
    facts = {"kind": "truncated", "reason": "it ends early", "bytes": 3, "token": "t", "sha256": None}
    rows = [{"path": f"{number}.png"} | facts for number in range(5)]
    (tmp_path / "rejected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_rejected(str(tmp_path)) == rows
    assert read_rejected(str(tmp_path), 2) == rows[:2]
    (tmp_path / "rejected.jsonl").write_text("{\n")
    with pytest.raises(
        StepError,
        match=r"rejected\.jsonl, line 1: is damaged \([^\n]+\); delete \S*manifest\.json and shard its images again",
    ):
        read_rejected(str(tmp_path))


def test_on_a_bucket(s3_server):
    """The three files are written to an object store as well."""
    root = s3_server()
    _, manifest, table = make_set(root, labels=[0, 1] * 6)
    made = write_card(root, manifest, table, [], source="x")
    assert read_card(root) == made
    assert storage.names(root) == ["card.json", "mean.png", "preview.png", "r0016"]
