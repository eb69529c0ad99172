"""How much a source accepts in one request."""

from __future__ import annotations

from dataclasses import dataclass, fields

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline.validation import Inheriting


@dataclass(frozen=True, slots=True)
class Limits(Inheriting):
    """What a request to a source event may hold. A field that is `None` is inherited.

    The event's field is taken, else the source's, else the default.

    - `event_bytes`: of one event, or of a request to a webhook (1 MiB): 413.
    - `request_bytes`: of the whole body, unpacked (8 MiB): 413.
    - `depth`: of nested arrays and objects (64): 422.
    - `keys`: in all objects of one event (10,000): 422.
      Both are asked of each body that looks like JSON, whatever its content type says.
    - `body_seconds`: until the whole body must have come (30 s): 408.

    >>> Limits(event_bytes=64 * 1024).inherit(DEFAULT).depth
    64
    """

    event_bytes: int | None = None
    request_bytes: int | None = None
    depth: int | None = None
    keys: int | None = None
    body_seconds: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            of_time = field.name == "body_seconds"
            fits = isinstance(value, (int, float) if of_time else int) and value > 0
            if value is not None and not fits:
                number = "number" if of_time else "whole number"
                raise DeclarationError(
                    f"Limits({field.name}={value!r}): a {number} above 0; leave it out to inherit it"
                )


DEFAULT = Limits(
    event_bytes=1024 * 1024,
    request_bytes=8 * 1024 * 1024,
    depth=64,
    keys=10_000,
    body_seconds=30.0,
)
