"""Bodies are unpacked within their limit, whatever they claim to be. No I/O."""

import gzip
import zlib
from collections.abc import Callable

import pytest

from blacksmith_dagster.errors import BadRequest, Busy, TooLarge, UnsupportedMedia
from blacksmith_dagster.gateway.body import Budget, unpack


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
def test_broken_body_is_refused(encoding: str, cut: Callable[[bytes], bytes]) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    with pytest.raises(BadRequest, match=encoding):
        unpack(cut(pack(b"0123456789")), encoding, 10)


def test_endless_row_of_empty_files_is_refused() -> None:
    with pytest.raises(BadRequest):
        unpack(gzip.compress(b"") * 10_000, "gzip", 10)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "nonsense"])
def test_unknown_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(UnsupportedMedia):
        unpack(b"", encoding, 10)


def test_budget_refuses_more_than_it_has_unless_nothing_is_held() -> None:
    budget = Budget(10)
    budget.take(11)
    with pytest.raises(Busy):
        budget.take(1)
    budget.give_back(11)
    budget.take(5)
    budget.take(5)
