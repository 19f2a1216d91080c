"""A stack with a champion is backed up while it runs, and comes up elsewhere with everything."""

import hashlib
import json
import subprocess
import sys
import time

import pytest
import tiny_run

from infra.stack import environment
from infra.stack.object_store import s3_client
from infra.stack.processes import services

pytestmark = pytest.mark.long

FACTS = """
import json
from mlflow import MlflowClient

client = MlflowClient()
(experiment,) = [one for one in client.search_experiments() if one.name == "stylegan"]
facts = {"versions": [], "runs": {}}
for version in client.search_model_versions("name = 'kept'"):
    found = client.get_model_version(version.name, version.version)
    facts["versions"].append([found.name, str(found.version), sorted(found.aliases), found.source, found.run_id])
for run in client.search_runs([experiment.experiment_id]):
    curves = {key: [(p.step, p.value, p.timestamp) for p in client.get_metric_history(run.info.run_id, key)]
              for key in sorted(run.data.metrics)}
    facts["runs"][run.info.run_id] = [run.info.run_name, run.data.params, run.data.tags, curves]
print(json.dumps(facts))
"""


def tracked(stack):
    """Return what MLflow has: versions with aliases, runs with params, tags and curves."""
    done = subprocess.run(
        [sys.executable, "-c", FACTS], env=stack.environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def objects(stack):
    """Return the digest of every object: sets, checkpoints, pictures, models."""
    client, found = s3_client(stack.values), {}
    for bucket in environment.BUCKETS:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", ()):
                body = client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
                found[f"{bucket}/{item['Key']}"] = hashlib.sha256(body).hexdigest()
    return found


def test_a_backup_of_a_running_stack_comes_up_on_an_empty_machine(stack, new_stack):
    tiny_run.trained(stack)
    stack.stylegan("schedule", "kept.yaml", "--cron", "0 3 * * 1")
    path = stack.folder / "backup.tar"
    began = time.monotonic()
    done = stack.command("backup", "--out", str(path))
    assert done.returncode == 0, done.stderr
    took = {"backup": time.monotonic() - began}
    before = tracked(stack), objects(stack)
    assert before[0]["versions"][0][:3] == ["kept", "1", ["champion"]]
    assert any(key.startswith("stylegan/") and key.endswith("/generator.safetensors") for key in before[1])

    refused = stack.command("restore", str(path))
    assert refused.returncode == 1
    assert "this stack has data" in refused.stderr

    other = new_stack()
    began = time.monotonic()
    done = other.command("restore", str(path))
    assert done.returncode == 0, done.stderr
    took["restore"] = time.monotonic() - began
    assert f"infra/stack.sh --env {other.env_file} up" in done.stdout
    secrets = {name for name in other.values if other.values[name] == stack.values[name]}
    assert not {name for name in secrets if name.endswith(("PASSWORD", "_KEY", "AUTH_STRING", "AUTH_TOKEN"))}

    other.up(*(one.name for one in services(other.values) if one.name != "worker"))  # which would start what is due
    assert (tracked(other), objects(other)) == before

    # A run takes everything from the cache.
    began = time.monotonic()
    tiny_run.train(other)
    took["run from the cache"] = time.monotonic() - began
    after = objects(other)
    stages = [key for key in before[1] if "/stages/" in key or "/datasets/" in key]
    assert stages
    assert {key: after[key] for key in after if "/stages/" in key or "/datasets/" in key} == {
        key: before[1][key] for key in stages
    }
    assert [version[:3] for version in tracked(other)["versions"]] == [["kept", "1", ["champion"]]]
    shown = json.loads(other.stylegan("schedule", "kept.yaml", "--show", "--json").splitlines()[-1])
    assert shown["timetable"] == "cron '0 3 * * 1' in UTC"
    print(", ".join(f"{what} {seconds:.0f} s" for what, seconds in took.items()))
