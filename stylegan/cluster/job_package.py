"""Pack what a job on a cluster is given: the code of this program and one config, names of environment variables, no data.

The code of this machine is the code of the run: Ray puts the package first on the path of the driver and of all its
workers, before a version that the image of the cluster may have. Everything else comes from that image.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import distribution, requires
from pathlib import Path
from urllib.parse import urlsplit

import stylegan
from stylegan.config.addresses import addresses
from stylegan.config.file import dump
from stylegan.config.tree import Config
from stylegan.errors import ConfigError
from stylegan.records import digest
from stylegan.uris import is_local

PROJECT = "stylegan-pipeline"
PACKAGES = ("stylegan", "flows")
SUFFIXES = (".py", ".yaml", ".j2", ".html", ".css", ".js")  # modules, and the data files that they read
MAX_BYTES = 2 * 2**20
# Of the metadata of the installed project: its version is also that of the code on the cluster.
HEADERS = ("Metadata-Version", "Name", "Version", "Requires-Python", "Requires-Dist")
# Ray must be that of the cluster, and torch must be built for the GPUs of its nodes.
FROM_IMAGE = ("ray", "torch")

# Environment variables that a run may need: credentials and endpoints of storage, MLflow and Prefect, and our own.
SENT = (
    "AWS_*",
    "AZURE_STORAGE_*",
    "AZURE_CLIENT_*",
    "AZURE_TENANT_ID",
    "DATABRICKS_HOST",
    "DATABRICKS_TOKEN",
    "FSSPEC_*",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "MLFLOW_S3_*",
    "MLFLOW_TRACKING_*",
    "PGPASSWORD",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_KEY",
    "PREFECT_API_URL",
    "STORAGE_EMULATOR_HOST",
    "STYLEGAN_*",
)
# Of these, what names files, profiles and services of this machine.
KEPT = (
    "*_BUNDLE",
    "*_DIR",
    "*_FILE",
    "*_PATH",
    "AWS_CONTAINER_*",
    "AWS_DEFAULT_PROFILE",
    "AWS_EXECUTION_ENV",
    "AWS_PROFILE",
    "STYLEGAN_CACHE",
    "STYLEGAN_LOG",
    "STYLEGAN_WEIGHTS",
)


@dataclass(frozen=True)
class JobPackage:
    """The files that a job is given.

    Attributes:
        files: their bytes, by their paths in the package.
        config: path of the config among them.
        work: a digest of what is trained and where it is stored: jobs that share it would write the same checkpoints.
    """

    files: Mapping[str, bytes]
    config: str
    work: str

    @property
    def digest(self) -> str:
        """Ten hex characters that identify code and config, whatever the config's file is called."""
        content = hashlib.sha256()
        for path, data in sorted((path if path != self.config else "", data) for path, data in self.files.items()):
            content.update(f"{path}\0{len(data)}\0".encode() + data)
        return content.hexdigest()[:10]

    @cached_property
    def archive(self) -> bytes:
        """The zip file that is sent; the same files always give the same bytes, so that Ray keeps one copy of them."""
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, data in sorted(self.files.items()):
                archive.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)
        return target.getvalue()


def make_package(config: Config | None, name: str = "config.yaml") -> JobPackage:
    """Collect the code of this program and a config, in which Ray's address is that of the cluster it runs on.

    Args:
        config: that of the run, with its bases and overrides merged; None for a command that needs none.
        name: what its file is called on the cluster.

    Raises:
        ConfigError: the config names places that the cluster cannot have, or the package is too large.
    """
    files, work = {**_code(), **_metadata()}, ""
    if config:
        check_places(config)
        there = config.model_copy(update={"ray": config.ray.model_copy(update={"address": "auto"})})
        files[name] = dump(there).encode()
        decides = config.identity(set())
        work = digest([config.storage.root, config.seed, *(decides[name] for name in ("data", "model", "training"))])
    package = JobPackage(files, name, work)
    if len(package.archive) > MAX_BYTES:
        largest = max(package.files, key=lambda path: len(package.files[path]))
        raise ConfigError(
            f"the code and config have {len(package.archive):,} bytes as a zip file, more than the {MAX_BYTES:,} that a job "
            f"is given; the largest file is {largest}"
        )
    return package


def _code() -> dict[str, bytes]:
    """Return the files of both packages, wherever they are installed: side by side."""
    above = Path(stylegan.__file__).parents[1]
    paths = sorted(path for package in PACKAGES for path in (above / package).rglob("*"))
    return {str(path.relative_to(above)): path.read_bytes() for path in paths if path.suffix in SUFFIXES}


def _metadata() -> dict[str, bytes]:
    """Return the file in which Python finds the version of this project, also where it is not installed."""
    installed = distribution(PROJECT).metadata
    lines = [f"{name}: {value}" for name in HEADERS for value in installed.get_all(name) or ()]
    folder = f"{PROJECT.replace('-', '_')}-{installed['Version']}.dist-info"
    return {f"{folder}/METADATA": "".join(f"{line}\n" for line in lines).encode()}


def requirements() -> list[str]:
    """Return what pip must install for this project, but for Ray and torch, which an image has."""
    needed = [line for line in requires(PROJECT) or () if "extra ==" not in line]
    return [line for line in needed if line.replace("[", ">").partition(">")[0].strip().lower() not in FROM_IMAGE]


def check_places(config: Config) -> None:
    """Check that no address of a config makes sense on this machine only.

    Raises:
        ConfigError: a path is relative or below HOME, a store is the memory of a process, or MLflow's data would be lost
            with the folder of the job.
    """
    for key, uri in addresses(config):
        if key in ("data.label_file", "tracking.uri"):  # a label file may lie in the source
            continue
        cure = "give a URL such as s3://bucket/path, or the whole path of a folder that every node mounts"
        if uri.startswith("memory://"):
            raise ConfigError(f"{key}={uri}: is the memory of one process, which a cluster does not share; {cure}")
        if is_local(uri) and not uri.startswith(("/", "file://")):
            raise ConfigError(f"{key}={uri}: is a path from this folder or user, which a cluster does not have; {cure}")
    _check_tracking(config)


def _check_tracking(config: Config) -> None:
    uri, root = config.tracking.uri, config.storage.root
    cure = "give an MLflow server: --set tracking.uri=http://HOST:5000"
    if uri is None:
        if not is_local(root):
            raise ConfigError(
                "tracking.uri is not set: MLflow's data would be a file in the folder of the job, and lost with it; "
                + cure
            )
    elif uri.startswith("sqlite"):
        path = uri.partition(":///")[2].removeprefix("file:")
        if not is_local(root) or not path.startswith("/"):
            raise ConfigError(
                f"tracking.uri={uri}: a file of SQLite would be lost with the head of the cluster, and no other machine "
                f"could read it; {cure}"
            )


def environment(environ: Mapping[str, str], extra: Iterable[str] = ()) -> dict[str, str]:
    """Return the variables of this environment that a run on a cluster needs (`SENT`), and some more by their names.

    Raises:
        ConfigError: a variable of `extra` is not set.
    """
    missing = [name for name in extra if name not in environ]
    if missing:
        raise ConfigError(f"--env {missing[0]}: is not set in this environment; export it, or leave the option out")
    names = {name for name, value in environ.items() if value and _matches(name, SENT) and not _matches(name, KEPT)}
    return {name: environ[name] for name in sorted(names | set(extra))}


def own_addresses(config: Config, variables: Mapping[str, str]) -> list[str]:
    """Return the keys and variables whose URL names the machine that reads it: another one on a cluster than here."""
    named = [*addresses(config), *variables.items()]
    return [name for name, value in named if "://" in value and is_loopback(value)]


def is_loopback(url: str) -> bool:
    """Return whether a URL leads to the machine itself."""
    host = urlsplit(f"x{url[url.rindex('://') :]}").hostname or ""  # of the last link of a chain
    return host in ("localhost", "::1") or host.startswith("127.")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
