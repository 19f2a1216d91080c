"""Check the form of every address in a config: paths and URLs of storage, images, weight files and MLflow.

Nothing is opened here. A mistake such as `s3:/bucket` would otherwise make a folder of that name on this machine.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from stylegan.config.sections import UncheckedConfig
from stylegan.errors import ConfigError
from stylegan.uris import MAX_NAME, find_secret, is_local, local_path, redact

KINDS_OF_FEATURES = ("classifier", "rotation", "inception")
EMBEDDED_SOURCES = ("digits", "photos")  # images that come with scikit-learn
MAX_PATH = 3800  # bytes of a path on Linux (4,095), less what is appended to a root
MAX_SHOWN = 200  # characters of an address in a message
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control characters, halves of characters, ends of lines
# Stores whose URLs have nothing between `://` and the path.
_WITHOUT_HOST = ("file", "local", "memory", "sqlite")
# The right place for the login to each kind of store.
_LOGINS = {
    ("s3", "s3a"): "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile of AWS",
    ("gs", "gcs"): "GOOGLE_APPLICATION_CREDENTIALS",
    (
        "abfs",
        "abfss",
        "az",
        "adl",
    ): "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    ("hf",): "HF_TOKEN",
    ("postgresql",): "PGPASSWORD or ~/.pgpass",
    ("mysql",): "the file that `?read_default_file=~/.my.cnf` names",
}


def addresses(config: UncheckedConfig) -> Iterator[tuple[str, str]]:
    """Yield every key of a config whose value is an address, and the value."""
    yield "storage.root", config.storage.root
    if config.data.source not in EMBEDDED_SOURCES:
        yield "data.source", config.data.source
    if config.evaluation.features not in KINDS_OF_FEATURES:
        yield "evaluation.features", config.evaluation.features
    weights, warm = config.evaluation.weights, config.training.warm_start
    others = {
        "data.label_file": config.data.label_file,
        "tracking.uri": config.tracking.uri,
        "training.warm_start.checkpoint": warm.checkpoint if warm else None,
        **{f"evaluation.weights.{name}": getattr(weights, name) for name in type(weights).model_fields},
    }
    yield from ((key, value) for key, value in others.items() if value is not None)


def check_addresses(config: UncheckedConfig) -> None:
    """Raise ValueError at the first address of a wrong form, or text of any key with a secret; the message is one line."""
    for key, value in _texts("", config.model_dump()):
        refuse_secret(key, value)
    for key, value in addresses(config):
        check_form(key, value)
    _check_root(config.storage.root)


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield every text in a config with its key, so that no field is forgotten."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(f"{key}.{name}" if key else str(name), item)


def refuse_secret(key: str, uri: str) -> None:
    """Raise ValueError if an address holds a login or another secret: it would be kept with every run."""
    secret = find_secret(uri)
    if secret is None:
        return
    scheme = uri.partition("://")[0].partition("+")[0].lower()
    place = next((names for kinds, names in _LOGINS.items() if scheme in kinds), None)
    if key == "tracking.uri" and scheme in ("http", "https"):
        place = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    where = f"such as {place}" if place else "or the profile of that store (~/.netrc, ~/.config/fsspec/conf.json)"
    raise ValueError(
        f"{key}={_short(uri)}: carries credentials ({secret}), which would be kept with every run; give it without them "
        f"and put them into the environment, {where}"
    )


def check_argument(name: str, uri: str) -> None:
    """Check an address that stands on the command line. Raises ConfigError as `check_form` and `refuse_secret` say."""
    try:
        refuse_secret(name, uri)
        check_form(name, uri)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_form(key: str, uri: str) -> None:
    """Raise ValueError if an address is empty, has unseen characters, or looks like a URL and is none."""
    shown = f"{key}={_short(uri)!r}"
    if not uri:
        raise ValueError(f"{key}='': is empty; give a path or URL, or remove the key")
    if uri != uri.strip() or any(unicodedata.category(letter) in _UNSEEN for letter in uri):
        raise ValueError(f"{shown}: begins or ends with a blank, or has a control character; remove it")
    scheme, mark, rest = uri.partition("://")
    slashless = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/?", uri)
    if re.match(r"[A-Za-z]:(\\|/(?!/))|\\\\", uri):
        raise ValueError(f"{shown}: is a path of Windows; give one of this machine, such as /data/faces")
    if not mark and slashless and (slashless[0].endswith("/") or slashless[1].lower() in _stores()):
        slashes = ":///" if slashless[1] in _WITHOUT_HOST else "://"
        right = f"{slashless[1]}{slashes}{uri[slashless.end() :].lstrip('/')}"
        raise ValueError(f"{shown}: is neither a path nor a URL; did you mean {redact(right)}?")
    if mark and not scheme:
        raise ValueError(f"{shown}: names no store before ://; give a path, or a URL such as s3://bucket/path")
    if mark and "::" not in uri and scheme not in _WITHOUT_HOST and not rest.strip("/"):
        raise ValueError(f"{shown}: names nothing after ://; give a URL such as s3://bucket/path")
    if uri.startswith("file://") and not rest.startswith("/"):
        raise ValueError(f"{shown}: must be a whole path after file://, such as file:///{rest}; or give a plain path")
    if "{" not in uri:  # a pattern may name many files
        _check_length(shown, local_path(uri) if is_local(uri) else uri)


def _stores() -> list[str]:
    """Return the schemes of the stores that fsspec knows."""
    import fsspec  # takes a quarter of the time of reading a config, and most configs name plain paths

    return fsspec.available_protocols()


def _short(uri: str) -> str:
    """Return an address as it may be shown."""
    text = redact(uri)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _check_length(shown: str, path: str) -> None:
    long = is_local(path) and next((part for part in path.split("/") if len(part.encode()) > MAX_NAME), None)
    if long:
        raise ValueError(f"{shown}: the name {long[:20]}... has more than {MAX_NAME} bytes; use a shorter one")
    if len(path.encode()) > MAX_PATH:
        raise ValueError(f"{shown}: the path has more than {MAX_PATH} bytes; use a shorter one")


def _check_root(root: str) -> None:
    """Check that a root can be the beginning of other paths, and that its store is one that this program can write."""
    if is_local(root):
        return
    scheme, _, rest = root.partition("://")
    known = "give a folder, or a URL that fsspec knows, such as s3://bucket/path"
    if scheme.partition("::")[0] not in _stores():
        raise ValueError(f"storage.root={root}: unknown store {scheme}://; {known}")
    if scheme == "local":
        raise ValueError(f"storage.root={root}: write it as the path {rest or '/'}")
    if scheme in ("http", "https"):
        raise ValueError(f"storage.root={root}: a web server cannot be written to; {known}")
    if scheme not in ("memory",) and rest.startswith("/"):
        raise ValueError(f"storage.root={root}: names no bucket; write {scheme}://bucket/path")
    if re.search(r"[?#]", rest):
        raise ValueError(f"storage.root={root}: must not have ? or #, which end the path of a URL; use another folder")
