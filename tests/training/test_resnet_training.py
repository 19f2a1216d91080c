"""Training of the `resnet` pair: plain steps, ranks, restarts, statistics of the average, and updates of D for one of G."""

import copy

import numpy as np
import pytest
import torch
from benchmarks.compare import assert_near
from benchmarks.plain_resnet import PlainResNetDiscriminator, PlainResNetGenerator, PlainResNetTraining
from contents import assert_same, curves, pictures, train_killed, training_state
from ranks import in_double, on_two_ranks

from stylegan import storage
from stylegan.config.file import build
from stylegan.data.loading.loader import LoaderSettings, load_images
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.images import to_uint8
from stylegan.networks.normalisation import of_batch
from stylegan.training import distributed, loop, samples
from stylegan.training.graphs import StepRunner
from stylegan.training.job import StageJob
from stylegan.training.loop import train_stage
from stylegan.training.schedule import OF_G, stages
from stylegan.training.settle_average import settle_average
from stylegan.training.state import load_model, newest_checkpoint, start_stage
from stylegan.training.warm_start import warm_obstacle

BATCH = 8
LABELS = torch.arange(40) % 3  # of the data set
HINGE = {"loss": "hinge", "r1_gamma": 0, "adam_beta2": 0.9, "learning_rate": 0.002}
VARIANTS = {
    "turned": {"rotation": {}, "mirror": True},
    "conditional": {"norm": "conditional_batch", "spectral_norm": False, "gp_weight": 10},
    "self-modulated": {"norm": "self_modulated"},
}


def configure(norm="batch", spectral_norm=True, **training):
    model = {"architecture": "resnet", "width": 0.02, "latent_size": 8, "norm": norm, "spectral_norm": spectral_norm}
    return build(
        {
            "name": "t",
            "data": {"source": "digits", "resolution": 32, "channels": 1},
            "model": model | {"conditional": norm.startswith("conditional")},
            "training": {"batch": BATCH, "total_kimg": 0.08} | HINGE | training,
            "evaluation": {"metrics": ["fid"]},
        }
    )


def reals(count=48):
    return torch.randint(0, 256, (count, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def begin(config):
    """Return the stage, and its state with weights of which none is at the kink of a ReLU."""
    (stage,) = stages(config)
    state = start_stage(config, stage, num_labels=3 if config.model.conditional else 0, previous=None)
    random = torch.Generator().manual_seed(1)
    for parameter in [*state.G.parameters(), *state.D.parameters()]:
        if parameter.detach().unique().numel() <= 2:
            parameter.data += torch.randn(parameter.shape, generator=random).to(parameter) * 0.3
    state.G_ema.load_state_dict(state.G.state_dict())
    return stage, state


def train(steps, **options):
    """Make steps on this rank's share of the same images, settle the average, and return the state."""
    config = configure(**options)
    stage, state = begin(config)
    labels = LABELS if config.model.conditional else None
    runner, data = StepRunner(config, stage, state, labels), reals(steps * BATCH)
    for start in range(0, steps * BATCH, BATCH):
        own = start + distributed.own_share(BATCH, config.model.group)
        runner.step(data[own], None if labels is None else own % 3)
        state.nimg += BATCH
        state.steps += 1
    settle_average(state, config, stage, labels)
    return state


# --- plain steps ------------------------------------------------------------------------------------------------------


@pytest.fixture
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def numbers(training):
    """Return the weights of all networks by the names that the plain ones have, D's buffers and the moments of Adam.

    Of G's buffers, the plain one has the running statistics, which ours does without.
    """
    found = {}
    for name in ("G", "D", "G_ema"):
        network = getattr(training, name)
        network = getattr(network, "synthesis", network)
        values = network.state_dict() if name == "D" else dict(network.named_parameters())
        found |= {f"{name}.{key}": value for key, value in values.items()}
        if name != "G_ema":
            moments = getattr(training, f"opt_{name}").state
            found |= {f"Adam of {name}.{key}": moments[p]["exp_avg_sq"] for key, p in network.named_parameters()}
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"rotation": {}}, {"norm": "conditional_batch"}, {"norm": "self_modulated", "spectral_norm": False}],
    ids=str,
)
def test_steps_equal_plain_steps(double_precision, options):
    """Six steps of D, of which every second updates G after it: weights, averages, power method, moments of Adam."""
    config = configure(**options, d_steps=2)
    stage, state = begin(config)
    conditional = config.model.conditional
    shape = {"resolution": 32, "channels": 1, "num_labels": 3 if conditional else 0}
    rotates = config.training.rotation is not None
    networks = (
        PlainResNetGenerator(config.model, **shape),
        PlainResNetDiscriminator(config.model, **shape, rotation=rotates),
    )
    for plain, own in zip(networks, (state.G.synthesis, state.D), strict=True):
        plain.load_state_dict(own.state_dict())
    plain = PlainResNetTraining(*networks, learning_rate=stage.learning_rate)

    # The plain steps turn the last quarter of a batch: it gets the images that ours turn, whose order decides nothing.
    turned = torch.arange(3, BATCH, 4)
    order = torch.cat([torch.tensor([n for n in range(BATCH) if n not in turned.tolist()]), turned])
    mapped = []
    state.G.mapping.register_forward_hook(lambda _, args, w: mapped.append(args))
    runner = StepRunner(config, stage, state, LABELS if conditional else None)
    for step, start in enumerate(range(0, 48, BATCH)):
        images, labels = reals()[start : start + BATCH], torch.arange(start, start + BATCH) % 3 if conditional else None
        runner.step(images, labels)
        assert len(mapped) == 1 + step % 2  # fakes for D, and every second time for G
        (z, of_fakes), *of_G = mapped
        assert of_fakes is None or torch.equal(of_fakes, labels)
        shown = images[order].double() / 127.5 - 1
        plain.d_step(shown, None if labels is None else labels[order], z[order])
        for z_G, labels_G in of_G:
            plain.g_step(None if labels_G is None else labels_G[order], z_G[order])
        mapped.clear()
        state.nimg += BATCH
    ours = numbers(state)
    assert_near(ours, numbers(plain), allowed=1e-8)
    assert state.opt_G.state[next(iter(state.G.parameters()))]["step"] == 3
    assert not state.G.w_avg.any()


# --- ranks and parts --------------------------------------------------------------------------------------------------


def train_all():
    found = {}
    for variant, options in VARIANTS.items():
        networks = train(3, **options, d_steps=2).networks()
        found[variant] = {name: network.state_dict() for name, network in networks.items()}
    return found


def test_two_ranks_train_like_one(tmp_path):
    """Statistics and their gradients are those of the batch of both ranks; each finds those of the average by itself."""
    one, two = in_double(train_all), on_two_ranks(train_all, tmp_path)
    for variant, networks in one.items():
        for network, values in networks.items():
            for name, value in values.items():
                ours = [ranks[variant][network][name] for ranks in two]
                assert torch.equal(*ours), (variant, network, name)
                message = f"{variant} {network} {name}"
                torch.testing.assert_close(
                    ours[0], value, rtol=0, atol=1e-5, msg=lambda text, message=message: f"{message}: {text}"
                )


@pytest.mark.parametrize("options", [{}, {"norm": "conditional_instance", "rotation": {}}], ids=["plain", "turned"])
def test_parts_of_a_share_train_like_the_whole(options):
    """Where an image is normalised by itself; each part has an image that is turned."""

    def trained(largest):
        options_ = {"norm": "instance"} | options | {"max_batch_per_worker": largest, "d_steps": 2}
        networks = train(4, **options_).networks()
        return {f"{name}.{key}": value for name, part in networks.items() for key, value in part.state_dict().items()}

    whole, parts = in_double(lambda: trained(None)), in_double(lambda: trained(4))
    assert_near(parts, whole, allowed=1e-7)


# --- several updates of D ---------------------------------------------------------------------------------------------


def test_g_is_updated_in_every_so_many_steps():
    """Its weights stay as they are in between, and so do the moments of its Adam."""
    config = configure(d_steps=3)
    stage, state = begin(config)
    runner, changed = StepRunner(config, stage, state), []
    for step in range(7):
        before = copy.deepcopy([state.G.state_dict(), state.D.state_dict()])
        runner.step(reals(BATCH), None)
        after = state.G.state_dict(), state.D.state_dict()
        changed.append(
            [any(not torch.equal(one[name], two[name]) for name in one) for one, two in zip(before, after, strict=True)]
        )
        state.nimg += BATCH
        assert changed[-1] == [step % 3 == 2, True]


def test_a_restart_in_between_draws_for_g_what_it_would_have_drawn():
    assert_same(train(5, d_steps=3, rotation={}).state_dict(), train(5, d_steps=3, rotation={}).state_dict())


# --- stages -----------------------------------------------------------------------------------------------------------

STAGE = {
    "model": {"conditional": True, "norm": "self_modulated", "spectral_norm": True},
    "training": {"rotation": {"fraction": 0.5}, "d_steps": 3, "mirror": True},
}


@pytest.fixture
def job(tmp_path, draw_images):
    """Return job(name, **sections): a stage of eleven steps of four images, with a checkpoint after every second one."""
    source = draw_images(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(6)], size=(32, 32))
    tree = {
        "name": "t",
        "storage": {"root": str(tmp_path / "root")},
        "data": {"source": str(source), "resolution": 32},
        "model": {"architecture": "resnet", "width": 0.02, "latent_size": 8},
        "training": HINGE | {"batch": 4, "total_kimg": 0.044},
        "snapshots": {
            "checkpoint_kimg": 0.008,
            "log_kimg": 0.008,
            "samples_kimg": 0.012,
            "grid": 2,
            "probe_kimg": 0.02,
        },
        "evaluation": {"metrics": ["fid"]},
    }
    data = build(tree).data
    shards = write_shards(open_source(data), data, str(tmp_path / "root"))

    def make(name, **sections):
        config = build(
            {key: value | sections.get(key, {}) if isinstance(value, dict) else value for key, value in tree.items()}
        )
        uri = str(tmp_path / "root" / "stages" / f"0032-{name}")
        return StageJob(
            config=config, stage=stages(config)[0], shards=shards, key=name, run_id="r", uri=uri, previous=None
        )

    return make


def left(job):
    """Return what a stage left in storage, in comparable form."""
    uri = newest_checkpoint(job.uri).uri
    generator = storage.read_bytes(f"{uri}/generator.safetensors")
    return {
        "state": training_state(uri),
        "generator": generator,
        "curves": curves(job.uri),
        "pictures": pictures(job.uri),
    }


@pytest.mark.parametrize(("sections", "kills"), [(STAGE, [1, 2, 3]), ({}, [2])], ids=["conditional", "plain"])
def test_killed_at_any_checkpoint_it_ends_bit_identical(job, monkeypatch, sections, kills):
    """Also between two updates of G, with the same statistics of the average, curves, probes and grids."""
    stage = job("k", **sections)
    train_stage(stage)
    expected = left(stage)
    for after in kills:
        storage.delete(stage.uri)
        train_killed(stage, monkeypatch, after=after)
        assert newest_checkpoint(stage.uri).nimg == 8 * after
        assert train_stage(stage).nimg == 44
        assert_same(left(stage), expected, f"killed at checkpoint {after}")


def test_the_average_is_stored_and_drawn_with_its_statistics(job, monkeypatch):
    """They are a function of its weights, which what draws from a checkpoint finds in it."""
    drawn, write = {}, samples._write_grid
    monkeypatch.setattr(
        samples, "_write_grid", lambda j, images, name: (drawn.update({name: images}), write(j, images, name))
    )
    stage = job("k", **STAGE)
    checkpoint = train_stage(stage)
    G, names = load_model(checkpoint.uri)
    assert names == ("a", "b")
    layers = of_batch(G)
    assert len(layers) == 7
    assert all(layer.mean.any() and (layer.variance != 1).all() for layer in layers)

    # The grid of the end is drawn by the same network.
    z, labels = samples.sample_latents(stage.config, names)
    assert np.array_equal(
        to_uint8(G(z, labels)).numpy(), np.stack([np.asarray(image) for image in drawn["samples/000000.png"]])
    )

    # Its statistics are those of its own weights.
    saved = training_state(checkpoint.uri)
    state = start_stage(stage.config, stage.stage, num_labels=2, previous=None)
    state.load_networks(saved)
    for layer in of_batch(state.G_ema):
        layer.mean.fill_(5.0)
        layer.variance.fill_(7.0)
    table = load_images(stage.shards, 32, settings=LoaderSettings.of(stage.config))
    settle_average(state, stage.config, stage.stage, torch.from_numpy(table.labels))
    assert_same(dict(state.G_ema.state_dict()), dict(saved["G_ema"]))
    assert not state.G_ema.training


def test_the_average_has_its_statistics_wherever_it_draws(job, monkeypatch):
    """Also where no checkpoint is due."""
    drawn, write = {}, loop.write_samples

    def note(job, state, background):
        drawn[state.nimg] = all(layer.mean.any() for layer in of_batch(state.G_ema))
        write(job, state, background)

    monkeypatch.setattr(loop, "write_samples", note)
    far = {"checkpoint_kimg": 9, "samples_kimg": 0.4, "probe_kimg": 9, "log_kimg": 9}
    train_stage(job("k", training={"batch": 200, "total_kimg": 1.2}, snapshots=far))
    assert drawn == {400: True, 800: True, 1200: True}


def test_statistics_move_nothing_else(job):
    """However often the average is drawn and stored."""
    rare = {"checkpoint_kimg": 1, "samples_kimg": 1, "probe_kimg": 1, "log_kimg": 1}
    states = [training_state(train_stage(one).uri) for one in (job("k"), job("l", snapshots=rare))]
    for name in ("G", "D", "G_ema", "opt_G", "opt_D"):
        assert_same(states[0][name], states[1][name])


def test_curves_count_the_losses_of_g_over_its_updates(job):
    """A point is two steps, the last one is one: some have no update of G, and no mean is one over steps without it."""
    training = {"rotation": {"fraction": 0.5, "weight_g": 0.3}, "d_steps": 3}
    stage = job("k", training=training)
    train_stage(stage)
    points = dict(curves(stage.uri))
    assert list(points) == [8, 16, 24, 32, 40, 44]
    assert [nimg for nimg, metrics in points.items() if "loss/g" not in metrics] == [8, 32, 44]  # G: steps 3, 6, 9
    for metrics in points.values():
        assert {"loss/d", "loss/rotation_d", "optim/skipped"} <= metrics.keys()
        found = [name for name in OF_G if name in metrics]
        assert found in ([], list(OF_G))
        if found:
            assert metrics["rotation/weight_g"] == pytest.approx(0.3)


def test_a_stage_whose_checkpoints_are_gone_starts_anew(job):
    """It has no stage below, whatever `training.start_resolution` says."""
    stage = job("k")
    expected = training_state(train_stage(stage).uri)
    storage.delete(stage.uri)
    assert_same(training_state(train_stage(stage).uri), expected)


# --- warm start -------------------------------------------------------------------------------------------------------


def test_training_goes_on_with_a_resnet_of_the_same_networks_alone(job):
    stage = job("k", **STAGE)
    origin = train_stage(stage)

    def obstacle(**model):
        tree = stage.config.model_dump(mode="json")
        tree["model"], tree["training"]["start_resolution"] = model, 32
        return warm_obstacle(build(tree), origin.uri, ("a", "b"))

    own = {"architecture": "resnet", "width": 0.02, "latent_size": 8} | STAGE["model"]
    assert obstacle(**own) is None
    assert obstacle(conditional=True) == ('it was trained with model.architecture="resnet", this config has "stylegan"')
    assert obstacle(**own | {"width": 0.03}) == "it was trained with model.width=0.02, this config has 0.03"
    assert obstacle(**own | {"norm": None}) == (
        'it was trained with model.norm="self_modulated", this config has "conditional_batch"'
    )
    assert (
        obstacle(**own | {"conditional": False}) == "it was trained with model.conditional=true, this config has false"
    )


def test_a_warm_start_goes_on_with_the_whole_state(job):
    stage = job("k", **STAGE)
    origin = train_stage(stage)
    tree = stage.config.model_dump(mode="json")
    tree["training"]["warm_start"] = {"checkpoint": origin.uri, "kimg": 0.02}
    config = build(tree)
    (second,) = stages(config)
    assert (second.start_nimg, second.end_nimg) == (44, 64)
    warm = stage.model_copy(update={"config": config, "stage": second, "uri": f"{stage.uri}-warm", "previous": origin})
    end = train_stage(warm)
    saved, before = training_state(end.uri), training_state(origin.uri)
    steps = [state["opt_G"]["state"][0]["step"] for state in (before, saved)]
    assert steps == [3, 4]  # eleven steps, and five more, whose count begins anew
