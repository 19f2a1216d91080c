"""The image, without building it: its Dockerfile, its locks, its entry point and its health check."""

import fnmatch
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from threading import Thread

import pytest
from dockerfile import IMAGE, ROOT, ancestors, environment, instructions, options_apart
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TARGETS = ("cpu", "cuda")
PYTHON = {"python_version": "3.11", "python_full_version": "3.11.0"}  # the locks are for each 3.11
# In the locks, but not in constraints.txt: lists of pip do not show the first, and the second is for Python 3.11.2.
UNPINNED = {"setuptools", "async-timeout"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def load(name):
    """Import a file of infra/image by its path."""
    spec = importlib.util.spec_from_file_location(f"image_{name}", IMAGE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


health, install, lock = load("health"), load("install"), load("lock")


# The Dockerfile.


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, IMAGE / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_step_is_a_script_of_this_folder():
    """Or it would be tried by nobody before an image is built."""
    steps = [options_apart(line.words)[1] for line in instructions() if line.name == "RUN"]
    assert len(steps) >= 6
    for words in steps:
        module = words[:2] == ["python3", "-m"] and words[2].removeprefix("infra.image.") + ".py"
        script = IMAGE / (module or Path(words[0]).name)
        assert script.exists(), words
        assert module or os.access(script, os.X_OK), f"{script} cannot be executed"
        assert not {"&&", ";", "||", "|"} & set(words)


def in_context(path):
    """Return whether .dockerignore leaves a path in the context of the build: the last line that fits it decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if line and not line.startswith("#"):
            places = [path, *map(str, Path(path).parents)] + ([Path(path).name] if "**/" in line else [])
            if any(fnmatch.fnmatch(place, pattern) and place.count("/") == pattern.count("/") for place in places):
                kept = line.startswith("!")
    return kept


def test_what_is_copied_is_there_and_in_the_context_of_the_build():
    copied = []
    for line in instructions():
        options, words = options_apart(line.words)
        if line.name == "COPY" and not any(option.startswith("--from") for option in options):
            copied += words[:-1]
    assert {"stylegan", "flows", "configs", "pyproject.toml"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists(), path
        assert in_context(path), f"{path} is left out by .dockerignore"


@pytest.mark.parametrize("path", [".git", ".venv", "infra/stack.env", "infra/stack-data", "quickstart-data", "my.env"])
def test_what_may_hold_secrets_or_data_never_gets_into_the_context(path):
    assert not in_context(path)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_a_user_with_health_labels_and_no_compiler(target):
    lines = [line for line in instructions() if line.stage in ancestors(target)]
    last = {line.name: line.words for line in lines}
    assert ancestors(target) == ["base", "service", target]
    assert last["USER"] == ["1000:1000"]
    assert "/image/health.py" in " ".join(last["HEALTHCHECK"])
    assert "/image/entry.sh" in " ".join(last["ENTRYPOINT"])
    labels = dict(word.split("=", 1) for word in last["LABEL"])
    assert labels["org.opencontainers.image.revision"] == "${COMMIT}"
    assert labels["org.opencontainers.image.version"] == "${VERSION}"
    # What comes from Debian is all in one script, and nothing but Python's own image is below it.
    assert [line.words for line in lines if line.name == "RUN"] == [["/image/system.sh"]]
    (packages,) = re.findall(
        r"^apt-get install .*--no-install-recommends (.*)$", (IMAGE / "system.sh").read_text(), re.M
    )
    assert packages.split() == ["ca-certificates", "tini", "wget"]


def test_both_targets_are_equal_but_for_their_dependencies():
    one, other = (
        [
            [word.replace(f"dependencies-{target}", "dependencies") for word in line.words]
            for line in instructions()
            if line.stage == target and line.name not in ("FROM", "ENV")
        ]
        for target in TARGETS
    )
    assert one == other


def test_the_image_has_no_login():
    for target in TARGETS:
        assert not [name for name in environment(target) if re.search("PASSWORD|SECRET|TOKEN|KEY|AUTH", name)]


def test_the_project_names_no_registry():
    """Where packages and images come from is said by whoever builds."""
    for path in (IMAGE / "Dockerfile", *IMAGE.glob("requirements*.txt"), *IMAGE.glob("*.sh"), *IMAGE.glob("*.py")):
        assert not re.search(r"https?://(?!127\.0\.0\.1)", path.read_text()), path
    base = next(line.words[0] for line in instructions() if line.name == "ARG")
    assert re.fullmatch(r"BASE=python:3\.11[\w.-]*", base)


# The locks.


def locked(name):
    """Return the versions of a lock by the normalized names; every package must have a hash."""
    text = (IMAGE / name).read_text()
    found = re.findall(r"^([\w.-]+)(={2,3})(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n", text, re.MULTILINE)
    assert len(found) == len(re.findall(r"^[a-zA-Z]", text, re.MULTILINE)), f"{name} has a package without a hash"
    return {canonicalize_name(package): version for package, _, version, _ in found}


def pinned():
    """Return the versions of constraints.txt by the normalized names."""
    lines = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in lines}


def needed(requirements):
    """Return the normalized names of all that requirements need, by the metadata of what is installed here."""
    found, waiting, seen = set(), [(Requirement(text), "") for text in requirements], set()
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate(PYTHON | {"extra": extra}):
            continue
        found.add(name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                of_its_own = () if name in UNPINNED else distribution(name).requires or ()
                waiting += [(Requirement(text), wanted) for text in of_its_own]
    return found


def test_the_locks_have_the_versions_of_the_constraints():
    versions = pinned()
    for name in ("requirements.txt", "requirements-cpu.txt", "requirements-build.txt"):
        found = {
            package: version.partition("+")[0] for package, version in locked(name).items() if package not in UNPINNED
        }
        wrong = {
            package: (version, versions.get(package))
            for package, version in found.items()
            if versions.get(package) != version
        }
        assert not wrong, f"{name} is old; run `make image-lock`"
    cuda = locked("requirements-cuda.txt")
    assert cuda["torch"] == versions["torch"]
    assert {package for package in cuda if not re.match("nvidia-|cuda-", package)} == {"torch", "triton"}
    assert not set(cuda) & set(locked("requirements.txt"))


def test_the_lock_is_all_that_the_project_needs_and_no_more():
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = needed([*PROJECT["project"]["dependencies"], *(text for extra in lock.EXTRAS for text in extras[extra])])
    there = set(locked("requirements.txt")) | set(locked("requirements-cpu.txt"))
    assert there ^ wanted == set(lock.LEFT_OUT), "pyproject.toml has changed; run `make image-lock`"
    assert "video" not in lock.EXTRAS  # its wheels are under the GPL
    assert "av" not in there


def test_what_builds_the_image_is_locked_too():
    build = locked("requirements-build.txt")
    assert set(build) == {"uv", *(Requirement(text).name for text in PROJECT["build-system"]["requires"])}
    for text in PROJECT["build-system"]["requires"]:
        assert Requirement(text).specifier.contains(build[Requirement(text).name])


# Its scripts.


@pytest.mark.parametrize("arguments", [["dependencies", "tpu", "tools", "prefix"], ["dependences"], []])
def test_a_wrong_step_is_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        install.main(*arguments)
    assert end.value.code == 2
    assert "must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("tini -s -- /image/entry.sh ray start --head --port=6379", "http://127.0.0.1:8265/api/gcs_healthz"),
        ("ray start --head --dashboard-port=8300 --block", "http://127.0.0.1:8300/api/gcs_healthz"),
        ("ray start --address ray-head:6379 --block", "http://127.0.0.1:52365/api/local_raylet_healthz"),
        ("python /opt/stylegan/bin/prefect server start --port 4300", "http://127.0.0.1:4300/api/health"),
        ("prefect worker start --pool stylegan --with-healthcheck", "http://127.0.0.1:8081/health"),
        ("mlflow server --host 0.0.0.0", "http://127.0.0.1:5000/health"),
        ("/image/entry.sh serve faces@champion --host 0.0.0.0", "http://127.0.0.1:8501/health"),
        ("/image/entry.sh driver run configs/quickstart.yaml", None),
        ("bash", None),
    ],
)
def test_health_asks_what_the_command_has_started(command, expected):
    assert health.address(command.split(), {"PREFECT_WORKER_WEBSERVER_PORT": "8081"}) == expected


@pytest.mark.parametrize("service", ["mlflow server --port PORT", "driver prefect worker start --pool=stylegan"])
@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_health_is_what_the_service_answers(service, status, code):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    port = server.server_address[1]
    if status is None:
        server.server_close()
    else:
        Thread(target=server.serve_forever, daemon=True).start()
    # Only its words matter: what a container's first process was started with.
    words = service.replace("PORT", str(port)).split()
    process = subprocess.Popen(["sh", "-c", "read line", *words], stdin=subprocess.PIPE)
    try:
        done = subprocess.run(
            [sys.executable, "-S", IMAGE / "health.py", str(process.pid)],
            env={"http_proxy": "http://127.0.0.1:1", "PREFECT_WORKER_WEBSERVER_PORT": str(port)},
            capture_output=True,
            text=True,
        )
    finally:
        process.communicate()
        server.shutdown() if status is not None else None
        server.server_close()
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(f"http://127.0.0.1:{port}/health: " if code else "")


NODE = "start --address=head:6379 --num-cpus=0 --num-gpus=0 --object-store-memory=200000000 --disable-usage-stats"


@pytest.mark.parametrize(
    ("arguments", "started"),
    [
        ("run configs/quickstart.yaml", ["stylegan run configs/quickstart.yaml"]),
        ("stylegan ls", ["stylegan ls"]),
        ("", ["stylegan --help"]),
        ("serve faces@champion --host 0.0.0.0", ["stylegan serve faces@champion --host 0.0.0.0"]),
        ("ray start --head", ["ray start --head"]),
        ("mlflow server", ["mlflow server"]),
        (
            "driver run my.yaml",
            [f"ray {NODE}", "stylegan run my.yaml"],
        ),
        ("driver prefect worker start", [f"ray {NODE}", "prefect worker start"]),
    ],
)
def test_the_entry_point_starts(tmp_path, arguments, started):
    for name in ("stylegan", "ray", "mlflow", "prefect", "wget"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/log\n')
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "STYLEGAN_RAY_ADDRESS": "head:6379", "FOLLOW_SECONDS": "0.1"}
    subprocess.run([IMAGE / "entry.sh", *arguments.split()], env=variables, check=True)
    assert (tmp_path / "log").read_text().splitlines() == started


def test_a_driver_that_cannot_join_ends_with_what_ray_says(tmp_path):
    (tmp_path / "ray").write_text("#!/bin/sh\necho no head at head:6379\nexit 3\n")
    (tmp_path / "ray").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "STYLEGAN_RAY_ADDRESS": "head:6379"}
    done = subprocess.run([IMAGE / "entry.sh", "driver", "run"], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "no head at head:6379\n")


def test_a_driver_whose_node_is_gone_ends(tmp_path):
    for name, text in (("ray", "exit 0"), ("wget", "exit 1"), ("prefect", "exec sleep 60")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "STYLEGAN_RAY_ADDRESS": "head:6379", "FOLLOW_SECONDS": "0.1"}
    done = subprocess.run(
        [IMAGE / "entry.sh", "driver", "prefect"], env=variables, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "the Ray node of this container is gone\n")


def test_a_driver_without_a_cluster_is_one_line():
    done = subprocess.run([IMAGE / "entry.sh", "driver", "run", "my.yaml"], env={}, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(r"STYLEGAN_RAY_ADDRESS: names the head of the cluster that a driver joins\n$", done.stderr)
