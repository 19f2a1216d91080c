"""URIs: which are local, a path as a URL and back, and the secrets that they may hold.

Nothing that this program prints, logs or stores may hold a password. A config with one is refused (`find_secret`). What
comes from elsewhere (an environment variable, a list of URLs, the message of another library) is shown redacted: every
`UserError` is, by itself.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

MAX_NAME = 255  # bytes of a file name on Linux
# Query parameters that hold a key, the signature of a URL, or the facts that were signed: those of S3, Google, Azure.
_SECRET_NAME = re.compile(
    r"(x-(amz|goog|ms)-.*|awsaccesskeyid|googleaccessid|sig|signature|expires|sas|s[eprtv]"
    r"|.*(token|secret|password|passwd|credential|api_?key|account_?key|access_?key|access_?signature).*|key|pwd|auth)",
    re.IGNORECASE,
)
# `user:password@` after `://`. A colon may also begin a port. Up to the last @, since passwords with an unquoted / or @ are
# a common mistake: rather the host is lost from a message than a part of one is shown.
_LOGIN = re.compile(r"(://[^\s/?#@:]*):(?!\d{1,5}(?:[/?#\s]|$))\S*@")
_BARE_LOGIN = re.compile(r"(?<![\w/.:@])([\w.+-]+):[^\s/@:'\"]+@(?=\w)")  # user:password@host without its scheme
# On the web a user alone is a token.
_WEB_USER = re.compile(r"((?:https?|ftp)://)[^\s/?#@:]+@", re.IGNORECASE)
_PARAMETER = re.compile(r"([?&;#\s]|^)([A-Za-z][\w.%-]*)=()[^&;#\s'\"<>]+")
_QUOTED = re.compile(r"([?&;#\s(,]|^)([A-Za-z][\w.%-]*)=(['\"])[^'\"]+")
# Parts of connection strings (Azure, ODBC), and headers of requests.
_PART = re.compile(
    r"(?:(?<![\w.-])|(?<=%3B)|(?<=%3F)|(?<=%26))((?:account|sharedaccess)key|sharedaccesssignature|pwd|password)(\s*=\s*['\"]?|['\"]\s*:\s*['\"]|%3D)"
    r"(?:(?!%3B)[^\s;&,'\"])+",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"((?:authorization|x-api-key)['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer)\s+)?)[^\s'\",]+", re.IGNORECASE
)
_PLAIN_COLON = ("github", "git")  # github://owner:repository@branch/path


def is_local(uri: str) -> bool:
    """Return whether the URI is a path on this machine."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> str:
    """Return the absolute path of a local URI. A path is taken as it is; in a `file://` URL, %20 is a blank."""
    path = unquote(uri.removeprefix("file://")) if uri.startswith("file://") else uri
    return os.path.abspath(os.path.expanduser(path))


def file_url(path: str) -> str:
    """Return a path as a `file://` URL, in which blanks, `%`, `?`, `#` and other letters than ASCII are quoted."""
    return Path(os.path.abspath(path)).as_uri()


def is_secret(name: str) -> bool:
    """Return True if a query parameter contains a key, the signature of a URL or the time when that signature expires."""
    return bool(_SECRET_NAME.fullmatch(name))


def find_secret(uri: str) -> str | None:
    """Return what of a URI is secret, `user:password@` or the name of a query parameter; None if nothing is.

    Chained URLs (`zip://a.zip::https://...`) are searched link by link. The query of a local path is part of its name.
    """
    for link in re.sub(r"\s", "_", uri).split("::"):
        scheme = link.partition("://")[0].lower()
        if scheme not in _PLAIN_COLON and (_LOGIN.search(link) or _WEB_USER.search(link) or _BARE_LOGIN.match(link)):
            return "user:password@"
        part = _PART.search(unquote(link))
        if part:
            return part[1]
        if not is_local(link):
            query = re.split(r"[?#]", link, maxsplit=1)[1:]
            for parameter in re.split(r"[&;?#]", query[0] if query else ""):
                name, _, value = parameter.partition("=")
                if value and is_secret(unquote(name)):
                    return unquote(name)
    return None


def without_secrets(uri: str) -> str:
    """Return a URL that may be shown: without user, query and fragment."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) if parts.scheme else uri


def without_login(uri: str) -> str:
    """Return a URL of a web server without user and password."""
    return _WEB_USER.sub(r"\1", _LOGIN.sub("://", uri))


def redact(text: str) -> str:
    """Return a text in which the passwords, tokens and signatures of URLs, connection strings and headers are `***`."""
    if "=" in text or '":' in text or "':" in text or "%3D" in text.upper():
        text = _PART.sub(r"\1\2***", text)
        text = _without_values(_without_values(text, _PARAMETER), _QUOTED)
    if "://" in text:
        text = _LOGIN.sub(r"\1:***@", text)
        text = _WEB_USER.sub(r"\1***@", text)
    if "@" in text:
        text = _BARE_LOGIN.sub(r"\1:***@", text)
    return _HEADER.sub(r"\1***", text)


def _without_values(text: str, pattern: re.Pattern[str]) -> str:
    """Replace the secret ones among `name=value`. A value may hold others: `tracking.uri=https://host/?token=...`."""
    parts, done, position = [], 0, 0
    while match := pattern.search(text, position):
        before, name, _ = match.groups()
        position = match.end(3)
        # Outside a query only a name of some length is clear enough: `key=` and `st=` begin many harmless words.
        clear = before in tuple("?&;#") or len(name) > 4 or name.lower() == "sig"
        if clear and is_secret(unquote(name)):
            parts += [text[done:position], "***"]
            done = position = match.end()
    return "".join([*parts, text[done:]])
