"""Who may ask: the token, pages of other places, and the size of a request; and what browsers are told."""

import pytest
from served_models import write_model

from stylegan.serving import access

TOKEN = "correct-horse-battery"


@pytest.fixture
def guarded(open_app, found):
    """A client of an app with a token, by the name of another machine."""
    return open_app(found, token=TOKEN, host="gpu7.example.com")


def test_with_a_token_nothing_is_said_without_it(guarded):
    for path in ("/", "/image.png", "/model", "/version", "/openapi.json", "/static/page.js", "/nothing"):
        answer = guarded.get(path)
        assert answer.status_code == 401, path
        assert "Authorization: Bearer TOKEN" in answer.json()["detail"]
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.post("/images", json={"images": [{}]}).status_code == 401
    for given in ("Bearer wrong", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe4"):
        assert guarded.get("/model", headers={"Authorization": given.encode("latin-1")}).status_code == 401
    assert guarded.get(f"/model?token={TOKEN}").status_code == 401  # addresses are written into logs
    assert guarded.get("/health").status_code == 200
    assert guarded.get("/ready").status_code == 200


def test_the_token_opens_as_header_and_as_cookie(guarded):
    assert guarded.get("/image.png", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
    assert guarded.get("/?token=wrong").status_code == 401
    entered = guarded.get(f"/?token={TOKEN}")
    assert entered.status_code == 200
    assert 'http-equiv="refresh" content="0; url=./"' in entered.text
    assert TOKEN not in entered.text
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert guarded.get("/image.png").status_code == 200  # the client keeps the cookie


def test_without_a_token_only_this_machine_and_its_own_page_are_answered(client, open_app, tmp_path):
    assert client.get("/model", headers={"Origin": "http://localhost"}).status_code == 200
    for headers in ({"Host": "evil.example.com"}, {"Host": "localhost.evil.com"}, {"Host": ""}):
        assert client.get("/model", headers=headers).status_code == 403, headers
    for origin in ("https://evil.example.com", "null", "http://localhost:8000"):
        assert client.get("/model", headers={"Origin": origin}).status_code == 403, origin
        assert client.post("/images", json={"images": [{}]}, headers={"Origin": origin}).status_code == 403
    for name in ("127.0.0.1", "[::1]", "localhost:8501"):
        assert client.get("/health", headers={"Host": name}).status_code == 200


def test_a_body_that_is_too_long_is_refused_with_and_without_its_length(client, monkeypatch):
    monkeypatch.setattr(access, "MOST_BODY", 1000)
    long = b"[" + b" " * 1000
    answer = client.post("/images", content=long)
    assert (answer.status_code, answer.json()["detail"]) == (413, "a body of 1001 bytes: must be at most 1,000 bytes")
    for path in ("/images", "/projections"):
        answer = client.post(path, content=iter([long[:600], long[600:]]), headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["detail"]) == (413, "the body: must be at most 1,000 bytes")
    assert client.get("/model", headers={"Content-Length": "-5"}).status_code == 413


def test_browsers_are_told_to_load_nothing_from_elsewhere(client, open_app, tmp_path):
    for path in ("/", "/image.png", "/model", "/nothing", "/image.png?psi=11"):
        headers = client.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
    assert client.get("/model", headers={"Host": "x"}).headers["x-frame-options"] == "DENY"
    assert open_app(write_model(tmp_path / "b"), token=TOKEN).get("/").headers["x-frame-options"] == "DENY"
