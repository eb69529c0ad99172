"""What brokers say of a message, as a `Message` has it."""

from __future__ import annotations

from datetime import UTC, datetime


def moment(seconds: float) -> datetime | None:
    """A time in seconds since 1970; `None` if no calendar has it: senders write what they like."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def text(value: object) -> str:
    """A header's value: bytes are UTF-8, with U+FFFD in place of what is not; nothing is ''."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)
