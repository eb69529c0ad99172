"""`testing.MemoryStore`, beside what the store's other tests check on it."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from sqlalchemy.exc import ResourceClosedError

from blacksmith_dagster.store.records import LoadVerdict
from blacksmith_dagster.testing import MemoryStore
from tests.support.pipelines.store import FLIGHTS, app, new_event, take_over


def test_memory_store_passes_the_contract() -> None:
    """Every test that gets a `store` runs on it, see conftest.py. Here: several at once, with threads
    that append and load meanwhile, and no row of one in another."""
    with closing(MemoryStore(app)) as store, closing(MemoryStore(app)) as other:
        other.log.append([[new_event()]])

        def append(_: int) -> None:
            for _ in range(25):
                store.log.append([[new_event()]])

        token, loaded = take_over(store, FLIGHTS), 0
        with ThreadPoolExecutor(4) as threads:
            appending = threads.map(append, range(4))
            while loaded < 100:
                load = store.loads.claim(token, 10, max_attempts=1)
                if load is not None:
                    store.loads.record(load, LoadVerdict())
                    loaded += len(load.rows)
            list(appending)
        store.maintain()
        other.maintain()
        assert store.counts.of(FLIGHTS).succeeded == 100
        assert (other.counts.of(FLIGHTS).succeeded, other.counts.of(FLIGHTS).pending) == (0, 1)
    with pytest.raises(ResourceClosedError):
        store.log.newest()
