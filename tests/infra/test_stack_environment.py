"""The env file of the stack: what the first start writes, what a shell and this module read, what is refused."""

import stat
import subprocess
from pathlib import Path

import pytest

from infra.stack import environment
from infra.stack.services import SERVICES
from stylegan.config.places import VARIABLES
from stylegan.errors import ConfigError

SECRETS = (
    "STACK_POSTGRES_PASSWORD",
    "STACK_MLFLOW_SECRET_KEY",
    "STACK_S3_SIGNING_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "PREFECT_API_AUTH_STRING",
    "RAY_AUTH_TOKEN",
)


@pytest.fixture
def env_file(tmp_path):
    path = tmp_path / "stack.env"
    environment.make(path)
    return path


def change(path, name, value):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(f"export {name}={value}" if f"export {name}=" in line else line for line in lines))


def test_the_file_is_its_owner_s_alone_and_made_once(env_file):
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600
    before = env_file.read_text()
    environment.make(env_file)
    assert env_file.read_text() == before
    assert [path.name for path in env_file.parent.iterdir()] == ["stack.env"]


def test_secrets_are_random_and_ports_differ(env_file, tmp_path):
    other = tmp_path / "other.env"
    environment.make(other)
    one, two = environment.read(env_file), environment.read(other)
    for name in SECRETS:
        assert len(one[name]) >= 32
        assert one[name] != two[name]
    ports = [one[name] for name in environment.PORTS]
    assert len(set(ports)) == len(ports)


def test_a_shell_reads_the_same(env_file):
    values = environment.read(env_file)
    script = '. "$0"; echo "$MLFLOW_TRACKING_URI" "$STYLEGAN_RAY_ADDRESS"'
    said = subprocess.run(["sh", "-c", script, env_file], capture_output=True, text=True, check=True).stdout.split()
    assert said == [values["MLFLOW_TRACKING_URI"], values["STYLEGAN_RAY_ADDRESS"]]
    assert said[0] == f"http://127.0.0.1:{values['STACK_MLFLOW_PORT']}"


def test_it_names_every_place_of_a_config_and_every_port_of_a_service(env_file):
    values = environment.read(env_file)
    assert set(VARIABLES) <= values.keys()
    assert {name for service in SERVICES for name in service.ports} == set(environment.PORTS)
    assert not set(environment._OF_SHELLS) & values.keys()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("STACK_HOST", "0.0.0.0", "STACK_HOST=0.0.0.0: must be one address of this machine"),
        ("STACK_DATA", "data", "STACK_DATA=data: must be an absolute path"),
        ("STACK_DATABASE", "mysql", "STACK_DATABASE=mysql: must be postgresql or sqlite"),
        ("STACK_MLFLOW_PORT", "80", "STACK_MLFLOW_PORT=80: must be a number from 1024 to 65535"),
        ("STACK_S3_PORT", "60000", "STACK_S3_PORT=60000: must be a number from 1024 to 55535"),
        ("RAY_AUTH_TOKEN", "", "RAY_AUTH_TOKEN is not set"),
        ("STACK_HOST", "'", "a shell cannot read it"),
    ],
)
def test_a_wrong_value_is_one_line(env_file, name, value, says):
    change(env_file, name, value)
    with pytest.raises(ConfigError, match=says) as raised:
        environment.read(env_file)
    assert "\n" not in str(raised.value)


def test_two_services_on_one_port_are_refused(env_file):
    change(env_file, "STACK_MLFLOW_PORT", environment.read(env_file)["STACK_PREFECT_PORT"])
    with pytest.raises(ConfigError, match=r"STACK_PREFECT_PORT=.*: is that of STACK_MLFLOW_PORT, too"):
        environment.read(env_file)


def test_a_file_that_others_may_read_is_refused(env_file):
    env_file.chmod(0o644)
    with pytest.raises(ConfigError, match=f"may be read by others; `chmod 600 {env_file}`"):
        environment.read(env_file)


def test_no_file_is_one_line_with_the_command(tmp_path):
    with pytest.raises(
        ConfigError, match=f"there is no such file; `infra/stack.sh --env {tmp_path}/x.env up` makes it"
    ):
        environment.read(tmp_path / "x.env")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        environment.make(tmp_path / "missing" / "stack.env")


def test_the_command_is_found_from_any_folder_and_says_what_it_can(tmp_path):
    command = Path(__file__).parents[2] / "infra" / "stack.sh"
    (tmp_path / "infra").mkdir()  # a folder of that name is not meant
    done = subprocess.run([command, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in ("up", "status", "logs", "down", "backup", "restore"):
        assert f"    {verb} " in done.stdout
    done = subprocess.run([command, "--env", "x.env", "status"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("stack: --env x.env: there is no such file")
