"""What can be asked of the web app: the arguments of a picture, their ranges, and what they mean for a model.

Everything that a stranger sends is checked here, first by itself, then against the model. What is refused is one
sentence: the argument, its value, and what is allowed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from stylegan.drawing.directions import MAX_STRENGTH
from stylegan.drawing.draw import Noise, parse_noise
from stylegan.drawing.latents import MAX_SEED, Latents
from stylegan.errors import ConfigError, shown
from stylegan.networks.generator import MAX_PSI
from stylegan.serving.models import ServedModel

MOST_IMAGES = 64  # in one request
MOST_PIXELS = 2**24  # of all images of one request
MOST_SIDE = 1024  # pixels to which an image is enlarged
MOST_EDITS = 32
MOST_STYLE = 1e30  # a component of w; far beyond any use, and finite in float32
DEFAULT_STEPS, MOST_STEPS = 300, 1000  # of a projection
CROSSOVERS = 64  # more layers than any model has

_SEED = f"must be a whole number from 0 to {MAX_SEED}"
RULES = {
    "seed": _SEED,
    "to": f"{_SEED}, the seed at the end of the walk",
    "mix": f"{_SEED}, the seed whose styles the fine layers take",
    "t": "must be a number from 0 to 1",
    "psi": f"must be a number from -{MAX_PSI:g} to {MAX_PSI:g}",
    "label": "must be the name or number of a class",
    "noise": f"must be own, stored, none, or a seed from 0 to {MAX_SEED}",
    "crossover": "must be a whole number from 0 to the model's number of layers",
    "edit": f"must name an attribute and a strength from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}, and at most {MOST_EDITS} of them",
    "w": "must be the id of a projection, or in a POST numbers [num_layers][L] or [L]",
    "size": f"must be a whole number from 1 to {MOST_SIDE}",
    "images": f"must be a list of 1 to {MOST_IMAGES} images",
    "format": "must be png or webp",
    "space": "must be w or w+",
    "steps": f"must be a whole number from 1 to {MOST_STEPS}",
}

# The numbers are counted before they are looked at, with the model at hand.
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_LATENTS = {"anyOf": [{"type": "string"}, _NUMBERS, {"type": "array", "items": _NUMBERS}, {"type": "null"}]}
Strength = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class Refused(ValueError):
    """A request that cannot be answered; the message is one sentence for whoever has sent it."""


class PictureArguments(BaseModel):
    """What an image is drawn from. Everything has a default; the image depends on these values and the model alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Seed = Field(0, description="From which z and the image's own noise are drawn.")
    psi: float = Field(1.0, ge=-MAX_PSI, le=MAX_PSI, allow_inf_nan=False, description="Truncation; 1 is off.")
    label: str | int | None = Field(
        None, description="Class, by name or number; unset is class 0 of a model that has classes."
    )
    noise: str | int = Field(
        "own", description="own: of the image's seed; stored: the maps of the generator; none; or a seed."
    )
    to: Seed | None = Field(None, description="Second seed of a walk: z goes on the sphere from `seed` to it.")
    t: float | None = Field(None, ge=0, le=1, allow_inf_nan=False, description="Place on the walk; unset is 0.")
    mix: Seed | None = Field(None, description="Second seed of style mixing: it gives the styles of the fine layers.")
    crossover: int | None = Field(
        None,
        ge=0,
        le=CROSSOVERS,
        description="First layer that takes the styles of `mix`; unset is half of the layers.",
    )
    size: int | None = Field(
        None, ge=1, le=MOST_SIDE, description="Enlarge without smoothing to at least so many pixels."
    )


class PictureQuery(PictureArguments):
    """The arguments of a picture in a URL."""

    edit: list[str] = Field([], max_length=MOST_EDITS, description="`attribute:strength`, from -10 to 10. Repeatable.")
    w: str | None = Field(None, max_length=100, description="Id of a finished projection; it replaces the seed.")


def _few(value: Any) -> Any:
    """Refuse lists and objects that are too long before each of their parts makes an error of its own."""
    if isinstance(value, list | dict) and len(value) > MOST_IMAGES:
        raise ValueError(f"has {len(value):,} entries; must have at most {MOST_IMAGES}")
    return value


class PictureBody(PictureArguments):
    """The arguments of a picture in JSON."""

    _few = model_validator(mode="before")(_few)

    edit: Annotated[dict[str, Strength], BeforeValidator(_few)] = Field(
        {}, max_length=MOST_EDITS, description="Strength of each attribute, from -10 to 10."
    )
    w: Annotated[Any, WithJsonSchema(_LATENTS)] = Field(
        None, description="Id of a finished projection, or styles [num_layers][L] or [L]; they replace the seed."
    )


class PicturesBody(BaseModel):
    """A request for many pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    _few = model_validator(mode="before")(_few)

    images: Annotated[list[PictureBody], BeforeValidator(_few)] = Field(min_length=1, max_length=MOST_IMAGES)
    format: Literal["png", "webp"] = "png"


@dataclass(frozen=True)
class Wanted:
    """A picture that the model can draw. `w` names what `latents` holds; `side` is that of the picture in pixels."""

    seed: int
    psi: float
    label: int | None
    noise: Noise
    to: int | None
    t: float
    mix: int | None
    crossover: int
    edits: tuple[tuple[str, float], ...]
    side: int
    w: str | None
    latents: Latents | None = field(repr=False)

    @property
    def key(self) -> str:
        """A text that tells the picture from all others of its model."""
        return json.dumps([getattr(self, one.name) for one in fields(self) if one.name != "latents"])


def understand(
    asked: PictureQuery | PictureBody, model: ServedModel, projection: Callable[[str, ServedModel], Latents]
) -> Wanted:
    """Check the arguments of a picture against the model.

    Args:
        asked: the arguments, each within its range.
        model: what draws.
        projection: returns the latents of a finished projection by its id, or raises Refused.

    Raises:
        Refused: the model cannot draw this.
    """
    layers, resolution = model.generator.num_layers, model.generator.resolution
    if asked.t is not None and asked.to is None:
        raise Refused(f"t={asked.t:g}: needs `to`, the seed at the end of the walk")
    if asked.crossover is not None and asked.mix is None:
        raise Refused(f"crossover={asked.crossover}: needs `mix`, the seed whose styles the layers from there on take")
    if asked.crossover is not None and asked.crossover > layers:
        raise Refused(
            f"crossover={asked.crossover}: must be a whole number from 0 to {layers}, the layers of this model"
        )
    if asked.w is not None and asked.to is not None:
        raise Refused(f"to={asked.to}: a walk begins at a seed; leave out `to` or `w`")
    networks = model.generator.model
    if asked.psi != 1 and not networks.has_w:
        raise Refused(f"psi={asked.psi:g}: this model has no w to truncate (model.architecture: resnet); leave it out")
    if asked.mix is not None and not networks.has_styles:
        raise Refused(f"mix={asked.mix}: this model has no styles to mix ({networks.lacking('styles')}); leave it out")
    crossover = layers // 2 if asked.crossover is None else asked.crossover
    latents = None
    if asked.w is not None:
        latents = projection(asked.w, model) if isinstance(asked.w, str) else _styles(asked.w, model)
    return Wanted(
        seed=asked.seed,
        psi=asked.psi,
        label=_label(asked.label, model.classes),
        noise=_noise(asked.noise),
        to=asked.to,
        t=asked.t or 0.0,
        mix=asked.mix,
        crossover=crossover if asked.mix is not None else layers,
        edits=_edits(asked.edit, model),
        side=resolution * -(-(asked.size or 1) // resolution),
        w=asked.w
        if latents is None or isinstance(asked.w, str)
        else hashlib.sha256(latents.ws.numpy().tobytes()).hexdigest(),
        latents=latents,
    )


def check_total(wanted: Sequence[Wanted]) -> None:
    """Raise Refused if the pictures of one request are too many for their size."""
    side = max(one.side for one in wanted)
    if len(wanted) * side**2 > MOST_PIXELS:
        raise Refused(
            f"images: {len(wanted)} of {side}x{side} pixels are too many for one request; at most {MOST_PIXELS // side**2}"
        )


def most_images(resolution: int) -> int:
    """Return how many images of a model one request may ask for."""
    return min(MOST_IMAGES, max(MOST_PIXELS // resolution**2, 1))


def sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return what is wrong with a request, from the errors of pydantic: the first one, in one sentence."""
    first = errors[0]
    place = [part for part in first["loc"] if part not in ("query", "body", "path")]
    names = [part for part in place if part in RULES]
    where = "".join(f"images[{part}]." for part in place[:2] if place[0] == "images" and isinstance(part, int))
    if first["type"] == "extra_forbidden":
        return f"{where}{shown(str(place[-1]))}: there is no such argument; /openapi.json lists them"
    if first["type"] == "json_invalid":
        return "the body is not valid JSON"
    if first["type"] == "value_error":
        return f"{where}{names[-1] if names else 'the body'}: {first['ctx']['error']}"
    if not names:
        return f'the body must be JSON such as {{"images": [{{"seed": 1}}], "format": "png"}} ({shown(str(first["msg"]), 100)})'
    name = names[-1]
    value = first.get("input")
    told = "" if first["type"] == "missing" or isinstance(value, list | dict) else f"={shown(str(value), 40)}"
    return f"{where}{name}{told}: {RULES[name]}"


def _label(label: str | int | None, classes: tuple[str, ...]) -> int | None:
    if not classes:
        if label is not None:
            raise Refused(f"label={shown(str(label))}: this model is not class-conditional; leave it out")
        return None
    if label is None:
        return 0
    if label in classes:
        return classes.index(str(label))
    text = str(label)
    if text.isdecimal() and text.isascii() and len(text) < 10 and int(text) < len(classes):
        return int(text)
    raise Refused(
        f"label={shown(text)}: no such class; the classes are {shown(', '.join(classes), 300)}, or 0 to {len(classes) - 1}"
    )


def _noise(noise: str | int) -> Noise:
    try:
        return parse_noise(str(noise))
    except ConfigError:
        raise Refused(f"noise={shown(str(noise), 40)}: {RULES['noise']}") from None


def _edits(edits: Sequence[str] | Mapping[str, float], model: ServedModel) -> tuple[tuple[str, float], ...]:
    """Return the strengths that are not zero, in the order of the attributes' names."""
    pairs = edits.items() if isinstance(edits, Mapping) else [text.rpartition(":")[::2] for text in edits]
    found = {}
    for name, given in pairs:
        try:
            strength = float(given)
        except ValueError:
            strength = math.nan
        if not name or not -MAX_STRENGTH <= strength <= MAX_STRENGTH:
            told = f"{name}:{given}" if name else str(given)
            raise Refused(f"edit={shown(told, 60)}: {RULES['edit']}, as smile:1.5")
        if name not in model.directions:
            known = ", ".join(model.directions)
            has = (
                f"this model's are {shown(known, 300)}"
                if known
                else "this model has none: its evaluation measures no separability"
                if model.generator.model.has_w
                else "this model has none, as it has no w (model.architecture: resnet)"
            )
            raise Refused(f"edit={shown(name)}: there is no such attribute; {has}")
        if name in found:
            raise Refused(f"edit={shown(name)}: is given twice")
        found[name] = strength
    return tuple(sorted((name, strength) for name, strength in found.items() if strength))


def _styles(w: Any, model: ServedModel) -> Latents:
    layers, size = model.generator.num_layers, model.generator.w_avg.shape[0]
    rows = w if isinstance(w, list) and len(w) == layers and all(isinstance(row, list) for row in w) else [w]
    if all(isinstance(row, list) and len(row) == size and all(map(_is_style, row)) for row in rows):
        return Latents(torch.tensor(rows, dtype=torch.float32).expand(layers, -1)[None])
    raise Refused(f"w: must be finite numbers [{layers}][{size}] or [{size}], or the id of a projection")


def _is_style(value: Any) -> bool:
    return type(value) in (int, float) and -MOST_STYLE < value < MOST_STYLE  # False for NaN
