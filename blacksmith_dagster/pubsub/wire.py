"""What brokers send: notifications in their wire format, and the fields of a message."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

import msgspec

_logger = logging.getLogger(__name__)
_decoder = msgspec.json.Decoder(list[str])


def encode_notifications(paths: Collection[str]) -> Mapping[str, bytes]:
    """One message for each destination of these destination events: their names as a JSON array.

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
    """The paths of the destination events with new jobs; none if the message cannot be read.

    >>> sorted(decode_notification("warehouse", b'["delays","flights"]'))
    ['warehouse/delays', 'warehouse/flights']
    """
    try:
        return {f"{destination}/{event}" for event in _decoder.decode(message)}
    except msgspec.DecodeError as error:
        _logger.debug("a notification to %s cannot be read and is ignored: %s", destination, error)
        return ()


def unix_time(seconds: float) -> datetime | None:
    """A time in seconds since 1970; `None` if no calendar has it: senders write what they like."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def header_text(value: object) -> str:
    """A header's value: bytes are UTF-8, with U+FFFD in place of what is not; nothing is ''."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)
