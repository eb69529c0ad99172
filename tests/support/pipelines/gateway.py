"""A pipeline whose source events receive requests in every possible way."""

import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from blacksmith_dagster import (
    HTTP,
    Batch,
    Bearer,
    Blacksmith,
    Destination,
    Event,
    Flow,
    Limits,
    Reject,
    Reply,
    Request,
    Secret,
    Source,
)

SLOW_SECONDS = 3.0

inbox = Source("inbox")
accepted = inbox.accept("accepted")
slow = inbox.accept("slow", limits=Limits(body_timeout=timedelta(seconds=SLOW_SECONDS)))

locked = Source("locked", auth=Bearer(Secret("CLOSED_TOKEN")))
secret = locked.accept("secret")


@inbox.event(HTTP("/inbox/parsed"))
def parsed(request: Request) -> Event[Any]:
    """The JSON value itself."""
    return Event(request.json(), context={"agent": request.headers.get("user-agent")})


@inbox.event(HTTP("/inbox/keyed"))
def keyed(request: Request) -> Iterator[Event[Any]]:
    """An event with the key in its data."""
    data = request.json()
    yield Event(data, key=data["key"])


@inbox.event(HTTP("/inbox/form"))
def form(request: Request) -> Event[dict[str, str]]:
    """The fields of an HTML form, and the query."""
    return Event({**request.form(), **request.query})


@inbox.event(HTTP("/inbox/odd"))
def odd(request: Request) -> Event[Any] | Reply:
    """Everything that a function can do instead of returning an event."""
    action = request.json()
    if action == "reject":
        raise Reject("no such airport: \ud800\0\r\nX-Evil: 1")
    if action == "reply":
        return Reply(201, "hello", "text/x-greeting")
    if action == "modules":
        return Reply(200, str("dagster" in sys.modules))
    if action == "evil reply":
        return Reply(200, "", "text/plain\r\nX-Evil: 1")
    raise RuntimeError("a bug in the extract function")


lake = Destination("lake")


@lake.event(
    receives=[
        Flow(accepted, when=lambda event: event.data["wanted"]),
        Flow(parsed, when=lambda event: event.data["wanted"]),
        keyed,
    ]
)
def waters(batch: Batch[Any]) -> None:
    """Do nothing: no loader runs in these tests."""


blacksmith = Blacksmith(sources=[inbox, locked], destinations=[lake])
