"""Manifests of KubeRay, checked against the fields of its release, and read by Ray's own autoscaler and command line."""

import json
import subprocess
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest

from flows.cli.app import app
from flows.cli.retrain_command import retrain
from flows.cli.run_commands import run
from stylegan.cluster.manifests.kuberay import (
    CONFIG_FOLDER,
    KUBERAY,
    Options,
    drain_command,
    kuberay_documents,
    manifest_text,
    notice_seconds,
)
from stylegan.cluster.manifests.node_groups import node_groups
from stylegan.config import file
from stylegan.config.file import build
from stylegan.config.yaml_text import read
from stylegan.errors import ConfigError

SCHEMA = json.loads((Path(__file__).parent / f"kuberay-{KUBERAY}.json").read_text())
IMAGE = "registry.example.com/stylegan:0.1.0"
KINDS = ("rayjob", "raycluster", "raycronjob")
RAY = {
    "workers": 8,
    "gpus_per_worker": 1,
    "stages": {4: {"workers": 1}, 8: {"workers": {"min": 1, "max": 4}}, 32: {"accelerator_type": "A100"}},
}
TREE = {
    "name": "faces",
    "storage": {"root": "s3://bucket/stylegan"},
    "data": {"source": "digits", "resolution": 32},
    "training": {"start_resolution": 4, "batch": 32},
    "tracking": {"uri": "http://mlflow:5000"},
    "ray": RAY,
}
A100 = "a100:nvidia.com/gpu.product=NVIDIA-A100-SXM4-80GB"


def documents(kind="rayjob", tree=None, **options):
    """Return the documents of a kind, checked against the schema."""
    asked = {"image": IMAGE, "node_selectors": (A100,)} | options
    if kind == "raycronjob":
        asked = {"schedule": "0 3 * * 1"} | asked
    made = kuberay_documents(build(tree or TREE), kind, Options(**asked))
    for document in made:
        jsonschema.validate(document, SCHEMA)
    return made


def cluster_of(document):
    """Return the spec of the cluster in a document of any kind."""
    spec = document["spec"]
    return spec.get("jobTemplate", spec).get("rayClusterSpec", spec)


@pytest.mark.parametrize("kind", KINDS)
def test_pods_ask_for_what_they_need_and_leave_in_order(kind):
    cluster = cluster_of(documents(kind, secret="keys", env=("AWS_ENDPOINT_URL=http://s3",))[-1])
    assert cluster["rayVersion"] == version("ray")
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    groups = cluster["workerGroupSpecs"]
    assert {group["groupName"]: (group["minReplicas"], group["maxReplicas"]) for group in groups} == {
        "gpu": (0, 8),
        "a100": (0, 8),
        "shards": (0, 16),
    }
    for group in (cluster["headGroupSpec"], *groups):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
        assert {"name": "AWS_ENDPOINT_URL", "value": "http://s3"} in container["env"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(mounts) == set(volumes)
        assert mounts["shared-memory"] == "/dev/shm"
        assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"
    grace = build(TREE).ray.stop_grace_s
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > notice_seconds(build(TREE)) > grace
        assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1] == drain_command(int(grace) + 10)
    gpu, a100, shards = (group["template"]["spec"] for group in groups)
    assert a100["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    assert "nodeSelector" not in gpu
    assert "tolerations" in gpu
    assert "tolerations" not in shards


def test_a_scheduled_run_tells_those_whom_a_variable_names_and_holds_no_secret():
    config_map, _ = documents("raycronjob", tree=TREE | {"retrain": {"notify": ["$PEOPLE"]}}, secret="keys")
    assert file.read(config_map["data"]["config.yaml"], "config map").retrain.notify == ("$PEOPLE",)
    with pytest.raises(ConfigError, match=r"retrain.notify\[1\]: may hold a secret.* write \$NAME") as caught:
        documents("raycronjob", tree=TREE | {"retrain": {"notify": ["$PEOPLE", "json://me:hidden@host"]}})
    assert "hidden" not in str(caught.value)


def test_pods_go_to_spot_nodes_by_their_labels_and_in_spite_of_their_taints():
    made = documents(
        tolerations=("spot:NoSchedule", "cloud.google.com/gke-spot=true:NoExecute", "shards:spot", "head:own="),
        node_selectors=(A100, "cloud.google.com/gke-spot=true"),
    )
    cluster = cluster_of(made[-1])
    found = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    of_gpus = [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoExecute"},
    ]
    assert found["gpu"]["tolerations"] == found["a100"]["tolerations"] == of_gpus
    assert found["shards"]["tolerations"] == [{"key": "spot", "operator": "Exists"}]
    assert cluster["headGroupSpec"]["template"]["spec"]["tolerations"] == [
        {"key": "own", "operator": "Equal", "value": ""}
    ]
    assert found["gpu"]["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert set(found["a100"]["nodeSelector"]) == {"cloud.google.com/gke-spot", "nvidia.com/gpu.product"}


def test_documents_are_written_one_below_the_other():
    made = documents()
    text = manifest_text(made, "a\nb")
    assert text.startswith("# a\n# b\napiVersion: v1\nkind: ConfigMap\n")
    assert tuple(read(part, "manifest").value for part in text.split("---\n")) == made


@pytest.mark.parametrize(("kind", "command"), [("rayjob", run), ("raycronjob", retrain)])
def test_a_run_reads_its_config_where_it_is_mounted_and_joins_the_cluster(kind, command):
    config_map, job = documents(kind)
    stored = file.read(config_map["data"]["config.yaml"], "config map")
    assert stored.model_dump(exclude={"ray"}) == build(TREE).model_dump(exclude={"ray"})
    assert stored.ray.address == "auto"
    head = cluster_of(job)["headGroupSpec"]["template"]["spec"]
    (mounted,) = [volume for volume in head["volumes"] if "configMap" in volume]
    assert mounted["configMap"]["name"] == config_map["metadata"]["name"]
    spec = job["spec"].get("jobTemplate", job["spec"])
    program, *arguments = spec["entrypoint"].split()
    assert program == "stylegan"
    assert arguments[-1] == f"{CONFIG_FOLDER}/config.yaml"
    assert app.parse_args(arguments, exit_on_error=False, print_error=False)[0] is command
    wait = read(spec["runtimeEnvYAML"], "runtime env").value["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert int(wait) > build(TREE).ray.stop_grace_s
    (cluster,) = documents("raycluster")  # for any run, so it holds no config
    assert "configMap" not in json.dumps(cluster)


def test_a_schedule_retrains_and_a_queue_holds_a_run_back():
    _, cron = documents("raycronjob", timezone="Europe/Berlin", max_hours=1.5)
    spec = cron["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0 3 * * 1", "Europe/Berlin")
    job = documents(max_hours=1.5)[1]["spec"]
    assert spec["jobTemplate"] == job | {"entrypoint": job["entrypoint"].replace(" run ", " retrain ")}
    assert spec["jobTemplate"]["activeDeadlineSeconds"] == 5400
    queued = documents(queue="gpus")[1]
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert (queued["spec"]["suspend"], "deletionStrategy" in queued["spec"]) == (True, False)
    groups = cluster_of(queued)["workerGroupSpecs"]
    assert "enableInTreeAutoscaling" not in cluster_of(queued)
    assert [group["replicas"] for group in groups] == [8, 8, 0]  # all that the run will need, at once


def test_what_runs_before_the_end_of_a_pod_are_commands_of_this_ray():
    """The shell parses each, and Ray's command line takes every word of it."""
    from ray.dashboard.modules.job.cli import stop
    from ray.scripts.scripts import drain_node

    def parsed(command, ray_command, words):
        subprocess.run(["sh", "-n", "-c", command], check=True)
        arguments = command.partition(f" ray {words} ")[2].partition(" && ")[0]
        printed = subprocess.run(
            ["sh", "-c", f"printf '%s\\n' {arguments}"], capture_output=True, text=True, check=True
        )
        return ray_command.make_context(words, printed.stdout.splitlines()).params

    drain = parsed(drain_command(40), drain_node, "drain-node")
    assert drain["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert (drain["deadline_remaining_seconds"], drain["node_id"], drain["address"]) == (40, None, None)
    _, job = documents()
    head = cluster_of(job)["headGroupSpec"]["template"]["spec"]
    command = head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    stopped = parsed(command, stop, "job stop")
    assert (stopped["job_id"], stopped["no_wait"]) == (job["spec"]["jobId"], False)
    assert head["terminationGracePeriodSeconds"] > notice_seconds(build(TREE))


@pytest.mark.parametrize(
    ("bundles", "started"),
    [
        ([{"GPU": 1, "CPU": 1}], {"gpu": 1}),
        ([{"GPU": 1, "CPU": 1}] * 8, {"gpu": 8}),
        ([{"GPU": 1, "CPU": 1, "accelerator_type:A100": 0.001}] * 2, {"a100": 2}),
        ([{"CPU": 1}] * 128, {"shards": 16}),  # sharding never wakes a GPU
    ],
)
def test_the_autoscaler_brings_the_nodes_of_a_stage_and_no_others(bundles, started):
    """Ray's own reader of these objects and its own scheduler say what they would start for a cluster without workers."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    (cluster,) = documents("raycluster")
    cluster["metadata"]["namespace"] = "default"
    scaling = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster))
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=scaling.get_node_type_configs(),
        max_num_nodes=scaling.get_max_num_worker_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(bundle) for bundle in bundles]),
    )

    class Silent:
        def __getattr__(self, name):
            return lambda *_, **__: None

    reply = ResourceDemandScheduler(Silent()).schedule(request)
    assert not reply.infeasible_resource_requests
    counts = Counter()
    for launch in reply.to_launch:
        counts[launch.instance_type] += launch.count
    assert {name: count for name, count in counts.items() if name != "headgroup"} == started


def test_stages_with_the_same_needs_share_nodes_as_large_as_their_workers():
    def groups(workers_per_node=1, **ray):
        config = build(TREE | {"ray": {"workers": 4, **ray}})
        return {
            group.name: (group.resolutions, group.cpus, group.gpus, group.most)
            for group in node_groups(config, workers_per_node)
        }

    assert groups() == {"cpu": ((4, 8, 16, 32), 1, 0, 4)}  # which also write the shards
    assert groups(2, gpus_per_worker=1, cpus_per_worker=3)["gpu"] == ((4, 8, 16, 32), 6, 2, 2)
    assert groups(gpus_per_worker=0.5)["gpu"] == ((4, 8, 16, 32), 2, 1, 2)  # a node has whole GPUs
    assert groups(8, stages={4: {"cpus_per_worker": 2}}) == {"cpu": ((4,), 8, 0, 1), "cpu-2": ((8, 16, 32), 4, 0, 1)}
    spot = {"ray.io/market-type": "spot", "zone": "in(a, b)", "old": "!true"}
    config = build(TREE | {"ray": {"label_selector": spot, "resources_per_worker": {"fast": 0.5}}})
    cpu, shards = node_groups(config)
    assert (cpu.labels, cpu.resources) == ({"ray.io/market-type": "spot", "zone": "a"}, {"fast": 1})
    assert (shards.name, shards.labels) == ("shards", {})
    wide = build(TREE | {"model": {"fmap_max": 2048, "fmap_base": 2**16}})
    assert node_groups(wide)[0].memory_gib > node_groups(build(TREE))[0].memory_gib


def test_a_claim_is_mounted_where_the_config_expects_its_files():
    tree = TREE | {"storage": {"root": "/mnt/stylegan"}, "tracking": {"uri": None}}
    tree = tree | {"data": {"source": "/mnt/stylegan/faces", "resolution": 32}}
    for group in cluster_of(documents(tree=tree, claim="shared")[1])["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        assert {"name": "storage", "persistentVolumeClaim": {"claimName": "shared"}} in pod["volumes"]
        assert {"name": "storage", "mountPath": "/mnt/stylegan"} in pod["containers"][0]["volumeMounts"]


def test_names_that_kubernetes_does_not_allow_are_made_of_the_name_and_a_digest():
    for name in ("1024", "a-", "x" * 100):
        found = documents(tree=TREE | {"name": name})[1]["metadata"]["name"]
        assert found.startswith(f"stylegan-{name[:4].strip('-')}")
    assert documents()[1]["metadata"]["name"] == "faces"


@pytest.mark.parametrize(
    ("options", "tree", "message"),
    [
        ({"image": "Not an image"}, {}, "--image Not an image: is no name of an image; write REGISTRY/NAME:TAG"),
        ({"image": "r.example.com:5000/stylegan"}, {}, "may be another image when the next node starts; give a tag"),
        ({"image": "stylegan:latest"}, {}, "give a tag other than latest"),
        ({"kind": "raycronjob", "schedule": "daily"}, {}, "--schedule 'daily': has 1 field"),
        ({"kind": "raycronjob", "schedule": "0 25 * * *"}, {}, r"25 is no hour of cron; it must be \*, or of 0 to 23"),
        ({"kind": "raycronjob", "schedule": "0 3 * * 5-1"}, {}, "5-1 is no weekday of cron"),
        ({"kind": "raycronjob", "schedule": "*/0 3 * * 1"}, {}, r"\*/0 is no minute of cron"),
        ({"kind": "raycronjob", "timezone": "Mars/Olympus"}, {}, "--timezone Mars/Olympus: is no time zone"),
        ({"kind": "raycronjob", "schedule": None}, {}, "--schedule: is missing"),
        ({"schedule": "0 3 * * 1"}, {}, "is for --kind raycronjob"),
        ({"timezone": "UTC"}, {}, "is for --kind raycronjob"),
        ({"kind": "raycluster", "queue": "q"}, {}, "--queue q: is for --kind rayjob"),
        ({"queue": "Q!"}, {}, "is no name of an object of Kubernetes"),
        ({"max_hours": 0.0}, {}, "--max-hours 0: must be above 0"),
        ({"env": ("AWS_SECRET_ACCESS_KEY=hidden",)}, {}, "--env AWS_SECRET_ACCESS_KEY: is a secret.*--secret"),
        ({"env": ("novalue",)}, {}, "--env novalue: must be NAME=VALUE"),
        ({"node_selectors": ("x",)}, {}, "--node-selector x: must be KEY=VALUE"),
        ({"node_selectors": ("x:a=b",)}, {}, "no group x; there are head, gpu, a100, shards"),
        ({"tolerations": ("a b",)}, {}, r"--toleration a b: must be KEY\[=VALUE\]\[:EFFECT\]"),
        ({"tolerations": ("gpu:spot:Never",)}, {}, "with an effect of NoSchedule, PreferNoSchedule, NoExecute"),
        ({"tolerations": ("x:spot:NoSchedule",)}, {}, "no group x; there are head, gpu, a100, shards"),
        ({"node_selectors": ()}, {}, r"accelerator_type=A100: .*such as --node-selector a100:nvidia\.com/gpu"),
        ({"workers_per_node": 0}, {}, "--workers-per-node 0: must be at least 1"),
        ({}, {"storage": {"root": "here"}}, "storage.root=here: is a folder of this machine, which pods do not share"),
        ({}, {"storage": {"root": "/mnt/x"}}, "storage.root=/mnt/x: pods do not share it; .*--claim NAME"),
        ({"claim": "c"}, {}, "--claim c: is mounted at storage.root, but s3://bucket/stylegan is no path"),
        ({}, {"tracking": {"uri": None}}, "tracking.uri: is unset, so MLflow's file would be in the pod of the head"),
        ({}, {"tracking": {"uri": "sqlite:////home/me/x.db"}}, "tracking.uri=sqlite:////home/me/x.db: pods do not see"),
        ({}, {"data": {"source": "/data/faces", "resolution": 32}}, "data.source=/data/faces: pods do not see this"),
        (
            {"claim": "c"},
            {"storage": {"root": "/mnt/x"}, "data": {"source": "/mnt/xy", "resolution": 32}},
            "data.source=/mnt/xy: pods do not see this path; put it below storage.root=/mnt/x",
        ),
    ],
)
def test_mistakes_are_one_line_with_the_cure(options, tree, message):
    with pytest.raises(ConfigError, match=message) as caught:
        documents(tree=TREE | tree, **options)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("schedule", ["*/15 8-18 1,15 * mon-fri", "@weekly", "0 0 1 jan *", "5/10 * ? * 0"])
def test_schedules_that_cron_knows_are_taken(schedule):
    assert documents("raycronjob", schedule=schedule)[1]["spec"]["schedule"] == schedule
