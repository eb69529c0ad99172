"""How notifications are encoded, and what senders may write into messages."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

import msgspec

_log = logging.getLogger(__name__)
_notification_decoder = msgspec.json.Decoder(list[str])


def encode_notifications(paths: Collection[str]) -> Mapping[str, bytes]:
    """By destination, one message: the names of its destination events as a JSON array.

    >>> encode_notifications(["warehouse/flights", "alerts/late", "warehouse/delays"])
    {'warehouse': b'["delays","flights"]', 'alerts': b'["late"]'}
    """
    events: dict[str, set[str]] = {}
    for path in paths:
        destination, _, event = path.partition("/")
        events.setdefault(destination, set()).add(event)
    return {
        destination: msgspec.json.encode(sorted(names)) for destination, names in events.items()
    }


def decode_notification(destination: str, message: bytes) -> Collection[str]:
    """The paths of the destination events in a notification; none if it cannot be decoded.

    >>> sorted(decode_notification("warehouse", b'["delays","flights"]'))
    ['warehouse/delays', 'warehouse/flights']
    """
    try:
        return {f"{destination}/{event}" for event in _notification_decoder.decode(message)}
    except msgspec.DecodeError as error:
        _log.debug("ignored a notification to %s that cannot be decoded: %s", destination, error)
        return ()


def unix_time(seconds: float) -> datetime | None:
    """The time so many seconds after 1970; `None` if out of range, as senders may write anything."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def header_text(value: object) -> str:
    """A header's value as text: bytes are decoded as UTF-8, U+FFFD for invalid ones; `None` is ''."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)
