"""Jobs are sent to a real HTTP server, and its responses decide what becomes of them."""

import json
import logging
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest

from blacksmith_dagster import (
    Batch,
    DeclarationError,
    Destination,
    DestinationEvent,
    Event,
    Job,
    Secret,
    Source,
)
from blacksmith_dagster.destinations import HTTPDestination
from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.pipeline.event import JobResult, JobVerdict

departed = Source("airport").accept("departed")


class Server(ThreadingHTTPServer):
    """Records what it is sent, and responds as `respond` says."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.connections: set[Any] = set()
        self.respond: Callable[[Any], tuple[int, dict[str, str], bytes]] = lambda body: (
            204,
            {},
            b"",
        )
        self.raw: Callable[[socket.socket], object] | None = None
        self.arrived = threading.Semaphore(0)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), body))
        self.server.connections.add(self.client_address)
        self.server.arrived.release()
        if self.server.raw is not None:
            self.close_connection = True
            self.server.raw(self.connection)
            return
        status, headers, content = self.server.respond(body)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@contextmanager
def connected(destination: Destination[Any]) -> Iterator[Callable[..., Batch[Any]]]:
    """A function that loads data as jobs into an event of the destination."""
    opened = destination.connect()  # type: ignore[misc]
    client = next(opened)

    def load(event: DestinationEvent[Any], *data: Any) -> Batch[Any]:
        batch = Batch(
            event.path, [Job(each, Event(each), f"key-{n}", 1) for n, each in enumerate(data)]
        )
        event(batch, client)
        return batch

    try:
        yield load
    finally:
        opened.close()


def send(destination: HTTPDestination, *data: Any, **given: Any) -> dict[str, JobVerdict]:
    event = destination.post("late", receives=departed, **given)
    with connected(destination) as load:
        return dict(load(event, *data).verdicts)


def alone(server: Server, **given: Any) -> JobVerdict:
    """What becomes of one job."""
    return send(HTTPDestination("alerts", url=server.url), {"n": 0}, **given)["key-0"]


def test_each_job_is_posted_with_its_key(server: Server) -> None:
    alerts = HTTPDestination("alerts", url=f"{server.url}/hooks", headers={"X-Team": "flights"})
    verdicts = send(alerts, {"n": 0}, {"n": 1}, path="/late")
    assert [each.result for each in verdicts.values()] == [JobResult.SUCCEEDED] * 2
    assert [(path, body) for path, _, body in server.requests] == [
        ("/hooks/late", {"n": 0}),
        ("/hooks/late", {"n": 1}),
    ]
    headers = server.requests[1][1]
    assert headers["Idempotency-Key"] == "key-1"
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Team"] == "flights"


@pytest.mark.parametrize(
    ("base", "path", "seen"),
    [
        ("", "", "/"),
        ("/T0/B0", "", "/T0/B0"),
        ("/T0/B0/", "", "/T0/B0/"),
        ("/v1/", "/late", "/v1/late"),
        ("/v1?token=a%2Fb", "/late", "/v1/late?token=a%2Fb"),
        ("/v1?token=a", "", "/v1?token=a"),
        ("", "/a%20b/", "/a%20b/"),
        ("/T%2F0/", "/late", "/T%2F0/late"),
    ],
)
def test_the_url_is_taken_as_it_is_written(server: Server, base: str, path: str, seen: str) -> None:
    send(HTTPDestination("alerts", url=server.url + base), {}, path=path)
    assert server.requests[0][0] == seen


class Flight(msgspec.Struct):
    id: str
    delay: int


def test_body_makes_what_is_sent(server: Server) -> None:
    def message(job: Job[Flight]) -> dict[str, Any]:
        return {"text": f"{job.data.id} is {100 / job.data.delay:.0f} late"}

    verdicts = send(
        HTTPDestination("alerts", url=server.url),
        Flight("UA1", 10),
        Flight("UA2", 0),
        Flight("UA3", 20),
        body=message,
    )
    assert [body for *_, body in server.requests] == [
        {"text": "UA1 is 10 late"},
        {"text": "UA3 is 5 late"},
    ]
    assert verdicts["key-1"].result is JobResult.FAILED
    assert verdicts["key-1"].reason == "its body() raised ZeroDivisionError: division by zero"
    assert verdicts["key-0"].result is verdicts["key-2"].result is JobResult.SUCCEEDED


def test_a_struct_is_sent_as_json(server: Server) -> None:
    send(HTTPDestination("alerts", url=server.url), Flight("UA1", 10))
    assert server.requests[0][2] == {"id": "UA1", "delay": 10}


def test_429_fails_until_retry_after(server: Server) -> None:
    server.respond = lambda body: (429, {"Retry-After": "17"}, b"slow down")
    assert alone(server) == JobVerdict(
        JobResult.FAILED, "429 Too Many Requests: slow down", timedelta(seconds=17)
    )


def test_retry_after_as_a_date(server: Server) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(minutes=2), usegmt=True)
    server.respond = lambda body: (503, {"Retry-After": later}, b"")
    verdict = alone(server)
    assert verdict.result is JobResult.FAILED
    assert verdict.retry_after is not None
    assert 110 < verdict.retry_after.total_seconds() <= 120


def test_500_fails(server: Server) -> None:
    server.respond = lambda body: (500, {}, b"oops")
    assert alone(server) == JobVerdict(JobResult.FAILED, "500 Internal Server Error: oops")


def test_404_discards(server: Server) -> None:
    server.respond = lambda body: (404, {}, b"no such hook")
    assert alone(server) == JobVerdict(JobResult.DISCARDED, "404 Not Found: no such hook")


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.respond = lambda body: (
        307,
        {"Location": f"{server.url}/elsewhere?token=canary-77"},
        b"",
    )
    verdict = alone(server)
    assert verdict.result is JobResult.FAILED
    assert "redirects are not followed" in verdict.reason
    assert "canary-77" not in verdict.reason
    assert len(server.requests) == 1


def test_responses_decide_job_by_job(server: Server) -> None:
    server.respond = lambda body: (body["status"], {}, b"")
    verdicts = send(
        HTTPDestination("alerts", url=server.url),
        *({"status": status} for status in (200, 422, 500, 201)),
        concurrency=4,
    )
    assert {key: each.result for key, each in verdicts.items()} == {
        "key-0": JobResult.SUCCEEDED,
        "key-1": JobResult.DISCARDED,
        "key-2": JobResult.FAILED,
        "key-3": JobResult.SUCCEEDED,
    }


def test_a_slow_server_fails_in_time(server: Server) -> None:
    released = threading.Event()
    server.raw = lambda _: released.wait(30)
    began = time.monotonic()
    verdict = alone(server, request_timeout="300ms")
    released.set()
    assert verdict == JobVerdict(JobResult.FAILED, "no response within 0.3 s (ReadTimeout)")
    assert time.monotonic() - began < 5


def test_a_body_without_end_does_not_hold_up_its_status(server: Server) -> None:
    released = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 1000000\r\n\r\nbusy")
        while not released.wait(0.02):
            with suppress(OSError):
                connection.sendall(b".")

    server.raw = drip
    verdict = alone(server, request_timeout="300ms")
    released.set()
    assert verdict.result is JobResult.FAILED
    assert verdict.reason.startswith("503 Service Unavailable: busy.")


def test_a_huge_body_is_not_read(server: Server) -> None:
    server.respond = lambda body: (400, {}, b"x" * 50_000_000)
    verdict = alone(server)
    assert verdict.result is JobResult.DISCARDED
    assert len(verdict.reason) < 250


def test_a_connection_closed_without_a_response_fails(server: Server) -> None:
    server.raw = lambda connection: connection.shutdown(socket.SHUT_RDWR)
    verdict = alone(server)
    assert verdict.result is JobResult.FAILED
    assert verdict.reason == "the connection failed (RemoteProtocolError)"


def test_a_connection_cut_in_the_response_s_body_keeps_its_status(server: Server) -> None:
    server.raw = lambda connection: connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhal"
    )
    assert alone(server).result is JobResult.SUCCEEDED


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        verdict = send(HTTPDestination("alerts", url=url), {})["key-0"]
    assert verdict.result is JobResult.FAILED
    assert "refused" in verdict.reason


def test_sixteen_requests_are_under_way_at_once(server: Server) -> None:
    """No response leaves before sixteen requests are there: one at a time would never end."""
    together = threading.Barrier(16)

    def respond(body: Any) -> tuple[int, dict[str, str], bytes]:
        together.wait(timeout=20)
        return 200, {}, b""

    server.respond = respond
    alerts = HTTPDestination("alerts", url=server.url)
    verdicts = send(alerts, *({"n": n} for n in range(64)), concurrency=16)
    assert len(verdicts) == 64
    assert {each.result for each in verdicts.values()} == {JobResult.SUCCEEDED}
    assert sorted(body["n"] for *_, body in server.requests) == list(range(64))


def test_no_more_than_its_concurrency(server: Server) -> None:
    lock, under_way, most = threading.Lock(), 0, 0

    def respond(body: Any) -> tuple[int, dict[str, str], bytes]:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.005)
        with lock:
            under_way -= 1
        return 200, {}, b""

    server.respond = respond
    send(HTTPDestination("alerts", url=server.url), *({"n": n} for n in range(40)), concurrency=4)
    assert 1 < most <= 4


def test_connections_are_kept(server: Server) -> None:
    alerts = HTTPDestination("alerts", url=server.url)
    late = alerts.post("late", receives=departed)
    with connected(alerts) as load:
        for _ in range(3):
            load(late, {"n": 1}, {"n": 2})
    assert len(server.requests) == 6
    assert len(server.connections) == 1


def test_a_batch_in_one_request(server: Server) -> None:
    alerts = HTTPDestination("alerts", url=server.url)
    verdicts = send(alerts, {"n": 0}, {"n": 1}, batched=True, body=lambda job: [job.data["n"]])
    assert {each.result for each in verdicts.values()} == {JobResult.SUCCEEDED}
    assert [body for *_, body in server.requests] == [[[0], [1]]]


def test_a_batch_has_the_same_key_each_time(server: Server) -> None:
    alerts = HTTPDestination("alerts", url=server.url)
    late = alerts.post("late", receives=departed, batched=True)
    with connected(alerts) as load:
        load(late, 1, 2)
        load(late, 1, 2)
        load(late, 1)
    keys = [headers["Idempotency-Key"] for _, headers, _ in server.requests]
    assert keys[0] == keys[1] != keys[2]


def test_a_bad_job_of_a_batch_is_discarded_alone(server: Server) -> None:
    def respond(body: list[dict[str, int]]) -> tuple[int, dict[str, str], bytes]:
        return (422, {}, b"n is 70") if {"n": 70} in body else (200, {}, b"")

    server.respond = respond
    verdicts = send(
        HTTPDestination("alerts", url=server.url), *({"n": n} for n in range(100)), batched=True
    )
    discarded = {
        key: each.reason for key, each in verdicts.items() if each.result is JobResult.DISCARDED
    }
    assert discarded == {"key-70": "422 Unprocessable Entity: n is 70"}
    assert sum(each.result is JobResult.SUCCEEDED for each in verdicts.values()) == 99
    assert len(server.requests) <= 15  # 1 + 2 log2(100)


def test_a_batch_rejected_for_its_sender_is_sent_once(server: Server) -> None:
    server.respond = lambda body: (403, {}, b"who are you?")
    verdicts = send(HTTPDestination("alerts", url=server.url), 1, 2, 3, batched=True)
    assert [each.result for each in verdicts.values()] == [JobResult.DISCARDED] * 3
    assert len(server.requests) == 1


def test_a_batch_that_is_too_early_fails_whole(server: Server) -> None:
    server.respond = lambda body: (429, {"Retry-After": "3"}, b"")
    verdicts = send(HTTPDestination("alerts", url=server.url), 1, 2, batched=True)
    assert (
        list(verdicts.values())
        == [JobVerdict(JobResult.FAILED, "429 Too Many Requests", timedelta(seconds=3))] * 2
    )
    assert len(server.requests) == 1


def test_an_empty_batch_sends_nothing(server: Server) -> None:
    for batched in (False, True):
        assert send(HTTPDestination("alerts", url=server.url), batched=batched) == {}
    assert server.requests == []


def test_a_load_that_runs_late_begins_no_request(server: Server) -> None:
    """Its jobs fail before the load's time is up, rather than end without a result."""
    released = threading.Event()
    server.raw = lambda _: released.wait(30)
    alerts = HTTPDestination("alerts", url=server.url, timeout="900ms")
    late = alerts.post("late", receives=departed, request_timeout="200ms")
    assert late.batch_size == 2
    began = time.monotonic()
    with connected(alerts) as load:
        verdicts = load(late, *range(20)).verdicts
    assert time.monotonic() - began < 5
    released.set()
    assert len(verdicts) == 20
    assert {each.result for each in verdicts.values()} == {JobResult.FAILED}
    assert len(server.requests) < 20
    assert verdicts["key-19"].reason.startswith("not sent")


def test_secrets_appear_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where the server repeats them, or httpx logs them."""
    monkeypatch.setenv("ALERTS_URL", f"http://user:canary-1@{server.url[7:]}/canary-2?t=canary-3")
    monkeypatch.setenv("ALERTS_TOKEN", "Bearer canary-4")
    alerts = HTTPDestination(
        "alerts", url=Secret("ALERTS_URL"), headers={"X-Token": Secret("ALERTS_TOKEN")}
    )
    echoed: list[str] = []

    def respond(body: Any) -> tuple[int, dict[str, str], bytes]:
        path, headers, _ = server.requests[-1]
        login = b64encode(b"user:canary-1").decode()
        assert headers["Authorization"] == f"Basic {login}"
        echo = f"{path} {headers['X-Token']} canary-4 {login} http://user:canary-1@host/"
        echoed.append(echo)
        return body, {}, echo.encode()

    server.respond = respond
    with caplog.at_level(logging.INFO):
        verdicts = send(alerts, 400, 500, 200, path="/late")
    assert "canary-3" in echoed[0], "the server saw nothing that it could repeat"
    assert verdicts["key-0"].reason == "400 Bad Request: ***/late?*** *** *** *** http://***@host/"
    assert "HTTP Request: POST" in caplog.text
    everything = f"{verdicts} {caplog.text} {alerts!r} {vars(alerts)}"
    assert "canary" not in everything
    assert b64encode(b"user:canary-1").decode() not in everything


def test_a_header_that_cannot_be_sent_is_not_shown(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALERTS_TOKEN", "canary-4\n")
    alerts = HTTPDestination("alerts", url=server.url, headers={"X-Token": Secret("ALERTS_TOKEN")})
    with pytest.raises(SettingsError, match=r"X-Token.*line break") as caught:
        send(alerts, 1)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("url", ["canary-1", "ftp://canary-1/", "http://", "http://canary-1:port/"])
def test_no_error_shows_the_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeclarationError, match="its url is invalid") as declared:
        HTTPDestination("alerts", url=url)
    monkeypatch.setenv("ALERTS_URL", url)
    with pytest.raises(SettingsError, match="ALERTS_URL does not hold a URL") as caught:
        send(HTTPDestination("alerts", url=Secret("ALERTS_URL")), 1)
    assert "canary" not in f"{declared.value} {caught.value} {declared.value.__cause__}"


def test_wrong_declarations() -> None:
    alerts = HTTPDestination("alerts", url="https://alerts.example")
    with pytest.raises(DeclarationError, match="cannot name a header"):
        HTTPDestination("alerts", url="https://alerts.example", headers={"X Token": "a"})
    with pytest.raises(DeclarationError, match="without a query"):
        alerts.post("late", receives=departed, path="late?a=b")
    for concurrency in (0, 257):
        with pytest.raises(DeclarationError, match="from 1 to 256"):
            alerts.post("late", receives=departed, concurrency=concurrency)
    with pytest.raises(DeclarationError, match="a batch is one request"):
        alerts.post("late", receives=departed, batched=True, concurrency=2)
    with pytest.raises(DeclarationError, match="a third of the load's timeout"):
        alerts.post("late", receives=departed, request_timeout="2m")
    assert alerts.events == {}


def test_a_load_holds_no_more_than_can_get_a_late_response() -> None:
    alerts = HTTPDestination("alerts", url="https://alerts.example", timeout="1m")
    assert alerts.post("one", receives=departed).batch_size == 4
    assert alerts.post("many", receives=departed, concurrency=16).batch_size == 64
    assert alerts.post("few", receives=departed, batch_size=3).batch_size == 3
    assert alerts.post("whole", receives=departed, batched=True).batch_size == 1000
