"""Read everything that MLflow lists in pages: its searches answer a hundred or a thousand entries and a token."""

from __future__ import annotations

from typing import Any

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
