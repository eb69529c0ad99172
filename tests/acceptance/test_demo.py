"""`make demo` checks its result and leaves no process running."""

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from assets.weather import observed
from blacksmith_dagster import Poll
from scripts import demo
from tests.support.waiting import until_ready

FLIGHTS = demo.read_flights(whole_year=False)[:1000]


@pytest.fixture
def receiver() -> Iterator[demo.Receiver]:
    receiver = demo.Receiver()
    yield receiver
    receiver.close()


class Quiet(demo.Deployment):
    """An instance without runs."""

    def runs(self) -> dict[str, Counter[str]]:
        return {}


def test_january_and_the_year_are_whole() -> None:
    assert len(demo.read_flights(whole_year=False)) == 27_004
    assert len(demo.keys_of(demo.read_flights(whole_year=True))) == 336_776


def test_every_poll_of_the_weather_brings_the_next_day() -> None:
    poll = Poll()
    polled = [list(observed(poll)) for _ in range(3)]
    days = [{event.data.time_hour.date().isoformat() for event in events} for events in polled]
    assert days == [{"2013-01-01"}, {"2013-01-02"}, {"2013-01-03"}]
    assert {event.data.origin for events in polled for event in events} == {"EWR", "JFK", "LGA"}
    assert list(observed(Poll(cursor="2013-12-31"))) == []


def test_every_miss_is_reported(receiver: demo.Receiver, tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    nothing = Quiet(tmp_path, "", "", receiver, demo.Warehouse(tmp_path / "none.db"), process)
    late = len(demo.late_keys(FLIGHTS))
    assert late > 0
    assert demo.judge(nothing, FLIGHTS, accepted=999) == [
        "accepted 999 events instead of 1000",
        "flights in the warehouse: 1000 are missing, 0 are too many",
        f"alerts: {late} are missing, 0 are too many",
        "Dagster's history has no run of load_warehouse that has loaded",
        "Dagster's history has no run of realtime_alerts that has loaded",
    ]


@pytest.mark.slow
@pytest.mark.nats  # the demo starts it
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_no_process_outlives_the_demo(ending: signal.Signals, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.demo"], cwd=demo.PROJECT, stdout=out, stderr=out
        )
    started: set[psutil.Process] = set()
    try:
        until_ready(process, lambda: "feeding" in output.read_text(), 120, output.read_text)
        started.update(psutil.Process(process.pid).children(recursive=True))
        assert len(started) > 3  # `blacksmith dev`, the gateway, `dagster dev` and what it starts
        process.send_signal(ending)
        assert process.wait(60) == 0
        _, left = psutil.wait_procs(started, timeout=10)
        assert left == []
    finally:
        process.kill()
        process.wait()
        for child in started:
            if child.is_running():
                child.kill()
    [home] = re.findall(r"home +(\S+)", output.read_text())
    assert not Path(home).exists()


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["kafka", "rabbitmq", "postgres"])
def test_alerts_arrive_at_once_through_the_configured_broker(
    chosen: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With NATS, which the demo starts itself."""
    if chosen == "postgres":  # it is the store as well
        monkeypatch.setenv("BLACKSMITH_STORE_URL", request.getfixturevalue("postgres_url"))
        monkeypatch.setenv("BLACKSMITH_PUBSUB_URL", "postgres")
    else:
        url, _ = request.getfixturevalue(chosen).urls("demo")
        monkeypatch.setenv("BLACKSMITH_PUBSUB_URL", url)
    deadline = time.monotonic() + 120
    with demo.broker(tmp_path) as pubsub, demo.deployment(tmp_path, pubsub) as running:
        running.wait_for("gateway", lambda: demo.responds(f"{running.gateway}/_health"), deadline)
        running.wait_for("Dagster", lambda: demo.responds(f"{running.ui}/server_info"), deadline)
        demo.see_an_alert_come(running, 0, deadline)  # by whichever run is first
        running.wait_for(
            "warm run", lambda: "STARTED" in running.runs().get("realtime_alerts", {}), deadline
        )
        seconds = [demo.see_an_alert_come(running, number, deadline) for number in range(1, 10)]
    # If only the sweep found them, every 5 seconds, most would take longer.
    assert sorted(seconds)[4] < 1
