"""The gateway's authentication, networks, CORS, models and versions, and its rejections."""

import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from typing import Any

import httpx
import pytest

from blacksmith_dagster.gateway.protocol import HEAD_BYTES
from blacksmith_dagster.pipeline.access import hashed
from blacksmith_dagster.store import Store, open_store
from tests.support.pipelines.trust import MODELS, NEW, OLD, PIPELINE, SHOP, WHSEC_NEW, WHSEC_OLD
from tests.support.processes.blacksmith import GatewayProcess, peak_memory
from tests.support.signing import (
    SECRETS,
    WHSEC,
    bearer,
    github,
    shop,
    slack,
    standard_webhooks,
    stripe_header,
    write_key,
)
from tests.support.waiting import until

BODY = b'{"id": "evt_1", "amount": 1200}'
MIB = 1024 * 1024


def standard(secret: str, body: bytes, at: int) -> dict[str, str]:
    return standard_webhooks(secret, body, at, f"msg_{sha256(body).hexdigest()}")


Sign = Callable[[str, bytes, int], dict[str, str]]
SIGNATURES: dict[str, Sign] = {
    "standard": standard,
    "github": github,
    "stripe": stripe_header,
    "slack": slack,
    "shop": shop,
}


ALL = {"bearer": bearer, "write_key": write_key, **SIGNATURES}


class Sender:
    """A client that signs requests to the endpoint of a scheme."""

    def __init__(self, gateway: GatewayProcess, name: str) -> None:
        self._gateway = gateway
        self._name = name
        self.new, self.old = WHSEC if name == "standard" else SECRETS

    def signed(
        self, secret: str | None = None, body: bytes = BODY, at: float | None = None
    ) -> dict[str, str]:
        """The headers that authenticate the sender."""
        moment = int(time.time() if at is None else at)
        return ALL[self._name](secret or self.new, body, moment)

    def post(self, headers: dict[str, str], body: bytes = BODY) -> httpx.Response:
        """Send a request with these headers; returns the response."""
        with self._gateway.client() as client:
            return client.post(
                f"/v1/signed/{self._name}",
                content=body,
                headers={"content-type": "application/json", **headers},
            )

    def rejected(self, headers: dict[str, str], body: bytes = BODY) -> str:
        """Assert that such a request is rejected; returns the reason."""
        response = self.post(headers, body)
        assert response.status_code == 401, response.text
        assert response.headers["www-authenticate"]
        document = response.json()
        assert document["type"] == "urn:blacksmith:unauthorized"
        for secret in (*SECRETS, *WHSEC):
            assert secret not in response.text
        detail: str = document["detail"]
        return detail


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[GatewayProcess, Store]]:
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").create_database()
    else:
        url = f"sqlite:///{tmp_path_factory.mktemp('store')}/store.db"
    env = {
        NEW: SECRETS[0],
        OLD: SECRETS[1],
        WHSEC_NEW: WHSEC[0],
        WHSEC_OLD: WHSEC[1],
    }
    with (
        GatewayProcess(url, PIPELINE, env=env) as process,
        closing(open_store(url)) as store,
    ):
        yield process, store
        for secret in (*SECRETS, *WHSEC):
            assert secret not in process.log
        assert "Traceback" not in process.log


@pytest.fixture
def process(gateway: tuple[GatewayProcess, Store]) -> GatewayProcess:
    return gateway[0]


@pytest.fixture
def new_events(gateway: tuple[GatewayProcess, Store]) -> Callable[[], list[Any]]:
    """The events stored since the test began, oldest first."""
    _, store = gateway
    before = {event.id for event in store.log.newest(limit=100_000)}
    return lambda: [
        event for event in reversed(store.log.newest(limit=100_000)) if event.id not in before
    ]


@pytest.fixture(params=ALL)
def sender(process: GatewayProcess, request: pytest.FixtureRequest) -> Sender:
    return Sender(process, request.param)


@pytest.fixture(params=SIGNATURES)
def signer(process: GatewayProcess, request: pytest.FixtureRequest) -> Sender:
    return Sender(process, request.param)


# ------------------------------------------------------------------------- keys, signatures


def test_wrong_signature(sender: Sender, new_events: Callable[[], list[Any]]) -> None:
    assert sender.post(sender.signed()).status_code == 202
    assert len(new_events()) == 1
    sender.rejected({})
    sender.rejected(sender.signed("another secret" if sender.new in SECRETS else WHSEC[0][:-4]))
    sender.rejected({name: f"{value[:-3]}xyz" for name, value in sender.signed().items()})
    assert len(new_events()) == 1


def test_old_signature(signer: Sender, new_events: Callable[[], list[Any]]) -> None:
    for at, how in ((time.time() - 400, "old"), (time.time() + 400, "ahead")):
        headers = signer.signed(at=at)
        if len(headers) == 1 and "Stripe-Signature" not in headers:
            assert (
                signer.post(headers).status_code == 202
            )  # GitHub's signature does not cover the time
        else:
            assert how in signer.rejected(headers)
            assert new_events() == []


def test_replayed_signature(signer: Sender, new_events: Callable[[], list[Any]]) -> None:
    body = json.dumps({"id": time.time_ns()}).encode()
    headers = signer.signed(body=body)
    first = signer.post(headers, body)
    again = signer.post(headers, body)
    # An attacker may add unsigned headers.
    added = signer.post({**headers, "Idempotency-Key": "another"}, body)
    assert [response.status_code for response in (first, again, added)] == [202] * 3
    if "X-Hub-Signature-256" in headers:  # the signed parts do not distinguish them
        assert len(new_events()) == 3
        return
    assert first.json() == again.json() == added.json()
    assert len(new_events()) == 1


def test_honest_retry_is_signed_again(process: GatewayProcess) -> None:
    sender = Sender(process, "standard")
    now = int(time.time())
    first, again, other = (
        sender.post(standard_webhooks(sender.new, body, sent_at, "msg_retried"), body)
        for body, sent_at in ((b"{}", now - 60), (b"{}", now), (b"[1]", now))
    )
    assert first.json() == again.json()
    assert (other.status_code, other.json()["type"]) == (422, "urn:blacksmith:key-reused")


def test_two_rotating_secrets(sender: Sender, new_events: Callable[[], list[Any]]) -> None:
    for number, secret in enumerate((sender.new, sender.old)):
        body = b'{"n": %d, "at": %d}' % (number, time.time_ns())
        assert sender.post(sender.signed(secret, body), body).status_code == 202
    sender.rejected(sender.signed("d2hzZWNfYW5vdGhlcg=="))


def test_body_changed_by_one_byte(signer: Sender, new_events: Callable[[], list[Any]]) -> None:
    headers = signer.signed()
    for changed in (BODY.replace(b"1200", b"1201"), BODY + b" ", BODY[:-1]):
        assert "does not match this body" in signer.rejected(headers, changed)
    assert new_events() == []


def test_a_large_or_compressed_body_is_verified_uncompressed(
    signer: Sender, new_events: Callable[[], list[Any]]
) -> None:
    body = b'{"at": %d, "note": "%s"}' % (time.time_ns(), b"x" * 300_000)
    headers = signer.signed(body=body)
    assert signer.post(headers, body).status_code == 202
    signer.rejected(headers, body.replace(b"x", b"y", 1))
    packed = {**headers, "Content-Encoding": "gzip"}
    assert signer.post(packed, gzip.compress(body)).status_code == 202
    signer.rejected(packed, gzip.compress(body[:-1]))
    assert {event.payload for event in new_events()} == {body.decode()}


def test_rotation_needs_no_pause(store_url: str) -> None:
    """With the old key, both, or only the new key's hash: some sender is accepted at all times."""

    def let_in(env: dict[str, str]) -> set[str]:
        others = {WHSEC_NEW: WHSEC[0], WHSEC_OLD: ""}
        with GatewayProcess(store_url, PIPELINE, env={**others, **env}) as gateway:
            sender = Sender(gateway, "bearer")
            return {key for key in SECRETS if sender.post(sender.signed(key)).status_code == 202}

    new, old = SECRETS
    assert let_in({NEW: old, OLD: ""}) == {old}
    assert let_in({NEW: new, OLD: old}) == {new, old}
    assert let_in({NEW: hashed(new), OLD: ""}) == {new}


def test_credentials_are_not_passed_to_functions(
    process: GatewayProcess, new_events: Callable[[], list[Any]]
) -> None:
    with process.client() as client:
        response = client.post(
            "/signed/headers", json={}, headers={**bearer(SECRETS[0], b"", 0), "X-Other": "1"}
        )
    assert response.status_code == 202
    (event,) = new_events()
    handed = json.loads(event.payload)
    assert handed["x-other"] == "1"
    assert "authorization" not in handed


# ------------------------------------------------------------------------- networks, CORS


def test_networks(process: GatewayProcess) -> None:
    with process.client() as client:
        assert client.post("/v1/near/event", json={}).status_code == 202
        rejected = client.post("/v1/far/event", json={})
        assert (rejected.status_code, rejected.json()["type"]) == (403, "urn:blacksmith:forbidden")
        # No trusted proxy is configured.
        forwarded = {"X-Forwarded-For": "198.51.100.7"}
        assert client.post("/v1/far/event", json={}, headers=forwarded).status_code == 403


def test_a_trusted_proxy_gives_the_clients_address(store_url: str) -> None:
    env = {NEW: "a", WHSEC_NEW: WHSEC[0]}
    for proxy, let_in in (("127.0.0.0/8", True), ("192.0.2.1", False)):
        with (
            GatewayProcess(store_url, PIPELINE, env=env, trusted_proxies=[proxy]) as gateway,
            gateway.client() as client,
        ):
            for address, expected in (
                ("198.51.100.7", let_in),
                ("2001:db8::7", let_in),
                # A client's own entries precede the proxy's.
                ("198.51.100.7, 203.0.113.9", False),
                ("nonsense", False),
            ):
                headers = {"X-Forwarded-For": address}
                status = client.post("/v1/far/event", json={}, headers=headers).status_code
                assert status == (202 if expected else 403), address


def test_cors(process: GatewayProcess) -> None:
    def preflight(path: str, origin: str, method: str = "POST") -> httpx.Response:
        asked = {"Origin": origin, "Access-Control-Request-Method": method}
        asked["Access-Control-Request-Headers"] = "authorization, content-type"
        with process.client() as client:
            return client.options(path, headers=asked)

    response = preflight("/v1/web/clicked", SHOP)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == SHOP
    assert response.headers["access-control-max-age"] == "60"
    assert "authorization" in response.headers["access-control-allow-headers"]
    assert preflight("/v1/web/locked", SHOP).status_code == 200
    assert preflight("/v1/web/own", "https://elsewhere.example").status_code == 200
    assert preflight("/v1/web/clicked", "https://elsewhere.example", "PUT").status_code == 200
    for path, origin, method in (
        ("/v1/web/clicked", "https://elsewhere.example", "POST"),
        ("/v1/web/clicked", SHOP, "PATCH"),
        ("/v1/plain/event", SHOP, "POST"),
        ("/v1/nowhere", SHOP, "POST"),
    ):
        other = preflight(path, origin, method)
        assert other.status_code >= 400
        assert "access-control-allow-origin" not in other.headers, path

    with process.client() as client:
        sent = client.post("/v1/web/clicked", json={}, headers={"Origin": SHOP})
        assert sent.status_code == 202
        assert sent.headers["access-control-allow-origin"] == SHOP
        # A page may read the reason of a rejection.
        rejected = client.post("/v1/web/locked", json={}, headers={"Origin": SHOP})
        assert rejected.status_code == 401
        assert rejected.headers["access-control-allow-origin"] == SHOP
        elsewhere = client.post("/v1/plain/event", json={}, headers={"Origin": SHOP})
        assert "access-control-allow-origin" not in elsewhere.headers
        assert client.options("/v1/web/clicked").status_code == 405


def heads(size: int) -> Iterator[bytes]:
    """Request lines and headers of this size, without an end."""
    start = b"POST /v1/plain/event HTTP/1.1\r\nHost: x\r\n"
    yield start + b"X-One: " + b"a" * size
    yield start + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 100) for n in range(size // 100))
    yield start + b"X-" + b"a" * size + b": 1\r\n"
    yield b"POST /v1/plain/event?" + b"a" * size + b" HTTP/1.1\r\nHost: x\r\n"


def test_huge_headers(process: GatewayProcess, new_events: Callable[[], list[Any]]) -> None:
    def respond(head: bytes) -> bytes:
        received = b""
        with socket.create_connection(("127.0.0.1", process.port), 10) as connection:
            try:
                connection.sendall(head)
                while chunk := connection.recv(65536):
                    received += chunk
            except (BrokenPipeError, ConnectionResetError):
                pass  # closed before the rest was sent
        return received

    chunked = b"POST /v1/plain/event HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailer = chunked + b"2\r\n{}\r\n0\r\nX-Trailer: " + b"a" * 16 * MIB
    whole = b"POST /v1/plain/event HTTP/1.1\r\nHost: x\r\nX: %s\r\nContent-Length: 2\r\n\r\n{}"
    with peak_memory(process) as risen, process.client() as other:
        for head in (*heads(HEAD_BYTES + 1024), whole % (b"a" * HEAD_BYTES)):
            received = respond(head)
            assert received.startswith(b"HTTP/1.1 431 "), received[:200]
            assert b"application/problem+json" in received
            assert other.post("/v1/plain/event", json={"other": 1}).status_code == 202
        for head in (*heads(16 * MIB), trailer):
            assert respond(head)[:13] in (b"", b"HTTP/1.1 431 ")
            assert other.post("/v1/plain/event", json={"other": 1}).status_code == 202
        assert risen() < 8 * MIB
    payloads = [event.payload for event in new_events()]
    assert payloads == ['{"other":1}'] * 10
    # Sizes that other servers accept are accepted; a body does not count as part of the head.
    fits = {"X-One": "a" * (HEAD_BYTES - 1024)}
    with process.client() as client:
        assert client.post("/v1/plain/event", json={}, headers=fits).status_code == 202
        assert client.post("/v1/plain/event", json="x" * 900_000).status_code == 202


# ------------------------------------------------------------------------- models, versions

GOOD = {"id": 1, "lines": [{"sku": "A1", "count": 2}]}
BAD = {"id": 2, "lines": [{"sku": "A1", "count": 2}, {"sku": "A2", "count": "many"}]}
ENDPOINTS = [f"/v1/%s/{name}" for name in MODELS] + ["/%s/read"]


@pytest.mark.parametrize("path", ENDPOINTS)
def test_invalid_data_is_rejected_with_its_place(
    process: GatewayProcess, path: str, new_events: Callable[[], list[Any]]
) -> None:
    with process.client() as client:
        assert client.post(path % "orders", json=GOOD).status_code == 202
        rejected = client.post(path % "orders", json=BAD)
        assert rejected.status_code == 422
        assert rejected.json()["type"] == "urn:blacksmith:validation-error"
        assert "$.lines[1].count" in rejected.json()["detail"]
        assert client.post(path % "orders", content=b"{").status_code in (400, 422)
        assert client.post(path % "orders", content=b'{"id": NaN}').status_code in (400, 422)
    (event,) = new_events()
    assert json.loads(event.payload) == GOOD


@pytest.mark.parametrize("path", ENDPOINTS)
def test_one_bad_event_in_a_batch(
    gateway: tuple[GatewayProcess, Store], path: str, new_events: Callable[[], list[Any]]
) -> None:
    process, store = gateway
    batch = [GOOD | {"id": n} for n in range(5)]
    batch[2] = BAD
    good = [order for order in batch if order is not BAD]
    with process.client() as client:
        # When one is rejected, none is stored.
        rejected = client.post(path % "orders", json=batch)
        assert rejected.status_code == 422
        assert new_events() == []
        # Only the invalid one waits in quarantine; sent again, no event is stored twice.
        before = {request.id for request in store.quarantine.oldest()}
        key = {"Idempotency-Key": f"batch of {path} {process.port} {time.time_ns()}"}
        responses = [client.post(path % "lenient", json=batch, headers=key) for _ in range(2)]
        assert [response.status_code for response in responses] == [202, 202], responses[0].text
        assert responses[0].json() == responses[1].json()
    kept = new_events()
    assert [json.loads(event.payload) for event in kept] == good
    (quarantined,) = [request for request in store.quarantine.oldest() if request.id not in before]
    assert responses[0].json() == {
        "ids": [event.id for event in kept],
        "quarantined": [quarantined.id],
    }
    raw = store.quarantine.get(quarantined.id)
    assert json.loads(raw.body) == BAD
    assert "$.lines[1].count" in raw.error


def test_a_webhook_validates_every_event_against_its_own_model(
    process: GatewayProcess, new_events: Callable[[], list[Any]]
) -> None:
    with process.client() as client:
        assert client.post("/orders/lines", json=GOOD).status_code == 202
        rejected = client.post("/orders/lines", json=BAD)
        assert rejected.status_code == 422
        assert "event 2 does not fit orders/line" in rejected.json()["detail"]
    assert [event.event_type for event in new_events()] == ["orders/line"]


def test_unknown_version(process: GatewayProcess, new_events: Callable[[], list[Any]]) -> None:
    with process.client() as client:
        for path, body, headers in (
            ("/v1/crm/user", {}, {"Api-Version": "1999-01-01"}),
            ("/crm/named", {"version": "1999-01-01"}, {}),
            ("/crm/named", {}, {"Api-Version": "1999-01-01"}),
        ):
            rejected = client.post(path, json=body, headers=headers)
            assert rejected.status_code == 422
            assert "send one of 2021-01-01, 2020-10-01" in rejected.json()["detail"]
        assert new_events() == []
        for path, body, headers in (
            ("/v1/crm/user", {}, {}),
            ("/v1/crm/user", {}, {"Api-Version": "2020-10-01"}),
            ("/crm/named", {"version": "2020-06-01"}, {"Api-Version": "2020-10-01"}),
            ("/v1/plain/event", {}, {"Api-Version": "anything"}),
        ):
            assert client.post(path, json=body, headers=headers).status_code == 202
    assert [event.version for event in new_events()] == [
        "2021-01-01",
        "2020-10-01",
        "2020-06-01",
        "anything",
    ]


def test_deprecated_version_warns(process: GatewayProcess) -> None:
    with process.client() as client:
        for _ in range(3):
            response = client.post("/v1/crm/user", json={}, headers={"Api-Version": "2020-06-01"})
            assert response.status_code == 202
            assert response.headers["deprecation"] == "@1593561600"  # RFC 9745
        assert "deprecation" not in client.post("/v1/crm/user", json={}).headers
        mixed = client.post("/crm/named", json=[{"version": "2020-10-01"}, {}])
        assert mixed.headers["deprecation"] == "@1609372800"
    warning = (
        "crm/user is still sent in version 2020-06-01, which has been deprecated since 2020-07-01"
    )
    until(lambda: warning in process.log)
    assert process.log.count(warning) == 1
