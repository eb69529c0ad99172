"""Cron events in Dagster: what launches a poll, what its run reports, and what a failure does."""

import contextlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from dagster import (
    AssetObservation,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    ExecuteInProcessResult,
    RunsFilter,
    ScheduleDefinition,
    SensorDefinition,
    build_schedule_context,
    build_sensor_context,
)
from dagster._serdes import serialize_value

from blacksmith_dagster import Blacksmith, Cron, Event, Poll, Secret
from blacksmith_dagster.orchestration import polls, schedules
from blacksmith_dagster.orchestration.polls import DUE_TAG
from blacksmith_dagster.pubsub import open_pubsub
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.supervisor import open_supervisor
from tests.support.pipelines import clockwork
from tests.support.polling import Polling, payloads
from tests.support.scheduling import scheduler

JOB = "poll_tower__seen"
AT = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polls, "retry_delay", lambda retry: 0.0)


def metadata(result: ExecuteInProcessResult) -> dict[str, Any]:
    """The metadata that the op of a run has reported."""
    (handled,) = [event for event in result.all_events if event.is_successful_output]
    return {name: value.value for name, value in handled.step_output_data.metadata.items()}


def failure(result: ExecuteInProcessResult) -> str:
    """The error that a run has failed with."""
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert failed.step_failure_data.error
    return failed.step_failure_data.error.message


# ------------------------------------------------------------------------------------- runs


def test_a_run_reports_what_it_received(store_url: str, instance: DagsterInstance) -> None:
    polling = Polling(store_url)
    with contextlib.closing(polling.open()) as store:
        polling.origin += [1, 2, 3]
        result = polling.run(instance)
        assert metadata(result) == {"events_received": 3, "events_quarantined": 0}
        (observed,) = [
            event.asset_observation_data.asset_observation
            for event in result.all_events
            if event.event_type is DagsterEventType.ASSET_OBSERVATION
        ]
        assert isinstance(observed, AssetObservation)
        assert observed.asset_key.to_user_string() == "tower/seen"
        assert observed.metadata["events_received"].value == 3
        assert payloads(store) == ["1", "2", "3"]
        assert store.counts.of("lake/sightings").awaiting == 3


def test_each_run_continues_from_the_cursor(store_url: str, instance: DagsterInstance) -> None:
    polling = Polling(store_url)
    with contextlib.closing(polling.open()) as store:
        for number in (2, 0, 3):
            polling.origin += range(number)
            result = polling.run(instance)
            assert metadata(result)["events_received"] == number
            observed = result.get_asset_observation_events()
            assert len(observed) == (1 if number else 0)
        assert [poll.cursor for poll in polling.polls] == [None, 2, 2]
        assert payloads(store) == ["0", "1", "0", "1", "2"]


def test_a_function_that_raises_is_tried_again_with_the_same_poll(
    store_url: str, instance: DagsterInstance
) -> None:
    def once_more(poll: Poll) -> Iterator[Event[int]]:
        yield Event(1)
        poll.cursor = "half way"
        if len(polling.polls) == 1:
            raise ConnectionError("the tower is silent")
        yield Event(2)

    polling = Polling(store_url, function=once_more)
    with contextlib.closing(polling.open()) as store:
        result = polling.run(instance, AT)
        assert result.success
        assert polling.polls == [Poll(None, AT), Poll(None, AT)]
        (retried,) = [event for event in result.all_events if event.is_step_up_for_retry]
        cause = retried.step_retry_data.error.cause
        assert cause
        assert "ConnectionError: the tower is silent" in cause.message
        assert payloads(store) == ["1", "2"]
        assert store.log.cursor("cron/tower/seen") == '"half way"'


def test_a_run_fails_with_the_error_and_the_next_gets_everything(
    store_url: str, instance: DagsterInstance
) -> None:
    def silent(poll: Poll) -> Iterator[Event[int]]:
        yield Event(0)
        poll.cursor = 99
        raise ConnectionError("the tower is silent")

    polling = Polling(store_url, Cron(max_retries=2), function=silent)
    with contextlib.closing(polling.open()) as store:
        result = polling.run(instance)
        assert "ConnectionError: the tower is silent" in failure(result)
        assert len(polling.polls) == 3  # the first attempt and two retries
        assert payloads(store) == []
        assert store.log.cursor("cron/tower/seen") is None
        again = Polling(store_url)
        again.origin += [1, 2]
        assert again.run(instance).success
        assert payloads(store) == ["1", "2"]


def test_no_secret_and_no_cursor_is_reported(
    store_url: str, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWER_TOKEN", "cAnAry0f5e1d")
    token = Secret("TOWER_TOKEN")

    def refused(poll: Poll) -> list[Event[int]]:
        poll.cursor = {"next": "cUrs0r7a31"}
        if len(polling.polls) > 1:
            return [Event(1)]
        raise PermissionError(f"no way in with {token.reveal()}")

    polling = Polling(store_url, function=refused)
    polling.open().close()
    assert polling.run(instance).success
    assert polling.run(instance).success
    reported = [serialize_value(run) for run in instance.get_runs()]
    for run in instance.get_runs():
        reported += [serialize_value(entry) for entry in instance.all_logs(run.run_id)]
    text = "\n".join(reported)
    assert "PermissionError: no way in with ***" in text
    assert "cAnAry0f5e1d" not in text
    assert "cUrs0r7a31" not in text


def test_a_poll_beside_another_is_skipped_with_the_holders_name(
    store_url: str, instance: DagsterInstance
) -> None:
    polling = Polling(store_url)
    polling.origin += [1]
    with contextlib.closing(polling.open()) as store:
        supervisor = open_supervisor(None, store.database)
        with contextlib.closing(supervisor), supervisor.acquire("listen/tower/seen", "run 7"):  # type: ignore[union-attr]
            reported = metadata(polling.run(instance))
        assert reported.pop("skipped").startswith("tower/seen is polled by run 7")
        assert reported == {"events_received": 0, "events_quarantined": 0}
        assert polling.polls == []
        assert payloads(store) == []


def test_a_poll_wakes_the_loads_of_realtime_events(
    postgres_url: str, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLACKSMITH_PUBSUB_URL", "postgres")
    polling = Polling(postgres_url)
    polling.open().close()
    polling.origin += [1]
    pubsub = open_pubsub("postgres", postgres_url)
    assert pubsub
    with contextlib.closing(pubsub.subscriber("lake")) as subscriber:
        assert not subscriber.wait(10)  # it is connected
        polling.run(instance)
        assert list(subscriber.wait(10)) == ["lake/alerts"]


def test_a_run_launched_by_hand_is_due_when_it_was_made(
    store_url: str, instance: DagsterInstance
) -> None:
    polling = Polling(store_url)
    polling.open().close()
    before = datetime.now(UTC) - timedelta(seconds=1)
    polling.run(instance)
    assert before <= polling.polls[0].at <= datetime.now(UTC)


# ------------------------------------------------------------------------------------- launches


class Tick:
    """What a sensor or a schedule has returned."""

    def __init__(self, data: Any) -> None:
        self.due = [request.tags[DUE_TAG] for request in data.run_requests]
        self.skipped = data.skip_message
        self.cursor = getattr(data, "cursor", None)
        assert all(request.run_key is None for request in data.run_requests)


def look(polling: Polling, instance: DagsterInstance, cursor: str | None = None) -> Tick:
    (sensor,) = [sensor for sensor in polling.definitions.sensors or () if JOB in sensor.name]
    assert isinstance(sensor, SensorDefinition)
    resources = {"blacksmith": polling.resource}
    with build_sensor_context(instance, cursor, resources=resources) as context:
        return Tick(sensor.evaluate_tick(context))


def tick(polling: Polling, instance: DagsterInstance, at: datetime = AT) -> Tick:
    (schedule,) = polling.definitions.schedules or ()
    assert isinstance(schedule, ScheduleDefinition)
    resources = {"blacksmith": polling.resource}
    with build_schedule_context(instance, at, resources=resources) as context:
        return Tick(schedule.evaluate_tick(context))


def test_what_launches_a_poll_runs_from_the_start(store_url: str) -> None:
    every = Polling(store_url, Cron("@every 30m")).definitions
    (sensor,) = [sensor for sensor in every.sensors or () if JOB in sensor.name]
    assert (sensor.name, sensor.default_status) == (f"{JOB}_sensor", DefaultSensorStatus.RUNNING)
    daily = Polling(store_url, Cron("@daily", timezone="Europe/Berlin")).definitions
    (schedule,) = daily.schedules or ()
    assert isinstance(schedule, ScheduleDefinition)
    assert schedule.name == f"{JOB}_schedule"
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("@daily", "Europe/Berlin")
    assert schedule.default_status is DefaultScheduleStatus.RUNNING


def test_an_interval_is_counted_from_the_last_launch(
    store_url: str, instance: DagsterInstance
) -> None:
    polling = Polling(store_url, Cron("@every 10m"))
    polling.open().close()
    before = time.time()
    first = look(polling, instance)
    (due,) = first.due
    assert before <= float(first.cursor or 0) <= time.time()
    assert datetime.fromisoformat(due).timestamp() == pytest.approx(float(first.cursor or 0))
    early = look(polling, instance, first.cursor)
    assert early.due == []
    assert early.skipped in ("the next run is in 0:10:00", "the next run is in 0:09:59")


def test_after_a_long_while_an_interval_launches_one_run(
    store_url: str, instance: DagsterInstance
) -> None:
    polling = Polling(store_url, Cron("@every 10m"))
    polling.open().close()
    assert len(look(polling, instance, str(time.time() - 86_400)).due) == 1


def test_a_poll_learns_when_its_tick_was(store_url: str, instance: DagsterInstance) -> None:
    polling = Polling(store_url, Cron("0 13 * * *", timezone="Europe/Berlin"))
    polling.open().close()
    at = datetime(2026, 11, 24, 13, tzinfo=ZoneInfo("Europe/Berlin"))
    assert tick(polling, instance, at).due == ["2026-11-24T12:00:00+00:00"]
    polling.run(instance, AT)
    assert polling.polls == [Poll(None, AT)]


@pytest.mark.parametrize(
    "status",
    [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED],
)
def test_a_poll_that_is_still_running_is_not_started_again(
    status: DagsterRunStatus, store_url: str, instance: DagsterInstance
) -> None:
    run = instance.add_run(DagsterRun(job_name=JOB, status=status))
    for interval, launched in (("@every 10m", look), ("*/5 * * * *", tick)):
        polling = Polling(store_url, Cron(interval))
        polling.open().close()
        result = launched(polling, instance)
        assert result.due == []
        assert run.run_id in result.skipped


def test_a_poll_whose_process_is_gone_is_failed_and_replaced(
    store_url: str, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        schedules, "_GRACE_BY_UNDER_WAY", dict.fromkeys((True, False), timedelta(0))
    )
    polling = Polling(store_url, Cron("*/5 * * * *"))
    run = instance.add_run(DagsterRun(job_name=JOB, status=DagsterRunStatus.STARTED))
    with contextlib.closing(polling.open()) as store:
        supervisor = open_supervisor(None, store.database)
        with contextlib.closing(supervisor):
            with supervisor.acquire("listen/tower/seen", run.run_id):  # type: ignore[union-attr]
                assert tick(polling, instance).skipped == f"run {run.run_id} is still under way"
            with supervisor.acquire("listen/tower/seen", "another"):  # type: ignore[union-attr]
                assert len(tick(polling, instance).due) == 1
            schedules.fail_gone_runs(instance, {JOB}, supervisor, {run.run_id: 0.0})
    (failed,) = instance.get_runs(RunsFilter(run_ids=[run.run_id]))
    assert failed.status is DagsterRunStatus.FAILURE


def test_a_run_that_pauses_does_not_count_as_gone() -> None:
    assert polls._LONGEST_PAUSE + 1 < schedules.LOCK_GAP_SECONDS


def test_no_run_is_replaced_while_the_locks_are_out_of_reach(
    store_url: str, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        schedules, "_GRACE_BY_UNDER_WAY", dict.fromkeys((True, False), timedelta(0))
    )
    monkeypatch.setenv("BLACKSMITH_SUPERVISOR_URL", "consul://127.0.0.1:1")
    polling = Polling(store_url, Cron("*/5 * * * *"))
    polling.open().close()
    assert len(tick(polling, instance).due) == 1
    instance.add_run(DagsterRun(job_name=JOB, status=DagsterRunStatus.STARTED))
    assert tick(polling, instance).skipped.startswith(
        f"cannot tell whether a run of {JOB} is still under way: consul://127.0.0.1:1"
    )


# ------------------------------------------------------------------------------------- the clock


# Dagster reads this of every schedule that it loads in its own process.
of_its_own = pytest.mark.filterwarnings(
    "ignore:Property `ScheduleDefinition.environment_vars` is deprecated:DeprecationWarning"
)


@contextlib.contextmanager
def clock_store(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("BLACKSMITH_STORE_URL", url)
    with contextlib.closing(open_store(url, upgrade=True)) as store:
        yield store


def payloads_of(store: Store, app: Blacksmith) -> list[Any]:
    """The data of all events of an application, oldest first."""
    (event_type,) = app.source_events
    return [
        json.loads(event.payload) for event in reversed(store.log.newest(event_type, limit=1000))
    ]


@of_its_own
@pytest.mark.parametrize(
    ("first", "changes", "due"),
    [("2026-03-28", "2026-03-29", "03:00"), ("2026-10-24", "2026-10-25", "02:30")],
    ids=["spring", "autumn"],
)
def test_dst_fires_once(
    first: str, changes: str, due: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    begin = datetime.fromisoformat(first).replace(tzinfo=berlin).astimezone(UTC)
    with (
        clock_store(f"sqlite:///{tmp_path}/store.db", monkeypatch) as store,
        scheduler(clockwork.__name__, "nightly_definitions") as dagster,
    ):
        dagster.look_until(begin, begin + timedelta(days=3), timedelta(hours=1))
        runs = dagster.instance.get_runs()
        reported = payloads_of(store, clockwork.by_night)
    assert {run.status for run in runs} == {DagsterRunStatus.SUCCESS}
    polled = [datetime.fromisoformat(due_at).astimezone(berlin) for due_at in reported]
    days = [datetime.fromisoformat(first).date() + timedelta(days=n) for n in range(3)]
    assert [polled_at.date() for polled_at in polled] == days  # polled_at day, once
    assert len(runs) == len(days)
    at = {polled_at.date().isoformat(): f"{polled_at:%H:%M}" for polled_at in polled}
    assert at.pop(changes) == due
    assert set(at.values()) == {"02:30"}


@of_its_own
def test_cron_missed_ticks(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        clock_store(store_url, monkeypatch) as store,
        scheduler(clockwork.__name__, "often_definitions") as dagster,
    ):
        dagster.look_until(
            AT + timedelta(minutes=1), AT + timedelta(minutes=10), timedelta(minutes=1)
        )
        dagster.restart()  # the daemon was down, for 72 ticks
        up = AT + timedelta(hours=6, minutes=12)
        dagster.look_until(up, up + timedelta(minutes=4), timedelta(seconds=30))
        runs = dagster.instance.get_runs()
        spans = payloads_of(store, clockwork.by_day)
    assert {run.status for run in runs} == {DagsterRunStatus.SUCCESS}
    due = [datetime.fromisoformat(at) - AT for _, at in spans]
    late = timedelta(hours=6)
    assert due == [
        timedelta(minutes=5),
        timedelta(minutes=10),
        late + timedelta(minutes=10),  # one run for all that were missed
        late + timedelta(minutes=15),
    ]
    assert len(runs) == len(due)
    # Each continues where the one before it ended: nothing is left out, nothing comes twice.
    assert [since for since, _ in spans] == [clockwork.STARTED, *(at for _, at in spans[:-1])]
