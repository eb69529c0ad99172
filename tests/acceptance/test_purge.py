"""Purges during loads and replays, killed and resumed, and the errors about purged events."""

import contextlib
import gzip
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import delete, select

from blacksmith_dagster.cli import main
from blacksmith_dagster.errors import Gone
from blacksmith_dagster.scheduler import StandardScheduler
from blacksmith_dagster.scheduler import purge as purging
from blacksmith_dagster.scheduler.replay import forecast, replay
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import (
    ArchivedEvent,
    Lane,
    LoadVerdict,
    NewEvent,
    NewJob,
    ReplayMode,
    ReplayRequest,
)
from blacksmith_dagster.store.tables import events, leases, time_index
from blacksmith_dagster.supervisor import StoreSupervisor
from tests.support import randomness
from tests.support.ingesting import accept
from tests.support.pipelines.loading import (
    FLIGHTS,
    HURRIED,
    RECORDING,
    REPORTED,
    Recording,
    blacksmith,
    departed,
)
from tests.support.processes.blacksmith import BlacksmithProcess
from tests.support.processes.loading_process import LoaderProcess, keep_running, opened
from tests.support.waiting import until

APP = "--app=tests.support.pipelines.loading:blacksmith"
FLIGHTS_EVENT = blacksmith.destination_events[FLIGHTS]
ALL = (ReplayMode.ALL,)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with opened(store_url) as store:
        yield store


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    monkeypatch.setenv(RECORDING, str(tmp_path))
    with contextlib.closing(Recording(tmp_path)) as recording:
        yield recording


@pytest.fixture
def settings(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("BLACKSMITH_STORE_URL", store_url)


def index_time(store: Store) -> None:
    """Add a row to the time index, as the gateway does once a minute."""
    with store.database.writing() as conn:
        low, now = store.database.high_watermark(conn), store.database.now(conn)
        conn.execute(
            time_index.insert(), {"at": now, "low": low, "high": store.database.sequence(conn)}
        )


def grow_old(store: Store) -> None:
    """Make all events in the store expire."""
    index_time(store)
    time.sleep(1.1)  # `discarded_retention`, the longer retention


def unlock(store: Store) -> None:
    """Release the lock of a killed purge now instead of after 15 seconds."""
    with store.database.writing() as conn:
        conn.execute(delete(leases).where(leases.c.key == "purge"))


def command(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def left(store: Store) -> set[str]:
    """The ids of the events in the store."""
    with store.database.reading() as conn:
        return set(store.database.epochs.ids_of(conn.execute(select(events.c.seq)).scalars()))


# ------------------------------------------------------------------------------------ faults


class Beside:
    """Activities beside purges, each in its own thread, until `end`."""

    def __init__(self, store: Store, chance: random.Random) -> None:
        self._store = store
        self._chance = chance
        self._over = threading.Event()
        self.accepted: dict[str, str] = {}  # what each event's job does, by event id
        self.replayed = self.refused = 0
        self.failures: list[Exception] = []
        self._threads = [
            threading.Thread(target=self._repeat, args=(what, pause))
            for what, pause in ((self._send, 0.05), (self._index_time, 0.1), (self._replay, 0.1))
        ]
        for thread in self._threads:
            thread.start()

    def _repeat(self, what: Callable[[], None], pause: float) -> None:
        while not self._over.wait(pause):
            try:
                what()
            except Exception as error:  # noqa: BLE001 - raised by the test
                self.failures.append(error)
                return

    def _send(self) -> None:
        todo = self._chance.choices(["load", "fail", "discard"], [90, 5, 5], k=20)
        data = [{"n": n, "do": do, "times": 1} for n, do in enumerate(todo)]
        data = [{"n": 0, "do": "discard"} if item["do"] == "discard" else item for item in data]
        ids = accept(self._store, data)
        self.accepted |= dict(zip(ids, todo, strict=True))

    def _index_time(self) -> None:
        index_time(self._store)

    def _replay(self) -> None:
        """Replay windows, half of which begin before events that may have been purged."""
        now = datetime.now(UTC)
        ago = self._chance.choice([0.3, 5.0])
        request = ReplayRequest(now - timedelta(seconds=ago), now, ALL)
        with contextlib.closing(StoreSupervisor(self._store.database)) as supervisor:
            try:
                replay(
                    blacksmith,
                    FLIGHTS_EVENT,
                    request,
                    StandardScheduler(),
                    store=self._store,
                    supervisor=supervisor,
                )
                self.replayed += 1
            except Gone:
                self.refused += 1

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        assert not self.failures


def test_purge_during_loads_and_replays(store: Store, store_url: str, recording: Recording) -> None:
    """Purges and a loader are killed repeatedly: only settled events are purged, each counted once."""
    chance = randomness.seeded()
    purge = BlacksmithProcess(["purge", APP], store_url)
    with LoaderProcess(store_url, recording.folder, FLIGHTS, REPORTED) as loader:
        beside = Beside(store, random.Random(chance.randrange(2**32)))
        ends = time.monotonic() + 8
        purges = 0
        while time.monotonic() < ends or not (purges and beside.replayed and beside.refused):
            assert not beside.failures
            assert time.monotonic() < ends + 60, (purges, beside.replayed, beside.refused)
            purge.start()
            assert purge.process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                purge.process.wait(chance.uniform(0.8, 6.0))
            purges += purge.process.poll() == 0
            purge.kill()
            unlock(store)
            if chance.random() < 0.3:
                loader.kill()
                loader.start_again_if_ended()
        beside.end()
        keep_running([loader], store, [FLIGHTS, REPORTED])
    accepted, remaining = beside.accepted, left(store)
    discarded = {event for event, do in accepted.items() if do == "discard"}
    loaded = set(recording.loaded())
    print(
        f"{len(accepted)} events, {len(accepted.keys() - remaining)} purged, {beside.replayed} replays"
    )
    assert loaded == accepted.keys() - discarded
    assert 0 < len(accepted.keys() - remaining) < len(accepted)
    assert len(recording.loaded(REPORTED)) >= len(discarded), (
        "a parent was purged before its outcome"
    )
    for event in sorted(remaining & accepted.keys())[:50]:
        end = [entry for entry in store.history.transitions(event) if entry.destination == FLIGHTS][
            -1
        ]
        assert end.state == ("discarded" if event in discarded else "succeeded")
    grow_old(store)
    list(store.log.purge(blacksmith.retention()))
    assert not left(store)
    counts = store.counts.of(FLIGHTS)
    assert (counts.pending, counts.discarded) == (0, 0)
    assert counts.succeeded == len(accepted) - len(discarded)
    store.ready()


def test_purge_killed_and_resumed(store: Store, store_url: str, tmp_path: Path) -> None:
    """SIGKILL as soon as it has removed something: no event is purged that is not archived."""
    new = NewEvent(departed.path, "{}", [NewJob(FLIGHTS)])
    ids: set[str] = set()
    for _ in range(30):
        [made] = store.log.append([[new] * 1000])
        assert isinstance(made, list)
        ids |= set(made)
    token = store.loads.take_over(FLIGHTS, Lane.LOAD, "loader", lambda: True)
    while load := store.loads.claim(token, 5000, 3):
        store.loads.record(load, LoadVerdict())
    grow_old(store)
    folder = tmp_path / "archive"
    process = BlacksmithProcess(["purge", APP, f"--archive={folder}"], store_url)
    with process:
        until(lambda: len(left(store)) < len(ids), 60, process.log)
        process.kill()
    remaining = left(store)
    assert 0 < len(remaining) < len(ids), "it was killed in the middle"
    assert remaining | archived(folder) == ids
    unlock(store)
    with process:
        assert process.process is not None
        assert process.process.wait(60) == 0, process.log
    assert not left(store)
    assert archived(folder) == ids
    assert store.counts.of(FLIGHTS).succeeded == len(ids)


def archived(folder: Path) -> set[str]:
    """The ids of the events in an archive."""
    ids: set[str] = set()
    for path in folder.glob("*.jsonl.gz"):
        with gzip.open(path, "rb") as lines:
            ids |= {msgspec.json.decode(line, type=ArchivedEvent).id for line in lines}
    return ids


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.usefixtures("settings")
def test_purged_window_is_refused(store: Store) -> None:
    """By every function that reads it; the error names the oldest date that is kept."""
    before = datetime.now(UTC)
    [event] = accept(store, [{"n": 1, "hurry": True}])
    token = store.loads.take_over(HURRIED, Lane.LOAD, "loader", lambda: True)
    while load := store.loads.claim(token, 10, 3):
        store.loads.record(load, LoadVerdict())
    grow_old(store)
    command("purge", APP)
    error = command("events", "show", event, code=1).stderr
    [since] = re.findall(r"keeps airport/departed.* since (\S+)", error)
    oldest_kept = datetime.fromisoformat(since)
    assert before < oldest_kept < datetime.now(UTC) - timedelta(seconds=1)
    for dry_run in ([], ["--dry-run"]):
        window = ("--from", before.isoformat(), "--to", datetime.now(UTC).isoformat())
        refused = command("replay", FLIGHTS, APP, *window, *dry_run, code=1)
        assert f"begin with {since}" in refused.stderr
    purged_window = ReplayRequest(before, datetime.now(UTC))
    kept_window = ReplayRequest(oldest_kept, datetime.now(UTC))
    with contextlib.closing(StoreSupervisor(store.database)) as supervisor:
        locks: dict[str, Any] = {
            "scheduler": StandardScheduler(),
            "store": store,
            "supervisor": supervisor,
        }
        for ask in (
            lambda: replay(blacksmith, FLIGHTS_EVENT, purged_window, **locks),
            lambda: forecast(blacksmith, FLIGHTS_EVENT, purged_window, store=store),
        ):
            with pytest.raises(Gone, match=f"begin with {re.escape(since)}"):
                ask()
        assert replay(blacksmith, FLIGHTS_EVENT, kept_window, **locks).loads == 0
    assert forecast(blacksmith, FLIGHTS_EVENT, kept_window, store=store).jobs == 0
    assert store.replays.newest(FLIGHTS)[0].request == kept_window, (
        "the refused replay has not begun"
    )


# ------------------------------------------------------------------------------------ the command


@pytest.mark.usefixtures("settings")
def test_a_dry_run_reports_what_would_be_purged_and_changes_nothing(
    store: Store, tmp_path: Path
) -> None:
    ids = accept(store, [{"n": n, "hurry": False} for n in range(3)])
    token = store.loads.take_over(FLIGHTS, Lane.LOAD, "loader", lambda: True)
    load = store.loads.claim(token, 2, 3)
    assert load
    store.loads.record(load, LoadVerdict())
    grow_old(store)
    head, row, *_ = command("purge", APP, "--dry-run").stdout.splitlines()
    assert head.split("  ")[0] == "event"
    assert (row.split()[0], row.split()[-2:]) == ("airport/departed", ["2", "1"])
    shown = msgspec.json.decode(command("purge", APP, "--dry-run", "--json").stdout)
    [found] = [item for item in shown["events"] if item[0] == "airport/departed"]
    assert set(shown["quarantine"].values()) <= {0}
    assert found[2:] == [2, 1]
    assert left(store) == set(ids)
    lines = command("purge", APP, f"--archive={tmp_path}/archive").stdout.splitlines()
    assert lines[0] == "2 events deleted, 0 partitions dropped"
    assert lines[1].startswith(f"archived in 1 files, the last {tmp_path}/archive/{ids[0]}")
    assert left(store) == {ids[2]}
    output = msgspec.json.decode(command("purge", APP, "--json").stdout)
    assert (output["events"], output["skipped"], output["stopped"]) == (0, None, False)


@pytest.mark.usefixtures("settings")
def test_a_purge_beside_another_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purging, "_WAIT", 0.1)
    with contextlib.closing(StoreSupervisor(store.database)) as supervisor:
        lease = supervisor.acquire("purge", "another")
        assert lease
        with lease:
            assert "held by another" in command("purge", APP, code=1).stderr


@pytest.mark.usefixtures("settings", "store")
def test_a_purge_without_retention_says_how_to_set_it() -> None:
    result = command("purge", "--app=tests.acceptance.test_cli:blacksmith", code=1)
    assert "retention='30d'" in result.stderr
