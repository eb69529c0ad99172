"""`blacksmith quarantine`, and the listeners in `blacksmith status`."""

import base64
import contextlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from blacksmith_dagster import (
    HTTP,
    Batch,
    Blacksmith,
    Destination,
    Event,
    Message,
    Reject,
    Reply,
    Request,
    Schedule,
    Source,
    Subscription,
    TypedEvent,
)
from blacksmith_dagster.cli import main
from blacksmith_dagster.ingest import ingest
from blacksmith_dagster.ingest.quarantine import raw_request_of
from blacksmith_dagster.pubsub import open_pubsub
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import ListenerStatus, RawRequest

BUG = RuntimeError("a bug")
fixed = False  # whether the extract functions have been fixed

shop = Source("shop")
line = shop.child("line")


@shop.event(HTTP("/shop/orders"))
def ordered(request: Request) -> Event[dict[str, object]] | Reply:
    if not fixed:
        raise BUG
    order = request.json()
    if order == "ping":
        return Reply(200, "pong")
    if order == "rejected":
        raise Reject("no order")
    seen = {"query": request.query, "agent": request.headers.get("user-agent")}
    return Event(
        order, context=seen, children=[line.of(order_line) for order_line in order.get("lines", ())]
    )


@shop.event(Subscription("parcels"))
def sent(message: Message) -> Event[dict[str, object]]:
    if not fixed:
        raise BUG
    reported = {"topic": message.topic, "key": message.key, "place": message.place}
    return Event(message.json(), sent_at=message.sent_at, context=reported)


@shop.webhook(HTTP("/shop/hook", method="PUT"))
def arrived(request: Request) -> TypedEvent:
    return line.of({"sku": request.json()["sku"]})


@shop.webhook(HTTP("/shop/hook"))
def posted(request: Request) -> Reply:
    return Reply()


mail = Destination("mail", schedule=Schedule("@every 1h"))


@mail.event(receives=[ordered, sent, line])
def thanks(batch: Batch[object]) -> None: ...


alerts = Destination("alerts", schedule=Schedule(realtime=True))


@alerts.event(receives=sent)
def parcel(batch: Batch[object]) -> None: ...


blacksmith = Blacksmith(sources=[shop], destinations=[mail, alerts])
less = Blacksmith(sources=[Source("shop")], destinations=[])
APP = "--app=tests.acceptance.test_cli_quarantine:blacksmith"
LESS = "--app=tests.acceptance.test_cli_quarantine:less"


@pytest.fixture
def store(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The commands' store."""
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("BLACKSMITH_STORE_URL", store_url)
    with contextlib.closing(open_store(store_url, upgrade=True)) as opened:
        opened.register(blacksmith)
        yield opened


@pytest.fixture
def fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extract functions are fixed before the test's commands run."""
    monkeypatch.setattr(sys.modules[__name__], "fixed", True)


def run(*arguments: str, code: int = 0, answer: str | None = None) -> Result:
    result = CliRunner().invoke(main, ["quarantine", *arguments], input=answer)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def failed(store: Store, *came: Request | Message) -> list[str]:
    """Requests to `ordered` and messages to `sent` that met the bug; their ids in quarantine."""
    paths = [sent.path if isinstance(request, Message) else ordered.path for request in came]
    raw_requests = [
        raw_request_of(path, request, BUG) for path, request in zip(paths, came, strict=True)
    ]
    return [store.quarantine.add(raw) for raw in raw_requests]


def kept(store: Store) -> list[str]:
    """The events' data, the newest first."""
    return [event.payload for event in store.log.newest()]


# ---------------------------------------------------------------------------------- list, show


def test_list_shows_the_oldest_without_bodies_and_headers(store: Store) -> None:
    secret = Request(b"cAnAry1", {"x-shop-key": "cAnAry2"}, {"token": "cAnAry3"})
    order, message = failed(store, secret, Message(b"{}"))
    rows = [row.split() for row in run("list").stdout.splitlines()[1:]]
    assert [(row[0], row[3], row[4]) for row in rows] == [
        (order, "shop/ordered", "7"),
        (message, "shop/sent", "2"),
    ]
    assert "RuntimeError: a bug" in run("list", "--limit=1").stdout
    [listed] = msgspec.json.decode(run("list", "--event=shop/sent", "--json").stdout)
    assert (listed["id"], listed["size"]) == (message, 2)
    for options in ((), ("--json",)):
        assert "cAnAry" not in run("list", *options).stdout
    assert "it has" in run("list", "--event=shop/nope", code=1).stderr


def test_list_cuts_a_long_error_that_show_shows_whole(store: Store) -> None:
    long = "no such airport: " + "x" * 500 + "\nEND"
    quarantine_id = store.quarantine.add(RawRequest(ordered.path, b"{}", {}, long))
    assert "END" not in run("list").stdout
    assert max(map(len, run("list").stdout.splitlines())) < 200
    assert "END" in run("show", quarantine_id).stdout.splitlines()


def test_show_shows_a_request_without_what_may_be_a_credential(store: Store) -> None:
    headers = {"user-agent": "till/1", "x-shop-key": "cAnAry1", "idempotency-key": "order-7"}
    query = {"from": "till", "api_token": "cAnAry2"}
    [order] = failed(store, Request(b'{"caf\xc3\xa9": 1}', headers, query, path="/shop/orders"))
    shown = run("show", order).stdout
    assert shown.startswith(f"{order} of shop/ordered\nRuntimeError: a bug\n")
    for reported in (
        "user-agent: till/1",
        "idempotency-key: order-7",
        "x-shop-key: ***",
        ":method: POST",
        ":path: /shop/orders?from=till&api_token=***",
        '{"café": 1}',
    ):
        assert reported in shown.splitlines()
    reported = msgspec.json.decode(run("show", order, "--json").stdout)
    assert base64.b64decode(reported["body"]).decode() == '{"café": 1}'
    assert "cAnAry" not in shown + run("show", order, "--json").stdout


def test_show_reports_where_a_message_came_from(store: Store) -> None:
    message = Message(b"{}", topic="parcels", key="k7", id="m7", place="parcels/3@1545")
    shown = run("show", *failed(store, message)).stdout
    assert ":place: parcels/3@1545" in shown
    assert ":key: k7" in shown


def test_show_writes_what_is_no_text_in_hex(store: Store) -> None:
    body = b"\xff\xfe" + bytes(40)
    assert "ff fe 00 00" in run("show", *failed(store, Request(body))).stdout


def test_show_sends_nothing_to_the_terminal_that_would_control_it(store: Store) -> None:
    [order] = failed(store, Request(b"\x1b]0;evil\x07", {"x-evil": "\x1b[2J"}))
    shown = run("show", order).stdout
    assert "\\x1b]0;evil\\x07" in shown
    assert "\x1b" not in shown + run("list").stdout


def test_show_writes_the_body_byte_for_byte(store: Store) -> None:
    body = bytes(range(256))
    [order] = failed(store, Request(body))
    command = [
        sys.executable,
        "-m",
        "blacksmith_dagster.cli",
        "quarantine",
        "show",
        order,
        "--body",
    ]
    assert subprocess.run(command, capture_output=True, check=True, timeout=60).stdout == body


def test_what_is_not_there_is_one_line_and_exit_code_1(store: Store) -> None:
    for arguments in (("show", "qua_7"), ("drop", "qua_7", "--yes")):
        assert "no request 'qua_7' in quarantine" in run(*arguments, code=1).stderr


# ---------------------------------------------------------------------------------- retry


@pytest.mark.usefixtures("fix")
def test_retry_ingests_a_request_as_it_came(store: Store) -> None:
    came = Request(
        b'{"id": 7, "lines": [{"sku": "A1"}]}',
        {"content-type": "application/json", "user-agent": "till/1"},
        {"from": "till"},
        path="/shop/orders",
    )
    [order] = failed(store, came)
    output = run("retry", order, APP).stdout
    child, parent = store.log.newest()
    assert output.splitlines() == [f"{order} ingested: {parent.id}, {child.id}", "1 of 1 ingested"]
    assert (parent.event_type, child.event_type, child.parent) == (
        "shop/ordered",
        "shop/line",
        parent.id,
    )
    assert parent.context == '{"query":{"from":"till"},"agent":"till/1"}'
    assert parent.destinations == ["mail/thanks"]
    assert not store.quarantine.oldest()


@pytest.mark.usefixtures("fix")
def test_retry_ingests_a_message_as_it_came(store: Store) -> None:
    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    message = Message(b'{"n": 1}', {}, "parcels", "k7", "m7", time, "parcels/3@1545")
    run("retry", *failed(store, message), APP)
    [event] = store.log.newest()
    assert event.context == '{"topic":"parcels","key":"k7","place":"parcels/3@1545"}'
    assert event.sent_at == time


@pytest.mark.usefixtures("fix")
def test_retry_counts_the_key_that_a_request_came_with(store: Store) -> None:
    came = Request(b'{"id": 7}', {"idempotency-key": "order-7"})
    [order] = failed(store, came)
    # Its sender has sent it again after the fix.
    [[first]] = ingest(blacksmith, store, ordered, [came])
    assert f"{order} ingested: {first}" in run("retry", order, APP).stdout
    other = Request(b'{"id": 8}', {"idempotency-key": "order-7"})
    [reused] = failed(store, other)
    output = run("retry", reused, APP, code=1).stdout
    assert f"{reused} stays: the key 'order-7' was sent before with another body" in output
    assert kept(store) == ['{"id":7}']
    assert [raw.id for raw in store.quarantine.oldest()] == [reused]


@pytest.mark.usefixtures("fix")
def test_retry_wakes_who_loads_at_once(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("BLACKSMITH_STORE_URL", postgres_url)
    monkeypatch.setenv("BLACKSMITH_PUBSUB_URL", "postgres")
    pubsub = open_pubsub("postgres", postgres_url)
    assert pubsub is not None
    with (
        contextlib.closing(open_store(postgres_url, upgrade=True)) as store,
        contextlib.closing(pubsub.subscriber("alerts")) as subscriber,
    ):
        store.register(blacksmith)
        assert not subscriber.wait(0.1)
        run("retry", *failed(store, Message(b"{}")), APP)
        assert set(subscriber.wait(30)) == {"alerts/parcel"}


def test_retry_reports_what_fails_again_and_leaves_it(store: Store) -> None:
    ids = failed(store, Request(b"1"), Request(b"2"))
    output = run("retry", "--all", APP, code=1).stdout
    assert output.splitlines() == [
        *(f"{quarantine_id} stays: RuntimeError: a bug" for quarantine_id in ids),
        "0 of 2 ingested",
    ]
    assert [raw.id for raw in store.quarantine.oldest()] == ids
    assert not store.log.newest()


@pytest.mark.usefixtures("fix")
def test_retry_goes_on_past_what_fails(store: Store) -> None:
    bad, rejected, good = failed(store, *(Request(body) for body in (b"{", b'"rejected"', b"{}")))
    output = run("retry", "--all", APP, code=1).stdout
    assert f"{bad} stays: the body" in output
    assert f"{rejected} stays: no order" in output
    assert "1 of 3 ingested" in output
    assert kept(store) == ["{}"]
    assert good not in {raw.id for raw in store.quarantine.oldest()}


@pytest.mark.usefixtures("fix")
def test_retry_of_one_event_leaves_the_others(store: Store) -> None:
    order, message = failed(store, Request(b"{}"), Message(b"{}"))
    assert "1 of 1 ingested" in run("retry", "--event=shop/sent", APP).stdout
    assert [raw.id for raw in store.quarantine.oldest()] == [order]
    assert message not in run("list").stdout


@pytest.mark.usefixtures("fix")
def test_a_request_that_gets_a_reply_makes_no_event(store: Store) -> None:
    [ping] = failed(store, Request(b'"ping"'))
    assert f"{ping} ingested: it makes no event" in run("retry", ping, APP).stdout
    assert not store.quarantine.oldest()
    assert not store.log.newest()


def test_retry_of_what_came_through_a_webhook_calls_the_function_of_its_path(store: Store) -> None:
    came = Request(b'{"sku": "A1"}', {}, {"from": "till"}, "PUT", "/shop/hook")
    quarantine_id = store.quarantine.add(raw_request_of("shop", came, BUG))
    assert "1 of 1 ingested" in run("retry", quarantine_id, APP).stdout
    [event] = store.log.newest()
    assert (event.event_type, event.payload) == ("shop/line", '{"sku":"A1"}')


def test_retry_of_what_the_application_does_not_have_any_more_says_so(store: Store) -> None:
    [order] = failed(store, Request(b"{}"))
    hook = store.quarantine.add(raw_request_of("shop", Request(b"{}", path="/shop/old"), BUG))
    child = store.quarantine.add(raw_request_of("shop/line", Request(b"{}"), BUG))
    for quarantine_id, app, reason in (
        (
            order,
            LESS,
            "came to shop/ordered, which the application does not have; declare it again",
        ),
        (hook, APP, "came to POST /shop/old, where source 'shop' has no webhook; declare it again"),
        (child, APP, "came to shop/line, whose function accepts neither requests nor messages"),
    ):
        output = run("retry", quarantine_id, app, code=1).stdout
        assert reason in output
        assert f"`blacksmith quarantine drop {quarantine_id}`" in output
    assert len(store.quarantine.oldest()) == 3


def test_retry_wants_to_know_what(store: Store) -> None:
    for arguments in ((), ("qua_1", "--all"), ("--all", "--event=shop/sent")):
        assert "name the IDs" in run("retry", *arguments, APP, code=2).stderr
    assert run("retry", "--all", APP).stdout == "0 of 0 ingested\n"


# ---------------------------------------------------------------------------------- drop


def test_drop_asks(store: Store) -> None:
    ids = failed(store, Request(b"1"), Request(b"2"), Request(b"3"))
    run("drop", ids[0], code=1, answer="n\n")
    assert len(store.quarantine.oldest()) == 3
    assert "Drop qua_1 for good?" in run("drop", ids[0], answer="y\n").stdout
    assert "2 dropped" in run("drop", *ids[1:], "--yes").stdout
    assert not store.quarantine.oldest()


# ---------------------------------------------------------------------------------- docs


def test_the_documented_commands_do_what_they_say(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/quarantine.md: its pipeline, and each of its commands in their order."""
    page = (Path(__file__).parents[2] / "docs" / "quarantine.md").read_text()
    [pipeline] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    [commands] = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "documented_orders.py").write_text(pipeline)
    app = '[tool.blacksmith]\napp = "documented_orders:application"\n'
    (tmp_path / "pyproject.toml").write_text(app)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    error = KeyError("id")
    for body in (b'{"total": 5}', b'{"total": 6}'):
        store.quarantine.add(
            raw_request_of("shop/ordered", Request(body, path="/shop/orders"), error)
        )
    output = [
        run(*shlex.split(line, comments=True)[2:], answer="y\n").stdout
        for line in commands.splitlines()
    ]
    assert [line.split()[0] for line in output[0].splitlines()[1:]] == ["qua_1", "qua_2"]
    assert "KeyError: 'id'" in output[1]
    assert '{"total": 5}' in output[1]
    assert "1 of 1 ingested" in output[2]
    assert "1 dropped" in output[3]
    assert kept(store) == ['{"total":5}']
    assert not store.quarantine.oldest()


# ---------------------------------------------------------------------------------- status


def status(*options: str) -> str:
    result = CliRunner().invoke(main, ["status", APP, *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_status_reports_what_is_in_quarantine(store: Store) -> None:
    assert "quarantine" not in status()
    failed(store, Request(b"1"), Request(b"2"), Message(b"3"))
    reported = "In quarantine: 2 of shop/ordered, 1 of shop/sent (`blacksmith quarantine list`)"
    assert reported in status().splitlines()
    output = msgspec.json.decode(status("--json"))
    assert output["quarantined"] == {"shop/ordered": 2, "shop/sent": 1}


def test_status_reports_every_listener(store: Store) -> None:
    assert "listener" not in status()
    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    store.log.note_listener(ListenerStatus("shop/sent", "worker@a", 12, "messages", time))
    store.log.note_listener(ListenerStatus("shop/changed", "run-7", error="the slot is gone"))
    lines = status().splitlines()
    [changed] = [line for line in lines if line.startswith("shop/changed")]
    [sent] = [line for line in lines if line.startswith("shop/sent")]
    assert changed.split()[1:4] == ["run-7", "not", "known"]
    assert changed.endswith("the slot is gone")
    assert sent.split()[1:6] == ["worker@a", "12", "messages", "2026-01-02", "03:04:05"]
    output = msgspec.json.decode(status("--json"))
    assert output["listeners"][1]["lag"] == 12
