"""Any request gets a clear 4xx or becomes a lossless event: memory stays flat, nothing else is stored,
and the next request is served in time."""

import gzip
import json
import resource
import socket
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from blacksmith_dagster.gateway.protocol import HEAD_SECONDS
from blacksmith_dagster.store import Store, open_store
from tests.support import randomness
from tests.support.pipelines.gateway import SLOW_SECONDS
from tests.support.processes.blacksmith import GatewayProcess, peak_memory

MIB = 1024 * 1024
ACCEPTED = "/v1/inbox/accepted"
PARSED = "/inbox/parsed"
# Eight times the largest request, which is read, decompressed, split into events and decoded.
FLAT = 64 * MIB


class Attacked:
    """A gateway under attack, with the payloads that it must store."""

    def __init__(self, process: GatewayProcess, store: Store) -> None:
        self.process = process
        self.store = store
        self.right: list[str] = []

    def stored(self) -> list[str]:
        return [event.payload for event in self.store.log.newest(limit=1_000_000)]

    def post(
        self, path: str, body: bytes | Iterator[bytes], **headers: str
    ) -> tuple[int, dict[str, object]]:
        """The status and the document of the response to a body."""
        sent = {"content-type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        with self.process.client() as client:
            response = client.post(path, content=body, headers=sent)
        return response.status_code, self.document(response)

    def rejected(
        self, status: int, path: str, body: bytes | Iterator[bytes], **headers: str
    ) -> str:
        """Assert that the body is rejected with this status; returns the reason."""
        got, document = self.post(path, body, **headers)
        assert got == status, document
        return str(document["detail"])

    def kept(self, path: str, body: bytes, payload: str | None = None, **headers: str) -> None:
        """Assert that the body is ingested as one event, whose payload is the body by default."""
        status, document = self.post(path, body, **headers)
        assert status == 202, document
        ids = document["ids"]
        assert isinstance(ids, list)
        (event_id,) = ids
        self.right.append(body.decode() if payload is None else payload)
        assert self.store.log.event(event_id).payload == self.right[-1]

    @staticmethod
    def document(response: httpx.Response) -> dict[str, object]:
        """The response's document; an error's must be one of RFC 9457."""
        document: dict[str, object] = response.json()
        if response.status_code >= 400:
            assert response.headers["content-type"] == "application/problem+json"
            assert document["status"] == response.status_code
            assert {"type", "title", "detail"} < document.keys()
        return document

    def raw(self, request: bytes, timeout: float = 10.0) -> bytes:
        """The response to exactly these bytes, until the gateway closes or falls silent."""
        with socket.create_connection(("127.0.0.1", self.process.port), timeout) as connection:
            connection.sendall(request)
            connection.settimeout(timeout)
            return _until_silent(connection)


def _until_silent(connection: socket.socket) -> bytes:
    response = b""
    try:
        while chunk := connection.recv(65536):
            response += chunk
            connection.settimeout(0.5)
    except (TimeoutError, ConnectionResetError):
        pass
    return response


def _head(path: str, *headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[GatewayProcess, Store]]:
    """One gateway for all of these tests: none may leave it broken for the next."""
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").create_database()
    else:
        url = f"sqlite:///{tmp_path_factory.mktemp('store')}/store.db"
    with GatewayProcess(url) as process, closing(open_store(url)) as store:
        # The memory to read and decode the largest request is allocated once.
        with process.client() as client:
            client.post(ACCEPTED, json=["x" * (MIB - 9)] * 7).raise_for_status()
        yield process, store


@pytest.fixture
def attacked(gateway: tuple[GatewayProcess, Store]) -> Iterator[Attacked]:
    process, store = gateway
    attack = Attacked(process, store)
    before = attack.stored()
    with peak_memory(process) as risen:
        yield attack
        began = time.monotonic()
        attack.kept(ACCEPTED, b'{"wanted": "the next one"}')
        assert time.monotonic() - began < 2
        assert risen() < FLAT
    assert sorted(attack.stored()) == sorted(before + attack.right)
    assert not store.quarantine.oldest()


@pytest.mark.parametrize("path", [ACCEPTED, PARSED])
def test_not_json(attacked: Attacked, path: str) -> None:
    for body in (
        b"",
        b"{",
        b"nonsense",
        b"{'a': 1}",
        b'{"a": 1} x',
        b'{"a": 01}',
    ):
        attacked.rejected(400, path, body)
    for body in (b"[1, 2", b'[{"a": 1},]', b"[1 2]"):
        assert "not JSON" in attacked.rejected(400, path, body)
    attacked.rejected(415, ACCEPTED, b"a,b\n1,2\n", content_type="text/csv")
    assert "event 2" in attacked.rejected(
        400, ACCEPTED, b'{"a": 1}\n{"a"\n', content_type="application/x-ndjson"
    )


@pytest.mark.parametrize("path", [ACCEPTED, PARSED])
def test_invalid_utf8(attacked: Attacked, path: str) -> None:
    bodies = [
        b'{"a": "\xff"}',
        b'{"\xc3": 1}',
        b'"\xed\xa0\x80"',
        b'"\xc0\x80"',
        b'"\xf5\x80\x80\x80"',
    ]
    for body in [*bodies, '{"a": 1}'.encode("utf-16-le")]:
        attacked.rejected(400, path, body)
    for body in bodies:
        attacked.rejected(400, path, b'["fine", ' + body + b"]")


@pytest.mark.parametrize("path", [ACCEPTED, PARSED])
def test_nul_in_string(attacked: Attacked, path: str) -> None:
    attacked.rejected(400, path, b'{"a": "\x00"}')
    attacked.rejected(400, path, b"\x00")
    # Escaped as JSON requires, it is a character like any other.
    attacked.kept(path, b'{"wanted":1,"a\\u0000":"\\u0000"}')
    assert "NUL" in attacked.rejected(422, "/inbox/keyed", b'{"key": "a\\u0000b"}')


@pytest.mark.parametrize("path", [ACCEPTED, PARSED])
def test_lone_surrogate(attacked: Attacked, path: str) -> None:
    for text in (rb'"\ud800"', rb'"\udc00x"', rb'"\ud800\ud800"', rb'{"\ud834": 1}'):
        attacked.rejected(400, path, text)
    attacked.kept(
        path,
        rb'{"wanted":1,"a":"\ud83d\ude00"}',
        None if path == ACCEPTED else '{"wanted":1,"a":"😀"}',
    )


@pytest.mark.parametrize("path", [ACCEPTED, PARSED])
def test_nan_and_infinity(attacked: Attacked, path: str) -> None:
    for text in (b"NaN", b'{"a": Infinity}', b'{"a": -Infinity}', b'{"a": nan}'):
        attacked.rejected(400, path, text)
    attacked.rejected(400, path, b"[1, NaN]")
    attacked.rejected(422, path, b'{"a": 1e999}')


@pytest.mark.parametrize("path", [ACCEPTED, PARSED])
def test_deep_nesting(attacked: Attacked, path: str) -> None:
    for body in (
        b"[" * 200_000,
        b"[" * 200_000 + b"]" * 200_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b"[" * 8 * MIB,
    ):
        attacked.rejected(422, path, body)
    deepest = b'{"wanted":' * 64 + b"1" + b"}" * 64
    attacked.kept(path, deepest)
    attacked.kept(path, b'{"wanted":"' + b"[{" * 1000 + b'"}')


@pytest.mark.parametrize("path", [ACCEPTED, PARSED])
def test_million_keys(attacked: Attacked, path: str) -> None:
    def keys(count: int, text: str = '"{}":1') -> bytes:
        return ('{"wanted":1' + "".join("," + text.format(n) for n in range(count)) + "}").encode()

    attacked.rejected(413, path, keys(1_000_000))
    attacked.rejected(413, path, keys(600_000))
    attacked.rejected(422, path, keys(80_000))
    attacked.rejected(422, path, keys(80_000, '"same":1'))
    attacked.kept(path, keys(9_999))
    assert "at most" in attacked.rejected(413, path, b"[" + b"1," * 1_000_000 + b"1]")
    assert "at most" in attacked.rejected(
        413, path, b"1\n" * 1_000_000, content_type="application/x-ndjson"
    )


@pytest.mark.parametrize("path", [ACCEPTED, PARSED])
def test_huge_integers(attacked: Attacked, path: str) -> None:
    huge = b'{"wanted":%s,"a":-%s}' % (b"9" * 400, b"8" * 4000)
    attacked.kept(path, huge)
    attacked.rejected(422, path, b'{"wanted":%s}' % (b"9" * 5000))


def test_duplicate_keys(attacked: Attacked) -> None:
    twice = b'{"wanted":1,"wanted":0,"wanted":1}'
    attacked.kept(ACCEPTED, twice)
    attacked.kept(PARSED, twice, json.dumps(json.loads(twice), separators=(",", ":")))


def test_lying_content_length(attacked: Attacked) -> None:
    slow = "/v1/inbox/slow"
    # More than is sent: the gateway waits for the rest, but not forever.
    response = attacked.raw(_head(slow, "Content-Length: 100") + b'{"wanted": 1}', SLOW_SECONDS + 5)
    assert response.startswith(b"HTTP/1.1 408 "), response
    assert b'"title":"Request timeout"' in response
    # The sender disconnects before the rest arrives.
    with socket.create_connection(("127.0.0.1", attacked.process.port)) as connection:
        connection.sendall(_head(ACCEPTED, "Content-Length: 13") + b'{"wanted": 1')
    # Less than is sent: the remaining bytes are not a request.
    response = attacked.raw(_head(ACCEPTED, "Content-Length: 5") + b'{"wanted": 1}')
    assert response.startswith(b"HTTP/1.1 400 "), response
    # More than is accepted: rejected before any of the body arrives.
    response = attacked.raw(_head(ACCEPTED, "Content-Length: 99999999999"))
    assert response.startswith(b"HTTP/1.1 413 "), response
    for lie in (
        ("Content-Length: -1",),
        ("Content-Length: 1x",),
        ("Content-Length: 99999999999999999999999999",),
        ("Content-Length: 13", "Content-Length: 14"),
        ("Content-Length: 13", "Transfer-Encoding: chunked"),
    ):
        response = attacked.raw(_head(ACCEPTED, *lie) + b'{"wanted": 1}')
        assert response.startswith(b"HTTP/1.1 4"), (lie, response)


def test_body_over_limit(attacked: Attacked) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(9):
            yield b" " * MIB

    attacked.rejected(413, ACCEPTED, b'"' + b"x" * (8 * MIB) + b'"')
    attacked.rejected(413, ACCEPTED, endless())
    attacked.rejected(413, ACCEPTED, b'"' + b"x" * MIB + b'"')
    assert "over the limit of 1048576" in attacked.rejected(
        413, PARSED, b'[1, "' + b"x" * MIB + b'"]'
    )


def test_gzip_bomb(attacked: Attacked) -> None:
    deflater = zlib.compressobj(9, wbits=-15)
    mebibyte = deflater.compress(bytes(MIB)) + deflater.flush(zlib.Z_FULL_FLUSH)
    # A full flush resets the compression: the block may be repeated.
    two_gibibytes = mebibyte * 2048
    assert len(two_gibibytes) < 8 * MIB
    attacked.rejected(413, ACCEPTED, two_gibibytes, content_encoding="deflate")
    member = gzip.compress(bytes(8 * MIB))
    attacked.rejected(413, ACCEPTED, member * 512, content_encoding="gzip")
    attacked.rejected(400, ACCEPTED, gzip.compress(b"") * 200_000, content_encoding="gzip")
    attacked.rejected(400, ACCEPTED, b'{"wanted": 1}', content_encoding="gzip")
    attacked.rejected(400, ACCEPTED, gzip.compress(b'{"wanted": 1}')[:-4], content_encoding="gzip")
    attacked.rejected(415, ACCEPTED, b'{"wanted": 1}', content_encoding="br")
    body = b'{"wanted": 1}'
    attacked.kept(ACCEPTED, gzip.compress(body), body.decode(), content_encoding="gzip")
    attacked.kept(PARSED, zlib.compress(body), '{"wanted":1}', content_encoding="deflate")


def test_unknown_route(attacked: Attacked) -> None:
    for path in (
        "/",
        "/v1/inbox",
        "/v1/inbox/accepted/",
        "/v1/unknown/event",
        "/_health/x",
        "/inbox/../x",
    ):
        attacked.rejected(404, path, b"{}")
    attacked.rejected(404, "/" + "x" * 10_000, b"{}")


def test_wrong_method(attacked: Attacked) -> None:
    with attacked.process.client() as client:
        for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            response = client.request(method, ACCEPTED)
            assert response.status_code == 405
            assert response.headers["allow"] == "POST"
            Attacked.document(response)
        assert client.head(ACCEPTED).status_code == 405
        assert client.post("/_health").status_code == 405
    assert attacked.raw(_head(ACCEPTED, method="NONSENSE")).startswith(b"HTTP/1.1 400 ")


def test_wrong_token(attacked: Attacked) -> None:
    path = "/v1/locked/secret"
    attacked.rejected(401, path, b"{}")
    for token in (
        "Bearer wrong",
        "Bearer a-token2",
        "Bearer",
        "a-token",
        "Basic a-token",
        "Bearer \xe9",
    ):
        head = _head(
            path, f"Authorization: {token}", "Content-Length: 1000000", "Connection: close"
        )
        response = attacked.raw(head)  # without waiting for the body
        assert response.startswith(b"HTTP/1.1 401 "), response
        assert b"www-authenticate: Bearer" in response
        assert b"a-token" not in response
    attacked.kept(path, b'{"n": 1}', authorization="Bearer a-token")
    attacked.kept(path, b'{"n": 2}', authorization="bearer a-token")
    assert "a-token" not in attacked.process.log


def test_thousand_slow_bodies(attacked: Attacked) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip(f"this user may open {hard} files at most")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    connections = []
    try:
        for _ in range(1000):
            connection = socket.create_connection(("127.0.0.1", attacked.process.port), 10)
            connections.append(connection)
            connection.sendall(_head("/v1/inbox/slow", "Content-Length: 1000") + b'{"wanted"')
        for number in range(20):
            began = time.monotonic()
            attacked.kept(ACCEPTED, b'{"wanted": %d}' % number)
            assert time.monotonic() - began < 2
        for connection in connections:
            connection.settimeout(SLOW_SECONDS + 10)
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
    finally:
        for connection in connections:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_slow_heads(attacked: Attacked) -> None:
    address = ("127.0.0.1", attacked.process.port)
    connections = [socket.create_connection(address, 10) for _ in range(300)]
    try:
        for connection in connections[100:]:
            connection.sendall(b"POST /v1/inbox/accepted HTTP/1.1\r\nHost:")
        for connection in connections[200:]:  # one complete request first
            connection.sendall(b" x\r\nContent-Length: 13\r\n\r\n" + b'{"wanted": 1}')
            attacked.right.append('{"wanted": 1}')
            response = b""
            while not response.endswith(b"}"):
                response += connection.recv(4096)
            assert response.startswith(b"HTTP/1.1 202 ")
            connection.sendall(b"POST /v1/")
        for connection in connections:
            connection.settimeout(HEAD_SECONDS + 10)
            assert connection.recv(4096) == b""
    finally:
        for connection in connections:
            connection.close()


def test_header_injection(attacked: Attacked) -> None:
    body = b'{"wanted": 1}'
    for header in (
        "X-A: a\0b",
        "X-A: a\rX-B: b",
        "X A: b",
        "X-A\r\n : b",
        "Idempotency-Key: a\x01b",
        "Idempotency-Key: \xe9",
        "Idempotency-Key:",
        "Idempotency-Key: " + "x" * 513,
    ):
        response = attacked.raw(
            _head(ACCEPTED, header, f"Content-Length: {len(body)}", "Connection: close") + body
        )
        assert response.startswith(b"HTTP/1.1 4"), (header, response)
    for path in ("/%0d%0aX-Evil:%201", "/v1/inbox/accepted%00", "/a%0aX-Evil: 1"):
        response = attacked.raw(_head(path.replace(" ", "%20"), "Content-Length: 0"))
        assert response.startswith(b"HTTP/1.1 404 "), response
        assert b"\nX-Evil" not in response
    with attacked.process.client() as client:
        odd = client.post("/inbox/odd", json="reject")
    assert odd.status_code == 422
    assert "x-evil" not in odd.headers


def test_names_that_look_like_sql(attacked: Attacked) -> None:
    for name in ("'; DROP TABLE events; --", '" OR 1=1', "%s", ":x", "{0}", "$1", "\\"):
        attacked.rejected(404, "/v1/inbox/" + name.replace("%", "%25").replace("?", "%3F"), b"{}")
        wanted = json.dumps({"wanted": 1, "key": name, name: name}, separators=(",", ":"))
        attacked.kept(ACCEPTED, wanted.encode(), idempotency_key=name)
        attacked.kept("/inbox/keyed", wanted.encode())
        again = attacked.post(ACCEPTED, wanted.encode(), idempotency_key=name)
        assert again[0] == 202
        attacked.rejected(422, ACCEPTED, b'{"wanted": 2}', idempotency_key=name)


def test_noise(attacked: Attacked) -> None:
    noise = randomness.seeded()
    request = _head(ACCEPTED, "Content-Length: 13") + b'{"wanted": 1}'

    def spoiled(_: int) -> bytes:
        broken = bytearray(request)
        for _ in range(noise.randint(1, 8)):
            broken[noise.randrange(len(broken) - 13)] = noise.randrange(256)
        return bytes(broken)

    requests = [spoiled(n) for n in range(100)]
    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda request: attacked.raw(request, 1), requests))
    assert not [response for response in responses if response.startswith(b"HTTP/1.1 5")]
    # A request that still makes sense is rightly stored.
    attacked.right += ['{"wanted": 1}'] * sum(a.count(b"HTTP/1.1 202") for a in responses)


def test_log_is_quiet_about_what_was_sent(
    gateway: tuple[GatewayProcess, Store], tmp_path: Path
) -> None:
    assert "Traceback" not in gateway[0].log
