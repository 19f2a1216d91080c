"""The values for Helm: each key is one of the chart's, and what they set exists in the pinned packages."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from clusters import free_port

ROOT = Path(__file__).parents[2]
CHARTS = json.loads((Path(__file__).parent / "charts.json").read_text())
FILES = {file.stem.removeprefix("values-"): file for file in sorted((ROOT / "infra" / "helm").glob("values-*.yaml"))}
VALUES = {chart: yaml.safe_load(file.read_text()) for chart, file in FILES.items()}
MLFLOW, PREFECT = VALUES["mlflow"], VALUES["prefect-server"]


def unknown(values, keys, path=""):
    """Return the keys of values that the chart lacks."""
    if not keys or not isinstance(values, dict):
        return []
    found = []
    for key, value in values.items():
        found += unknown(value, keys[key], f"{path}{key}.") if key in keys else [f"{path}{key}"]
    return found


def variables(listed):
    """Return a list of environment variables of Kubernetes as a dict."""
    return {one["name"]: one["value"] for one in listed}


def test_there_is_a_list_of_keys_for_every_chart():
    assert set(FILES) | {"note"} == set(CHARTS)


@pytest.mark.parametrize("chart", FILES)
def test_every_key_is_one_of_the_chart(chart):
    assert unknown(VALUES[chart], CHARTS[chart]["keys"]) == []
    assert f"# Chart `{chart}` of " in FILES[chart].read_text().partition("\n")[0]
    assert unknown({"image": {"tagg": 1}, "more": 2}, CHARTS["mlflow"]["keys"]) == ["image.tagg", "more"]


def test_the_images_have_the_versions_that_the_tests_ran_with():
    assert MLFLOW["image"]["tag"] == f"v{version('mlflow')}-full"
    assert PREFECT["global"]["prefect"]["image"]["prefectTag"].startswith(f"{version('prefect')}-")


def test_prefect_keeps_leases_on_disk_and_old_runs_go():
    """The values are those of settings of this Prefect, and the leases are in the volume."""
    from prefect.server.concurrency.lease_storage.filesystem import ConcurrencyLeaseStorage
    from prefect.settings import Settings, temporary_settings

    set_here = variables(PREFECT["server"]["env"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in set_here.items():
            patch.setenv(name, value)
        server = Settings().server
        assert server.concurrency.lease_storage == ConcurrencyLeaseStorage.__module__
        assert set(server.services.db_vacuum.enabled) == {"events", "flow_runs"}
        assert server.analytics_enabled is False
        assert server.ui.show_promotional_content is False
    assert len(set_here) == 4  # each of them was looked at
    home = Path("/home/prefect/.prefect")  # HOME in the chart's templates
    from prefect.settings import PREFECT_HOME

    with temporary_settings({PREFECT_HOME: home}):
        (mounted,) = PREFECT["server"]["extraVolumeMounts"]
        assert str(ConcurrencyLeaseStorage().storage_path) == mounted["mountPath"]


def test_mlflow_takes_its_options_and_variables():
    import mlflow.environment_variables as known
    from mlflow.cli import server

    options = {option for parameter in server.params for option in parameter.opts}
    assert {f"--{key.replace('_', '-')}" for key in MLFLOW["server"]["value_options"]} <= options
    set_here = variables(MLFLOW["env"])
    assert all(hasattr(known, name) for name in set_here if name != "HOME")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", set_here["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"])
        assert known.MLFLOW_SERVER_ENABLE_JOB_EXECUTION.get() is False


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("mlflow.mlflow.svc:5000", True),
        ("mlflow:5000", True),
        ("mlflow.mlflow.svc.cluster.local:5000", True),
        ("127.0.0.1:5000", True),
        ("localhost:15000", True),
        ("rebound.example.com:5000", False),
        ("mlflow.mlflow.svc.example.com:5000", False),
    ],
)
def test_mlflow_answers_those_who_call_it_by_its_names(host, allowed):
    from mlflow.server.security_utils import get_allowed_hosts_from_env, is_allowed_host_header

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", MLFLOW["server"]["value_options"]["allowed_hosts"])
        assert is_allowed_host_header(get_allowed_hosts_from_env(), host) is allowed


def test_the_operator_has_the_gates_that_our_manifests_need():
    gates = {gate["name"]: gate["enabled"] for gate in VALUES["kuberay-operator"]["featureGates"]}
    text = (ROOT / "infra" / "k8s" / "raycronjob.yaml").read_text()
    assert gates["RayCronJob"] is ("kind: RayCronJob" in text)
    assert gates["RayJobDeletionPolicy"] is ("deletionRules:" in text)


def test_the_plugin_of_gpus_runs_on_every_tainted_node_that_our_pods_may_go_to():
    plugin = VALUES["nvidia-device-plugin"]
    taints = {(one["key"], one.get("value")) for one in plugin["tolerations"]}
    assert {("nvidia.com/gpu", None), ("cloud.google.com/gke-spot", "true"), ("spot", "true")} <= taints
    assert {(one["key"], one.get("value")) for one in plugin["nfd"]["worker"]["tolerations"]} <= taints


@pytest.mark.parametrize("chart", FILES)
def test_no_password_is_in_the_values(chart):
    def walk(value, path=()):
        if isinstance(value, dict):
            for key, item in value.items():
                yield from walk(item, (*path, key))
        elif isinstance(value, list):
            for item in value:
                yield from walk(item, path)
        else:
            yield path, value

    for path, value in walk(VALUES[chart]):
        assert path[-1].lower() not in ("password", "authstring", "connectionstring"), path
        assert "://" not in str(value) or "@" not in str(value), path


@pytest.mark.long
def test_the_server_of_mlflow_starts_with_these_values_and_gc_frees_what_was_deleted(tmp_path):
    """As the templates of the chart call both, but for the address, the database and the bucket."""
    import httpx
    from mlflow import MlflowClient

    port = free_port()
    subprocess.run(
        [sys.executable, str(ROOT / "infra/k8s/make_secrets.py"), str(tmp_path / "secrets.json")], check=True
    )
    items = json.loads((tmp_path / "secrets.json").read_text())["items"]
    secrets = {one["metadata"]["name"]: one["stringData"] for one in items if one["metadata"]["namespace"] == "mlflow"}
    database = f"sqlite:///{tmp_path}/mlflow.db"
    address = secrets["mlflow"]["MLFLOW_BACKEND_STORE_URI"]
    settings = tmp_path / "basic_auth.ini"
    settings.write_text(secrets["mlflow-auth"]["basic_auth.ini"].replace(address, f"sqlite:///{tmp_path}/auth.db"))
    here = {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
        "HOME": str(tmp_path),
    }
    set_here = secrets["mlflow"] | variables(MLFLOW["env"])
    assert set(here) - {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"} <= set(set_here)
    env = os.environ | set_here | here
    options = MLFLOW["server"]["value_options"] | {"host": "127.0.0.1", "port": port}
    mlflow = str(Path(sys.executable).parent / "mlflow")
    command = [mlflow, "server", *(f"--{name.replace('_', '-')}={value}" for name, value in sorted(options.items()))]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(
            command, env=env, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = here["MLFLOW_TRACKING_URI"]
        for _ in range(240):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        assert httpx.get(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0").status_code == 401
        rebound = httpx.get(f"{url}/api/2.0/mlflow/experiments/get", headers={"Host": "rebound.example.com"})
        assert rebound.status_code == 403
        with pytest.MonkeyPatch.context() as patch:
            for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
                patch.setenv(name, set_here[name])
            client = MlflowClient(url)
            run = client.create_run("0").info.run_id
            client.log_text(run, "x", "x.txt")
            kept = client.create_run("0").info.run_id
            client.log_text(kept, "y", "y.txt")
            client.delete_run(run)
            artifacts = tmp_path / "artifacts"
            assert {file.name for file in artifacts.rglob("*.txt")} == {"x.txt", "y.txt"}
            gc = ["gc", f"--backend-store-uri={database}", "--older-than=0d"]
            subprocess.run([mlflow, *gc], env=env, cwd=tmp_path, check=True, capture_output=True, timeout=300)
            assert {file.name for file in artifacts.rglob("*.txt")} == {"y.txt"}
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
