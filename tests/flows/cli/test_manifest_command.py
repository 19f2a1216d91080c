"""The command that writes manifests: what it prints, and the options that do not go together."""

import json

import pytest
from command_line import TREE, fail

from flows.cli.main import main

IMAGE = ("--image", "registry.example.com/stylegan:0.1.0")
REMOTE = ("-s", "storage.root=s3://bucket/x", "-s", "data.source=digits", "-s", "tracking.uri=http://mlflow:5000")


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text(json.dumps(TREE | {"data": TREE["data"] | {"source": "digits"}}))
    return str(file)


def test_a_manifest_goes_to_a_file_or_to_standard_output(capsys, tmp_path, config):
    out = str(tmp_path / "job.yaml")
    assert main(["manifest", config, "--kind", "rayjob", *IMAGE, *REMOTE, "--out", out]) == 0
    assert capsys.readouterr().out == f"rayjob t in {out}; start it with `kubectl apply -f {out}`\n"
    text = (tmp_path / "job.yaml").read_text()
    assert text.startswith("# Made from t.yaml with --kind rayjob, for Ray 2.")
    assert main(["manifest", config, "--kind", "rayjob", *IMAGE, *REMOTE]) == 0
    assert capsys.readouterr().out == text
    assert main(["manifest", config, "--kind", "rayjob", *IMAGE, *REMOTE, "--out", out, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [document["kind"] for document in record["documents"]] == ["ConfigMap", "RayJob"]


def test_the_yaml_of_ray_up_is_for_machines(capsys, config):
    local = ("--provider", "local", "--head", "gpu0", "--worker", "gpu1", "--worker", "gpu2")
    assert main(["manifest", config, "--kind", "cluster-yaml", *local]) == 0
    assert "worker_ips:\n  - gpu1\n  - gpu2\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rayjob", *REMOTE), "--image: is missing"),
        (("rayjob", *IMAGE), "storage.root=stylegan-data: is a folder of this machine"),
        (("rayjob", *IMAGE, *REMOTE, "--head", "x"), "--head: is no option of --kind rayjob"),
        (("cluster-yaml", "--secret", "x"), "--secret: is no option of --kind cluster-yaml"),
        (("cluster-yaml",), "--provider: is missing"),
        (("rayjob", *IMAGE, *REMOTE, "--out", "job.txt"), "--out job.txt: must end in .yaml or .yml"),
    ],
)
def test_options_that_do_not_fit_are_one_line(capsys, config, arguments, message):
    assert message in fail(capsys, 2, "manifest", config, "--kind", *arguments)
