"""What may stand in `data.source`: URLs without credentials, brace patterns and globs; and tokens of single files."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import fsspec

from stylegan import storage
from stylegan.data.sources.base import info_token, stat_token
from stylegan.errors import ConfigError, StepError, one_line
from stylegan.retry import patient

_SECRET = re.compile(
    r"(x-(amz|goog|ms)-.*|awsaccesskeyid|googleaccessid|sig|signature|expires|sas|s[eprtv]|.*(token|secret|password|passwd|credential|api_?key).*|key|pwd|auth)",
    re.IGNORECASE,
)
_PACKAGES = {
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "oci": "ocifs",
    "oss": "ossfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "webhdfs": "requests",
    "github": "requests",
    "dropbox": "dropboxdrivefs",
}
_BRACES = re.compile(r"\{([^{}]*)\}")
MAX_FILES = 1_000_000  # that a brace pattern may name


def check_uri(key: str, uri: str) -> str:
    """The URI, absolute if it is local.

    Raises:
        ConfigError: it carries credentials, which would end up in configs, logs and registries, or its store is not known or needs
            a package that is not installed.
    """
    if storage.is_local(uri):
        return storage.absolute(uri)
    parts = urlsplit(uri)
    secrets = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if is_secret(name)]
    if "@" in parts.netloc and (parts.password is not None or parts.scheme in ("http", "https", "ftp")):
        secrets.append("user:password@")
    if secrets:
        raise ConfigError(
            f"{key}={without_secrets(uri)}: carries credentials ({secrets[0]}), which would be kept with every run; give the URL without "
            "them and put them into the environment or the profile of that store"
        )
    require_package(key, uri)
    return uri if parts.query else uri.rstrip("/")


def without_secrets(uri: str) -> str:
    """A URL as it may be shown: without user, query and fragment."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) if parts.scheme else uri


def is_secret(name: str) -> bool:
    """Whether a parameter of a query signs a URL, tells when that expires, or carries a key."""
    return bool(_SECRET.fullmatch(name))


def require_package(key: str, uri: str) -> None:
    """Raises ConfigError if the store of a URL is not known, or needs a package that is not installed."""
    protocol = uri.partition("://")[0].partition("::")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        name = _PACKAGES.get(protocol, "that it asks for")
        raise ConfigError(
            f"{key}={uri}: {protocol}:// needs a package that is missing here ({one_line(error)}): pip install {name}"
        ) from None
    except ValueError:
        known = "s3://, gs://, hf://, https:// or memory://"
        raise ConfigError(
            f"{key}={uri}: unknown store {protocol}://; give a folder, or a URL that fsspec knows, such as {known}"
        ) from None


def file_token(uri: str) -> str:
    """What changes when one file changes: size and time of a local file, ETag or the like elsewhere.

    Raises:
        FileNotFoundError: there is none.
        StepError: it cannot be looked up.
    """
    if storage.is_local(uri):
        return stat_token(os.stat(uri))
    try:
        fs, path = storage.filesystem(uri)
        return info_token(patient(lambda: fs.info(path), without_secrets(uri)))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StepError(
            f"data.source={without_secrets(uri)}: cannot be looked up: {one_line(error)}; check its permissions"
        ) from error


def is_pattern(uri: str) -> bool:
    """Whether a URI names several files: `{000000..000009}`, `{a,b}`, `*` or `[0-9]`; not if there is such a local path."""
    path = urlsplit(uri).path if not storage.is_local(uri) else uri
    return bool(re.search(r"[*\[{]", path)) and not (storage.is_local(uri) and os.path.exists(uri))


def expand(uri: str) -> tuple[str, dict[str, str]]:
    """The folder above the files that a pattern names, and path and token of each.

    Raises:
        ConfigError: none, or one of those in braces is not there.
    """
    root = re.split(r"[*\[{]", uri, maxsplit=1)[0].rpartition("/")[0]
    tokens: dict[str, str] = {}
    try:
        for one in _braces(uri):
            tokens |= _glob(one, root) if re.search(r"[*\[]", one) else {}
        plain = [one for one in _braces(uri) if not re.search(r"[*\[]", one)]
        with ThreadPoolExecutor(16) as pool:
            tokens |= {
                one.removeprefix(root).lstrip("/"): token
                for one, token in zip(plain, pool.map(file_token, plain), strict=True)
            }
    except FileNotFoundError as error:
        raise ConfigError(
            f"data.source={uri}: not all files are there: {one_line(error)}; name only those that are"
        ) from None
    except OSError as error:
        raise StepError(f"data.source={uri}: cannot be listed: {one_line(error)}; check its permissions") from error
    if not tokens:
        raise ConfigError(f"data.source={uri}: no file has such a name; give the files that there are")
    return root, dict(sorted(tokens.items()))


def _glob(uri: str, root: str) -> dict[str, str]:
    fs, path = storage.filesystem(uri)
    _, top = storage.filesystem(root)
    found = {
        name: info
        for name, info in patient(lambda: fs.glob(path, detail=True), uri).items()
        if info.get("type") != "directory"
    }
    relative = {name: name.removeprefix(top).lstrip("/") for name in found}
    return {
        relative[name]: file_token(name) if storage.is_local(uri) else info_token(info) for name, info in found.items()
    }


def _braces(uri: str) -> list[str]:
    """All names of a pattern: `{000..010}` counts with as many digits as its ends have, `{a,b}` lists."""
    parts = _BRACES.split(uri)
    choices = [_choices(uri, part) if index % 2 else [part] for index, part in enumerate(parts)]
    num = 1
    for choice in choices:
        num *= len(choice)
    if num > MAX_FILES:
        raise ConfigError(f"data.source={uri}: names {num} files; at most {MAX_FILES} are allowed")
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(uri: str, inside: str) -> list[str]:
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if ends is None:
        return inside.split(",")
    first, last = int(ends[1]), int(ends[2])
    if last < first or last - first >= MAX_FILES:
        raise ConfigError(f"data.source={uri}: {{{inside}}} must count upwards, over at most {MAX_FILES} files")
    return [f"{number:0{len(ends[1])}d}" for number in range(first, last + 1)]
