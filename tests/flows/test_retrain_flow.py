"""The flow of the schedule away from training: what it refuses, whom it tells, what it does when somebody else works."""

import os
import threading
import uuid

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.states import Running

from flows import killed_runs, outage
from flows.retrain import retrain_flow
from stylegan import processes
from stylegan.errors import ConfigError
from stylegan.pipeline import lock

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def write(tmp_path, message_service):
    """write(source, **retrain): a config on that source which tells the service; its path."""

    def make(source, **retrain):
        path = tmp_path / "t.yaml"
        tree = {
            "name": "t",
            "storage": {"root": str(tmp_path / "root")},
            "data": {"source": str(source), "resolution": 8, "channels": 1},
            "training": {"batch": 4},
            "evaluation": {"metrics": []},
            "retrain": {"notify": [message_service.url()], **retrain},
        }
        path.write_text(yaml.safe_dump(tree))
        return str(path)

    return make


def test_a_failure_is_told(write, message_service, tmp_path):
    with pytest.raises(ConfigError, match="no such folder or file"):
        retrain_flow(write(tmp_path / "gone"))
    (message,) = message_service.got
    assert message["title"] == "t: retraining failed"
    assert "no such folder or file" in message["message"]


def test_a_run_that_was_killed_is_told_by_the_next_one(write, message_service, tmp_path):
    name = f"t-{uuid.uuid4().hex[:6]}"
    config = str(tmp_path / f"{name}.yaml")
    os.rename(write(tmp_path / "gone"), config)
    tag = f"{killed_runs.PID_TAG}{processes.place()}:1:1"
    with get_client(sync_client=True) as client:
        dead = client.create_flow_run(retrain_flow, name=name, parameters={"config": config}, tags=[tag])
        client.set_flow_run_state(dead.id, Running(), force=True)
        with pytest.raises(ConfigError):
            retrain_flow(config)
        assert client.read_flow_run(dead.id).state.name == "Crashed"
    assert [message["title"] for message in message_service.got] == ["t: retraining crashed", "t: retraining failed"]


def test_while_another_one_works_it_ends_as_skipped_and_looks_at_nothing(write, tmp_path):
    config = write(tmp_path / "gone")
    with lock.hold(str(tmp_path / "root"), "model-t", run_id="t", what="retrain"):
        state = retrain_flow(config, return_state=True)
    assert (state.name, state.type.value) == ("Skipped", "COMPLETED")
    assert state.message.startswith("run t is training since")
    assert state.result().decision.rule == "locked"


@pytest.mark.parametrize(
    ("retrain", "day", "says"),
    [
        ({"notify": ["nonsense://x"]}, None, "is none that Apprise knows"),
        ({}, "2026-03-31", r"has no \{date\}"),
        ({"max_age": "soon"}, None, "retrain.max_age"),
    ],
)
def test_bad_input_ends_it_with_one_line(write, tmp_path, retrain, day, says):
    with pytest.raises(ConfigError, match=says) as caught:
        retrain_flow(write(tmp_path, **retrain), day=day)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "root").exists()


# --- a server that is away ---


def test_what_cannot_be_done_now_is_done_at_the_end(monkeypatch):
    there, done = [False], []
    monkeypatch.setattr(outage, "answers", lambda: there[0])
    monkeypatch.setattr(outage, "PAUSE", 0.01)
    with outage.surviving():
        outage.when_there("one", lambda: done.append(1))
        there[0] = True
        outage.when_there("two", lambda: done.append(2))
        assert done == [2]
        there[0] = False
        timer = threading.Timer(0.2, lambda: there.__setitem__(0, True))
        timer.start()
    assert done == [2, 1]


def test_a_stop_by_a_signal_does_not_wait_for_a_server(monkeypatch):
    monkeypatch.setattr(outage, "answers", lambda: False)
    monkeypatch.setattr(outage, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(outage, "PAUSE", 0.01)
    with pytest.raises(KeyboardInterrupt), outage.surviving():
        raise KeyboardInterrupt


def test_a_record_that_cannot_be_made_is_a_line(monkeypatch, caplog):
    monkeypatch.setattr(outage, "answers", lambda: True)

    def broken():
        raise RuntimeError("no such artifact")

    outage.when_there("the artifact", broken)
    assert "the artifact: no such artifact" in caplog.text
