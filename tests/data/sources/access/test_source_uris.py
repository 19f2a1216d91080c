"""Values of `data.source`: URLs without credentials, known stores, patterns."""

import pytest

from stylegan.data.sources.access.uris import MAX_FILES, check_uri, expand, is_pattern
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
    """A config is kept with every run, so it must not contain keys; neither does the message."""
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
    """The message about a store that needs a package names the package."""
    pytest.importorskip("fsspec")
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(
            ConfigError, match=r"data\.source=gs://bucket/x: gs:// needs a package .* pip install gcsfs$"
        ):
            opened("gs://bucket/x")


def test_unknown_store(opened):
    """A misspelt store is called unknown, not missing."""
    with pytest.raises(ConfigError, match=r"data\.source=s4://bucket/x: unknown store s4://"):
        opened("s4://bucket/x")


def test_braces_and_globs(tmp_path):
    """A pattern gives the folder above the files, and the files sorted by name."""
    for name in ("a-008.tar", "a-009.tar", "a-010.tar", "b-010.tar"):
        (tmp_path / name).write_bytes(name.encode())
    assert list(expand(f"{tmp_path}/a-{{008..010}}.tar")[1]) == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert list(expand(f"{tmp_path}/{{a,b}}-010.tar")[1]) == ["a-010.tar", "b-010.tar"]
    root, tokens = expand(f"{tmp_path}/*-010.tar")
    assert (root, list(tokens)) == (str(tmp_path), ["a-010.tar", "b-010.tar"])
    assert list(expand(f"{tmp_path}/{{a,b}}-*9.tar")[1]) == ["a-009.tar"]
    (tmp_path / "[1].tar").write_bytes(b"")
    assert not is_pattern(f"{tmp_path}/[1].tar")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        # By the rules of webdataset and bash.
        ("{0..3}", ["0", "1", "2", "3"]),
        ("{007..009}", ["007", "008", "009"]),
        ("{0..10..5}", ["0", "10", "5"]),
        ("{a..c}", ["a", "b", "c"]),
        ("a{,b}", ["a", "ab"]),
        ("{a,b{0..1},c}", ["a", "b0", "b1", "c"]),
        ("{a{0..1},{b,c}{2,3}}", ["a0", "a1", "b2", "b3", "c2", "c3"]),
        # By the rules of earlier versions, which existing configs may depend on.
        ("{08..10}", ["08", "09", "10"]),
        ("{8..10}", ["10", "8", "9"]),
        ("{98..100}", ["100", "98", "99"]),
        ("{08..100}", [*(f"{number:02d}" for number in range(100) if number > 9), "100", "08", "09"]),
        ("{9..010}", ["10", "9"]),
        ("{5..05}", ["5"]),
        ("{000}", ["000"]),
        ("{a}{,b}", ["a", "ab"]),
        ("a\\{1,2}", ["a\\1", "a\\2"]),
        ("{a", ["{a"]),
        ("a}", ["a}"]),
    ],
)
def test_names_of_braces(tmp_path, pattern, names):
    """Every name that braces stand for must be a file, and no others are listed."""
    for name in (*names, "other"):
        (tmp_path / f"{name}.tar").write_bytes(b"")
    assert list(expand(f"{tmp_path}/{pattern}.tar")[1]) == sorted(f"{name}.tar" for name in names)


def test_most_files_of_a_pattern(tmp_path, monkeypatch):
    """The limit counts names; one below it is not refused."""
    assert MAX_FILES == 1_000_000
    monkeypatch.setattr("stylegan.data.sources.access.uris.MAX_FILES", 6)
    for name in ("a0", "a1", "b0", "b1", "c", "d"):
        (tmp_path / name).write_bytes(b"")
    assert len(expand(f"{tmp_path}/{{{{a,b}}{{0..1}},c,d}}")[1]) == 6
    with pytest.raises(ConfigError, match="names 7 files; at most 6 are allowed"):
        expand(f"{tmp_path}/{{{{a,b}}{{0..1}},c,d,e}}")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("a-{000..001}.tar", "not all files are there: .*a-001"),
        ("z*.tar", "no file has such a name"),
        ("a-{9..1}.tar", r"\{9\.\.1\} must count upwards"),
        ("a-{0..99999999}.tar", "at most 1000000 files"),
        ("{0..9999}-{0..9999}.tar", "names 100000000 files"),
        ("{{0..9999}{0..9999},{a..z}{0..9},b}.tar", "names 100000261 files"),
    ],
)
def test_patterns_that_name_nothing(tmp_path, opened, pattern, words):
    """A missing shard is an error before anything is read, and no pattern causes endless work."""
    (tmp_path / "a-000.tar").write_bytes(b"")
    with pytest.raises(ConfigError, match=words) as caught:
        opened(tmp_path / pattern)
    assert "\n" not in str(caught.value)
