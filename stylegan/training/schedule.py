"""The schedule of progressive growing: pure functions of the number of images (`nimg`) that D has been shown.

A stage fades in its resolution over `fade_images` and then trains it for `stable_images` (Karras et al. 2018, section
2). The first stage has no fade. A checkpoint contains nothing of this: the same `nimg` always gives the same alpha,
batch and learning rate.

A step shows D one batch and updates D: `nimg` is the clock of D. Every `d_steps`-th step of a stage also updates G, after D;
the count begins with the stage. Several updates of D for each of G take more images, not larger steps.
"""

from __future__ import annotations

import math

from stylegan.config.tree import Config
from stylegan.records import Record

PENALTIES = ("loss/r1", "loss/r2", "loss/gp")  # metrics that only steps with a gradient penalty compute
OF_G = ("loss/g", "loss/rotation_g", "rotation/accuracy_fake", "rotation/weight_g")  # that only updates of G compute


class Stage(Record):
    """One resolution of progressive growing; all lengths in images."""

    resolution: int
    levels_below: int  # log2(final resolution / resolution): the integer part of the papers' lod
    start_nimg: int
    fade_images: int
    stable_images: int
    batch: int  # over all workers
    learning_rate: float
    repeats: int  # steps between two updates of alpha
    penalty_interval: int = 1  # steps between two gradient penalties of D
    d_steps: int = 1  # steps (each is an update of D) for each update of G

    @property
    def name(self) -> str:
        """The name for people: `16x16`."""
        return f"{self.resolution}x{self.resolution}"

    @property
    def num_images(self) -> int:
        """The length of fade and stable training, rounded up to whole batches."""
        return math.ceil((self.fade_images + self.stable_images) / self.batch) * self.batch

    @property
    def end_nimg(self) -> int:
        """The `nimg` at which the stage is done."""
        return self.start_nimg + self.num_images

    def alpha(self, nimg: int) -> float:
        """Return the weight in [0, 1] of the new resolution against the old one; 1 - frac(lod) in the papers' terms.

        It grows every `repeats` steps. It is 1 from the end of the fade on, also between two such steps.
        """
        shown = nimg - self.start_nimg
        if shown >= self.fade_images:
            return 1.0
        update_images = self.batch * self.repeats  # images between two updates of alpha
        return shown // update_images * update_images / self.fade_images

    def has_penalty(self, nimg: int) -> bool:
        """Return whether the D step at `nimg` has gradient penalties.

        The first step of the stage has them, and then every `penalty_interval`-th step.
        """
        return (nimg - self.start_nimg) // self.batch % self.penalty_interval == 0

    def num_penalties(self, nimg: int, steps: int) -> int:
        """Count the steps with gradient penalties among the last `steps` D steps before `nimg`."""
        now = (nimg - self.start_nimg) // self.batch
        return math.ceil(now / self.penalty_interval) - math.ceil((now - steps) / self.penalty_interval)

    def updates_G(self, nimg: int) -> bool:
        """Return whether the step at `nimg` also updates G, after D: every `d_steps`-th step of the stage does."""
        return ((nimg - self.start_nimg) // self.batch + 1) % self.d_steps == 0

    def num_G_updates(self, nimg: int, steps: int) -> int:
        """Count the updates of G in the last `steps` steps before `nimg`."""
        now = (nimg - self.start_nimg) // self.batch
        return now // self.d_steps - (now - steps) // self.d_steps

    def resets_optimizers(self, nimg: int) -> bool:
        """Return whether Adam is reset before the step at `nimg`: at the start of the stage and the end of its fade."""
        if nimg == self.start_nimg:
            return True
        return self.alpha(nimg) == 1.0 and self.alpha(nimg - self.batch) < 1.0


def stages(config: Config) -> tuple[Stage, ...]:
    """Return the stages of a run, ascending in resolution. Each starts where the one before it ends.

    A warm start is one stage, which starts where its checkpoint ends.
    """
    plan: list[Stage] = []
    training, warm = config.training, config.training.warm_start
    start = warm.nimg if warm else 0
    for resolution in config.resolutions:
        fade, stable = config.kimg_at(resolution)
        plan.append(
            Stage(
                resolution=resolution,
                levels_below=int(math.log2(config.data.resolution // resolution)),
                start_nimg=start,
                fade_images=round(fade * 1000),
                stable_images=round(stable * 1000),
                batch=config.batch_at(resolution),
                learning_rate=config.learning_rate_at(resolution),
                repeats=training.minibatch_repeats,
                penalty_interval=training.penalty_interval,
                d_steps=training.d_steps,
            )
        )
        start = plan[-1].end_nimg
    return tuple(plan)


def ema_beta(batch: int, ema_kimg: float) -> float:
    """Return the decay of G's average per D step, for a half-life of `ema_kimg` thousand images (0 copies G)."""
    return 0.5 ** (batch / (ema_kimg * 1000)) if ema_kimg else 0.0


def lazy_correction(penalty_interval: int) -> float:
    """Return c for D's Adam, which then uses the learning rate c * lr and the betas beta^c.

    With penalties in every k-th step only, each penalty is an update of its own. So k steps make k + 1 updates, which
    should have the effect of k (StyleGAN2, Karras et al. 2020, appendix B).
    """
    return 1.0 if penalty_interval == 1 else penalty_interval / (penalty_interval + 1)


def crossed(interval_kimg: float, before: int, now: int) -> bool:
    """Return whether (before, now], both in images, contains a multiple of the interval."""
    interval = max(round(interval_kimg * 1000), 1)
    return now // interval > before // interval
