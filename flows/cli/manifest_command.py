"""The command that writes what starts a cluster: manifests for KubeRay, and the YAML of `ray up`."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from flows.cli.arguments import AsJson, ConfigFile, Number, OutputFile, Overrides, Whole, load
from flows.cli.console import print_result
from stylegan.commands import shell_command
from stylegan.errors import ConfigError

Kind = Literal["rayjob", "raycluster", "raycronjob", "cluster-yaml"]
Repeated = Annotated[list[str] | None, Parameter(negative="")]
ENDINGS = (".yaml", ".yml")


def manifest(
    config: ConfigFile,
    /,
    *,
    kind: Kind,
    image: str | None = None,
    out: OutputFile = "-",
    secret: str | None = None,
    env: Repeated = None,
    claim: str | None = None,
    node_selector: Repeated = None,
    toleration: Repeated = None,
    workers_per_node: Whole = 1,
    queue: str | None = None,
    max_hours: Number | None = None,
    schedule: str | None = None,
    timezone: str | None = None,
    provider: Literal["aws", "local"] | None = None,
    region: str | None = None,
    instance_type: Repeated = None,
    head: str | None = None,
    worker: Repeated = None,
    ssh_user: str | None = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Write what starts a cluster for a config: objects of KubeRay on Kubernetes, or the YAML of `ray up`.

    The head runs no work. The other nodes come in groups, one for each set of resources that the stages ask for, and an
    autoscaler brings as many as the present stage needs.

    Parameters
    ----------
    kind
        rayjob is this run on a cluster of its own; raycronjob does `retrain` on a schedule; raycluster is a cluster for
        `launch`; cluster-yaml is one for `ray up`.
    image
        Container image that holds this package, with a tag. Needed on Kubernetes.
    out
        File to write, .yaml or .yml, a path or any fsspec URL; - is standard output.
    secret
        Kubernetes: a Secret whose entries become environment variables of all pods, such as AWS_SECRET_ACCESS_KEY.
    env
        Kubernetes: an environment variable NAME=VALUE of all pods, no secret. Repeatable.
    claim
        Kubernetes: a PersistentVolumeClaim of a shared volume, mounted at storage.root.
    node_selector
        Kubernetes: nodes for the pods with GPUs, by label: KEY=VALUE; GROUP:KEY=VALUE for one group or head. Repeatable.
    toleration
        Kubernetes: a taint of nodes that the pods with GPUs may go to in spite of it, KEY[=VALUE][:EFFECT];
        GROUP:KEY[=VALUE][:EFFECT] for one group or head. Repeatable.
    workers_per_node
        Workers of a stage that share a node.
    queue
        Kubernetes, rayjob: queue of Kueue in which the run waits until there is room for all of it.
    max_hours
        Kubernetes: hours after which the run is ended.
    schedule
        raycronjob: when, as a line of cron: minute hour day month weekday.
    timezone
        raycronjob: time zone of the schedule, such as Europe/Berlin; unset is UTC.
    provider
        cluster-yaml: aws starts machines there; local uses those that --head and --worker name.
    region
        aws: region of the machines.
    instance_type
        aws: type of the machines with GPUs, such as g6e.xlarge; GROUP:TYPE for one group or head. Repeatable.
    head
        local: host of the head.
    worker
        local: host of a worker. Repeatable.
    ssh_user
        cluster-yaml: user who may log in on all machines; unset is ubuntu.

    Examples
    --------
    stylegan manifest faces.yaml --kind rayjob --image registry.example.com/stylegan:0.1.0 --secret stylegan --out job.yaml
    stylegan manifest faces.yaml --kind raycronjob --image registry.example.com/stylegan:0.1.0 --schedule @weekly
    stylegan manifest faces.yaml --kind cluster-yaml --provider local --head gpu0 --worker gpu1 --worker gpu2
    """
    settings = load(config, overrides)
    from stylegan.outputs import output_file, write_output

    uri = output_file(out, ENDINGS)
    on_kubernetes = {
        "--secret": secret,
        "--env": env,
        "--claim": claim,
        "--node-selector": node_selector,
        "--toleration": toleration,
        "--queue": queue,
        "--max-hours": max_hours,
        "--schedule": schedule,
        "--timezone": timezone,
    }
    on_machines = {
        "--provider": provider,
        "--region": region,
        "--instance-type": instance_type,
        "--head": head,
        "--worker": worker,
        "--ssh-user": ssh_user,
    }
    for name, value in (on_kubernetes if kind == "cluster-yaml" else on_machines).items():
        if value is not None:
            raise ConfigError(f"{name}: is no option of --kind {kind}; leave it out")
    from stylegan.cluster.manifests import kuberay, ray_up

    if kind == "cluster-yaml":
        if provider is None:
            raise ConfigError("--provider: is missing; aws, or local for machines that are there")
        machines = ray_up.Machines(
            provider=provider,
            image=image,
            region=region,
            instance_types=tuple(instance_type or ()),
            head=head,
            workers=tuple(worker or ()),
            ssh_user=ssh_user or ray_up.SSH_USER,
            workers_per_node=workers_per_node,
        )
        documents: tuple[dict[str, Any], ...] = (ray_up.cluster_yaml(settings, machines),)
        release = f"Ray {kuberay.ray_version()}"
    else:
        if image is None:
            raise ConfigError(
                "--image: is missing; the container image that holds this package, such as "
                "--image registry.example.com/stylegan:0.1.0"
            )
        options = kuberay.Options(
            image=image,
            secret=secret,
            env=tuple(env or ()),
            claim=claim,
            node_selectors=tuple(node_selector or ()),
            tolerations=tuple(toleration or ()),
            workers_per_node=workers_per_node,
            queue=queue,
            max_hours=max_hours,
            schedule=schedule,
            timezone=timezone,
        )
        documents = kuberay.kuberay_documents(settings, kind, options)
        release = f"Ray {kuberay.ray_version()} and KubeRay {kuberay.KUBERAY}"
    comment = f"Made from {os.path.basename(config)} with --kind {kind}, for {release}."
    text = kuberay.manifest_text(documents, f"{comment}\nChange the config and make it again; do not edit it.")
    write_output(uri, text.encode())
    record = kuberay.Manifest(kind=kind, path=uri, documents=documents)
    name, file = kuberay.object_name(settings), "FILE" if out == "-" else out
    start = (
        shell_command("ray", "up", file) if kind == "cluster-yaml" else shell_command("kubectl", "apply", "-f", file)
    )
    print_result(record, f"{kind} {name} in {uri}; start it with `{start}`", as_json, out=out)
