"""Tests of lists of URLs."""

import pickle
import socket
from http.server import BaseHTTPRequestHandler

import fsspec
import pytest

from stylegan.data.decode import UnreadableImage
from stylegan.data.sources import urls
from stylegan.errors import ConfigError, StepError


@pytest.fixture
def web(monkeypatch, serve) -> str:
    """Return the URL of a web server.

    It refuses `/secret.png`, does not have `/gone.png`, fails at `/broken.png` and serves everything else, with any
    query.
    """
    monkeypatch.setattr(urls, "PAUSES", (0.01,))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            status = {"/secret.png": 403, "/gone.png": 404, "/broken.png": 503, "/moved.png": 302}.get(path, 200)
            body = b"<!DOCTYPE html><p>log in" if path == "/login.png" else path.encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", self.path.partition("?to=")[2])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    return serve(Handler)


def test_a_url_in_each_line(tmp_path, web, opened, contents):
    """Paths are the server and path of the URLs. Remarks and empty lines are ignored."""
    (tmp_path / "list.txt").write_text(f"# images\n{web}/a.png\n\n  {web}/b,c/%C3%A4.png  \r\n")
    host = web.removeprefix("http://")
    assert contents(opened(tmp_path / "list.txt")) == {
        f"{host}/a.png": b"/a.png",
        f"{host}/b,c/ä.png": b"/b,c/%C3%A4.png",
    }


@pytest.mark.parametrize(("name", "mark"), [("list.csv", ","), ("list.tsv", "\t")])
def test_table_with_labels(tmp_path, opened, contents, name, mark):
    """The columns `url` and `label` may be in any order, labels may be names of classes, URLs may be of any store."""
    memory = fsspec.filesystem("memory")
    rows = [["caption", "URL", "label"]]
    for number, label in enumerate(["dog", "cat", ""]):
        memory.pipe(f"/listed/{number}.png", b"image %d" % number)
        rows.append(["a", f"memory://listed/{number}.png", label])
    (tmp_path / name).write_text("\n".join(mark.join(row) for row in rows))
    source = opened(tmp_path / name)
    assert source.label_names == ("cat", "dog")
    assert [image.label for image in source.images] == [1, 0, None]
    assert list(contents(source).values()) == [b"image 0", b"image 1", b"image 2"]


def test_list_that_lies_elsewhere(s3_server, opened, contents):
    """The list and its images may be in a bucket."""
    bucket = s3_server()
    s3 = fsspec.filesystem("s3")
    s3.pipe(f"{bucket}/a.png", b"image")
    s3.pipe(f"{bucket}/list.csv", f"label,url\n3,{bucket}/a.png\n".encode())
    source = opened(f"{bucket}/list.csv")
    assert (source.label_names, source.images[0].label) == (("0", "1", "2", "3"), 3)
    assert list(contents(source).values()) == [b"image"]


def test_signatures_change_nothing_and_stay_secret(tmp_path, web, opened, contents):
    """A URL with another signature is the same image. The signature is in no path, no pickle and no message."""
    signatures = []
    for secret in ("hunter1", "hunter2"):
        signed = f"X-Amz-Signature={secret}&X-Amz-Expires=9&AWSAccessKeyId={secret}"
        (tmp_path / "list.txt").write_text(
            f"{web}/a.png?{signed}\n{web}/secret.png?{signed}\n{web}/broken.png?{signed}\n"
        )
        source = opened(tmp_path / "list.txt")
        signatures.append(source.signature)
        assert secret not in str(source.images)
        assert secret.encode() not in pickle.dumps(source.open)
        with source.open() as read:
            assert read(source.images[0].path) == b"/a.png"
            for image, status in zip(source.images[1:], ("503", "403"), strict=True):
                with pytest.raises(OSError, match=status) as caught:
                    read(image.path)
                assert secret not in str(caught.value)
                assert caught.value.__suppress_context__
    assert signatures[0] == signatures[1]


def test_queries_tell_images_apart(tmp_path, web, opened):
    """URLs with different queries are different images unless only their secrets differ."""
    (tmp_path / "list.txt").write_text(f"{web}/image?id=1\n{web}/image?id=2\n{web}/image?id=1&token=x\n")
    assert len(opened(tmp_path / "list.txt").images) == 2


def test_dead_links_are_those_images_fault(tmp_path, web, opened):
    """A missing file, a failing server and a missing server raise OSError for one image, not StepError for all."""
    (tmp_path / "list.txt").write_text(
        f"{web}/gone.png\n{web}/broken.png\nhttp://127.0.0.1:9/a.png\nmemory://nowhere/a.png\n"
    )
    source = opened(tmp_path / "list.txt")
    with source.open() as read:
        for image in source.images:
            with pytest.raises(OSError, match=r"127\.0\.0\.1|nowhere") as caught:
                read(image.path)
            assert not isinstance(caught.value, StepError)


def test_names_from_urls_lead_nowhere(tmp_path, opened):
    """No `..` of a URL gets into a path."""
    (tmp_path / "list.txt").write_text("https://host/../../etc/a.png\nhttps://../b.png\nhttps://host/%2e%2e/c.png\n")
    paths = [image.path for image in opened(tmp_path / "list.txt").images]
    assert sorted(paths) == ["_/b.png", "host/c.png", "host/etc/a.png"]


@pytest.mark.parametrize(
    ("text", "words", "kind"),
    [
        (
            "https://host/a.png\nimages/b.png\n",
            "line 2 contains 'images/b.png'; must be a URL such as https://host/image.png",
            StepError,
        ),
        ("file:///etc/passwd\n", "line 1 contains 'file:///etc/passwd'; must be a URL", StepError),
        ("file://etc/passwd\n", "line 1 contains 'file://etc/passwd'; must be a URL", StepError),
        ("local://etc/passwd\n", "not a file of this machine", StepError),
        ("zip://a.png::file:///etc/a.zip\n", "not a file of this machine", StepError),
        ("url,label\n,1\n", "line 2 contains ''; must be a URL", StepError),
        (
            "url,label\nhttps://host/a.png,cat\nhttps://host/a.png,dog\n",
            "gives host/a.png two labels, 'cat' and 'dog'; remove one of its lines",
            StepError,
        ),
        ("url,label\nhttps://host/a.png," + "x" * 200_000, "line 2 is no line of a table (field larger", StepError),
        ("gs4://bucket/a.png\n", "unknown store gs4://", ConfigError),
        ("# nothing\n", "contains no image", StepError),
    ],
)
def test_wrong_lists_are_one_line(tmp_path, opened, text, words, kind):
    """A wrong list gives one line: the number of the wrong line, its content and what is allowed."""
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(kind) as caught:
        opened(tmp_path / "list.csv")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


ADDRESSES = ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "100.100.100.200"]


@pytest.mark.parametrize("host", ADDRESSES)
@pytest.mark.parametrize("protocol", ["http", "ftp"])
def test_addresses_of_metadata_services_are_refused(tmp_path, opened, protocol, host):
    """A list from elsewhere must not make this machine fetch its own credentials."""
    (tmp_path / "list.txt").write_text(f"https://host/a.png\n{protocol}://user@{host}/latest/meta-data.png\n")
    with pytest.raises(StepError, match=r"line 2 contains .*an address at which clouds give credentials"):
        opened(tmp_path / "list.txt")


@pytest.mark.parametrize("way", ["redirect", "name", "number"])
def test_ways_to_a_metadata_service_are_refused(tmp_path, web, opened, monkeypatch, way):
    """Neither a redirect nor a name nor another way to write the address gets past the check of its socket."""
    known = socket.getaddrinfo

    def resolve(host, *arguments, **options):
        return known("169.254.169.254" if host == "metadata.test" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    ways = {"redirect": f"{web}/moved.png?to=http://169.254.169.254/a.png", "name": "http://metadata.test/a.png"}
    (tmp_path / "list.txt").write_text(ways.get(way, "http://2852039166/a.png"))
    source = opened(tmp_path / "list.txt")
    with source.open() as read, pytest.raises(OSError, match=r"moved|metadata|2852039166") as caught:
        read(source.images[0].path)
    assert way != "name" or "is an address of a metadata service" in str(caught.value)


def test_redirects_are_followed(tmp_path, web, opened, contents):
    (tmp_path / "list.txt").write_text(f"{web}/moved.png?to=/a.png")
    assert list(contents(opened(tmp_path / "list.txt")).values()) == [b"/a.png"]


def test_page_in_place_of_an_image(tmp_path, web, opened):
    """A page that asks for a login is an answer of the server, and proves nothing about the image."""
    (tmp_path / "list.txt").write_text(f"{web}/login.png")
    source = opened(tmp_path / "list.txt")
    with source.open() as read, pytest.raises(OSError, match="the answer is a page, not an image"):
        read(source.images[0].path)


def test_answers_larger_than_any_picture(tmp_path, web, opened, monkeypatch):
    monkeypatch.setattr("stylegan.data.sources.base.LARGEST", 10)
    monkeypatch.setattr(urls, "LARGEST", 10)
    fsspec.filesystem("memory").pipe("/listed/large.png", bytes(100))
    (tmp_path / "list.txt").write_text(f"{web}/1234567890.png\nmemory://listed/large.png\n{web}/a.png")
    source = opened(tmp_path / "list.txt")
    with source.open() as read:
        for image in source.images:
            if image.path.endswith("/a.png"):
                assert read(image.path) == b"/a.png"
                continue
            with pytest.raises(UnreadableImage, match="at most 10 are allowed"):
                read(image.path)


def test_urls_of_one_path_are_kept_apart(tmp_path, web, opened, contents):
    """URLs that differ by their protocol, by `//` or by escapes alone are different images; a repeated URL is one."""
    host = web.removeprefix("http://")
    lines = [f"{web}/a/b.png", f"{web}/a//b.png", f"{web}/a%2Fb.png", f"{web}/a/./b.png", f"{web}/a/b.png?token=x"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    found = contents(opened(tmp_path / "list.txt"))
    assert sorted(found.values()) == [b"/a%2Fb.png", b"/a//b.png", b"/a/b.png", b"/a/b.png"]
    assert found[f"{host}/a/b.png"] == b"/a/b.png"


def test_url_with_two_labels_is_refused(tmp_path, opened):
    (tmp_path / "list.csv").write_text("url,label\nhttps://h/a.png,cat\nhttps://h/a.png?token=x,dog\n")
    with pytest.raises(StepError, match=r"gives h/a\.png two labels, .*; remove one of its lines"):
        opened(tmp_path / "list.csv")


@pytest.mark.parametrize("url", ["http://[::1/a.png", "http://[x]/a.png", "http://?a.png"])
def test_urls_that_cannot_be_parsed(tmp_path, opened, url):
    (tmp_path / "list.txt").write_text(url)
    with pytest.raises(StepError, match="line 1 contains"):
        opened(tmp_path / "list.txt")


def test_line_that_is_no_url(tmp_path, opened, monkeypatch):
    """A file of something else is not read whole; lines may end as on old Macs."""
    monkeypatch.setattr(urls, "_LONGEST_LINE", 100)
    (tmp_path / "list.txt").write_bytes(b"https://a.b/1.png\n" + bytes(101))
    with pytest.raises(StepError, match="has a line of more than 100 bytes; it is no list of URLs"):
        opened(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"https://a.b/1.png\rhttps://a.b/2.png\r")
    assert [image.path for image in opened(tmp_path / "list.txt").images] == ["a.b/1.png", "a.b/2.png"]
