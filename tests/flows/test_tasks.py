"""Prefect's part: what is tried again, what shows as cached, what a data set shows, and runs whose process was killed."""

import base64
import io
import os
import subprocess
import sys

import pytest
from PIL import Image
from prefect import flow, task
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.states import Running
from prefect.testing.utilities import prefect_test_harness
from pydantic import BaseModel

from flows import hooks, tasks
from stylegan.config_file import build
from stylegan.errors import StepError, UnavailableError
from stylegan.steps import Done, Pipeline


class Record(BaseModel):
    number: int


@pytest.fixture(scope="module", autouse=True)
def _prefect(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_RESULTS_LOCAL_STORAGE_PATH", str(tmp_path_factory.mktemp("results")))
        with prefect_test_harness(server_startup_timeout=90):
            yield


def attempts(*errors):
    """Run a step that raises these errors in turn and then succeeds; how often it ran, and the record or the error."""
    ran = []

    @task(**tasks.OPTIONS | {"retry_delay_seconds": 0})
    def step():
        ran.append(1)
        if len(ran) <= len(errors):
            raise errors[len(ran) - 1]
        return Record(number=len(ran))

    @flow(persist_result=False)
    def once():
        return tasks.call(step)

    try:
        result = once()
    except Exception as error:
        result = error
    return len(ran), result


def test_a_store_that_does_not_answer_is_tried_again():
    assert attempts(UnavailableError("away"), UnavailableError("away"))[1] == Record(number=3)


def test_a_crash_is_tried_again_but_not_for_ever():
    ran, error = attempts(*[OSError("crash")] * 5)
    assert isinstance(error, OSError)
    assert ran == 1 + tasks.OPTIONS["retries"]


def test_a_mistake_of_the_user_is_not_tried_again():
    ran, error = attempts(StepError("corrupt"))
    assert isinstance(error, StepError)
    assert ran == 1


def test_a_cached_step_shows_as_cached_and_still_gives_its_record():
    @task(task_run_name="step", **tasks.OPTIONS)
    def step():
        return tasks._state(Done(Record(number=7), cached=True))

    @flow(persist_result=False)
    def once():
        return tasks.call(step), step(return_state=True).name

    assert once() == (Record(number=7), "Cached")


def test_a_run_whose_process_is_gone_becomes_crashed_and_a_living_one_stays():
    @flow(name="stylegan-test", persist_result=False)
    def lives():
        hooks.tag_process()
        gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
        with get_client(sync_client=True) as client:
            killed = client.create_flow_run(lives, tags=[hooks.process_tag().replace(str(os.getpid()), gone.stdout.strip())])
            client.set_flow_run_state(killed.id, Running(), force=True)
            ended = hooks.end_killed_runs("stylegan-test")
            return ended, client.read_flow_run(killed.id).state.name

    assert lives() == (1, "Crashed")


def test_a_data_set_shows_card_rejects_and_preview(draw_images, tmp_path):
    """Artifacts of the shard task, also when the set was there already; names of classes cannot break the table."""
    source = draw_images(tmp_path / "images", [f"{c}/{i}.png" for c in ("a", "b|*") for i in range(3)])
    (source / "a" / "broken.png").write_bytes(b"no image")
    data = {"source": str(source), "resolution": 8, "max_rejected": 1}
    tree = {"name": "t", "data": data, "storage": {"root": str(tmp_path / "root")}}
    config = build(tree | {"training": {"batch": 4}, "evaluation": {"metrics": []}})

    @flow(persist_result=False)
    def once():
        return tasks.call(tasks.shard, Pipeline(config))

    for _ in range(2):
        shards = once()
    found = {part: Artifact.get(f"data-{shards.fingerprint}-{part}") for part in ("rejected", "preview", "card")}
    assert "unreadable" in found["rejected"].data
    assert "a/broken.png" in found["rejected"].data
    preview = Image.open(io.BytesIO(base64.b64decode(found["preview"].data.partition(",")[2])))
    assert preview.size == (2 * 66 - 2, 14 + 3 * 66 - 2)
    assert f"## Data set {shards.fingerprint}: 6 images" in found["card"].data
    assert "| b\\|\\* | 3 |" in found["card"].data
