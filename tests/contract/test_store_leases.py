"""Locks in the store when a renewal hangs or is rejected, and after a reboot."""

import contextlib
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import delete, text

from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.tables import leases
from blacksmith_dagster.supervisor import StoreSupervisor

KEY = "load/warehouse/flights"
TTL = 1.0


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = open_store(store_url, upgrade=True)
    with contextlib.closing(store):
        yield store


@pytest.fixture
def supervisor(store: Store) -> Iterator[StoreSupervisor]:
    with contextlib.closing(StoreSupervisor(store.database, ttl=TTL)) as supervisor:
        yield supervisor


def test_a_lock_whose_renewal_hangs_is_lost_in_time(
    supervisor: StoreSupervisor, store_url: str
) -> None:
    with contextlib.closing(open_store(store_url)) as other:
        lease = supervisor.acquire(KEY, "we")
        assert lease is not None
        with other.database.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("lock table leases in share mode"))
            assert lease.lost.wait(2 * TTL)


def test_a_rejected_renewal_is_a_loss(supervisor: StoreSupervisor, store: Store) -> None:
    lease = supervisor.acquire(KEY, "we")
    assert lease is not None
    before = time.monotonic()
    with store.database.writing() as connection:
        connection.execute(delete(leases))
    assert lease.lost.wait(TTL)
    assert time.monotonic() - before < TTL * 2 / 3
    assert not lease.confirm()


def test_a_lock_of_an_earlier_boot_is_free(tmp_path_factory: pytest.TempPathFactory) -> None:
    url = f"sqlite:///{tmp_path_factory.mktemp('boot')}/store.db"
    with (
        contextlib.closing(open_store(url)) as store,
        contextlib.closing(StoreSupervisor(store.database, ttl=3600)) as supervisor,
    ):
        assert supervisor.acquire(KEY, "before the boot") is not None
        with store.database.writing() as connection:
            connection.execute(leases.update().values(boot="another"))
        assert not supervisor.status(KEY).held
        assert supervisor.acquire(KEY, "after it") is not None
