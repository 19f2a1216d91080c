"""URIs: paths as URLs and back, and secrets in the texts of other libraries."""

import pickle

import pytest

from stylegan.errors import StepError, UnavailableError, one_line
from stylegan.uris import file_url, find_secret, local_path, redact


@pytest.mark.parametrize("path", ["/data/a b", "/data/a%20b", "/data/a?b#c", "/data/größe", "/data/a::b", "/data/[x]*"])
def test_a_path_is_itself_and_comes_back_from_its_url(path):
    assert local_path(path) == path
    assert file_url(path).isascii()
    assert local_path(file_url(path)) == path


@pytest.mark.parametrize(
    "text",
    [
        "cannot read https://me:CANARY@host/x?y=1",
        "https://CANARY@github.com/a/b",
        "postgresql+psycopg2://me:CA/NA#RY@host/db: refused",
        "at https://me:p@CANARY/x@host/y: refused",
        "GET https://host/x?a=1&X-Amz-Signature=CANARY&b=2 failed",
        "<a href='https://host/?sig=CANARY'>",
        "https://host/x#access_token=CANARY",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=CANARY==;x=1",
        "DRIVER=x;UID=me;PWD=CANARY;",
        "headers: {'Authorization': 'Basic CANARY'}",
        "SharedAccessSignature=sr=x&sig=CANARY&se=1",
        "me:CANARY@host:5000 is no URL",
        "token=CANARY is wrong",
        "tracking.uri=http://127.0.0.1:1/?token=CANARY: does not answer",
        "storage.root='https://host/x?api_key=CANARY'",
        "url=https://host/?url=https://other/?sig=CANARY",
        "write it as file:x%3Fpassword%3DCANARY?uri=true",
        "connect(password='CANARY')",
        'token="CANARY" is wrong',
        '{"user": "me", "password": "CANARY"}',
        "GET https://host/x?token='CANARY'",
        "Authorization:CANARY",
        "x-api-key: CANARY",
    ],
)
def test_secrets_are_redacted_once_and_for_all(text):
    found = redact(text)
    assert not {"CANARY", "CA/NA", "RY@"} & {part for part in ("CANARY", "CA/NA", "RY@") if part in found}
    assert "***" in found
    assert redact(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "config.yaml: line 3: training.batch.4=0: input should be greater than or equal to 1",
        "s3://bucket/stages/0008-0123456789/checkpoint-000/generator.safetensors",
        "abfs://container@account.dfs.core.windows.net/x",
        "tracking.uri=http://127.0.0.1:5000: does not answer; see models:/digits@champion",
        "--set a: must be key.path=value, e.g. --set training.batch=32",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        "https://host:8080/x@y.zip?download=1",
    ],
)
def test_other_texts_stay(text):
    assert redact(text) == text
    assert find_secret(text.split(": ")[0].split("; ")[0]) is None


def test_a_text_of_any_length_is_redacted():
    assert redact("a=" * 100_000 + "?token=CANARY") == "a=" * 100_000 + "?token=***"


def test_every_error_that_a_user_sees_is_redacted():
    """Also the text of another library's error, and an error that came from another process."""
    error = UnavailableError(f"storage: cannot read s3://b/x: {one_line(ValueError('https://h/?sig=CANARY'))}")
    assert "CANARY" not in str(error)
    assert str(pickle.loads(pickle.dumps(StepError("at https://me:CANARY@host")))) == "at https://me:***@host"
