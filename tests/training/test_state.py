"""The training state and its checkpoints: saving and loading, which folders count, growing, and resets of Adam."""

import copy
from pathlib import Path

import fsspec
import pytest
import torch
from contents import assert_same, training_state

from stylegan import storage
from stylegan.errors import DamagedError, StepError
from stylegan.training.schedule import lazy_correction
from stylegan.training.state import (
    MARKER,
    Checkpoint,
    checkpoint_uri,
    checkpoints,
    load_model,
    newest_checkpoint,
    prune,
    read_checkpoint,
    resume_stage,
    save_checkpoint,
    start_stage,
)
from stylegan.training.step import discriminator_step, generator_step

LABELS = torch.tensor([0, 1, 1, 0])


def new_state(job):
    """Return the state at the start of a stage."""
    return start_stage(job.config, job.stage, num_labels=2, previous=job.previous)


def step(job, state):
    """Train both players on one batch."""
    size = job.stage.resolution
    random = torch.Generator().manual_seed(state.nimg)
    reals = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=random)
    discriminator_step(state, job.config, job.stage, reals, LABELS)
    generator_step(state, job.config, job.stage, LABELS)
    state.nimg += job.stage.batch
    state.steps += 1


def save(job, state):
    """Write a checkpoint of the state and return its record."""
    uri = checkpoint_uri(job.uri, state.nimg)
    record = Checkpoint(uri=uri, run_id="r", resolution=job.stage.resolution, nimg=state.nimg, digest="k")
    save_checkpoint(record, state.snapshot().get(), G_ema=copy.deepcopy(state.G_ema), label_names=("a", "b"))
    return record


def save_empty(job, *image_counts):
    """Write the folders of checkpoints that consist of a small file and a marker; return the stage's folder."""
    for nimg in image_counts:
        uri = checkpoint_uri(job.uri, nimg)
        record = Checkpoint(uri=uri, run_id="r", resolution=4, nimg=nimg, digest="k")
        storage.write_bytes(f"{uri}/training.pt", b"x")
        storage.write_json(f"{uri}/{MARKER}", record.model_dump())
    return Path(job.uri)


def test_a_loaded_checkpoint_is_the_saved_state_bit_for_bit(job):
    """Networks, both optimizers, counters, sums and measurements; and the next step after loading is the same step."""
    stage = job(4, "one")
    state = new_state(stage)
    step(stage, state)
    state.measured = {"probe/accuracy": 0.25}
    state.skipped["G"] += 3
    state.log2_scale["D"] -= 1.5
    saved = copy.deepcopy(state.state_dict())
    record = save(stage, state)

    loaded = resume_stage(stage.config, stage.stage, record, num_labels=2, key="k")
    assert saved["sums"]
    assert saved["opt_D"]["state"]
    assert_same(loaded.state_dict(), saved)
    step(stage, state)
    step(stage, loaded)
    assert_same(loaded.state_dict(), state.state_dict())


def test_the_generator_of_a_checkpoint_is_the_averaged_one_and_usable_alone(job):
    stage = job(4, "one")
    state = new_state(stage)
    step(stage, state)
    record = save(stage, state)
    Path(record.uri, "training.pt").unlink()
    generator, label_names = load_model(record.uri)
    assert label_names == ("a", "b")
    assert not generator.training
    assert_same(dict(generator.state_dict()), dict(state.G_ema.state_dict()))
    assert not torch.equal(generator.mapping.layers[0].weight, state.G.mapping.layers[0].weight)


def test_a_folder_without_a_generator_is_no_model(job):
    folder = save_empty(job(4, "one"), 4)
    with pytest.raises(
        StepError, match=r"^\S*checkpoint-000000004: holds no generator\.safetensors; give the URI [^\n]*$"
    ):
        load_model(f"{folder}/checkpoint-000000004")


def test_a_folder_without_its_marker_does_not_count(job):
    stage = job(4, "one")
    assert newest_checkpoint(stage.uri) is None
    folder = save_empty(stage, 4, 8)
    (folder / "checkpoint-000000008" / MARKER).unlink()
    assert checkpoints(stage.uri) == [checkpoint_uri(stage.uri, 4)]
    assert newest_checkpoint(stage.uri).nimg == 4
    with pytest.raises(StepError, match=r"checkpoint-000000008: not a checkpoint \(no readable checkpoint\.json\)"):
        read_checkpoint(checkpoint_uri(stage.uri, 8))


def test_the_marker_is_written_last(job, monkeypatch):
    stage, written, write = job(4, "one"), [], storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", lambda uri, data: (written.append(storage.name(uri)), write(uri, data)))
    save(stage, new_state(stage))
    assert written == ["training.pt", "generator.safetensors", MARKER]


def test_the_newest_checkpoint_is_that_of_most_images(job):
    """The order of writing does not matter, and neither do other files of the stage."""
    stage = job(4, "one")
    folder = save_empty(stage, 8, 100_000_000, 24)
    storage.write_bytes(f"{folder}/stats.jsonl", b"")
    assert checkpoints(stage.uri) == [checkpoint_uri(stage.uri, nimg) for nimg in (8, 24, 100_000_000)]
    newest = newest_checkpoint(stage.uri)
    assert (newest.uri, newest.nimg, newest.digest) == (checkpoint_uri(stage.uri, 100_000_000), 100_000_000, "k")


@pytest.mark.parametrize("server", ["s3_server", "gcs_server"])
def test_the_newest_checkpoint_of_another_process_is_seen(request, server):
    """Also by a process that has looked before: otherwise ranks would disagree about where to resume."""
    uri = request.getfixturevalue(server)() + "/stages/0004-x"
    other, path = fsspec.url_to_fs(uri, skip_instance_cache=True, use_listings_cache=False)
    assert newest_checkpoint(uri) is None
    for nimg in (4, 8):
        folder = checkpoint_uri(path, nimg)
        record = Checkpoint(uri=folder, run_id="r", resolution=4, nimg=nimg, digest="k")
        other.pipe_file(f"{folder}/training.pt", b"x")
        other.pipe_file(f"{folder}/{MARKER}", record.model_dump_json().encode())
        assert newest_checkpoint(uri).nimg == nimg
    other.rm_file(f"{folder}/{MARKER}")
    assert newest_checkpoint(uri).nimg == 4


def test_a_checkpoint_that_was_moved_has_its_new_uri(job, tmp_path):
    """The marker contains the old URI; a copied storage must not lead back to the original."""
    save_empty(job(4, "one"), 4).rename(tmp_path / "moved")
    assert newest_checkpoint(str(tmp_path / "moved")).uri == f"{tmp_path}/moved/checkpoint-000000004"


def test_prune_keeps_the_newest_complete_checkpoints(job):
    """Incomplete checkpoints are deleted, even the newest one; other files of the stage stay."""
    stage = job(4, "one")
    folder = save_empty(stage, 4, 8, 12, 16)
    (folder / "checkpoint-000000016" / MARKER).unlink()
    storage.write_bytes(f"{folder}/stats.jsonl", b"")
    prune(stage.uri, 2)
    assert storage.names(stage.uri) == ["checkpoint-000000008", "checkpoint-000000012", "stats.jsonl"]
    assert len(checkpoints(stage.uri)) == 2


def test_prune_deletes_the_marker_first(job, monkeypatch):
    """A kill in between leaves a folder that does not count."""
    stage, deleted, delete = job(4, "one"), [], storage.delete
    save_empty(stage, 4, 8)
    monkeypatch.setattr(storage, "delete", lambda uri: (deleted.append(storage.name(uri)), delete(uri)))
    prune(stage.uri, 1)
    assert deleted == [MARKER, "checkpoint-000000004"]


def test_a_checkpoint_that_storage_refuses_is_deleted(job, monkeypatch):
    """A full store then has room again for the repeated run."""
    stage, write = job(4, "one"), storage.write_bytes

    def refuse_the_marker(uri, data):
        if uri.endswith(MARKER):
            raise StepError("storage: full")
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", refuse_the_marker)
    with pytest.raises(StepError, match=r"^storage: full$"):
        save(stage, new_state(stage))
    assert storage.names(stage.uri) == []


@pytest.fixture
def record(job):
    """The checkpoint of a fresh 4x4 stage."""
    stage = job(4, "one")
    return save(stage, new_state(stage))


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGED = (
    r"^\S*checkpoint-000000000/training\.pt: is damaged \([^\n]*\); delete \S*checkpoint-000000000 and run the same command "
    r"again, which goes on from the checkpoint before it, or from the start of the stage if there is none$"
)
DAMAGE = {
    "missing": (
        Path.unlink,
        r"^checkpoint \S*checkpoint-000000000 is incomplete: training.pt is missing; delete that folder and run the same",
    ),
    "empty": (lambda path: path.write_bytes(b""), DAMAGED),
    "cut": (cut_in_half, DAMAGED),
    "a list": (lambda path: torch.save([], path), DAMAGED),
    "no networks": (lambda path: torch.save({"nimg": 0}, path), DAMAGED),
    "other networks": (lambda path: torch.save({"nimg": 0, "G": {"x": torch.zeros(2)}}, path), DAMAGED),
    "of another image count": (lambda path: torch.save({"nimg": 8}, path), DAMAGED),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_training_state_is_one_clear_line(job, record, damage):
    """The error names the folder and the cure, when the stage resumes and when the next stage starts from it."""
    harm, message = DAMAGE[damage]
    harm(Path(record.uri, "training.pt"))
    stage, above = job(4, "one"), job(8, "one", previous=record)
    with pytest.raises(StepError, match=message):
        resume_stage(stage.config, stage.stage, record, num_labels=2, key="k")
    with pytest.raises(StepError, match=message):
        new_state(above)


def one_bit(path):
    """Change one bit of the weights, which the pickle inside the file does not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def with_entry(change):
    """Return a damage that changes the content of a whole file."""

    def harm(path):
        saved = torch.load(path, weights_only=True)
        change(saved)
        torch.save(saved, path)

    return harm


FORGED = {
    "steps": lambda saved: saved.update(steps=-1),
    "measured": lambda saved: saved.update(measured=None),
    "a sum": lambda saved: saved["sums"].update({"loss/d": torch.zeros(3)}),
    "a counter": lambda saved: saved["skipped"].update(D=torch.zeros(3)),
    "a scale": lambda saved: saved["log2_scale"].update(G=None),
    "a weight": lambda saved: saved["D"]["head.dense0.bias"].fill_(float("nan")),
    "the average": lambda saved: saved["G_ema"]["w_avg"].fill_(float("inf")),
    "shape of a moment": lambda saved: saved["opt_G"]["state"][0].update(exp_avg=torch.zeros(1)),
    "no moment": lambda saved: saved["opt_D"]["state"][0].pop("exp_avg_sq"),
    "a negative square": lambda saved: saved["opt_D"]["state"][0]["exp_avg_sq"].fill_(-1.0),
    "a moment": lambda saved: saved["opt_D"]["state"][0]["exp_avg"].fill_(float("nan")),
    "a moment of no weight": lambda saved: saved["opt_D"]["state"].update({10_000: saved["opt_D"]["state"][0]}),
}


@pytest.mark.parametrize("damage", ["one bit", *FORGED])
def test_training_state_that_can_be_loaded_but_was_not_written_is_refused(job, damage):
    stage = job(4, "one")
    state = new_state(stage)
    step(stage, state)
    record = save(stage, state)
    resume_stage(stage.config, stage.stage, record, num_labels=2, key="k")
    (one_bit if damage == "one bit" else with_entry(FORGED[damage]))(Path(record.uri, "training.pt"))
    with pytest.raises(DamagedError, match=r"training\.pt: is damaged \([^\n]*\); delete \S* and run the same"):
        resume_stage(stage.config, stage.stage, record, num_labels=2, key="k")


def test_the_settings_of_adam_are_those_of_the_config(job):
    """A version of torch may add some; a checkpoint only holds the moments."""
    stage = job(4, "one")
    state = new_state(stage)
    step(stage, state)
    record = save(stage, state)
    with_entry(lambda saved: saved["opt_G"]["param_groups"][0].update(lr=9.0, eps=None))(
        Path(record.uri, "training.pt")
    )
    resumed = resume_stage(stage.config, stage.stage, record, num_labels=2, key="k")
    assert resumed.opt_G.param_groups[0]["lr"] == stage.stage.learning_rate
    assert_same(resumed.state_dict(), state.state_dict())


FAULTS = (
    MemoryError("no memory"),
    torch.OutOfMemoryError("CUDA out of memory"),
    getattr(torch, "AcceleratorError", torch.OutOfMemoryError)("CUDA error: an illegal memory access"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_fault_of_the_machine_damages_no_checkpoint(job, record, monkeypatch, fault):
    """Nobody should delete a whole checkpoint because a GPU has failed."""

    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", fail)
    stage = job(4, "one")
    with pytest.raises(type(fault), match=str(fault)):
        resume_stage(stage.config, stage.stage, record, num_labels=2, key="k")


def test_a_forged_training_state_runs_no_code(job, record, tmp_path):
    """A pickle that would call os.system is refused as damaged."""
    Path(record.uri, "training.pt").write_bytes(f"cos\nsystem\n(S'touch {tmp_path}/ran'\ntR.".encode())
    stage = job(4, "one")
    with pytest.raises(StepError, match=r"training\.pt: is damaged"):
        resume_stage(stage.config, stage.stage, record, num_labels=2, key="k")
    assert not Path(tmp_path, "ran").exists()


def test_checkpoint_of_another_config_is_refused(job, record):
    stage = job(4, "one")
    with pytest.raises(StepError, match=r"belongs to another config \(key k, this config gives other\)"):
        resume_stage(stage.config, stage.stage, record, num_labels=2, key="other")


@pytest.fixture
def below(job):
    """The last checkpoint of a 4x4 stage of 16 images, whose average of G differs from G."""
    stage = job(4, "one")
    state = new_state(stage)
    while state.nimg < stage.stage.end_nimg:
        step(stage, state)
    return save(stage, state)


def fresh_names(state, old):
    """Return the names of each network's tensors that the stage below does not have."""
    return {name: set(network.state_dict()) - set(old[name]) for name, network in state.networks().items()}


def test_a_stage_grows_from_the_checkpoint_of_the_stage_below(job, below):
    """Every old weight is kept bit for bit; the average copies the fresh weights of G; Adam starts anew."""
    state, old = new_state(job(8, "one", previous=below)), training_state(below.uri)
    assert state.nimg == 16
    assert {network.resolution for network in state.networks().values()} == {8}
    for name, network in state.networks().items():
        assert fresh_names(state, old)[name]
        assert_same({key: network.state_dict()[key] for key in old[name]}, dict(old[name]), name)
    for name in fresh_names(state, old)["G_ema"]:
        assert torch.equal(state.G_ema.state_dict()[name], state.G.state_dict()[name])
    assert not state.opt_G.state
    assert not state.opt_D.state
    assert (state.sums, state.steps) == ({}, 0)


def test_fresh_weights_depend_on_the_seed_and_the_resolution_alone(job, below):
    """Not on the global random state, nor on the weights of the stage below."""
    above = job(8, "one", previous=below)
    state, old = new_state(above), training_state(below.uri)
    torch.manual_seed(123)
    again = new_state(above)
    other_start = start_stage(above.config, job(4, "two").stage, num_labels=2, previous=None)
    other_start.grow(above.config)
    other_seed = start_stage(above.config.model_copy(update={"seed": 1}), above.stage, num_labels=2, previous=below)
    for network in ("G", "D"):
        names = fresh_names(state, old)[network]
        fresh, repeated, from_start, reseeded = (
            {name: getattr(one, network).state_dict()[name] for name in names}
            for one in (state, again, other_start, other_seed)
        )
        assert_same(repeated, fresh)
        assert_same(from_start, fresh)
        assert any(not torch.equal(reseeded[name], value) for name, value in fresh.items())


def test_growing_leaves_the_global_random_state_alone(job, below):
    before = torch.get_rng_state()
    new_state(job(8, "one", previous=below))
    assert torch.equal(torch.get_rng_state(), before)


def test_previous_stage_of_another_length_is_refused(job, below):
    above = job(8, "two", previous=below, training={"stages": {4: {"stable_kimg": 0.02}}})
    message = r"^checkpoint \S* ends 4x4 at 16 images, but stage 8x8 of this config starts at 20: it belongs "
    with pytest.raises(StepError, match=message):
        new_state(above)


def test_adam_of_d_is_corrected_for_lazy_penalties(job):
    """StyleGAN2's numbers for an interval of 16. G, and D at an interval of 1, have the numbers of the config."""
    assert lazy_correction(1) == 1
    plain = new_state(job(4, "one", training={"learning_rate": 0.01}))
    assert plain.opt_D.defaults["lr"] == plain.opt_G.defaults["lr"] == 0.01
    assert plain.opt_D.defaults["betas"] == (0.0, 0.99)
    lazy = new_state(job(4, "one", training={"learning_rate": 0.01, "penalty_interval": 16, "adam_beta1": 0.5}))
    assert lazy.opt_D.defaults["lr"] == pytest.approx(0.01 * 16 / 17)
    assert lazy.opt_D.defaults["betas"] == pytest.approx((0.5 ** (16 / 17), 0.99 ** (16 / 17)))
    assert lazy.opt_G.defaults["lr"] == 0.01
    assert lazy.opt_G.defaults["betas"] == (0.5, 0.99)


@pytest.mark.parametrize("interval", [1, 16])
def test_reset_optimizers_forgets_the_moments_and_keeps_the_settings(job, interval):
    """At the end of a fade Adam is as at the start of the stage, but at the given learning rate."""
    stage = job(4, "one", training={"penalty_interval": interval})
    state = new_state(stage)
    fresh = copy.deepcopy((state.opt_G.state_dict(), state.opt_D.state_dict()))
    step(stage, state)
    assert state.opt_G.state
    assert state.opt_D.state
    state.reset_optimizers(stage.config, stage.stage.learning_rate)
    assert_same((state.opt_G.state_dict(), state.opt_D.state_dict()), fresh)
    state.reset_optimizers(stage.config, 0.5)
    assert state.opt_G.param_groups[0]["lr"] == 0.5
    assert state.opt_D.param_groups[0]["lr"] == pytest.approx(0.5 * lazy_correction(interval))
