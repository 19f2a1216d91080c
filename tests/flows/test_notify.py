"""Messages to people, by a real service on this machine: what arrives, what is never shown, and that nothing fails."""

import base64
import io
import logging

import pytest
from PIL import Image

from flows.notify import Message, check_urls, tell
from stylegan.config.file import build, dump, flatten
from stylegan.errors import ConfigError

TREE = {"name": "t", "data": {"source": "digits", "resolution": 8}}


def config(*urls):
    return build({**TREE, "retrain": {"notify": list(urls)}})


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_message_arrives_with_reason_links_and_picture(message_service):
    message = Message(
        "t: version 3 promoted", "fid is 5 against 6.", ("run: http://prefect/run", "report: /r"), picture()
    )
    assert tell(config(message_service.url("CANARY")), message)
    (body,) = message_service.got
    assert message_service.paths == ["/CANARY"]
    assert body["title"] == "t: version 3 promoted"
    assert body["message"] == "fid is 5 against 6.\nrun: http://prefect/run\nreport: /r"
    (attached,) = body["attachments"]
    assert base64.b64decode(attached["base64"]) == picture()


def test_urls_come_from_a_variable_too(message_service, monkeypatch):
    monkeypatch.setenv("PEOPLE", f"{message_service.url('a')} {message_service.url('b')}")
    assert tell(config("$PEOPLE"), Message("title", "reason"))
    assert sorted(message_service.paths) == ["/a", "/b"]


@pytest.mark.parametrize("code", [500, 403])
def test_a_service_that_refuses_is_a_line_without_secrets_and_fails_nothing(message_service, caplog, code):
    message_service.code = code
    caplog.set_level(logging.DEBUG)
    assert not tell(config(message_service.url("CANARY")), Message("title", "reason"))
    assert "retrain.notify[0] (json://...): did not take the message `title`" in caplog.text
    assert "CANARY" not in caplog.text


def test_a_service_that_is_away_fails_nothing_and_the_others_are_told(message_service, caplog):
    caplog.set_level(logging.DEBUG)
    assert not tell(config("json://127.0.0.1:1/CANARY", message_service.url("CANARY")), Message("title", "reason"))
    assert len(message_service.got) == 1
    assert caplog.text.count("CANARY") == 0


def test_a_defect_of_a_service_fails_nothing(monkeypatch, message_service):
    import apprise

    def broken(*_, **__):
        raise RuntimeError("CANARY")

    monkeypatch.setattr(apprise.Apprise, "notify", broken)
    assert not tell(config(message_service.url("CANARY")), Message("title", "reason"))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("nonsense://CANARY", r"retrain\.notify\[0\]: a URL nonsense://\.\.\. is none that Apprise knows"),
        ("CANARY", r"retrain\.notify\[0\]: a URL without ://"),
        ("slack://CANARY", r"retrain\.notify\[0\]: a URL slack://"),
        ("$NO_SUCH_VARIABLE", r"retrain\.notify\[0\]=\$NO_SUCH_VARIABLE: this variable is not set"),
        ("", r"retrain\.notify\[0\]: is empty"),
    ],
)
def test_what_is_no_url_is_one_line_before_anything_is_made(entry, says):
    with pytest.raises(ConfigError, match=says) as caught:
        check_urls(config(entry))
    assert "CANARY" not in str(caught.value)


def test_secrets_leave_the_config_in_no_form():
    """What is stored, logged to MLflow and shown by Prefect comes from these."""
    settings = config("slack://CANARY")
    for text in (dump(settings), str(flatten(settings)), settings.model_dump_json(), str(settings.model_dump())):
        assert "CANARY" not in text


def test_secrets_of_a_reason_are_redacted(message_service):
    tell(
        config(message_service.url("CANARY")),
        Message("title", "cannot read s3://me:CANARY@bucket", ("http://me:CANARY@host/",)),
    )
    assert "CANARY" not in str(message_service.got[0])
