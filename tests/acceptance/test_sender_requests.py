"""Requests that senders and proxies really send: what is right is taken, the rest rejected clearly."""

import base64
import contextlib
import hmac
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok

from blacksmith_dagster.cli import main
from blacksmith_dagster.store import Store, open_store
from tests.support.processes.blacksmith import GATEWAY_PIPELINE, GatewayProcess, peak_memory
from tests.support.services.postgres import PostgresServer
from tests.support.waiting import until

PIPELINE = "tests.support.pipelines.senders:blacksmith"
HOOKS_SECRET = base64.b64encode(b"hooks-secret").decode()
ENV = {
    "META_SECRET": "meta-secret",
    "META_TOKEN": "meta-token",
    "SEGMENT_KEY": "segment-key",
    "GITHUB_SECRET": "github-secret",
    "STRIPE_SECRET": "stripe-secret",
    "SLACK_SECRET": "slack-secret",
    "HOOKS_SECRET": HOOKS_SECRET,
}


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/store.db"


@pytest.fixture(scope="module")
def gateway(store_of: str) -> Iterator[GatewayProcess]:
    with GatewayProcess(store_of, PIPELINE, env=ENV) as process:
        yield process


@pytest.fixture
def store(gateway: GatewayProcess, store_of: str) -> Iterator[Store]:
    with contextlib.closing(open_store(store_of)) as opened:
        yield opened


def signed(secret: str, content: bytes) -> str:
    return hmac.digest(secret.encode(), content, "sha256").hex()


def signature(path: str, body: bytes) -> dict[str, str]:
    """The headers in which the sender at `path` signs `body` now."""
    now = str(int(time.time()))
    if path.startswith(("/v1/github", "/meta")):
        secret = "github-secret" if path.startswith("/v1/github") else "meta-secret"
        prefix = "sha256=" if path.startswith("/v1/github") else ""
        return {"X-Hub-Signature-256": prefix + signed(secret, body)}
    if path.startswith("/v1/stripe"):
        return {
            "Stripe-Signature": f"t={now},v1={signed('stripe-secret', f'{now}.'.encode() + body)}"
        }
    if path.startswith("/v1/slack"):
        base = f"v0:{now}:".encode() + body
        return {
            "X-Slack-Request-Timestamp": now,
            "X-Slack-Signature": f"v0={signed('slack-secret', base)}",
        }
    if path.startswith("/v1/hooks"):
        id_ = f"msg_{signed('', body + now.encode())}"
        digest = hmac.digest(b"hooks-secret", f"{id_}.{now}.".encode() + body, "sha256")
        return {
            "webhook-id": id_,
            "webhook-timestamp": now,
            "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
        }
    if path.startswith("/v1/orders"):
        return {}
    return {"Authorization": f"Basic {base64.b64encode(b'segment-key:').decode()}"}


def post(
    gateway: GatewayProcess, path: str, body: bytes, headers: dict[str, str] | None = None
) -> httpx.Response:
    all_headers = {"Content-Type": "application/json", **signature(path, body), **(headers or {})}
    return httpx.post(f"{gateway.url}{path}", content=body, headers=all_headers, timeout=60)


# -------------------------------------------------------------------- verification by GET


def test_endpoint_verified_by_get(gateway: GatewayProcess, store: Store) -> None:
    query = {"hub.mode": "subscribe", "hub.challenge": "1158201444"}
    right = httpx.get(f"{gateway.url}/meta", params={**query, "hub.verify_token": "meta-token"})
    assert (right.status_code, right.text) == (200, "1158201444")
    wrong = httpx.get(f"{gateway.url}/meta", params={**query, "hub.verify_token": "guessed"})
    assert wrong.status_code == 422
    assert post(gateway, "/meta", b'{"object": "page"}').status_code == 202
    unsigned = httpx.post(f"{gateway.url}/meta", content=b"{}")
    assert unsigned.status_code == 401
    assert store.quarantine.sizes() == {}


def test_an_unsigned_get_creates_nothing_where_events_are_signed(
    gateway: GatewayProcess, store: Store
) -> None:
    refused = httpx.get(f"{gateway.url}/meta/unsigned")
    assert refused.status_code == 401
    assert "a GET is not signed; send a POST" in refused.json()["detail"]
    assert httpx.get(f"{gateway.url}/meta/unsigned", params={"raise": "1"}).status_code == 500
    assert store.log.newest("meta/changed_by_get", limit=1) == []
    assert store.quarantine.sizes() == {}


def test_head_is_not_served_beside_a_get(gateway: GatewayProcess, store: Store) -> None:
    before = store.log.newest("meta/changed", limit=10)
    assert httpx.head(f"{gateway.url}/meta").status_code == 405
    assert store.log.newest("meta/changed", limit=10) == before


def test_a_request_of_svix_keeps_the_id_that_is_signed(gateway: GatewayProcess) -> None:
    body = b'{"type": "user.created", "data": {}}'
    sent = {
        name.replace("webhook", "svix"): value
        for name, value in signature("/v1/hooks", body).items()
    }
    ids = [
        httpx.post(f"{gateway.url}/v1/hooks", content=body, headers={**sent, **forged}).json()[
            "ids"
        ]
        for forged in ({}, {"webhook-id": "another"})
    ]
    assert ids[0] == ids[1]


def test_a_get_creates_events_where_none_are_signed(gateway: GatewayProcess, store: Store) -> None:
    assert httpx.get(f"{gateway.url}/pixel", params={"mail": "7"}).status_code == 202
    (event,) = store.log.newest("plain/opened", limit=1)
    assert json.loads(event.payload) == {"mail": "7"}


# -------------------------------------------------------------------- what a proxy may read differently

BODY = b'{"id": 1}'


def raw(
    path: str = "/v1/inbox/accepted",
    *extra: str,
    version: str = "HTTP/1.1",
    host: str | None = "gateway.example",
    length: bool = True,
    body: bytes = BODY,
) -> bytes:
    lines = [
        f"POST {path} {version}",
        "Content-Type: application/json",
        "Connection: close",
        *extra,
    ]
    lines += [f"Host: {host}"] if host else []
    lines += [f"Content-Length: {len(body)}"] if length else []
    return "\r\n".join([*lines, "", ""]).encode() + body


AMBIGUOUS = {
    "host_twice": (raw(host="a.example\r\nHost: b.example"), "host came more than once"),
    "no_host": (raw(host=None), "host is missing"),
    "authorization_twice": (
        raw("/v1/inbox/accepted", "Authorization: Bearer a", "Authorization: Bearer b"),
        "authorization came more than once",
    ),
    "key_twice": (
        raw("/v1/inbox/accepted", "Idempotency-Key: a", "Idempotency-Key: b"),
        "idempotency-key came more than once",
    ),
    "encoded_slash": (raw("/v1%2Finbox/accepted"), "encoded slash"),
    "encoded_slash_in_lower_case": (raw("/v1/inbox%2faccepted"), "encoded slash"),
    "transfer_encoding_gzip": (
        raw("/v1/inbox/accepted", "Transfer-Encoding: gzip", length=False),
        "not a request of HTTP/1.1",
    ),
    "transfer_encoding_gzip_and_chunked": (
        raw(
            "/v1/inbox/accepted",
            "Transfer-Encoding: gzip, chunked",
            length=False,
            body=b"9\r\n" + BODY + b"\r\n0\r\n\r\n",
        ),
        "only Transfer-Encoding: chunked",
    ),
    "chunked_in_http_1_0": (
        raw(
            "/v1/inbox/accepted",
            "Transfer-Encoding: chunked",
            version="HTTP/1.0",
            length=False,
            body=b"9\r\n" + BODY + b"\r\n0\r\n\r\n",
        ),
        "HTTP/1.0 has no Transfer-Encoding",
    ),
    "upgrade_to_another_protocol": (
        raw("/v1/inbox/accepted", "Connection: Upgrade", "Upgrade: h2c").replace(
            b"Connection: close\r\n", b""
        ),
        "without the header Upgrade",
    ),
    "signed_id_twice": (
        raw("/v1/inbox/accepted", "Webhook-Id: a", "Webhook-Id: b"),
        "webhook-id came more than once",
    ),
    "length_and_chunked": (
        raw("/v1/inbox/accepted", "Transfer-Encoding: chunked"),
        "not a request of HTTP/1.1",
    ),
    "length_twice": (raw("/v1/inbox/accepted", "Content-Length: 3"), "not a request of HTTP/1.1"),
    "http_0_9": (raw(version="HTTP/0.9"), "HTTP/0.9 is not served"),
    "no_version": (b"POST /v1/inbox/accepted\r\n\r\n", "HTTP/0.9 is not served"),
    "http_2_0": (raw(version="HTTP/2.0"), "HTTP/2.0 is not served"),
    "not_http": (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        "not a request of HTTP/1.1",
    ),
}


@pytest.fixture(scope="module")
def inbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    url = f"sqlite:///{tmp_path_factory.mktemp('inbox')}/store.db"
    with GatewayProcess(url, GATEWAY_PIPELINE, env={"CLOSED_TOKEN": "t"}) as process:
        yield process


def exchange(gateway: GatewayProcess, request: bytes) -> bytes:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_ambiguous_requests_are_rejected(inbox: GatewayProcess, case: str) -> None:
    request, reason = AMBIGUOUS[case]
    response = exchange(inbox, request)
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 "), response
    assert b"content-type: application/problem+json" in head
    document = json.loads(body)
    assert document["status"] == 400
    assert reason in document["detail"]


@pytest.mark.parametrize(
    "request_", [raw(), raw("/v1/inbox/accepted?x=%2F"), raw("/v1/inbox/accept%65d")]
)
def test_requests_that_are_read_in_one_way_are_accepted(
    inbox: GatewayProcess, request_: bytes
) -> None:
    assert exchange(inbox, request_).startswith(b"HTTP/1.1 202 ")


# -------------------------------------------------------------------- JSON

JSON_PATHS = ["/inbox/parsed", "/v1/inbox/accepted"]
SENDERS_PATHS = ["/v1/github", "/v1/stripe", "/v1/slack", "/v1/hooks", "/v1/track", "/v1/batch"]


@pytest.mark.parametrize("body", [b"{", b'{"a": NaN}', b"\xff", b'{"a": 1}}'])
def test_malformed_json_is_400_everywhere(
    gateway: GatewayProcess, inbox: GatewayProcess, body: bytes
) -> None:
    for path in JSON_PATHS:
        response = httpx.post(
            f"{inbox.url}{path}", content=body, headers={"Content-Type": "application/json"}
        )
        assert (path, response.status_code) == (path, 400)
        assert "not JSON" in response.json()["detail"]
    github = {"X-GitHub-Event": "push", "X-GitHub-Delivery": "d"}
    cloud = {"Content-Type": "application/cloudevents+json"}
    for path, headers in [
        *((path, github) for path in SENDERS_PATHS),
        ("/v1/orders", cloud),
        ("/v1/orders", {"Content-Type": "application/cloudevents-batch+json"}),
    ]:
        response = post(gateway, path, body, headers)
        assert (path, response.status_code) == (path, 400)


def test_a_segment_message_with_nan_fails_alone(gateway: GatewayProcess, store: Store) -> None:
    good = '{"type": "track", "userId": "u", "event": "Ordered", "messageId": "%s"}'
    bad = '{"type": "track", "userId": "u", "event": "Ordered", "price": NaN}'
    batch = f'{{"batch": [{good % "nan-1"}, {bad}, {good % "nan-2"}]}}'
    assert post(gateway, "/v1/batch", batch.encode()).status_code == 200
    assert len(store.log.newest("segment/track", limit=10)) == 2
    (kept,) = store.quarantine.oldest("segment")
    assert "no infinite numbers" in kept.error
    store.quarantine.drop([kept.id])


# -------------------------------------------------------------------- large payloads


def test_github_push_of_25_megabytes(gateway: GatewayProcess, store: Store) -> None:
    person = {"name": "Mona Lisa Octocat", "email": "mona@github.example", "username": "mona"}
    commit = {
        "id": "7638417db6d59f3c431d3e1f261cc637155684cd",
        "tree_id": "7638417db6d59f3c431d3e1f261cc637155684cd",
        "distinct": True,
        "message": "Update README.md",
        "timestamp": "2026-01-31T12:00:00-07:00",
        "url": "https://github.example/octocat/hello/commit/7638417db6d59f3c431d3e1f261cc637155684cd",
        "author": person,
        "committer": person,
        "added": ["a.txt"],
        "removed": [],
        "modified": ["README.md", "src/main.py"],
    }
    whole = 25 * 1024 * 1024
    number = (whole - 1000) // (len(json.dumps(commit)) + 2)
    body = json.dumps({"ref": "refs/heads/main", "commits": [commit] * number}).encode()
    assert 0.99 * whole < len(body) <= whole
    headers = {"X-GitHub-Event": "push", "X-GitHub-Delivery": "large"}
    small = post(gateway, "/v1/github", b'{"ref": "x"}', {**headers, "X-GitHub-Delivery": "small"})
    assert small.status_code == 202
    with peak_memory(gateway) as risen:
        response = post(gateway, "/v1/github", body, headers)
        assert response.status_code == 202, response.text
        assert risen() <= 8 * len(body)
    (event,) = store.log.newest("github/push", limit=1)
    assert len(json.loads(event.payload)["commits"]) == number
    over = post(gateway, "/v1/github", body + b" " * whole, headers)
    assert over.status_code == 413


# -------------------------------------------------------------------- outages


def test_outage_is_logged_twice(durable_postgres: PostgresServer) -> None:
    with GatewayProcess(
        durable_postgres.url, GATEWAY_PIPELINE, env={"CLOSED_TOKEN": "t"}
    ) as gateway:

        def status() -> int:
            return httpx.post(f"{gateway.url}/v1/inbox/accepted", json={}, timeout=60).status_code

        assert status() == 202
        durable_postgres.stop("immediate")
        assert [status() for _ in range(5)] == [503] * 5
        durable_postgres.start()
        until(lambda: status() == 202, what="the gateway stores again")
        until(lambda: "responds again" in gateway.log, what="the end of the outage is logged")
        log = gateway.log
    registering = "could not be registered"  # which is another thing, and logged once too
    lines = [line for line in log.splitlines() if "the store" in line and registering not in line]
    assert len(lines) == 2, log
    began, ended = lines
    assert "the store does not respond; requests are rejected until it does" in began
    assert "the store responds again after" in ended


# -------------------------------------------------------------------- OpenAPI


class Sender(requests.auth.AuthBase):
    """Signs each request as the sender at its path does."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        body = request.body or b""
        assert isinstance(body, bytes | str)
        content = body if isinstance(body, bytes) else body.encode()
        request.headers.update(signature(request.path_url, content))
        return request


def test_senders_endpoints_describe_their_schema(gateway: GatewayProcess, store: Store) -> None:
    schema = schemathesis.openapi.from_url(f"{gateway.url}/_openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    senders = [
        operation
        for operation in operations
        if operation.path.startswith("/v1/") and len(operation.path.rpartition("/")[2]) > 1
    ]
    assert len(senders) == 12
    for operation in senders:
        (content,) = [
            operation.definition.raw["requestBody"]["content"][media]["schema"]
            for media in list(operation.definition.raw["requestBody"]["content"])[:1]
        ]
        assert content, f"{operation.path} is described by no schema"
        _send_valid(operation)
    # No schema can compare two times.
    errors = [item.error for item in store.quarantine.oldest()]
    assert [error for error in errors if "too far from sentAt" not in error] == []


def _send_valid(operation: Any) -> None:
    @settings(
        max_examples=8,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(data=st.data())
    def valid_requests_are_accepted(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy())
        case.headers.pop("Idempotency-Key", None)
        # What schemathesis makes of a text that holds JSON is any text.
        assume(case.media_type != "application/x-www-form-urlencoded")
        response = case.call(auth=Sender(), timeout=30)
        # No schema can say that a key is used for one body only.
        reused = "urn:blacksmith:key-reused" in response.text
        assert response.status_code in (200, 202) or reused, (
            operation.path,
            case.headers,
            response.text,
        )

    valid_requests_are_accepted()


# -------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("META_SECRET", "meta-secret\n"),
        ("GITHUB_SECRET", " github-secret"),
        ("SLACK_SECRET", "slack\tsecret"),
        ("HOOKS_SECRET", f"{HOOKS_SECRET}\r\n"),
        ("SEGMENT_KEY", "segment-key\n"),
    ],
)
def test_secret_with_white_space_is_refused_at_start(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, right in ENV.items():
        monkeypatch.setenv(variable, right)
    monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, ["gateway", f"--app={PIPELINE}"])
    assert result.exit_code == 1
    assert f"the secret in {name} begins or ends with a space or a line break" in result.stderr
    assert value.strip() not in result.output
