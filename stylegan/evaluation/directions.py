"""Directions of attributes in w: the hyperplanes that linear separability fits, kept beside the report.

The file is an output of the measurement and no part of the report, whose values and protocols it does not change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from stylegan import storage
from stylegan.errors import DamagedError, one_line
from stylegan.evaluation.report import Report

DIRECTIONS = "directions.safetensors"
METADATA = "stylegan.directions"  # one key, because safetensors writes several in random order
VERSION = 1


@dataclass(frozen=True)
class Direction:
    """The direction in w that an attribute changes along.

    Attributes:
        name: of the attribute.
        normal: unit vector [L], float32: the normal of the hyperplane, towards the images that have the attribute.
        scale: standard deviation of w along it, over the images that were measured.
        entropy: H(Y|X) in nats, what the hyperplane leaves open: 0 is a perfect separation.
    """

    name: str
    normal: np.ndarray = field(compare=False, repr=False)
    scale: float
    entropy: float


def write_directions(folder_uri: str, directions: Sequence[Direction]) -> None:
    """Write the directions of an evaluation into its folder; equal ones give equal bytes."""
    facts = [{"name": one.name, "scale": one.scale, "entropy": one.entropy} for one in directions]
    tensors = {"normals": np.stack([one.normal for one in directions]).astype(np.float32)}
    metadata = {METADATA: json.dumps({"version": VERSION, "directions": facts})}
    storage.write_bytes(storage.join(folder_uri, DIRECTIONS), safetensors.numpy.save(tensors, metadata))


def read_directions(folder_uri: str) -> tuple[Direction, ...]:
    """Return the directions in a folder, in the order of the attributes; none if it has no such file.

    Raises:
        DamagedError: the file is not what was written there.
    """
    uri = storage.join(folder_uri, DIRECTIONS)
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        return ()
    try:
        return _parse(data)
    except MemoryError:
        raise
    except Exception as error:  # damaged and foreign files raise errors of many types
        raise DamagedError(
            f"{uri}: is damaged ({one_line(error, 200)}); delete it and evaluate the model again, which writes it anew"
        ) from error


def lacks_directions(report: Report, folder_uri: str) -> bool:
    """Return whether hyperplanes were fitted for a report whose folder does not hold them."""
    fitted = any(facts.get("entropy_w") is not None for facts in report.attributes.values())
    return fitted and not storage.exists(storage.join(folder_uri, DIRECTIONS))


def _parse(data: bytes) -> tuple[Direction, ...]:
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][METADATA])
    if header["version"] != VERSION:
        raise ValueError(f"version {header['version']}")
    normals = safetensors.numpy.load(data)["normals"]
    facts = header["directions"]
    if normals.shape[:1] != (len(facts),) or normals.ndim != 2 or not np.isfinite(normals).all():
        raise ValueError(f"{list(normals.shape)} normals of {len(facts)} attributes")
    return tuple(
        Direction(str(one["name"]), normal, float(one["scale"]), float(one["entropy"]))
        for one, normal in zip(facts, normals, strict=True)
    )
