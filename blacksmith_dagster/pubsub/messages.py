"""The wire format of a notification: the names of a destination's events, as a JSON array."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import msgspec

_logger = logging.getLogger(__name__)
_decoder = msgspec.json.Decoder(list[str])


def encode(paths: Collection[str]) -> Mapping[str, bytes]:
    """One message for each destination of these paths of destination events.

    >>> encode(["warehouse/flights", "alerts/late", "warehouse/delays"])
    {'warehouse': b'["delays","flights"]', 'alerts': b'["late"]'}
    """
    events: dict[str, set[str]] = {}
    for path in paths:
        destination, _, event = path.partition("/")
        events.setdefault(destination, set()).add(event)
    return {
        destination: msgspec.json.encode(sorted(names)) for destination, names in events.items()
    }


def decode(destination: str, message: bytes) -> Collection[str]:
    """The paths that a message to a destination tells of; none if it cannot be read.

    >>> sorted(decode("warehouse", b'["delays","flights"]'))
    ['warehouse/delays', 'warehouse/flights']
    """
    try:
        return {f"{destination}/{event}" for event in _decoder.decode(message)}
    except msgspec.DecodeError as error:
        _logger.debug("a message to %s cannot be read and is ignored: %s", destination, error)
        return ()
