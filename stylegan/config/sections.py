"""The sections of the config: every key with its type, default and meaning.

The descriptions of the fields are the user's reference: `reference.py` renders them into `configs/README.md` and into
the JSON schema that editors use. After a change here run `make config-reference`.

Unknown keys are errors. The sections that say how a run is carried out (`storage`, `ray`, `tracking`, `snapshots`,
`registry`) are not part of a run's identity; the others are. `tree.py` makes the sections one checked config; `file.py`
reads it from YAML.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    field_validator,
    model_validator,
)

from stylegan.config.places import ray_in_stack, root_in_stack, tracking_in_stack
from stylegan.config.resolutions import (
    OFFICIAL_BATCH,
    RESOLUTIONS,
    at_resolution,
    known_resolutions,
    official_batch,
    spread,
    whole_keys,
)

T = TypeVar("T")
_CHECKPOINT = re.compile(r"(?:.*/)?[0-9]{4}-[0-9a-z]+/checkpoint-[0-9]{9,}/*", re.DOTALL)
Metric = Literal[
    "fid",
    "kid",
    "is",
    "pr",
    "ppl_zfull",
    "ppl_wfull",
    "ppl_zend",
    "ppl_wend",
    "separability",
    "fid_mixing",
    "truncation",
    "transfer",
]
QuickMetric = Literal["fid", "kid", "is", "pr"]
Norm = Literal["batch", "conditional_batch", "self_modulated", "instance", "conditional_instance", "adaptive_instance"]
OF_BATCH: tuple[Norm, ...] = ("batch", "conditional_batch", "self_modulated")  # whose statistics are those of a batch
# The settings of `model` that the architecture `resnet` has.
OF_RESNET = ("architecture", "norm", "width", "latent_size", "spectral_norm", "conditional")
METRICS: tuple[Metric, ...] = get_args(Metric)
# The standard set of metrics of StyleGAN v1.
STYLEGAN_METRICS: tuple[Metric, ...] = ("fid", "ppl_zfull", "ppl_wfull", "ppl_zend", "ppl_wend", "separability")
RESNET_METRICS: tuple[Metric, ...] = ("fid", "is")  # those of the papers about the architecture `resnet`


MOST_IMAGES = 10**9  # no data set, batch or evaluation has more
MOST_KIMG = 1e9
MOST_PIXELS = 2**28  # in the images of one grid, which is drawn in memory: 0.8 GB as RGB
LONGEST_NAME = 200  # characters; a run's folders are a little longer, and a file name has 255 at most


def _count_or(word: str, least: int, most: int, meaning: str) -> PlainValidator:
    """Return the validator of a whole number from `least` to `most`, or a word."""

    def check(value: Any) -> Any:
        if value == word or (type(value) is int and least <= value <= most):
            return value
        wanted = (
            f"greater than or equal to {least}" if type(value) is int and value < least else f"whole, at most {most}"
        )
        raise ValueError(f"input should be {wanted}, or `{word}` {meaning}")

    number = Annotated[int, Field(ge=least, le=most)]
    return PlainValidator(check, json_schema_input_type=number | Literal[word])


def _no_truth(value: Any) -> Any:
    """Refuse what Python takes for 0 or 1, and floats: a Literal of numbers would accept them."""
    if type(value) is not int:
        raise ValueError("input should be 1 or 3")
    return value


def _whole_above_one(value: float | None) -> float | None:
    if value is not None and value > 1 and value != int(value):
        raise ValueError("must be whole above 1: Ray shares one GPU among workers, but gives no part of a second one")
    return value


def _none_or_an_image(kimg: float) -> float:
    if 0 < kimg < 0.001:
        raise ValueError("must be 0, or at least 0.001, which is one image")
    return kimg


def _own_resources(table: dict[str, float]) -> dict[str, float]:
    for name in table:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_:./-]*", name) or len(name) > LONGEST_NAME:
            raise ValueError(f"{name!r} is no name of a resource: letters, digits, and _ : . / -")
        if name.upper() in ("CPU", "GPU"):
            raise ValueError(f"{name} is not one of your own resources; set ray.{name.lower()}s_per_worker")
    return table


# A value for each resolution: an entry holds from its resolution up to the next entry, e.g. {4: 128, 32: 64}.
PerResolution = Annotated[dict[int, T], Field(min_length=1), BeforeValidator(spread), AfterValidator(known_resolutions)]
MostImages = Annotated[int, Field(ge=1, le=MOST_IMAGES)]
Batch = Annotated[int | Literal["auto"], _count_or("auto", 1, 2**20, "for the official table")]
NumReals = Annotated[int | Literal["all"], _count_or("all", 2, MOST_IMAGES, "for every image")]
Kimg = Annotated[float, Field(ge=0, le=MOST_KIMG)]
Distance = Annotated[float, Field(ge=0.001, le=MOST_KIMG)]  # one image at least
Rate = Annotated[float, Field(gt=0, le=100)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
CPUs = Annotated[float, Field(ge=0.0001, le=10_000)]  # 0.0001: the finest share that Ray counts
GPUs = Annotated[float, Field(ge=0, le=1000), AfterValidator(_whole_above_one)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of every config section: immutable, and unknown keys are errors.

    Types are strict: text is no number, 1 is not true, 1.0 is no whole number. Only a whole number may stand for a float.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class StorageConfig(Section):
    """The storage of a run's data, checkpoints and reports. No part of a run's identity."""

    root: Annotated[str, AfterValidator(root_in_stack)] = Field(
        "stylegan-data",
        validate_default=True,
        description="Folder, or fsspec URL such as `s3://bucket/path`, for shards, checkpoints and reports. "
        "Credentials and endpoint come from the environment. A relative folder begins at `$STYLEGAN_STORAGE`, if that is "
        "set (`. infra/stack.env` does), else at the working folder.",
    )
    patience_s: float = Field(
        600,
        ge=0,
        le=7 * 86_400,
        description="Seconds for which a step waits for a store that throttles, times out or drops the connection, or "
        "for an MLflow server that does not answer. After that the step fails. 0: it fails at the first such error. At "
        "most a week.",
    )
    cache_gb: float | None = Field(
        None,
        ge=0,
        le=1e6,
        description="Size limit, in GB, of the local cache `$STYLEGAN_CACHE` of decoded images and of archives. Images "
        "that do not fit are decoded again every time; an archive that does not fit fails the step. 0: nothing is "
        "cached. `null`: `$STYLEGAN_CACHE_GB`, else half of the disk's free space.",
    )


class DataConfig(Section):
    """The images, and how they become shards."""

    source: str = Field(
        description="Folder, archive or data set in a known format, as a local path or fsspec URL; or `digits` or `photos`, "
        "the handwritten digits, and cut-outs of the two photographs, that come with scikit-learn."
    )
    resolution: int = Field(
        description="Side of the final images in pixels, a power of two from 4 to 1024.",
        json_schema_extra={"enum": list(RESOLUTIONS)},
    )
    channels: Annotated[Literal[1, 3], BeforeValidator(_no_truth)] = Field(
        3, description="Channels of the images: 1 is grey, 3 is RGB. Images of other modes are converted."
    )
    labels: Literal["auto", "none", "folder", "file"] = Field(
        "auto",
        description="Where labels come from. `auto`: `label_file` if it is set, else the format's own labels, else a "
        "label file at the top of the source, else class folders if every image is in one, else no labels. `none`: no "
        "labels. `folder`: class folders. `file`: a label file only.",
    )
    label_file: str | None = Field(
        None,
        description="Path in the source, or URL, of a label file: a `dataset.json` (classes or attribute vectors), or "
        "a table of attributes (CSV, or CelebA's list). `null`: `dataset.json` or `list_attr_celeba.txt`/`.csv` at "
        "the top of the source, if there is one.",
    )
    crop: Literal["center", "wide", "celeba"] = Field(
        "center",
        description="Part of each image that is used. `center`: the central square. `wide`: the central 4:3 part "
        "between black bars, as for LSUN cars. `celeba`: the 128x128 face region of aligned CelebA images (178x218).",
    )
    resize_filter: Literal["lanczos", "bicubic", "box"] = Field(
        "lanczos",
        description="Antialiased filter of the one resize to `resolution`. Lower resolutions are averages of its "
        "pixels.",
    )
    min_size: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Images whose shorter side is below this, in pixels, are rejected. 0: no such limit.",
    )
    max_pixels: int = Field(
        89_478_485,
        ge=1,
        le=2**40,
        description="Images with more pixels than this (width x height) are rejected before they are decoded.",
    )
    duplicates: Literal["reject", "keep"] = Field(
        "reject", description="Whether a file with the same bytes as an earlier one is rejected or kept."
    )
    max_rejected: int = Field(
        0,
        ge=0,
        le=MOST_IMAGES,
        description="Maximum number of rejected images, not counting duplicates. With more of them the step fails.",
    )
    images_per_shard: int = Field(4096, ge=1, le=MOST_IMAGES, description="Maximum number of images in one tar.")
    shard_mb: int = Field(
        512,
        ge=1,
        le=1_000_000,
        description="Maximum size of one tar, in MB of raw pixels at the final resolution. The smaller of this limit "
        "and `images_per_shard` holds.",
    )
    incremental: bool = Field(
        True,
        description="When a source that was sharded before has changed: `true` makes shards of the new and changed "
        "images only and keeps the old shards; `false` makes all shards again.",
    )
    max_corrupt: int = Field(
        100,
        ge=0,
        le=MOST_IMAGES,
        description="Maximum number of damaged samples. Training and evaluation replace each by another sample of the "
        "same label; with more of them the step fails.",
    )

    @field_validator("resolution")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value not in RESOLUTIONS:
            near = min(RESOLUTIONS, key=lambda r: abs(r - value))
            raise ValueError(f"must be a power of two from 4 to 1024; the nearest is {near}")
        return value


class ModelConfig(Section):
    """The networks G (mapping and synthesis) and D. The defaults are StyleGAN v1, config F (Karras et al. 2019).

    With `architecture: resnet` only `latent_size`, `norm`, `width`, `spectral_norm` and `conditional` have a meaning.
    """

    architecture: Literal["stylegan", "resnet"] = Field(
        "stylegan",
        description="`stylegan`: the networks of StyleGAN, which grow from stage to stage. `resnet`: those of Miyato et al. "
        "2018 for 32, 64 and 128 pixels, on which SS-GAN (Chen et al. 2019) was tried; they are trained in one stage and "
        "have no styles, no noise and no w.",
    )
    norm: Norm | None = Field(
        None,
        description="Normalisation of the `resnet` generator. Over the images of a batch: `batch`, "
        "`conditional_batch` (scale and shift of each class), `self_modulated` (scale and shift from z). Over the pixels of "
        "each image: `instance`, `conditional_instance`, `adaptive_instance` (AdaIN). `null`: `conditional_batch` if "
        "`conditional`, else `batch`. A batch is that of all workers. The average of G, which draws, takes the mean "
        "statistics of 16 batches of its own images.",
    )
    width: float = Field(
        1.0,
        gt=0,
        le=64,
        description="Channels of both `resnet` networks as a multiple of the published ones, rounded, at least 1.",
    )
    latent_size: int = Field(
        512, ge=1, le=65_536, description="Dimensions of z and of w. The published `resnet` has 128."
    )
    mapping_layers: int = Field(
        8, ge=0, le=100, description="Dense layers of the mapping network. 0: w is the normalised z (configs A and B)."
    )
    mapping_fmaps: int = Field(
        512,
        ge=1,
        le=65_536,
        description="Units of each hidden layer of the mapping network; its last layer has `latent_size`.",
    )
    mapping_lrmul: float = Field(
        0.01, gt=0, le=1000, description="Learning rate of the mapping network, as a multiple of the rate of G."
    )
    fmap_base: int = Field(
        8192,
        ge=1,
        le=2**24,
        description="Channels of G and D at resolution r: min(`fmap_base` / 2^(s * `fmap_decay`), `fmap_max`) with s = "
        "log2(r) - 1, rounded down, at least 1.",
    )
    fmap_decay: float = Field(
        1.0,
        ge=0,
        le=10,
        description="How fast channels decrease with the resolution. 1: they halve at every doubling. 0: they stay the "
        "same.",
    )
    fmap_max: int = Field(512, ge=1, le=65_536, description="Maximum number of channels, at any resolution.")
    styles: bool = Field(
        True,
        description="AdaIN: w sets the style of every layer. `false`: w feeds the first layer only (configs A and B), "
        "which needs `const_input: false`.",
    )
    const_input: bool = Field(
        True,
        description="Synthesis starts from a learned constant at 4x4. `false`: from a dense layer of w (configs A to "
        "C).",
    )
    noise: bool = Field(True, description="Per-pixel noise in every layer of G (configs E and F).")
    pixel_norm: bool = Field(
        False, description="Pixelwise feature normalisation in every layer of G (configs A and B)."
    )
    instance_norm: bool = Field(
        True, description="Instance normalisation in every layer of G, before the style (configs C to F)."
    )
    blur: bool = Field(
        True,
        description="Low-pass filter [1, 2, 1] after each upsampling in G and before each downsampling in D (configs B "
        "to F).",
    )
    style_mixing_prob: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Share of generated minibatches that mix the styles of two latents (config F). 0: no style mixing.",
    )
    w_avg_beta: float = Field(
        0.995,
        ge=0,
        le=1,
        description="Decay, per generated minibatch, of the running mean of w that truncation uses. 1: the mean stays "
        "0.",
    )
    mbstd_group: int = Field(
        4,
        ge=1,
        le=65_536,
        description="Images in a group of the minibatch standard deviation of D; every worker's share of a batch must "
        "be whole groups. 1: no minibatch standard deviation.",
    )
    spectral_norm: bool = Field(
        False, description="Divide every weight of D by its largest singular value (Miyato et al. 2018)."
    )
    conditional: bool = Field(False, description="Class-conditional G and D. Needs images with class labels.")
    label_scale: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Length of a class's embedding as a multiple of the length of z, beside which it enters the mapping "
        "network. `null`: as in StyleGAN, as long as z at first and free to grow. A small fixed one (0.2) keeps the class "
        "from drowning z, by which every class would become one repeated image; it matters where training is short.",
    )

    @property
    def is_resnet(self) -> bool:
        """Return whether these are the networks of Miyato et al. 2018."""
        return self.architecture == "resnet"

    @property
    def norm_used(self) -> Norm:
        """The normalisation of the `resnet` generator."""
        return self.norm or ("conditional_batch" if self.conditional else "batch")

    @property
    def has_styles(self) -> bool:
        """Return whether every layer of G has a style, which others can be mixed with."""
        return self.styles and not self.is_resnet

    @property
    def has_noise(self) -> bool:
        """Return whether the layers of G have noise."""
        return self.noise and not self.is_resnet

    @property
    def has_w(self) -> bool:
        """Return whether G has a w beside z, which can be truncated and projected into."""
        return not self.is_resnet

    def lacking(self, part: Literal["styles", "noise"]) -> str:
        """Return the setting by which G has no styles, or no noise."""
        return "model.architecture: resnet" if self.is_resnet else f"model.{part}: false"

    @property
    def group(self) -> int:
        """The images of which D compares a statistic: whole groups stay on one worker. 1: each image is alone."""
        return 1 if self.is_resnet else self.mbstd_group

    def identity(self) -> dict[str, Any]:
        """Return what keys and stored networks hold of this section, as JSON has it: the settings that have a meaning.

        A setting that came after version 0.1 is there only where it is used, so that earlier work is still found.
        """
        values = self.model_dump(mode="json")
        if self.is_resnet:
            return {name: values[name] for name in OF_RESNET} | {"norm": self.norm_used}
        unused = {"architecture", "norm", "width"} | ({"label_scale"} if self.label_scale is None else set())
        return {name: value for name, value in values.items() if name not in unused}


class StageOverride(Section):
    """Values for exactly one stage, by its resolution. A key that is `null` follows the schedule of `training`."""

    fade_kimg: Kimg | None = Field(
        None, description="Length of this stage's fade-in, in kimg. The first stage has none."
    )
    stable_kimg: Kimg | None = Field(
        None,
        description="Length of this stage's training after the fade-in, in kimg. `training.total_kimg` overrules it in "
        "the last stage.",
    )
    batch: int | None = Field(None, ge=1, le=2**20, description="Images per step of this stage, over all workers.")
    learning_rate: Rate | None = Field(
        None,
        description="Learning rate of this stage, used as it is: `learning_rate_scaling` does not change it.",
    )


class RotationConfig(Section):
    """Self-supervision of SS-GAN (Chen et al. 2019): D also predicts by how many quarter turns an image was rotated.

    `training.rotation: {}` turns it on with the values of the paper; `null` is off.
    """

    weight_d: Weight = Field(
        1.0, description="Weight (the paper's beta) of the rotation loss on real images, which trains D."
    )
    weight_g: Weight = Field(
        0.2, description="Weight (the paper's alpha) of the rotation loss on generated images, which trains G."
    )
    fraction: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Share of the batch that is rotated, each image by 0, 90, 180 and 270 degrees. It must give every "
        "worker the same whole number of images, at least one.",
    )
    decay_kimg: Distance | None = Field(
        None,
        description="`weight_g` falls linearly to 0 over this many kimg, counted from the start of the run. `null`: it "
        "stays constant.",
    )
    only: bool = Field(
        False,
        description="Drop both GAN losses and the gradient penalties, so that the rotation loss alone is trained: the "
        "self-supervised baseline.",
    )

    def num_turned(self, batch: int) -> int:
        """Return how many images of a batch are rotated, at least one."""
        return max(round(self.fraction * batch), 1)


class WarmStartConfig(Section):
    """Go on with a trained model on the present images: the last stage only, from the whole state of a checkpoint.

    `training.warm_start: {checkpoint: URI}` turns it on; `null` is off. G, D, the average of G and both optimizers go on, so
    the networks must be those of this config, and the classes those of the images. A checkpoint that has moved is found
    below the present `storage.root`; the last two parts of its URI alone are part of a run's identity.
    """

    checkpoint: str = Field(
        description="Folder of the checkpoint at the end of a last stage: `.../stages/0016-KEY/checkpoint-000023000`."
    )
    kimg: Distance = Field(
        1000.0, description="Length of this training, in kimg, whatever `stable_kimg` and `total_kimg` say."
    )

    @field_validator("checkpoint")
    @classmethod
    def _of_a_stage(cls, value: str) -> str:
        if not _CHECKPOINT.fullmatch(value):
            raise ValueError(
                "must be the folder of a checkpoint of a stage, as .../stages/0016-KEY/checkpoint-000023000"
            )
        return value.rstrip("/")

    @property
    def identity(self) -> str:
        """The last two parts of the URI. A stage's key is a digest of all that made it, so they name the content."""
        return "/".join(self.checkpoint.split("/")[-2:])

    @property
    def resolution(self) -> int:
        """The resolution of the checkpoint's stage."""
        return int(self.identity[:4])

    @property
    def nimg(self) -> int:
        """The images that D had been shown at the checkpoint."""
        return int(self.identity.rpartition("-")[2])


class TrainingConfig(Section):
    """Progressive growing, losses and optimizers. 1 kimg is 1,000 real images shown to D."""

    start_resolution: int = Field(
        8,
        description="Resolution of the first stage: a power of two from 4 to `data.resolution`. StyleGAN starts at 8, "
        "ProGAN at 4.",
        json_schema_extra={"enum": list(RESOLUTIONS)},
    )
    fade_kimg: PerResolution[Kimg] = Field(
        {4: 600.0},
        description="Length, in kimg, of the fade-in of each new resolution. 0: no fade-in. The first stage never has "
        "one.",
    )
    stable_kimg: PerResolution[Kimg] = Field(
        {4: 600.0}, description="Length, in kimg, of each stage's training after its fade-in."
    )
    total_kimg: Distance | None = Field(
        None,
        description="Length of the whole run in kimg: the last stage continues until it is reached. `null`: the last "
        "stage has the length that `stable_kimg` gives it.",
    )
    stages: Annotated[dict[int, StageOverride], BeforeValidator(whole_keys)] = Field(
        {}, description="Exceptions for single stages, by resolution: `{64: {batch: 16}}`."
    )
    batch: PerResolution[Batch] = Field(
        {**OFFICIAL_BATCH[1]},
        description="Images per step, over all workers. The default is the table of StyleGAN's training script for one "
        "GPU. `auto`: the script's table for the number of workers of the stage, rounded down to whole "
        "minibatch-standard-deviation groups per worker; not for a `resnet`.",
    )
    max_batch_per_worker: PerResolution[MostImages] | None = Field(
        None,
        description="Maximum number of images that go through the networks at once on one worker, for its memory. A "
        "larger share of a batch goes through in equal parts, whole minibatch-standard-deviation groups each, and their "
        "gradients are added: the same weights to rounding, in more time. Resolutions below the first entry have no "
        "limit. Not with a `model.norm` over the images of a batch. `null`: no limit.",
    )
    learning_rate: PerResolution[Rate] = Field(
        {4: 0.001, 128: 0.0015, 256: 0.002, 512: 0.003}, description="Learning rate of Adam, for G and D."
    )
    learning_rate_scaling: Literal["none", "sqrt", "linear"] = Field(
        "none",
        description="Multiply `learning_rate` by (batch / official batch on 8 GPUs)^e, with e = 0 (`none`), 1/2 "
        "(`sqrt`) or 1 (`linear`).",
    )
    minibatch_repeats: int = Field(
        4,
        ge=1,
        le=1_000_000,
        description="Steps between two schedule updates. Between them the weight of the fading resolution stays "
        "constant.",
    )
    loss: Literal["nonsaturating", "saturating", "wgan", "hinge"] = Field(
        "nonsaturating",
        description="GAN loss of G and D. `wgan` needs `gp_weight`, `r1_gamma`, `r2_gamma` or `model.spectral_norm`.",
    )
    r1_gamma: Weight = Field(
        10.0,
        description="Weight gamma of the R1 penalty, gamma / 2 times the squared norm of D's gradient at real images "
        "(Mescheder et al. 2018). It holds at `data.resolution`; a stage n doublings below uses gamma / 4^n. 0: off.",
    )
    r2_gamma: Weight = Field(
        0.0, description="Weight gamma of the R2 penalty: the same as R1 at generated images. 0: off."
    )
    gp_weight: Weight = Field(
        0.0,
        description="Weight of the gradient penalty of WGAN-GP, at points between real and generated images (10 in the "
        "paper). 0: off. Not together with `r1_gamma` or `r2_gamma`.",
    )
    gp_target: float = Field(
        1.0, gt=0, le=1e6, description="Gradient norm that `gp_weight` asks for, measured at `data.resolution`."
    )
    drift_weight: Weight = Field(
        0.0,
        description="Weight of the squared score of real images, which keeps scores near 0 (0.001 in ProGAN). 0: off. "
        "Only with the losses `wgan` and `hinge`.",
    )
    d_steps: int = Field(
        1,
        ge=1,
        le=1000,
        description="Updates of D for each update of G. A step is one update of D on one batch of real images, and every "
        "`d_steps`-th step of a stage also updates G. So 1 kimg stays 1,000 real images shown to D, whatever this is.",
    )
    penalty_interval: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="Steps between two gradient penalties. 1: they are part of every step. k > 1: every k-th step has "
        "them, as an update of their own with k times the weight (the lazy regularisation of StyleGAN2).",
    )
    rotation: RotationConfig | None = Field(
        None, description="Self-supervision by rotation (SS-GAN). `null`: off. `{}`: on, with the values of the paper."
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        "fp32",
        description="Number format of features and of weights in use. Statistics, losses, Adam and stored weights stay "
        "fp32. `tf32` and `fp16` (with dynamic loss scaling) are for GPUs. On these `tf32` and `bf16` need compute "
        "capability 8.0 (A100 and newer).",
    )
    cuda_graphs: Literal["auto"] | bool = Field(
        "auto",
        description="Record each kind of step once as a CUDA graph and replay it: the GPU no longer waits for the host to "
        "start its kernels. Changes no result. `auto`: on GPUs, unless recording fails, which is logged with the reason. "
        "`true`: it must work. `false`: off.",
    )
    compile: bool = Field(
        False,
        description="On a CPU: fuse element-wise operations with torch.compile, which needs a C++ compiler. On a GPU it "
        "does nothing: there the project's own Triton kernels fuse them, always, and torch.compile was slower than none.",
    )
    adam_beta1: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Adam: decay of the mean of the gradients, per step. 0: no momentum, as in StyleGAN.",
    )
    adam_beta2: float = Field(
        0.99, ge=0, lt=1, description="Adam: decay of the mean of the squared gradients, per step."
    )
    adam_eps: float = Field(1e-8, gt=0, le=1, description="Adam: constant added to the denominator of an update.")
    ema_kimg: Kimg = Field(
        10.0,
        description="Half-life, in kimg, of the moving average of G's weights that is evaluated and registered. 0: a "
        "copy of G.",
    )
    mirror: bool = Field(False, description="Flip each real image left-right with probability 1/2.")
    warm_start: WarmStartConfig | None = Field(
        None,
        description="Go on with the whole state of a checkpoint instead of growing new networks: `{checkpoint: URI, kimg: "
        "1000}`. `null`: new networks, through all stages.",
    )

    def identity(self, exclude: set[str]) -> dict[str, Any]:
        """Return what keys hold of this section but for some settings, as JSON has it.

        A setting that came after version 0.1 is there only where it is used, so that earlier work is still found.
        """
        values = self.model_dump(mode="json", exclude=exclude)
        return {name: value for name, value in values.items() if name != "d_steps" or value != 1}


class TransferConfig(Section):
    """Train a style transfer by AdaIN (Huang & Belongie 2017) on the images, instead of a StyleGAN.

    `transfer: {}` trains one as published; `null` trains a StyleGAN. The encoder is the network of `evaluation.features`:
    VGG16 with `inception`, else the embedded network. A tenth of the images, at most 1,000, is held out and measured by
    `evaluation.metrics: [transfer]`. `model` and `training` are of StyleGAN and must be left out. One worker trains.
    """

    kimg: Distance = Field(
        1280.0, description="Length of the training, in kimg: content images that were shown. The authors showed 1,280."
    )
    batch: int = Field(8, ge=1, le=2**20, description="Pairs of a content and a style image per step.")
    learning_rate: Rate = Field(1e-4, description="Learning rate of Adam at the first step.")
    decay: float = Field(
        5e-5, ge=0, le=1, description="The rate at step t is `learning_rate` / (1 + `decay` * t). 0: it stays."
    )
    style_weight: Weight = Field(10.0, description="Weight of the style loss beside the content loss.")
    depth: int = Field(
        3,
        ge=1,
        le=4,
        description="How often the encoder halves the images before their statistics are exchanged. 3 is relu4_1 of VGG16, "
        "as published. Less keeps more of the content; small images need less.",
    )
    style_classes: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Classes whose images are the styles, such as `[paintings]` where `data.source` has the folders "
        "`paintings` and `photos`; the images of all others are the contents. `[]`: every image is both.",
    )


class SnapshotsConfig(Section):
    """The files written during training, and how often. No part of a run's identity: none of it changes a weight.

    Distances are in kimg, counted over the whole run. Every stage also ends with a checkpoint, a point on each curve, a
    sample grid and, if they are on, a probe and quick metrics.
    """

    checkpoint_kimg: PerResolution[Distance] = Field(
        {4: 100.0, 64: 50.0, 256: 20.0},
        description="Distance of checkpoints, in kimg. A killed run loses at most this much training.",
    )
    keep: int = Field(
        2,
        ge=1,
        le=1_000_000,
        description="Newest checkpoints kept of a stage that is training. A finished stage keeps its last one.",
    )
    log_kimg: PerResolution[Distance] = Field({4: 10.0}, description="Distance of points on the curves, in kimg.")
    samples_kimg: PerResolution[Distance] = Field({4: 100.0}, description="Distance of sample grids, in kimg.")
    grid: int = Field(
        8,
        ge=1,
        le=100,
        description="Rows, and columns, of a sample grid; at most 16 at 1024x1024. A conditional model has one class in "
        "each column.",
    )
    probe_kimg: PerResolution[Distance] | None = Field(
        None,
        description="Distance, in kimg, of the points of the forgetting curve: the accuracy of a linear classifier on "
        "D's features, and on the maps of each of its blocks. Needs class labels. `null`: off.",
    )
    probe_images: int = Field(
        2000,
        ge=20,
        le=MOST_IMAGES,
        description="Images of the forgetting curve; one half fits the classifier, the other half scores it. All "
        "images, if there are fewer.",
    )
    metrics: tuple[QuickMetric, ...] = Field(
        ("fid",),
        strict=False,
        description="Quick metrics: measured beside training, on few images, if `metrics_kimg` is above 0.",
    )
    metrics_kimg: PerResolution[Annotated[Kimg, AfterValidator(_none_or_an_image)]] = Field(
        {4: 0.0}, description="Distance of quick metrics, in kimg. 0: none at these resolutions."
    )
    metrics_images: int = Field(
        5000,
        ge=2,
        le=MOST_IMAGES,
        description="Generated images of a quick metric, and the maximum number of real images it is compared with.",
    )
    metrics_device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="Where quick metrics are measured. `cpu`: on CPU cores that nothing else wants, in fp32; the GPUs are "
        "left to training. `cuda`: on the last GPU of the machine of the driver, as `evaluation.precision` "
        "says; training on the same GPU becomes slower and has less memory.",
    )


class WeightsConfig(Section):
    """Weight files of the published networks. Only `evaluation.features: inception` reads them."""

    inception: str | None = Field(
        None,
        description="Path or URL of Inception-v3 (2015-12-05) as a PyTorch state dict. `null`: the public file, "
        "downloaded once.",
    )
    vgg16: str | None = Field(
        None, description="Path or URL of torchvision's VGG16. `null`: the public file, downloaded once."
    )
    lpips: str | None = Field(
        None, description="Path or URL of the LPIPS v0.1 heads for VGG16. `null`: the public file, downloaded once."
    )


class EvaluationConfig(Section):
    """The metrics, their numbers of images, and the network that sees them. The counts are the paper's."""

    metrics: tuple[Metric, ...] = Field(
        STYLEGAN_METRICS,
        strict=False,
        description="Metrics of the finished model. `fid`, `kid`: distance of the two sets of images. `is`: Inception "
        "Score. `pr`: precision, recall, density and coverage. `ppl_*`: perceptual path length in z or w, over full "
        "paths or their ends. `separability`: linear separability of attributes. `fid_mixing`, `truncation`: curves "
        "over mixed latents and over `psi`. `transfer`: losses of a style transfer, and only of one. `[]`: nothing is "
        "measured. With `model.architecture: resnet` the default is `[fid, is]`, and what needs a w cannot be measured.",
    )
    num_images: int = Field(
        50_000,
        ge=2,
        le=MOST_IMAGES,
        description="Generated images for `fid`, `kid`, `is` and `pr`, and for each point of `fid_mixing` and "
        "`truncation`; pairs of held-out images for `transfer`.",
    )
    num_reals: NumReals = Field(
        50_000,
        description="Real images to compare with: this many from the start of the shards, whose order is random. "
        "`all`: every image.",
    )
    bootstrap: int = Field(
        16,
        ge=0,
        le=100_000,
        description="Groups of generated images that are left out in turn for the 95 % interval of FID (a jackknife). "
        "0 or 1: no interval.",
    )
    kid_subsets: int = Field(100, ge=2, le=1_000_000, description="Random subsets that KID is averaged over.")
    kid_subset_size: int = Field(
        1000,
        ge=2,
        le=1_000_000,
        description="Images of each KID subset, on either side. All images, if there are fewer.",
    )
    is_splits: int = Field(
        10,
        ge=1,
        le=1_000_000,
        description="Equal parts of the generated images that the Inception Score is averaged over.",
    )
    psi: tuple[Share, ...] = Field(
        (0.3, 0.5, 0.7, 0.85, 1.0),
        min_length=1,
        max_length=1000,
        strict=False,
        description="Points of the `truncation` curve: w is scaled by psi around its mean in the first 8 layers. 1: no "
        "truncation.",
    )
    ppl_samples: int = Field(100_000, ge=2, le=MOST_IMAGES, description="Pairs of images for each path length.")
    ppl_epsilon: float = Field(
        1e-4,
        gt=0,
        le=1,
        description="Step between the two images of a pair, as a share of the path between two latents.",
    )
    ppl_crop: bool = Field(
        True,
        description="Crop the images of `ppl_*` to the face region, as the paper does for every data set. `false`: "
        "whole images.",
    )
    separability_samples: int = Field(
        200_000,
        ge=4,
        le=MOST_IMAGES,
        description="Latents for `separability`. Of each attribute the half with the most confident answers is used.",
    )
    attributes_kimg: float = Field(
        150.0,
        ge=0.001,
        le=MOST_KIMG,
        description="Training of each attribute classifier, in thousands of images. Only with `features: inception`.",
    )
    features: str = Field(
        "classifier",
        description="Network that sees the images. `classifier`: a small network trained on the labels of the shards. "
        "`rotation`: the same, trained to tell rotations apart; needs no labels. `inception`: the networks of the "
        "published numbers. Else the path or URL of a `.safetensors` file that `classifier` or `rotation` has "
        "written.",
    )
    weights: WeightsConfig = WeightsConfig()
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        "fp32",
        description="Number format in which the generator draws the images that are measured. w, path lengths and the "
        "networks that measure stay fp32. Part of the protocol: values of different formats never compare. The others are "
        "for speed; `tf32` and `fp16` are for GPUs.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of all random numbers of an evaluation: latents, noise, subsets and the feature "
        "networks it trains.",
    )

    def identity(self) -> dict[str, Any]:
        """Return what keys and protocols hold of this section, as JSON has it.

        A setting that came after version 0.1 is there only where it is used, so that earlier work is still found.
        """
        values = self.model_dump(mode="json")
        return {name: value for name, value in values.items() if name != "precision" or value != "fp32"}


AcceleratorType = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)]
LabelSelector = dict[
    Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")],
    # To Ray a space after a comma would be a part of the next value.
    Annotated[str, Field(pattern=r"^[^\x00-\x1f]+$"), AfterValidator(lambda selector: selector.replace(" ", ""))],
]


class WorkerRange(Section):
    """As many workers of a stage as the cluster has room for, within bounds; they become more or fewer while it trains."""

    min: int = Field(ge=1, le=10_000, description="Fewest workers that a stage trains with.")
    max: int = Field(ge=1, le=10_000, description="Most workers that a stage trains with.")


def _number_or_range(workers: Any) -> str:
    return "[range]" if isinstance(workers, (dict, WorkerRange)) else "[number]"  # in brackets: no part of a key


Workers = Annotated[
    Annotated[int, Field(ge=1, le=10_000), Tag("[number]")] | Annotated[WorkerRange, Tag("[range]")],
    Discriminator(_number_or_range),
]


class RayStageOverride(Section):
    """Workers and resources of exactly one stage, by its resolution. A key that is `null` follows `ray`."""

    workers: Workers | None = Field(None, description="Workers of this stage: a number, or `{min: 2, max: 8}`.")
    cpus_per_worker: CPUs | None = Field(None, description="CPU cores of each worker of this stage.")
    gpus_per_worker: GPUs | None = Field(None, description="GPUs of each worker of this stage. 0: it trains on CPUs.")
    accelerator_type: AcceleratorType | None = Field(None, description="Model of the GPUs of this stage.")
    label_selector: LabelSelector | None = Field(None, description="Labels of the nodes of this stage.")


class RayConfig(Section):
    """Ray: the workers that train, and their resources.

    No part of a run's identity, except where the number of workers decides a batch: `training.batch: auto`.
    """

    address: Annotated[str | None, BeforeValidator(ray_in_stack)] = Field(
        None,
        validate_default=True,
        pattern=r"^(auto|local|(ray://)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5})$",
        description="Ray cluster to join: `host:port` of its head, or `auto` for the one that this machine belongs to. "
        "`null`: `$STYLEGAN_RAY_ADDRESS`, else start Ray on this machine, as `local` always does.",
    )
    workers: Workers = Field(
        1,
        description="Workers of a stage; each trains on an equal share of every batch. `{min: 2, max: 8}`: as many as the "
        "cluster has room for at any time, of the numbers that divide the batch; the result is the same but for rounding.",
    )
    cpus_per_worker: CPUs = Field(
        1, description="CPU cores that Ray reserves for each worker, which are also its threads."
    )
    gpus_per_worker: GPUs = Field(
        0,
        description="GPUs that Ray reserves for each worker. 0: it trains on CPUs. Below 1: workers share a GPU, and "
        "exchange gradients through the machine's memory.",
    )
    resources_per_worker: Annotated[
        dict[str, Annotated[float, Field(ge=0, le=1e15)]], AfterValidator(_own_resources)
    ] = Field(
        {},
        description="Custom Ray resources that each worker reserves, amounts by name: `{fast: 1}`.",
    )
    accelerator_type: AcceleratorType | None = Field(
        None,
        description="Model of the GPUs, as Ray names it: `A100`, `H100`. Workers start on nodes with it only. `null`: any, "
        "but one model for all workers of a stage.",
    )
    label_selector: LabelSelector = Field(
        {},
        description="Labels that the nodes of the workers must have, as Ray's label selectors: "
        "`{ray.io/market-type: spot, region: in(eu-1, eu-2)}`.",
    )
    wait_s: float = Field(
        1800.0,
        ge=0,
        le=7 * 86_400,
        description="Seconds that a stage on a cluster waits for nodes with room for its workers, so that an autoscaler "
        "can bring them. A Ray on this machine is not waited for.",
    )
    stop_grace_s: float = Field(
        30.0,
        ge=1,
        le=3600,
        description="Seconds that a run which is stopped may take for its last checkpoint and a clean end. It is killed "
        "after that; at most the work since the newest checkpoint is lost.",
    )
    max_failures: int = Field(
        2,
        ge=0,
        le=1_000_000,
        description="How often the workers of a stage are started again after one was lost, each time from the newest "
        "checkpoint. An error that would come again ends the step at once. 0: never.",
    )
    stages: Annotated[dict[int, RayStageOverride], BeforeValidator(whole_keys)] = Field(
        {}, description="Exceptions for single stages, by resolution: `{8: {workers: 1}}`."
    )

    @field_validator("address")
    @classmethod
    def _not_local(cls, address: str | None) -> str | None:
        """Return None for Ray's own word for a Ray on this machine."""
        return None if address == "local" else address

    def speed_settings(self) -> dict[str, Any]:
        """Return what the speed of a stage depends on, as JSON has it.

        A setting that came after version 0.1 is there only where it is used, so that measured speeds stay known.
        """
        values = self.model_dump(mode="json", exclude={"wait_s", "stop_grace_s"})
        for section in (values, *values["stages"].values()):
            for name in ("accelerator_type", "label_selector"):
                if not section[name]:
                    del section[name]
        return values


class TrackingConfig(Section):
    """MLflow. No part of a run's identity."""

    uri: Annotated[str | None, AfterValidator(tracking_in_stack)] = Field(
        None,
        validate_default=True,
        description="MLflow tracking URI: `http://...`, `sqlite:///...` or another database. `null`: "
        "`$STYLEGAN_TRACKING_URI`, else a SQLite file below `storage.root`, or below the working folder if `storage.root` "
        "is remote.",
    )
    experiment: str = Field(
        "stylegan",
        max_length=256,  # of the column in MLflow's database
        pattern=r"^[^\x00-\x20\x7f]([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?$",
        description="Name of the MLflow experiment, without blanks at its ends.",
    )


class GateConfig(Section):
    """When a new version of the model becomes champion. Another gate judges the version again."""

    metric: str = Field(
        "fid",
        pattern=r"^[a-z0-9_]+$",
        max_length=LONGEST_NAME,
        description="Metric that decides, without the name of its network: `fid`, `recall`. It must be among "
        "`evaluation.metrics`.",
    )
    min_improvement: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Improvement that is needed, relative to the champion's value: 0.02 is 2 %. 0: any improvement is "
        "enough.",
    )
    use_intervals: bool = Field(
        True,
        description="Also require a difference that the 95 % intervals of the two values do not explain by chance. A "
        "version without an interval is not promoted while the champion has one.",
    )


class RegistryConfig(Section):
    """The registered model. No part of a run's identity; another name registers the model again."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9 _-]*[A-Za-z0-9_-])?$",  # MLflow refuses / : . % and quotes
        max_length=LONGEST_NAME,
        description="Name in the MLflow registry: letters, digits, blanks, _ and -. `null`: the `name` of the config.",
    )
    gate: GateConfig = GateConfig()


class RetrainConfig(Section):
    """When scheduled retraining trains, from which weights it starts, and whom it tells. No part of a run's identity."""

    min_new_images: int = Field(
        1,
        ge=0,
        le=MOST_IMAGES,
        description="Fewest new or changed images, since the newest version of the model was trained, for which it is "
        "trained again.",
    )
    min_new_share: Share = Field(
        0.0,
        description="Fewest such images as a share of those that the newest version was trained on. Both must be met.",
    )
    max_age: str | None = Field(
        None,
        pattern=r"^[0-9]{1,6}(\.[0-9]{1,3})?[mhdw]$",
        description="Age of the newest version after which fewer new images are enough: `12h`, `30d`, `8w`. With `start: "
        "champion` none are needed. `null`: never.",
    )
    start: Literal["scratch", "champion", "auto"] = Field(
        "auto",
        description="Weights that a retraining starts from. `scratch`: new ones, through all stages. `champion`: G, D, the "
        "average of G and both optimizers of the champion, at the last stage only, for `warm_kimg`. `auto`: the champion "
        "where it can be continued, else `scratch`; the run says why.",
    )
    warm_kimg: Distance = Field(
        1000.0, description="Length, in kimg, of a training that starts from the champion, whatever the stages are."
    )
    drift_kid: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Threshold of the drift: the kernel distance (KID) between the new images and those of the champion, in "
        "the network of `evaluation.features`. It counts once the whole 95 % interval is above it. `null`: none.",
    )
    on_drift: Literal["log", "train", "hold"] = Field(
        "log",
        description="What a drift above `drift_kid` does. `log`: nothing more. `train`: train also for fewer new images. "
        "`hold`: train nothing until somebody has looked, and set another threshold or `log`.",
    )
    notify: tuple[str, ...] = Field(
        (),
        strict=False,
        exclude=True,  # they hold secrets: neither MLflow nor the copy of the config in storage has them
        description="Apprise URLs that are told of promotions, rejections, failures and crashes: `mailto://...`, "
        "`slack://...`. `$NAME` stands for the URLs in an environment variable, which keeps secrets out of this file.",
    )
    notify_skips: bool = Field(False, description="Tell them also of checks after which nothing was trained.")


class RetentionConfig(Section):
    """What `stylegan gc` keeps, also after each scheduled retraining. No part of a run's identity.

    What versions with an alias, the newest versions and running work need is always kept, and all of other models.
    """

    versions: int = Field(5, ge=1, le=1_000_000, description="Newest versions of the model that are kept.")
    runs: int = Field(
        10, ge=0, le=1_000_000, description="Newest runs of the model that are kept, beside those of kept versions."
    )
    days: float | None = Field(
        None,
        ge=0,
        le=100_000,
        description="Everything younger than this many days is kept, too. `null`: age protects nothing.",
    )
    max_gib: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="Size of `storage.root`, in GiB, from which on things are deleted, the oldest first, down to this size. "
        "`null`: everything that is not kept is deleted.",
    )
    grace_days: float = Field(
        1.0,
        ge=0,
        le=100_000,
        description="Days between the mark and the deletion. What is used again in between is kept. 0 deletes at once what "
        "is older than an hour.",
    )
    automatic: bool = Field(False, description="Clean up after each scheduled retraining.")


class UncheckedConfig(Section):
    """All sections of a run, and the values of each stage that follow from them.

    `tree.Config` also checks that the values fit together.
    """

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        max_length=LONGEST_NAME,
        description="Lower case letters, digits and dashes: the first part of the run id, and the name of the "
        "registered model.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of all random numbers of training: first weights, order of the images, latents and noise.",
    )
    storage: StorageConfig = StorageConfig()
    data: DataConfig
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    transfer: TransferConfig | None = Field(
        None, description="Train a style transfer instead of a StyleGAN. `null`: a StyleGAN. `{}`: on, as published."
    )
    snapshots: SnapshotsConfig = SnapshotsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()
    registry: RegistryConfig = RegistryConfig()
    retrain: RetrainConfig = RetrainConfig()
    retention: RetentionConfig = RetentionConfig()

    @model_validator(mode="before")
    @classmethod
    def _with_places(cls, values: Any) -> Any:
        """Add the sections whose defaults the environment may give: a default that was made at import would not know it."""
        return {"storage": {}, "tracking": {}, "ray": {}} | values if isinstance(values, dict) else values

    @model_validator(mode="before")
    @classmethod
    def _with_metrics(cls, values: Any) -> Any:
        """Add the metrics of a `resnet` that names none: those of StyleGAN need a w."""
        sections = values if isinstance(values, dict) else {}
        model, evaluation = sections.get("model"), sections.get("evaluation", {})
        is_resnet = isinstance(model, dict) and model.get("architecture") == "resnet"
        if not is_resnet or not isinstance(evaluation, dict):
            return values
        return values | {"evaluation": {"metrics": RESNET_METRICS} | evaluation}

    def identity(self, exclude: set[str]) -> dict[str, Any]:
        """Return what digests of a whole config hold of it but for some sections, as JSON has it.

        A setting that came with the architecture `resnet` is there only where it is used, so that earlier work is still found.
        """
        model = {"label_scale": self.model.label_scale} | self.model.identity()  # these digests always had it
        values = {"model": model, "training": self.training.identity(set())}
        return self.model_dump(mode="json", exclude=exclude | values.keys()) | values

    @property
    def model_name(self) -> str:
        """The name of the model in the registry."""
        return self.registry.name or self.name

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The resolutions of the stages, ascending. A warm start, a style transfer and `resnet` have the last one only."""
        grows = self.training.warm_start is None and self.transfer is None
        return self.grown_resolutions if grows else (self.data.resolution,)

    @property
    def grown_resolutions(self) -> tuple[int, ...]:
        """The resolutions through which new networks grow, ascending; `resnet` has the last one only."""
        if self.model.is_resnet:
            return (self.data.resolution,)
        return tuple(r for r in RESOLUTIONS if self.training.start_resolution <= r <= self.data.resolution)

    def workers_at(self, resolution: int) -> RayStageOverride:
        """Return the workers and resources of one stage; of its fields only `accelerator_type` may be None."""
        given = self.ray.stages.get(resolution, RayStageOverride()).model_dump(exclude_none=True)
        common = {key: getattr(self.ray, key) for key in RayStageOverride.model_fields}
        return RayStageOverride(**(common | given))

    def worker_counts_at(self, resolution: int) -> tuple[int, ...]:
        """Return the numbers of workers that one stage may have, ascending: one, or those of a range that divide its batch.

        A number that is given is returned as it is; a range may have no such number.
        """
        workers = self.workers_at(resolution).workers or 1
        if isinstance(workers, int):
            return (workers,)
        return tuple(n for n in range(workers.min, workers.max + 1) if self.divides_among(n, resolution))

    def most_workers_at(self, resolution: int) -> int:
        """Return the most workers that one stage may have."""
        return max(self.worker_counts_at(resolution), default=1)

    def divides_among(self, workers: int, resolution: int) -> bool:
        """Return whether a batch of one stage divides among so many workers.

        Each has equally many images, whole minibatch-stddev groups, and equally many images that `training.rotation` turns.
        """
        batch, rotation = self.batch_at(resolution), self.training.rotation
        if self.transfer:
            return workers == 1
        share, members = batch // workers, min(self.model.group, batch)
        turned = rotation.num_turned(batch) if rotation else 0
        return batch % workers == 0 and turned % workers == 0 and (workers == 1 or share % members == 0)

    def takes_official_batch(self, resolution: int) -> bool:
        """Return whether the batch of one stage is `auto`: the published one for its number of workers."""
        return self.transfer is None and self._given_batch(resolution) == "auto"

    def _given_batch(self, resolution: int) -> Any:
        given = self.training.stages.get(resolution, StageOverride()).batch
        return given or at_resolution(self.training.batch, resolution)

    def batch_at(self, resolution: int) -> int:
        """Return the images per step of one stage, over all workers."""
        if self.transfer:
            return self.transfer.batch
        batch: Any = self._given_batch(resolution)
        if batch == "auto":
            workers = self.workers_at(resolution).workers or 1
            most = workers if isinstance(workers, int) else workers.max  # a config with such a range is refused
            return official_batch(resolution, most, self.model.group)
        return int(batch)

    def parts_at(self, resolution: int, workers: int | None = None) -> int:
        """Return in how many equal parts a worker's share of a batch goes through the networks in one stage.

        As few as `training.max_batch_per_worker` allows. Every part has whole minibatch-stddev groups, and the same
        number of images that `training.rotation` turns. `workers` takes the place of the configured number.
        """
        limits, rotation, batch = self.training.max_batch_per_worker, self.training.rotation, self.batch_at(resolution)
        if not limits or resolution < min(limits):
            return 1
        workers, limit = workers or self.most_workers_at(resolution), at_resolution(limits, resolution)
        share, groups = batch // workers, batch // workers // min(self.model.group, batch)
        turned = rotation.num_turned(batch) // workers if rotation else 0
        possible = [n for n in range(1, max(groups, 1) + 1) if groups % n == 0 and turned % n == 0]
        return next((n for n in possible if share // n <= limit), possible[-1])

    def learning_rate_at(self, resolution: int) -> float:
        """Return Adam's learning rate in one stage.

        A rate in `training.stages` is used as it is. Others are scaled with the batch, as `learning_rate_scaling` says. That
        of a style transfer is the one of its first step.
        """
        if self.transfer:
            return self.transfer.learning_rate
        given = self.training.stages.get(resolution, StageOverride()).learning_rate
        if given:
            return given
        exponent = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.training.learning_rate_scaling]
        reference = at_resolution(OFFICIAL_BATCH[8], resolution)
        rate = at_resolution(self.training.learning_rate, resolution)
        return rate * (self.batch_at(resolution) / reference) ** exponent

    def kimg_at(self, resolution: int) -> tuple[float, float]:
        """Return the lengths of one stage's fade-in and of its training after that, in kimg.

        The first stage has no fade-in. `training.total_kimg` sets the length of the last stage, and a warm start and a style
        transfer their own.
        """
        if self.transfer:
            return 0.0, self.transfer.kimg
        if self.training.warm_start:
            return 0.0, self.training.warm_start.kimg
        training, override = self.training, self.training.stages.get(resolution, StageOverride())

        # Fade-in.
        fade = 0.0
        if resolution > training.start_resolution and not self.model.is_resnet:
            fade = at_resolution(training.fade_kimg, resolution) if override.fade_kimg is None else override.fade_kimg

        # Training after the fade-in: of the last stage, what is left of the whole run.
        stable = override.stable_kimg
        if stable is None:
            stable = at_resolution(training.stable_kimg, resolution)
        if resolution == self.data.resolution and training.total_kimg is not None:
            below = sum(sum(self.kimg_at(lower)) for lower in self.resolutions[:-1])
            stable = max(training.total_kimg - below - fade, 0)
        return fade, stable
