"""The one config tree, checked before anything runs. `stylegan.config_file` reads it from YAML.

Every field states its meaning, and its unit where it has one. Unknown keys are errors. Sections that say *how* a run is
carried out (`storage`, `ray`, `tracking`, `snapshots`, `registry`) are not part of a run's identity; the others are.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

T = TypeVar("T")
Metric = Literal["fid", "ppl_zfull", "ppl_wfull", "ppl_zend", "ppl_wend", "separability"]
METRICS: tuple[Metric, ...] = get_args(Metric)
RESOLUTIONS = tuple(2**k for k in range(2, 11))


def _spread(value: Any) -> Any:
    """A plain value stands for all resolutions: `8` becomes `{4: 8}`."""
    return value if isinstance(value, dict) else {4: value}


def _known_resolutions(table: dict[int, Any]) -> dict[int, Any]:
    unknown = [key for key in table if key not in RESOLUTIONS]
    if unknown:
        raise ValueError(f"{unknown[0]} is no resolution; the keys are powers of two from 4 to 1024")
    return table


# A value per resolution: an entry holds from its resolution up to the next entry, e.g. {4: 128, 32: 64}.
PerResolution = Annotated[dict[int, T], Field(min_length=1), BeforeValidator(_spread), AfterValidator(_known_resolutions)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def at_resolution(table: dict[int, T], resolution: int) -> T:
    """The entry of the largest key that is not above `resolution` (the smallest entry below the first key)."""
    keys = [key for key in table if key <= resolution]
    return table[max(keys) if keys else min(table)]


class Section(BaseModel):
    """Base of every config section: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StorageConfig(Section):
    """Where everything that a run leaves behind is kept."""

    root: str = Field(
        "stylegan-data", description="Folder or fsspec URL (s3://bucket/path). Credentials and endpoint come from the environment."
    )


class DataConfig(Section):
    """What the images are and how they become shards."""

    source: str = Field(description="A folder, a .zip, an fsspec URL of either, or `digits` (the scans inside scikit-learn).")
    resolution: int = Field(description="Side of the final images in pixels, a power of two from 4 to 1024.")
    channels: Literal[1, 3] = Field(3, description="1 = grey, 3 = RGB; images of any mode are converted.")
    labels: Literal["auto", "none", "folder", "dataset.json"] = Field(
        "auto", description="auto: dataset.json if the source has one, else class folders if every image lies in one, else none."
    )
    max_rejected: int = Field(0, ge=0, description="The step fails when more images than this cannot be read.")
    resize_filter: Literal["lanczos", "bicubic", "box"] = Field("lanczos", description="The antialiased filter of every resize.")
    images_per_shard: int = Field(4096, ge=1, description="Images in one tar.")

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
    fmap_base: int = Field(8192, ge=1, description="Channels at stage s = min(fmap_base / 2^(s * fmap_decay), fmap_max).")
    fmap_decay: float = Field(1.0, ge=0)
    fmap_max: int = Field(512, ge=1)
    styles: bool = Field(True, description="AdaIN from w in every layer; false feeds w to the first layer only (configs A, B).")
    const_input: bool = Field(True, description="Learned constant at 4x4; false starts from a dense layer of w (B, C).")
    noise: bool = Field(True, description="Per-pixel noise in every layer (E, F).")
    pixel_norm: bool = Field(False, description="Pixelwise feature normalisation in g (A, B).")
    instance_norm: bool = Field(True, description="Instance normalisation before the style (C to F).")
    blur: bool = Field(True, description="[1,2,1] low-pass after upsampling in g and before downsampling in D.")
    style_mixing_prob: float = Field(0.9, ge=0, le=1, description="Share of minibatches trained with two styles (F).")
    w_avg_beta: float = Field(0.995, ge=0, le=1, description="Decay of the running average of w.")
    mbstd_group: int = Field(4, ge=1, description="Group size of the minibatch standard deviation; 1 turns it off.")
    conditional: bool = Field(False, description="Class-conditional G and D; needs labelled data.")


class StageOverride(Section):
    """Exceptions for exactly one stage; what is not given follows the schedule."""

    fade_kimg: float | None = Field(None, ge=0)
    stable_kimg: float | None = Field(None, ge=0)
    batch: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0)


class TrainingConfig(Section):
    """Progressive growing, losses and optimizers; 1 kimg = 1,000 real images shown to D."""

    start_resolution: int = Field(8, description="Resolution of the first stage (8 in StyleGAN, 4 in ProGAN).")
    fade_kimg: PerResolution[NotNegative] = Field({4: 600.0}, description="Length of the fade-in of a new resolution.")
    stable_kimg: PerResolution[NotNegative] = Field({4: 600.0}, description="Length of training after the fade.")
    total_kimg: float | None = Field(None, gt=0, description="If set, the last stage goes on until this many kimg in all.")
    stages: dict[int, StageOverride] = Field({}, description="Exceptions by resolution.")
    batch: PerResolution[Count] = Field({4: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4}, description="Images per step over all workers.")
    learning_rate: PerResolution[Positive] = Field({4: 0.001, 128: 0.0015, 256: 0.002, 512: 0.003}, description="Adam lr of G and D.")
    minibatch_repeats: int = Field(4, ge=1, description="Steps between two looks at the schedule.")
    r1_gamma: float = Field(10.0, ge=0, description="R1 weight at data.resolution (at the stage it is gamma * 4^-levels below).")
    adam_beta1: float = Field(0.0, ge=0, lt=1)
    adam_beta2: float = Field(0.99, ge=0, lt=1)
    adam_eps: float = Field(1e-8, gt=0)
    ema_kimg: float = Field(10.0, ge=0, description="Half-life of the generator average; 0 copies G.")
    mirror: bool = Field(False, description="Flip reals left-right with probability one half.")


class SnapshotsConfig(Section):
    """What is written while training, and how often. Changes no weight."""

    checkpoint_kimg: PerResolution[Positive] = Field({4: 100.0, 64: 50.0, 256: 20.0}, description="A kill costs at most this much.")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept in an unfinished stage.")
    log_kimg: PerResolution[Positive] = Field({4: 10.0}, description="Distance of points on the curves.")
    samples_kimg: PerResolution[Positive] = Field({4: 100.0}, description="Distance of sample grids.")
    grid: int = Field(8, ge=1, description="Rows and columns of a sample grid.")


class EvaluationConfig(Section):
    """Which metrics, on how many images, in which feature space."""

    metrics: tuple[Metric, ...] = METRICS
    num_images: int = Field(50_000, ge=2, description="Generated images, and at most as many reals, for FID.")
    ppl_samples: int = Field(100_000, ge=2, description="Pairs for each path length.")
    ppl_epsilon: float = Field(1e-4, gt=0)
    ppl_crop: bool = Field(True, description="Crop to the face region before the distance, as the paper does for every data set.")
    separability_samples: int = Field(200_000, ge=4, description="Latents drawn; the most confident half is kept.")
    features: str = Field(
        "classifier",
        description="classifier: trained on the labels of the shards; rotation: the same network trained to tell rotations (no labels "
        "needed); or the URI of a .safetensors file that either has written.",
    )
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

    metric: str = Field("fid", description="The metric that decides, without the name of its feature space; lower is better.")
    min_improvement: float = Field(0.0, ge=0, lt=1, description="Relative: 0.02 asks for a value at least 2 % below the champion's.")


class RegistryConfig(Section):
    """The registered model."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 _-]*$",
        description="Name in the MLflow registry (letters, digits, blanks, _ and -); unset is the run's `name`.",
    )
    gate: GateConfig = GateConfig()


class Config(Section):
    """A whole run."""

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
        return self.training.stages.get(resolution, StageOverride()).batch or at_resolution(self.training.batch, resolution)

    def kimg_at(self, resolution: int) -> tuple[float, float]:
        """Length of one stage's fade and of its stable training, in kimg; `training.total_kimg` stretches the last one."""
        training, override = self.training, self.training.stages.get(resolution, StageOverride())
        fade = 0.0
        if resolution > training.start_resolution:
            fade = at_resolution(training.fade_kimg, resolution) if override.fade_kimg is None else override.fade_kimg
        stable = at_resolution(training.stable_kimg, resolution) if override.stable_kimg is None else override.stable_kimg
        if resolution == self.data.resolution and training.total_kimg is not None:
            stable = max(training.total_kimg - sum(sum(self.kimg_at(below)) for below in self.resolutions[:-1]) - fade, 0)
        return fade, stable

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        self._check_stages()
        self._check_batches()
        self._check_switches()
        return self

    def _check_stages(self) -> None:
        start = self.training.start_resolution
        if start not in RESOLUTIONS or start > self.data.resolution:
            raise ValueError(f"training.start_resolution={start}: must be a power of two from 4 to data.resolution={self.data.resolution}")
        for owner, given in (("training", self.training.stages), ("ray", self.ray.stages)):
            unknown = [r for r in given if r not in self.resolutions]
            if unknown:
                raise ValueError(f"{owner}.stages.{unknown[0]}: no such stage; the stages are {list(self.resolutions)}")
        if start in self.training.stages and self.training.stages[start].fade_kimg:
            raise ValueError(f"training.stages.{start}.fade_kimg: the first stage has nothing to fade in from; remove it")
        least = sum(sum(self.kimg_at(r)) for r in self.resolutions[:-1]) + self.kimg_at(self.data.resolution)[0]
        if self.training.total_kimg is not None and self.training.total_kimg <= least:
            raise ValueError(
                f"training.total_kimg={self.training.total_kimg:g}: the stages below {self.data.resolution}x{self.data.resolution} and its "
                f"fade take {least:g} already; give more, or shorten training.fade_kimg and training.stable_kimg"
            )

    def _check_batches(self) -> None:
        for r in self.resolutions:
            batch, workers = self.batch_at(r), self.workers_at(r).workers or 1
            if batch % workers:
                raise ValueError(
                    f"training.batch at {r}x{r} is {batch}: not divisible by its {workers} workers; use a multiple of {workers}, "
                    f"or set training.stages.{r}.batch or ray.stages.{r}.workers"
                )
            share, group = batch // workers, min(self.model.mbstd_group, batch)
            if share % min(group, share) or (workers > 1 and share % group):
                raise ValueError(
                    f"training.batch at {r}x{r} gives each of {workers} workers {share} images: not divisible by model.mbstd_group="
                    f"{self.model.mbstd_group}; use a batch that is a multiple of {self.model.mbstd_group * workers}"
                )

    def _check_switches(self) -> None:
        if self.evaluation.metrics and self.registry.gate.metric not in self.evaluation.metrics:
            raise ValueError(
                f"registry.gate.metric={self.registry.gate.metric}: not among evaluation.metrics={list(self.evaluation.metrics)}; "
                "add it there or gate on one of them"
            )
        if self.model.const_input and not self.model.styles:
            raise ValueError(
                "model.styles=false with model.const_input=true would draw one image for every z; "
                "set model.const_input=false or model.styles=true"
            )
        if self.model.conditional and self.data.labels == "none":
            raise ValueError("model.conditional=true needs labels but data.labels=none; set data.labels=auto or model.conditional=false")


def digest(part: Any) -> str:
    """Ten hex characters that identify a JSON-able value or pydantic model, independent of key order."""
    plain = part.model_dump(mode="json") if isinstance(part, BaseModel) else part
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), default=_jsonable)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no digest")


def flatten(config: Config) -> dict[str, str]:
    """Every value by its dotted key, as text (for MLflow params)."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            flat[prefix] = value if isinstance(value, str) else json.dumps(value)

    walk("", config.model_dump(mode="json"))
    return flat
