"""Read everything that MLflow lists in pages: its searches answer a hundred or a thousand entries and a token."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = 100  # entries in one answer, which every search allows


def all_pages(search: Any) -> list[Any]:
    """Return all that a search finds: a method of MLflow's client, called with `max_results` and `page_token`."""
    found, token = [], None
    while True:
        page = search(max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def all_versions(client: MlflowClient, name: str) -> list[Any]:
    """Return all versions of a registered model."""
    return all_pages(partial(client.search_model_versions, f"name='{name}'"))
