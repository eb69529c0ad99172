"""The store that the contract is held against: on SQLite and on PostgreSQL."""

from collections.abc import Iterator

import pytest

from blacksmith_dagster.store import Store, open_store
from tests.contract import pipeline


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An empty store that knows the contract's application."""
    opened = open_store(store_url, upgrade=True)
    opened.register(pipeline.app)
    yield opened
    opened.close()
