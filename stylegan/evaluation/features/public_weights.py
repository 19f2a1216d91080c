"""The public weights of the published networks: where they come from, where they are kept, and whether they are the right ones.

A file is looked for in $STYLEGAN_WEIGHTS (by default `weights` in the user's cache folder) and among torch.hub's checkpoints,
and downloaded once otherwise. Its sha256 is checked at every read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from fsspec.callbacks import Callback
from platformdirs import user_cache_dir

from stylegan import storage
from stylegan.config.sections import EvaluationConfig, Metric
from stylegan.errors import ConfigError, one_line
from stylegan.progress import Progress

Kind = Literal["inception", "vgg16", "lpips"]
MEGABYTE = 1e6
PINNED = "#sha256="  # behind a URI: the digest of the file, if it is another than the public one


@dataclass(frozen=True)
class WeightFile:
    """One public file. `others` are the names under which other packages keep the same bytes."""

    name: str
    url: str
    sha256: str
    num_bytes: int
    others: tuple[str, ...] = ()


KNOWN: Mapping[Kind, WeightFile] = {
    "inception": WeightFile(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        95_628_359,
        ("weights-inception-2015-12-05-6726825d.pth",),  # torch-fidelity
    ),
    "vgg16": WeightFile(
        "vgg16-397923af.pth",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        553_433_881,
    ),
    "lpips": WeightFile(
        "lpips-v0.1-vgg.pth",
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        7_289,
        ("vgg.pth", "weights-vgg16-lpips.pth"),  # as downloaded, and torch-fidelity
    ),
}
NEEDED_BY: Mapping[Metric, tuple[Kind, ...]] = {
    "fid": ("inception",),
    "fid_mixing": ("inception",),
    "kid": ("inception",),
    "is": ("inception",),
    "pr": ("vgg16",),
    "truncation": ("inception", "vgg16"),
    **dict.fromkeys(("ppl_zfull", "ppl_wfull", "ppl_zend", "ppl_wend"), ("vgg16", "lpips")),
}


def cache_folder() -> Path:
    """Where weights are kept on this machine: $STYLEGAN_WEIGHTS, or `weights` in the user's cache folder."""
    return Path(os.environ.get("STYLEGAN_WEIGHTS") or Path(user_cache_dir("stylegan"), "weights"))


def needed(evaluation: EvaluationConfig) -> tuple[Kind, ...]:
    """The files that the metrics ask for; none unless `features` is `inception`."""
    if evaluation.features != "inception":
        return ()
    asked = {kind for metric in evaluation.metrics for kind in NEEDED_BY.get(metric, ())}
    return tuple(kind for kind in KNOWN if kind in asked)


@dataclass(frozen=True)
class Location:
    """Where a file of weights is. As long as `path` is None it is nowhere on this machine: it comes from `uri` and goes to `target`."""

    kind: Kind
    uri: str
    num_bytes: int  # of the public file as long as it is not here
    path: Path | None
    target: Path


def shown_size(num_bytes: int) -> str:
    """Bytes for people: `96 MB`, `7 kB`."""
    return f"{num_bytes / MEGABYTE:,.0f} MB" if num_bytes >= MEGABYTE else f"{num_bytes / 1000:.0f} kB"


def locate(kind: Kind, uri: str | None = None, *, folder: str | Path | None = None) -> Location:
    """Look for a file on this machine, as `fetch` does, and ask no server.

    Raises:
        ConfigError: a path of the user's leads to no file, or a file on this machine is not what it should be.
    """
    wanted = _wanted(kind, uri, folder)
    path, data = _find(wanted) or (None, b"")
    return Location(kind, wanted.uri, len(data) or wanted.num_bytes, path, wanted.path)


def missing(evaluation: EvaluationConfig, *, folder: str | Path | None = None) -> list[WeightFile]:
    """The needed public files that are not on this machine and would be downloaded. Asks no server. Raises as `locate`."""
    places = [locate(kind, getattr(evaluation.weights, kind), folder=folder) for kind in needed(evaluation)]
    return [KNOWN[place.kind] for place in places if place.path is None]


def fetch_all(evaluation: EvaluationConfig) -> None:
    """Have every needed file on this machine. Raises as `fetch`."""
    for kind in needed(evaluation):
        fetch(kind, getattr(evaluation.weights, kind))


def fetch(kind: Kind, uri: str | None = None, *, folder: str | Path | None = None) -> tuple[bytes, str]:
    """The bytes of a file of weights and their sha256. Downloaded if it is nowhere on this machine, and kept in `folder`.

    Several processes may fetch the same file at once; readers see a whole file or none.

    Args:
        kind: which one.
        uri: a copy of the public file, as a path or any fsspec URL. `URI#sha256=DIGEST` names another file of the same layout.
            None: the public URL.
        folder: None is `cache_folder()`.

    Raises:
        ConfigError: it cannot be had, or is not the file it should be; says which file, from where, and where to put it.
    """
    wanted = _wanted(kind, uri, folder)
    found = _find(wanted)
    return found[1] if found else _download(wanted), wanted.sha256


@dataclass(frozen=True)
class _Wanted:
    """One file that is asked for, and where this program and others would have it on this machine."""

    title: str
    uri: str
    sha256: str
    num_bytes: int
    path: Path
    others: tuple[Path, ...]

    @property
    def cure(self) -> str:
        return f"get {self.uri} by other means and put it at {self.path}"


def _wanted(kind: Kind, uri: str | None, folder: str | Path | None) -> _Wanted:
    known, place = KNOWN[kind], Path(folder or cache_folder()).expanduser()
    title = f"{kind} weights" if uri is None else f"evaluation.weights.{kind}={uri}"
    address, _, digest = (uri or known.url).partition(PINNED)
    if digest in ("", known.sha256):
        folders = (place, Path(torch.hub.get_dir(), "checkpoints"))
        others = tuple(folder / name for folder in folders for name in (known.name, *known.others))
        return _Wanted(title, address, known.sha256, known.num_bytes, place / known.name, others)
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConfigError(f"{title}: {digest!r} is no sha256; put its 64 digits 0-9, a-f behind {PINNED}")
    return _Wanted(title, address, digest, known.num_bytes, place / f"{digest[:8]}-{storage.name(address)}", ())


def _find(wanted: _Wanted) -> tuple[Path, bytes] | None:
    """The file and its bytes, if it is on this machine."""
    if storage.is_local(wanted.uri):
        path = Path(storage.absolute(wanted.uri))
        cure = f"give a copy of the public file, or append {PINNED}DIGEST if it is meant to be another"
        return path, _right(_read(path, wanted), wanted, path, cure)
    if wanted.path.exists():
        return wanted.path, _right(
            _read(wanted.path, wanted), wanted, wanted.path, "delete it and run the same command again"
        )
    for path in wanted.others:  # a damaged file of another program is left alone
        if path.is_file() and hashlib.sha256(data := _read(path, wanted)).hexdigest() == wanted.sha256:
            return path, data
    return None


def _download(wanted: _Wanted) -> bytes:
    """Download the file and keep it; nobody sees a part of it, or a wrong one, under its name."""
    try:
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        with storage.replacing(wanted.path) as partial:
            partial.touch()
            _transfer(wanted, partial)
            return _right(partial.read_bytes(), wanted, wanted.uri, wanted.cure)
    except OSError as error:
        raise ConfigError(
            f"{wanted.title}: cannot write {wanted.path} ({_reason(error)}); set STYLEGAN_WEIGHTS to another folder"
        ) from error


def _transfer(wanted: _Wanted, target: Path) -> None:
    try:
        filesystem, path = storage.filesystem(wanted.uri)
        filesystem.get_file(path, str(target), callback=_Bar(f"download {wanted.path.name}", wanted.num_bytes))
    except Exception as error:  # every kind of store raises its own
        raise ConfigError(f"{wanted.title}: cannot download {wanted.uri} ({_reason(error)}); {wanted.cure}") from error


def _read(path: Path, wanted: _Wanted) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{wanted.title}: cannot read {path} ({_reason(error)}); check the path and its permissions"
        ) from error


def _right(data: bytes, wanted: _Wanted, place: str | Path, cure: str) -> bytes:
    found = hashlib.sha256(data).hexdigest()
    if found != wanted.sha256:
        raise ConfigError(
            f"{wanted.title}: {place} ({len(data):,} bytes) has the sha256 {found}, expected {wanted.sha256}; {cure}"
        )
    return data


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return one_line(error)


class _Bar(Callback):
    """A download as progress."""

    def __init__(self, name: str, num_bytes: int) -> None:
        super().__init__()
        self.progress = Progress(name, num_bytes / MEGABYTE, "MB")

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        self.progress.total = (self.size or 0) / MEGABYTE or self.progress.total
        self.progress.update(self.value / MEGABYTE)


def join_digests(digests: Iterable[str]) -> str:
    """The SHA-256 of a network made of several files, in their order: that of the digests; of one file, its own."""
    first, *more = digests
    return hashlib.sha256("".join([first, *more]).encode()).hexdigest() if more else first
