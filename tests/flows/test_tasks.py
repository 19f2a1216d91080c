"""Prefect's tasks: which failures are tried again, and what shows as cached."""

import pytest
from prefect import flow, task
from pydantic import BaseModel

from flows import attempts as how
from flows import tasks
from stylegan.errors import ExhaustedError, LostHeadError, StepError, UnavailableError
from stylegan.pipeline.steps import Done

pytestmark = pytest.mark.usefixtures("prefect_api")


class Record(BaseModel):
    number: int


def attempts(*errors):
    """Run a step that raises these errors in turn and then succeeds; how often it ran, and the record or the error."""
    ran = []

    @task(**how.OPTIONS | {"retry_delay_seconds": 0})
    def step():
        ran.append(1)
        if len(ran) <= len(errors):
            raise errors[len(ran) - 1]
        return Record(number=len(ran))

    @flow(persist_result=False)
    def once():
        return how.call(step)

    try:
        result = once()
    except Exception as error:
        result = error
    return len(ran), result


def test_a_server_that_does_not_answer_is_tried_again_until_the_patience_is_over(monkeypatch):
    monkeypatch.setenv("STYLEGAN_PATIENCE", "60")
    assert attempts(*[UnavailableError("away")] * 4)[1] == Record(number=5)
    monkeypatch.setenv("STYLEGAN_PATIENCE", "0")
    ran, error = attempts(UnavailableError("away"), UnavailableError("away"))
    assert (ran, type(error)) == (1, UnavailableError)


def test_a_lost_cluster_is_no_matter_of_the_patience(monkeypatch):
    """The next attempt waits for the next cluster, for `ray.wait_s`."""
    monkeypatch.setenv("STYLEGAN_PATIENCE", "0")
    assert attempts(*[LostHeadError("gone")] * 3)[1] == Record(number=4)


def test_what_was_waited_for_in_vain_is_not_tried_again():
    ran, error = attempts(ExhaustedError("a store was away for all of the patience"))
    assert (ran, type(error)) == (1, ExhaustedError)


def test_a_crash_is_tried_again_but_not_for_ever():
    ran, error = attempts(*[OSError("crash")] * 5)
    assert isinstance(error, OSError)
    assert ran == 1 + how.CRASHES


def test_a_mistake_of_the_user_is_not_tried_again():
    ran, error = attempts(StepError("corrupt"))
    assert isinstance(error, StepError)
    assert ran == 1


def test_a_step_that_is_not_needed_shows_as_cached_and_gives_none():
    @task(task_run_name="step", **how.OPTIONS)
    def step():
        return tasks._state(Done(None, cached=True))

    @flow(persist_result=False)
    def once():
        return how.call(step), step(return_state=True).name

    assert once() == (None, "Cached")


def test_a_cached_step_shows_as_cached_and_still_gives_its_record():
    @task(task_run_name="step", **how.OPTIONS)
    def step():
        return tasks._state(Done(Record(number=7), cached=True))

    @flow(persist_result=False)
    def once():
        return how.call(step), step(return_state=True).name

    assert once() == (Record(number=7), "Cached")
