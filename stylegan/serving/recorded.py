"""A small generator without Python between its operations: twice as fast on a CPU, and several threads can draw at once."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stylegan.drawing.draw import SMALL, drawing_threads, given_noise, noise_maps, paint
from stylegan.errors import one_line
from stylegan.images import to_uint8
from stylegan.networks.generator import Generator, NoiseFn, random_noise

logger = logging.getLogger("stylegan")
Paint = Callable[[Tensor, NoiseFn | None], Tensor]  # as `paint` for one image


class _Synthesis(nn.Module):
    """The synthesis network with its noise as arguments, as a recording needs it."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.synthesis = generator.synthesis

    def forward(self, ws: Tensor, *maps: Tensor) -> Tensor:
        images: Tensor = self.synthesis(ws, noise=given_noise(maps))
        return images


@torch.no_grad()
def record(generator: Generator) -> Paint | None:
    """Record what a generator computes for one image, and return a function that repeats it.

    The recording calls the same kernels in the same order, so its images have the same bits; that is tried with a few
    latents.

    Returns:
        None where there is nothing to gain (a GPU, images above SMALL, whose operations take long enough to hide Python),
        or where torch cannot record the network.
    """
    if generator.w_avg.device.type != "cpu" or generator.resolution > SMALL:
        return None
    stored = tuple(
        generator.synthesis.get_buffer(f"noise{layer}")
        for layer in range(generator.num_layers if generator.model.has_noise else 0)
    )
    stream = torch.Generator().manual_seed(0)
    trials = [torch.randn(1, generator.num_layers, len(generator.w_avg), generator=stream) for _ in range(3)]
    try:
        with warnings.catch_warnings(), drawing_threads(generator):
            warnings.simplefilter("ignore")  # the tracer warns of every shape that it takes for a constant
            traced = torch.jit.trace(_Synthesis(generator).eval(), (trials[0], *stored), check_trace=False)
            recording = torch.jit.freeze(traced)
    except Exception as error:  # torch raises errors of many types
        logger.info("the generator cannot be recorded (%s); it is drawn as elsewhere", one_line(error, 200))
        return None

    def repeat(ws: Tensor, noise: NoiseFn | None) -> Tensor:
        with torch.no_grad(), drawing_threads(generator):
            return to_uint8(recording(ws, *(noise_maps(generator, noise) or stored)))

    for ws in trials:
        for seed in (None, 1):
            noises = [
                None if seed is None else random_noise(torch.Generator().manual_seed(seed), "cpu") for _ in range(2)
            ]
            if not torch.equal(repeat(ws, noises[0]), paint(generator, ws, noises[1])):
                logger.info("the recorded generator draws other bits; it is drawn as elsewhere")
                return None
    return repeat
