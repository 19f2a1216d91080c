"""What a job is sent: the files, their digest, the variables by name, and the places that a cluster cannot have."""

import io
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from stylegan.cluster.job_package import (
    MAX_BYTES,
    check_places,
    environment,
    is_loopback,
    make_package,
    own_addresses,
    requirements,
)
from stylegan.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def package(tiny_config):
    return make_package(tiny_config("/shared/root"), "tiny.yaml")


def test_the_archive_holds_code_config_and_version_and_nothing_else(package):
    """Every file of both packages that is code, or that pyproject.toml names as data, whatever else lies beside them."""
    with zipfile.ZipFile(io.BytesIO(package.archive)) as archive:
        names = archive.namelist()
    folder = f"stylegan_pipeline-{version('stylegan-pipeline')}.dist-info"
    code = {str(path.relative_to(ROOT)) for name in ("stylegan", "flows") for path in (ROOT / name).rglob("*.py")}
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for module, patterns in data.items():
        place = ROOT / module.replace(".", "/")
        code |= {str(path.relative_to(ROOT)) for pattern in patterns for path in place.glob(pattern)}
    assert names == sorted({*code, "tiny.yaml", f"{folder}/METADATA"})
    assert len(package.archive) < MAX_BYTES == 2 * 2**20


def test_a_command_without_a_config_is_given_the_code_alone(package):
    assert set(make_package(None).files) == set(package.files) - {"tiny.yaml"}


def test_what_lies_beside_the_code_is_not_sent(package, tmp_path, monkeypatch):
    """Credentials, data and caches in an installed package stay here."""
    import stylegan
    from stylegan.cluster import job_package

    for name in ("stylegan/a.py", "stylegan/.env", "stylegan/key.pem", "stylegan/data/x.png", "tests/test_a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "flows" / "__pycache__").mkdir(parents=True)
    (tmp_path / "flows" / "__pycache__" / "b.cpython-311.pyc").write_text("x")
    monkeypatch.setattr(stylegan, "__file__", str(tmp_path / "stylegan" / "__init__.py"))
    assert list(job_package._code()) == ["stylegan/a.py"]


def test_the_config_is_complete_and_joins_the_cluster_it_runs_on(tiny_config):
    config = tiny_config("/shared/root", ray={"address": "laptop:6379", "cpus_per_worker": 2})
    sent = yaml.safe_load(make_package(config).files["config.yaml"])
    assert sent["ray"]["address"] == "auto"
    assert sent["ray"]["cpus_per_worker"] == 2
    assert sent["model"]["latent_size"] == 6
    assert config.ray.address == "laptop:6379"


def test_the_digest_is_that_of_code_and_values(package, tiny_config):
    """Not of the name of the config's file, nor of the cluster that it is meant for."""
    same = make_package(tiny_config("/shared/root", ray={"address": "elsewhere:6379"}), "other.yaml")
    assert same.digest == package.digest
    assert same.archive != package.archive
    assert make_package(tiny_config("/shared/root"), "tiny.yaml").archive == package.archive
    assert make_package(tiny_config("/shared/other")).digest != package.digest
    changed = {**package.files, "stylegan/__init__.py": package.files["stylegan/__init__.py"] + b"\n"}
    assert replace(package, files=changed).digest != package.digest


def test_jobs_that_would_write_the_same_checkpoints_have_the_same_work(package, tiny_config):
    """Whatever their code, name, workers and metrics are."""
    same = {"name": "other", "ray": {"cpus_per_worker": 2}, "evaluation": {"metrics": ["fid"]}}
    assert make_package(tiny_config("/shared/root", **same)).work == package.work
    for others in ({"seed": 1}, {"training": {"batch": 8}}, {"storage": {"root": "/other"}}):
        assert make_package(tiny_config("/shared/root", **others)).work != package.work


def test_the_code_works_where_the_project_is_not_installed(package, tmp_path):
    """A Python that sees the archive and nothing of this environment knows the version, and that of the archive."""
    with zipfile.ZipFile(io.BytesIO(package.archive)) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-I", "-S", "-c"]
    code = "import sys; sys.path.insert(0, '.'); import flows.cli.main as m; sys.exit(m.main(['--version']))"
    done = subprocess.run([*command, code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == version("stylegan-pipeline")


def test_too_large_a_package_is_refused(tiny_config, monkeypatch):
    from stylegan.cluster import job_package

    monkeypatch.setattr(job_package, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"bytes as a zip file, more than the 1,000 .* the largest file is stylegan/"):
        make_package(tiny_config("/shared/root"))


def test_pip_installs_what_the_project_needs_but_for_ray_and_torch():
    names = {line.partition(">")[0].partition("<")[0] for line in requirements()}
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert names == {line.partition(">")[0].partition("<")[0] for line in needed} - {"torch", "ray[default,train]"}
    assert not [line for line in requirements() if "pytest" in line or "onnx" in line]


def test_variables_are_sent_by_name_and_never_what_belongs_to_this_machine():
    wanted = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_ENDPOINT_URL": "http://s3",
        "AZURE_STORAGE_ACCOUNT_KEY": "k",
        "FSSPEC_S3_KEY": "k",
        "HF_TOKEN": "t",
        "MLFLOW_TRACKING_PASSWORD": "p",
        "PREFECT_API_URL": "http://p/api",
        "STYLEGAN_CACHE_GB": "3",
    }
    others = {
        "AWS_CA_BUNDLE": "/etc/ca",
        "AWS_PROFILE": "me",
        "AWS_SHARED_CREDENTIALS_FILE": "/home/me/.aws",
        "FSSPEC_CONFIG_DIR": "/home/me",
        "GITHUB_TOKEN": "g",
        "GOOGLE_APPLICATION_CREDENTIALS": "/home/me/key.json",
        "HOME": "/home/me",
        "MLFLOW_TRACKING_TOKEN": "",
        "PATH": "/bin",
        "RAY_AUTH_TOKEN": "r",
        "STYLEGAN_CACHE": "/home/me/cache",
        "STYLEGAN_LOG": "/home/me/log",
        "STYLEGAN_WEIGHTS": "/home/me/weights",
    }
    assert environment(wanted | others) == wanted
    assert environment(wanted | others, ["GITHUB_TOKEN"]) == wanted | {"GITHUB_TOKEN": "g"}
    with pytest.raises(ConfigError, match="--env MISSING: is not set in this environment"):
        environment(wanted, ["MISSING"])


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"storage": {"root": "data"}}, "storage.root=data: is a path from this folder or user"),
        ({"storage": {"root": "~/data"}}, "storage.root=~/data: is a path from this folder or user"),
        ({"storage": {"root": "memory://x"}}, "storage.root=memory://x: is the memory of one process"),
        ({"data": {"source": "images", "resolution": 8}}, "data.source=images: is a path from this folder"),
        ({"storage": {"root": "s3://b/r"}}, "tracking.uri is not set: MLflow's data would be"),
        ({"storage": {"root": "s3://b/r"}, "tracking": {"uri": "sqlite:////shared/m.db"}}, "a file of SQLite would be"),
        ({"tracking": {"uri": "sqlite:///m.db"}}, "tracking.uri=sqlite:///m.db: a file of SQLite would be lost"),
    ],
)
def test_places_of_this_machine_are_refused(tiny_config, sections, says):
    with pytest.raises(ConfigError) as caught:
        check_places(tiny_config("/shared/root", **sections))
    assert says in str(caught.value)
    assert "; give " in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"storage": {"root": "file:///shared/root"}, "tracking": {"uri": "sqlite:////shared/m.db"}},
        {"storage": {"root": "s3://b/r"}, "tracking": {"uri": "http://mlflow:5000"}},
        {"data": {"source": "/shared/faces", "resolution": 8, "label_file": "labels.csv"}},
        {"data": {"source": "s3://b/faces.zip", "resolution": 8}},
    ],
)
def test_places_that_every_node_can_have_are_taken(tiny_config, sections):
    check_places(tiny_config("/shared/root", **sections))


def test_addresses_that_mean_another_machine_on_the_cluster_are_named(tiny_config):
    config = tiny_config("/shared/root", tracking={"uri": "http://localhost:5000"})
    variables = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
        "PREFECT_API_URL": "http://prefect:4200/api",
        "HF_TOKEN": "x",
    }
    assert own_addresses(config, variables) == ["tracking.uri", "AWS_ENDPOINT_URL"]
    assert is_loopback("http://[::1]:8265")
    assert is_loopback("zip://a.zip::http://127.0.0.1/b.zip")
    assert not is_loopback("http://head:8265")
