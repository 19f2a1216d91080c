"""What may stand in data.source: no credentials, known stores, patterns."""

import pytest

from stylegan.data.sources.access.uris import check_uri, expand, is_pattern
from stylegan.errors import ConfigError


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("https://me:hunter2@host/images.zip", "hunter2"),
        ("s3://AKIA:hunter2@bucket/images", "hunter2"),
        ("https://host/images.zip?X-Amz-Signature=hunter2", "hunter2"),
        ("https://host/images.zip?AWSAccessKeyId=hunter2&Expires=1", "hunter2"),
        ("https://host/images.zip?sv=2020&sig=hunter2", "hunter2"),
        ("https://host/images.zip?access_token=hunter2", "hunter2"),
    ],
)
def test_credentials_are_refused_and_not_repeated(uri, secret, opened):
    """A config is kept with every run, so it must not carry keys; the message does not carry them either."""
    with pytest.raises(ConfigError, match=r"carries credentials .* put them into the environment") as caught:
        opened(uri)
    assert secret not in str(caught.value)
    with pytest.raises(ConfigError, match=r"data\.label_file=") as caught:
        check_uri("data.label_file", uri)
    assert "\n" not in str(caught.value)


def test_harmless_queries_stay():
    """A query without a secret is part of the address."""
    assert check_uri("data.source", "https://host/images.zip?download=1") == "https://host/images.zip?download=1"


def test_missing_package_names_it(opened):
    """A store that needs a package says which."""
    pytest.importorskip("fsspec")
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(
            ConfigError, match=r"data\.source=gs://bucket/x: gs:// needs a package .* pip install gcsfs$"
        ):
            opened("gs://bucket/x")


def test_unknown_store(opened):
    """A misspelt store is told from a missing one."""
    with pytest.raises(ConfigError, match=r"data\.source=s4://bucket/x: unknown store s4://"):
        opened("s4://bucket/x")


def test_braces_and_globs(tmp_path):
    """Ranges keep their digits, lists list, globs find; the folder above is the root."""
    for name in ("a-008.tar", "a-009.tar", "a-010.tar", "b-010.tar"):
        (tmp_path / name).write_bytes(name.encode())
    assert list(expand(f"{tmp_path}/a-{{008..010}}.tar")[1]) == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert list(expand(f"{tmp_path}/{{a,b}}-010.tar")[1]) == ["a-010.tar", "b-010.tar"]
    root, tokens = expand(f"{tmp_path}/*-010.tar")
    assert (root, list(tokens)) == (str(tmp_path), ["a-010.tar", "b-010.tar"])
    (tmp_path / "[1].tar").write_bytes(b"")
    assert not is_pattern(f"{tmp_path}/[1].tar")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("a-{000..001}.tar", "not all files are there: .*a-001"),
        ("z*.tar", "no file has such a name"),
        ("a-{9..1}.tar", "must count upwards"),
        ("a-{0..99999999}.tar", "at most 1000000 files"),
        ("{0..9999}-{0..9999}.tar", "names 100000000 files"),
    ],
)
def test_patterns_that_name_nothing(tmp_path, opened, pattern, words):
    """Shards that are missing are told before anything is read, and no pattern can ask for endless work."""
    (tmp_path / "a-000.tar").write_bytes(b"")
    with pytest.raises(ConfigError, match=words) as caught:
        opened(tmp_path / pattern)
    assert "\n" not in str(caught.value)
