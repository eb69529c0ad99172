"""The promises of every store: the log, its order, keys, counts, history."""

import random
import re
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from click.testing import CliRunner
from sqlalchemy import Connection, create_engine, make_url, text

from blacksmith_dagster import Batch, Blacksmith, Destination, Source
from blacksmith_dagster.cli import main
from blacksmith_dagster.errors import (
    KeyReused,
    NotFound,
    OutcomeUnknown,
    SchemaOutdated,
    SequenceWentBack,
    SettingsError,
    Unavailable,
)
from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.store import Store, open_store, postgres, schema
from blacksmith_dagster.store.records import Deviation, LoadVerdict, NewEvent, NewJob
from blacksmith_dagster.store.tables import metadata
from tests.support import randomness
from tests.support.filled_store import everything_in, restore
from tests.support.pipelines.store import (
    FLIGHTS,
    SEATS,
    app,
    claimed,
    departed,
    event_ids,
    ids_of,
    ingest_events,
    new_event,
    take_over,
)
from tests.support.waiting import until

# ------------------------------------------------------------------------------------ ingest


def test_an_event_is_stored_unchanged(store: Store) -> None:
    payload = '{ "n" : 1.0, "big":123456789012345678901234567890, "s":"\\u0000 \\ud83d\\ude00 é" }'
    sent = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    [[parent]] = event_ids(store.log.append([[new_event()]]))
    event = NewEvent(
        departed.path,
        payload,
        key="k",
        digest=b"d",
        context='{"ip":"::1"}',
        version="2026-01-01",
        sent_at=sent,
        parent=parent,
    )
    before = datetime.now(UTC) - timedelta(seconds=5)
    [[event_id]] = event_ids(store.log.append([[event]]))
    stored = store.log.event(event_id)
    assert (stored.payload, stored.event_type, stored.key) == (payload, departed.path, "k")
    assert (stored.context, stored.version) == ('{"ip":"::1"}', "2026-01-01")
    assert (stored.sent_at, stored.parent) == (sent, parent)
    assert before < stored.received_at < datetime.now(UTC) + timedelta(seconds=5)


def test_ids_are_in_the_order_of_the_request(store: Store) -> None:
    ids = ingest_events(store, 5)
    assert [store.log.event(event_id).payload for event_id in ids] == [
        f'{{"n":{n}}}' for n in range(5)
    ]
    assert [event.id for event in store.log.newest(limit=3)] == ids[:-4:-1]


def test_an_id_of_another_store_is_unknown(store: Store) -> None:
    [mine] = ingest_events(store, 1)
    for wrong in ("evt_0000000000000000000f", "no id", mine[:-1], mine[:-1] + "9"):
        with pytest.raises(NotFound, match=r"in this store"):
            store.log.event(wrong)


def test_an_event_that_was_never_registered_is_rejected(store: Store) -> None:
    with pytest.raises(NotFound, match="register"):
        store.log.append([[NewEvent("airport/landed", "{}")]])
    assert not store.log.newest()


def test_one_key_is_one_event(store: Store) -> None:
    first, again, other = event_ids(
        store.log.append(
            [[new_event(1, key="a")], [new_event(1, key="a")], [new_event(2, key="b")]]
        )
    )
    later = store.log.append([[new_event(1, key="a"), new_event(3)]])[0]
    assert first == again != other
    assert isinstance(later, list)
    assert later[0] == first[0]
    assert len(store.log.newest()) == 3
    assert store.counts.of(FLIGHTS).awaiting == 3


def test_a_key_with_another_body_is_rejected_and_leaves_nothing(store: Store) -> None:
    store.log.append([[new_event(1, key="a")]])
    rejected, kept, reused = store.log.append(
        [
            [new_event(9, key="fresh"), new_event(2, key="a")],
            [new_event(3, key="c")],
            [new_event(4, key="c")],
        ]
    )
    assert isinstance(rejected, KeyReused)
    assert isinstance(reused, KeyReused)
    assert isinstance(kept, list)
    assert {event.payload for event in store.log.newest()} == {'{"n":1}', '{"n":3}'}
    # The rejected request's other key is still free.
    assert isinstance(store.log.append([[new_event(10, key="fresh")]])[0], list)


def test_a_key_belongs_to_its_event_type_and_place(store: Store) -> None:
    outcome = "warehouse/flights.discarded"
    store.log.append([[new_event(1, key="a")]])
    [ids] = store.log.append(
        [
            [
                NewEvent(outcome, "{}", key="a", digest=b"x"),
                NewEvent(departed.path, "{}", key="a", ordinal=1, digest=b"y"),
            ]
        ]
    )
    assert isinstance(ids, list)
    assert len(store.log.newest()) == 3


def test_a_request_may_have_more_keys_than_a_statement_has_parameters(store: Store) -> None:
    events = [new_event(n, key=f"k{n}") for n in range(40_000)]
    [first] = store.log.append([events])
    assert isinstance(first, list)
    assert len(set(first)) == 40_000
    assert store.log.append([events]) == [first]
    assert store.counts.of(FLIGHTS).awaiting == 40_000


def test_out_of_order_commits_lose_nothing(store: Store) -> None:
    """Many writers, and a loader that follows them: each event is claimed once."""
    writers, commits, seed = 6, 30, randomness.new_seed()
    kept: list[str] = []
    running = threading.Event()

    def write(number: int) -> None:
        chance = random.Random(seed + number)
        for _ in range(commits):
            kept.extend(ingest_events(store, chance.randint(1, 20)))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()

    def tell_the_end() -> None:
        for thread in threads:
            thread.join()
        running.set()

    threading.Thread(target=tell_the_end).start()
    token = take_over(store)
    loaded: list[str] = []
    while True:
        done = running.is_set()
        load = store.loads.claim(token, 50, 3)
        if load is not None:
            loaded += ids_of(load)
            store.loads.record(load, LoadVerdict())
        elif done:
            break
    assert sorted(loaded) == sorted(kept)
    assert len(set(loaded)) == len(loaded)


def test_an_ingest_that_begins_while_the_high_watermark_is_read_does_not_lower_it(
    postgres_url: str,
) -> None:
    with closing(open_store(postgres_url, upgrade=True)) as store:
        store.register(app)
        ingest_events(store, 3)
        with store.database.writing() as other, store.database.reading() as conn:
            ahead = "SELECT pg_advisory_xact_lock_shared('event_seq'::regclass::oid::int, {})"
            last = store.database.sequence(conn)
            other.exec_driver_sql(ahead.format(last + 5))
            assert store.database.high_watermark(conn) == last
            other.exec_driver_sql(ahead.format(last - 1))
            assert store.database.high_watermark(conn) == last - 1


def test_an_event_type_that_another_process_registered_is_read(
    store: Store, store_url: str
) -> None:
    cancelled = Source("tower").accept("cancelled")
    warehouse = Destination("warehouse")
    warehouse.event(receives=cancelled, name="flights")(lambda batch: None)
    with closing(open_store(store_url)) as newer:
        newer.register(Blacksmith(sources=[cancelled.source], destinations=[warehouse]))
        newer.log.append([[NewEvent(cancelled.path, "{}", [NewJob(FLIGHTS)])]])
        newer.maintain()
    load = claimed(store, take_over(store))
    assert [row.event_type for row in load.rows] == [cancelled.path]
    assert [event.event_type for event in store.log.newest()] == [cancelled.path]


def test_concurrent_keys_do_not_deadlock(store: Store) -> None:
    """Commits that bring the same keys in every order: each key makes one event."""
    seed = randomness.new_seed()
    results: list[list[str] | KeyReused] = []
    failures: list[Exception] = []

    def write(number: int) -> None:
        chance = random.Random(seed + number)
        for _ in range(20):
            requests = [[new_event(n, key=f"k{n}")] for n in range(30)]
            chance.shuffle(requests)
            try:
                results.extend(store.log.append(requests))
            except Exception as error:  # noqa: BLE001 - reported by the assertion below
                failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(store.log.newest(limit=1000)) == 30
    assert len({tuple(ids) for ids in results if isinstance(ids, list)}) == 30


def test_commits_that_race_for_new_keys_make_each_event_once(store: Store) -> None:
    """The second commit finds a key taken while it commits, and gets the first one's id."""
    rounds, writers = 20, 4
    together = threading.Barrier(writers, timeout=60)
    results: list[list[list[str] | KeyReused]] = []

    def write(number: int) -> None:
        chance = random.Random(number)
        for turn in range(rounds):
            keys = list(range(20))
            chance.shuffle(keys)
            together.wait()
            stored = store.log.append([[new_event(n, key=f"{turn}-{n}")] for n in keys])
            results.append([ids for _, ids in sorted(zip(keys, stored, strict=True))])

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    assert len(results) == rounds * writers
    assert len({repr(ids) for ids in results}) == rounds
    assert len(store.log.newest(limit=1000)) == rounds * 20


# ------------------------------------------------------------------------------------ starting


def test_two_starts_at_once_are_safe(new_store_url: str) -> None:
    failures: list[Exception] = []

    def start() -> None:
        try:
            opened = open_store(new_store_url, upgrade=True)
            opened.register(app)
            opened.close()
        except Exception as error:  # noqa: BLE001 - reported by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    store = open_store(new_store_url)
    store.register(app)
    ingest_events(store, 1)
    store.close()


def test_an_upgrade_takes_the_time_it_needs(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeouts of a store's session end neither the upgrade nor the process that waits for it."""
    short = re.sub(r"'\d+min'", "'200ms'", postgres._SESSION)
    assert short.count("200ms") == 3
    monkeypatch.setattr(postgres, "_SESSION", short)
    upgrade, under_way, most = schema.upgrade, 0, 0

    def slow(conn: Connection, label: str) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.4)
        conn.exec_driver_sql("SELECT pg_sleep(0.4)")
        conn.rollback()
        upgrade(conn, label)
        under_way -= 1

    monkeypatch.setattr(schema, "upgrade", slow)
    with ThreadPoolExecutor() as threads:
        starts = [threads.submit(open_store, postgres_url, upgrade=True) for _ in range(2)]
        for start in starts:
            start.result().close()
    assert most == 1


def test_postgres_wants_its_schema_to_be_upgraded_on_purpose(postgres_url: str) -> None:
    with pytest.raises(SchemaOutdated, match="blacksmith store upgrade"):
        open_store(postgres_url)


def test_store_from_older_schema_is_rejected(
    new_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filled store of the schema before this one says how to start again, and stays as it was."""
    script = f"{make_url(new_store_url).get_backend_name()}.sql"
    restore(new_store_url, (Path(__file__).parent / "older_store" / script).read_text())
    before = everything_in(new_store_url)
    assert "too late" in before
    says = (
        r"(?s)version 0001_initial .*nothing in it was changed.*set BLACKSMITH_STORE_URL to a new"
    )
    for upgrade in (False, True):
        with pytest.raises(SchemaOutdated, match=says):
            open_store(new_store_url, upgrade=upgrade)
    monkeypatch.setenv("BLACKSMITH_STORE_URL", new_store_url)
    result = CliRunner().invoke(main, ["store", "upgrade"])
    assert result.exit_code != 0
    assert re.search(says, re.sub(r"\s+", " ", result.output))
    assert everything_in(new_store_url) == before


def test_the_schema_is_what_the_tables_say(store: Store) -> None:
    """The newest version of the schema has the tables that the queries use."""
    options = {
        "include_name": lambda name, kind, _: kind != "table" or name in metadata.tables,
        "compare_type": False,  # SQLite reports other types than those declared
    }
    with store.database.engine.connect() as conn:
        context = MigrationContext.configure(conn, opts=options)
        assert compare_metadata(context, metadata) == []


def test_partitions_are_made_when_the_sequence_runs_past_them(postgres_url: str) -> None:
    store = open_store(postgres_url, upgrade=True)
    store.register(app)
    _set_sequence(postgres_url, 3 * 5_000_000 - 3)
    ingest_events(store, 2)
    ids = ingest_events(store, 10)
    assert [store.log.event(event_id).payload for event_id in ids] == [
        f'{{"n":{n}}}' for n in range(10)
    ]
    assert len(claimed(store, take_over(store)).rows) == 12
    store.close()


def test_closing_a_load_stays_in_its_page(postgres_url: str) -> None:
    """No index has a column that changes: HOT updates halve the cost of the history."""
    store = open_store(postgres_url, upgrade=True)
    store.register(app)
    token = take_over(store)
    for _ in range(20):
        ingest_events(store, 1)
        store.loads.record(claimed(store, token), LoadVerdict())
    store.close()
    engine = create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    updates = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'loads'"
    while True:
        with engine.connect() as conn:
            total, hot = conn.execute(text(updates)).one()
        if total == 20:
            break
    engine.dispose()
    assert hot == total


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("mysql://root@localhost/x", "unsupported store"),
        ("sqlite://", "needs a file"),
        ("nonsense", "cannot be read"),
    ],
)
def test_a_wrong_url_is_reported(url: str, rule: str) -> None:
    with pytest.raises(SettingsError, match=rule):
        open_store(url)


def test_git_ignores_a_folder_that_is_made_for_a_store(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "project" / ".blacksmith"):
        open_store(f"sqlite:///{folder}/store.db").close()
    assert (folder / ".gitignore").read_text() == "*\n"
    assert [path.name for path in tmp_path.rglob(".gitignore")] == [".gitignore"]


def test_a_store_is_not_named_by_the_folder_that_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=f"write sqlite:///{tmp_path}/data/store.db"):
        open_store("sqlite:///data/store.db")
    assert list(tmp_path.iterdir()) == []
    open_store(f"sqlite:///{tmp_path}/data/store.db").close()


@pytest.mark.parametrize(
    "login", ["me:s3cr@hunter2", "me:s3cr@hunter2:5432", "me:p@x:hunter2", "me:p@x/hunter2"]
)
def test_a_password_that_is_not_encoded_is_rejected_and_not_shown(login: str) -> None:
    with pytest.raises(SettingsError, match="percent-encode") as raised:
        open_store(f"postgresql://{login}@127.0.0.1:9/none")
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        open_store("postgresql://me:p%40x@127.0.0.1:9/none")


def test_an_unreachable_database_is_reported_without_its_password() -> None:
    with pytest.raises(Unavailable) as raised:
        open_store("postgresql://user:hunter2@127.0.0.1:9/none")
    assert "hunter2" not in str(raised.value)
    assert "127.0.0.1:9" in str(raised.value)


def test_a_standby_that_only_reads_does_not_respond(postgres_url: str) -> None:
    with closing(open_store(postgres_url, upgrade=True)) as store:
        store.register(app)
        with store.database.writing() as conn:
            database = conn.exec_driver_sql("SELECT current_database()").scalar_one()
            conn.exec_driver_sql(
                f'ALTER DATABASE "{database}" SET default_transaction_read_only = on'
            )
        keyed = new_event(key="k")
        store.database.engine.dispose()  # its next connections are read-only, as after a failover
        for ingest in (
            lambda: store.log.append([[new_event()]]),
            lambda: store.log.append([[keyed]]),
        ):
            with pytest.raises(Unavailable, match="read-only") as raised:
                ingest()
            assert not isinstance(raised.value, OutcomeUnknown)


def test_a_transaction_that_the_server_timed_out_means_unavailable(postgres_url: str) -> None:
    with closing(open_store(postgres_url, upgrade=True)) as store:

        def paused() -> None:
            with store.database.writing() as conn:
                pid = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
                conn.exec_driver_sql("SET idle_in_transaction_session_timeout = '50ms'")
                with store.database.reading() as other:
                    until(
                        lambda: (
                            other.exec_driver_sql(
                                f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"
                            ).scalar_one()
                            == 0
                        )
                    )
                conn.exec_driver_sql("SELECT 1")

        with pytest.raises(Unavailable, match="idle-in-transaction"):
            paused()
        assert store.log.append([]) == []


def test_sequence_that_went_back_is_refused(store: Store, store_url: str) -> None:
    ids = ingest_events(store, 10)
    _set_sequence(store_url, 3)
    with pytest.raises(SequenceWentBack, match="blacksmith store repair"):
        store.ready()
    with pytest.raises(SequenceWentBack):
        open_store(store_url)
    open_store(store_url, repair=True).close()
    store.ready()
    store.register(app)
    [new] = ingest_events(store, 1)
    assert new not in ids
    assert new[:12] != ids[0][:12], "a new epoch gives other ids"
    assert [store.log.event(event_id).payload for event_id in ids] == [
        f'{{"n":{n}}}' for n in range(10)
    ]


def test_a_sequence_below_the_numbers_of_loads_is_rejected(store: Store, store_url: str) -> None:
    """A restore that kept the loads and lost the newest events."""
    ingest_events(store, 10)
    token = take_over(store)
    store.loads.record(claimed(store, token), LoadVerdict())
    _execute(store_url, "DELETE FROM jobs", "DELETE FROM events")
    _set_sequence(store_url, 3)
    with pytest.raises(SequenceWentBack):
        store.ready()


def test_two_stores_in_one_database(postgres_url: str) -> None:
    """An ingest that hangs in one schema does not delay the loader of the other."""
    _execute(postgres_url, "CREATE SCHEMA one", "CREATE SCHEMA two")
    one, two = (
        open_store(f"{postgres_url}?options=-csearch_path%3D{schema}", upgrade=True)
        for schema in ("one", "two")
    )
    for store in (one, two):
        store.register(app)
    ingest_events(one, 3)
    engine = create_engine(f"postgresql+psycopg{postgres_url.removeprefix('postgresql')}")
    with engine.begin() as conn:
        conn.execute(text("SET search_path = one"))
        conn.execute(text("SELECT ingest('{1}','{x}',null,null,null,null,null,'{}','{}',null)"))
        ids = ingest_events(two, 3)
        assert ids_of(claimed(two, take_over(two))) == ids
        ingest_events(one, 3)
        assert len(claimed(one, take_over(one)).rows) == 3, "the events before the one that hangs"
    engine.dispose()
    one.close()
    two.close()


# ------------------------------------------------------------------------- counts and history


def test_counts_follow_every_state(store: Store) -> None:
    ingest_events(store, 10)
    token = take_over(store)
    load = claimed(store, token, limit=4)
    assert _states(store) == (6, 4, 0, 0, 0)
    failed = Deviation(load.rows[0].seq, JobResult.FAILED, "later", 3600.0)
    discarded = Deviation(load.rows[1].seq, JobResult.DISCARDED, "never")
    store.loads.record(load, LoadVerdict([failed, discarded]))
    assert _states(store) == (6, 0, 1, 2, 1)
    store.maintain()
    assert _states(store) == (6, 0, 1, 2, 1), (
        "the same before and after they are added to the totals"
    )
    ingest_events(store, 2)
    store.loads.record(claimed(store, token), LoadVerdict(raised="down", delay=3600.0))
    assert _states(store) == (0, 0, 9, 2, 1)
    assert store.counts.of(SEATS).pending == 0


def test_the_oldest_waiting_job_is_reported(store: Store) -> None:
    assert store.counts.of(FLIGHTS).oldest_waiting is None
    [event] = ingest_events(store, 1)
    assert store.counts.of(FLIGHTS).oldest_waiting == store.log.event(event).received_at
    store.loads.record(claimed(store, take_over(store)), LoadVerdict(raised="down", delay=3600.0))
    due = store.counts.of(FLIGHTS).oldest_waiting
    assert due is not None
    assert due > datetime.now(UTC) + timedelta(minutes=55)


def test_next_due(store: Store) -> None:
    assert store.counts.next_due(FLIGHTS) is None
    ingest_events(store, 1)
    assert store.counts.next_due(FLIGHTS) == 0
    token = take_over(store)
    store.loads.record(claimed(store, token), LoadVerdict(raised="down", delay=600.0))
    due = store.counts.next_due(FLIGHTS)
    assert due is not None
    assert 500 < due <= 600


def test_since_load(store: Store) -> None:
    assert store.counts.since_load(FLIGHTS, SEATS) is None
    ingest_events(store, 1)
    token = take_over(store)
    assert store.counts.since_load(FLIGHTS, SEATS) is None  # a lock is not a load
    load = claimed(store, token)
    until(lambda: (store.counts.since_load(FLIGHTS) or 0) > 0.2)  # from when it began
    store.loads.record(load, LoadVerdict())
    ended = store.counts.since_load(FLIGHTS, SEATS)
    assert ended is not None
    assert 0 <= ended < 0.2
    assert store.counts.since_load(SEATS) is None
    until(lambda: (store.counts.since_load(SEATS, FLIGHTS) or 0) > 0.2)


def test_totals_per_day_are_counted_once(store: Store) -> None:
    today = datetime.now(UTC).date()
    ingest_events(store, 3)
    store.maintain()
    ingest_events(store, 4)
    store.maintain()
    store.maintain()
    assert [tuple(count) for count in store.counts.days(today)] == [(departed.path, today, 7)]
    assert not store.counts.days(today + timedelta(days=1))


def test_a_window_holds_what_was_received_in_it(store: Store) -> None:
    ingest_events(store, 3)
    start = datetime.now(UTC) - timedelta(seconds=10)
    store.maintain()
    ids = ingest_events(store, 3)
    window = store.log.window(start, datetime.now(UTC))
    seqs = [store.log.event(event_id).seq for event_id in ids]
    assert all(window.after < seq <= window.upto for seq in seqs)
    # By that row of the time index, the first three are older.
    later = store.log.window(datetime.now(UTC), datetime.now(UTC) + timedelta(hours=1))
    assert later.after == seqs[0] - 1


def test_the_history_of_a_job_is_whole(store: Store) -> None:
    """Failed by itself, then with its group, then lost, then loaded: each with its load and run."""
    [event, _] = ingest_events(store, 2)
    token = take_over(store)
    load = store.loads.claim(token, 10, 5, run="run-1")
    assert load is not None
    store.loads.record(
        load, LoadVerdict([Deviation(load.rows[0].seq, JobResult.FAILED, "no gate", 0.0)])
    )
    load = store.loads.claim(token, 10, 5, run="run-2")
    assert load is not None
    store.loads.record(load, LoadVerdict(raised="down", delay=0.0))
    store.loads.claim(token, 10, 5, run="run-3")
    token = take_over(store, "another")
    load = store.loads.claim(token, 10, 5, run="run-4")
    assert load is not None
    waiting = store.history.transitions(event)
    store.loads.record(load, LoadVerdict())
    history = store.history.transitions(event)
    assert [(step.state, step.attempt, step.run, step.error) for step in history] == [
        ("acknowledged", 0, None, None),
        ("awaiting", 0, None, None),
        ("executing", 1, "run-1", None),
        ("failed", 1, "run-1", "no gate"),
        ("executing", 2, "run-2", None),
        ("failed", 2, "run-2", "down"),
        ("executing", 3, "run-3", None),
        ("unknown", 3, "run-3", "its loader was lost"),
        ("executing", 3, "run-4", None),
        ("succeeded", 3, "run-4", None),
    ]
    assert waiting == history[:-1]
    assert all(one.at <= two.at for one, two in pairwise(history))


def test_a_failed_job_reports_when_it_is_due_again(store: Store) -> None:
    [event] = ingest_events(store, 1)
    store.loads.record(claimed(store, take_over(store)), LoadVerdict(raised="down", delay=600.0))
    last = store.history.transitions(event)[-1]
    assert last.state == "failed"
    assert last.due_at is not None
    assert abs((last.due_at - last.at).total_seconds() - 600) < 1
    [job] = store.history.jobs("retrying")
    assert (job.event_id, job.attempts, job.error, job.due_at) == (event, 1, "down", last.due_at)


def test_jobs_are_listed_by_state(store: Store) -> None:
    ids = ingest_events(store, 6)
    token = take_over(store)
    load = claimed(store, token, limit=3)
    store.loads.record(
        load,
        LoadVerdict(
            [
                Deviation(load.rows[0].seq, JobResult.DISCARDED, "never"),
                Deviation(load.rows[1].seq, JobResult.FAILED, "later", 3600.0),
            ]
        ),
    )
    claimed(store, token, limit=2)
    listed = {
        state: [(job.event_id, job.error) for job in store.history.jobs(state, FLIGHTS)]
        for state in ("discarded", "retrying", "executing", "awaiting")
    }
    assert listed == {
        "discarded": [(ids[0], "never")],
        "retrying": [(ids[1], "later")],
        "executing": [(ids[3], None), (ids[4], None)],
        "awaiting": [(ids[5], None)],
    }
    assert len(store.history.jobs("awaiting", limit=0)) == 0


# ------------------------------------------------------------------------------------ renaming


def test_a_renamed_destination_event_keeps_its_jobs(store: Store) -> None:
    ids = ingest_events(store, 2)
    renamed = Destination("warehouse")

    @renamed.event(receives=departed, renamed_from="flights")
    def departures(batch: Batch[object]) -> None:
        """Departures."""

    source = Source("airport")
    source._add(departed)
    new = Blacksmith(sources=[source], destinations=[renamed])
    store.register(new)
    store.register(new)
    assert ids_of(claimed(store, take_over(store, to="warehouse/departures"))) == ids
    with pytest.raises(NotFound, match="warehouse/departures"):
        store.counts.of(FLIGHTS)


def test_a_name_that_is_known_takes_over_no_jobs_which_are_orphans_then(store: Store) -> None:
    """Another process may know the id of the new name, and store jobs under it."""
    [late] = ingest_events(store, 1, to=(SEATS,))
    ingest_events(store, 1)
    renamed = Destination("warehouse")

    @renamed.event(receives=departed, name="seats", renamed_from="flights")
    def seats(batch: Batch[object]) -> None:
        """Seats, and once departures."""

    source = Source("airport")
    source._add(departed)
    new = Blacksmith(sources=[source], destinations=[renamed])
    store.register(new)
    assert ids_of(claimed(store, take_over(store, to=SEATS))) == [late]
    assert [tuple(orphan) for orphan in store.counts.orphans(new)] == [(FLIGHTS, 1)]


def test_the_outcomes_of_a_renamed_destination_event_are_still_received(store: Store) -> None:
    undeliverable = "warehouse/undeliverable"
    outcome = NewEvent(f"{FLIGHTS}.discarded", "1", [NewJob(undeliverable)])
    store.log.append([[outcome]])
    renamed = Destination("warehouse")

    @renamed.event(receives=departed, renamed_from="flights")
    def departures(batch: Batch[object]) -> None:
        """Departures."""

    @renamed.event(receives=departures.discarded, name="undeliverable")
    def received(batch: Batch[object]) -> None:
        """What departures discarded."""

    source = Source("airport")
    source._add(departed)
    new = Blacksmith(sources=[source], destinations=[renamed])
    for _ in range(2):
        store.register(new)
        assert store.log.newest(departures.discarded.path)
    load = claimed(store, take_over(store, to=undeliverable))
    assert [row.event_type for row in load.rows] == [departures.discarded.path]
    assert load.rows[0].event_type in received.flows


def test_what_is_no_longer_declared_waits_as_an_orphan_until_it_is_retired(store: Store) -> None:
    ingest_events(store, 3, to=(SEATS,))
    token = take_over(store, to=SEATS)
    store.loads.record(claimed(store, token, limit=1), LoadVerdict(raised="down", delay=3600.0))
    less = Blacksmith(sources=[], destinations=[])
    assert [tuple(orphan) for orphan in store.counts.orphans(less)] == [(SEATS, 3)]
    assert store.counts.orphans(app) == []
    token = take_over(store, to=SEATS)
    discarded = 0
    while load := store.loads.claim_for_discard(token, "retired", 2):
        assert load.discard_reason == "retired"
        store.loads.record(
            load,
            LoadVerdict([Deviation(row.seq, JobResult.DISCARDED, "retired") for row in load.rows]),
        )
        discarded += len(load.rows)
    assert discarded == 3
    assert store.counts.orphans(less) == []
    assert store.counts.of(SEATS).discarded == 3


def _states(store: Store) -> tuple[int, int, int, int, int]:
    counts = store.counts.of(FLIGHTS)
    return (
        counts.awaiting,
        counts.executing,
        counts.retrying,
        counts.succeeded,
        counts.discarded,
    )


def _execute(store_url: str, *statements: str) -> None:
    engine = create_engine(store_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as conn:
        for statement in statements:
            conn.execute(text(statement))
    engine.dispose()


def _set_sequence(store_url: str, seq: int) -> None:
    if store_url.startswith("sqlite"):
        _execute(store_url, f"UPDATE sqlite_sequence SET seq = {seq} WHERE name = 'events'")
    else:
        _execute(store_url, f"SELECT setval('event_seq', {seq})")
