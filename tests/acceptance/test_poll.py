"""What a poll stores, and what remains of one that fails, is killed or runs beside another."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance
from sqlalchemy import delete

from blacksmith_dagster import (
    Batch,
    Blacksmith,
    Cron,
    Destination,
    Event,
    Flow,
    Poll,
    Reject,
    Reply,
    Source,
)
from blacksmith_dagster.errors import CursorMoved, FencedOut, TooLarge, UsageError
from blacksmith_dagster.ingest import poll as polls
from blacksmith_dagster.ingest.poll import Polled, poll
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import Cursor
from blacksmith_dagster.store.tables import leases
from blacksmith_dagster.supervisor import Lease, StoreSupervisor, Supervisor
from tests.support.dagster_home import make_home
from tests.support.pipelines import cron as cron_pipeline
from tests.support.processes.blacksmith import ROOT_FOLDER

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
READER = "cron/tower/seen"


class Tower:
    """Source `tower`, whose event `seen` is polled by the test's function; each of its events makes a
    job of `lake/all`, and of `lake/large` if it is above 100."""

    def __init__(self, store_url: str) -> None:
        self.store = open_store(store_url, upgrade=True)
        self.supervisor: Supervisor = StoreSupervisor(self.store.database)
        self.function: Callable[[Poll], Any] = lambda poll: []
        self.notified: list[set[str]] = []
        tower, lake = Source("tower"), Destination("lake")
        self.part = tower.child("part")

        @tower.event(Cron())
        def seen(poll: Poll) -> Iterable[Event[Any]]:
            return self.function(poll)  # type: ignore[no-any-return]

        @lake.event(receives=seen)
        def everything(batch: Batch[Any]) -> None: ...

        @lake.event(receives=Flow(seen, when=lambda event: event.data > 100))
        def large(batch: Batch[Any]) -> None: ...

        self.seen = seen
        self.app = Blacksmith(sources=[tower], destinations=[lake])
        self.store.register(self.app)

    def poll(self, function: Callable[[Poll], Any]) -> Polled:
        self.function = function
        return poll(
            self.app,
            self.seen,
            store=self.store,
            supervisor=self.supervisor,
            at=AT,
            holder="the test",
            notify=lambda paths: self.notified.append(set(paths)),
        )

    def kept(self) -> list[str]:
        return [event.payload for event in reversed(self.store.log.newest("tower/seen"))]

    def close(self) -> None:
        self.supervisor.close()
        self.store.close()


@pytest.fixture
def tower(store_url: str) -> Iterator[Tower]:
    with contextlib.closing(Tower(store_url)) as tower:
        yield tower


def one(poll: Poll) -> Event[int]:
    return Event(1)


def many(poll: Poll) -> list[Event[int]]:
    return [Event(1), Event(2), Event(3)]


def none(poll: Poll) -> list[Event[int]]:
    return []


def yields(poll: Poll) -> Iterator[Event[int]]:
    yield from many(poll)


def yields_nothing(poll: Poll) -> Iterator[Event[int]]:
    yield from ()


@pytest.mark.parametrize(
    ("function", "events"),
    [(one, 1), (many, 3), (none, 0), (yields, 3), (yields_nothing, 0)],
    ids=lambda function: getattr(function, "__name__", None),
)
def test_a_function_returns_or_yields_one_event_many_or_none(
    tower: Tower, function: Callable[[Poll], Any], events: int
) -> None:
    assert tower.poll(function) == Polled(events)
    assert tower.kept() == ["1", "2", "3"][:events]
    assert tower.store.log.cursor(READER) is None  # it has none


def test_a_function_learns_when_the_poll_was_due(tower: Tower) -> None:
    tower.poll(lambda poll: Event(poll.at.isoformat()))
    assert tower.kept() == ['"2026-11-24T12:00:00+00:00"']


@pytest.mark.parametrize("cursor", [7, "page-2", {"next": ["a", None, 1.5]}, [], False])
def test_a_cursor_comes_back_as_it_was_set(tower: Tower, cursor: Any) -> None:
    def sets(poll: Poll) -> list[Event[int]]:
        assert poll.cursor is None
        poll.cursor = cursor
        return []

    def finds(poll: Poll) -> Event[int]:
        assert poll.cursor == cursor
        poll.cursor = None
        return Event(1)

    tower.poll(sets)
    tower.poll(finds)
    assert tower.poll(lambda poll: Event(poll.cursor)).events == 1
    assert tower.kept() == ["1", "null"]


def test_what_a_generator_sets_at_its_end_counts(tower: Tower) -> None:
    def counts(poll: Poll) -> Iterator[Event[int]]:
        for number in range(3):
            poll.cursor = number
            yield Event(number)
        poll.cursor = "end"

    tower.poll(counts)
    assert tower.store.log.cursor(READER) == '"end"'


@pytest.mark.parametrize("error", [ConnectionError("silent"), Reject("not today")], ids=str)
def test_a_function_that_raises_leaves_everything_as_it_was(tower: Tower, error: Exception) -> None:
    def breaks(poll: Poll) -> Iterator[Event[int]]:
        yield Event(1)
        poll.cursor = 2
        raise error

    def sets(poll: Poll) -> list[Event[int]]:
        poll.cursor = 1
        return []

    tower.poll(sets)
    with pytest.raises(type(error)):
        tower.poll(breaks)
    assert tower.kept() == []
    assert tower.store.quarantine.oldest() == []
    assert tower.store.log.cursor(READER) == "1"
    assert tower.poll(lambda poll: Event(poll.cursor)).events == 1  # the lock is free again


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda poll: None, "NoneType"),
        (lambda poll: {"data": 1}, "dict"),
        (lambda poll: "an event", "str"),
        (lambda poll: [Event(1), {"data": 2}], "dict"),
        (lambda poll: Reply(), "Reply"),
    ],
    ids=["None", "dict", "str", "list_of_dict", "Reply"],
)
def test_what_is_no_event_reports_what_to_return(
    tower: Tower, function: Callable[[Poll], Any], named: str
) -> None:
    with pytest.raises(TypeError) as refused:
        tower.poll(function)
    assert str(refused.value) == (
        f"tower/seen gave a {named}; it must return an Event or a list of them, or yield them; an empty "
        "list if there is nothing new"
    )
    assert tower.kept() == []


def test_a_cursor_that_is_no_json_is_refused(tower: Tower) -> None:
    def sets(poll: Poll) -> Event[int]:
        poll.cursor = object()
        return Event(1)

    with pytest.raises(
        UsageError, match=r"^tower/seen has set poll\.cursor to what JSON cannot hold"
    ):
        tower.poll(sets)
    assert tower.kept() == []


def test_a_poll_is_committed_whole_or_refused(
    tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polls, "REQUEST_EVENTS", 2)
    with pytest.raises(TooLarge, match="more than 2 events, which are committed together; return"):
        tower.poll(many)
    assert tower.kept() == []


def test_an_event_that_cannot_be_kept_is_quarantined_with_the_cursor(tower: Tower) -> None:
    def function(poll: Poll) -> Iterator[Event[Any]]:
        yield Event(1, key="same")
        yield Event({"what": {1, object()}})
        yield Event(2, key="same")
        yield Event(3)
        poll.cursor = "read"

    assert tower.poll(function) == Polled(events=2, quarantined=2)
    assert tower.kept() == ["1", "3"]
    errors = {raw.error.split(":")[0] for raw in tower.store.quarantine.oldest("tower/seen")}
    assert errors == {"Unprocessable", "KeyReused"}
    assert tower.store.log.cursor(READER) == '"read"'
    assert tower.poll(lambda poll: Event(2, key="same")) == Polled(quarantined=1)
    bodies = [
        tower.store.quarantine.get(raw.id).body
        for raw in tower.store.quarantine.oldest("tower/seen")
    ]
    assert bodies.count(b"2") == 1  # the same body again is not stored twice


def test_children_and_jobs_come_with_their_event(tower: Tower) -> None:
    assert (
        tower.poll(lambda poll: [Event(7, children=[tower.part.of("x")]), Event(200)]).events == 3
    )
    (part,) = tower.store.log.newest("tower/part")
    parents = {event.id: event.payload for event in tower.store.log.newest("tower/seen")}
    assert parents[part.parent or ""] == "7"
    assert tower.store.counts.of("lake/everything").awaiting == 2
    assert tower.store.counts.of("lake/large").awaiting == 1
    assert tower.notified == [{"lake/everything", "lake/large"}]


def test_a_known_key_makes_no_second_event(tower: Tower) -> None:
    for _ in range(2):
        assert tower.poll(lambda poll: Event(1, key="k")) == Polled(1)
    assert tower.kept() == ["1"]


# ------------------------------------------------------------------------------------- two of them


def test_a_poll_beside_another_is_skipped_and_says_who_polls(tower: Tower) -> None:
    skipped = []

    def beside(poll: Poll) -> Event[int]:
        skipped.append(tower.poll(one).skipped)
        return Event(2)

    tower.poll(beside)
    assert str(skipped[0]).startswith("tower/seen is polled by the test")
    assert tower.kept() == ["2"]


def test_a_poll_that_was_overtaken_keeps_nothing(tower: Tower) -> None:
    def overtaken(poll: Poll) -> Event[int]:
        poll.cursor = 5
        assert tower.store.log.append([], cursors=[Cursor(READER, None, "6")]) == []
        return Event(1)

    with pytest.raises(CursorMoved, match="tower/seen was polled by another process meanwhile"):
        tower.poll(overtaken)
    assert tower.kept() == []
    assert tower.store.log.cursor(READER) == "6"


def test_a_poll_that_has_lost_its_lock_keeps_nothing(
    tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, held = tower.supervisor.acquire, []

    def remembered(key: str, holder: str) -> Lease | None:
        held.append(acquire(key, holder))
        return held[-1]

    def loses(poll: Poll) -> Event[int]:
        with tower.store.database.writing() as conn:
            conn.execute(delete(leases))
        assert held[-1]
        assert held[-1].lost.wait(30)
        return Event(1)

    monkeypatch.setattr(tower.supervisor, "acquire", remembered)
    with pytest.raises(FencedOut, match=r"^the lock of tower/seen was lost .*; nothing was stored"):
        tower.poll(loses)
    assert tower.kept() == []


# ------------------------------------------------------------------------------------- killed


@contextlib.contextmanager
def opened(store_url: str) -> Iterator[Store]:
    with contextlib.closing(open_store(store_url, upgrade=True)) as store:
        store.register(cron_pipeline.blacksmith)
        yield store


class Runs:
    """Runs of `poll_tower__seen`, each in its own process."""

    def __init__(self, store_url: str, home: Path) -> None:
        self.home = home
        self.origin, self.kill = home / "origin", home / "kill"
        self.origin.touch()
        make_home(home)
        self._env = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "BLACKSMITH_HOME": str(home),
            "BLACKSMITH_STORE_URL": store_url,
            cron_pipeline.ORIGIN: str(self.origin),
            cron_pipeline.KILL: str(self.kill),
        }

    def see(self, first: int, last: int) -> None:
        """Add lines to the polled file."""
        with self.origin.open("a") as file:
            file.writelines(f"{number}\n" for number in range(first, last + 1))

    def run(self) -> int:
        """Execute the job; the exit code."""
        what = ["job", "execute", "-m", cron_pipeline.__name__, "-j", "poll_tower__seen"]
        log = self.home / "log"
        with log.open("ab") as out:
            done = subprocess.run(
                [sys.executable, "-m", "dagster", *what],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._env,
                cwd=ROOT_FOLDER,
                timeout=120,
                check=False,
            )
        assert done.returncode in (0, -signal.SIGKILL), log.read_text()[-5000:]
        return done.returncode


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("place", ["in the function", "before the commit", "after the commit"])
def test_cron_run_killed_keeps_the_cursor(place: str, store_url: str, tmp_path: Path) -> None:
    runs = Runs(store_url, tmp_path)
    with opened(store_url) as store:
        runs.see(1, 5)
        assert runs.run() == 0
        assert store.log.cursor(READER) == "5"
        runs.see(6, 10)
        runs.kill.write_text(place)
        assert runs.run() == -signal.SIGKILL
        stored = 10 if place == "after the commit" else 5
        assert store.log.cursor(READER) == str(stored)
        assert len(store.log.newest("tower/seen")) == stored
        with store.database.writing() as conn:  # as if its lease had ended
            assert conn.execute(delete(leases)).rowcount == 1
        runs.see(11, 12)
        assert runs.run() == 0
        assert store.log.cursor(READER) == "12"
        seen = [event.payload for event in reversed(store.log.newest("tower/seen"))]
        assert seen == [f'"{number}"' for number in range(1, 13)]  # nothing lost, nothing twice
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert len(instance.get_runs()) == 3
