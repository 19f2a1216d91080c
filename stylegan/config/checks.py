"""Check that the values of a config fit together, which the fields cannot check one by one.

Every mistake is one line: `key=value: what is wrong; the cure`.
"""

from __future__ import annotations

import json
import math
from fractions import Fraction

from stylegan.config.addresses import KINDS_OF_FEATURES, check_addresses
from stylegan.config.resolutions import RESNET_RESOLUTIONS, at_resolution
from stylegan.config.sections import (
    MOST_PIXELS,
    OF_BATCH,
    OF_RESNET,
    Section,
    TrainingConfig,
    TransferConfig,
    UncheckedConfig,
)
from stylegan.evaluation.metric_table import METRICS, lacking


def check(config: UncheckedConfig) -> None:
    """Raise ValueError at the first values that do not fit together.

    The message is one line that names the keys, their values, what is allowed and the cure.
    """
    check_addresses(config)
    _check_storage(config)
    if config.transfer:
        _check_transfer(config, config.transfer)
        _check_grid(config)
        _check_gate(config)
        return
    _check_architecture(config)
    _check_workers(config)
    _check_data(config)
    _check_stages(config)
    _check_batches(config)
    _check_updates(config)
    _check_networks(config)
    _check_losses(config)
    _check_rotation(config)
    _check_precision(config)
    _check_labels(config)
    _check_metrics(config)
    _check_devices_of_metrics(config)
    _check_quick_metrics(config)
    _check_grid(config)
    _check_gate(config)


def _check_storage(config: UncheckedConfig) -> None:
    root = config.storage.root
    if "::" in root and "://" in root:
        raise ValueError(
            f"storage.root={root}: a chained URL may answer from copies that other machines do not see change; give the "
            f"URL of the store itself, {root.rpartition('::')[2]}"
        )


def _check_data(config: UncheckedConfig) -> None:
    data = config.data
    if data.label_file is not None and data.labels in ("none", "folder"):
        raise ValueError(
            f"data.label_file={data.label_file} with data.labels={data.labels}: the file would not be read; "
            "set data.labels=file or remove it"
        )


def _check_architecture(config: UncheckedConfig) -> None:
    """Check that the networks have the settings of their own architecture only."""
    model = config.model
    for name in _changed(model):
        if (name not in OF_RESNET) if model.is_resnet else (name in ("norm", "width")):
            other = "stylegan" if model.is_resnet else "resnet"
            raise ValueError(
                f"model.{name}={_yaml(getattr(model, name))} with model.architecture={model.architecture}: is a setting of the "
                f"architecture {other}; leave it out, or set model.architecture={other}"
            )
    if model.is_resnet:
        _check_resnet(config)


def _check_resnet(config: UncheckedConfig) -> None:
    model, training, final = config.model, config.training, config.data.resolution
    if final not in RESNET_RESOLUTIONS:
        raise ValueError(
            f"data.resolution={final} with model.architecture=resnet: these networks are published for "
            f"{', '.join(map(str, RESNET_RESOLUTIONS))} only; set one of them, or model.architecture=stylegan"
        )

    # Who sees the classes.
    norm = model.norm_used
    if model.conditional and norm in ("batch", "instance"):
        raise ValueError(
            f"model.norm={norm} with model.conditional=true: G would not see the classes; set model.norm=conditional_{norm} "
            "or leave it out, or set model.conditional=false"
        )
    if norm.startswith("conditional") and not model.conditional:
        raise ValueError(
            f"model.norm={norm} with model.conditional=false: there are no classes; set model.conditional=true, or "
            f"model.norm={norm.removeprefix('conditional_')}"
        )

    # What progressive growing and the script of StyleGAN have.
    one_stage = f"with model.architecture=resnet: there is one stage, {final}x{final}"
    if training.start_resolution not in (TrainingConfig.model_fields["start_resolution"].default, final):
        raise ValueError(f"training.start_resolution={training.start_resolution} {one_stage}; leave it out")
    if "fade_kimg" in _changed(training) and any(training.fade_kimg.values()):
        raise ValueError(
            f"training.fade_kimg={training.fade_kimg} {one_stage}, which fades in from nothing; leave it out"
        )
    if config.takes_official_batch(final):
        raise ValueError(
            "training.batch=auto with model.architecture=resnet: is the table of StyleGAN's script; set training.batch to a "
            "number, as published to 64"
        )
    if training.learning_rate_scaling != "none":
        raise ValueError(
            f"training.learning_rate_scaling={training.learning_rate_scaling} with model.architecture=resnet: scales from the "
            "batches of StyleGAN's script; set training.learning_rate itself"
        )

    # Statistics of a batch.
    if training.max_batch_per_worker and norm in OF_BATCH:
        raise ValueError(
            f"training.max_batch_per_worker with model.norm={norm}: G takes statistics over a worker's whole share of the "
            "batch, which cannot go through in parts; leave it out and use more workers, or set model.norm to one of each "
            "image (instance, conditional_instance, adaptive_instance)"
        )


def _changed(section: Section) -> list[str]:
    """Return the names of the settings that have another value than by default."""
    return list(section.model_dump(exclude_defaults=True))


def _yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _check_stages(config: UncheckedConfig) -> None:
    training, final = config.training, config.data.resolution

    # The first stage.
    start = training.start_resolution
    if start not in config.grown_resolutions and not config.model.is_resnet:
        raise ValueError(f"training.start_resolution={start}: must be a power of two from 4 to data.resolution={final}")

    # Exceptions for single stages.
    for owner, given in (("training", training.stages), ("ray", config.ray.stages)):
        unknown = [r for r in given if r not in config.grown_resolutions]
        if unknown:
            known = list(config.grown_resolutions)
            raise ValueError(f"{owner}.stages.{unknown[0]}: no such stage; the stages are {known}")
    first = config.grown_resolutions[0]
    if first in training.stages and training.stages[first].fade_kimg:
        raise ValueError(f"training.stages.{first}.fade_kimg: the first stage has nothing to fade in from; remove it")

    # The last stage must have something left to train after its fade-in.
    least = sum(sum(config.kimg_at(r)) for r in config.resolutions[:-1]) + config.kimg_at(final)[0]
    if training.total_kimg is not None and training.total_kimg <= least:
        raise ValueError(
            f"training.total_kimg={training.total_kimg:g}: the stages below {final}x{final} and its "
            f"fade take {least:g} already; raise it, or shorten training.fade_kimg and training.stable_kimg"
        )


def _check_transfer(config: UncheckedConfig, transfer: TransferConfig) -> None:
    """Check a style transfer, which shares the sections of data, storage and engines with a StyleGAN and no other."""
    _check_data(config)
    for name in ("model", "training"):
        given = getattr(config, name).model_dump(exclude_defaults=True)
        if given:
            raise ValueError(
                f"{name}.{next(iter(given))} with transfer: is a setting of a GAN; remove the section {name}, or remove "
                "transfer to train one"
            )

    # What it is measured by.
    if config.evaluation.metrics != ("transfer",):
        raise ValueError(
            f"evaluation.metrics={list(config.evaluation.metrics)}: of a style transfer only transfer is measured; set "
            "evaluation.metrics=[transfer]"
        )
    asked = [
        name for name in ("metrics_kimg", "probe_kimg") if any((getattr(config.snapshots, name) or {4: 0.0}).values())
    ]
    if asked:
        raise ValueError(f"snapshots.{asked[0]} with transfer: is measured of a StyleGAN only; leave it out")

    if config.snapshots.grid < 2:
        raise ValueError(
            f"snapshots.grid={config.snapshots.grid}: the first row and column of a sheet are the styles and the contents; set it "
            "to 2 or more"
        )

    # The encoder. Its last map has two pixels a side at least, because borders are reflected.
    resolution, published = config.data.resolution, config.evaluation.features == "inception"
    side = resolution if published else min(resolution, 256)
    most = side.bit_length() - (2 if published else 3)
    if transfer.depth > most:
        raise ValueError(
            f"transfer.depth={transfer.depth}: images of {resolution}x{resolution} are too small for it; "
            + (f"at most {most}" if most else "set data.resolution to 8 or more")
        )

    # The workers.
    for r, given in ((None, config.ray.workers), *((r, stage.workers) for r, stage in config.ray.stages.items())):
        if given not in (None, 1):
            key = "ray.workers" if r is None else f"ray.stages.{r}.workers"
            raise ValueError(f"{key}={given}: a style transfer is trained by one worker; set it to 1")


def _check_workers(config: UncheckedConfig) -> None:
    for r in config.resolutions:
        key = f"ray.stages.{r}.workers" if r in config.ray.stages and config.ray.stages[r].workers else "ray.workers"
        workers = config.workers_at(r).workers
        if workers is None or isinstance(workers, int):
            continue
        given = f"{key}={{min: {workers.min}, max: {workers.max}}}"
        if workers.min > workers.max:
            raise ValueError(f"{given}: min is above max; swap them")
        if config.takes_official_batch(r):
            raise ValueError(
                f"{given} with training.batch=auto: the batch would follow the number of workers, which changes while "
                "the stage trains; set training.batch to a number"
            )
        if not config.worker_counts_at(r):
            fitting = [n for n in range(1, config.batch_at(r) + 1) if config.divides_among(n, r)]
            groups = f" into whole groups of model.mbstd_group={config.model.group}" if config.model.group > 1 else ""
            raise ValueError(
                f"{given}: no number of workers in it divides the batch of {config.batch_at(r)} at {r}x{r}{groups}; "
                f"{fitting} do, so take some of them in, or change the batch"
            )


def _check_batches(config: UncheckedConfig) -> None:
    for r in config.resolutions:
        for workers in config.worker_counts_at(r):
            _check_batch(config, r, workers)


def _check_batch(config: UncheckedConfig, r: int, workers: int) -> None:
    batch, group = config.batch_at(r), config.model.group

    # Every worker has the same number of images.
    if batch % workers:
        raise ValueError(
            f"training.batch at {r}x{r} is {batch}: not divisible by its {workers} workers; use a multiple of "
            f"{workers} or auto, or set training.stages.{r}.batch or ray.stages.{r}.workers"
        )

    # A group of the minibatch standard deviation is never divided among workers.
    share, members = batch // workers, min(group, batch)
    if share % min(members, share) or (workers > 1 and share % members):
        raise ValueError(
            f"training.batch at {r}x{r} gives each of {workers} workers {share} images: not divisible by "
            f"model.mbstd_group={group}; use a batch that is a multiple of {group * workers}"
        )

    # Nor is it divided among the parts of a worker's share.
    least, limits = share // config.parts_at(r, workers), config.training.max_batch_per_worker or {}
    if limits and r >= min(limits) and least > at_resolution(limits, r):
        whole = [f"whole groups of model.mbstd_group={group}"] if group > 1 else []
        whole += ["equally many images that training.rotation turns"] if config.training.rotation else []
        raise ValueError(
            f"training.max_batch_per_worker at {r}x{r} is {at_resolution(limits, r)}: a worker's {share} images "
            f"divide into equal parts of no fewer than {least} ({', and '.join(whole)}); use at least {least}"
        )


def _check_networks(config: UncheckedConfig) -> None:
    if config.model.const_input and not config.model.styles:
        raise ValueError(
            "model.styles=false with model.const_input=true would draw one image for every z; "
            "set model.const_input=false or model.styles=true"
        )


def _check_updates(config: UncheckedConfig) -> None:
    """Check that G is updated at least once in each stage."""
    d_steps = config.training.d_steps
    for r in config.resolutions if d_steps > 1 else ():
        steps = math.ceil(1000 * sum(config.kimg_at(r)) / config.batch_at(r))
        if steps < d_steps:
            raise ValueError(
                f"training.d_steps={d_steps}: the stage {r}x{r} has {steps} steps of {config.batch_at(r)} images, so that G "
                "would never be updated; lower it, or make the stage longer (training.stable_kimg)"
            )


def _check_losses(config: UncheckedConfig) -> None:
    training = config.training
    weights = {name: getattr(training, name) for name in ("r1_gamma", "r2_gamma", "gp_weight")}
    penalties = [f"training.{name}={value:g}" for name, value in weights.items() if value]
    if training.gp_weight and len(penalties) > 1:
        raise ValueError(
            f"{penalties[-1]} with {penalties[0]}: one asks for gradients of norm {training.gp_target:g}, the other of "
            f"norm 0; set {penalties[0].split('=')[0]}=0 or training.gp_weight=0"
        )
    if training.loss == "wgan" and not penalties and not config.model.spectral_norm:
        raise ValueError(
            "training.loss=wgan: has no minimum without a penalty or norm that bounds D's slope; set "
            "training.gp_weight=10 (WGAN-GP), training.r1_gamma or model.spectral_norm=true"
        )
    if training.drift_weight and training.loss not in ("wgan", "hinge"):
        raise ValueError(
            f"training.drift_weight={training.drift_weight:g} with training.loss={training.loss}: the drift term is "
            "for losses that leave the origin of scores open; set it to 0 or use loss wgan or hinge"
        )
    if training.penalty_interval > 1 and not penalties:
        raise ValueError(
            f"training.penalty_interval={training.penalty_interval}: no gradient penalty is on; set it to 1, or set "
            "training.r1_gamma, r2_gamma or gp_weight"
        )


def _check_rotation(config: UncheckedConfig) -> None:
    rotation = config.training.rotation
    if rotation is None:
        return
    for r in config.resolutions:
        batch, workers = config.batch_at(r), config.most_workers_at(r)  # others of a range divide it, too
        count = rotation.fraction * batch
        whole = abs(count - round(count)) <= 0.01  # 0.333 may stand for a third
        if not whole or round(count) < 1 or round(count) % workers:
            parts = Fraction(rotation.fraction).limit_denominator(1000)
            raise ValueError(
                f"training.rotation.fraction={rotation.fraction:g} of the {batch} images of a batch at {r}x{r} is "
                f"{count:g} for {workers} worker(s): each must rotate the same whole number of images, at least one; "
                f"use a multiple of {workers}/{batch}, or a batch that is a multiple of {parts.denominator * workers}"
            )


def _check_precision(config: UncheckedConfig) -> None:
    on_cpus = [r for r in config.resolutions if not config.workers_at(r).gpus_per_worker]
    if config.training.cuda_graphs is True and on_cpus:
        raise ValueError(
            f"training.cuda_graphs=true needs a GPU, but ray.gpus_per_worker is 0 at {on_cpus[0]}x{on_cpus[0]}; "
            "set ray.gpus_per_worker=1, or use auto"
        )
    if config.training.precision == "fp16" and on_cpus:
        raise ValueError(
            f"training.precision=fp16 needs a GPU, but ray.gpus_per_worker is 0 at {on_cpus[0]}x{on_cpus[0]}; "
            "set ray.gpus_per_worker=1, or use bf16 or fp32"
        )
    if config.training.precision == "tf32" and len(on_cpus) == len(config.resolutions):
        raise ValueError(
            "training.precision=tf32 needs a GPU, but ray.gpus_per_worker is 0, and CPUs would compute in fp32; set "
            "ray.gpus_per_worker=1, or use fp32 or bf16"
        )


def _check_labels(config: UncheckedConfig) -> None:
    if config.data.labels != "none":
        return
    if config.model.conditional:
        raise ValueError(
            "model.conditional=true needs labels but data.labels=none; set data.labels=auto or model.conditional=false"
        )
    if config.snapshots.probe_kimg:
        raise ValueError(
            "snapshots.probe_kimg needs labels but data.labels=none; set data.labels=auto or leave out "
            "snapshots.probe_kimg"
        )


def _check_metrics(config: UncheckedConfig) -> None:
    if "transfer" in config.evaluation.metrics:
        raise ValueError(
            "evaluation.metrics has transfer, which measures a style transfer; take it out, or add the section transfer to "
            "train one"
        )
    without = {metric: what for metric in config.evaluation.metrics if (what := lacking(metric, config.model))}
    if without:
        rest = ",".join(metric for metric in config.evaluation.metrics if metric not in without)
        raise ValueError(
            f"evaluation.metrics has {', '.join(without)}, but G has {' and '.join(dict.fromkeys(without.values()))}; set "
            f"evaluation.metrics=[{rest}]{'' if config.model.is_resnet else ' or model.styles=true'}"
        )


def _check_devices_of_metrics(config: UncheckedConfig) -> None:
    precision, final = config.evaluation.precision, config.data.resolution
    if precision in ("tf32", "fp16") and not config.workers_at(final).gpus_per_worker:
        raise ValueError(
            f"evaluation.precision={precision} needs a GPU, but ray.gpus_per_worker is 0 at {final}x{final}, where the "
            "model is measured; set ray.gpus_per_worker=1, or use bf16 or fp32"
        )
    on_gpus = [r for r in config.resolutions if config.workers_at(r).gpus_per_worker]
    if config.snapshots.metrics_device == "cuda" and not on_gpus:
        raise ValueError(
            "snapshots.metrics_device=cuda needs a GPU, but ray.gpus_per_worker is 0 in every stage; set "
            "ray.gpus_per_worker=1, or snapshots.metrics_device=cpu"
        )


def _check_quick_metrics(config: UncheckedConfig) -> None:
    features, final = config.evaluation.features, config.data.resolution
    below = [r for r in config.resolutions[:-1] if at_resolution(config.snapshots.metrics_kimg, r)]
    if below and features not in KINDS_OF_FEATURES:
        raise ValueError(
            f"snapshots.metrics_kimg asks for quick metrics at {below[0]}x{below[0]}, but "
            f"evaluation.features={features} is a network for images of the last stage; measure there only "
            f"(snapshots.metrics_kimg={{4: 0, {final}: ...}}) or use classifier or rotation"
        )


def _check_grid(config: UncheckedConfig) -> None:
    side, final = config.snapshots.grid, config.data.resolution
    most = math.isqrt(MOST_PIXELS) // final
    if side > most:
        raise ValueError(
            f"snapshots.grid={side}: a grid of {side}x{side} images of {final}x{final} is too large to draw in memory; "
            f"at most {most} at this data.resolution"
        )


def _check_gate(config: UncheckedConfig) -> None:
    metric, metrics = config.registry.gate.metric, list(config.evaluation.metrics)
    measured = [value for name in metrics for value in METRICS[name].gate]
    if metrics and metric not in measured:
        raise ValueError(
            f"registry.gate.metric={metric}: not among evaluation.metrics={metrics}, which the gate knows as {measured}; "
            "add it there or gate on one of them"
        )
