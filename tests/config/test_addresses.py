"""Addresses in a config: their forms, and the secrets that they must not hold."""

import pytest

from stylegan.config.file import build
from stylegan.errors import ConfigError

TREE = {"name": "t", "data": {"source": "digits", "resolution": 8}}
KEYS = (
    "storage.root",
    "data.source",
    "data.label_file",
    "evaluation.features",
    "evaluation.weights.vgg16",
    "tracking.uri",
)
OTHERS = ("tracking.experiment", "registry.name", "name", "ray.address", "registry.gate.metric", "data.crop")


def mistake(key: str, value: str) -> str:
    """Return the message of the ConfigError that one address causes; it must be one line."""
    with pytest.raises(ConfigError) as caught:
        build(TREE, "config", [f'{key}="{value}"'])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        ("https://me:CANARY@host/x", "put them into the environment"),
        ("https://CANARY@host/x", "put them into the environment"),
        ("s3://AKIA:CANARY@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("postgresql://me:CANARY@host:5432/db", "PGPASSWORD or ~/.pgpass"),
        ("mysql+pymysql://me:CA/NARY@host/db", "read_default_file"),
        ("postgresql://me:CA#NA?RY@host/db", "PGPASSWORD"),
        ("postgresql:///db?host=h&password=CANARY", "PGPASSWORD"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3DCANARY", "credentials"),
        ("https://host/x?X-Amz-Signature=CANARY", "credentials (X-Amz-Signature)"),
        ("https://acct.blob.core.windows.net/c/x?sv=2024&sig=CANARY", "credentials"),
        ("https://host/x#access_token=CANARY", "credentials (access_token)"),
        ("abfs://c@acct.dfs.core.windows.net/x?sharedaccesssignature=CANARY", "AZURE_STORAGE"),
        ("DefaultEndpointsProtocol=https;AccountName=a;AccountKey=CANARY", "credentials (AccountKey)"),
        ("zip://a.zip::https://me:CANARY@host/x.zip", "credentials"),
        ("me:CANARY@host:5000/x", "credentials"),
    ],
)
def test_a_secret_is_refused_and_not_repeated(value, cure):
    for key in KEYS:
        message = mistake(key, value)
        assert message.startswith(f"config: {key}=")
        assert cure in message
        assert not [part for part in ("CANARY", "NARY", "CA/", "CA#") if part in message]


def test_a_secret_in_a_wrong_place_is_not_repeated():
    """Whatever is wrong with the value, also one that is cut in the message."""
    for key in OTHERS:
        for value in ("https://me:CANARY@host/x", f"https://me:{'x' * 190}CANARY@host/x"):
            assert not {part for part in ("CANARY", "xxx") if part in mistake(key, value)}
    with pytest.raises(ConfigError) as caught:
        build(TREE | {"tracking": {"uri": ["https://me:CANARY@host"], "experiment": {"https://me:CANARY@host": 1}}})
    assert "CANARY" not in str(caught.value)


def test_the_login_to_mlflow_has_its_own_place():
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in mistake("tracking.uri", "http://me:x@host:5000")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("storage.root", "abfs://container@account.dfs.core.windows.net/x"),
        ("storage.root", "/data/a@b:c?d#e %20"),
        ("storage.root", "~/data"),
        ("storage.root", "file:///data/a%20b"),
        ("data.source", "https://host:8080/x@y.zip?download=1"),
        ("data.source", "github://owner:repository@main/images"),
        ("data.source", "simplecache::s3://bucket/x"),
        ("data.source", "hf://datasets/user/set@main/a"),
        ("data.source", "/data/token=5/{000..009}.tar"),
        ("tracking.uri", "postgresql://me@host/db"),
        ("tracking.uri", "sqlite:////data/a:b@c/mlflow.db"),
        ("tracking.uri", "databricks://profile:prefix"),
        ("evaluation.weights.vgg16", f"https://host/vgg16.pth#sha256={'a' * 64}"),
    ],
)
def test_addresses_without_a_secret_stay(key, value):
    config = build(TREE, "config", [f'{key}="{value}"'])
    for part in key.split("."):
        config = getattr(config, part)
    assert config == value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "is empty"),
        ("s3:/bucket/x", "did you mean s3://bucket/x?"),
        ("s3:bucket", "did you mean s3://bucket?"),
        ("file:/data/x", "did you mean file:///data/x?"),
        ("://bucket", "names no store before ://"),
        ("://", "names no store before ://"),
        ("s3://", "names nothing after ://"),
        ("file://data/x", "such as file:///data/x"),
        ("C:/data", "is a path of Windows"),
        ("C:\\\\data", "is a path of Windows"),
        ("\\\\\\\\server\\\\data", "is a path of Windows"),
        ("/data/x ", "begins or ends with a blank"),
        ("/data/\\u0000", "control character"),
        ("/data/a\\nb", "control character"),
        ("/data/\\x1b[31m", "control character"),
        ("/data/" + "x" * 256, "has more than 255 bytes"),
        ("/data/" + "é" * 128, "has more than 255 bytes"),
        ("/" + "x/" * 2000, "has more than 3800 bytes"),
    ],
)
def test_what_is_neither_a_path_nor_a_url_is_refused(value, words):
    for key in KEYS:
        message = mistake(key, value)
        assert message.startswith(f"config: {key}=")
        assert words in message


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("s4://bucket/x", "unknown store s4://"),
        ("https://host/x", "a web server cannot be written to"),
        ("s3:///x", "names no bucket; write s3://bucket/path"),
        ("s3://bucket/a?b", "must not have ? or #"),
        ("s3://bucket/a#b", "must not have ? or #"),
        ("local:///data", "write it as the path /data"),
    ],
)
def test_a_root_must_be_a_store_that_can_be_written(root, words):
    assert words in mistake("storage.root", root)
