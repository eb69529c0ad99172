"""What the checks find."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from dagster import (
    AssetCheckKey,
    AssetKey,
    AssetSelection,
    DagsterInstance,
    Definitions,
    define_asset_job,
)

from blacksmith_dagster import HTTP, Blacksmith, Schedule, Source, Subscription
from blacksmith_dagster.backends import Backends
from blacksmith_dagster.orchestration import asset_key
from blacksmith_dagster.orchestration.checks import (
    Finding,
    check_destination,
    gateway_reachable,
    late_after,
    listening,
    no_orphans,
    run_checks,
    supervisor_reachable,
)
from blacksmith_dagster.settings import Settings
from blacksmith_dagster.store.records import JobCounts, ListenerStatus, RawRequest
from blacksmith_dagster.supervisor import here, open_supervisor
from tests.support.pipelines.orchestration import Pipeline

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = AssetKey(["lake", "flights"])


def overdue(schedule: Schedule, waiting: timedelta | None, has_broker: bool = True) -> bool:
    oldest = None if waiting is None else NOW - waiting
    counts = JobCounts(int(waiting is not None), 0, 0, 5, 0, oldest)
    _, finding = check_destination(KEY, schedule, counts, NOW, has_broker)
    return not finding.passed


def test_a_job_is_overdue_when_it_has_waited_for_more_than_an_interval() -> None:
    hourly = Schedule("@every 1h")
    assert not overdue(hourly, None)
    assert not overdue(hourly, timedelta(minutes=64))  # five minutes for the load itself
    assert overdue(hourly, timedelta(minutes=66))
    every_ten = Schedule("@every 10s")
    assert not overdue(every_ten, timedelta(seconds=19))
    assert overdue(every_ten, timedelta(seconds=21))


def test_a_realtime_job_is_overdue_after_ten_seconds() -> None:
    realtime = Schedule("@every 1h", realtime=True)
    assert not overdue(realtime, timedelta(seconds=9))
    assert overdue(realtime, timedelta(seconds=11))


def test_without_a_broker_a_realtime_job_is_overdue_as_its_schedule_says() -> None:
    realtime = Schedule("@every 1h", realtime=True)
    assert not overdue(realtime, timedelta(minutes=64), has_broker=False)
    assert overdue(realtime, timedelta(minutes=66), has_broker=False)


def test_a_job_of_a_cron_is_overdue_after_the_tick_that_follows_it() -> None:
    assert late_after(Schedule("0 3 * * *"), NOW, has_broker=True) == datetime(
        2026, 3, 2, 3, 5, tzinfo=UTC
    )


@contextmanager
def health(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/_health" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_gateway_that_is_ready_is_reachable() -> None:
    with health(200) as address:
        assert gateway_reachable(f"http://reader:canary@{address}/") == (
            True,
            f"http://{address}/_health returned 200",
        )
    with health(503) as address:
        assert gateway_reachable(f"http://{address}") == (
            False,
            f"http://{address}/_health returned 503",
        )


def test_a_gateway_that_is_gone_is_not_reachable() -> None:
    passed, description = gateway_reachable("http://127.0.0.1:1")
    assert not passed
    assert description.startswith(
        "http://127.0.0.1:1 does not respond (ConnectError): start `blacksmith"
    )


def test_the_supervisor_is_reachable_and_names_the_holders(store_url: str) -> None:
    store = Pipeline(store_url).open()
    with closing(store), closing(open_supervisor(None, store.database)) as supervisor:
        assert supervisor_reachable(supervisor).passed
        assert supervisor.acquire("load/lake/flights", "run 7")
        finding = supervisor_reachable(supervisor)
    assert finding.metadata == {"load/lake/flights": f"run 7 at {here()}"}
    assert finding.description.endswith("held: 1")


def test_a_supervisor_that_does_not_respond_is_reported(store_url: str) -> None:
    store = Pipeline(store_url).open()
    url = "consul://:canary@127.0.0.1:1"
    with closing(store), closing(open_supervisor(url, store.database)) as supervisor:
        finding = supervisor_reachable(supervisor)
    assert not finding.passed
    assert finding.description.startswith("consul://127.0.0.1:1 does not respond")
    assert "canary" not in finding.description


def test_jobs_of_a_destination_event_that_is_gone_are_orphans(store_url: str) -> None:
    pipeline = Pipeline(store_url)
    pipeline.receive(2, to=["lake/flights", "lake/movements"])
    store = pipeline.open()
    try:
        store.maintain()
        assert no_orphans(store.counts.orphans(pipeline.app)).passed
        smaller = Blacksmith(sources=[pipeline.airport], destinations=[])
        finding = no_orphans(store.counts.orphans(smaller))
        assert "declare it again until they are loaded, or run" in finding.description
    finally:
        store.close()
    assert not finding.passed
    assert finding.metadata == {"lake/flights": 2, "lake/movements": 2}


def test_checks_can_be_run_by_hand(
    instance: DagsterInstance, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLACKSMITH_GATEWAY_URL", "http://127.0.0.1:1")
    pipeline = Pipeline(f"sqlite:///{tmp_path}/store.db")
    pipeline.open().close()
    one = AssetCheckKey(AssetKey("blacksmith"), "no_orphans")
    jobs = [
        define_asset_job("all_checks", AssetSelection.all_asset_checks()),
        define_asset_job("one_check", AssetSelection.checks(one)),
    ]
    definitions = Definitions.merge(pipeline.definitions, Definitions(jobs=jobs))
    all_checks = definitions.resolve_job_def("all_checks").execute_in_process(instance=instance)
    assert len(all_checks.get_asset_check_evaluations()) == 13
    one_check = definitions.resolve_job_def("one_check").execute_in_process(instance=instance)
    assert [
        evaluation.asset_check_key for evaluation in one_check.get_asset_check_evaluations()
    ] == [one]


@pytest.mark.parametrize(
    ("ago", "lag", "read", "error", "passed", "description"),
    [
        (5, 0, 5, None, True, "run 7 listens; 0 rows wait"),
        (5, None, None, None, True, "run 7 listens; 0 rows wait"),
        (59, 900, 299, None, True, "run 7 listens; 900 rows wait"),
        (5, 0, 9000, None, True, "run 7 listens"),
        (5, 900, 301, None, False, "900 rows wait, and nothing was read for 5 minutes"),
        (5, 900, None, None, False, "900 rows wait, and nothing was read for 5 minutes"),
        (
            61,
            0,
            61,
            None,
            False,
            "nothing has listened since 2026-03-01 11:58:59 UTC: is the sensor ",
        ),
        (5, 0, 5, "nats://broker does not respond", False, "nats://broker does not respond"),
    ],
)
def test_a_listener_is_heard_of_and_keeps_up(
    ago: int, lag: int | None, read: int | None, error: str | None, passed: bool, description: str
) -> None:
    """`ago`: seconds since it was noted, `read`: since it has read something."""
    event = Source("shop").accept("ordered", on=Subscription("orders"))
    status = ListenerStatus(
        event.path,
        "run 7",
        lag,
        "rows",
        None if read is None else NOW - timedelta(seconds=read),
        error,
        NOW - timedelta(seconds=ago),
    )
    finding = listening(asset_key(event), event, status, NOW)
    assert finding.passed is passed
    assert finding.description.startswith(description)
    assert finding.metadata.get("lag") == lag
    assert finding.metadata["held_by"] == "run 7"


def test_an_event_without_a_listener_so_far_is_reported() -> None:
    event = Source("shop").accept("ordered", on=Subscription("orders"))
    finding = listening(asset_key(event), event, None, NOW)
    assert not finding.passed
    assert finding.description == (
        "nothing has listened: is the sensor listen_shop_sensor running, or a `blacksmith worker`, "
        "and does it respond?"
    )


def test_what_is_in_quarantine_is_reported_with_how_to_retry_it(store_url: str) -> None:
    """What came to a webhook may be of any event of its source: it counts at each of them."""
    shop = Source("shop")
    ordered, paid = shop.accept("ordered"), shop.accept("paid")
    shop.webhook(HTTP("/shop"))(lambda request: ordered.of(request.json()))
    app = Blacksmith(sources=[shop], destinations=[])
    keys = {event.path: asset_key(event) for event in (ordered, paid)}
    with Backends(Settings(store_url), upgrade=True) as backends:
        store = backends.store
        store.register(app)

        def by_name() -> dict[str, Finding]:
            findings = run_checks(app, keys, backends)
            return {
                finding.key.path[-1]: finding
                for finding in findings
                if finding.name == "nothing_in_quarantine"
            }

        assert {name: finding.passed for name, finding in by_name().items()} == {
            "ordered": True,
            "paid": True,
        }
        for event_type in ("shop/ordered", "shop/ordered", "shop"):
            store.quarantine.add(RawRequest(event_type, b"{", {}, "it is not JSON"))
        quarantined = by_name()
    assert not quarantined["ordered"].passed
    assert quarantined["ordered"].metadata == {"in_quarantine": 2, "in_quarantine_at_webhooks": 1}
    assert "2 wait in quarantine: `blacksmith quarantine list --event shop/ordered`" in (
        quarantined["ordered"].description
    )
    assert not quarantined["paid"].passed
    assert quarantined["paid"].description == (
        "1 wait in quarantine: `blacksmith quarantine list --event shop` lists them with their reasons, "
        "`blacksmith quarantine retry --event shop` ingests them"
    )
