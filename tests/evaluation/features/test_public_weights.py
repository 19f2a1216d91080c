"""Public weight files are found, downloaded from a real server on this machine and checked, or refused in one line."""

import hashlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from stylegan.config.sections import EvaluationConfig, WeightsConfig
from stylegan.errors import ConfigError
from stylegan.evaluation.features import public_weights as weights
from stylegan.evaluation.features.public_weights import KNOWN, WeightFile, fetch, fetch_all, locate, missing, needed

DATA = bytes(range(256)) * 8192  # 2 MiB
SHA = hashlib.sha256(DATA).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    """A server of five files.

    /good, /together (once four requests wait for it), /wrong, /short (ends early), /cut (ends early, without a length).
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked = self.server.asked
        asked.append(self.path)
        name = self.path.split("/")[3 if self.path.startswith("http") else 1]
        if name == "together":
            self.server.four.wait(timeout=20)
        body = {"good": DATA, "together": DATA, "wrong": DATA[::-1], "short": DATA[:9999], "cut": DATA[:9999]}.get(name)
        self.send_response(404 if body is None else 200)
        if name != "cut":
            self.send_header("Content-Length", str(len(DATA) if body else 0))
        self.end_headers()
        self.wfile.write(body or b"")
        self.close_connection = body is not DATA

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """Yield a server that records every requested path in `asked`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.asked, server.four = [], threading.Barrier(4)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of weights of this test; torch.hub has no files."""
    monkeypatch.setenv("STYLEGAN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "weights"


@pytest.fixture
def publish(server: ThreadingHTTPServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return `publish(name)`, which makes that file of the server the public LPIPS file and returns its URL."""

    def make(name: str) -> str:
        url = f"http://127.0.0.1:{server.server_port}/{name}/vgg.pth"
        monkeypatch.setitem(weights.KNOWN, "lpips", WeightFile("lpips.pth", url, SHA, len(DATA), ("vgg.pth",)))
        return url

    return make


def names(folder: Path) -> list[str]:
    """Return the sorted names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_downloads_once_and_then_needs_no_server(
    publish: Callable, server: ThreadingHTTPServer, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second call reads the file that the first one kept; the download logs its progress."""
    publish("good")
    with caplog.at_level(logging.INFO, logger="stylegan"):
        assert fetch("lpips") == (DATA, SHA)
    assert names(folder) == ["lpips.pth"]
    assert any("download lpips.pth: 2 of 2 MB" in message for message in caplog.messages)
    assert server.asked == ["/good/vgg.pth"]
    server.shutdown()
    server.server_close()
    assert fetch("lpips") == (DATA, SHA)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wrong", rf"has the sha256 {hashlib.sha256(DATA[::-1]).hexdigest()}, expected {SHA}"),
        ("cut", rf"\(9,999 bytes\) has the sha256 {hashlib.sha256(DATA[:9999]).hexdigest()}, expected {SHA}"),
        ("short", "cannot download"),
        ("nothing", r"cannot download .*\(there is no such file\)"),
    ],
)
def test_keeps_nothing_but_the_right_file(name: str, reason: str, publish: Callable, folder: Path) -> None:
    """Wrong bytes, a truncated body, a missing page: one line with file, URL and cure, and the folder stays empty."""
    url = publish(name)
    with pytest.raises(ConfigError, match=reason) as caught:
        fetch("lpips")
    assert str(caught.value).startswith("lpips weights: ")
    assert url in str(caught.value)
    assert str(caught.value).endswith(f"; get {url} by other means and put it at {folder / 'lpips.pth'}")
    assert "\n" not in str(caught.value)
    assert names(folder) == []


def test_offline_says_what_to_put_where(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server listens: the line has file, URL and path; a file that the user puts there under its own name works."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/vgg.pth"
    monkeypatch.setitem(weights.KNOWN, "lpips", WeightFile("lpips.pth", url, SHA, len(DATA), ("vgg.pth",)))
    with pytest.raises(
        ConfigError,
        match=rf"^lpips weights: cannot download {url} \([^\n]+\); get {url} by .* at {folder / 'lpips.pth'}$",
    ):
        fetch("lpips")
    (folder / "vgg.pth").write_bytes(DATA)
    assert fetch("lpips") == (DATA, SHA)


def test_several_at_once(publish: Callable, server: ThreadingHTTPServer, folder: Path) -> None:
    """Downloads of the same file do not disturb each other: each gets the file, and one copy is kept."""
    publish("together")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetch("lpips"), range(4)))
    assert found == [(DATA, SHA)] * 4
    assert len(server.asked) == 4
    assert names(folder) == ["lpips.pth"]


def test_finds_what_other_packages_downloaded(publish: Callable, server: ThreadingHTTPServer, tmp_path: Path) -> None:
    """torch.hub's checkpoints are read where they are; a damaged one is ignored and not changed."""
    publish("good")
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "vgg.pth").write_bytes(DATA)
    assert fetch("lpips") == (DATA, SHA)
    assert server.asked == []
    (checkpoints / "vgg.pth").write_bytes(DATA[:100])
    assert fetch("lpips") == (DATA, SHA)
    assert (checkpoints / "vgg.pth").read_bytes() == DATA[:100]


def test_damaged_cache_is_named(publish: Callable, folder: Path) -> None:
    """A kept file that has changed is neither used nor replaced without the user's knowledge."""
    publish("good")
    fetch("lpips")
    (folder / "lpips.pth").write_bytes(DATA[:-1])
    with pytest.raises(
        ConfigError, match=rf"^lpips weights: {folder / 'lpips.pth'} .* expected {SHA}; delete it and run the same .*$"
    ):
        fetch("lpips")


def test_folder_that_cannot_be_written(publish: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the setting for another folder."""
    publish("good")
    (tmp_path / "file").touch()
    monkeypatch.setenv("STYLEGAN_WEIGHTS", str(tmp_path / "file" / "below"))
    with pytest.raises(
        ConfigError, match=r"^lpips weights: cannot write .*lpips.pth \(.+\); set STYLEGAN_WEIGHTS to another folder$"
    ):
        fetch("lpips")


def test_file_of_the_user(folder: Path, tmp_path: Path, publish: Callable) -> None:
    """A path is read where it is; a file that is not the public one needs its digest."""
    publish("nothing")
    mine, other = tmp_path / "mine.pth", tmp_path / "other.pth"
    mine.write_bytes(DATA)
    other.write_bytes(b"other")
    digest = hashlib.sha256(b"other").hexdigest()
    assert fetch("lpips", str(mine)) == (DATA, SHA)
    assert fetch("lpips", f"{other}#sha256={digest}") == (b"other", digest)
    with pytest.raises(
        ConfigError,
        match=rf"^evaluation.weights.lpips={other}: .* has the sha256 {digest}, expected {SHA}; .*#sha256=DIGEST",
    ):
        fetch("lpips", str(other))
    with pytest.raises(
        ConfigError,
        match=r"^evaluation.weights.lpips=.*gone.pth: cannot read .*gone.pth \(there is no such file\); check .*$",
    ):
        fetch("lpips", str(tmp_path / "gone.pth"))
    with pytest.raises(ConfigError, match=r"'12ab' is no sha256; put its 64 digits 0-9, a-f behind #sha256=$"):
        fetch("lpips", f"{other}#sha256=12ab")
    assert not folder.exists()


def test_url_of_the_user_is_kept_too(folder: Path, publish: Callable) -> None:
    """Any store of fsspec works; a file that is not the public one is kept under its digest, so the two never meet."""
    publish("nothing")
    for name, data in (("mirror.pth", DATA), ("tuned.pth", b"tuned")):
        with fsspec.open(f"memory://weights/{name}", "wb") as file:
            file.write(data)
    digest = hashlib.sha256(b"tuned").hexdigest()
    assert fetch("lpips", f"memory://weights/tuned.pth#sha256={digest}") == (b"tuned", digest)
    assert fetch("lpips", "memory://weights/mirror.pth") == (DATA, SHA)
    assert names(folder) == sorted([f"{digest[:8]}-tuned.pth", "lpips.pth"])


def test_proxy_of_the_environment_is_used(
    server: ThreadingHTTPServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines without direct internet access set HTTP_PROXY."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_port}")
    url = "http://weights.invalid/good/vgg.pth"
    assert fetch("lpips", f"{url}#sha256={SHA}") == (DATA, SHA)
    assert server.asked == [url]


@pytest.mark.parametrize(
    ("features", "metrics", "expected"),
    [
        ("classifier", ("fid", "ppl_wend"), ()),
        ("inception", ("is", "fid"), ("inception",)),
        ("inception", ("separability",), ()),
        ("inception", ("ppl_wfull", "kid"), ("inception", "vgg16", "lpips")),
        ("inception", ("pr",), ("vgg16",)),
        ("inception", ("truncation",), ("inception", "vgg16")),
    ],
)
def test_needed_are_the_networks_of_the_metrics(features: str, metrics: tuple, expected: tuple) -> None:
    """Only the published protocols need files, and each metric needs its own."""
    assert needed(EvaluationConfig(features=features, metrics=metrics)) == expected


def test_missing_asks_no_server(
    publish: Callable, server: ThreadingHTTPServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It returns the files to download; a path without a file is an error before anything trains."""
    publish("good")
    evaluation = EvaluationConfig(features="inception", metrics=("ppl_zend",))
    assert missing(evaluation) == [KNOWN["vgg16"], KNOWN["lpips"]]
    assert server.asked == []
    fetch("lpips")
    assert missing(evaluation) == [KNOWN["vgg16"]]
    monkeypatch.setenv("STYLEGAN_WEIGHTS", str(tmp_path / "empty"))
    assert missing(evaluation) == [KNOWN["vgg16"], KNOWN["lpips"]]
    with pytest.raises(ConfigError, match=r"^evaluation.weights.vgg16=nowhere.pth: cannot read "):
        missing(evaluation.model_copy(update={"weights": WeightsConfig(vgg16="nowhere.pth")}))


def test_locate_says_where_a_file_is_or_would_go(
    publish: Callable, server: ThreadingHTTPServer, folder: Path, tmp_path: Path
) -> None:
    """This holds before and after a download, and for a copy of the user; no server gets a request."""
    url = publish("good")
    place = locate("lpips")
    assert (place.path, place.uri, place.target, place.num_bytes) == (None, url, folder / "lpips.pth", len(DATA))
    assert server.asked == []
    fetch_all(EvaluationConfig(features="inception", metrics=("separability",)))
    assert server.asked == []
    fetch("lpips")
    assert locate("lpips").path == folder / "lpips.pth"
    (tmp_path / "mine.pth").write_bytes(DATA)
    assert locate("lpips", str(tmp_path / "mine.pth")).path == tmp_path / "mine.pth"


def test_digests_are_those_in_the_names() -> None:
    """By torch.hub's convention, a name ends with the first eight digits of the file's sha256."""
    for kind in ("inception", "vgg16"):
        file = KNOWN[kind]
        assert all(name.endswith(f"-{file.sha256[:8]}.pth") for name in (file.name, file.url, *file.others))
    assert all(len(file.sha256) == 64 and file.url.startswith("https://") for file in KNOWN.values())
