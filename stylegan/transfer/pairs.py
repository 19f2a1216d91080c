"""Which images are contents and which are styles, and in what order they meet: pure functions of numbers.

A tenth of the contents and of the styles, at most 1,000 each, is held out of training to be measured. They are the last
ones of the canonical order, which is an order of hashes, so they are a fair sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stylegan.config.sections import TransferConfig
from stylegan.data.loading.order import sample_indices
from stylegan.errors import ConfigError, StepError, shown

MOST_HELD_OUT = 1000
STYLE_STREAM = 1  # added to the seed, so that styles come in another order than contents


@dataclass(frozen=True)
class Pairs:
    """The images of a style transfer, by their numbers in the canonical order.

    Attributes:
        contents, styles: those of training; the same ones if every image is both.
        held_contents, held_styles: those that are held out of it.
    """

    contents: np.ndarray
    styles: np.ndarray
    held_contents: np.ndarray
    held_styles: np.ndarray

    def batch(self, start: int, count: int, *, seed: int, resolution: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the contents and the styles of the samples from `start` on, int64 [count] each.

        Every epoch of either shows each of its images once.
        """
        orders = ((self.contents, seed), (self.styles, seed + STYLE_STREAM))
        contents, styles = (
            images[sample_indices(len(images), seed=own, stage=resolution, start=start, count=count)]
            for images, own in orders
        )
        return contents, styles

    def held_out(self, count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return held-out contents and styles, int64 [n] each, to be drawn in pairs; n is `count`, or all pairs if fewer."""
        every = len(self.held_contents) * len(self.held_styles)
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, every])))
        chosen = random.choice(every, min(count, every), replace=False)
        return self.held_contents[chosen // len(self.held_styles)], self.held_styles[chosen % len(self.held_styles)]


def split(labels: np.ndarray, label_names: tuple[str, ...], transfer: TransferConfig, source: str) -> Pairs:
    """Divide the images of a set.

    Args:
        labels: int64 [N], in canonical order.
        label_names: of the classes.
        transfer: says which classes are styles.
        source: `data.source`, for messages.

    Raises:
        ConfigError: a class of `transfer.style_classes` does not exist, or none is left for the contents.
        StepError: too few images.
    """
    everything = np.arange(len(labels))
    contents = styles = everything
    if transfer.style_classes:
        check_classes(label_names, transfer, source)
        is_style = np.isin(labels, [label_names.index(name) for name in transfer.style_classes])
        contents, styles = everything[~is_style], everything[is_style]
    for what, images in (("contents", contents), ("styles", styles)):
        if len(images) < 2:
            raise StepError(
                f"data.source={source}: has {len(images)} images for the {what} of a style transfer, and at least 2 are needed, one "
                "of them to be measured; add images"
            )
    (train_contents, held_contents), (train_styles, held_styles) = map(_divide, (contents, styles))
    return Pairs(train_contents, train_styles, held_contents, held_styles)


def check_classes(label_names: tuple[str, ...], transfer: TransferConfig, source: str) -> None:
    """Check that the classes of the styles exist, and are not all. Raises ConfigError if not."""
    given = f"transfer.style_classes={list(transfer.style_classes)}"
    have = f"the classes are {shown(', '.join(label_names), 300)}" if label_names else "it has no classes"
    unknown = [name for name in transfer.style_classes if name not in label_names]
    if unknown:
        raise ConfigError(f"{given}: data.source={source} has no class {unknown[0]}; {have}")
    if transfer.style_classes and set(transfer.style_classes) == set(label_names):
        raise ConfigError(
            f"{given}: are all classes of data.source={source}, which leaves no contents; take one out, or set []"
        )


def _divide(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = min(max(len(images) // 10, 1), MOST_HELD_OUT)
    return images[:-count], images[-count:]
