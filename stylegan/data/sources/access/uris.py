"""Check and expand the values of `data.source`: URLs without credentials, brace patterns and globs; tokens of single files.

Brace patterns follow `braceexpand`, the package that webdataset expands its shard lists with, so a pattern that works
there works here. `webdataset.shardlists.expand_urls` itself is not used: it imports torch, splits a URL at `::`, which
fsspec uses to chain stores, and replaces `${NAME}` by environment variables.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlsplit

import fsspec
from braceexpand import braceexpand

from stylegan import storage
from stylegan.commands import pip_install
from stylegan.config.addresses import refuse_secret
from stylegan.data.sources.base import info_token, require_regular, stat_token
from stylegan.errors import ConfigError, StepError, one_line
from stylegan.retry import patient
from stylegan.uris import without_secrets

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
_WILDCARD = re.compile(r"[*\[]")
_PATTERN = re.compile(r"[*\[{]")
_NUMBERS = re.compile(r"\{(-?\d+)\.\.(-?\d+)((?:\.\.-?\d+)?)\}")  # {000..010}, {0..10..2}
_SINGLE_NAME = re.compile(r"\{((?:(?!\.\.)[^{},])*)\}")  # {000}: neither a list nor a range
_BRACE_TOKEN = re.compile(r"\{[^{},]*\.\.[^{},]*\}|[{},]")  # a whole range, or one character
MAX_FILES = 1_000_000  # the most files that a brace pattern may name


def check_uri(key: str, uri: str) -> str:
    """Return the URI, made absolute if it is a local path.

    Args:
        key: the config key of the URI, for messages.

    Raises:
        ConfigError: the URI carries credentials, which would end up in configs, logs and registries; or its store is
            unknown or needs a package that is not installed.
    """
    if storage.is_local(uri):
        return storage.absolute(uri)
    try:
        refuse_secret(key, uri)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    require_package(key, uri)
    return uri if urlsplit(uri).query else uri.rstrip("/")


def require_package(key: str, uri: str) -> None:
    """Raise ConfigError if the store of a URL is unknown or needs a package that is not installed.

    Args:
        key: the config key of the URL, for messages.
    """
    protocol = uri.partition("://")[0].partition("::")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        cure = f"run `{pip_install(package)}`" if package else "install that package"
        raise ConfigError(
            f"{key}={uri}: {protocol}:// needs a package that is missing here ({one_line(error)}): {cure}"
        ) from None
    except ValueError:
        known = "s3://, gs://, hf://, https:// or memory://"
        raise ConfigError(
            f"{key}={uri}: unknown store {protocol}://; give a folder, or a URL that fsspec knows, such as {known}"
        ) from None


def file_token(uri: str) -> str:
    """Return the token of one file: size and modification time of a local file, size and ETag (or MD5 or time) of a remote one.

    Raises:
        FileNotFoundError: no such file.
        StepError: the store refuses to describe the file, or it is a pipe or a device.
    """
    if storage.is_local(uri):
        facts = os.stat(uri)
        require_regular(uri, facts)
        return stat_token(facts)
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
    """Return True if a URI names several files: `{000000..000009}`, `{a,b}`, `*` or `[0-9]`.

    A local path that exists is never a pattern.
    """
    if storage.is_local(uri):
        return bool(_PATTERN.search(uri)) and not os.path.exists(uri)
    return bool(_PATTERN.search(urlsplit(uri).path))


def expand(uri: str) -> tuple[str, dict[str, str]]:
    """Find the files that a pattern names.

    Returns:
        The URI of the innermost folder above the first special character, and the token of each file by its path in
        that folder, sorted by path.

    Raises:
        ConfigError: no file matches, a file that the braces name is missing, or the braces name too many files.
        StepError: the store refuses to list its files.
    """
    root = _PATTERN.split(uri, maxsplit=1)[0].rpartition("/")[0]
    names = _expand_braces(uri)
    single = [name for name in names if not _WILDCARD.search(name)]
    tokens: dict[str, str] = {}
    try:
        # Globs find what exists.
        for name in names:
            if _WILDCARD.search(name):
                tokens |= _glob(name, root)

        # A file that is named without a wildcard must exist.
        with ThreadPoolExecutor(16) as pool:
            for name, token in zip(single, pool.map(file_token, single), strict=True):
                tokens[name.removeprefix(root).lstrip("/")] = token
    except FileNotFoundError as error:
        raise ConfigError(
            f"data.source={uri}: not all files are there: {one_line(error)}; name only those that are"
        ) from None
    except OSError as error:
        raise StepError(f"data.source={uri}: cannot be listed: {one_line(error)}; check its permissions") from error
    if not tokens:
        raise ConfigError(f"data.source={uri}: no file has such a name; name files that exist")
    return root, dict(sorted(tokens.items()))


def _glob(uri: str, root: str) -> dict[str, str]:
    """Return the token of each file that a glob matches, by its path in the folder `root`."""
    fs, path = storage.filesystem(uri)
    _, top = storage.filesystem(root)
    tokens = {}
    for name, info in patient(lambda: fs.glob(path, detail=True), uri).items():
        if info.get("type") != "directory":
            token = file_token(name) if storage.is_local(uri) else info_token(info)
            tokens[name.removeprefix(top).lstrip("/")] = token
    return tokens


# --- braces -----------------------------------------------------------------------------------------------------------


def _expand_braces(uri: str) -> list[str]:
    """Return every name of a brace pattern as `braceexpand` and bash do: lists, ranges of numbers or letters, steps, nesting.

    Some rules differ, because the patterns of existing data sets must keep their meaning: a backslash is an ordinary
    character, a single name in braces (`{000}`) is that name, a URI in which a brace has no partner is one name, and
    ranges of numbers count as `_keep_digits` explains.

    Raises:
        ConfigError: the pattern names more than `MAX_FILES` files, or a range counts downwards.
    """
    pattern = _NUMBERS.sub(partial(_keep_digits, uri), _SINGLE_NAME.sub(r"\1", uri))
    count = _count_names(pattern)
    if count > MAX_FILES:
        raise ConfigError(f"data.source={uri}: names {count} files; at most {MAX_FILES} are allowed")
    return list(braceexpand(pattern, escape=False)) if count else [uri]


def _keep_digits(uri: str, match: re.Match[str]) -> str:
    """Return a range of numbers in a form that counts with the digits of its first end.

    braceexpand pads to the longer end: of `{00..100}` it makes 000 ... 100. Here that range always made 00 ... 99, 100,
    so a range whose ends differ in length becomes a list. A range that counts downwards is most likely a mistake and is
    refused.
    """
    first, last, step = match.groups()
    if int(last) < int(first) or int(last) - int(first) >= MAX_FILES:
        raise ConfigError(f"data.source={uri}: {match[0]} must count upwards, over at most {MAX_FILES} files")
    if step or first.startswith("-") or len(first) == len(last):
        return match[0]
    numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return "{" + ",".join(numbers) + "}" if len(numbers) > 1 else numbers[0]


def _count_names(pattern: str) -> int:
    """Count the names of a brace pattern before any is made; return 0 if a brace has no partner.

    Alternatives add up, and what follows each other multiplies. Both are kept for every open brace: the names of the
    finished alternatives, and the names of the current one so far.
    """
    levels = [(0, 1)]
    for token in _BRACE_TOKEN.findall(pattern):
        finished, current = levels[-1]
        if token == "{":
            levels.append((0, 1))
        elif token == ",":
            if len(levels) > 1:
                levels[-1] = (finished + current, 1)
        elif token == "}":
            if len(levels) == 1:
                return 0
            levels.pop()
            outer_finished, outer_current = levels[-1]
            levels[-1] = (outer_finished, outer_current * (finished + current))
        else:
            levels[-1] = (finished, current * len(list(braceexpand(token, escape=False))))
    return levels[0][1] if len(levels) == 1 else 0
