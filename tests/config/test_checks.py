"""Tests of values that do not fit together, and of the batches and learning rates that the config computes."""

import pytest

from stylegan.config.file import build, dump, load
from stylegan.config.resolutions import OFFICIAL_BATCH, RESNET_RESOLUTIONS, RESOLUTIONS, official_batch
from stylegan.errors import ConfigError
from stylegan.networks.resnet import SHAPES
from stylegan.training.schedule import stages

TREE = {"name": "t", "data": {"source": "digits", "resolution": 32}}


def configured(resolution=32, **sections):
    """Return a config of these sections on top of `TREE`."""
    return build(TREE | {"data": TREE["data"] | {"resolution": resolution}} | sections)


def mistake(**sections):
    """Return the message of the ConfigError that these sections cause; it must be one line."""
    with pytest.raises(ConfigError) as caught:
        build({**TREE, **sections, "data": TREE["data"] | sections.get("data", {})})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"data": {"labels": "folder", "label_file": "a.csv"}},
            ["data.label_file=a.csv with data.labels=folder", "set data.labels=file or remove it"],
        ),
        (
            {"training": {"batch": "auto"}, "ray": {"workers": {"min": 2, "max": 8}}},
            ["ray.workers={min: 2, max: 8} with training.batch=auto", "set training.batch to a number"],
        ),
        (
            {"training": {"batch": 32}, "ray": {"stages": {16: {"workers": {"min": 3, "max": 3}}}}},
            ["ray.stages.16.workers={min: 3, max: 3}", "divides the batch of 32 at 16x16", "[1, 2, 4, 8] do"],
        ),
        ({"ray": {"workers": {"min": 4, "max": 2}}}, ["ray.workers={min: 4, max: 2}: min is above max; swap them"]),
        ({"ray": {"workers": {"min": 0, "max": 2}}}, ["ray.workers.min=0"]),
        ({"ray": {"workers": 0}}, ["ray.workers=0"]),
        ({"ray": {"workers": {"min": 1}}}, ["ray.workers.max is missing"]),
        ({"ray": {"workers": {"min": 1, "max": 2, "mim": 3}}}, ["unknown key ray.workers.mim", "ray.workers.min?"]),
        (
            {"training": {"precision": "fp16"}},
            ["training.precision=fp16", "ray.gpus_per_worker is 0 at 8x8", "use bf16 or fp32"],
        ),
        (
            {"training": {"precision": "fp16"}, "ray": {"gpus_per_worker": 1, "stages": {16: {"gpus_per_worker": 0}}}},
            ["at 16x16", "set ray.gpus_per_worker=1"],
        ),
        (
            {"training": {"precision": "tf32"}},
            ["training.precision=tf32 needs a GPU", "ray.gpus_per_worker is 0", "use fp32 or bf16"],
        ),
        *(
            (
                {
                    "evaluation": {"precision": precision},
                    "ray": {"gpus_per_worker": 1, "stages": {32: {"gpus_per_worker": 0}}},
                },
                [f"evaluation.precision={precision} needs a GPU", "is 0 at 32x32", "or use bf16 or fp32"],
            )
            for precision in ("tf32", "fp16")
        ),
        (
            {"snapshots": {"metrics_device": "cuda"}},
            ["snapshots.metrics_device=cuda needs a GPU", "0 in every stage", "or snapshots.metrics_device=cpu"],
        ),
        ({"training": {"precision": "fp8"}}, ["training.precision='fp8'", "'fp32', 'tf32', 'bf16' or 'fp16'"]),
        (
            {"training": {"loss": "lsgan"}},
            ["training.loss='lsgan'", "'nonsaturating', 'saturating', 'wgan' or 'hinge'"],
        ),
        (
            {"training": {"loss": "wgan", "r1_gamma": 0}},
            ["training.loss=wgan", "training.gp_weight=10", "model.spectral_norm=true"],
        ),
        (
            {"training": {"loss": "wgan", "gp_weight": 10}},
            ["training.gp_weight=10 with training.r1_gamma=10", "set training.r1_gamma=0 or training.gp_weight=0"],
        ),
        (
            {"training": {"loss": "hinge", "gp_weight": 10, "r1_gamma": 0, "r2_gamma": 1}},
            ["training.r2_gamma=1", "set training.r2_gamma=0"],
        ),
        (
            {"training": {"drift_weight": 0.001}},
            ["training.drift_weight=0.001 with training.loss=nonsaturating", "loss wgan or hinge"],
        ),
        (
            {"training": {"penalty_interval": 16, "r1_gamma": 0}},
            ["training.penalty_interval=16", "set it to 1, or set training.r1_gamma"],
        ),
        (
            {"training": {"penalty_interval": 0}},
            ["training.penalty_interval=0: input should be greater than or equal to 1"],
        ),
        ({"training": {"gp_target": 0}}, ["training.gp_target=0: input should be greater than 0"]),
        (
            {"training": {"batch": 8, "rotation": {"fraction": 0.1}}},
            [
                "training.rotation.fraction=0.1",
                "of the 8 images of a batch at 8x8 is 0.8",
                "a multiple of 1/8, or a batch that is a multiple of 10",
            ],
        ),
        ({"training": {"batch": 8, "rotation": {"fraction": 0.01}}}, ["is 0.08"]),
        (
            {"training": {"batch": 8, "rotation": {"fraction": 0.125}}, "ray": {"workers": 2}},
            ["is 1 for 2 worker(s)", "2/8"],
        ),
        (
            {"snapshots": {"probe_kimg": 10}, "data": {"labels": "none"}},
            ["snapshots.probe_kimg needs labels", "set data.labels=auto"],
        ),
        (
            {"model": {"styles": False, "const_input": False}, "evaluation": {"metrics": ["fid", "fid_mixing"]}},
            ["evaluation.metrics has fid_mixing", "set evaluation.metrics=[fid] or model.styles=true"],
        ),
        (
            {"snapshots": {"metrics_kimg": {4: 0, 16: 10}}, "evaluation": {"features": "x.safetensors"}},
            ["quick metrics at 16x16", "evaluation.features=x.safetensors", "snapshots.metrics_kimg={4: 0, 32: ...}"],
        ),
        (
            {"snapshots": {"grid": 17}, "data": {"resolution": 1024}},
            ["snapshots.grid=17", "17x17 images of 1024x1024", "at most 16"],
        ),
        ({"snapshots": {"metrics": ["ppl_wend"]}}, ["snapshots.metrics.0='ppl_wend'", "'fid', 'kid', 'is' or 'pr'"]),
        ({"training": {"batch": "all"}}, ["training.batch.4='all'", "or `auto`"]),
        ({"training": {"batch": 7.5}}, ["training.batch.4=7.5", "whole"]),
        ({"training": {"batch": True}}, ["training.batch.4=True"]),
        ({"training": {"batch": {8: 0}}}, ["training.batch.8=0"]),
        ({"training": {"max_batch_per_worker": 0}}, ["training.max_batch_per_worker.4=0"]),
        (
            {"training": {"max_batch_per_worker": 3}, "ray": {"workers": 2}},
            ["training.max_batch_per_worker at 8x8 is 3", "model.mbstd_group=4", "use at least 4"],
        ),
        (
            {"training": {"batch": 8, "max_batch_per_worker": 4, "rotation": {"fraction": 0.125}}},
            ["training.max_batch_per_worker at 8x8 is 4", "training.rotation", "use at least 8"],
        ),
        ({"training": {"cuda_graphs": True}}, ["training.cuda_graphs=true needs a GPU", "or use auto"]),
        (
            {"training": {"learning_rate_scaling": "log"}},
            ["training.learning_rate_scaling='log'", "'none', 'sqrt' or 'linear'"],
        ),
    ],
)
def test_values_that_do_not_fit_together(sections, words):
    message = mistake(**sections)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"loss": "wgan", "r1_gamma": 0, "gp_weight": 10, "drift_weight": 0.001}},
        {"training": {"loss": "wgan"}},  # with R1
        {"training": {"loss": "wgan", "r1_gamma": 0}, "model": {"spectral_norm": True}},
        {"training": {"loss": "hinge", "r1_gamma": 0, "gp_weight": 10, "drift_weight": 0.001}},
        {"training": {"loss": "nonsaturating", "r1_gamma": 0, "gp_weight": 10}},
        {"training": {"loss": "hinge", "r1_gamma": 0}, "model": {"spectral_norm": True}},
        {"training": {"r1_gamma": 0}},
        {"training": {"r2_gamma": 10, "penalty_interval": 16}},
        {"training": {"batch": 24, "rotation": {"fraction": 0.333}}},
        {"training": {"batch": 8, "rotation": {}}, "ray": {"workers": 2}},
        {"training": {"precision": "fp16"}, "ray": {"gpus_per_worker": 1}},
        {"training": {"precision": "bf16"}},
        {"training": {"precision": "tf32"}, "ray": {"gpus_per_worker": 1, "stages": {8: {"gpus_per_worker": 0}}}},
        {"evaluation": {"precision": "bf16"}},
        {"evaluation": {"precision": "fp16"}, "ray": {"stages": {32: {"gpus_per_worker": 1}}}},
        {"snapshots": {"metrics_device": "cuda"}, "ray": {"stages": {8: {"gpus_per_worker": 0.5}}}},
        {"snapshots": {"probe_kimg": 10}},
    ],
    ids=str,
)
def test_values_that_do(sections):
    assert configured(**sections).resolutions == (8, 16, 32)


@pytest.mark.parametrize("workers", range(1, 41))
@pytest.mark.parametrize("group", [1, 4, 8])
def test_automatic_batches_divide_among_any_workers(workers, group):
    """The batch is as close below the table as whole stddev groups allow, and at least one group per worker."""
    config = configured(
        1024, training={"batch": "auto", "start_resolution": 4}, ray={"workers": workers}, model={"mbstd_group": group}
    )
    row = OFFICIAL_BATCH[max(count for count in OFFICIAL_BATCH if count <= workers)]
    for r in RESOLUTIONS:
        official = row[max(key for key in row if key <= r)]
        batch = config.batch_at(r)
        unit = workers * group if workers > 1 else min(group, official)
        assert batch % unit == 0
        assert batch == unit or official - unit < batch <= official


def test_automatic_batches_between_two_rows():
    assert [official_batch(r, 3, 4) for r in (4, 64, 1024)] == [252, 24, 12]
    assert [official_batch(r, 16, 4) for r in (4, 32, 1024)] == [512, 64, 64]


def test_automatic_batches_follow_the_workers_of_each_stage():
    config = configured(training={"batch": {4: "auto", 32: 16}}, ray={"workers": 2, "stages": {16: {"workers": 8}}})
    assert [config.batch_at(r) for r in (8, 16, 32)] == [256, 128, 16]
    assert configured(training={"batch": "auto", "stages": {16: {"batch": 4}}}).batch_at(16) == 4


def test_auto_in_a_file_and_on_the_command_line(tmp_path):
    """The dumped config loads again, and one entry of it can be replaced."""
    path = tmp_path / "c.yaml"
    path.write_text(dump(configured(training={"batch": "auto"})))
    assert load(path) == configured(training={"batch": "auto"})
    assert [load(path, ["training.batch.32=8"]).batch_at(r) for r in (16, 32)] == [128, 8]
    assert load(path, ["training.batch=4", "training.batch.16=auto"]).training.batch == {4: 4, 16: "auto"}


def test_shares_go_through_the_networks_in_as_few_parts_as_a_worker_can_hold():
    """The batch stays whole; parts are equal, and of whole stddev groups."""
    limits = {256: 16, 512: 8, 1024: 4}
    one = configured(1024, training={"batch": 64, "max_batch_per_worker": limits})
    assert [one.batch_at(r) for r in (8, 256, 1024)] == [64, 64, 64]
    assert [one.parts_at(r) for r in (8, 128, 256, 512, 1024)] == [1, 1, 4, 8, 16]
    four = configured(1024, training={"batch": 64, "max_batch_per_worker": limits}, ray={"workers": 4})
    assert [four.parts_at(r) for r in (128, 256, 512, 1024)] == [1, 1, 2, 4]
    uneven = configured(training={"batch": 60, "max_batch_per_worker": 32})
    assert uneven.parts_at(16) == 3  # 15 groups: 2 parts would divide one


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("sqrt", 0.5), ("linear", 0.25)])
def test_learning_rates_follow_the_batch(scaling, factor):
    """The batch at 64x64 is a quarter of the official one on 8 GPUs; a stage's own rate is not scaled."""
    training = {
        "batch": {4: 512, 8: 256, 16: 128, 32: 64, 64: 8},
        "learning_rate_scaling": scaling,
        "stages": {16: {"learning_rate": 0.5}},
    }
    config = configured(64, training=training)
    assert [config.learning_rate_at(r) for r in (8, 16, 32)] == [0.001, 0.5, 0.001]
    assert config.learning_rate_at(64) == pytest.approx(0.001 * factor)


def test_eight_workers_with_automatic_batches_need_no_scaling():
    config = configured(1024, training={"batch": "auto", "learning_rate_scaling": "linear"}, ray={"workers": 8})
    assert [config.learning_rate_at(r) for r in config.resolutions] == [0.001] * 4 + [0.0015, 0.002, 0.003, 0.003]


def test_a_root_behind_a_cache_is_refused():
    """Other machines would not see what changes; the line gives the URL to use."""
    with pytest.raises(ConfigError, match=r"storage\.root=simplecache::s3://b/x: a chained URL .* itself, s3://b/x"):
        build(
            {"name": "t", "data": {"source": "digits", "resolution": 8}, "storage": {"root": "simplecache::s3://b/x"}}
        )


def test_a_range_of_workers_has_the_numbers_that_divide_the_batch():
    """Into whole groups of the minibatch standard deviation, with equally many images that are turned."""
    ray = {"workers": {"min": 1, "max": 9}, "stages": {8: {"workers": 4}, 16: {"workers": {"min": 2, "max": 3}}}}
    config = configured(training={"batch": 32}, ray=ray)
    assert [config.worker_counts_at(r) for r in (8, 16, 32)] == [(4,), (2,), (1, 2, 4, 8)]
    assert config.most_workers_at(32) == 8
    turned = configured(training={"batch": 32, "rotation": {"fraction": 0.125}}, ray=ray)
    assert turned.worker_counts_at(32) == (1, 2, 4)
    assert build(load_back(config)).ray == config.ray


RESNET = {"model": {"architecture": "resnet"}, "evaluation": {"metrics": ["fid"]}}


def resnet(**sections):
    """Return the sections of a config of a resnet; values in `sections` join those of `RESNET`."""
    return RESNET | {name: RESNET.get(name, {}) | values for name, values in sections.items()}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        *(
            (
                {"data": {"resolution": resolution}},
                [f"data.resolution={resolution} with model.architecture=resnet", "32, 64, 128 only"],
            )
            for resolution in (4, 16, 256)
        ),
        *(
            ({"model": {name: value}}, [f"model.{name}={shown} with model.architecture=resnet", "leave it out"])
            for name, value, shown in [
                ("mapping_layers", 2, "2"),
                ("mapping_fmaps", 64, "64"),
                ("mapping_lrmul", 0.1, "0.1"),
                ("fmap_base", 1024, "1024"),
                ("fmap_decay", 0.5, "0.5"),
                ("fmap_max", 64, "64"),
                ("styles", False, "false"),
                ("const_input", False, "false"),
                ("noise", False, "false"),
                ("pixel_norm", True, "true"),
                ("instance_norm", False, "false"),
                ("blur", False, "false"),
                ("style_mixing_prob", 0.0, "0.0"),
                ("w_avg_beta", 0.9, "0.9"),
                ("mbstd_group", 1, "1"),
                ("label_scale", 0.2, "0.2"),
            ]
        ),
        (
            {"model": {"architecture": "stylegan", "norm": "batch"}},
            ["model.norm=batch with model.architecture=stylegan", "set model.architecture=resnet"],
        ),
        ({"model": {"architecture": "stylegan", "width": 0.5}}, ["model.width=0.5 with model.architecture=stylegan"]),
        ({"model": {"norm": "layer"}}, ["model.norm='layer'", "'conditional_batch'"]),
        *(
            (
                {"model": {"norm": norm, "conditional": True}},
                [f"model.norm={norm} with model.conditional=true", f"set model.norm=conditional_{norm}"],
            )
            for norm in ("batch", "instance")
        ),
        *(
            (
                {"model": {"norm": f"conditional_{norm}"}},
                [f"model.norm=conditional_{norm} with model.conditional=false", f"or model.norm={norm}"],
            )
            for norm in ("batch", "instance")
        ),
        (
            {"model": {"conditional": True}, "data": {"labels": "none"}},
            ["model.conditional=true needs labels but data.labels=none"],
        ),
        ({"training": {"start_resolution": 16}}, ["training.start_resolution=16", "one stage, 32x32; leave it out"]),
        ({"training": {"fade_kimg": 100}}, ["training.fade_kimg={4: 100", "one stage, 32x32", "leave it out"]),
        ({"training": {"stages": {32: {"fade_kimg": 1}}}}, ["training.stages.32.fade_kimg", "remove it"]),
        ({"training": {"stages": {16: {"batch": 4}}}}, ["training.stages.16: no such stage; the stages are [32]"]),
        ({"training": {"batch": "auto"}}, ["training.batch=auto with model.architecture=resnet", "set training.batch"]),
        (
            {"training": {"learning_rate_scaling": "sqrt"}},
            ["training.learning_rate_scaling=sqrt with model.architecture=resnet", "set training.learning_rate itself"],
        ),
        *(
            (
                {"model": {"norm": norm}, "training": {"max_batch_per_worker": 8}},
                [f"training.max_batch_per_worker with model.norm={norm}", "use more workers"],
            )
            for norm in ("batch", "self_modulated")
        ),
        (
            {"training": {"batch": 6, "rotation": {}}},
            ["training.rotation.fraction=0.25 of the 6 images of a batch at 32x32", "a batch that is a multiple of 4"],
        ),
        (
            {"training": {"batch": 4, "rotation": {}}, "ray": {"workers": 2}},
            ["is 1 for 2 worker(s)", "a multiple of 2/4, or a batch that is a multiple of 8"],
        ),
        ({"training": {"batch": 9}, "ray": {"workers": 2}}, ["training.batch at 32x32 is 9", "by its 2 workers"]),
        (
            {"training": {"batch": 9}, "ray": {"workers": {"min": 2, "max": 2}}},
            ["ray.workers={min: 2, max: 2}", "divides the batch of 9 at 32x32; [1, 3, 9] do"],
        ),
        (
            {"model": {"norm": "instance"}, "training": {"batch": 8, "max_batch_per_worker": 2, "rotation": {}}},
            ["no fewer than 4 (equally many images that training.rotation turns); use at least 4"],
        ),
        (
            {"training": {"d_steps": 5, "batch": 64, "total_kimg": 0.2}},
            ["training.d_steps=5: the stage 32x32 has 4 steps of 64 images", "G would never be updated"],
        ),
        (
            {"evaluation": {"metrics": ["fid", "ppl_wend", "ppl_zend", "truncation"]}},
            [
                "evaluation.metrics has ppl_wend, truncation, but G has no w beside z (model.architecture: resnet); set "
                "evaluation.metrics=[fid,ppl_zend]"
            ],
        ),
        (
            {"evaluation": {"metrics": ["ppl_wfull", "fid_mixing", "fid"]}},
            ["no w beside z (model.architecture: resnet) and no styles to mix", "set evaluation.metrics=[fid]"],
        ),
        ({"training": {"d_steps": 0}}, ["training.d_steps=0: input should be greater than or equal to 1"]),
        ({"training": {"loss": "wgan", "r1_gamma": 0}}, ["training.loss=wgan", "model.spectral_norm=true"]),
        (
            {"transfer": {}, "evaluation": {"metrics": ["transfer"]}},
            ["model.architecture with transfer: is a setting of a GAN", "remove the section model"],
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value),
)
def test_what_does_not_fit_a_resnet_is_one_line(sections, words):
    message = mistake(**resnet(**sections))
    assert [word for word in words if word not in message] == [], message
    assert "mbstd_group" in str(sections) or "mbstd_group" not in message


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"norm": "batch", "spectral_norm": True, "width": 0.25, "latent_size": 128}},
        *({"model": {"norm": norm}} for norm in ("self_modulated", "instance", "adaptive_instance")),
        {"model": {"conditional": True}},
        *(
            {"model": {"conditional": True, "norm": norm}}
            for norm in ("conditional_batch", "self_modulated", "conditional_instance", "adaptive_instance")
        ),
        {"training": {"start_resolution": 32, "fade_kimg": 0}},
        {"training": {"batch": 5, "d_steps": 3}, "ray": {"workers": 5}},
        {"training": {"batch": 8, "rotation": {}}, "ray": {"workers": 2}},
        {"training": {"loss": "hinge", "r1_gamma": 0, "d_steps": 4, "batch": 64, "total_kimg": 0.2}},
        {"model": {"norm": "instance"}, "training": {"max_batch_per_worker": 2}},
        {"training": {"stages": {32: {"batch": 64, "stable_kimg": 10}}}, "ray": {"stages": {32: {"workers": 2}}}},
    ],
    ids=str,
)
def test_what_fits_a_resnet_is_trained_in_one_stage(sections):
    (stage,) = stages(configured(**resnet(**sections)))
    assert (stage.resolution, stage.levels_below, stage.start_nimg, stage.fade_images) == (32, 0, 0, 0)


@pytest.mark.parametrize(
    ("evaluation", "metrics"),
    [(None, ("fid", "is")), ({"num_images": 100}, ("fid", "is")), ({"metrics": ["pr", "fid"]}, ("pr", "fid"))],
)
def test_a_resnet_is_measured_by_the_metrics_of_its_papers_unless_others_are_chosen(evaluation, metrics):
    config = configured(model=RESNET["model"], **({} if evaluation is None else {"evaluation": evaluation}))
    assert config.evaluation.metrics == metrics
    assert build(load_back(config)) == config


def test_every_metric_that_needs_no_w_can_be_asked_of_a_resnet():
    wanted = ["fid", "kid", "is", "pr", "ppl_zfull", "ppl_zend", "separability"]
    assert list(configured(**resnet(evaluation={"metrics": wanted})).evaluation.metrics) == wanted


def test_the_resolutions_of_a_resnet_are_those_of_its_networks():
    assert tuple(sorted(SHAPES)) == RESNET_RESOLUTIONS


def load_back(config):
    """Return the values of a config as its YAML file has them."""
    import yaml

    return yaml.safe_load(dump(config))


TRANSFER = {
    "transfer": {},
    "evaluation": {"metrics": ["transfer"]},
    "registry": {"gate": {"metric": "transfer_loss"}},
}


def test_a_style_transfer_is_one_stage_of_its_own_length_and_batch():
    config = configured(64, **TRANSFER | {"transfer": {"kimg": 2, "batch": 5, "learning_rate": 0.5}})
    (stage,) = stages(config)
    assert (stage.resolution, stage.batch, stage.num_images, stage.fade_images) == (64, 5, 2000, 0)
    assert stage.learning_rate == 0.5
    assert config.worker_counts_at(64) == (1,)


@pytest.mark.parametrize(
    ("resolution", "sections", "words"),
    [
        (64, {"model": {"blur": False}}, ["model.blur with transfer", "remove the section model"]),
        (64, {"training": {"batch": 4}}, ["training.batch with transfer", "remove the section training"]),
        (64, {"evaluation": {}}, ["evaluation.metrics=", "set evaluation.metrics=[transfer]"]),
        (64, {"registry": {}}, ["registry.gate.metric=fid", "'transfer_loss'"]),
        (64, {"ray": {"workers": 2}}, ["ray.workers=2", "trained by one worker; set it to 1"]),
        (64, {"ray": {"stages": {64: {"workers": {"min": 1, "max": 2}}}}}, ["ray.stages.64.workers=", "set it to 1"]),
        (64, {"snapshots": {"grid": 1}}, ["snapshots.grid=1", "set it to 2 or more"]),
        (64, {"snapshots": {"metrics_kimg": 5}}, ["snapshots.metrics_kimg with transfer", "leave it out"]),
        (16, {"transfer": {"depth": 3}}, ["transfer.depth=3: images of 16x16 are too small", "at most 2"]),
        (4, {"transfer": {"depth": 1}}, ["transfer.depth=1", "set data.resolution to 8 or more"]),
        (64, {"transfer": None}, ["evaluation.metrics has transfer", "add the section transfer"]),
    ],
)
def test_what_does_not_fit_a_style_transfer_is_one_line(resolution, sections, words):
    with pytest.raises(ConfigError) as error:
        configured(resolution, **TRANSFER | sections)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
