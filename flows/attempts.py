"""How a task of a flow is tried again, and how it ends whose work storage had already.

Storage alone decides whether a step is done already; such a task run ends as `Cached`. Prefect's own result cache stays
off, since it cannot know that storage was emptied.
"""

from __future__ import annotations

import time
from typing import Any, TypeVar
from uuid import UUID

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from stylegan.errors import UserError
from stylegan.retry import log_again, seconds_left

R = TypeVar("R")

# How often a step is tried again after a crash. After a server that does not answer, the patience decides; no other limit
# is reached then.
CRASHES, ATTEMPTS = 2, 2_100

_first_failures: dict[UUID, float] = {}  # task run -> time of its first failure


def may_work_later(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether to try a step again.

    After a crash it is tried again, `CRASHES` times. After a server that does not answer it is tried again until
    `storage.patience_s` is over, counted from its first failure. After the loss of a Ray cluster it is tried again, and
    then waits for the next cluster itself. What was waited for already is not tried again, nor is a user's mistake.
    """
    error = state.result(raise_on_failure=False)
    if not isinstance(error, UserError):
        return task_run.run_count <= CRASHES
    left = seconds_left(error, _first_failures.setdefault(task_run.id, time.monotonic()))
    if left:
        log_again(error, left)
    return left > 0


OPTIONS: dict[str, Any] = {
    "retries": ATTEMPTS,
    "retry_delay_seconds": [5, 30, 60, 300],  # the last one for all further attempts
    "retry_condition_fn": may_work_later,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


def call(step: Task[..., R], *arguments: Any) -> R:
    """Run a task and return its record, also if it ended as `Cached` (Prefect then returns the state, not the record)."""
    result: Any = step(*arguments)
    record: R = result.result() if isinstance(result, State) else result
    return record
