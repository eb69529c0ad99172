"""Webhooks and CloudEvents, made and signed by their senders' own libraries, at a real gateway."""

import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

import httpx
import pytest
import stripe
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from slack_sdk.signature import SignatureVerifier
from standardwebhooks import Webhook

from tests.support.github_examples import examples
from tests.support.processes.webhooks import (
    GITHUB_SECRET,
    GITHUB_SECRET_OLD,
    HOOKS_SECRET,
    SLACK_SECRET,
    STRIPE_SECRET,
    Webhooks,
    opened,
)

Headers: TypeAlias = Mapping[str, str]

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Webhooks]:
    with opened(request.param, request, tmp_path_factory.mktemp("webhooks")) as webhooks:
        yield webhooks


@pytest.fixture
def webhooks(running: Webhooks) -> Webhooks:
    running.new()
    return running


def github_signed(body: str, secret: str = GITHUB_SECRET, **headers: str) -> Headers:
    """As GitHub documents it: it has no library for senders."""
    signature = hmac.new(secret.encode(), body.encode(), hashlib.sha256).hexdigest()
    return {
        **JSON,
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": str(uuid.uuid4()),
        "X-Hub-Signature-256": f"sha256={signature}",
        **headers,
    }


def stripe_signed(body: str, secret: str = STRIPE_SECRET, age: int = 0) -> Headers:
    sent = int(time.time()) - age
    signature = stripe.WebhookSignature.generate_signature_header(body, secret, sent)
    return {**JSON, "Stripe-Signature": signature}


def slack_signed(body: str, secret: str = SLACK_SECRET, age: int = 0) -> Headers:
    sent = str(int(time.time()) - age)
    signature = SignatureVerifier(secret).generate_signature(timestamp=sent, body=body)
    assert signature is not None
    return {**JSON, "X-Slack-Request-Timestamp": sent, "X-Slack-Signature": signature}


def hooks_signed(
    body: str, secret: str = HOOKS_SECRET, age: int = 0, key: str | None = None
) -> Headers:
    sent = datetime.fromtimestamp(int(time.time()) - age, UTC)
    key = f"msg_{uuid.uuid4()}" if key is None else key
    return {
        **JSON,
        "webhook-id": key,
        "webhook-timestamp": str(int(sent.timestamp())),
        "webhook-signature": Webhook(secret).sign(key, sent, body),
    }


def repeated(webhooks: Webhooks, path: str, body: str, sign: Callable[[str], Headers]) -> Any:
    """The event of a request that is sent, and sent again with a new signature: only one."""
    headers = sign(body)
    first = webhooks.post(path, body, headers)
    (event,) = webhooks.new()
    for again in (headers, {**headers, **sign(body)}):
        response = webhooks.post(path, body, again)
        assert (response.status_code, response.content) == (first.status_code, first.content)
    assert not webhooks.new()
    assert list(event.destinations) == ["lake/everything"]
    return first, event


def is_problem(response: httpx.Response, status: int, says: str = "") -> bool:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert says in response.json()["detail"], response.text
    return True


# ------------------------------------------------------------------------------------ GitHub


def test_github_payloads_at_their_webhook(webhooks: Webhooks) -> None:
    recorded = list(examples())
    with webhooks.gateway.client() as client:
        for number, (name, payload) in enumerate(recorded):
            body = json.dumps(payload)
            secret = GITHUB_SECRET_OLD if number % 2 else GITHUB_SECRET
            headers = github_signed(body, secret, **{"X-GitHub-Event": name})
            response = client.post("/v1/github", content=body, headers=headers)
            if name == "ping":
                assert (response.status_code, response.text) == (200, "pong")
            else:
                assert response.status_code == 202, response.text
    deliveries = [delivery for delivery in recorded if delivery[0] != "ping"]
    events = webhooks.new()
    assert len(events) == len(deliveries)
    for event, (name, payload) in zip(events, deliveries, strict=True):
        assert event.event_type == ("github/push" if name == "push" else "github/other")
        assert json.loads(event.payload) == payload
        assert json.loads(event.context or "") == {"event": name}


def test_github_delivery_again_is_one_event(webhooks: Webhooks) -> None:
    body = json.dumps({"ref": "refs/heads/main"})
    delivery = str(uuid.uuid4())

    def sign(body: str) -> Headers:
        return github_signed(body, **{"X-GitHub-Delivery": delivery})

    response, event = repeated(webhooks, "/v1/github", body, sign)
    assert (response.status_code, response.json()) == (202, {"ids": [event.id]})
    assert event.key == delivery


# ------------------------------------------------------------------------------------ Stripe


def invoice_paid(**changed: Any) -> str:
    event = {
        "id": f"evt_{uuid.uuid4()}",
        "object": "event",
        "api_version": "2026-01-28",
        "created": int(NOON.timestamp()),
        "data": {"object": {"id": "in_1", "object": "invoice", "amount_paid": 1900}},
        "livemode": True,
        "type": "invoice.paid",
    }
    return json.dumps(event | changed)


def test_stripe_event_is_kept(webhooks: Webhooks) -> None:
    body = invoice_paid()
    response, event = repeated(webhooks, "/v1/stripe", body, stripe_signed)
    assert response.status_code == 202
    assert event.event_type == "stripe/invoice_paid"
    assert json.loads(event.payload)["object"]["amount_paid"] == 1900
    assert (event.key, event.version) == (json.loads(body)["id"], "2026-01-28")
    assert event.sent_at == NOON
    assert json.loads(event.context or "")["livemode"] is True


def test_stripe_version_is_one_that_is_declared(webhooks: Webhooks) -> None:
    body = invoice_paid(api_version="2019-01-01")
    response = webhooks.post("/v1/stripe", body, stripe_signed(body))
    assert is_problem(response, 422, "no version '2019-01-01'")
    assert not webhooks.new()


# ------------------------------------------------------------------------------------- Slack


def test_slack_handshake_gets_its_response(webhooks: Webhooks) -> None:
    body = json.dumps({"type": "url_verification", "token": "t", "challenge": "3eZbrw1aB"})
    response = webhooks.post("/v1/slack", body, slack_signed(body))
    assert (response.status_code, response.text) == (200, "3eZbrw1aB")
    assert response.headers["content-type"].startswith("text/plain")
    assert is_problem(webhooks.post("/v1/slack", body, slack_signed(body, "another")), 401)
    assert not webhooks.new()


def test_slack_event_is_kept(webhooks: Webhooks) -> None:
    callback = {
        "type": "event_callback",
        "token": "a-canary",
        "team_id": "T1",
        "event": {"type": "app_mention", "user": "U1", "text": "hello"},
        "event_id": f"Ev{uuid.uuid4()}",
        "event_time": int(NOON.timestamp()),
    }
    tries = iter(range(3))

    def sign(body: str) -> Headers:
        retry = {"X-Slack-Retry-Num": str(next(tries)), "X-Slack-Retry-Reason": "http_timeout"}
        return {**slack_signed(body), **retry}

    response, event = repeated(webhooks, "/v1/slack", json.dumps(callback), sign)
    assert (response.status_code, response.content) == (200, b"")
    assert json.loads(event.payload) == callback["event"]
    assert (event.key, event.sent_at) == (callback["event_id"], NOON)
    assert "canary" not in repr(event)


# ------------------------------------------------------------------------- Standard Webhooks


def test_standard_webhook_is_kept(webhooks: Webhooks) -> None:
    body = json.dumps({"type": "user.created", "timestamp": NOON.isoformat(), "data": {"id": 7}})
    key = f"msg_{uuid.uuid4()}"
    response, event = repeated(
        webhooks, "/v1/hooks", body, lambda body: hooks_signed(body, key=key)
    )
    assert (response.status_code, response.json()) == (202, {"ids": [event.id]})
    assert (event.event_type, event.payload) == ("hooks/user_created", '{"id":7}')
    assert (event.key, event.sent_at) == (key, NOON)


# ------------------------------------------------------------------------------- CloudEvents


def order_placed(**changed: Any) -> CloudEvent:
    attributes = {
        "type": "com.example.order.placed",
        "source": "https://shop.example/orders",
        "id": str(uuid.uuid4()),
        "time": NOON,
        "subject": 'größe "7" %25',
        "datacontenttype": "application/json",
        "tenant": "a",
    }
    data = changed.pop("data", {"id": 7, "total": 99.5})
    return CloudEvent(attributes | changed, data)


@pytest.mark.parametrize("mode", [to_binary_event, to_structured_event])
def test_cloud_event_is_kept(webhooks: Webhooks, mode: Callable[[CloudEvent], Any]) -> None:
    sent = order_placed()
    message = mode(sent)
    _, event = repeated(webhooks, "/v1/orders", message.body.decode(), lambda _: message.headers)
    assert event.event_type == "orders/placed"
    assert json.loads(event.payload) == sent.get_data()
    assert (event.key, event.sent_at) == (f"{sent.get_source()} {sent.get_id()}", NOON)
    context = json.loads(event.context)
    assert datetime.fromisoformat(context.pop("time")) == NOON
    attributes = sent.get_attributes()
    assert context == {name: value for name, value in attributes.items() if name != "time"}


def test_batch_of_cloud_events(webhooks: Webhooks) -> None:
    sent = [
        order_placed(),
        order_placed(data={"id": 8, "total": 101}),
        order_placed(type="com.example.order.lost", data=[1]),
    ]
    body = b"[%s]" % b",".join(to_structured_event(event).body for event in sent)
    headers = {"Content-Type": "application/cloudevents-batch+json"}
    first, again = (webhooks.post("/v1/orders", body, headers) for _ in range(2))
    events = webhooks.new()
    assert first.json() == again.json() == {"ids": [event.id for event in events]}
    # Each type has its own jobs; `when` gets the model.
    assert [(event.event_type, set(event.destinations)) for event in events] == [
        ("orders/placed", {"lake/everything"}),
        ("orders/placed", {"lake/everything", "lake/large"}),
        ("orders/anything", {"lake/everything"}),
    ]


def test_binary_data_of_cloud_events(webhooks: Webhooks) -> None:
    data = bytes(range(256))
    sent = order_placed(type="blob", data=data, datacontenttype="application/octet-stream")
    for mode in (to_binary_event, to_structured_event):
        message = mode(sent)
        assert webhooks.post("/v1/orders", message.body, message.headers).status_code == 202
    (event,) = webhooks.new()  # one event, in whichever mode it is sent
    assert json.loads(event.context or "")["datacontentencoding"] == "base64"


def test_one_bad_event_in_a_batch(webhooks: Webhooks) -> None:
    bad = order_placed(data={"total": 1})
    body = b"[%s]" % b",".join(to_structured_event(event).body for event in (order_placed(), bad))
    headers = {"Content-Type": "application/cloudevents-batch+json"}
    response = webhooks.post("/v1/orders", body, headers)
    assert is_problem(response, 422, "event 2 does not fit orders/placed")
    assert not webhooks.new()


# --------------------------------------------------------------------------------- bad input

SIGNED: Mapping[str, tuple[str, Callable[..., Headers]]] = {
    "github": (json.dumps({"ref": "main"}), github_signed),
    "stripe": (invoice_paid(), stripe_signed),
    "slack": (json.dumps({"type": "url_verification", "challenge": "c"}), slack_signed),
    "hooks": (json.dumps({"type": "user.created", "data": 1}), hooks_signed),
}


@pytest.mark.parametrize("sender", SIGNED)
def test_wrong_signature(webhooks: Webhooks, sender: str) -> None:
    body, sign = SIGNED[sender]
    right = sign(body)
    other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSx" if sender == "hooks" else "another"
    path = f"/v1/{sender}"
    assert is_problem(webhooks.post(path, body, sign(body, other)), 401)
    assert is_problem(webhooks.post(path, f"{body} ", right), 401)
    assert is_problem(webhooks.post(path, body, JSON), 401)
    assert not webhooks.new()


@pytest.mark.parametrize("sender", ["stripe", "slack", "hooks"])
def test_old_signature(webhooks: Webhooks, sender: str) -> None:
    body, sign = SIGNED[sender]
    response = webhooks.post(f"/v1/{sender}", body, sign(body, age=301))
    assert is_problem(response, 401, "old, more than the allowed 5m")
    assert not webhooks.new()


@pytest.mark.parametrize(
    ("sender", "body", "status", "says"),
    [
        ("github", "[]", 422, "Expected `object`"),
        ("github", "{", 400, "not JSON"),
        ("stripe", invoice_paid(type="invoice.voided"), 422, "it accepts invoice.paid"),
        ("stripe", invoice_paid(id=""), 422, "at `$.id`"),
        ("stripe", invoice_paid(id="x" * 513), 422, "a key has 1 to 512 characters"),
        ("stripe", "null", 422, "Expected `object`"),
        ("slack", '{"type": "event_callback"}', 422, "at `$.event`"),
        ("slack", '{"type": "app_rate_limited"}', 422, "it accepts app_mention"),
        ("hooks", '{"type": "user.created"}', 422, "at `$.data`"),
        ("hooks", '{"type": "user.deleted", "data": 1}', 422, "it accepts user.created"),
    ],
)
def test_what_is_signed_and_wrong_is_rejected(
    webhooks: Webhooks, sender: str, body: str, status: int, says: str
) -> None:
    response = webhooks.post(f"/v1/{sender}", body, SIGNED[sender][1](body))
    assert is_problem(response, status, says)
    assert not webhooks.new()


@pytest.mark.parametrize("missing", ["X-GitHub-Event", "X-GitHub-Delivery"])
def test_github_headers_are_needed(webhooks: Webhooks, missing: str) -> None:
    headers = {name: value for name, value in github_signed("{}").items() if name != missing}
    assert is_problem(webhooks.post("/v1/github", "{}", headers), 400, missing)


@pytest.mark.parametrize(
    ("body", "media", "status", "says"),
    [
        ("{}", "application/json", 400, "this is not a CloudEvent"),
        ("{}", "application/cloudevents+json", 422, "at `$.specversion`"),
        ("{}", "application/cloudevents-batch+json", 422, "Expected `array`"),
        ("<e/>", "application/cloudevents+xml", 415, "send JSON"),
        ('{"specversion": "0.3"}', "application/cloudevents+json", 422, "CloudEvents 1.0"),
    ],
)
def test_what_is_no_cloud_event_is_rejected(
    webhooks: Webhooks, body: str, media: str, status: int, says: str
) -> None:
    assert is_problem(webhooks.post("/v1/orders", body, {"Content-Type": media}), status, says)
    assert not webhooks.new()
