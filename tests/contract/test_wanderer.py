"""Migrations run in order, with one run at a time per target, and every transition is tracked.

The tests run on PostgreSQL and SQLite, with tracking in the migrated database and in another one.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa

from blacksmith_dagster import (
    Batch,
    Blacksmith,
    Destination,
    Direction,
    Migration,
    Schedule,
    Source,
)
from blacksmith_dagster.destinations import SQLDestination
from blacksmith_dagster.destinations.dialects import open_engine
from blacksmith_dagster.errors import (
    CodeOutdated,
    FencedOut,
    MigrationError,
    MigrationLocked,
    MigrationPending,
)
from blacksmith_dagster.ingest import ingest as ingest_requests
from blacksmith_dagster.pipeline import triggers
from blacksmith_dagster.pubsub import Subscriber
from blacksmith_dagster.scheduler import Realtime, StandardScheduler
from blacksmith_dagster.store import Store, migration_barrier
from blacksmith_dagster.store.records import Lane, LoadVerdict
from blacksmith_dagster.wanderer import MigrationReport, MigrationRequest, MigrationState, Wanderer
from blacksmith_dagster.wanderer.tracking import Tracking
from tests.support.migrating import (
    FIVE,
    FLIGHTS,
    FOUR,
    ONE,
    SCOPE,
    THREE,
    TWO,
    Runs,
    application,
    departed,
    load,
    migration,
    runs,
    tables,
    warehouse,
)
from tests.support.pipelines.one_event import ingest
from tests.support.waiting import until


@pytest.fixture
def wandering(store_url: str, locks_url: str | None) -> Iterator[Runs]:
    with runs(store_url, locks_url) as wandering:
        yield wandering


@pytest.fixture(params=["together", "apart"])
def target_url(request: pytest.FixtureRequest, store_url: str, tmp_path: Path) -> str:
    """The URL of the database that is migrated: the one that tracks, or another."""
    if request.param == "together":
        return store_url
    return f"sqlite:///{tmp_path}/warehouse.db"


def states(wanderer: Wanderer) -> list[MigrationState | None]:
    return [status.state for status in wanderer.status()]


def failing(version: int) -> Migration:
    return migration(version, up=f"CREATE TABLE t{version // 1_000_000 % 100} (n INT); SELECT no;")


# ------------------------------------------------------------------------------------- up and down


def test_migrations_run_up_and_are_rolled_back(wandering: Runs, target_url: str) -> None:
    app = application(warehouse(target_url, [migration(ONE), migration(TWO), migration(THREE)]))
    wanderer = wandering.wanderer(app)
    assert states(wanderer) == [None, None, None]

    report = wanderer.run(MigrationRequest(version=TWO))

    assert [(completed.action.version, completed.state) for completed in report.done] == [
        (ONE, MigrationState.SUCCEEDED_UP),
        (TWO, MigrationState.SUCCEEDED_UP),
    ]
    assert tables(target_url) == {"t1", "t2"}
    assert wanderer.run(MigrationRequest()).error is None
    assert wanderer.run(MigrationRequest()).planned == []
    report = wanderer.rollback(MigrationRequest(version=ONE))
    assert [completed.action.version for completed in report.done] == [THREE, TWO]
    assert tables(target_url) == {"t1"}
    assert states(wanderer) == [
        MigrationState.SUCCEEDED_UP,
        MigrationState.SUCCEEDED_DOWN,
        MigrationState.SUCCEEDED_DOWN,
    ]
    assert wanderer.run(MigrationRequest()).error is None
    assert tables(target_url) == {"t1", "t2", "t3"}


def test_every_transition_is_kept_with_its_holder_and_run(wandering: Runs, target_url: str) -> None:
    app = application(warehouse(target_url, [migration(ONE)]))
    wanderer = wandering.wanderer(app, holder="deploy", run="abc")

    wanderer.run(MigrationRequest())
    wanderer.rollback(MigrationRequest(version=0, discard=True))

    history = Tracking(wandering.store().database, "", None).history(SCOPE, ONE)
    assert [transition.state.value for transition in history] == [
        "acknowledged",
        "executing(up)",
        "succeeded(up)",
        "executing(down)",
        "succeeded(down)",
        "discarded",
    ]
    assert {(transition.by, transition.run) for transition in history} == {("deploy", "abc")}
    assert wanderer.run(MigrationRequest()).planned == []


def test_a_dry_run_shows_the_plan_and_the_sql_and_does_nothing(
    wandering: Runs, target_url: str
) -> None:
    wanderer = wandering.wanderer(application(warehouse(target_url, [migration(ONE)])))
    report = wanderer.run(MigrationRequest(dry_run=True))
    assert [(action.what, action.sql) for action in report.planned] == [
        ("up", "CREATE TABLE t1 (n INTEGER);")
    ]
    assert report.done == ()
    assert states(wanderer) == [None]
    assert tables(target_url) == set()


def test_events_migrations_run_by_their_destination(wandering: Runs, target_url: str) -> None:
    destination = SQLDestination("warehouse", url=target_url, migrations=[migration(TWO)])
    destination.event(receives=departed, name="flights", migrations=[migration(ONE)])(
        lambda batch, connection: None
    )
    wanderer = wandering.wanderer(application(destination))
    done = wanderer.run(MigrationRequest(scopes=["d/e:warehouse/flights"])).done
    assert [completed.action.scope for completed in done] == ["destination/event:warehouse/flights"]
    assert tables(target_url) == {"t1"}
    wanderer.run(MigrationRequest())
    assert tables(target_url) == {"t1", "t2"}


def test_a_function_receives_the_connection_of_its_transaction(
    wandering: Runs, target_url: str
) -> None:
    def up(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE t1 (n INT)")
        raise OSError("the disk")

    wanderer = wandering.wanderer(application(warehouse(target_url, [migration(ONE, up=up)])))
    assert wanderer.run(MigrationRequest()).error == "OSError: the disk"
    assert tables(target_url) == set()


def test_sql_that_ends_its_transaction_fails(wandering: Runs, target_url: str) -> None:
    app = application(
        warehouse(target_url, [migration(ONE, up="CREATE TABLE t1 (n INT); COMMIT;")])
    )
    assert "remove COMMIT" in (wandering.wanderer(app).run(MigrationRequest()).error or "")


def test_sql_without_a_transaction_runs_statement_by_statement(
    wandering: Runs, target_url: str
) -> None:
    up = (
        "-- blacksmith: no transaction\nCREATE TABLE t1 (n INT);\nCREATE TABLE t2 (n INT); SELECT x"
    )
    wanderer = wandering.wanderer(application(warehouse(target_url, [migration(ONE, up=up)])))
    assert wanderer.run(MigrationRequest()).error is not None
    assert tables(target_url) == {"t1", "t2"}
    assert states(wanderer) == [MigrationState.FAILED_UP]


def test_an_overridden_migrate_is_called(wandering: Runs, store_url: str) -> None:
    ran = []

    class Own(SQLDestination):
        def migrate(self, migration: Migration, direction: Direction) -> None:
            ran.append((migration.version, direction))

    app = application(Own("warehouse", url=store_url, migrations=[migration(ONE)]))
    assert wandering.wanderer(app).run(MigrationRequest()).error is None
    assert ran == [(ONE, Direction.UP)]


def test_migrations_are_tracked_elsewhere(wandering: Runs, target_url: str, tmp_path: Path) -> None:
    """In another store, with its fencing tokens; the barriers stay in the store of the loads."""
    app = application(warehouse(target_url, [migration(ONE)]))
    with runs(f"sqlite:///{tmp_path}/wanderer.db") as other:
        tracking = other.store().database
        wanderer = wandering.wanderer(app, tracking=tracking)
        assert wanderer.run(MigrationRequest()).error is None
        assert states(wanderer) == [MigrationState.SUCCEEDED_UP]
        assert len(Tracking(tracking, "", None).history(SCOPE, ONE)) == 3
        assert Tracking(wandering.store().database, "", None).history(SCOPE, ONE) == []
        done = load(wandering, app)
    assert done.skipped is None


# ------------------------------------------------------------------------------------- failures


def test_third_of_five_fails(wandering: Runs, target_url: str) -> None:
    """Two stay, the rest does not run, and the next run continues."""
    versions = [ONE, TWO, THREE, FOUR, FIVE]
    broken = [failing(version) if version == THREE else migration(version) for version in versions]
    wanderer = wandering.wanderer(application(warehouse(target_url, broken)))

    report = wanderer.run(MigrationRequest())

    assert "no" in (report.error or "")
    assert tables(target_url) == {"t1", "t2"}
    assert states(wanderer)[:3] == [
        MigrationState.SUCCEEDED_UP,
        MigrationState.SUCCEEDED_UP,
        MigrationState.FAILED_UP,
    ]
    reason = wanderer.waits_for("warehouse") or ""
    assert f"{THREE} t3 of {SCOPE} failed(up)" in reason
    assert "blacksmith migrations run" in reason
    fixed = wandering.wanderer(
        application(warehouse(target_url, [migration(version) for version in versions]))
    )
    assert [completed.action.version for completed in fixed.run(MigrationRequest()).done] == [
        THREE,
        FOUR,
        FIVE,
    ]
    assert tables(target_url) == {"t1", "t2", "t3", "t4", "t5"}
    assert fixed.waits_for("warehouse") is None


def test_down_fails(wandering: Runs, target_url: str) -> None:
    """Earlier rollbacks stay; the failed migration and the older ones are still applied."""
    broken = migration(TWO, down="DROP TABLE t2; SELECT no;")
    app = application(warehouse(target_url, [migration(ONE), broken, migration(THREE)]))
    wanderer = wandering.wanderer(app)
    wanderer.run(MigrationRequest())

    assert wanderer.rollback(MigrationRequest(version=0)).error is not None

    assert tables(target_url) == {"t1", "t2"}
    assert states(wanderer) == [
        MigrationState.SUCCEEDED_UP,
        MigrationState.FAILED_DOWN,
        MigrationState.SUCCEEDED_DOWN,
    ]
    assert "rollback" in (wanderer.waits_for("warehouse") or "")
    fixed = wandering.wanderer(
        application(warehouse(target_url, [migration(version) for version in (ONE, TWO, THREE)]))
    )
    assert fixed.rollback(MigrationRequest(version=0)).error is None
    assert tables(target_url) == set()


def test_a_run_that_is_stopped_finishes_the_current_migration(
    wandering: Runs, target_url: str
) -> None:
    stop = threading.Event()

    def up(connection: sa.Connection) -> None:
        stop.set()
        connection.exec_driver_sql("CREATE TABLE t1 (n INT)")

    app = application(warehouse(target_url, [migration(ONE, up=up), migration(TWO)]))
    report = wandering.wanderer(app, stop=stop).run(MigrationRequest())
    assert [completed.action.version for completed in report.done] == [ONE]
    assert "stopped: the rest was not run" in (report.error or "")
    assert tables(target_url) == {"t1"}


def write_file(folder: Path, version: int, up: str | None = None) -> Path:
    """Write the file of a migration, by default one that creates the table `t<day>`."""
    step = migration(version, up)
    path = folder / f"{version}.{step.name}.up.sql"
    path.write_text(step.sql(Direction.UP))
    return path


def test_changed_after_run(wandering: Runs, store_url: str, tmp_path: Path) -> None:
    """The tracked checksum shows it; nothing runs until the file is restored."""
    file = write_file(tmp_path, ONE)
    wanderer = wandering.wanderer(application(warehouse(store_url, tmp_path)))
    assert wanderer.run(MigrationRequest()).error is None
    write_file(tmp_path, ONE, up="CREATE TABLE t1 (n INTEGER, gate TEXT);")
    write_file(tmp_path, TWO)

    with pytest.raises(MigrationError) as error:
        wanderer.run(MigrationRequest())

    message = str(error.value)
    assert message.startswith(f"{file} was changed after it ran ({ONE} t1 of {SCOPE})")
    assert message.endswith("restore it, and write the change as a new migration")
    assert tables(store_url) == {"t1"}
    assert states(wanderer) == [MigrationState.SUCCEEDED_UP, None]
    write_file(tmp_path, ONE)
    done = wanderer.run(MigrationRequest()).done
    assert [completed.action.version for completed in done] == [TWO]


def test_late_lower_version(wandering: Runs, store_url: str, tmp_path: Path) -> None:
    """It is refused, naming the newer migration that has run, and runs with `out_of_order`."""
    write_file(tmp_path, ONE)
    write_file(tmp_path, THREE)
    wanderer = wandering.wanderer(application(warehouse(store_url, tmp_path)))
    assert wanderer.run(MigrationRequest()).error is None
    write_file(tmp_path, TWO)

    with pytest.raises(MigrationError) as error:
        wanderer.run(MigrationRequest())

    message = str(error.value)
    assert f"{TWO} t2 of {SCOPE} (after {THREE} t3)" in message
    assert "give them a newer version, or run them with --out-of-order" in message
    assert tables(store_url) == {"t1", "t3"}
    assert states(wanderer) == [MigrationState.SUCCEEDED_UP, None, MigrationState.SUCCEEDED_UP]
    done = wanderer.run(MigrationRequest(out_of_order=True)).done
    assert [completed.action.version for completed in done] == [TWO]
    assert states(wanderer) == [MigrationState.SUCCEEDED_UP] * 3


# ------------------------------------------------------------------------------------- one at a time


def test_a_second_run_on_a_target_in_use_fails_at_once_and_names_the_holder(
    wandering: Runs,
) -> None:
    started, finish = threading.Event(), threading.Event()

    def up() -> None:
        started.set()
        finish.wait(30)

    app = lake(Migration(ONE, "go", up=up), load=lambda batch: None)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(wandering.wanderer(app, run="abc").run, MigrationRequest())
        assert started.wait(30)
        try:
            with pytest.raises(MigrationLocked, match="warehouse is being migrated by run abc"):
                wandering.wanderer(app).run(MigrationRequest())
        finally:
            finish.set()
        assert first.result(30).error is None


def test_a_sources_events_are_accepted_while_it_is_behind_and_while_it_is_migrated(
    wandering: Runs,
) -> None:
    """They are loaded too: a source has no barrier. Its `migrate` also runs its events' migrations."""
    started, finish = threading.Event(), threading.Event()
    ran: list[int] = []

    class Own(Source):
        def migrate(self, migration: Migration, direction: Direction) -> None:
            started.set()
            assert finish.wait(30)
            ran.append(migration.version)

    crm = Own("crm", migrations=[migration(ONE)])
    signed_up = crm.accept("signed_up", migrations=[migration(TWO)])
    lake = Destination("warehouse")
    lake.event(receives=signed_up, name="flights")(lambda batch: None)
    app = Blacksmith(sources=[crm], destinations=[lake])
    store, wanderer = wandering.store(app), wandering.wanderer(app, run="abc")

    def accepted_and_loaded() -> bool:
        [ids] = ingest_requests(app, store, signed_up, [triggers.Request.of({"n": 1})])
        return len(ids) == 1 and load(wandering, app).tally.succeeded == 1

    wanderer.ack(MigrationRequest())
    assert states(wanderer) == [MigrationState.ACKNOWLEDGED] * 2
    assert accepted_and_loaded()
    with ThreadPoolExecutor() as threads:
        first = threads.submit(wanderer.run, MigrationRequest())
        try:
            assert started.wait(30)
            assert states(wanderer) == [MigrationState.EXECUTING_UP, MigrationState.ACKNOWLEDGED]
            assert accepted_and_loaded()
            assert wandering.supervisor(store).status("migrate/source/crm").holder == "run abc"
            with pytest.raises(
                MigrationLocked, match="source/crm is being migrated by run abc; wait"
            ):
                wandering.wanderer(app).run(MigrationRequest(scopes=["s/e:crm/signed_up"]))
        finally:
            finish.set()
        assert first.result(30).error is None
    assert ran == [ONE, TWO]
    assert states(wanderer) == [MigrationState.SUCCEEDED_UP] * 2


def test_two_runs_race_for_one_target(wandering: Runs, target_url: str) -> None:
    """The first one migrates; the others raise `MigrationLocked`, or find nothing to do."""
    app = application(warehouse(target_url, [migration(version) for version in (ONE, TWO, THREE)]))
    racers = [wandering.wanderer(app, run=f"run {number}") for number in range(4)]
    start = threading.Barrier(len(racers))
    ended: list[MigrationReport | MigrationLocked] = []

    def race(number: int) -> None:
        start.wait()
        try:
            ended.append(racers[number].run(MigrationRequest()))
        except MigrationLocked as error:
            ended.append(error)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(len(racers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(ended) == len(racers)
    reports = [result for result in ended if not isinstance(result, MigrationLocked)]
    assert sorted(len(report.done) for report in reports) == [0] * (len(reports) - 1) + [3]
    assert all(report.error is None for report in reports)
    assert tables(target_url) == {"t1", "t2", "t3"}
    assert len(Tracking(wandering.store().database, "", None).history(SCOPE, ONE)) == 3


def test_two_runs_cross_over_two_targets(wandering: Runs, target_url: str) -> None:
    """Two runs that name the targets in opposite orders cannot deadlock."""
    one = warehouse(target_url, [migration(ONE)], name="one")
    two = warehouse(target_url, [migration(TWO)], name="two")
    app = application(one, two)
    requests = [
        MigrationRequest(scopes=["d:one", "d:two"]),
        MigrationRequest(scopes=["d:two", "d:one"]),
    ]
    for _ in range(3):
        ended: list[object] = []

        def cross(request: MigrationRequest, into: list[object] = ended) -> None:
            try:
                into.append(wandering.wanderer(app).run(request))
            except MigrationLocked as error:
                into.append(error)

        threads = [threading.Thread(target=cross, args=(request,)) for request in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(ended) == 2
        assert any(not isinstance(result, MigrationLocked) for result in ended)
        assert tables(target_url) == {"t1", "t2"}
        wandering.wanderer(app).rollback(MigrationRequest(version=0))


def test_a_run_that_was_taken_over_records_nothing_more(wandering: Runs, target_url: str) -> None:
    """A run that was paused past its lock's time to live finds its record rejected."""
    app = application(warehouse(target_url, [migration(ONE)]))
    store = wandering.store(app)
    tracking = Tracking(store.database, "a test", None)
    token = tracking.take_over("destination/warehouse", "first", lambda: True)
    tracking.record(token, SCOPE, migration(ONE), MigrationState.EXECUTING_UP)

    tracking.take_over("destination/warehouse", "second", lambda: True)

    with pytest.raises(FencedOut, match="another run has taken over"):
        tracking.record(token, SCOPE, migration(ONE), MigrationState.SUCCEEDED_UP)
    with pytest.raises(FencedOut):
        migration_barrier.lift(store.database, token, ONE, None)
    assert tracking.history(SCOPE, ONE)[-1].state is MigrationState.INTERRUPTED


# ------------------------------------------------------------------------------------- loads


def test_loads_wait_and_resume(wandering: Runs, target_url: str) -> None:
    app = application(warehouse(target_url, [migration(ONE)]))
    store, wanderer = wandering.store(app), wandering.wanderer(app)
    ingest(store, [{"n": 1}])
    assert f"migration {ONE} has not run" in (load(wandering, app).skipped or "")

    wanderer.ack(MigrationRequest())

    reason = load(wandering, app).skipped or ""
    assert f"{ONE} t1 of {SCOPE} has not run; run `blacksmith migrations run`" in reason
    assert store.counts.of(FLIGHTS).awaiting == 1
    wanderer.run(MigrationRequest())
    assert load(wandering, app).tally.succeeded == 1


def test_a_destination_may_choose_not_to_wait(wandering: Runs, target_url: str) -> None:
    """It still waits for a migration that is running."""
    app = application(warehouse(target_url, [migration(ONE)], wait_for_migrations=False))
    store = wandering.store(app)
    ingest(store, [{"n": 1}])
    token = migration_barrier.take_over(
        store.database, "destination/warehouse", "a migration", lambda: True
    )

    migration_barrier.stop_claims(store.database, token, "run abc")
    assert "being migrated by run abc" in (load(wandering, app).skipped or "")

    migration_barrier.lift(store.database, token, 0, "a migration has failed")
    assert load(wandering, app).tally.succeeded == 1


def test_older_code_ends_and_newer_code_waits(wandering: Runs, target_url: str) -> None:
    new = application(warehouse(target_url, [migration(ONE), migration(TWO)]))
    old = application(warehouse(target_url, [migration(ONE)]))
    wanderer = wandering.wanderer(new)
    ingest(wandering.store(), [{"n": 1}])
    wanderer.run(MigrationRequest())
    with pytest.raises(
        CodeOutdated, match=f"migrated to {TWO}, and this code knows it up to {ONE}"
    ):
        load(wandering, old)

    wanderer.rollback(MigrationRequest(version=ONE))

    assert f"migration {TWO} has not run" in (load(wandering, new).skipped or "")
    assert load(wandering, old).tally.succeeded == 1


def test_another_destination_is_loaded_meanwhile(wandering: Runs, target_url: str) -> None:
    other = warehouse(target_url, [], name="other")
    app = application(warehouse(target_url, [migration(ONE)]), other)
    store = wandering.store(app)
    wandering.wanderer(app).ack(MigrationRequest())
    ingest(store, [{"n": 1}], "other/flights")
    token = store.loads.take_over("other/flights", Lane.LOAD, "loader", lambda: True)
    assert store.loads.claim(token, 10, 3, version=0) is not None


def lake(*migrations: Migration, load: Callable[..., None]) -> Blacksmith:
    """An application whose destination `warehouse` is a function that loads one job at a time."""
    destination = Destination(
        "warehouse", migrations=migrations, batch_size=1, schedule=Schedule(realtime=True)
    )
    destination.event(receives=departed, name="flights")(load)
    return application(destination)


def test_an_open_load_is_waited_for(wandering: Runs) -> None:
    """A migration waits for the open load, and nothing is claimed after it."""
    loading, finish = threading.Event(), threading.Event()
    order: list[str] = []

    def slowly(batch: Batch[object]) -> None:
        loading.set()
        finish.wait(30)
        order.append("loaded")

    old = lake(load=slowly)
    new = lake(Migration(ONE, "go", up=lambda: order.append("migrated")), load=lambda batch: None)
    store = wandering.store(old)
    ingest(store, [{"n": 1}, {"n": 2}])
    with ThreadPoolExecutor() as threads:
        loads = threads.submit(load, wandering, old)
        assert loading.wait(30)
        runs_up = threads.submit(wandering.wanderer(new).run, MigrationRequest())
        until(lambda: has_barrier(store))
        assert order == []
        finish.set()
        assert runs_up.result(30).error is None
        error = loads.exception(30)
    assert order == ["loaded", "migrated"]
    # It claimed while the barrier was up or after the migration: neither gives it a job.
    assert isinstance(error, CodeOutdated) if error else loads.result().skipped
    assert store.counts.of(FLIGHTS).awaiting == 1
    assert load(wandering, new).tally.succeeded == 1


def has_barrier(store: Store) -> bool:
    with store.database.reading() as conn:
        try:
            migration_barrier.check(conn, FLIGHTS, None)
        except MigrationPending:
            return True
    return False


def test_migration_under_load(wandering: Runs) -> None:
    """Nothing is lost, and nothing is loaded between the old and the new schema."""
    schema, between, loaded = [0], threading.Event(), Counter[int]()

    def up() -> None:
        between.set()
        time.sleep(0.3)  # the time in which no load may run
        schema[0] += 1
        between.clear()

    def load_as(version: int) -> Callable[..., None]:
        def load(batch: Batch[Any]) -> None:
            assert not between.is_set(), "loaded between two schemas"
            assert schema[0] == version, "loaded into another schema than the code's"
            loaded.update(job.data["n"] for job in batch)

        return load

    versions = [ONE, TWO, THREE]
    steps = [Migration(version, "step", up=up) for version in versions]
    apps = [lake(*steps[:count], load=load_as(count)) for count in range(len(steps) + 1)]
    store = wandering.store(apps[0])
    stop, outdated = threading.Event(), []
    sent = 0

    def keep_loading(app: Blacksmith) -> None:
        while not stop.is_set():
            try:
                load(wandering, app)
            except CodeOutdated as error:
                outdated.append(error)
                return
            except FencedOut:
                pass
            time.sleep(0.01)

    with ThreadPoolExecutor() as threads:
        try:
            loaders = [threads.submit(keep_loading, app) for app in apps]
            for app in apps[1:]:
                ingest(store, ({"n": number} for number in range(sent, sent + 40)))
                sent += 40
                assert wandering.wanderer(app).run(MigrationRequest()).error is None
            until(lambda: store.counts.of(FLIGHTS).pending == 0)
            until(lambda: len(outdated) == len(versions))  # each of the older ones
        finally:
            stop.set()
        for loader in loaders:
            loader.result(30)
    assert store.counts.of(FLIGHTS).succeeded == sent
    assert loaded.keys() == set(range(sent))


def test_the_load_of_a_loader_that_is_gone_is_fenced_out(wandering: Runs, target_url: str) -> None:
    app = application(warehouse(target_url, [migration(ONE)]))
    store = wandering.store(app)
    ingest(store, [{"n": 1}])
    token = store.loads.take_over(FLIGHTS, Lane.LOAD, "a loader without a lock", lambda: True)
    claimed = store.loads.claim(token, 10, 3)
    assert claimed is not None

    assert wandering.wanderer(app).run(MigrationRequest()).error is None

    with pytest.raises(FencedOut):
        store.loads.record(claimed, LoadVerdict())
    assert store.counts.of(FLIGHTS).retrying == 1


class Silent:
    """A broker that never sends anything."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def wait(self, timeout: float) -> set[str]:
        self._closed.wait(timeout)
        return set()

    def close(self) -> None:
        self._closed.set()


def test_a_realtime_loop_of_older_code_ends_and_newer_code_waits(wandering: Runs) -> None:
    """The loop of older code ends with the reason; the newer one loads once the migration has run."""
    loaded: list[str] = []
    old = lake(load=lambda batch: loaded.append("old"))
    new = lake(
        Migration(ONE, "go", up=lambda: None, down=lambda: None),
        load=lambda batch: loaded.append("new"),
    )
    store = wandering.store(old)

    def realtime(app: Blacksmith) -> Realtime:
        loop = Realtime(
            app,
            app.destinations["warehouse"],
            StandardScheduler(),
            store=store,
            supervisor=wandering.supervisor(store),
            subscriber=cast(Subscriber[Any], Silent()),
            holder="a test",
            report=lambda *_: None,
        )
        loop.start()
        return loop

    warm = realtime(old)
    until(lambda: warm.holds_locks)
    wanderer = wandering.wanderer(new)
    wanderer.ack(MigrationRequest())
    wanderer.run(MigrationRequest())
    ingest(store, [{"n": 1}])
    until(lambda: warm.failure)
    assert isinstance(warm.failure, CodeOutdated)
    warm.stop()
    wanderer.rollback(MigrationRequest(version=0))
    following = realtime(new)
    until(lambda: following.holds_locks)
    assert store.counts.of(FLIGHTS).awaiting == 1
    wanderer.run(MigrationRequest())
    until(lambda: store.counts.of(FLIGHTS).succeeded == 1)
    following.stop()
    assert loaded == ["new"]


def test_concurrent_index_does_not_deadlock(wandering: Runs, store_url: str) -> None:
    """The index waits for every transaction of its database, the store's too, but none waits for it."""
    concurrently = "CONCURRENTLY" if store_url.startswith("postgres") else ""
    index = (
        "-- blacksmith: no transaction\n"
        f"DROP INDEX {concurrently} IF EXISTS t1_n; CREATE INDEX {concurrently} t1_n ON t1 (n);"
    )
    app = application(warehouse(store_url, [migration(ONE), migration(TWO, up=index)]))
    store = wandering.store(app)
    stop, failures = threading.Event(), []

    def stay_busy() -> None:
        try:
            while not stop.is_set():
                ingest(store, [{"n": 1}])
        except Exception as error:  # noqa: BLE001 - asserted below
            failures.append(error)

    busy = threading.Thread(target=stay_busy)
    busy.start()
    try:
        assert wandering.wanderer(app).run(MigrationRequest()).error is None
    finally:
        stop.set()
        busy.join(30)
    assert not failures
    engine = open_engine("test", store_url)
    assert [index["name"] for index in sa.inspect(engine).get_indexes("t1")] == ["t1_n"]
    engine.dispose()


# ------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("applied", [True, False])
def test_repair_records_what_happened(wandering: Runs, target_url: str, applied: bool) -> None:
    app = application(warehouse(target_url, [migration(ONE), migration(TWO)]))
    tracking = Tracking(wandering.store(app).database, "a run that died", None)
    token = tracking.take_over("destination/warehouse", "first", lambda: True)
    tracking.record(token, SCOPE, migration(ONE), MigrationState.EXECUTING_UP)
    wanderer = wandering.wanderer(app)
    with pytest.raises(MigrationError, match=f"{ONE} t1 of {SCOPE} was interrupted.*repair"):
        wanderer.run(MigrationRequest())
    assert "was interrupted" in (wanderer.waits_for("warehouse") or "")
    with pytest.raises(MigrationError, match="unknown"):
        wanderer.repair("d:warehouse", TWO, applied=True)

    assert wanderer.repair("d:warehouse", ONE, applied=applied).action.version == ONE

    done = wanderer.run(MigrationRequest()).done
    assert [completed.action.version for completed in done] == ([TWO] if applied else [ONE, TWO])
    history = [transition.state for transition in tracking.history(SCOPE, ONE)]
    assert history[1] is MigrationState.INTERRUPTED
    assert history[2] is (MigrationState.SUCCEEDED_UP if applied else MigrationState.ACKNOWLEDGED)
    with pytest.raises(MigrationError, match=r"is succeeded\(up\)"):
        wanderer.repair("d:warehouse", ONE, applied=True)
