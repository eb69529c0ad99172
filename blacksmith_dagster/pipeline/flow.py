"""The edge from an event to a destination event that receives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.validation import checked_function

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)


class Receives(Generic[T_co]):
    """What `receives=` accepts: an event, an outcome, or a `Flow` that starts at one."""


class Receivable(Receives[T_co]):
    """Whatever a destination event can receive: a source event, or an outcome.

    `path` names it in the store, in Dagster and on the command line: `airport/departed`,
    `warehouse/flights.discarded`. `model` is the type its data is decoded into, `Any` if unknown.
    """

    def __init__(self, path: str, model: Any) -> None:
        self.path = path
        self.model = model

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"


class Outcome(Receivable[T_co]):
    """What became of a destination event's jobs, received like an event.

    An outcome's job has the data of the original job, and `job.cause`.
    """

    def __init__(self, origin: str, name: str, model: Any) -> None:
        super().__init__(f"{origin}.{name}", model)
        self.origin = origin
        self.name = name


class Flow(Receives[R_co]):
    """How an event reaches a destination event.

    - `when(event)`: whether the event gets a job, decided when it is stored. If it raises, the job is
      created and fails with that error, so that no bug drops an event.
    - `transform(event)`: the job's data, computed at every load from the stored event. If it raises,
      only this job fails.

    >>> from blacksmith_dagster import Source
    >>> departed = Source("airport").accept("departed")
    >>> Flow(departed, when=lambda event: event.data["dep_delay"] > 120).on.path
    'airport/departed'

    Raises `DeclarationError`.
    """

    @overload
    def __init__(
        self, on: Receivable[R_co], *, when: Callable[[Event[R_co]], bool] | None = None
    ) -> None: ...
    @overload
    def __init__(
        self,
        on: Receivable[T],
        *,
        when: Callable[[Event[T]], bool] | None = None,
        transform: Callable[[Event[T]], R_co],
    ) -> None: ...
    def __init__(
        self,
        on: Receivable[Any],
        *,
        when: Callable[[Event[Any]], bool] | None = None,
        transform: Callable[[Event[Any]], Any] | None = None,
    ) -> None:
        if not isinstance(on, Receivable):
            raise DeclarationError(
                f"Flow({on!r}): a flow starts at an event of a source, or at an outcome such as "
                "`flights.discarded`; name one"
            )
        where = f"Flow({on.path})"
        self.on = on
        self.when = when and checked_function(f"{where}: when", when, "event")
        self.transform = transform and checked_function(f"{where}: transform", transform, "event")
