"""The figures of the StyleGAN paper for any generator, each drawn by one request to a worker.

Layouts, seeds and psi are the paper's, as its authors' script documents them: figure 3 (style mixing), 4 and 5 (noise), 8
(truncation). Beside them: the same latents at the end of every stage, and a film of a walk through latent space. Nearest
neighbours among the reals are drawn by the evaluation, which has the features (`evaluation/figures.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stylegan import storage
from stylegan.drawing.draw import no_noise, noise_of, of_seed, paint, paint_latents, styles
from stylegan.drawing.film import film_bytes
from stylegan.drawing.interpolate import walk_z
from stylegan.drawing.latents import Latents, Rng, latent
from stylegan.drawing.mixing import Part, mix_layers, part_layers
from stylegan.evaluation.features.embedded import Pmap
from stylegan.evaluation.generate import batch_size
from stylegan.evaluation.metrics.numerics import exact_float32
from stylegan.images import CELL, grid, png_bytes
from stylegan.networks.generator import Generator, layer_resolution
from stylegan.training.state import load_model

logger = logging.getLogger("stylegan")

# Seeds of the paper's figures.
SOURCES, DESTINATIONS = (639, 701, 687, 615, 2268), (888, 829, 1898, 1733, 1614, 845)
MIXED_PARTS: tuple[Part, ...] = ("coarse", "coarse", "coarse", "middle", "middle", "fine")  # of the destinations
VARIED, NOISY, TRUNCATED = (1157, 1012), (1967, 1555), (91, 388)
PSIS = (1.0, 0.7, 0.5, 0.0, -0.5, -1.0)
# Our own.
GROWN = tuple(range(6))
WALKED = tuple(range(16))
DRAWS, FEW_DRAWS, MANY_UP_TO = 100, 20, 256  # of noise: in the map of deviations, up to which resolution
SHOWN = 4  # draws of noise that are shown
CONTRAST = 4  # by which deviations are multiplied, as in the paper
WALK, WALK_FRAMES, WALK_FPS = "walk", 64, 12


@dataclass(frozen=True)
class FigureRequest:
    """A request to a worker: draw a figure.

    Attributes:
        name: one of FIGURES, or WALK.
        checkpoint_uri: folder of the generator.
        stage_uris: folders of the generators at the end of each stage by their resolutions; for `stages`.
        psi: truncation of figures that do not show it; None or 1 is off.
        label: the class; None: image i has class i, and begins again after the last class.
        rng: whose latents.
        side: larger images are averaged down to it; None: never.
        device: where it is drawn.
    """

    name: str
    checkpoint_uri: str
    stage_uris: tuple[tuple[int, str], ...] = ()
    psi: float | None = None
    label: int | None = None
    rng: Rng = "torch"
    side: int | None = None
    device: str = "cpu"


def unsuitable(name: str, generator: Generator, num_stages: int) -> str | None:
    """Return why a figure means nothing for a generator; None if it can be drawn."""
    model = generator.model
    if name == "mixing" and not model.has_styles:
        return f"this model has no styles ({model.lacking('styles')})"
    if name in ("noise", "noise_layers") and not model.has_noise:
        return f"this model has no noise ({model.lacking('noise')})"
    if name == "psi" and not model.has_w:
        return "this model has no w to truncate (model.architecture: resnet)"
    if name == "stages" and model.is_resnet:
        return "this model has one stage (model.architecture: resnet)"
    if name == "stages" and num_stages < 2:
        return "needs the ends of two stages at least; storage has " + (
            "one" if num_stages else "none, or the model is of no run"
        )
    return None


def draw_figures(
    names: Sequence[str], request: FigureRequest, out_uri: str, *, pmap: Pmap = map
) -> tuple[dict[str, str], dict[str, str]]:
    """Draw figures of a generator, and write them as {name}.png; a walk as walk.webp.

    Args:
        names: of FIGURES, or WALK.
        request: the generator and the options; its name is ignored.
        out_uri: folder to write to.
        pmap: `map`, or a parallel one that keeps the order.

    Returns:
        The URIs of the figures by name, and for each name that cannot be drawn the reason.

    Raises:
        StepError: there is no such generator, or a figure cannot be written.
    """
    generator, _ = load_model(request.checkpoint_uri)
    skipped = {name: reason for name in names if (reason := unsuitable(name, generator, len(request.stage_uris)))}
    wanted = [name for name in names if name not in skipped]
    uris: dict[str, str] = {}
    for name, data in zip(wanted, pmap(draw_figure, [replace(request, name=name) for name in wanted]), strict=True):
        uris[name] = storage.join(out_uri, f"{name}.webp" if name == WALK else f"{name}.png")
        storage.write_bytes(uris[name], data)
    return uris, skipped


@torch.no_grad()
def draw_figure(request: FigureRequest) -> bytes:
    """Draw a figure and return the bytes of its file. Runs on any worker."""
    with exact_float32():
        generator, names = load_model(request.checkpoint_uri)
        scene = Scene(generator.to(request.device), len(names), request)
        return walk_bytes(scene) if request.name == WALK else png_bytes(FIGURES[request.name](scene))


class Scene:
    """A generator with the options of a request: its images for figures."""

    def __init__(self, generator: Generator, num_classes: int, request: FigureRequest) -> None:
        self.generator, self.request, self.num_classes = generator, request, num_classes

    def label(self, index: int) -> int | None:
        """Return the class of image `index` of a figure; None for a model without classes."""
        if not self.num_classes:
            return None
        return index % self.num_classes if self.request.label is None else self.request.label

    def z(self, seed: int) -> Tensor:
        """Return the z [1, L] of a seed."""
        return latent(seed, self.generator.model.latent_size, self.request.rng)[0]

    def latents(self, seeds: Sequence[int], *, first: int = 0, psi: float | None = None) -> Latents:
        """Return the latents of seeds, the images `first` and on of a figure, with the noise that the generator holds."""
        psi = self.request.psi if psi is None else psi
        rows = [styles(self.generator, self.z(seed), self.label(first + i), psi=psi) for i, seed in enumerate(seeds)]
        return Latents(torch.cat(rows))

    def images(self, latents: Latents) -> Tensor:
        """Return images uint8 [N, C, r, r]."""
        return self.small(paint_latents(self.generator, latents, batch=self.batch))

    @property
    def batch(self) -> int:
        """The number of images that are drawn at a time."""
        return batch_size(self.generator.resolution)

    def small(self, images: Tensor) -> Tensor:
        """Return images at the size of the figure."""
        side, resolution = self.request.side, images.shape[-1]
        if side is None or resolution <= side:
            return images
        return F.avg_pool2d(images.float(), resolution // side).round().byte()


def _mixing(scene: Scene) -> Image.Image:
    """Figure 3: each destination (rows) with the coarse, middle or fine styles of each source (columns)."""
    return mixing_sheet(
        scene.images,
        scene.latents(DESTINATIONS, first=len(SOURCES)).rows(),
        scene.latents(SOURCES).rows(),
        [tuple(part_layers(part, scene.generator.num_layers)) for part in MIXED_PARTS],
        heads=[f"seed {seed}" for seed in SOURCES],
        sides=MIXED_PARTS,
    )


def mixing_sheet(
    images: Callable[[Latents], Tensor],
    rows: Sequence[Latents],
    columns: Sequence[Latents],
    layers: Sequence[tuple[int, ...]],
    *,
    heads: Sequence[str],
    sides: Sequence[str],
) -> Image.Image:
    """Draw a grid of mixed images, with the images of the rows on its left and those of the columns above.

    Args:
        images: computes images [N, C, r, r] from latents.
        rows: latents of the images beside the grid, one each; mixed images have their noise.
        columns: latents of the images above the grid, one each.
        layers: of each row, those that take the styles of the columns.
        heads: what to write above the columns.
        sides: what to write beside the rows.
    """
    drawn: list[Tensor | None] = [None, *(images(column)[0] for column in columns)]
    sources = torch.cat([column.ws for column in columns])
    for row, chosen in zip(rows, layers, strict=True):
        mixed = mix_layers(row.ws.expand(len(columns), -1, -1), sources, chosen)
        drawn += [images(row)[0], *images(Latents(mixed, row.noise))]
    return grid(drawn, len(columns) + 1, heads=["", *heads], sides=["", *sides])


def _noise(scene: Scene) -> Image.Image:
    """Figure 4: an image, other draws of its noise, and the map of their standard deviations."""
    num_draws = DRAWS if scene.generator.resolution <= MANY_UP_TO else FEW_DRAWS
    cells: list[Tensor] = []
    for row, one in enumerate(scene.latents(VARIED).rows()):
        noise = noise_of(row, None, scene.request.device)
        drawn = paint(scene.generator, one.ws.expand(num_draws, -1, -1), noise, batch=scene.batch)
        deviation = drawn.double().mean(dim=1, keepdim=True).std(dim=0, unbiased=False) * CONTRAST
        cells += [*scene.images(one), *scene.small(drawn[:SHOWN])]
        cells += [*scene.small(deviation.clamp(max=255).byte()[None].expand(-1, drawn.shape[1], -1, -1))]
    heads = ["image", *(f"noise {number + 1}" for number in range(SHOWN)), "deviation"]
    return grid(cells, SHOWN + 2, heads=heads, sides=[f"seed {seed}" for seed in VARIED])


def _noise_layers(scene: Scene) -> Image.Image:
    """Figure 5: noise in all layers, in none, in the fine ones, and in the others alone."""
    generator, device = scene.generator, scene.request.device
    fine = set(part_layers("fine", generator.num_layers))
    every = set(range(generator.num_layers))
    columns = {"all": every, "none": set[int](), "fine": fine, "coarse": every - fine}
    none = no_noise(device)
    cells: list[Tensor] = []
    for one in scene.latents(NOISY).rows():
        for layers in columns.values():
            maps = tuple(
                generator.synthesis.get_buffer(f"noise{layer}")
                if layer in layers
                else none(layer, 1, layer_resolution(layer))
                for layer in every
            )
            cells += [*scene.images(Latents(one.ws, maps))]
    return grid(cells, len(columns), heads=list(columns), sides=[f"seed {seed}" for seed in NOISY])


def _psi(scene: Scene) -> Image.Image:
    """Figure 8: the truncation of one latent, to its opposite."""
    cells = [
        image
        for row, seed in enumerate(TRUNCATED)
        for psi in PSIS
        for image in scene.images(scene.latents([seed], first=row, psi=psi))
    ]
    heads, sides = [f"psi {psi:g}" for psi in PSIS], [f"seed {seed}" for seed in TRUNCATED]
    return grid(cells, len(PSIS), heads=heads, sides=sides)


def _stages(scene: Scene) -> Image.Image:
    """The same latents at the end of every stage; the noise of common layers is the same, too."""
    columns: list[Tensor] = []
    request = scene.request
    side = min(max(max(resolution for resolution, _ in request.stage_uris), CELL), request.side or 2**20)
    for resolution, uri in request.stage_uris:
        generator = load_model(uri)[0].to(request.device)
        images = [
            paint_latents(generator, of_seed(generator, seed, scene.label(i), psi=request.psi, rng=request.rng))
            for i, seed in enumerate(GROWN)
        ]
        small = scene.small(torch.cat(images))
        columns.append(
            small.repeat_interleave(max(side // resolution, 1), 2).repeat_interleave(max(side // resolution, 1), 3)
        )
    cells = torch.stack(columns, dim=1).flatten(0, 1)
    heads = [f"{resolution}x{resolution}" for resolution, _ in request.stage_uris]
    return grid(cells, len(columns), heads=heads, sides=[f"seed {seed}" for seed in GROWN])


FIGURES: Mapping[str, Callable[[Scene], Image.Image]] = {
    "mixing": _mixing,
    "noise": _noise,
    "noise_layers": _noise_layers,
    "psi": _psi,
    "stages": _stages,
}


# --- films ------------------------------------------------------------------------------------------------------------


def walk_bytes(scene: Scene) -> bytes:
    """Draw a short film of images that each walk through four latents and back, as an animated WebP file."""
    cells = 4 if scene.generator.resolution <= MANY_UP_TO else 1
    keys = torch.cat([scene.z(seed) for seed in WALKED[: 4 * cells]]).view(4, cells, -1)

    def walk(position: float) -> Tensor:
        z = walk_z(keys, position)
        return torch.cat(
            [
                styles(scene.generator, row, scene.label(cell), psi=scene.request.psi)
                for cell, row in enumerate(z.split(1))
            ]
        )

    frames = film_frames(
        lambda cell, ws: scene.images(Latents(ws)),
        walk,
        num_keys=4,
        count=WALK_FRAMES,
        columns=2 if cells > 1 else 1,
        at_once=scene.batch,
    )
    return film_bytes(".webp", frames, count=WALK_FRAMES, fps=WALK_FPS)


def film_frames(
    images: Callable[[int, Tensor], Tensor],
    walk: Callable[[float], Tensor],
    *,
    num_keys: int,
    count: int,
    columns: int,
    cell_side: int = CELL,
    at_once: int = 1,
) -> Iterator[Image.Image]:
    """Draw the frames of a film of a closed walk, one after the other; behind the last one the first one would come again.

    Args:
        images: computes images [F, C, r, r] of a cell (its number) from styles [F, num_layers, L].
        walk: returns the styles [cells, num_layers, L] at a position from 0 to num_keys.
        num_keys: length of the walk.
        count: number of frames.
        columns: cells in a row.
        cell_side: smaller images are enlarged, without smoothing, to at most this side.
        at_once: frames that are drawn at a time.
    """
    for first in range(0, count, at_once):
        positions = [num_keys * number / count for number in range(first, min(first + at_once, count))]
        ws = torch.stack([walk(position) for position in positions], dim=1)
        for frame in torch.stack([images(cell, rows) for cell, rows in enumerate(ws)], dim=1):
            yield tiles(frame, columns, cell=cell_side)


def tiles(images: Tensor, columns: int, *, cell: int) -> Image.Image:
    """Put images uint8 [N, C, r, r] side by side without gutters; smaller ones are enlarged to at most `cell`."""
    factor = max(cell // images.shape[-1], 1)
    images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    rows = images.unflatten(0, (-1, columns))  # [rows, columns, C, s, s]
    sheet = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()
    return Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet)
