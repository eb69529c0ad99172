"""Notifications by NATS. What only it does: TLS, tokens, rights, and its independence of JetStream."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blacksmith_dagster.errors import Unavailable
from tests.contract.notifications import NotificationsContract
from tests.support.notifying import FLIGHTS, opening
from tests.support.services.nats import NATSServer
from tests.support.services.tls import make_certificate

pytestmark = pytest.mark.nats

TOPIC = "nats-only"


@pytest.fixture
def broker(nats: NATSServer) -> NATSServer:
    return nats


@pytest.fixture
def server() -> Iterator[NATSServer]:
    server = NATSServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


def goes_through(url: str) -> bool:
    """Whether what is published is heard."""
    pubsub = opening((url, "sqlite://"))
    with (
        contextlib.closing(pubsub.publisher()) as publisher,
        contextlib.closing(pubsub.subscriber("warehouse")) as subscriber,
    ):
        assert not subscriber.wait(10)
        publisher.publish([FLIGHTS])
        return set(subscriber.wait(10)) == {FLIGHTS}


def failing(url: str, why: str) -> str:
    """The message of the error when a publish fails."""
    with (
        contextlib.closing(opening((url, "sqlite://")).publisher()) as publisher,
        pytest.raises(Unavailable, match=why) as raised,
    ):
        publisher.publish([FLIGHTS])
    return str(raised.value)


class TestNATSNotifications(NotificationsContract):
    """What every broker does."""


def test_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    server = NATSServer(tls=(certificate, key))
    try:
        server.start()
        url, _ = server.urls(TOPIC)
        assert goes_through(f"{url}&tls=true&ca={certificate}")
        failing(f"{url}&tls=true", "certificate")
    finally:
        server.close()


def test_a_server_without_tls_gets_no_credentials() -> None:
    sent = b""

    async def serve() -> None:
        done = asyncio.Event()

        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            writer.write(b'INFO {"auth_required": true, "max_payload": 1048576}\r\n')
            sent += await reader.read()
            writer.close()
            done.set()

        async with await asyncio.start_server(respond, "127.0.0.1") as server:
            port = server.sockets[0].getsockname()[1]
            url = f"nats://me:open-sesame@127.0.0.1:{port}?tls=true"
            await asyncio.to_thread(failing, url, "secure connection")
            await asyncio.wait_for(done.wait(), 10)

    asyncio.run(serve())
    assert sent == b""


def test_a_token_is_a_username_without_a_password(server: NATSServer) -> None:
    server.stop()
    server.authorization = "token: knows-all"
    server.start()
    address = server.urls(TOPIC)[0].rpartition("@")[2]
    assert goes_through(f"nats://knows-all@{address}")
    assert "sesame" not in failing(f"nats://open-sesame@{address}", "refused")


def test_what_is_not_allowed_is_reported(server: NATSServer) -> None:
    server.stop()
    login = server.authorization.replace(",", "\n")
    server.authorization = f"users: [{{ {login}\n permissions: {{ publish: {{ deny: '>' }} }} }}]"
    server.start()
    failing(server.urls(TOPIC)[0], "refused the user a right.*permissions violation")


def test_few_rights_are_enough(server: NATSServer) -> None:
    server.stop()
    login = server.authorization.replace(",", "\n")
    rights = f"publish: '{TOPIC}.*', subscribe: '{TOPIC}.*'"
    server.authorization = f"users: [{{ {login}\n permissions: {{ {rights} }} }}]"
    server.start()
    assert goes_through(server.urls(TOPIC)[0])


def test_the_next_server_is_tried(server: NATSServer) -> None:
    url, _ = server.urls(TOPIC)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
        assert goes_through(url.replace("@", f"@{dead},"))


def test_the_server_stores_no_notifications(nats: NATSServer) -> None:
    with contextlib.closing(opening(nats.urls(TOPIC)).publisher()) as publisher:
        for _ in range(300):
            publisher.publish([FLIGHTS, "alerts/late"])
    streams = nats.using(lambda client: client.jetstream().streams_info())
    assert TOPIC not in [stream.config.name for stream in streams]


def test_a_stream_with_the_subject_or_the_name_changes_nothing(nats: NATSServer) -> None:
    def make(subject: str) -> Callable[[Any], Awaitable[Any]]:
        return lambda client: client.jetstream().add_stream(name=TOPIC, subjects=[subject])

    for subject in (f"{TOPIC}.>", "something.else"):
        nats.using(make(subject))
        assert goes_through(nats.urls(TOPIC)[0])
        nats.delete(TOPIC)


def test_only_messages_need_jetstream(server: NATSServer) -> None:
    server.stop()
    server.jetstream = False
    server.start()
    url, store_url = server.urls(TOPIC)
    assert goes_through(url)
    pubsub = opening((url, store_url))
    with (
        contextlib.closing(pubsub.consumer("orders", "night", dict[str, str]().get)) as consumer,
        pytest.raises(Unavailable, match="start nats-server with -js"),
    ):
        consumer.receive(1, 10)
