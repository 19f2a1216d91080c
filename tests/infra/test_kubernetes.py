"""infra/k8s: names and ports fit together, the stores work natively, and the commands of its page can be typed."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from clusters import free_port

from flows.cli.main import main

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "k8s"
PAGE = (FOLDER / "README.md").read_text()


def documents(name):
    """Return the objects of a file."""
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def find(kind, name, namespace=None):
    """Return an object of any file by kind and name."""
    (found,) = [
        one
        for file in ("namespaces.yaml", "stores.yaml", "networkpolicy.yaml")
        for one in documents(file)
        if (one["kind"], one["metadata"]["name"]) == (kind, name)
        and namespace in (None, one["metadata"].get("namespace"))
    ]
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the file that make_secrets.py writes."""
    path = tmp_path_factory.mktemp("secrets") / "secrets.json"
    command = [sys.executable, "-I", str(FOLDER / "make_secrets.py"), str(path)]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    text = path.read_text()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "stays as it is" in again.stdout
    assert path.read_text() == text
    for password in re.findall(r"[0-9a-f]{32,}", text):
        assert password not in first.stdout + again.stdout
    return path


@pytest.fixture(scope="module")
def secrets(made):
    """Return the values of each Secret, by namespace and name."""
    return {
        (one["metadata"]["namespace"], one["metadata"]["name"]): one["stringData"]
        for one in json.loads(made.read_text())["items"]
    }


def test_secrets_are_random_and_for_the_owner_alone(made, tmp_path):
    assert made.stat().st_mode & 0o777 == 0o600
    other = tmp_path / "other.json"
    subprocess.run([sys.executable, str(FOLDER / "make_secrets.py"), str(other)], check=True, capture_output=True)
    passwords = [set(re.findall(r"[0-9a-f]{32,}", file.read_text())) for file in (made, other)]
    assert len(passwords[0]) == len(passwords[1]) == 7
    assert not passwords[0] & passwords[1]
    for arguments in ([], ["x.yaml"], [str(tmp_path / "no" / "folder.json")]):
        done = subprocess.run(
            [sys.executable, str(FOLDER / "make_secrets.py"), *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode
        assert len(done.stderr.splitlines()) == 1


def references(value):
    """Yield the Secrets that pods refer to, with the key, or None for all of it."""
    if isinstance(value, dict):
        if "secretKeyRef" in value:
            yield value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]
        for name in ("secretRef", "secret"):
            inner = value.get(name)
            if isinstance(inner, dict) and (found := inner.get("name") or inner.get("secretName")):
                yield found, None
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_secret_that_is_named_is_made_with_its_keys(secrets):
    named = {("stores", *one) for one in references(documents("stores.yaml"))}
    values = yaml.safe_load((ROOT / "infra/helm/values-mlflow.yaml").read_text())
    named |= {("mlflow", *one) for one in references(values)}
    named |= {("stylegan", *one) for one in references(list(documents("rayjob.yaml")))}
    # What the templates of Prefect's chart ask for.
    prefect = yaml.safe_load((ROOT / "infra/helm/values-prefect-server.yaml").read_text())
    named |= {("prefect", prefect["secret"]["name"], "connection-string")}
    named |= {("prefect", prefect["server"]["basicAuth"]["existingSecret"], "auth-string")}
    assert {(namespace, name) for namespace, name, _ in named} == set(secrets)
    for namespace, name, key in named:
        assert key is None or key in secrets[namespace, name], (namespace, name, key)
    script = find("ConfigMap", "postgres")["data"]["databases.sql"]
    assert set(re.findall(r"getenv \w+ (\w+)", script)) < set(secrets["stores", "postgres"])
    assert secrets["mlflow", "mlflow"]["MLFLOW_BACKEND_STORE_URI"] in secrets["mlflow", "mlflow-auth"]["basic_auth.ini"]


def test_servers_are_called_by_the_names_and_ports_that_they_have(secrets):
    for name, port in (("postgres", 5432), ("s3", 8333)):
        service = find("Service", name)
        assert service["spec"]["ports"][0]["port"] == port
        (container,) = find("StatefulSet", name)["spec"]["template"]["spec"]["containers"]
        assert container["ports"][0]["containerPort"] == port
        assert f"{name}.{service['metadata']['namespace']}.svc:{port}" in json.dumps(list(secrets.values()))
    mlflow = yaml.safe_load((ROOT / "infra/helm/values-mlflow.yaml").read_text())
    assert f"http://{mlflow['fullnameOverride']}.mlflow.svc:{mlflow['server']['value_options']['port']}" in PAGE
    prefect = "http://prefect-server.prefect.svc:4200/api"  # the names of Prefect's chart
    assert secrets["stylegan", "stylegan"]["PREFECT_API_URL"] == prefect
    claim = yaml.safe_load((ROOT / "infra/helm/values-prefect-server.yaml").read_text())["server"]["extraVolumes"]
    assert find("PersistentVolumeClaim", claim[0]["persistentVolumeClaim"]["claimName"], "prefect")


def test_pods_of_ray_reach_what_they_need_and_nothing_else_reaches_them():
    ray, head = find("NetworkPolicy", "ray")["spec"], find("NetworkPolicy", "ray-head")["spec"]
    assert ray["policyTypes"] == head["policyTypes"] == ["Ingress", "Egress"]  # so that all else is denied
    assert ray["podSelector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    assert ray["ingress"] == [{"from": [{"podSelector": ray["podSelector"]}]}]

    def allowed(rules):
        return {
            (peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name"), port["port"])
            for rule in rules
            for peer in rule.get("to", rule.get("from"))
            for port in rule.get("ports", [])
        }

    ports = {("kube-system", 53), ("mlflow", 5000), ("prefect", 4200), ("stores", 8333), (None, 443)}
    assert allowed(ray["egress"]) == ports
    assert allowed(head["egress"]) == {(None, 443), (None, 6443)}
    assert allowed(head["ingress"]) == {("ray-system", 8265), (None, 8265)}
    for policy in documents("networkpolicy.yaml"):
        assert find("Namespace", policy["metadata"]["namespace"])
        for rule in policy["spec"]["ingress"]:
            assert rule["from"]  # an empty one would let everybody in


def test_stores_have_no_password_and_no_right_that_they_do_not_need():
    for name in ("postgres", "s3"):
        pod = find("StatefulSet", name)["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert not [one for one in container.get("env", []) if "PASSWORD" in one["name"]]


# --- the stores, natively ---


@pytest.mark.engine
def test_the_s3_server_of_the_cluster_asks_for_keys_and_has_its_buckets(secrets, tmp_path):
    """Its command line and what follows its start are run here, with other ports and folders."""
    import boto3
    from botocore.exceptions import ClientError

    weed = Path(sys.executable).parent / "weed"
    if not weed.exists():
        pytest.skip("SeaweedFS is not installed (the extra `stack`)")
    (container,) = find("StatefulSet", "s3")["spec"]["template"]["spec"]["containers"]
    (tmp_path / "data").mkdir()
    (tmp_path / "s3.json").write_text(secrets["stores", "s3"]["s3.json"])
    port, volume, filer = (free_port() for _ in range(3))
    master = next(number for number in iter(free_port, None) if number < 50_000)  # gRPC has the port 10,000 above
    places = {
        "/data": str(tmp_path / "data"),
        "/etc/seaweedfs": str(tmp_path),
        "s3.port=8333": f"s3.port={port}",
        "0.0.0.0": "127.0.0.1",
        ":9333": f":{master}",
    }

    def here(text):
        for there, local in places.items():
            text = text.replace(there, local)
        return text

    apart = [
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
        *(f"-{name}.port.grpc={free_port()}" for name in ("volume", "filer", "s3")),
        f"-filer.localSocket={tmp_path / 'filer.sock'}",
        f"-s3.localSocket={tmp_path / 's3.sock'}",
    ]
    command = [str(weed), *map(here, container["command"][1:]), *apart]
    assert container["command"][0] == "weed"
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        *shell, script = container["lifecycle"]["postStart"]["exec"]["command"]
        for _ in range(2):  # also where the buckets are there already, after a restart
            environment = os.environ | {"PATH": f"{weed.parent}:/usr/bin:/bin"}
            try:
                subprocess.run([*shell, here(script)], env=environment, check=True, timeout=120)
            except subprocess.TimeoutExpired:
                raise AssertionError((tmp_path / "log").read_text()[-3000:]) from None
        keys = secrets["stylegan", "stylegan"]
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
            region_name=keys["AWS_REGION"],
        )
        assert {bucket["Name"] for bucket in client.list_buckets()["Buckets"]} == {"stylegan", "mlflow"}
        client.put_object(Bucket="mlflow", Key="a/b", Body=b"well")
        assert client.get_object(Bucket="mlflow", Key="a/b")["Body"].read() == b"well"
        stranger = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key="wrong",
            region_name="us-east-1",
        )
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            stranger.list_buckets()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.engine
def test_the_databases_are_made_with_their_passwords(secrets, tmp_path):
    """The script of the first start is run by the PostgreSQL of this machine; then both users log in, to their own alone."""
    psycopg = pytest.importorskip("psycopg")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [
        Path(found).parent for found in [shutil.which("initdb")] if found
    ]
    if not programs:
        pytest.skip("PostgreSQL is not installed")
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    data = Path("/tmp") / f"stylegan-test-postgres-{os.getpid()}"  # a folder that another user can reach
    data.mkdir(mode=0o700)
    port = free_port()
    try:
        if as_user:
            shutil.chown(data, "postgres", "postgres")

        def run(program, *arguments, **more):
            command = [*as_user, str(programs[-1] / program), *map(str, arguments)]
            subprocess.run(command, check=True, cwd="/tmp", capture_output=True, timeout=120, **more)

        run("initdb", "-D", data / "db", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync")
        options = ["-D", data / "db", "-h", "127.0.0.1", "-p", port, "-k", data, "-c", "fsync=off"]
        server = subprocess.Popen(
            [*as_user, str(programs[-1] / "postgres"), *map(str, options)],
            cwd="/tmp",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for _ in range(100):
                try:
                    run("pg_isready", "-h", data, "-p", port)
                    break
                except subprocess.CalledProcessError:
                    time.sleep(0.2)
            script = find("ConfigMap", "postgres")["data"]["databases.sql"].encode()
            passwords = secrets["stores", "postgres"]
            arguments = ("-v", "ON_ERROR_STOP=1", "-h", data, "-p", port, "-d", "postgres")  # as the image calls it
            run("psql", *arguments, input=script, env=os.environ | passwords)
            string = secrets["mlflow", "mlflow"]["MLFLOW_BACKEND_STORE_URI"]
            with psycopg.connect(string.replace("postgres.stores.svc:5432", f"127.0.0.1:{port}")) as connection:
                connection.execute("CREATE TABLE runs (id int)")
            string = secrets["prefect", "prefect"]["connection-string"].replace("+asyncpg", "")
            psycopg.connect(string.replace("postgres.stores.svc:5432", f"127.0.0.1:{port}")).close()
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(f"postgresql://mlflow:wrong@127.0.0.1:{port}/mlflow")
        finally:
            server.terminate()
            server.wait(30)
    finally:
        shutil.rmtree(data, ignore_errors=True)


# --- the page ---


def commands():
    """Return every line in the blocks of shell of the page."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_the_page_has_ten_commands_to_a_champion():
    first = PAGE.partition("## Ten commands")[2].partition("```sh\n")[2].partition("```")[0]
    assert len(first.splitlines()) == 10
    assert first.splitlines()[-1].endswith("service/mlflow 5000")


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("stylegan ")])
def test_commands_of_stylegan_on_the_page_work_as_typed(command, monkeypatch, tmp_path, capsys):
    words = shlex.split(command)[1:]
    out = words[words.index("--out") + 1]
    monkeypatch.chdir(ROOT)
    assert main([str(tmp_path / "made.yaml") if word == out else word for word in words]) == 0, capsys.readouterr().err
    kinds = [one["kind"] for one in yaml.safe_load_all((tmp_path / "made.yaml").read_text())]
    assert kinds[0] == "ConfigMap"
    assert kinds[1].lower() == words[words.index("--kind") + 1]
    # What other commands call by name and file.
    name = list(yaml.safe_load_all((tmp_path / "made.yaml").read_text()))[1]["metadata"]["name"]
    if out == "job.yaml":
        assert f"rayjob/{name} " in PAGE
    if out in ("job.yaml", "retrain.yaml"):
        assert f"kubectl apply --namespace stylegan -f {out}" in PAGE


@pytest.mark.parametrize("command", [line for line in commands() if not line.startswith("stylegan ")])
def test_files_and_objects_that_other_commands_name_are_there(command, secrets):
    assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0
    words = shlex.split(command)
    assert words[0] in ("python3", "kubectl", "helm")
    for word in words:
        if word.startswith("infra/"):
            assert (ROOT / word).is_file(), word
    if "--namespace" in words and "--create-namespace" not in words:
        assert find("Namespace", words[words.index("--namespace") + 1])
    if words[0] == "helm":
        chart = words[2]
        assert Path(words[words.index("--values") + 1]).name == f"values-{chart}.yaml"
    if words[:3] == ["kubectl", "get", "secret"]:
        key = re.search(r"\{\{\.data\.(\w+)\}\}", command).group(1)
        assert key in secrets[words[words.index("--namespace") + 1], words[3]]
    for word in words:
        if word.startswith("statefulset/"):
            assert find("StatefulSet", word.partition("/")[2])


def test_kubectl_takes_the_words_of_every_command():
    """Its client parses them; without a cluster it then fails at the connection, and not at a word."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    for command in commands():
        words = shlex.split(command.partition("|")[0].partition(" > ")[0])
        if words[0] != "kubectl":
            continue
        done = subprocess.run(
            [kubectl, "--server=http://127.0.0.1:9", "--request-timeout=2s", *words[1:]],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=os.environ | {"KUBECONFIG": "/dev/null"},
            timeout=60,
        )
        said = done.stderr + done.stdout
        assert done.returncode
        assert re.search(r"refused|does not exist|Unable to connect", said), (command, said)
        assert not re.search(r"unknown (flag|command|shorthand)|error parsing|invalid argument", said), (command, said)


# --- the schemas of Kubernetes ---


def pods():
    """Return the pods of our manifests of KubeRay, as objects of Kubernetes."""
    for name in ("rayjob.yaml", "raycronjob.yaml", "raycluster.yaml"):
        spec = documents(name)[-1]["spec"]
        cluster = spec.get("jobTemplate", spec).get("rayClusterSpec", spec)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            metadata = {"name": "pod", **group["template"].get("metadata", {})}
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": group["template"]["spec"]}


def test_objects_and_pods_are_as_kubernetes_has_them(made):
    """With the package kubernetes-validate, which is large: `make test-manifests` brings it."""
    validator = pytest.importorskip("kubernetes_validate")
    listed = [one for name in ("namespaces.yaml", "stores.yaml", "networkpolicy.yaml") for one in documents(name)]
    listed += json.loads(made.read_text())["items"]
    listed += [documents("rayjob.yaml")[0], *pods()]
    for one in listed:
        validator.validate(one, "1.37", strict=True)
    broken = {**listed[-1], "spec": {**listed[-1]["spec"], "toleration": []}}
    with pytest.raises(validator.ValidationError):
        validator.validate(broken, "1.37", strict=True)
