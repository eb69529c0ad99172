"""A Dagster instance of the test's own."""

from collections.abc import Iterator

import pytest
from dagster import DagsterInstance

from tests.support.dagster_home import new_instance


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with new_instance() as instance:
        yield instance
