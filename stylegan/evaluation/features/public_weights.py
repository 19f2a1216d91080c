"""The public weight files of the published networks: find them on this machine, download them, and check their digests.

A file is searched for in $STYLEGAN_WEIGHTS (by default `weights` in the user's cache folder) and among torch.hub's
checkpoints. If it is in neither place, it is downloaded once. Every read checks its SHA-256.
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
from stylegan.config.sections import EvaluationConfig
from stylegan.errors import ConfigError, one_line
from stylegan.evaluation.metric_table import METRICS, Role
from stylegan.networks.inception import NUM_FEATURES as INCEPTION_FEATURES
from stylegan.networks.vgg import NUM_FEATURES as VGG16_FEATURES
from stylegan.progress import Progress

WeightName = Literal["inception", "vgg16", "lpips"]  # also the fields of `evaluation.weights`
MEGABYTE = 1e6
PINNED = "#sha256="  # follows a URI; the digest of a file that is not the public one comes after it


@dataclass(frozen=True)
class WeightFile:
    """One public file. `others` are the names under which other packages keep the same bytes."""

    name: str
    url: str
    sha256: str
    num_bytes: int
    others: tuple[str, ...] = ()


KNOWN: Mapping[WeightName, WeightFile] = {
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


@dataclass(frozen=True)
class PublishedNetwork:
    """A network of a published protocol: name, weight files, and length and stored dtype of its feature vectors."""

    name: str
    files: tuple[WeightName, ...]
    num_features: int = 0
    dtype: str = "float32"


# The networks of `evaluation.features: inception`. The classifiers of the role `attributes` are trained on the shards.
PUBLISHED: Mapping[Role, PublishedNetwork] = {
    "pooled": PublishedNetwork("inception", ("inception",), INCEPTION_FEATURES),
    "manifold": PublishedNetwork("vgg16", ("vgg16",), VGG16_FEATURES, dtype="float16"),
    "distance": PublishedNetwork("lpips", ("vgg16", "lpips")),
    "style": PublishedNetwork("vgg16", ("vgg16",)),
}


def cache_folder() -> Path:
    """Return the folder of weights on this machine: $STYLEGAN_WEIGHTS, or `weights` in the user's cache folder."""
    return Path(os.environ.get("STYLEGAN_WEIGHTS") or Path(user_cache_dir("stylegan"), "weights"))


def needed(evaluation: EvaluationConfig) -> tuple[WeightName, ...]:
    """Return the files that the metrics need; none unless `features` is `inception`."""
    if evaluation.features != "inception":
        return ()
    roles = {role for metric in evaluation.metrics for role in METRICS[metric].roles}
    wanted = {name for role in roles & PUBLISHED.keys() for name in PUBLISHED[role].files}
    return tuple(name for name in KNOWN if name in wanted)


def pinned_digest(name: WeightName, uri: str | None) -> str | None:
    """Return the digest that `URI#sha256=DIGEST` pins to another file than the public one, None for the public file."""
    _, _, digest = (uri or "").partition(PINNED)
    return digest if digest not in ("", KNOWN[name].sha256) else None


@dataclass(frozen=True)
class Location:
    """The place of a weight file.

    If `path` is None, the file is not on this machine: a download reads `uri` and writes `target`.
    """

    name: WeightName
    uri: str
    num_bytes: int  # of the file at `path`; of the public file if `path` is None
    path: Path | None
    target: Path


def shown_size(num_bytes: int) -> str:
    """Format a number of bytes for people: `96 MB`, `7 kB`."""
    return f"{num_bytes / MEGABYTE:,.0f} MB" if num_bytes >= MEGABYTE else f"{num_bytes / 1000:.0f} kB"


def locate(name: WeightName, uri: str | None = None) -> Location:
    """Search for a file on this machine as `fetch` does, without asking any server.

    Raises:
        ConfigError: the user gave a path without a file, or a file on this machine has another digest than expected.
    """
    wanted = _resolve(name, uri)
    path, data = _find_local(wanted) or (None, b"")
    return Location(name, wanted.uri, len(data) or wanted.num_bytes, path, wanted.path)


def missing(evaluation: EvaluationConfig) -> list[WeightFile]:
    """Return the needed public files that would be downloaded, without asking any server. Raises as `locate`."""
    locations = [locate(name, getattr(evaluation.weights, name)) for name in needed(evaluation)]
    return [KNOWN[location.name] for location in locations if location.path is None]


def fetch_all(evaluation: EvaluationConfig) -> None:
    """Download every needed file that is not on this machine. Raises as `fetch`."""
    for name in needed(evaluation):
        fetch(name, getattr(evaluation.weights, name))


def fetch(name: WeightName, uri: str | None = None) -> tuple[bytes, str]:
    """Return the bytes of a weight file and their SHA-256; download a file that is not on this machine.

    A downloaded file is kept in `cache_folder()`. Several processes may fetch the same file at once; a reader sees
    either the whole file or no file.

    Args:
        name: the weight file.
        uri: a copy of the public file, as a path or any fsspec URL. `URI#sha256=DIGEST` names another file of the same
            layout. None: the public URL.

    Raises:
        ConfigError: the file cannot be read or downloaded, or its digest is wrong. The message names the file, its
            source and the path to put it at.
    """
    wanted = _resolve(name, uri)
    local = _find_local(wanted)
    data = local[1] if local else _download(wanted)
    return data, wanted.sha256


@dataclass(frozen=True)
class _WantedFile:
    """A file to find or download.

    Attributes:
        title: the start of error messages.
        uri: its source.
        path: the path that this program keeps it at.
        others: further paths at which this machine may have it.
    """

    title: str
    uri: str
    sha256: str
    num_bytes: int
    path: Path
    others: tuple[Path, ...]

    @property
    def cure(self) -> str:
        """The end of the message about a failed download."""
        return f"get {self.uri} by other means and put it at {self.path}"


def _resolve(name: WeightName, uri: str | None) -> _WantedFile:
    """Return the file that `uri` names. Raises ConfigError if the digest after the URI is malformed."""
    known, cache = KNOWN[name], cache_folder().expanduser()
    title = f"{name} weights" if uri is None else f"evaluation.weights.{name}={uri}"
    address, _, digest = (uri or known.url).partition(PINNED)

    # The public file, or a copy of it.
    if digest in ("", known.sha256):
        folders = (cache, Path(torch.hub.get_dir(), "checkpoints"))
        others = tuple(place / file for place in folders for file in (known.name, *known.others))
        return _WantedFile(title, address, known.sha256, known.num_bytes, cache / known.name, others)

    # Another file, kept under its own digest so that it never replaces the public one.
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConfigError(f"{title}: {digest!r} is no sha256; put its 64 digits 0-9, a-f behind {PINNED}")
    own_name = f"{digest[:8]}-{storage.name(address)}"
    return _WantedFile(title, address, digest, known.num_bytes, cache / own_name, ())


def _find_local(wanted: _WantedFile) -> tuple[Path, bytes] | None:
    """Return path and bytes of a file on this machine, or None."""
    # A path that the user gave must be the file.
    if storage.is_local(wanted.uri):
        path = Path(storage.absolute(wanted.uri))
        cure = f"give a copy of the public file, or append {PINNED}DIGEST if it is meant to be another"
        return path, _checked(_read(path, wanted), wanted, path, cure)

    # A kept file that is damaged is an error; it is never replaced without the user's knowledge.
    if wanted.path.exists():
        cure = "delete it and run the same command again"
        return wanted.path, _checked(_read(wanted.path, wanted), wanted, wanted.path, cure)

    # A damaged file of another program is ignored.
    for path in wanted.others:
        if path.is_file() and hashlib.sha256(data := _read(path, wanted)).hexdigest() == wanted.sha256:
            return path, data
    return None


def _download(wanted: _WantedFile) -> bytes:
    """Download, check and keep the file, and return its bytes; a partial or wrong file never gets its name."""
    try:
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        with storage.replacing(wanted.path) as partial:
            partial.touch()
            _transfer(wanted, partial)
            return _checked(partial.read_bytes(), wanted, wanted.uri, wanted.cure)
    except OSError as error:
        raise ConfigError(
            f"{wanted.title}: cannot write {wanted.path} ({_reason(error)}); set STYLEGAN_WEIGHTS to another folder"
        ) from error


def _transfer(wanted: _WantedFile, target: Path) -> None:
    """Copy the bytes from the source to `target`. Raises ConfigError if that fails."""
    try:
        filesystem, path = storage.filesystem(wanted.uri)
        filesystem.get_file(path, str(target), callback=_DownloadProgress(wanted))
    except Exception as error:  # every kind of store raises its own
        raise ConfigError(f"{wanted.title}: cannot download {wanted.uri} ({_reason(error)}); {wanted.cure}") from error


def _read(path: Path, wanted: _WantedFile) -> bytes:
    """Read a local file. Raises ConfigError if that fails."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{wanted.title}: cannot read {path} ({_reason(error)}); check the path and its permissions"
        ) from error


def _checked(data: bytes, wanted: _WantedFile, origin: str | Path, cure: str) -> bytes:
    """Return the bytes from `origin` unchanged. Raises ConfigError, with the cure, if they have another digest."""
    found = hashlib.sha256(data).hexdigest()
    if found != wanted.sha256:
        raise ConfigError(
            f"{wanted.title}: {origin} ({len(data):,} bytes) has the sha256 {found}, expected {wanted.sha256}; {cure}"
        )
    return data


def _reason(error: Exception) -> str:
    """Return the cause of a failure in one line."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return one_line(error)


class _DownloadProgress(Callback):
    """fsspec's callback of a download, which logs its progress in MB."""

    def __init__(self, wanted: _WantedFile) -> None:
        super().__init__()
        self.progress = Progress(f"download {wanted.path.name}", wanted.num_bytes / MEGABYTE, "MB")

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        """Log the bytes so far; the size that the server reports replaces the expected one."""
        self.progress.total = (self.size or 0) / MEGABYTE or self.progress.total
        self.progress.update(self.value / MEGABYTE)


def join_digests(digests: Iterable[str]) -> str:
    """Return the SHA-256 of a network: of several files, the digest of their digests in order; of one file, its own."""
    first, *more = digests
    return hashlib.sha256("".join([first, *more]).encode()).hexdigest() if more else first
