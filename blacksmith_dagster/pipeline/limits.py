"""The limits of one request to a source."""

from __future__ import annotations

from dataclasses import dataclass, fields

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline.validation import Duration, Inheriting, duration


@dataclass(frozen=True, slots=True)
class Limits(Inheriting):
    """What a request to a source event may hold. A field that is `None` is inherited.

    The event's field applies, else the source's, else the default. A request over a limit is rejected.

    - `event_bytes`: the size of one event, or of a request to a webhook (1 MiB): 413.
    - `request_bytes`: the size of the whole body, decompressed (8 MiB): 413.
    - `depth`: how deep arrays and objects may be nested (64): 422.
    - `keys`: the keys in all objects of one event (10,000): 422.
      Both apply to each body that looks like JSON, whatever its content type says.
    - `body_timeout`: how long the whole body may take to arrive ('30s'): 408.

    >>> Limits(event_bytes=64 * 1024).inherit(DEFAULT).depth
    64
    """

    event_bytes: int | None = None
    request_bytes: int | None = None
    depth: int | None = None
    keys: int | None = None
    body_timeout: Duration | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if field.name == "body_timeout":
                duration("Limits: body_timeout", value)
            elif not (isinstance(value, int) and value > 0):
                raise DeclarationError(
                    f"Limits({field.name}={value!r}): write a whole number above 0, or leave it out"
                )


DEFAULT = Limits(1024 * 1024, 8 * 1024 * 1024, 64, 10_000, "30s")
