"""From a value as PostgreSQL writes it to one that JSON can hold: pure.

The session writes dates in ISO style, times in UTC, intervals in ISO 8601 and bytes in hex.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec
from psycopg import postgres

Convert: TypeAlias = Callable[[bytes], Any]

SETTINGS = {
    "datestyle": "ISO, YMD",
    "timezone": "UTC",
    "intervalstyle": "iso_8601",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}
"""What a session must be set to for the conversions to hold."""


def convert_text(value: bytes) -> str:
    """Text as it is. Bytes that are no UTF-8, which SQL_ASCII databases hold, are escaped."""
    return value.decode("utf-8", "backslashreplace")


def _bool(value: bytes) -> bool:
    return value == b"t"


def _float(value: bytes) -> float | str:
    # JSON has neither NaN nor Infinity: they stay text.
    return value.decode() if value[-1] in b"Ny" else float(value)


def _json(value: bytes) -> Any:
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return convert_text(value)  # a number beyond a float's range, for example


def _bytes(value: bytes) -> str:
    return binascii.b2a_base64(binascii.unhexlify(value[2:]), newline=False).decode()


def _timestamp(value: bytes) -> str:
    # "infinity", and years before Christ, which ISO 8601 has no sign for, stay as they are.
    shown = value.decode()
    return shown if shown.endswith("BC") else shown.replace(" ", "T")


def _timestamptz(value: bytes) -> str:
    shown = value.decode()
    return f"{shown[:-3].replace(' ', 'T')}Z" if shown.endswith("+00") else shown


_CONVERTS: dict[str, Convert] = {
    "bool": _bool,
    "int2": int,
    "int4": int,
    "int8": int,
    "oid": int,
    "float4": _float,
    "float8": _float,
    "json": _json,
    "jsonb": _json,
    "bytea": _bytes,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
}


@lru_cache(maxsize=1024)
def convert_of(type_: int | str) -> Convert:
    """How values of a built-in type, given by its oid or name, are converted; others stay text."""
    known = postgres.types.get(type_)
    if known is None:
        return convert_text
    element = _CONVERTS.get(known.name, convert_text)
    if type_ == known.array_oid:
        return lambda value: _array(value, element, known.delimiter.encode())
    return element


_TOKEN = {
    delimiter: re.compile(rb'[{}]|"((?:[^"\\]|\\.)*)"|([^{}"' + delimiter + rb"]+)", re.DOTALL)
    for delimiter in (b",", b";")
}
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def _array(value: bytes, convert: Convert, delimiter: bytes) -> Any:
    """An array, of any dimensions, as lists. Bounds that do not begin at 1 are left out."""
    if value.startswith(b"["):
        value = value.partition(b"=")[2]
    root: list[Any] = []
    open_lists = [root]
    for token in _TOKEN[delimiter].finditer(value):
        quoted, bare = token.groups()
        if quoted is not None:
            open_lists[-1].append(convert(_ESCAPED.sub(rb"\1", quoted)))
        elif bare is not None:
            open_lists[-1].append(None if bare == b"NULL" else convert(bare))
        elif token[0] == b"{":
            inner: list[Any] = []
            open_lists[-1].append(inner)
            open_lists.append(inner)
        else:
            open_lists.pop()
    return root[0]
