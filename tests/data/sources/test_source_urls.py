"""Lists of URLs."""

import pickle
from http.server import BaseHTTPRequestHandler

import fsspec
import pytest

from stylegan.data.sources import urls
from stylegan.errors import ConfigError, StepError


@pytest.fixture
def web(monkeypatch, serve) -> str:
    """A web server that serves `/a.png` with any query, refuses `/secret.png` and is broken at `/broken.png`."""
    monkeypatch.setattr(urls, "PAUSES", (0.01,))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            status = {"/secret.png": 403, "/gone.png": 404, "/broken.png": 503}.get(path, 200)
            body = path.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    return serve(Handler)


def test_a_url_in_each_line(tmp_path, web, opened, contents):
    """Names are server and path; remarks and empty lines do not count."""
    (tmp_path / "list.txt").write_text(f"# images\n{web}/a.png\n\n  {web}/b,c/%C3%A4.png  \r\n")
    host = web.removeprefix("http://")
    assert contents(opened(tmp_path / "list.txt")) == {
        f"{host}/a.png": b"/a.png",
        f"{host}/b,c/ä.png": b"/b,c/%C3%A4.png",
    }


@pytest.mark.parametrize(("name", "mark"), [("list.csv", ","), ("list.tsv", "\t")])
def test_table_with_labels(tmp_path, opened, contents, name, mark):
    """The columns `url` and `label` at any place; texts are names of classes; URLs of any store."""
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
    """The list itself may be in a bucket, and its URLs too."""
    bucket = s3_server()
    s3 = fsspec.filesystem("s3")
    s3.pipe(f"{bucket}/a.png", b"image")
    s3.pipe(f"{bucket}/list.csv", f"label,url\n3,{bucket}/a.png\n".encode())
    source = opened(f"{bucket}/list.csv")
    assert (source.label_names, source.images[0].label) == (("0", "1", "2", "3"), 3)
    assert list(contents(source).values()) == [b"image"]


def test_signatures_change_nothing_and_stay_secret(tmp_path, web, opened, contents):
    """A URL that was signed anew is the same image; who signed it is in no path, no pickle and no message."""
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
    """What is no signature is part of the address."""
    (tmp_path / "list.txt").write_text(f"{web}/image?id=1\n{web}/image?id=2\n{web}/image?id=1&token=x\n")
    assert len(opened(tmp_path / "list.txt").images) == 2


def test_dead_links_are_those_images_fault(tmp_path, web, opened):
    """A file that is gone, a server that fails and one that is not there do not end the work."""
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
    """Dots in URLs do not come into paths."""
    (tmp_path / "list.txt").write_text("https://host/../../etc/a.png\nhttps://../b.png\nhttps://host/%2e%2e/c.png\n")
    paths = [image.path for image in opened(tmp_path / "list.txt").images]
    assert sorted(paths) == ["_/b.png", "host/c.png", "host/etc/a.png"]


@pytest.mark.parametrize(
    ("text", "words", "kind"),
    [
        (
            "https://host/a.png\nimages/b.png\n",
            "line 2 holds no URL such as https://host/image.png but 'images/b.png'",
            StepError,
        ),
        ("file:///etc/passwd\n", "line 1 holds no URL", StepError),
        ("file://etc/passwd\n", "line 1 holds no URL", StepError),
        ("local://etc/passwd\n", "line 1 holds no URL", StepError),
        ("zip://a.png::file:///etc/a.zip\n", "line 1 holds no URL", StepError),
        ("url,label\n,1\n", "line 2 holds no URL", StepError),
        ("gs4://bucket/a.png\n", "unknown store gs4://", ConfigError),
        ("# nothing\n", "holds no image", StepError),
    ],
)
def test_wrong_lists_are_one_line(tmp_path, opened, text, words, kind):
    """The line, what it holds and what is allowed."""
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(kind) as caught:
        opened(tmp_path / "list.csv")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
