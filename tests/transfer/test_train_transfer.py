"""A style transfer in one process: it learns, resumes to the last bit, and ends in one line when something is wrong."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from public_weights import file_bytes, vgg16_state

from stylegan import storage
from stylegan.errors import DamagedError, DivergedError, StepError
from stylegan.images import open_picture
from stylegan.training.curves import read_rows
from stylegan.training.state import checkpoints, load_model, newest_checkpoint
from stylegan.training.stop import StageStopped
from stylegan.transfer.loop import train_transfer
from stylegan.transfer.measure import evaluate_transfer
from stylegan.transfer.pairs import Pairs
from stylegan.transfer.state import read_transfer


def losses(uri):
    """Return the losses of all points of the curves, by image count."""
    return [
        (row["nimg"], {name: value for name, value in row["metrics"].items() if name.startswith("loss/")})
        for row in read_rows(f"{uri}/stats.jsonl")
    ]


def outcome(uri):
    """Read all that a training left, in comparable form: weights, moments, curves, sheets."""
    newest = newest_checkpoint(uri)
    training = torch.load(Path(newest.uri, "training.pt"), weights_only=True)
    moments = [value for state in training["optimizer"]["state"].values() for value in state.values()]
    sheets = {name: Path(uri, "samples", name).read_bytes() for name in storage.names(f"{uri}/samples")}
    return Path(newest.uri, "transfer.safetensors").read_bytes(), moments, losses(uri), sheets, newest.nimg


def assert_same(one, other):
    assert one[0] == other[0]
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))
    assert one[2:] == other[2:]


def test_it_leaves_what_a_stage_leaves(make_job):
    job = make_job()
    record = train_transfer(job)
    assert (record.nimg, record.resolution, record.digest) == (48, 16, job.key)
    assert checkpoints(job.uri) == [record.uri]
    assert [nimg for nimg, _ in losses(job.uri)] == [12, 24, 36, 48]
    rates = [row["metrics"]["progress/lr"] for row in read_rows(f"{job.uri}/stats.jsonl")]
    assert rates == pytest.approx([0.003 / (1 + 5e-5 * step) for step in (3, 6, 9, 12)])
    assert set(storage.names(job.uri)) == {Path(record.uri).name, "stats.jsonl", "samples", "done.json"}
    assert storage.names(f"{job.uri}/samples") == ["000000.png"]
    sheet = open_picture(Path(job.uri, "samples", "000000.png").read_bytes(), "", cure="")
    assert sheet.width == sheet.height > 3 * 64  # two contents in two styles, and these
    assert train_transfer(job) == record  # a finished one returns at once


def test_every_step_has_its_own_images_and_learning_rate(make_job, monkeypatch):
    shown, batch = [], Pairs.batch

    def noted(self, start, count, **options):
        shown.append(start)
        return batch(self, start, count, **options)

    monkeypatch.setattr(Pairs, "batch", noted)
    record = train_transfer(make_job(transfer={"kimg": 0.048, "decay": 0.5}))
    assert shown == list(range(0, 48, 4))
    (group,) = torch.load(Path(record.uri, "training.pt"), weights_only=True)["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(0.003 / (1 + 0.5 * 11))


def test_training_reduces_both_losses(make_job):
    job = make_job(transfer={"kimg": 0.6, "batch": 8})
    train_transfer(job)
    (_, first), *_, (_, last) = losses(job.uri)
    assert last["loss/content"] < 0.8 * first["loss/content"]
    assert last["loss/style"] < 0.5 * first["loss/style"]


def test_stopped_anywhere_it_ends_bit_identical(make_job):
    """After a stop between checkpoints and points, and after the loss of the newest checkpoint."""
    whole, parts = make_job("whole"), make_job("parts")
    train_transfer(whole)
    for steps in (2, 5):
        left = iter([False] * steps)
        with pytest.raises(StageStopped):
            train_transfer(parts, stop=lambda left=left: next(left, True))
    assert newest_checkpoint(parts.uri).nimg == 28
    shutil.rmtree(newest_checkpoint(parts.uri).uri)
    assert newest_checkpoint(parts.uri).nimg == 16
    train_transfer(parts)
    assert_same(outcome(whole.uri), outcome(parts.uri))


def test_killed_before_any_change_of_storage_it_ends_bit_identical(make_job, tmp_path, monkeypatch):
    """Each copy of the folder is what a kill at that moment would leave, also between the files of a checkpoint."""
    whole, states = make_job("whole"), tmp_path / "states"
    states.mkdir()

    def before(change):
        def changed(*arguments):
            if Path(whole.uri).exists():
                shutil.copytree(whole.uri, states / f"{len(list(states.iterdir())):03d}")
            return change(*arguments)

        return changed

    with monkeypatch.context() as patch:
        for name in ("write_bytes", "delete"):
            patch.setattr(storage, name, before(getattr(storage, name)))
        train_transfer(whole)
    expected, found = outcome(whole.uri), sorted(states.iterdir())
    reached = {newest.nimg if (newest := newest_checkpoint(str(state))) else None for state in found}
    assert reached == {None, 16, 32, 48}
    for number, state in enumerate(found):
        torn = make_job(f"torn-{number}")
        state.rename(torn.uri)
        train_transfer(torn)
        assert_same(expected, outcome(torn.uri))


def test_the_encoder_is_vgg16_where_the_evaluation_has_it(make_job, tmp_path):
    weights = tmp_path / "vgg16.pth"
    data = file_bytes(vgg16_state())
    weights.write_bytes(data)
    uri = f"{weights}#sha256={hashlib.sha256(data).hexdigest()}"
    sections = {
        "transfer": {"depth": 3, "kimg": 0.008, "batch": 4},
        "evaluation": {"features": "inception", "weights": {"vgg16": uri}, "metrics": ["transfer"], "num_images": 2},
    }
    job = make_job(**sections)
    record = train_transfer(job)
    assert read_transfer(record.uri).shape.widths == (64, 128, 256, 512)  # up to relu4_1
    report = evaluate_transfer(record.uri, job.shards, job.config, root=str(tmp_path / "root"))
    assert set(report.metrics) == {"transfer_loss_vgg16", "content_loss_vgg16", "style_loss_vgg16"}


def test_a_checkpoint_of_another_config_is_refused(make_job):
    job = make_job()
    train_transfer(job)
    with pytest.raises(StepError, match="belongs to another config"):
        train_transfer(job.model_copy(update={"key": "other"}))


def test_damage_is_one_line(make_job):
    job = make_job()
    record = train_transfer(job)
    with Path(record.uri, "transfer.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DamagedError, match="are not a style transfer"):
        train_transfer(job)


def test_a_training_that_diverges_ends_in_one_line_without_a_broken_checkpoint(make_job):
    job = make_job(transfer={"learning_rate": 100.0, "style_weight": 1e6, "kimg": 0.2})
    with pytest.raises(DivergedError, match=r"is not finite .* lower transfer.learning_rate=100"):
        train_transfer(job)
    for uri in checkpoints(job.uri):
        read_transfer(uri)


def test_a_style_transfer_is_no_generator(make_job):
    record = train_transfer(make_job())
    with pytest.raises(StepError, match=r"is a style transfer, with which `.*stylegan transfer CONTENT STYLE --model"):
        load_model(record.uri)


def test_it_is_measured_on_held_out_pairs(make_job, tmp_path):
    short, long = make_job("short"), make_job("long", transfer={"kimg": 0.6, "batch": 8})
    reports = [
        evaluate_transfer(
            train_transfer(job).uri, job.shards, job.config, root=str(tmp_path / "root"), out_uri=str(tmp_path / name)
        )
        for name, job in (("a", short), ("b", long))
    ]
    before, after = reports
    assert before.protocol == after.protocol  # kimg and batch are no part of what is measured
    assert before.settings["num_images"] == 6
    for key in ("transfer_loss_rotation", "content_loss_rotation", "style_loss_rotation"):
        assert 0 < after.metrics[key] < before.metrics[key]
        assert after.protocols[key] == after.protocol
    values = after.metrics
    total = values["content_loss_rotation"] + 10 * values["style_loss_rotation"]
    assert values["transfer_loss_rotation"] == pytest.approx(total)
    assert Path(after.figures["transfers"]).stat().st_size > 0
    other = make_job("other", transfer={"style_weight": 5.0})
    again = evaluate_transfer(newest_checkpoint(long.uri).uri, long.shards, other.config, root=str(tmp_path / "root"))
    assert again.protocol != after.protocol
    assert again.metrics["style_loss_rotation"] == values["style_loss_rotation"]
