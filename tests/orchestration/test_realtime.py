"""A warm run: when it ends, what it reports to Dagster, and when the sensor launches one."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dagster import (
    AssetKey,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    RunRecord,
    RunsFilter,
    SensorDefinition,
    build_sensor_context,
)

from blacksmith_dagster import Batch, Blacksmith, Destination, Schedule, Source
from blacksmith_dagster.errors import DeclarationError, SettingsError, Timeout
from blacksmith_dagster.orchestration import (
    BlacksmithResource,
    WarmRuns,
    build_definitions,
    schedules,
    warm_run_sensor,
    warm_runs,
)
from blacksmith_dagster.orchestration.realtime import why_idle
from blacksmith_dagster.orchestration.warm_run_sensor import (
    WarmRun,
    could_lock,
    is_gone,
    why_no_launch,
    why_pause,
)
from blacksmith_dagster.orchestration.warm_runs import ENDING_TAG, WarmRunState, ending
from blacksmith_dagster.pubsub import open_pubsub
from blacksmith_dagster.store import open_store
from blacksmith_dagster.store.records import NewEvent, NewJob
from blacksmith_dagster.supervisor import open_supervisor
from tests.support.declaring import check_duration
from tests.support.pipelines.orchestration import Pipeline
from tests.support.waiting import until

WARM = WarmRuns(idle="10m", age="15m", notice="60s")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
QUEUED, STARTING, STARTED, CANCELING, FAILURE = (
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
    DagsterRunStatus.FAILURE,
)


# ------------------------------------------------------------------------------ when a run ends


@pytest.mark.parametrize(
    ("state", "why", "notice"),
    [
        (WarmRunState(age=0), None, None),
        (WarmRunState(age=839, idle=599), None, None),
        (WarmRunState(age=600, idle=600), "idle for 10m", None),
        (WarmRunState(age=840), "15m old, and another takes over", 60),
        (WarmRunState(age=870), "15m old, and another takes over", 30),
        (WarmRunState(age=1000), "15m old, and another takes over", 0),
        (
            WarmRunState(age=700, idle=600, lockless=10),
            None,
            None,
        ),  # it waits for an older one's locks
        (WarmRunState(age=100, lockless=89), None, None),
        (WarmRunState(age=100, lockless=90), "it has held none of its locks for 90 s", None),
        (WarmRunState(age=5, failure="it hangs"), "it hangs", 60),
        (
            WarmRunState(age=5, failure="it hangs", lockless=50),
            "it hangs",
            60,
        ),  # others wait for their locks
        (WarmRunState(age=5, failure="it hangs", over=True), "it hangs", None),
        (WarmRunState(age=870, idle=700, failure="it hangs", stopped=True), "asked to stop", None),
    ],
)
def test_why_and_when_a_run_ends(
    state: WarmRunState, why: str | None, notice: float | None
) -> None:
    """`notice` is `None` if it does not wait for another."""
    end = ending(state, WARM)
    assert (end.reason if end else None) == why
    assert (end.notice if end and end.followed else None) == notice


def test_a_run_cannot_end_before_it_has_announced_it() -> None:
    with pytest.raises(DeclarationError, match="write a longer age="):
        WarmRuns(age="1m", notice="1m")
    with pytest.raises(DeclarationError, match="'soon' is not a duration"):
        WarmRuns(idle="soon")


@pytest.mark.parametrize(
    ("place", "declare"),
    [
        ("WarmRuns: idle", lambda given: WarmRuns(idle=given)),
        ("WarmRuns: age", lambda given: WarmRuns(age=given, notice="1ms")),
        ("WarmRuns: notice", lambda given: WarmRuns(notice=given)),
    ],
    ids=["idle", "age", "notice"],
)
def test_durations_of_warm_runs_as_text_or_timedelta(
    place: str, declare: Callable[[Any], Any]
) -> None:
    check_duration(place, declare)


# ------------------------------------------------------------------------------ the sensor decides


@pytest.mark.parametrize(
    ("run", "holders", "could"),
    [
        ("b", ["b", "b"], False),
        ("b", ["b", None], False),
        ("b", [None, None], True),
        ("b", ["c", None], True),  # a younger one holds what it has lost
        ("b", ["a", None], False),  # it follows an older one
        ("b", ["a load", "a load"], False),  # the schedule's run, or a worker
        ("c", ["b", "a"], False),
    ],
)
def test_a_run_without_locks_that_it_could_have(
    run: str, holders: list[str | None], could: bool
) -> None:
    assert could_lock(run, ["a", "b", "c"], holders) is could


@pytest.mark.parametrize(
    ("run", "gone"),
    [
        (WarmRun("a", STARTED, age=600), False),
        (WarmRun("a", STARTED, age=600, lockless=14), False),
        (WarmRun("a", STARTED, age=600, lockless=15), True),
        (WarmRun("a", CANCELING, age=1, lockless=15), True),
        (WarmRun("a", STARTING, age=179), False),
        (WarmRun("a", STARTING, age=180), True),
        (WarmRun("a", QUEUED, age=10_000), False),
    ],
)
def test_a_run_whose_process_is_gone(run: WarmRun, gone: bool) -> None:
    assert is_gone(run) is gone


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ([], None),
        ([WarmRun("a", QUEUED, 1)], "run a is queued"),
        ([WarmRun("a", STARTING, 1)], "run a is starting"),
        ([WarmRun("a", STARTED, 1)], "run a is under way"),
        ([WarmRun("a", STARTED, 1, ending=True)], None),
        ([WarmRun("a", STARTED, 1, ending=True), WarmRun("b", QUEUED, 1)], "run b is queued"),
        ([WarmRun("a", STARTED, 1, ending=True), WarmRun("b", STARTED, 1)], "run b follows run a"),
        (
            [WarmRun("a", STARTED, 1, ending=True), WarmRun("b", STARTED, 1, ending=True)],
            "run b follows run a",
        ),
    ],
)
def test_one_run_and_two_while_one_takes_over(runs: list[WarmRun], why: str | None) -> None:
    assert why_no_launch(runs) == why


@pytest.mark.parametrize(
    ("due", "since_load", "holder", "why"),
    [
        (None, None, None, "nothing waits for lake/flights"),
        (0.0, None, None, None),
        (4.0, None, None, None),  # it is due by the time that the run has started
        (90.0, None, None, "nothing is due: lake/flights is the next, in 0:01:30"),
        (None, 599.0, None, None),
        (None, 600.0, None, "nothing waits for lake/flights"),
        (0.0, 1.0, "host:42", "lake/flights is loaded by host:42"),
    ],
)
def test_a_run_is_launched_for_what_is_due_or_was_loaded_lately(
    due: float | None, since_load: float | None, holder: str | None, why: str | None
) -> None:
    path = "lake/flights"
    assert why_idle({path: due}, since_load, {path: holder}, WARM) == why


@pytest.mark.parametrize(
    ("lived", "ago", "why"),
    [
        (
            [5, 5],
            10,
            "run new failed soon after its start, as did the one before; another is launched in 20 s",
        ),
        ([5, 5], 30, None),
        ([5, 60], 10, None),
        ([60, 5], 10, None),
        ([5], 10, None),
        ([], 10, None),
    ],
)
def test_runs_that_fail_at_their_start_are_launched_after_a_pause(
    lived: list[int], ago: int, why: str | None
) -> None:
    ended = NOW - timedelta(seconds=ago)
    records = [
        RunRecord(
            1,
            DagsterRun("realtime_lake", name, status=FAILURE),
            ended - timedelta(seconds=seconds),
            ended,
        )
        for name, seconds in zip(["new", "old"], lived, strict=False)
    ]
    assert why_pause(records, NOW) == why
    records = [
        record._replace(dagster_run=DagsterRun("realtime_lake", status=DagsterRunStatus.CANCELED))
        for record in records
    ]
    assert why_pause(records, NOW) is None


# ------------------------------------------------------------------------------ with a store


class Alerts:
    """Destination `alerts` with the realtime events `late` and `stuck`, whose runs are short."""

    def __init__(self, store_url: str) -> None:
        self.resource = BlacksmithResource(store_url=store_url)
        self.store = open_store(store_url, upgrade=True)
        self.loaded: list[str] = []
        self.on_load: Any = lambda: None
        airport = Source("airport")
        departed = airport.accept("departed")
        alerts = Destination("alerts", schedule=Schedule("@every 1h", realtime=True))

        @alerts.event(receives=departed)
        def late(batch: Batch[Any]) -> None:
            self.on_load()
            self.loaded += [job.event.id or "" for job in batch]

        @alerts.event(receives=departed, timeout="100ms")
        def stuck(batch: Batch[Any]) -> None:
            threading.Event().wait()

        self.app = Blacksmith(sources=[airport], destinations=[alerts])
        warm = WarmRuns(idle="1s", notice="1s")
        self.definitions = build_definitions(
            self.app, start_date="2026-01-01", resource=self.resource, warm=warm
        )
        self.cursors: dict[str, str | None] = {}
        self.store.register(self.app)

    def receive(self, *events: str) -> str:
        new = NewEvent("airport/departed", "{}", [NewJob(f"alerts/{event}") for event in events])
        [[event_id]] = self.store.log.append([[new]])  # type: ignore[misc]
        return event_id

    def run(self, instance: DagsterInstance) -> Any:
        """A warm run in this process."""
        job = self.definitions.resolve_job_def("realtime_alerts")
        return job.execute_in_process(instance=instance)

    def look(self, instance: DagsterInstance, name: str = "realtime_alerts_sensor") -> Any:
        """A tick of a sensor; the next gets its cursor."""
        (sensor,) = [sensor for sensor in self.definitions.sensors or () if sensor.name == name]
        assert isinstance(sensor, SensorDefinition)
        resources = {"blacksmith": self.resource}
        with build_sensor_context(instance, self.cursors.get(name), resources=resources) as context:
            tick = sensor.evaluate_tick(context)
        self.cursors[name] = tick.cursor
        return tick


@pytest.fixture
def alerts(store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Alerts]:
    # No broker is needed to run: the sweep of the store finds what no notification announces.
    monkeypatch.setenv("BLACKSMITH_PUBSUB_URL", "nats://127.0.0.1:1")
    alerts = Alerts(store_url)
    try:
        yield alerts
    finally:
        alerts.store.close()


def outputs(result: Any) -> dict[str, Any]:
    (output,) = [event for event in result.all_events if event.is_successful_output]
    return {name: value.value for name, value in output.step_output_data.metadata.items()}


def test_the_job_is_tagged_for_limits_and_ends_at_the_latest(alerts: Alerts) -> None:
    job = alerts.definitions.resolve_job_def("realtime_alerts")
    assert job.tags["blacksmith/realtime"] == "alerts"
    # 15 m of age twice, 1 s of notice, 5 m for the last batch, 1 m to end
    assert job.tags["dagster/max_runtime"] == "2161"


def test_without_realtime_events_there_is_no_warm_run(store_url: str) -> None:
    names = [sensor.name for sensor in Pipeline(store_url).definitions.sensors or ()]
    assert names == ["blacksmith_report", "load_lake_sensor"]


def test_a_warm_run_loads_reports_and_ends_when_idle(
    alerts: Alerts, instance: DagsterInstance
) -> None:
    ids = [alerts.receive("late") for _ in range(3)]
    result = alerts.run(instance)
    assert alerts.loaded == ids
    metadata = outputs(result)
    assert metadata["stop_reason"] == "idle for 1s"
    assert (metadata["events_loaded"], metadata["events_failed"]) == (3, 0)
    today = datetime.now(UTC).date().isoformat()
    assert instance.get_materialized_partitions(AssetKey(["alerts", "late"])) == {today}
    checked = {
        (evaluation.asset_key.path[-1], evaluation.check_name): evaluation.passed
        for evaluation in result.get_asset_check_evaluations()
    }
    assert checked == {
        (event, name): True
        for event in ("late", "stuck")
        for name in ("no_discarded", "nothing_overdue")
    }
    (run,) = {
        transition.run
        for transition in alerts.store.history.transitions(ids[0])
        if transition.load_id
    }
    assert run == result.run_id


def test_a_warm_run_materializes_while_it_stays(
    alerts: Alerts, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only at its end: the second event comes when the first has been reported."""
    monkeypatch.setattr(warm_runs, "_REPORT_SECONDS", 0.1)
    warm = WarmRuns(idle="5s", notice="1s")
    alerts.definitions = build_definitions(
        alerts.app, start_date="2026-01-01", resource=alerts.resource, warm=warm
    )

    def reported() -> list[Any]:
        records = instance.fetch_materializations(AssetKey(["alerts", "late"]), limit=10).records
        return [record.asset_materialization for record in reversed(records)]

    def send_another() -> None:
        until(reported, 60)
        ids.append(alerts.receive("late"))

    ids = [alerts.receive("late")]
    sender = threading.Thread(target=send_another, daemon=True)
    sender.start()
    result = alerts.run(instance)
    sender.join(60)
    assert alerts.loaded == ids
    assert [materialization.metadata["events_loaded"].value for materialization in reported()] == [
        1,
        1,
    ]
    first, second = (materialization.metadata["last_load"].value for materialization in reported())
    assert first < second
    assert outputs(result)["events_loaded"] == 2


def test_a_warm_run_announces_its_end_and_fails_when_a_load_hangs(
    alerts: Alerts, instance: DagsterInstance
) -> None:
    warm = WarmRuns(age="2s", notice="1s")
    alerts.definitions = build_definitions(
        alerts.app, start_date="2026-01-01", resource=alerts.resource, warm=warm
    )
    alerts.receive("stuck")
    began = time.monotonic()
    with pytest.raises(Timeout, match="alerts/stuck"):
        alerts.run(instance)
    assert time.monotonic() > began + 3  # no run followed, and the other event was loaded meanwhile
    (run,) = instance.get_runs()
    assert run.status is FAILURE
    assert ENDING_TAG in run.tags


def test_sigterm_ends_a_warm_run_well(alerts: Alerts, instance: DagsterInstance) -> None:
    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    alerts.on_load = terminate
    ids = [alerts.receive("late")]
    result = alerts.run(instance)
    assert alerts.loaded == ids
    assert outputs(result)["stop_reason"] == "asked to stop"


def test_a_warm_run_without_a_broker_says_what_to_set(
    alerts: Alerts, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BLACKSMITH_PUBSUB_URL")
    with pytest.raises(SettingsError, match="set BLACKSMITH_PUBSUB_URL to kafka://"):
        alerts.run(instance)


def test_without_a_broker_the_schedules_serve(
    alerts: Alerts, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BLACKSMITH_PUBSUB_URL")
    alerts.receive("late")
    skipped = alerts.look(instance).skip_message
    assert skipped == "the schedules serve; set BLACKSMITH_PUBSUB_URL to load at once"
    assert alerts.look(instance, "load_alerts_sensor").run_requests


def test_two_daemons_ask_for_the_same_run(alerts: Alerts, instance: DagsterInstance) -> None:
    assert alerts.look(instance).skip_message == "nothing waits for alerts/late, alerts/stuck"
    alerts.receive("late")
    keys = [alerts.look(instance).run_requests[0].run_key for _ in range(2)]
    assert keys == ["after-none"] * 2
    run = instance.add_run(DagsterRun(job_name="realtime_alerts", status=DagsterRunStatus.SUCCESS))
    assert alerts.look(instance).run_requests[0].run_key == f"after-{run.run_id}"


def test_a_run_that_has_announced_its_end_is_followed(
    alerts: Alerts, instance: DagsterInstance
) -> None:
    run = instance.add_run(DagsterRun(job_name="realtime_alerts", status=STARTED))
    with _locked(alerts, run.run_id):
        assert alerts.look(instance).skip_message == f"run {run.run_id} is under way"
        instance.add_run_tags(run.run_id, {ENDING_TAG: "true"})
        assert len(alerts.look(instance).run_requests) == 1
        instance.add_run(DagsterRun(job_name="realtime_alerts", status=STARTING))
        assert "is starting" in alerts.look(instance).skip_message


def test_a_run_whose_process_is_gone_is_failed_and_followed(
    alerts: Alerts, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_run_sensor, "_GONE_SECONDS", 0.3)
    alerts.receive("late")
    run = instance.add_run(DagsterRun(job_name="realtime_alerts", status=STARTED))
    with _locked(alerts, run.run_id):
        assert alerts.look(instance).skip_message == f"run {run.run_id} is under way"
    lost = time.monotonic()
    until(lambda: alerts.look(instance).run_requests, 10)
    assert time.monotonic() > lost + 0.3
    (failed,) = instance.get_runs(RunsFilter(run_ids=[run.run_id]))
    assert failed.status is FAILURE


def test_the_locks_of_a_run_that_was_killed_are_free_soon(
    alerts: Alerts, instance: DagsterInstance
) -> None:
    alerts.receive("late")
    with _locked(alerts, "host:42"):
        assert "is loaded by host:42" in alerts.look(instance).skip_message
    run = instance.add_run(DagsterRun(job_name="realtime_alerts", status=FAILURE))
    with _locked(alerts, run.run_id):
        # The next one is launched meanwhile.
        assert alerts.look(instance).run_requests[0].run_key == f"after-{run.run_id}"


def test_a_scheduled_load_wakes_the_receivers_of_its_outcomes(
    postgres_url: str, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLACKSMITH_PUBSUB_URL", "postgres")
    pipeline = Pipeline(
        postgres_url, judge=lambda batch: batch.discard(batch[0], "no such airport")
    )

    @pipeline.lake.event(receives=pipeline.flights.discarded, schedule=Schedule(realtime=True))
    def alerts(batch: Batch[Any]) -> None: ...

    pipeline.app = Blacksmith(sources=[pipeline.airport], destinations=[pipeline.lake])
    pipeline.receive(1)
    pubsub = open_pubsub("postgres", postgres_url)
    assert pubsub
    subscriber = pubsub.subscriber("lake")
    try:
        assert not subscriber.wait(10)  # it is connected
        pipeline.run(instance)
        assert list(subscriber.wait(10)) == ["lake/alerts"]
    finally:
        subscriber.close()


def test_what_a_warm_run_loads_is_left_to_it_by_the_schedule(
    alerts: Alerts, instance: DagsterInstance
) -> None:
    alerts.receive("late")
    with _locked(alerts, "a run"):
        skipped = alerts.look(instance, "load_alerts_sensor").skip_message
        assert skipped == "alerts/late is loaded by a run"
    assert alerts.look(instance, "load_alerts_sensor").run_requests


def test_a_load_run_that_is_gone_is_not_mistaken_for_the_warm_run(
    alerts: Alerts, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        schedules, "_GRACE_BY_UNDER_WAY", dict.fromkeys((True, False), timedelta(0))
    )
    alerts.receive("stuck")
    instance.add_run(DagsterRun(job_name="load_alerts", status=STARTED))
    with _locked(alerts, "a warm run", "late"):
        assert alerts.look(instance, "load_alerts_sensor").run_requests


@contextmanager
def _locked(alerts: Alerts, holder: str, *events: str) -> Iterator[None]:
    supervisor = open_supervisor(None, alerts.store.database)
    try:
        for event in events or ("late", "stuck"):
            assert supervisor.acquire(f"load/alerts/{event}", holder)
        yield
    finally:
        supervisor.close()
