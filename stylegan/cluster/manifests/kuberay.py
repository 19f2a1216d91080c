"""Manifests for Kubernetes: a cluster, a run and a scheduled run as objects of KubeRay, made from a config.

The head runs no work but the driver. The groups of workers begin empty (`node_groups.py`); Ray's autoscaler brings the pods
that a stage waits for and takes them away after it. A worker that Kubernetes ends first says so to Ray, and a head that it
ends first stops the run: either gives training time for a checkpoint.

Sources: the fields of `ray.io/v1` in KubeRay 1.7, https://docs.ray.io/en/latest/cluster/kubernetes/references.html; what the
autoscaler reads of them, `ray/autoscaler/_private/kuberay/autoscaling_config.py`.
"""

from __future__ import annotations

import math
import re
import zoneinfo
from importlib.metadata import version
from typing import Any, Literal

from stylegan.cluster.manifests.node_groups import SHARED_GIB, NodeGroup, node_groups
from stylegan.config.addresses import addresses
from stylegan.config.tree import Config
from stylegan.config.yaml_text import write
from stylegan.errors import ConfigError
from stylegan.records import Record, digest
from stylegan.uris import is_local, is_secret, local_path

Kind = Literal["rayjob", "raycluster", "raycronjob"]
Document = dict[str, Any]

KUBERAY = "1.7"  # whose fields these are
LONGEST_OBJECT = 40  # characters of a name: KubeRay appends to it, and allows 47 for a RayJob
CONFIG_FOLDER = "/etc/stylegan"  # in the pod of the head
CACHE_FOLDER = "/var/cache/stylegan"
HEAD_CPUS, HEAD_GIB = 4, 16  # for the driver, Ray's own servers and the embedded Prefect
OWN_CPUS = 1  # of a worker's pod beside those that Ray counts: Ray's own processes, reading images
IDLE_SECONDS = 120  # without work, after which a pod is let go
NOTICE_SECONDS = 10  # until training looks at a notice, added to `ray.stop_grace_s`
END_SECONDS = 20  # for the hook itself and the end of Ray, after the deadline of the notice
RETRIES = 2  # of a run, each on a new cluster; a run goes on from storage
KEPT_SECONDS = {"SUCCEEDED": 300, "FAILED": 3600}  # for which the head of a finished run stays, with its logs
FORGET_SECONDS = 7 * 86_400  # after which the record of a run goes; its results are in storage
LEAST_START_SECONDS = 900  # for the pod of the head, whose image is pulled first

# What an image is called: host and port, path, tag, digest.
_IMAGE = re.compile(
    r"([a-zA-Z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(?P<digest>@sha256:[0-9a-f]{64})?"
)
_OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_SELECTOR = re.compile(r"(?:([a-z0-9-]+):)?([A-Za-z0-9./_-]+)=([A-Za-z0-9._-]*)")
# A taint as `kubectl taint` writes it; what ends in an effect and has one colon is KEY:EFFECT, not GROUP:KEY.
_EFFECT = "NoSchedule|PreferNoSchedule|NoExecute"
_TAINT = re.compile(
    rf"(?:(?P<group>[a-z0-9-]+):)?(?P<key>(?!(?:{_EFFECT})$)[A-Za-z0-9./_-]+)(?:=(?P<value>[A-Za-z0-9._-]*))?"
    rf"(?::(?P<effect>{_EFFECT}))?"
)
_GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 6))
_NAMES = {"month": "jan feb mar apr may jun jul aug sep oct nov dec", "weekday": "sun mon tue wed thu fri sat"}
_MACROS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
# Labels of nodes that Kubernetes has under another name, so that the pods of a group come to nodes with them.
_KUBERNETES_LABELS = {
    "ray.io/region": "topology.kubernetes.io/region",
    "ray.io/availability-zone": "topology.kubernetes.io/zone",
}


class Options(Record):
    """Say what a manifest needs beyond the config.

    - `image`: holds this package, the same on all pods.
    - `secret`: name of a Secret whose entries become environment variables of all pods.
    - `env`: further variables, `NAME=VALUE`; no secrets.
    - `claim`: name of a PersistentVolumeClaim, mounted at `storage.root` on all pods.
    - `node_selectors`: labels of Kubernetes nodes, `KEY=VALUE` for the pods with GPUs, `GROUP:KEY=VALUE` for one group or `head`.
    - `tolerations`: taints of nodes that pods may go to in spite of them, `KEY[=VALUE][:EFFECT]`, by group as above.
    - `workers_per_node`: as many workers of a stage share a pod.
    - `queue`: of Kueue, in which a run waits until there is room for all of it.
    - `max_hours`: after which a run is ended.
    - `schedule`, `timezone`: of a RayCronJob.
    """

    image: str
    secret: str | None = None
    env: tuple[str, ...] = ()
    claim: str | None = None
    node_selectors: tuple[str, ...] = ()
    tolerations: tuple[str, ...] = ()
    workers_per_node: int = 1
    queue: str | None = None
    max_hours: float | None = None
    schedule: str | None = None
    timezone: str | None = None


class Manifest(Record):
    """Say what was written, and where."""

    kind: str
    path: str
    documents: tuple[Document, ...]


def kuberay_documents(config: Config, kind: Kind, options: Options) -> tuple[Document, ...]:
    """Return the objects of a manifest, in the order in which they are to be applied.

    Raises:
        ConfigError: an option is not allowed, or the pods could not reach what the config names.
    """
    check_image(options.image)
    _check_options(kind, options)
    _check_reach(config, options.claim)
    cluster = _Pods(config, options, runs=kind != "raycluster").cluster(autoscaling=options.queue is None)
    metadata: Document = {"name": object_name(config), "labels": {"app.kubernetes.io/name": "stylegan"}}
    if kind == "raycluster":
        return ({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": cluster},)
    tree = config.model_dump(mode="json")
    tree["ray"]["address"] = "auto"
    if kind == "raycronjob":
        tree["retrain"]["notify"] = _told(config)
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata | {"name": _config_map(config)},
        "data": {"config.yaml": write(tree)},
    }
    job = _job(config, options, cluster, command="run" if kind == "rayjob" else "retrain")
    if kind == "rayjob":
        if options.queue:
            metadata["labels"] = metadata["labels"] | {"kueue.x-k8s.io/queue-name": options.queue}
        return config_map, {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": job}
    spec = {"schedule": options.schedule, "timeZone": options.timezone or "UTC", "jobTemplate": job}
    return config_map, {"apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": metadata, "spec": spec}


def manifest_text(documents: tuple[Document, ...], comment: str) -> str:
    """Return documents as YAML below a comment."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + "---\n".join(write(document) for document in documents)


def ray_version() -> str:
    """Return the version of the installed Ray, which is that of a cluster."""
    return version("ray")


def object_name(config: Config) -> str:
    """Return the name of a config's objects: that of the config if Kubernetes allows it, else a part of it and a digest."""
    if len(config.name) <= LONGEST_OBJECT and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", config.name):
        return config.name
    part = config.name[: LONGEST_OBJECT - len("stylegan--") - 8].strip("-")
    return f"stylegan-{part}-{digest(config.name)[:8]}"


def _told(config: Config) -> list[str]:
    """Return `retrain.notify`, which a copy of a config does not hold. Raises ConfigError for a URL, which may be a secret."""
    for number, entry in enumerate(config.retrain.notify):
        if not entry.startswith("$"):
            raise ConfigError(
                f"retrain.notify[{number}]: may hold a secret, and a manifest is a file that people share; write $NAME there, "
                "and put the variable NAME into the Secret of --secret"
            )
    return list(config.retrain.notify)


def _config_map(config: Config) -> str:
    return f"{object_name(config)}-config"


def _job(config: Config, options: Options, cluster: Document, *, command: str) -> Document:
    """Return the spec of a RayJob: a command of `stylegan` on a cluster of its own, which goes when the command is over."""
    job: Document = {
        "jobId": object_name(config),
        "entrypoint": f"stylegan {command} {CONFIG_FOLDER}/config.yaml",
        # The operator submits and watches the run. A pod that follows its log would fail a run of days by a lost connection.
        "submissionMode": "HTTPMode",
        "runtimeEnvYAML": write({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(notice_seconds(config))}}),
        "backoffLimit": RETRIES,
        "preRunningDeadlineSeconds": max(math.ceil(config.ray.wait_s), LEAST_START_SECONDS),
    }
    if options.max_hours is not None:
        job["activeDeadlineSeconds"] = math.ceil(options.max_hours * 3600)
    if options.queue is None:
        conditions: list[tuple[str, Document, int]] = [
            ("DeleteCluster", {"jobStatus": status}, seconds) for status, seconds in KEPT_SECONDS.items()
        ]
        # A run that ended before Ray had it: no head, no image, the deadline.
        conditions.append(("DeleteCluster", {"jobDeploymentStatus": "Failed"}, KEPT_SECONDS["FAILED"]))
        conditions.append(("DeleteSelf", {"jobStatus": "SUCCEEDED"}, FORGET_SECONDS))
        rules = [{"policy": policy, "condition": {**when, "ttlSeconds": after}} for policy, when, after in conditions]
        job["deletionStrategy"] = {"deletionRules": rules}
    else:  # Kueue starts what is suspended, and KubeRay allows that with this way of deletion only
        job |= {"suspend": True, "shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": KEPT_SECONDS["SUCCEEDED"]}
    return job | {"rayClusterSpec": cluster}


class _Pods:
    """The pods of a cluster: of the head and of every group of workers."""

    def __init__(self, config: Config, options: Options, *, runs: bool) -> None:
        self.config, self.options, self.runs = config, options, runs
        self.groups = node_groups(config, options.workers_per_node)
        self.selectors = self._selectors()
        self.tolerations = self._tolerations()

    def cluster(self, *, autoscaling: bool) -> Document:
        """Return the spec of a RayCluster; without an autoscaler all groups are full from the start."""
        spec: Document = {"rayVersion": ray_version(), "authOptions": {"mode": "token"}}
        if autoscaling:
            options = {"version": "v2", "upscalingMode": "Default", "idleTimeoutSeconds": IDLE_SECONDS}
            spec |= {"enableInTreeAutoscaling": True, "autoscalerOptions": options}
        spec["headGroupSpec"] = {"rayStartParams": {"num-cpus": "0"}, "template": self._head()}
        spec["workerGroupSpecs"] = [self._group(group, autoscaling) for group in self.groups]
        return spec

    def _head(self) -> Document:
        container = self._container("ray-head", HEAD_CPUS, HEAD_GIB, 0)
        spec: Document = {"containers": [container], "volumes": self._volumes(SHARED_GIB)}
        if self.runs:
            container["volumeMounts"].append({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True})
            spec["volumes"].append({"name": "config", "configMap": {"name": _config_map(self.config)}})
            seconds = notice_seconds(self.config)
            container["lifecycle"] = _before_end(stop_command(self.config, seconds))
            spec["terminationGracePeriodSeconds"] = seconds + END_SECONDS
        # A cluster ends with its head: what makes room by moving pods leaves it where it is.
        kept = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
        return {"metadata": {"annotations": kept}, "spec": spec | self._place("head")}

    def _group(self, group: NodeGroup, autoscaling: bool) -> Document:
        counted = {"CPU": str(group.cpus), "GPU": str(group.gpus)} | {
            name: str(amount) for name, amount in group.resources.items()
        }
        least = 0 if autoscaling or not group.resolutions else group.most
        spec: Document = {
            "groupName": group.name,
            "replicas": least,
            "minReplicas": least,
            "maxReplicas": group.most,
            "rayStartParams": {},
            "resources": counted,
        }
        if group.labels:
            spec["labels"] = dict(group.labels)
        return spec | {"template": self._worker(group)}

    def _worker(self, group: NodeGroup) -> Document:
        container = self._container("ray-worker", group.cpus + OWN_CPUS, group.memory_gib, group.gpus)
        deadline = notice_seconds(self.config)
        container["lifecycle"] = _before_end(drain_command(deadline))
        spec: Document = {
            "containers": [container],
            "volumes": self._volumes(group.shared_gib),
            "terminationGracePeriodSeconds": deadline + END_SECONDS,
        }
        return {"spec": spec | self._place(group.name)}

    def _container(self, name: str, cpus: int, memory_gib: int, gpus: int) -> Document:
        amounts = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
        mounts = [
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            {"name": "cache", "mountPath": CACHE_FOLDER},
        ]
        if self.options.claim:
            mounts.append({"name": "storage", "mountPath": local_path(self.config.storage.root)})
        container: Document = {
            "name": name,
            "image": self.options.image,
            "resources": {"requests": amounts, "limits": dict(amounts)},
            "env": [
                {"name": "STYLEGAN_CACHE", "value": CACHE_FOLDER},
                {"name": "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "value": "0"},  # workers run the Python of the image
                *({"name": key, "value": value} for key, value in map(parse_variable, self.options.env)),
            ],
        }
        if self.options.secret:
            container["envFrom"] = [{"secretRef": {"name": self.options.secret}}]
        return container | {"volumeMounts": mounts, "securityContext": {"allowPrivilegeEscalation": False}}

    def _volumes(self, shared_gib: int) -> list[Document]:
        volumes: list[Document] = [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared_gib}Gi"}},
            {"name": "cache", "emptyDir": {}},
        ]
        if self.options.claim:
            volumes.append({"name": "storage", "persistentVolumeClaim": {"claimName": self.options.claim}})
        return volumes

    def _place(self, group: str) -> Document:
        labels, taints = self.selectors[group], self.tolerations[group]
        return ({"nodeSelector": labels} if labels else {}) | ({"tolerations": taints} if taints else {})

    def _selectors(self) -> dict[str, dict[str, str]]:
        """Return the labels of Kubernetes nodes for each group, and check them."""
        groups = {group.name: group for group in self.groups}
        chosen: dict[str, dict[str, str]] = {name: {} for name in ("head", *groups)}
        for name, group in groups.items():
            for key, value in group.labels.items():
                if key in _KUBERNETES_LABELS:
                    chosen[name][_KUBERNETES_LABELS[key]] = value
        for text in self.options.node_selectors:
            found = _SELECTOR.fullmatch(text)
            if not found:
                raise ConfigError(
                    f"--node-selector {text}: must be KEY=VALUE, or GROUP:KEY=VALUE, such as gpu:cloud.google.com/gke-spot=true"
                )
            for name in self._groups_of("--node-selector", text, found[1]):
                chosen[name][found[2]] = found[3]
        for group in self.groups:
            if group.accelerator_type and not chosen[group.name]:
                raise ConfigError(
                    f"ray.accelerator_type={group.accelerator_type}: Kubernetes does not know the model by this name; say which "
                    f"nodes have it, such as --node-selector {group.name}:nvidia.com/gpu.product=NVIDIA-"
                    f"{group.accelerator_type}-SXM4-80GB (see `kubectl get nodes --show-labels`)"
                )
        return chosen

    def _tolerations(self) -> dict[str, list[dict[str, str]]]:
        """Return the tolerations of each group, and check them; pods with GPUs have that of the usual taint of such nodes."""
        chosen: dict[str, list[dict[str, str]]] = {"head": []}
        chosen |= {group.name: [dict(_GPU_TAINT)] if group.gpus else [] for group in self.groups}
        for text in self.options.tolerations:
            found = _TAINT.fullmatch(text)
            if not found:
                raise ConfigError(
                    f"--toleration {text}: must be KEY[=VALUE][:EFFECT], or GROUP:KEY[=VALUE][:EFFECT], with an effect of "
                    f"{_EFFECT.replace('|', ', ')}, such as cloud.google.com/gke-spot=true:NoSchedule"
                )
            toleration = {"key": found["key"], "operator": "Exists"}
            if found["value"] is not None:
                toleration |= {"operator": "Equal", "value": found["value"]}
            if found["effect"]:
                toleration["effect"] = found["effect"]
            for name in self._groups_of("--toleration", text, found["group"]):
                chosen[name].append(toleration)
        return chosen

    def _groups_of(self, option: str, text: str, group: str | None) -> list[str]:
        """Return the names of the groups that an option is for: the one that it names, else all with GPUs."""
        if group is None:
            return [group.name for group in self.groups if group.gpus]
        names = ["head", *(group.name for group in self.groups)]
        if group not in names:
            raise ConfigError(f"{option} {text}: no group {group}; there are {', '.join(names)}")
        return [group]


def notice_seconds(config: Config) -> int:
    """Return the seconds between the notice that a node goes away and its end: at least `ray.stop_grace_s`."""
    return math.ceil(config.ray.stop_grace_s) + NOTICE_SECONDS


def stop_command(config: Config, seconds: int) -> str:
    """Return the shell command by which the head stops the run before it goes: training writes a checkpoint."""
    return f"timeout {seconds} ray job stop --address http://127.0.0.1:8265 {object_name(config)}"


def _before_end(command: str) -> Document:
    return {"preStop": {"exec": {"command": ["/bin/sh", "-c", command]}}}


def drain_command(seconds: int) -> str:
    """Return the shell command by which the node that it runs on says that it goes away, and waits until it is empty.

    Without `--node-id` Ray takes the node of this address. A raylet that is to go ends as soon as nothing runs there, while
    `ray start --block` stays, so it is the raylet that is waited for, by means that every image has.
    """
    return (
        f"timeout {END_SECONDS} ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'Kubernetes ends the pod' "
        f"--deadline-remaining-seconds {seconds} && "
        f"for second in $(seq {seconds}); do grep -qsx raylet /proc/[0-9]*/comm || break; sleep 1; done"
    )


# --- what is checked ---


def check_image(image: str) -> None:
    """Raise ConfigError if this is no name of a container image, or one that may mean another image tomorrow."""
    found = _IMAGE.fullmatch(image)
    if not found:
        raise ConfigError(
            f"--image {image}: is no name of an image; write REGISTRY/NAME:TAG, such as registry.example.com/stylegan:0.1.0"
        )
    if not found["digest"] and found["tag"] in (None, ":latest"):
        raise ConfigError(
            f"--image {image}: may be another image when the next node starts; give a tag other than latest, or a digest"
        )


def parse_variable(text: str) -> tuple[str, str]:
    """Return name and value of a `NAME=VALUE`. Raises ConfigError if it is none, or if its name is that of a secret."""
    found = _VARIABLE.fullmatch(text)
    if not found:
        raise ConfigError(f"--env {text}: must be NAME=VALUE, such as MLFLOW_TRACKING_USERNAME=me")
    if is_secret(found[1]):
        raise ConfigError(
            f"--env {found[1]}: is a secret, and a manifest is a file that people share; put it into a Secret and name that "
            "with --secret"
        )
    return found[1], found[2]


def check_schedule(schedule: str) -> None:
    """Raise ConfigError if this is no line of cron, of five fields or a macro such as @weekly."""
    fields = schedule.split()
    if schedule in _MACROS:
        return
    if len(fields) != len(_FIELDS):
        raise ConfigError(
            f"--schedule {schedule!r}: has {len(fields)} field(s), not the five of cron (minute hour day month weekday); "
            "'0 3 * * 1' is Mondays at 03:00"
        )
    for text, (name, least, most) in zip(fields, _FIELDS, strict=True):
        if not all(_is_cron_part(part, name, least, most) for part in text.split(",")):
            raise ConfigError(
                f"--schedule {schedule!r}: {text} is no {name} of cron; it must be *, or of {least} to {most}: a number, a range "
                "(1-5), a list (1,15), or steps (*/2)"
            )


def _is_cron_part(text: str, name: str, least: int, most: int) -> bool:
    names = _NAMES.get(name, "").split()
    base, slash, step = text.partition("/")
    if slash and not (step.isdecimal() and int(step)):
        return False
    if base in ("*", "?"):
        return True
    ends = [least + names.index(end.lower()) if end.lower() in names else end for end in base.split("-")]
    numbers = [int(end) for end in ends if str(end).isdecimal()]
    return len(numbers) == len(ends) <= 2 and least <= numbers[0] <= numbers[-1] <= most


def _check_options(kind: Kind, options: Options) -> None:
    for option, name in (("--secret", options.secret), ("--claim", options.claim), ("--queue", options.queue)):
        if name is not None and not _OBJECT.fullmatch(name):
            raise ConfigError(f"{option} {name}: is no name of an object of Kubernetes: a-z, 0-9, dashes and points")
    for text in options.env:
        parse_variable(text)
    if options.max_hours is not None and not 0 < options.max_hours <= 24 * 3660:
        raise ConfigError(f"--max-hours {options.max_hours:g}: must be above 0, and ten years at most")
    if options.queue is not None and kind != "rayjob":
        raise ConfigError(f"--queue {options.queue}: is for --kind rayjob, a run that waits for its turn")
    if options.max_hours is not None and kind == "raycluster":
        raise ConfigError(f"--max-hours {options.max_hours:g}: is for a run (--kind rayjob or raycronjob)")
    if kind != "raycronjob":
        for option, value in (("--schedule", options.schedule), ("--timezone", options.timezone)):
            if value is not None:
                raise ConfigError(f"{option} {value!r}: is for --kind raycronjob")
        return
    if options.schedule is None:
        raise ConfigError("--schedule: is missing; a line of cron such as --schedule '0 3 * * 1' (Mondays at 03:00)")
    check_schedule(options.schedule)
    if options.timezone is not None and options.timezone not in zoneinfo.available_timezones():
        raise ConfigError(f"--timezone {options.timezone}: is no time zone; give a name such as UTC or Europe/Berlin")


def _check_reach(config: Config, claim: str | None) -> None:
    """Raise ConfigError if an address of the config means something else on another pod."""
    root = config.storage.root
    if is_local(root):
        if not root.startswith(("/", "file://")):
            raise ConfigError(
                f"storage.root={root}: is a folder of this machine, which pods do not share; use s3://bucket/path, or an absolute "
                "path on a volume that --claim NAME mounts there"
            )
        if claim is None:
            raise ConfigError(
                f"storage.root={root}: pods do not share it; name the PersistentVolumeClaim of a shared volume with --claim NAME, "
                "or use s3://bucket/path"
            )
    elif claim is not None:
        raise ConfigError(f"--claim {claim}: is mounted at storage.root, but {root} is no path; leave it out")
    elif config.tracking.uri is None:
        raise ConfigError(
            "tracking.uri: is unset, so MLflow's file would be in the pod of the head and go with it; give the address of an "
            "MLflow server, such as --set tracking.uri=http://mlflow:5000"
        )
    below = f"{local_path(root).rstrip('/')}/" if is_local(root) else None
    for key, value in addresses(config):
        path = value.partition("://")[2] if value.startswith("sqlite:") else value
        if key == "storage.root" or not is_local(path):
            continue
        if below is None or not f"{local_path(path)}/".startswith(below):
            where = (
                f"below storage.root={root}" if below else "on storage that all pods reach, such as s3://bucket/path"
            )
            raise ConfigError(f"{key}={value}: pods do not see this path; put it {where}")
