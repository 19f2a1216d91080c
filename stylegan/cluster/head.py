"""Ask the head of a Ray cluster whether this process can join it: Ray itself would retry for minutes and not say why."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any, NamedTuple

from stylegan.cluster.environment import environment, has_token, read_again
from stylegan.commands import pip_install, shell_command
from stylegan.config.sections import RayConfig
from stylegan.errors import ExhaustedError, LostHeadError, StepError, UnavailableError, one_line

ANSWER_SECONDS = 8.0  # for each answer of the head
NODE_SECONDS = 10.0  # for the node on this machine to register at the head, if it was started just now
HEAD_SECONDS = 20.0  # that the head may be silent while the node of this process lives
CLIENT = "ray://"
TOKEN_CURE = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token or RAY_AUTH_TOKEN to the token"
)


class Head(NamedTuple):
    """The head of a cluster that can be joined: its address, and environment variables to join it with."""

    address: str
    environment: dict[str, str | None]


class _Place(NamedTuple):
    """An address, and how messages call it."""

    name: str
    address: str

    @property
    def endpoint(self) -> str:
        """The host and port behind it."""
        return self.address.removeprefix(CLIENT)

    @property
    def of_client(self) -> bool:
        """Return whether it is that of Ray Client's server, by which a machine that is no node joins."""
        return self.address.startswith(CLIENT)


def check_address(ray_config: RayConfig) -> None:
    """Check that something answers at `ray.address`, without Ray. `auto` is only known to Ray, unless RAY_ADDRESS is set.

    Raises:
        UnavailableError: nothing answers.
    """
    if place := _place(ray_config):
        _check_port(place)


def find_head(ray_config: RayConfig) -> Head:
    """Find the head of the cluster that `ray.address` names, and check that this process can join it: within 30 s.

    Raises:
        UnavailableError: nothing answers there, or something else than Ray.
        StepError: the token is wrong or missing; the cluster runs
            another version of Ray or Python; this machine is no node of it.
    """
    place = _place(ray_config) or _local_cluster()
    _check_port(place)
    read_again()
    settings: dict[str, str | None] = {}
    metadata = _ask(place)
    if metadata is None and "RAY_AUTH_MODE" not in os.environ and _user_has_token():
        settings = {"RAY_AUTH_MODE": "token"}
        with environment(settings):
            read_again()
            metadata = _ask(place)
    if metadata is None:
        raise StepError(
            f"{place.name}: the cluster asks for a token, and this process has none or a wrong one; {TOKEN_CURE}"
        )
    if not place.of_client:  # otherwise Ray Client looks at the versions
        _check_versions(place, metadata)
        _check_node(place)
    return Head(place.address, settings)


def head_answers() -> bool:
    """Return whether the head of the cluster that this process has started or joined answers, and so does its own node.

    A new head may listen at the address of a lost one. It knows nothing of this process, and Ray's C++ code aborts a
    process that asks it. But the node by which this process had joined is gone then: it is that of the head itself, or it
    has ended because it lost its head.

    Not known by Ray Client, which ends a lost connection itself, so there it does.
    """
    import ray
    from ray.util.client import ray as client

    if client.is_connected():
        return True
    if not node_answers():
        return False
    try:
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError, RuntimeError):
        return False
    return True


def node_answers() -> bool:
    """Return whether the node answers by which this process takes part in a cluster; True for one of Ray Client."""
    from ray._private import worker
    from ray.util.client import ray as client

    if client.is_connected():
        return True
    node = worker._global_node
    if node is None:
        return False
    try:
        with socket.socket(socket.AF_UNIX) as raylet:  # its name is that of this session, and no other node has it
            raylet.settimeout(ANSWER_SECONDS)
            raylet.connect(node.raylet_socket_name)
    except OSError:
        return False
    return True


def is_lost() -> bool:
    """Return whether the cluster of this process is lost. A silent head is waited for, for `HEAD_SECONDS`."""
    begun = time.monotonic()
    while not head_answers():
        if time.monotonic() - begun > HEAD_SECONDS or not node_answers():
            return True
        time.sleep(1)
    return False


def lost_head(address: str | None, what: str, cure: str) -> UnavailableError:
    """Return the error of a step whose cluster is lost: a cluster may come back, a Ray of its own does not.

    Args:
        address: `ray.address`.
        what: names the step.
        cure: what the same command does once there is a cluster again.
    """
    which = f"the head of the cluster (ray.address={address})" if address else "Ray on this machine"
    kind = LostHeadError if address else ExhaustedError
    return kind(f"{what}: {which} does not answer any more; once there is a cluster again, the same command {cure}")


def _place(ray_config: RayConfig) -> _Place | None:
    """Return the address that the config or RAY_ADDRESS gives; None for a Ray of its own, and if only Ray can find it."""
    if ray_config.address != "auto":
        return _Place(f"ray.address={ray_config.address}", ray_config.address) if ray_config.address else None
    given = os.environ.get("RAY_ADDRESS")
    return _Place(f"RAY_ADDRESS={given} (ray.address=auto)", given) if given not in (None, "", "auto") else None


def _local_cluster() -> _Place:
    """Return the address of the cluster that this machine belongs to. Raises StepError if Ray finds none."""
    from ray._private import services

    try:
        address = services.canonicalize_bootstrap_address("auto")
    except Exception as error:
        address, reason = None, f" ({one_line(error, 120)})"
    else:
        reason = ""
    if address is None:
        raise StepError(
            f"ray.address=auto: this machine belongs to no cluster{reason}; join one with "
            f"`{shell_command('ray', 'start', '--address=HEAD:6379')}`, set ray.address to host:port of its head, or leave it "
            "unset to start Ray on this machine"
        )
    return _Place(f"ray.address=auto, here {address}", address)


def _check_port(place: _Place) -> None:
    host, _, port = place.endpoint.rpartition(":")
    if not host or "://" in host or not port.isdecimal():
        raise StepError(f"{place.name}: must be host:port of the head of a cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        option = f"--{'ray-client-server-' if place.of_client else ''}port={port}"
        raise UnavailableError(
            f"{place.name}: nothing answers there ({error}); start the head on {host} with "
            f"`{shell_command('ray', 'start', '--head', option)}`, correct ray.address, or leave it unset to start Ray on "
            "this machine"
        ) from None


def _user_has_token() -> bool:
    from ray.exceptions import AuthenticationError

    try:
        return has_token()
    except AuthenticationError as error:
        raise StepError(f"RAY_AUTH_TOKEN_PATH: {one_line(error, 120)}; {TOKEN_CURE}") from error


def _ask(place: _Place) -> dict[str, Any] | None:
    """Return what the head says of the cluster; None if it refuses the token. The answer is waited for as long as ours is.

    Raises:
        StepError: no answer, or not that of a head.
    """
    import grpc
    from ray._private.gcs_utils import create_gcs_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc, ray_client_pb2, ray_client_pb2_grpc
    from ray.exceptions import AuthenticationError

    try:
        with create_gcs_channel(place.endpoint) as channel:
            if place.of_client:
                ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
                ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo(ping, timeout=ANSWER_SECONDS)
                return {}
            key = gcs_service_pb2.InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster")
            ask = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).InternalKVGet
            found = ask(key, timeout=ANSWER_SECONDS).value
    except AuthenticationError:  # this process has the mode `token` and no token
        return None
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            return None
        reason = one_line(error, 160)
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            reason = f"no answer in {ANSWER_SECONDS:.0f} s"
        elif error.details():
            reason = error.details().rpartition("last error: ")[2][:160]
        kind = "Ray Client's server" if place.of_client else "the head of a Ray cluster"
        raise UnavailableError(
            f"{place.name}: something listens there, but does not answer as {kind} ({reason}); the head has port 6379 by "
            "default, Ray Client's server (ray://) 10001, while 8265 is the dashboard; a cluster with TLS needs RAY_USE_TLS=1 "
            "here as well"
        ) from error
    return dict(json.loads(found)) if found else {}  # a head that starts just now has not written it yet


def _check_versions(place: _Place, metadata: dict[str, Any]) -> None:
    """Check that the cluster runs the same Ray and Python as this process, by Ray's own rule."""
    from ray._private.utils import check_version_info, compute_version_info

    if not metadata:
        return
    try:
        check_version_info(metadata, "this machine")
    except RuntimeError as error:
        theirs, ours = (metadata["ray_version"], metadata["python_version"]), compute_version_info()[:2]
        cure = (
            f"`{pip_install(f'ray[default,train]=={theirs[0]}')}`, or install Ray {ours[0]} on all nodes"
            if theirs[0] != ours[0]
            else f"run this with Python {theirs[1]}, or Python {ours[1]} on all nodes"
        )
        raise StepError(
            f"{place.name}: the cluster runs Ray {theirs[0]} on Python {theirs[1]}, and this process Ray {ours[0]} on Python "
            f"{ours[1]}; they must be the same: {cure}"
        ) from error


def _check_node(place: _Place) -> None:
    """Check that this machine is a node of the cluster, by which Ray lets a process join it."""
    from ray._private import services
    from ray._raylet import GcsClient

    try:
        services.get_node_to_connect_for_driver(GcsClient(address=place.address), timeout_seconds=NODE_SECONDS)
    except RuntimeError as error:
        if "No node info found" not in str(error):
            raise
        join = shell_command("ray", "start", f"--address={place.address}")
        raise StepError(
            f"{place.name}: this machine is no node of that cluster, and only its nodes can start a run there; make it one with "
            f"`{join}` (`--num-cpus=0` keeps work away from it), or run this on a node"
        ) from error
