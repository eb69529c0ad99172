"""Whatever breaks, each event whose request got a 2xx is in the store once."""

import contextlib
import fcntl
import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil
import pytest

from blacksmith_dagster.store import Store, open_store
from tests.support import randomness
from tests.support.ledger import load_on
from tests.support.processes.blacksmith import GatewayProcess
from tests.support.services import ROOT, UNPRIVILEGED
from tests.support.services.postgres import Postgres, PostgresServer
from tests.support.waiting import until

ACCEPTED = "/v1/inbox/accepted"
KEYED = "/inbox/keyed"
EVENT = b'{"wanted": true, "n": -1}'


@pytest.fixture
def gateway(store_url: str) -> Iterator[GatewayProcess]:
    with GatewayProcess(store_url) as process:
        yield process


@pytest.fixture
def store(gateway: GatewayProcess, store_url: str) -> Iterator[Store]:
    with closing(open_store(store_url)) as opened:
        yield opened


def test_gateway_killed_under_load(gateway: GatewayProcess, store: Store) -> None:
    moments = randomness.seeded()
    with load_on(gateway) as ledger:
        for _ in range(4):
            accepted = len(ledger.accepted)
            until(partial(ledger.has_accepted, accepted + 50), what="events are accepted")
            time.sleep(moments.uniform(0, 0.5))
            gateway.kill()
            gateway.start()
    assert sum(ledger.errors.values()) > 0
    ledger.check(store)


def test_graceful_stop_under_load(gateway: GatewayProcess, store: Store) -> None:
    with load_on(gateway) as ledger:
        until(lambda: len(ledger.accepted) > 200)
        assert gateway.stop() == 0
        gateway.start()
    ledger.check(store)
    assert "Traceback" not in gateway.log
    # Requests without a response were not accepted: none has failed within the gateway.
    assert not [error for error in ledger.errors if error[0].isdigit()]


def test_stop_waits_for_the_request_under_way(gateway: GatewayProcess, store: Store) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), 10) as connection:
        connection.sendall(
            b"POST /v1/inbox/accepted HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            % len(EVENT)
        )
        time.sleep(0.3)  # nothing shows when it has been read
        os.kill(gateway.pid, signal.SIGTERM)
        until(lambda: _refuses(gateway.port), what="no connection is accepted any more")
        connection.sendall(EVENT)
        assert connection.recv(65536).startswith(b"HTTP/1.1 202 ")
    assert [event.payload for event in store.log.newest()] == [EVENT.decode()]
    assert gateway.stop() == 0


def _refuses(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) != 0


def test_retry_after_lost_answer_makes_one_event(gateway: GatewayProcess, store: Store) -> None:
    head = "POST {} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nContent-Length: {}\r\n\r\n"
    array = b"[" + EVENT + b"," + EVENT + b"]"
    with socket.create_connection(("127.0.0.1", gateway.port), 10) as connection:
        connection.sendall(head.format(ACCEPTED, len(array)).encode() + array)
        until(lambda: len(store.log.newest()) == 2)
    first = [event.id for event in reversed(store.log.newest())]
    with gateway.client() as client:
        for _ in range(3):
            response = client.post(ACCEPTED, content=array, headers={"Idempotency-Key": "k"})
            assert (response.status_code, response.json()) == (202, {"ids": first})
        other = client.post(ACCEPTED, content=EVENT, headers={"Idempotency-Key": "k"})
        assert other.status_code == 422
        assert other.json()["type"] == "urn:blacksmith:key-reused"
        # A key is scoped to its source event.
        elsewhere = client.post("/inbox/parsed", content=EVENT, headers={"Idempotency-Key": "k"})
        assert elsewhere.status_code == 202
    assert len(store.log.newest()) == 3


def test_large_request_is_repeated_with_its_key(gateway: GatewayProcess, store: Store) -> None:
    body = json.dumps([{"wanted": True, "n": n} for n in range(40_000)]).encode()
    with gateway.client() as client:
        responses = [
            client.post(ACCEPTED, content=body, headers={"Idempotency-Key": "k"}) for _ in range(2)
        ]
    assert [response.status_code for response in responses] == [202, 202], responses[1].text
    assert responses[0].json() == responses[1].json()
    assert len(store.log.newest(limit=100_000)) == 40_000


def test_queue_full_gives_429(gateway: GatewayProcess, store: Store, store_url: str) -> None:
    body = json.dumps([{"wanted": False, "n": n} for n in range(6_000)]).encode()

    def send(_: int) -> Any:
        with gateway.client() as client:
            return client.post(ACCEPTED, content=body)

    with ThreadPoolExecutor(4) as pool:
        with _no_writes(store_url):
            responses = [pool.submit(send, n) for n in range(4)]
            until(lambda: sum(response.done() for response in responses) == 3)
            rejected = [response.result() for response in responses if response.done()]
            # Requests that need no commit still get a response.
            assert gateway.client_get("/nowhere").status_code == 404
        accepted = [
            response.result() for response in responses if response.result() not in rejected
        ]
    for response in rejected:
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        assert response.json()["type"] == "urn:blacksmith:too-many-requests"
    assert [response.status_code for response in accepted] == [202]
    assert len(store.log.newest(limit=100_000)) == 6_000
    assert send(0).status_code == 202


@contextlib.contextmanager
def _no_writes(store_url: str) -> Iterator[None]:
    """No process can write to the store within the block."""
    if store_url.startswith("sqlite"):
        path = Path(store_url.removeprefix("sqlite:///") + "-write-lock")
        with path.open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    import psycopg

    with psycopg.connect(store_url) as connection:
        connection.execute("LOCK TABLE events IN SHARE MODE")
        yield


def test_extract_that_raises_is_quarantined(gateway: GatewayProcess, store: Store) -> None:
    headers = {
        "Authorization": "Bearer canary-1",
        "Proxy-Authorization": "canary-2",
        "Cookie": "session=canary-3",
        "Content-Type": "application/json",
        "X-Kept": "yes",
    }
    with gateway.client() as client:
        response = client.post("/inbox/odd?from=here", content=b'[ "raise" ]', headers=headers)
        assert response.status_code == 202
        assert response.json()["ids"] == []
        (quarantined,) = store.quarantine.oldest()
        assert response.json() == {"ids": [], "quarantined": [quarantined.id]}
        raw = store.quarantine.get(quarantined.id)
        assert (raw.event_type, raw.body) == ("inbox/odd", b'[ "raise" ]')
        assert raw.error == "RuntimeError: a bug in the extract function"
        assert raw.headers["x-kept"] == "yes"
        assert raw.headers[":path"] == "/inbox/odd?from=here"
        assert "canary" not in repr(raw)
        assert "canary" not in gateway.log
        # A `Reject` or a `Reply` is not a failure.
        assert client.post("/inbox/odd", json="reject").status_code == 422
        assert client.post("/inbox/odd", json="reply").text == "hello"
        assert client.post("/inbox/odd", json="evil reply").json()["quarantined"]
    assert store.log.newest() == []
    assert len(store.quarantine.oldest()) == 2


def test_when_that_raises_makes_the_job(gateway: GatewayProcess, store: Store) -> None:
    with gateway.client() as client:
        for body in ({"wanted": True}, {"wanted": False}, {"else": 1}):
            client.post(ACCEPTED, json=body).raise_for_status()
    assert [list(event.destinations) for event in reversed(store.log.newest())] == [
        ["lake/waters"],
        [],
        ["lake/waters"],
    ]


def test_concurrent_keys_do_not_deadlock(store_url: str) -> None:
    shuffled = randomness.seeded()
    names = [f"key {n}" for n in range(300)]

    def body() -> bytes:
        chosen = shuffled.sample(names, 100)
        return json.dumps([{"key": name} for name in chosen]).encode()

    bodies = [body() for _ in range(160)]
    ids: dict[str, set[str]] = {}
    # Three processes, so that their commits meet in the database.
    with GatewayProcess(store_url, workers=3) as gateway, ThreadPoolExecutor(16) as pool:

        def send(body: bytes) -> list[tuple[str, str]]:
            with gateway.client() as client:
                response = client.post(KEYED, content=body)
            assert response.status_code == 202, response.text
            sent = [item["key"] for item in json.loads(body)]
            return list(zip(sent, response.json()["ids"], strict=True))

        for pairs in pool.map(send, bodies):
            for name, event_id in pairs:
                ids.setdefault(name, set()).add(event_id)
        with closing(open_store(store_url)) as store:
            assert len(store.log.newest(limit=1000)) == len(ids)
        assert "Traceback" not in gateway.log
    assert all(len(event_ids) == 1 for event_ids in ids.values())


def is_replaced(gateway: GatewayProcess, worker: psutil.Process) -> bool:
    """Whether the gateway has two workers, and this one is not among them."""
    pids = [other.pid for other in gateway.workers()]
    return len(pids) == 2 and worker.pid not in pids


def test_worker_that_dies_is_replaced(store_url: str) -> None:
    with GatewayProcess(store_url, workers=2) as gateway, closing(open_store(store_url)) as store:
        with load_on(gateway) as ledger:
            for _ in range(2):
                accepted = len(ledger.accepted)
                until(partial(ledger.has_accepted, accepted + 50))
                victim = gateway.workers()[0]
                victim.kill()
                until(partial(is_replaced, gateway, victim))
        ledger.check(store)
        workers = gateway.workers()
        assert gateway.stop() == 0
        assert not [worker for worker in workers if worker.is_running()]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    with GatewayProcess(f"sqlite:///{tmp_path}/store.db", workers=2) as gateway:
        workers = gateway.workers()
        assert len(workers) == 2
        os.kill(gateway.pid, how)
        _, left = psutil.wait_procs(workers, timeout=10)
        assert not left
        assert "Traceback" not in gateway.log


# ------------------------------------------------------------------------- the store breaks


class Proxy:
    """Passes bytes between the gateway and PostgreSQL, and cuts the connection at a commit on request.

    It lets the statement through, waits until the server responds, and closes both ends.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._cut_at: bytes | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._server_port))
        with client, server, selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            with contextlib.suppress(OSError):
                while True:
                    for key, _ in ready.select():
                        data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                        if not data:
                            return
                        key.data.sendall(data)
                        if self._cut_at and key.fileobj is client and self._cut_at in data:
                            self._cut_at = None
                            server.recv(1)  # it has committed, and the gateway will not know
                            return

    def cut(self, at: bytes) -> None:
        """Cut the next connection that sends this."""
        self._cut_at = at

    def has_cut(self) -> bool:
        """Whether it has cut since the last request to."""
        return self._cut_at is None

    def close(self) -> None:
        self._listener.close()


def test_commit_outcome_unknown(postgres: Postgres, postgres_url: str) -> None:
    parts = urlsplit(postgres_url)
    proxy = Proxy(parts.port or 5432)
    through = urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{proxy.port}"))
    headers = {"Idempotency-Key": "k"}
    with (
        closing(proxy),
        GatewayProcess(through) as gateway,
        closing(open_store(postgres_url)) as store,
        gateway.client() as client,
    ):
        proxy.cut(at=b"COMMIT\0")
        response = client.post(ACCEPTED, content=EVENT, headers=headers)
        assert response.status_code == 503
        assert response.json()["type"] == "urn:blacksmith:outcome-unknown", gateway.log
        assert "Idempotency-Key" in response.json()["detail"]
        assert proxy.has_cut()
        # The commit had succeeded, and was not repeated.
        (event,) = store.log.newest()
        again = client.post(ACCEPTED, content=EVENT, headers=headers)
        assert (again.status_code, again.json()) == (202, {"ids": [event.id]})
        # Without a key it is one auto-committed statement.
        proxy.cut(at=b"SELECT ingest(")
        response = client.post("/inbox/parsed", content=b'{"n": -2, "wanted": true}')
        assert response.status_code == 503
        assert response.json()["type"] == "urn:blacksmith:outcome-unknown", gateway.log
        assert len(store.log.newest()) == 2
        with load_on(gateway) as ledger:
            for _ in range(5):
                accepted = len(ledger.accepted)
                until(partial(ledger.has_accepted, accepted + 20))
                proxy.cut(at=b"COMMIT\0")
                until(proxy.has_cut)
        assert ledger.errors["503 urn:blacksmith:outcome-unknown"] >= 5
        ledger.unsure |= {-1, -2}  # sent above
        ledger.check(store)


def test_postgres_restarted_under_load(durable_postgres: PostgresServer) -> None:
    url = durable_postgres.create_database()
    with GatewayProcess(url) as gateway:
        with load_on(gateway) as ledger:
            for mode in ("immediate", "fast", "kill"):
                accepted = len(ledger.accepted)
                until(partial(ledger.has_accepted, accepted + 100))
                if mode == "kill":
                    durable_postgres.kill()
                else:
                    durable_postgres.stop(mode)  # type: ignore[arg-type]
                until(lambda: gateway.client_get("/_health").status_code == 503)
                with gateway.client() as client:
                    response = client.post(ACCEPTED, content=EVENT)
                assert response.status_code == 503
                assert response.headers["retry-after"] == "1"
                assert response.json()["type"] == "urn:blacksmith:unavailable"
                durable_postgres.start()
                until(gateway.ready)
        with closing(open_store(url)) as store:
            ledger.check(store)
        assert "Traceback" not in gateway.log


def test_gateway_starts_only_with_its_store(durable_postgres: PostgresServer) -> None:
    url = durable_postgres.create_database()
    durable_postgres.stop()
    secret = urlunsplit(urlsplit(url)._replace(netloc="me:canary@127.0.0.1:1"))
    gateway = GatewayProcess(secret)
    with pytest.raises(AssertionError, match="has ended"):
        gateway.start()
    assert "canary" not in gateway.log
    assert "Traceback" not in gateway.log
    gateway.kill()


@contextlib.contextmanager
def _small_disk(megabytes: int) -> Iterator[Path]:
    """A folder on a disk of its own, which every user may write to."""
    folder = Path(tempfile.mkdtemp(prefix="blacksmith-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=777", "tmpfs", str(folder)]
    try:
        if not ROOT or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root, where it may mount, can make a disk that fills up")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    finally:
        folder.rmdir()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_disk_full(kind: str, request: pytest.FixtureRequest) -> None:
    with _small_disk(16) as disk:
        if kind == "sqlite":
            url = f"sqlite:///{disk}/store.db"
        else:
            url = _on_disk(request.getfixturevalue("durable_postgres"), disk)
        with GatewayProcess(url) as gateway, closing(open_store(url)) as store:
            with load_on(gateway) as ledger:
                until(lambda: len(ledger.accepted) > 50)
                filler = disk / "filler"
                with filler.open("wb") as file, contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(65536))
                        file.flush()
                until(lambda: "503 urn:blacksmith:unavailable" in ledger.errors, 60)
                accepted = len(ledger.accepted)
                filler.unlink()
                until(lambda: len(ledger.accepted) > accepted + 50, 60, "it continues")
            assert not [error for error in ledger.errors if not error.startswith("503 ")]
            ledger.check(store)
            assert "Traceback" not in gateway.log


def _on_disk(postgres: PostgresServer, disk: Path) -> str:
    """A database whose tables are on the disk; PostgreSQL's log of changes is not: it would stop."""
    import psycopg

    folder = disk / "tablespace"
    folder.mkdir()
    if ROOT:
        shutil.chown(folder, *UNPRIVILEGED)
    url = postgres.create_database()
    name = urlsplit(url).path.removeprefix("/")
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        connection.execute(f'ALTER DATABASE "{name}" SET TABLESPACE small')
    return url


# ------------------------------------------------------------------------- the process


def test_certificate_is_served(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not there")
    pem = tmp_path / "server.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {pem} -out {pem}.crt -days 2 "
        "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1".split(),
        check=True,
        capture_output=True,
    )
    with pem.open("a") as file:
        file.write(Path(f"{pem}.crt").read_text())
    with GatewayProcess(f"sqlite:///{tmp_path}/store.db", certificate=pem) as gateway:
        with gateway.client() as client:
            assert client.post(ACCEPTED, content=EVENT).status_code == 202
        assert re.search(r"https://127\.0\.0\.1:\d+", gateway.log)


def test_gateway_is_small(store_url: str) -> None:
    with GatewayProcess(store_url) as gateway:
        with gateway.client() as client:
            # From the modules of the process that responds.
            assert client.post("/inbox/odd", json="modules").text == "False"
        process = psutil.Process(gateway.pid)
        time.sleep(1)
        before, began = process.cpu_times(), time.monotonic()
        time.sleep(5)
        after = process.cpu_times()
        used = after.user + after.system - before.user - before.system
        assert used < 0.01 * (time.monotonic() - began)
        if store_url.startswith("postgresql"):
            assert "postgres@" not in gateway.log
        assert f":{gateway.port}, store {store_url.split('://')[0]}" in gateway.log
