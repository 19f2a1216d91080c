"""Check, from a listing alone, that the images are what a run needs."""

from __future__ import annotations

from stylegan.config.tree import Config
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation.features.spaces import check_features
from stylegan.evaluation.quick import with_quick
from stylegan.transfer.pairs import check_classes


def check_data(
    config: Config, num_images: int, label_names: tuple[str, ...], attribute_names: tuple[str, ...] = ()
) -> None:
    """Check that the images are what a run needs; a listing is enough, so this comes before anything is written.

    Raises:
        ConfigError: classes are needed and there are none; attributes are no substitute.
        StepError: there are fewer images than in a batch.
    """
    source = config.data.source
    batch = max(config.batch_at(resolution) for resolution in config.resolutions)
    if num_images < batch:
        key = "transfer.batch" if config.transfer else "training.batch"
        raise StepError(
            f"data.source={source}: holds {num_images} images, fewer than the largest batch of {batch}; add images or lower {key}"
        )
    has = f"has attributes only ({len(attribute_names)}), which serve evaluation" if attribute_names else "has none"
    cure = "put the images in class folders, add a dataset.json with class numbers"
    if config.model.conditional and not label_names:
        raise ConfigError(
            f"model.conditional=true needs labels, but data.source={source} {has}; {cure}, or set model.conditional=false"
        )
    if config.snapshots.probe_kimg and not label_names:
        raise ConfigError(
            f"snapshots.probe_kimg needs labels, but data.source={source} {has}; {cure}, or leave out snapshots.probe_kimg"
        )
    if config.transfer:
        check_classes(label_names, config.transfer, source)
    check_features(with_quick(config), labelled=bool(label_names))
