"""Move the aliases champion, previous and challenger as one: a move that was cut is finished, two at once do not mix.

MLflow moves one alias at a time. So a move is first written as a tag of the registered model, its intent, which is
deleted when all of it is done. Whoever finds an intent finishes it before anything else.

Two processes may write an intent in the same moment, and the later one replaces the earlier. Therefore a process reads
its intent again SETTLE_SECONDS later, and works only if it is still its own (Fischer's algorithm of mutual exclusion). An
intent whose writing took longer than half of that is withdrawn.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import Field

from stylegan.records import Record, parse
from stylegan.registry.descriptions import write_descriptions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
INTENT = "stylegan.alias_move"
SETTLE_SECONDS = 1.0
MAX_WHY = 1500  # twice in a move, of which MLflow's databases hold 5,000 characters


class Move(Record):
    """A change of champion: `previous` is the version that was champion. `tags` are those of the new champion's version."""

    action: str  # promote, rollback or gate
    champion: str
    previous: str | None
    tags: dict[str, str]
    time: str
    owner: str = Field(default_factory=lambda: uuid.uuid4().hex)


def plan_move(action: str, champion: str, previous: str | None, why: str, tags: dict[str, str] | None = None) -> Move:
    """Return the move that makes a version champion, and keeps the decision as a tag of that version.

    Args:
        previous: the champion until now, None if there was none.
        why: the reason, in sentences.
        tags: more tags of the version.
    """
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    history = f"{f'After version {previous}' if previous else 'The first'}. {why}"[:MAX_WHY]
    return Move(
        action=action,
        champion=champion,
        previous=previous,
        tags={f"champion.{now}": history, **{key: value[:MAX_WHY] for key, value in (tags or {}).items()}},
        time=now,
    )


def move_aliases(client: MlflowClient, name: str, plan: Callable[[dict[str, str], Move | None], Move | None]) -> None:
    """Move the aliases of a registered model.

    Args:
        plan: gets the version behind each alias, and the move of another process that was finished here first (None if
            there was none). Returns the move to make, or None if there is nothing to do. What it raises ends the call;
            nothing has changed then. It may be called more than once.

    Raises:
        DamagedError: the tag of the intent is none that this program wrote.
    """
    finished = None
    while True:
        pending = unfinished(client.get_registered_model(name))
        if pending:
            time.sleep(3 * SETTLE_SECONDS)  # its owner, if it lives, is done by then
            if unfinished(client.get_registered_model(name)) == pending:
                _finish(client, name, pending)
                finished = pending
            continue
        began = time.monotonic()
        move = plan(versions_of(client.get_registered_model(name)), finished)
        if move is None:
            return
        if not _write_intent(client, name, move):
            continue
        late = time.monotonic() - began > SETTLE_SECONDS / 2
        time.sleep(SETTLE_SECONDS)
        model = client.get_registered_model(name)
        if unfinished(model) == move:
            if not late:
                _finish(client, name, move)
                return
            client.delete_registered_model_tag(name, INTENT)
        elif unfinished(model) is None and versions_of(model).get(CHAMPION) == move.champion:
            return  # another process found the intent and finished it


def current_champion(model: RegisteredModel) -> str | None:
    """Return the version that is champion, or will be as soon as an interrupted move is finished; None before the first."""
    pending = unfinished(model)
    return pending.champion if pending else versions_of(model).get(CHAMPION)


def unfinished(model: RegisteredModel) -> Move | None:
    """Return the move that was begun and not finished. Raises DamagedError if its tag is none that this program wrote."""
    text = model.tags.get(INTENT)
    if text is None:
        return None
    cure = "delete that tag in MLflow, look at the aliases and set them as they should be"
    return parse(text, Move, origin=f"{model.name}, tag {INTENT}", cure=cure)


def versions_of(model: RegisteredModel) -> dict[str, str]:
    """Return the version behind each alias."""
    return {alias: str(version) for alias, version in model.aliases.items()}


def _write_intent(client: MlflowClient, name: str, move: Move) -> bool:
    """Write the tag of a move. Return False if another process wrote one in this moment and the database refused ours."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_tag(name, INTENT, move.model_dump_json())
    except MlflowException:
        if unfinished(client.get_registered_model(name)) is None:
            raise
        return False
    return True


def _finish(client: MlflowClient, name: str, move: Move, attempts: int = 3) -> None:
    """Do all of a move. Every part can be repeated; the intent goes last.

    Two processes may finish the same move. Then a database refuses a row that the other has just written: once more.
    """
    from mlflow.exceptions import MlflowException

    try:
        _do(client, name, move)
    except MlflowException:
        if attempts == 1:
            raise
        _finish(client, name, move, attempts - 1)


def _do(client: MlflowClient, name: str, move: Move) -> None:
    if move.previous is not None and move.previous != move.champion:
        client.set_registered_model_alias(name, PREVIOUS, move.previous)
    client.set_registered_model_alias(name, CHAMPION, move.champion)
    if versions_of(client.get_registered_model(name)).get(CHALLENGER) == move.champion:
        client.delete_registered_model_alias(name, CHALLENGER)
    for key, value in move.tags.items():
        client.set_model_version_tag(name, move.champion, key, value)
    write_descriptions(client, name)
    client.delete_registered_model_tag(name, INTENT)
