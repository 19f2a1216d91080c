"""The nodes of a cluster against this process: what is wrong with each is one line with the cure."""

import json
import time

import pytest
from clusters import Machines

from stylegan.cluster import node_check, resources
from stylegan.cluster.head import find_head
from stylegan.cluster.node_check import (
    Disk,
    Look,
    NodeFacts,
    Probe,
    _problems,
    check_nodes,
    describe_node,
    look_here,
    problem_lines,
    require_nodes,
)
from stylegan.cluster.session import connect, ray_session
from stylegan.config.sections import RayConfig, StorageConfig
from stylegan.errors import StepError, UnavailableError

OURS = {"Python": "3.11.7", "Ray": "2.60.0", "torch": "2.13.0", "stylegan": "1.0"}
GOOD = Look(versions=OURS, code="abc")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, None),
        ({"versions": OURS | {"Python": "3.11.8"}}, None),
        (
            {"versions": OURS | {"Python": "3.12.1", "torch": "2.1"}},
            "has Python 3.12.1 and torch 2.1, and this process Python 3.11.7 and torch 2.13.0; install the same",
        ),
        ({"code": "xyz"}, "its stylegan 1.0 has other code than that of this process"),
        ({"versions": {}}, "does not answer within 60 s"),
        ({"faults": ("storage.root=/x: no",)}, "storage.root=/x: no"),
        ({"unavailable": ("storage.root=s3://x: down",)}, "storage.root=s3://x: down"),
        (
            {"disks": (Disk(setting="STYLEGAN_CACHE", folder="/c", free=5, size=9),)},
            "no space left on the disk of STYLEGAN_CACHE (/c)",
        ),
        ({"skew": 61.2}, "its clock is 61 s ahead of that of this process"),
        ({"skew": -6.0}, "its clock is 6 s behind that of this process"),
        ({"skew": 4.0}, None),
    ],
)
def test_each_problem_of_a_node_is_a_line(changes, line):
    found = list(_problems(GOOD.model_copy(update=changes), OURS, "abc"))
    assert found == [] if line is None else [one.startswith(line) for one in found] == [True], found


def test_nodes_with_the_same_problem_share_its_line():
    nodes = [
        NodeFacts(name=name, node_id=name, head=False, resources={}, look=GOOD, problems=problems)
        for name, problems in (("a", ("p",)), ("b", ()), ("c", ("q", "p")))
    ]
    assert problem_lines(nodes) == ["nodes a, c: p", "node c: q"]


def test_storage_that_shows_another_file_is_named(tmp_path):
    """As from a node whose folder of that name is its own; one that cannot be written is named by the same line."""
    probe = Probe(root="data", uri=str(tmp_path / ".probe"), content="here")
    settings = StorageConfig(root="data").model_dump(mode="json")

    def faults():
        return look_here(False, settings, probe.model_dump())["faults"]

    unseen = f"storage.root=data: what this process wrote to {probe.uri} is not seen there; give a folder or bucket"
    assert [fault.startswith(unseen) for fault in faults()] == [True]
    (tmp_path / ".probe").write_text("other")
    assert [fault.startswith(unseen) for fault in faults()] == [True]
    (tmp_path / ".probe").write_text("here")
    assert faults() == []
    assert [path.name for path in tmp_path.iterdir()] == [".probe"]


def test_a_store_that_is_away_for_a_moment_is_no_fault_of_a_node(tmp_path, tiny_config, monkeypatch):
    """Every node is asked again once this process has written to the store; who does not reach it even then is named."""
    config = tiny_config(tmp_path, ray={"address": "host:6379"})
    away = NodeFacts(
        name="a", node_id="a", head=False, resources={}, look=GOOD.model_copy(update={"unavailable": ("p",)}), problems=("p",)
    )  # fmt: skip
    there = away.model_copy(update={"look": GOOD, "problems": ()})
    for answers, fails in (([[away], [there]], False), ([[away], [away]], True)):
        monkeypatch.setattr(node_check, "check_nodes", lambda *_, left=answers: left.pop(0))
        if fails:
            with pytest.raises(StepError, match=r"^node a: p$"):
                require_nodes(config)
        else:
            assert require_nodes(config) == [there]
        assert answers == []


def test_a_node_tells_a_store_that_does_not_answer_from_one_that_refuses(tmp_path, monkeypatch):
    (tmp_path / ".probe").write_text("here")
    probe = Probe(root="data", uri=str(tmp_path / ".probe"), content="here")
    for error, seen in (
        (UnavailableError("p"), ("unavailable", "faults")),
        (StepError("p"), ("faults", "unavailable")),
    ):

        def refuse(uri, content, error=error):
            raise error

        monkeypatch.setattr(node_check.storage, "write_bytes", refuse)
        look = look_here(False, StorageConfig(root="data").model_dump(mode="json"), probe.model_dump())
        assert [look[name] for name in seen] == [["storage.root=data: p"], []]


@pytest.mark.long
def test_a_look_at_every_node_of_a_cluster(tmp_path, tiny_config, monkeypatch, caplog):
    """One node is as this process, one has another torch, one has no folder for its cache."""
    fake = tmp_path / "other" / "torch-9.9.9.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9+cpu\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    root = tmp_path / "data"
    with Machines(head_cpus=2) as machines, ray_session():
        machines.add(resources={"old": 1}, env={"PYTHONPATH": str(fake.parent)})
        machines.add(resources={"full": 1}, env={"STYLEGAN_CACHE": "/dev/null/cache"})
        config = tiny_config(root, ray={"address": machines.address})
        found = {
            next((name for name in ("old", "full") if name in node.resources), "head"): node
            for node in check_nodes(config.ray, config.storage)
        }
        assert found["head"].head
        assert found["head"].problems == ()
        assert found["head"].look.code == node_check.code_digest()
        assert describe_node(found["head"]).startswith("head, 2 CPU, Python 3.")
        assert "has torch 9.9.9, and this process torch" in found["old"].problems[0]
        assert found["full"].problems[0].startswith("STYLEGAN_CACHE: cannot write /dev/null/cache")
        assert not root.exists()

        # A run is refused, before anything is done, with one line; whoever does not answer is only warned of.
        with pytest.raises(StepError, match=r"^node .*\(and 1 more: `.* shows them\)$"):
            require_nodes(config)
        monkeypatch.setattr(node_check, "LOOK_SECONDS", 0.0)
        require_nodes(config)
        assert sum("does not answer within" in record.getMessage() for record in caplog.records) == 3
        monkeypatch.undo()

        # The clock of this process is an hour late.
        real = time.time
        monkeypatch.setattr(node_check.time, "time", lambda: real() - 3600)
        (there,) = {problem for node in check_nodes(config.ray) for problem in node.problems if "clock" in problem}
        assert there.startswith("its clock is 3600 s ahead of that of this process")
        monkeypatch.undo()
        assert resources.describe_cluster().startswith("3 node(s): ")

    # The cluster of another version of Ray, as its head says of itself.
    with Machines(head_cpus=1) as machines:
        address = machines.address
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with ray_session():
            connect(RayConfig(address=address))
            from ray.experimental.internal_kv import _internal_kv_put

            other = {"ray_version": "2.1.0", "python_version": "3.11.0"}
            _internal_kv_put(b"CLUSTER_METADATA", json.dumps(other).encode(), overwrite=True, namespace=b"cluster")
        with pytest.raises(StepError, match=r"the cluster runs Ray 2\.1\.0 on Python 3\.11\.0, and this process Ray"):
            connect(RayConfig(address=address))

    # The cluster is gone.
    with pytest.raises(StepError, match="nothing answers there"):
        find_head(RayConfig(address=address))
