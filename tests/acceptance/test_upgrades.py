"""The store of a live system is upgraded, and processes of both versions work side by side."""

import contextlib
import itertools
from pathlib import Path

import httpx
import pytest

from blacksmith_dagster.store import Store, open_store, schema
from blacksmith_dagster.store.records import NewEvent, NewJob
from tests.support.next_version import NEXT, ORIGIN, next_package
from tests.support.pipelines.loading import FLIGHTS, Recording, blacksmith, departed
from tests.support.pipelines.store import append
from tests.support.processes.blacksmith import BlacksmithProcess, GatewayProcess, repeated
from tests.support.processes.loading_process import LoaderProcess, opened
from tests.support.waiting import until

APP = "tests.support.pipelines.loading:blacksmith"


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the next version of the package."""
    return next_package(tmp_path_factory.mktemp("next"))


def upgrade(store_url: str, new: Path) -> None:
    """Run `blacksmith store upgrade` of the next version."""
    with BlacksmithProcess(["store", "upgrade"], store_url, folder=new) as upgrading:
        assert upgrading.wait() == 0, upgrading.log
    with (
        contextlib.closing(open_store(store_url, upgrade=True)) as store,
        store.database.reading() as conn,
    ):
        version = conn.exec_driver_sql(f"SELECT version_num FROM {schema.VERSION_TABLE}")
        assert version.scalar() == str(NEXT)


class Sender:
    """Sends events to a gateway, each with its number as its key; any response but a 202 is kept."""

    def __init__(self, first: int) -> None:
        self.accepted: dict[int, str] = {}  # number -> id
        self.others: list[httpx.Response] = []
        self._numbers = itertools.count(first)

    def send(self, client: httpx.Client) -> None:
        """Send the next event."""
        n = next(self._numbers)
        headers = {"Idempotency-Key": str(n)}
        response = client.post("/v1/airport/departed", json={"n": n}, headers=headers)
        if response.status_code == 202:
            [self.accepted[n]] = response.json()["ids"]
        else:
            self.others.append(response)

    def until_more(self, count: int = 20) -> None:
        """Wait until so many more have been accepted."""
        wanted = len(self.accepted) + count
        until(lambda: len(self.accepted) >= wanted, what=str(self.others[:3]))


def origins(store: Store) -> dict[str, str | None]:
    """The new column of each event, by the event's id."""
    with store.database.reading() as conn:
        rows = conn.exec_driver_sql("SELECT seq, origin FROM events").tuples()
        return {store.database.epochs.id_of(seq): origin for seq, origin in rows}


def test_old_gateway_serves_during_upgrade(store_url: str, new: Path) -> None:
    """It answers every request with a 202 before, during and after, also beside a new one."""
    by_old, by_new, repeats = Sender(0), Sender(1_000_000), Sender(0)
    with (
        GatewayProcess(store_url, APP) as old,
        old.client() as client,
        repeated(lambda: by_old.send(client), rate=50),
    ):
        by_old.until_more()
        upgrade(store_url, new)
        by_old.until_more()
        with GatewayProcess(store_url, APP, folder=new) as newer, newer.client() as other:
            repeats.send(other)
            with repeated(lambda: by_new.send(other), rate=50):
                by_new.until_more()
                by_old.until_more()
    assert by_old.others == by_new.others == repeats.others == []
    assert repeats.accepted[0] == by_old.accepted[0]
    with contextlib.closing(open_store(store_url)) as store:
        assert origins(store) == {
            **dict.fromkeys(by_old.accepted.values()),
            **dict.fromkeys(by_new.accepted.values(), ORIGIN),
        }
        store.register(blacksmith)
        assert store.counts.of(FLIGHTS).awaiting == len(by_old.accepted) + len(by_new.accepted)


def test_old_loader_beside_a_new_one(store_url: str, new: Path, tmp_path: Path) -> None:
    """Both load the same destination event in turn, during the upgrade and after it, each job once."""
    ids: list[str] = []
    with (
        opened(store_url) as store,
        contextlib.closing(Recording(tmp_path)) as recording,
        LoaderProcess(store_url, tmp_path) as old,
    ):

        def ingest() -> None:
            event = NewEvent(departed.path, f'{{"n":{len(ids)}}}', [NewJob(FLIGHTS)])
            ids.append(append(store, event))

        def load_with(loader: LoaderProcess) -> None:
            """Ingest events one by one, each when the last is loaded, until this loader has had one."""
            before = set(ids)

            def has_loaded() -> bool:
                pids = recording.pids()
                return any(loader.process.pid in pids.get(new, ()) for new in set(ids) - before)

            while not has_loaded():
                ingest()
                loader.until(lambda: len(recording.loaded()) >= len(ids))

        load_with(old)
        with repeated(ingest, rate=20):
            upgrade(store_url, new)
        load_with(old)
        with LoaderProcess(store_url, tmp_path, package=new) as newer:
            load_with(newer)
            load_with(old)
            load_with(newer)
            assert newer.stop() == 0, newer.log
        load_with(old)
        assert old.stop() == 0, old.log
        assert store.counts.of(FLIGHTS).pending == 0
        assert sorted(recording.loaded()) == sorted(ids)
