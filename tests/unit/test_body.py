"""Bodies are decompressed within their limit, whatever they claim to be. No I/O."""

import asyncio
import gzip
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from blacksmith_dagster.errors import (
    BadRequest,
    RequestTimeout,
    TooLarge,
    TooManyRequests,
    UnsupportedMedia,
)
from blacksmith_dagster.gateway.body import BodyReader, Reservation, unpack


def bare(body: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(body) + deflater.flush()


PACKED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("X-GZip", gzip.compress),
    ("gzip", lambda body: gzip.compress(body[:3]) + gzip.compress(body[3:])),
    ("deflate", zlib.compress),
    ("deflate", bare),
    ("identity", bytes),
]


@pytest.mark.parametrize(("encoding", "pack"), PACKED)
def test_body_is_unpacked(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    assert unpack(pack(b"0123456789"), encoding, 10) == b"0123456789"


@pytest.mark.parametrize(("encoding", "pack"), PACKED[:-1])
def test_limit_holds_while_unpacking(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(TooLarge):
        unpack(pack(b"01234567890"), encoding, 10)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("cut", [lambda b: b[:-1], lambda b: b"x" + b, lambda b: b + b"x"])
def test_broken_body_is_rejected(encoding: str, cut: Callable[[bytes], bytes]) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    with pytest.raises(BadRequest, match=encoding):
        unpack(cut(pack(b"0123456789")), encoding, 10)


def test_endless_row_of_empty_files_is_rejected() -> None:
    with pytest.raises(BadRequest):
        unpack(gzip.compress(b"") * 10_000, "gzip", 10)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "nonsense"])
def test_unknown_encoding_is_rejected(encoding: str) -> None:
    with pytest.raises(UnsupportedMedia):
        unpack(b"", encoding, 10)


def test_no_more_is_held_than_there_is_room_for_unless_nothing_is() -> None:
    bodies = BodyReader(10)
    with Reservation(bodies) as first:
        first.add(11)
        with pytest.raises(TooManyRequests):
            Reservation(bodies).add(1)
    with Reservation(bodies) as first, Reservation(bodies) as second:
        first.add(5)
        second.add(5)


def read(
    messages: list[dict[str, Any]],
    *,
    declared: bytes | None = None,
    bodies: BodyReader | None = None,
) -> bytes:
    """The body in these messages, with limits of 10 bytes and a third of a second."""
    left = list(messages)

    async def receive() -> Any:
        return left.pop(0) if left else await asyncio.Future()

    async def main() -> bytes:
        chosen = bodies or BodyReader(1000)
        watching = asyncio.create_task(chosen.watch())
        try:
            with Reservation(chosen) as memory:
                body = await chosen.read(receive, memory, declared, 10, 0.3)
                assert memory.size == chosen.reserved == len(body)
                return body
        finally:
            watching.cancel()

    return asyncio.run(main())


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_body_may_come_in_parts() -> None:
    assert read([part(b"01234"), part(b"x")]) == b"01234"
    assert read([part(b"01234", more=True), part(b""), part(b"x")]) == b"01234"
    assert read([part(b"01234", more=True), part(b"56789")]) == b"0123456789"


@pytest.mark.parametrize(
    ("messages", "declared", "error"),
    [
        ([part(b"01234567890")], None, TooLarge),
        ([part(b"0123456789", more=True), part(b"0")], None, TooLarge),
        ([], b"11", TooLarge),
        ([part(b"0123", more=True)], None, RequestTimeout),
        ([], None, RequestTimeout),
        ([part(b"0123", more=True), {"type": "http.disconnect"}], None, ClientDisconnect),
    ],
)
def test_body_that_is_not_read_holds_nothing(
    messages: list[dict[str, Any]], declared: bytes | None, error: type[Exception]
) -> None:
    bodies = BodyReader(10)
    with pytest.raises(error):
        read(messages, declared=declared, bodies=bodies)
    assert bodies.reserved == 0


def test_other_cancellations_pass() -> None:
    async def main() -> None:
        bodies = BodyReader(10)
        receive: Any = lambda: asyncio.Future()  # noqa: E731
        reading = asyncio.create_task(bodies.read(receive, Reservation(bodies), None, 10, 60))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(main())
