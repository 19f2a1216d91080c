"""The sections of the config: every field with its meaning, and its unit where it has one.

Unknown keys are errors. Sections that say *how* a run is carried out (`storage`, `ray`, `tracking`, `snapshots`,
`registry`) are not part of a run's identity; the others are. `tree.py` joins them to a whole, `file.py` reads YAML.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, field_validator

from stylegan.config.resolutions import (
    OFFICIAL_BATCH,
    RESOLUTIONS,
    at_resolution,
    known_resolutions,
    official_batch,
    spread,
)

T = TypeVar("T")
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
]
QuickMetric = Literal["fid", "kid", "is", "pr"]
METRICS: tuple[Metric, ...] = get_args(Metric)
STYLEGAN_METRICS: tuple[Metric, ...] = (
    "fid",
    "ppl_zfull",
    "ppl_wfull",
    "ppl_zend",
    "ppl_wend",
    "separability",
)  # v1's standard set


def _batch(value: Any) -> int | Literal["auto"]:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("input should be greater than or equal to 1 and whole, or `auto` for the official table")


# A value per resolution: an entry holds from its resolution up to the next entry, e.g. {4: 128, 32: 64}.
PerResolution = Annotated[dict[int, T], Field(min_length=1), BeforeValidator(spread), AfterValidator(known_resolutions)]
Count = Annotated[int, Field(ge=1)]
Batch = Annotated[int | Literal["auto"], PlainValidator(_batch)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of every config section: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StorageConfig(Section):
    """Where everything that a run leaves behind is kept."""

    root: str = Field(
        "stylegan-data",
        description="Folder or fsspec URL (s3://bucket/path). Credentials and endpoint come from the environment.",
    )
    patience_s: float = Field(
        600,
        ge=0,
        description="How long a store that does not answer (throttling, resets, timeouts) is asked again before a step fails.",
    )
    cache_gb: float | None = Field(
        None,
        ge=0,
        description="Limit of the local copies of images under $STYLEGAN_CACHE, in GB; unset: half of the disk's free space.",
    )


class DataConfig(Section):
    """What the images are and how they become shards."""

    source: str = Field(
        description="A folder, archive or data set in a known format, local or at an fsspec URL; or `digits`, the scans in scikit-learn."
    )
    resolution: int = Field(description="Side of the final images in pixels, a power of two from 4 to 1024.")
    channels: Literal[1, 3] = Field(3, description="1 = grey, 3 = RGB; images of any mode are converted.")
    labels: Literal["auto", "none", "folder", "file"] = Field(
        "auto",
        description="auto: of label_file if it is set, else of the format, else of a label file at the top, else class folders if every "
        "image lies in one, else none. file: of the label file alone.",
    )
    label_file: str | None = Field(
        None,
        description="Path in the source, or URL, of a dataset.json (classes or attribute vectors) or a table of attributes (CSV, CelebA's "
        "list); unset: dataset.json or list_attr_celeba.txt at the top of the source.",
    )
    crop: Literal["center", "wide", "celeba"] = Field(
        "center",
        description="center: the central square. wide: the central 4:3 part on a black square, as LSUN cars. celeba: the face in aligned "
        "CelebA, 128x128.",
    )
    resize_filter: Literal["lanczos", "bicubic", "box"] = Field(
        "lanczos", description="The antialiased filter of every resize."
    )
    min_size: int = Field(0, ge=0, description="Images with a shorter side than this, in pixels, are rejected.")
    max_pixels: int = Field(
        89_478_485, ge=1, description="Images with more pixels than this are rejected before they are decoded."
    )
    duplicates: Literal["reject", "keep"] = Field(
        "reject", description="What becomes of a file with the same bytes as an earlier one."
    )
    max_rejected: int = Field(
        0, ge=0, description="The step fails when more images than this are rejected; duplicates do not count."
    )
    images_per_shard: int = Field(4096, ge=1, description="Images in one tar, at most.")
    shard_mb: int = Field(
        512, ge=1, description="Raw pixels in one tar, at most, in MB; the smaller of the two limits counts."
    )
    incremental: bool = Field(
        True,
        description="New images of a source that was sharded before become new shards beside the old; false: all are made anew.",
    )
    max_corrupt: int = Field(
        100, ge=0, description="Samples whose bytes are damaged are replaced; with more than this the step fails."
    )

    @field_validator("resolution")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value not in RESOLUTIONS:
            near = min(RESOLUTIONS, key=lambda r: abs(r - value))
            raise ValueError(f"must be a power of two from 4 to 1024; the nearest is {near}")
        return value


class ModelConfig(Section):
    """The networks; the defaults are StyleGAN v1 config F (Karras et al. 2019)."""

    latent_size: int = Field(512, ge=1, description="Dimensions of z and w.")
    mapping_layers: int = Field(8, ge=0, description="Dense layers of the mapping network; 0 makes w the normalised z.")
    mapping_fmaps: int = Field(512, ge=1, description="Width of the hidden mapping layers.")
    mapping_lrmul: float = Field(0.01, gt=0, description="Learning rate multiplier of the mapping network.")
    fmap_base: int = Field(
        8192, ge=1, description="Channels at stage s = min(fmap_base / 2^(s * fmap_decay), fmap_max)."
    )
    fmap_decay: float = Field(1.0, ge=0)
    fmap_max: int = Field(512, ge=1)
    styles: bool = Field(
        True, description="AdaIN from w in every layer; false feeds w to the first layer only (configs A, B)."
    )
    const_input: bool = Field(True, description="Learned constant at 4x4; false starts from a dense layer of w (B, C).")
    noise: bool = Field(True, description="Per-pixel noise in every layer (E, F).")
    pixel_norm: bool = Field(False, description="Pixelwise feature normalisation in g (A, B).")
    instance_norm: bool = Field(True, description="Instance normalisation before the style (C to F).")
    blur: bool = Field(True, description="[1,2,1] low-pass after upsampling in g and before downsampling in D.")
    style_mixing_prob: float = Field(0.9, ge=0, le=1, description="Share of minibatches trained with two styles (F).")
    w_avg_beta: float = Field(0.995, ge=0, le=1, description="Decay of the running average of w.")
    mbstd_group: int = Field(4, ge=1, description="Group size of the minibatch standard deviation; 1 turns it off.")
    spectral_norm: bool = Field(
        False, description="Divide every weight of D by its largest singular value (Miyato et al. 2018)."
    )
    conditional: bool = Field(False, description="Class-conditional G and D; needs labelled data.")


class StageOverride(Section):
    """Exceptions for exactly one stage; what is not given follows the schedule."""

    fade_kimg: float | None = Field(None, ge=0)
    stable_kimg: float | None = Field(None, ge=0)
    batch: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0)


class RotationConfig(Section):
    """Self-supervision of SS-GAN (Chen et al. 2019): D also tells by which multiple of 90 degrees an image was turned."""

    weight_d: float = Field(1.0, ge=0, description="beta: weight of the loss on turned reals, which trains D.")
    weight_g: float = Field(0.2, ge=0, description="alpha: weight of the loss on turned fakes, which trains G.")
    fraction: float = Field(
        0.25, gt=0, le=1, description="Share of the batch that is turned (each image by 0, 90, 180 and 270 degrees)."
    )
    decay_kimg: float | None = Field(
        None, gt=0, description="weight_g falls linearly to 0 over this many kimg of the run; unset keeps it."
    )
    only: bool = Field(
        False,
        description="Drop both GAN losses: the self-supervised baseline, a rotation classifier (`rotation_only`).",
    )

    def num_turned(self, batch: int) -> int:
        """Images of a batch that are turned, at least one."""
        return max(round(self.fraction * batch), 1)


class TrainingConfig(Section):
    """Progressive growing, losses and optimizers; 1 kimg = 1,000 real images shown to D."""

    start_resolution: int = Field(8, description="Resolution of the first stage (8 in StyleGAN, 4 in ProGAN).")
    fade_kimg: PerResolution[NotNegative] = Field({4: 600.0}, description="Length of the fade-in of a new resolution.")
    stable_kimg: PerResolution[NotNegative] = Field({4: 600.0}, description="Length of training after the fade.")
    total_kimg: float | None = Field(
        None, gt=0, description="If set, the last stage goes on until this many kimg in all."
    )
    stages: dict[int, StageOverride] = Field({}, description="Exceptions by resolution.")
    batch: PerResolution[Batch] = Field(
        {**OFFICIAL_BATCH[1]},
        description="Images per step over all workers; `auto` is the official table for the number of workers of the stage.",
    )
    max_batch_per_worker: PerResolution[Count] | None = Field(
        None,
        description="Cuts every batch to this many images for each worker; no limit below its first entry. Unset: none.",
    )
    learning_rate: PerResolution[Positive] = Field(
        {4: 0.001, 128: 0.0015, 256: 0.002, 512: 0.003}, description="Adam lr of G and D."
    )
    learning_rate_scaling: Literal["none", "sqrt", "linear"] = Field(
        "none", description="Multiply learning_rate by (batch / official batch on 8 GPUs) to the power of 0, 1/2 or 1."
    )
    minibatch_repeats: int = Field(4, ge=1, description="Steps between two looks at the schedule.")
    loss: Literal["nonsaturating", "saturating", "wgan", "hinge"] = Field(
        "nonsaturating", description="GAN loss of both players."
    )
    r1_gamma: float = Field(
        10.0, ge=0, description="R1 weight at data.resolution (at the stage it is gamma * 4^-levels below)."
    )
    r2_gamma: float = Field(0.0, ge=0, description="The same penalty on fakes.")
    gp_weight: float = Field(
        0.0, ge=0, description="WGAN-GP: weight of the gradient penalty between reals and fakes (10 in the paper)."
    )
    gp_target: float = Field(1.0, gt=0, description="WGAN-GP: the gradient norm asked for, at data.resolution.")
    drift_weight: float = Field(
        0.0, ge=0, description="WGAN-GP: weight of the squared score of reals (0.001 in ProGAN)."
    )
    penalty_interval: int = Field(
        1,
        ge=1,
        description="Steps between two gradient penalties; above 1 (StyleGAN2's lazy regularisation) they weigh as much more.",
    )
    rotation: RotationConfig | None = Field(None, description="Self-supervision by rotation; unset is off.")
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        "fp32",
        description="Of features and weights in use; statistics, losses and stored weights stay fp32. tf32 and fp16 are for GPUs.",
    )
    compile: bool = Field(
        False, description="Fuse the element-wise operations with torch.compile; needs a C++ compiler or a GPU."
    )
    adam_beta1: float = Field(0.0, ge=0, lt=1)
    adam_beta2: float = Field(0.99, ge=0, lt=1)
    adam_eps: float = Field(1e-8, gt=0)
    ema_kimg: float = Field(10.0, ge=0, description="Half-life of the generator average; 0 copies G.")
    mirror: bool = Field(False, description="Flip reals left-right with probability one half.")


class SnapshotsConfig(Section):
    """What is written while training, and how often. Changes no weight."""

    checkpoint_kimg: PerResolution[Positive] = Field(
        {4: 100.0, 64: 50.0, 256: 20.0}, description="A kill costs at most this much."
    )
    keep: int = Field(2, ge=1, description="Newest checkpoints kept in an unfinished stage.")
    log_kimg: PerResolution[Positive] = Field({4: 10.0}, description="Distance of points on the curves.")
    samples_kimg: PerResolution[Positive] = Field({4: 100.0}, description="Distance of sample grids.")
    grid: int = Field(8, ge=1, description="Rows and columns of a sample grid.")
    probe_kimg: PerResolution[Positive] | None = Field(
        None,
        description="Distance of probes of D's features by a linear classifier (the forgetting curve); needs labelled data.",
    )
    probe_images: int = Field(2000, ge=20, description="Images of a probe, half to fit and half to score.")
    metrics: tuple[QuickMetric, ...] = Field(
        ("fid",), description="Quick metrics, measured beside training on few images."
    )
    metrics_kimg: PerResolution[NotNegative] = Field({4: 0.0}, description="Distance of quick metrics; 0 is off.")
    metrics_images: int = Field(
        5000, ge=2, description="Generated images of a quick metric, and at most as many reals."
    )


class WeightsConfig(Section):
    """Files of the published networks; only `evaluation.features: inception` reads them."""

    inception: str | None = Field(
        None, description="URI of Inception-v3 (2015-12-05) as a PyTorch state dict; unset: the public file."
    )
    vgg16: str | None = Field(None, description="URI of torchvision's VGG16; unset: the public file.")
    lpips: str | None = Field(None, description="URI of the LPIPS v0.1 heads for VGG16; unset: the public file.")


class EvaluationConfig(Section):
    """Which metrics, on how many images, in which feature space."""

    metrics: tuple[Metric, ...] = Field(
        STYLEGAN_METRICS, description="pr: precision, recall, density, coverage; see README.md, Metrics."
    )
    num_images: int = Field(
        50_000, ge=2, description="Generated images for fid, kid, is, pr, and for each row of fid_mixing, truncation."
    )
    num_reals: Count | Literal["all"] = Field(
        50_000, description="Real images, the first ones of the shards: 50,000 in the paper, or all."
    )
    bootstrap: int = Field(
        16, ge=0, description="Bootstrap replicates for the 95 % interval of FID; below 2 there is none."
    )
    kid_subsets: int = Field(100, ge=2, description="Subsets that KID is averaged over.")
    kid_subset_size: int = Field(1000, ge=2, description="Images of a KID subset (no more than there are).")
    is_splits: int = Field(
        10, ge=1, description="Equal parts of the generated images that the Inception Score is averaged over."
    )
    psi: tuple[Share, ...] = Field(
        (0.3, 0.5, 0.7, 0.85, 1.0), min_length=1, description="Rows of truncation (of the first 8 layers)."
    )
    ppl_samples: int = Field(100_000, ge=2, description="Pairs for each path length.")
    ppl_epsilon: float = Field(1e-4, gt=0)
    ppl_crop: bool = Field(
        True, description="Crop to the face region before the distance, as the paper does for every data set."
    )
    separability_samples: int = Field(
        200_000, ge=4, description="Latents drawn; of each attribute the most confident half is kept."
    )
    attributes_kimg: float = Field(
        150.0, gt=0, description="Images shown to each attribute classifier (features: inception), in thousands."
    )
    features: str = Field(
        "classifier",
        description="classifier or rotation: a small network, trained on the labels of the shards or on rotations (no labels needed); the "
        "URI of a .safetensors file that either has written; inception: the networks of the published numbers.",
    )
    weights: WeightsConfig = WeightsConfig()
    seed: int = Field(0, ge=0, lt=2**32)


class RayStageOverride(Section):
    """Workers and resources of exactly one stage."""

    workers: int | None = Field(None, ge=1)
    cpus_per_worker: float | None = Field(None, gt=0)
    gpus_per_worker: float | None = Field(None, ge=0)


class RayConfig(Section):
    """Where training runs. `address` unset starts Ray on this machine, set joins that cluster."""

    address: str | None = Field(None, description="host:port of a running Ray head, or `auto`.")
    workers: int = Field(1, ge=1, description="Ray Train workers of a stage.")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    resources_per_worker: dict[str, float] = Field({}, description="Custom Ray resources.")
    max_failures: int = Field(2, ge=0, description="Restarts of a stage's workers, each from its newest checkpoint.")
    stages: dict[int, RayStageOverride] = Field({}, description="Exceptions by resolution.")


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = Field(None, description="MLflow tracking URI; unset is SQLite below a local storage.root.")
    experiment: str = Field("stylegan", min_length=1)


class GateConfig(Section):
    """When a challenger becomes champion."""

    metric: str = Field(
        "fid", description="The metric that decides, without the name of its feature space, e.g. fid, recall."
    )
    min_improvement: float = Field(
        0.0, ge=0, lt=1, description="Relative: 0.02 asks to be better than the champion by at least 2 %."
    )
    use_intervals: bool = Field(
        True, description="Ask also for a difference that the metric's 95 % intervals do not explain by chance."
    )


class RegistryConfig(Section):
    """The registered model."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 _-]*$",
        description="Name in the MLflow registry (letters, digits, blanks, _ and -); unset is the run's `name`.",
    )
    gate: GateConfig = GateConfig()


class UncheckedConfig(Section):
    """All sections of a run, and what follows from them for each stage; `tree.Config` checks that they fit together."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="Lower case letters, digits and dashes.")
    seed: int = Field(0, ge=0, lt=2**32)
    storage: StorageConfig = StorageConfig()
    data: DataConfig
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    snapshots: SnapshotsConfig = SnapshotsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()
    registry: RegistryConfig = RegistryConfig()

    @property
    def model_name(self) -> str:
        """Name in the registry."""
        return self.registry.name or self.name

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The resolutions of the stages, ascending."""
        return tuple(r for r in RESOLUTIONS if self.training.start_resolution <= r <= self.data.resolution)

    def workers_at(self, resolution: int) -> RayStageOverride:
        """Workers and resources of one stage, with every field set."""
        given = self.ray.stages.get(resolution, RayStageOverride()).model_dump(exclude_none=True)
        common = {key: getattr(self.ray, key) for key in ("workers", "cpus_per_worker", "gpus_per_worker")}
        return RayStageOverride(**(common | given))

    def batch_at(self, resolution: int) -> int:
        """Images per step over all workers in one stage."""
        batch, cap = self.uncut_batch_at(resolution), self.training.max_batch_per_worker
        if cap and resolution >= min(cap):
            return min(batch, at_resolution(cap, resolution) * (self.workers_at(resolution).workers or 1))
        return batch

    def uncut_batch_at(self, resolution: int) -> int:
        """The same before `training.max_batch_per_worker`."""
        batch = self.training.stages.get(resolution, StageOverride()).batch or at_resolution(
            self.training.batch, resolution
        )
        if batch == "auto":
            return official_batch(resolution, self.workers_at(resolution).workers or 1, self.model.mbstd_group)
        return batch

    def learning_rate_at(self, resolution: int) -> float:
        """Adam's learning rate in one stage; one given in `training.stages` is taken as it is, others are scaled with the batch."""
        given = self.training.stages.get(resolution, StageOverride()).learning_rate
        if given:
            return given
        exponent = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.training.learning_rate_scaling]
        reference = at_resolution(OFFICIAL_BATCH[8], resolution)
        return (
            at_resolution(self.training.learning_rate, resolution) * (self.batch_at(resolution) / reference) ** exponent
        )

    def kimg_at(self, resolution: int) -> tuple[float, float]:
        """Length of one stage's fade and of its stable training, in kimg; `training.total_kimg` stretches the last one."""
        training, override = self.training, self.training.stages.get(resolution, StageOverride())
        fade = 0.0
        if resolution > training.start_resolution:
            fade = at_resolution(training.fade_kimg, resolution) if override.fade_kimg is None else override.fade_kimg
        stable = (
            at_resolution(training.stable_kimg, resolution) if override.stable_kimg is None else override.stable_kimg
        )
        if resolution == self.data.resolution and training.total_kimg is not None:
            stable = max(
                training.total_kimg - sum(sum(self.kimg_at(below)) for below in self.resolutions[:-1]) - fade, 0
            )
        return fade, stable
