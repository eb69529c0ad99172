"""A pipeline with a webhook endpoint for every ready-made source."""

from typing import Any

import msgspec

from blacksmith_dagster import Batch, Blacksmith, Destination, Flow, Secret
from blacksmith_dagster.sources import (
    CloudEventsSource,
    GitHubSource,
    SegmentSource,
    SlackSource,
    StandardWebhooksSource,
    StripeSource,
)


class Order(msgspec.Struct):
    """The fields that every order has."""

    id: int
    total: float = 0.0


segment = SegmentSource(
    "segment",
    write_key=[Secret("SEGMENT_KEY"), Secret("SEGMENT_KEY_OLD")],
    on_invalid="reject",
)
lenient = SegmentSource("lenient", write_key=Secret("SEGMENT_KEY"), path="/lenient/v1")
github = GitHubSource("github", secret=[Secret("GITHUB_SECRET"), Secret("GITHUB_SECRET_OLD")])
pushed = github.on("push")
others = github.on("*", name="other")
stripe = StripeSource(
    "stripe", secret=Secret("STRIPE_SECRET"), versions={"2026-01-28": None, "2020-08-27": None}
)
paid = stripe.on("invoice.paid")
slack = SlackSource("slack", secret=Secret("SLACK_SECRET"))
mentioned = slack.on("app_mention")
hooks = StandardWebhooksSource("hooks", secret=Secret("HOOKS_SECRET"))
created = hooks.on("user.created")
orders = CloudEventsSource("orders")
placed = orders.on("com.example.order.placed", name="placed", model=Order)
anything = orders.on("*", name="anything")

lake = Destination("lake")


@lake.event(
    receives=[
        *segment.events.values(),
        *github.events.values(),
        *orders.events.values(),
        paid,
        mentioned,
        created,
    ]
)
def everything(batch: Batch[Any]) -> None:
    """Do nothing: no loader runs in these tests."""


@lake.event(receives=Flow(segment.track, when=lambda event: event.data["event"] == "Ordered"))
def ordered(batch: Batch[Any]) -> None:
    """Loads nothing."""


@lake.event(receives=Flow(placed, when=lambda event: event.data.total > 100))
def large(batch: Batch[Order]) -> None:
    """Loads nothing."""


blacksmith = Blacksmith(
    sources=[segment, lenient, github, stripe, slack, hooks, orders], destinations=[lake]
)
