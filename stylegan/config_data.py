"""The sections `storage` and `data` of the config: where everything is kept, what the images are and how they become shards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from stylegan.section import Section
from stylegan.tables import RESOLUTIONS


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
