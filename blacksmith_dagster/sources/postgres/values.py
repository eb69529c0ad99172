"""Converts values as PostgreSQL writes them to values that JSON can hold. No I/O.

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
"""The session settings that the conversions rely on."""


def convert_text(value: bytes) -> str:
    """Text as it is. Bytes that are not UTF-8, as in SQL_ASCII databases, are escaped."""
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
    # "infinity" and years BC, which ISO 8601 cannot express, stay as they are.
    text = value.decode()
    return text if text.endswith("BC") else text.replace(" ", "T")


def _timestamptz(value: bytes) -> str:
    text = value.decode()
    return f"{text[:-3].replace(' ', 'T')}Z" if text.endswith("+00") else text


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
    """The conversion for a built-in type, by its oid or name; values of other types stay text."""
    info = postgres.types.get(type_)
    if info is None:
        return convert_text
    element = _CONVERTS.get(info.name, convert_text)
    if type_ == info.array_oid:
        return lambda value: _array(value, element, info.delimiter.encode())
    return element


_TOKEN = {
    delimiter: re.compile(rb'[{}]|"((?:[^"\\]|\\.)*)"|([^{}"' + delimiter + rb"]+)", re.DOTALL)
    for delimiter in (b",", b";")
}
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def _array(value: bytes, convert: Convert, delimiter: bytes) -> Any:
    """An array of any dimensions as lists. Bounds that do not start at 1 are dropped."""
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
