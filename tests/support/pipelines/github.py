"""A pipeline for GitHub's webhooks: one source event as received, one with a function."""

from typing import Any

from blacksmith_dagster import HTTP, Batch, Blacksmith, Destination, Event, Request, Source

github = Source("github")
raw = github.accept("raw")


@github.event(HTTP("/github/webhook"))
def webhook(request: Request) -> Event[Any]:
    """A delivery; its event type and id are in headers."""
    headers = request.headers
    return Event(
        request.json(),
        key=headers["x-github-delivery"],
        context={"event": headers["x-github-event"]},
    )


archive = Destination("archive")


@archive.event(receives=[raw, webhook])
def payloads(batch: Batch[Any]) -> None:
    """Do nothing."""


blacksmith = Blacksmith(sources=[github], destinations=[archive])
