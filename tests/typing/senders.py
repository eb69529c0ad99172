"""A pipeline whose senders are known: the type checkers accept it, and infer what its events hold."""

from typing import Any, assert_type

import msgspec

from blacksmith_dagster import (
    Batch,
    Bearer,
    Blacksmith,
    Destination,
    Event,
    Flow,
    JSONSchema,
    Limits,
    Secret,
    SourceEvent,
)
from blacksmith_dagster.sources import (
    CloudEventsSource,
    GitHubSource,
    SegmentSource,
    SlackSource,
    StandardWebhooksSource,
    StripeSource,
)


class Push(msgspec.Struct):
    ref: str


class Order(msgspec.Struct):
    id: int
    total: float = 0.0


segment = SegmentSource(
    "shop",
    write_key=[Secret("SEGMENT_KEY"), Secret("SEGMENT_KEY_OLD")],
    path="/shop/v1",
    on_invalid="quarantine",
)
github = GitHubSource("github", secret=Secret("GITHUB_SECRET"), owners=["team:platform"])
stripe = StripeSource("stripe", secret=Secret("STRIPE_SECRET"), retention="30d")
slack = SlackSource("slack", secret=Secret("SLACK_SIGNING_SECRET"), limits=Limits(keys=1000))
hooks = StandardWebhooksSource("billing", secret=[Secret("BILLING"), Secret("BILLING_OLD")])
orders = CloudEventsSource("orders", auth=Bearer(Secret("ORDERS_TOKEN")))

pushed = github.on("push", model=Push)
others = github.on("*", name="other", description="Whatever else GitHub tells.")
paid = stripe.on("invoice.paid", model=JSONSchema({"type": "object"}))
mentioned = slack.on("app_mention")
created = hooks.on("user.created", model=dict[str, str], tags={"kind": "users"})
placed = orders.on("com.example.order.placed", name="placed", model=Order)

assert_type(segment.track, SourceEvent[dict[str, Any], Any, Any])
assert_type(pushed, SourceEvent[Push, Any, Any])
assert_type(others, SourceEvent[Any, Any, Any])
assert_type(paid, SourceEvent[Any, Any, Any])
assert_type(created, SourceEvent[dict[str, str], Any, Any])
assert_type(placed, SourceEvent[Order, Any, Any])


def name_of(event: Event[dict[str, Any]]) -> str:
    assert_type(event.data, dict[str, Any])
    return str(event.data["event"])


lake = Destination("lake")


@lake.event(receives=[segment.track, segment.identify])
def said(batch: Batch[dict[str, Any]]) -> None:
    print(len(batch))


@lake.event(receives=Flow(segment.track, transform=name_of))
def names(batch: Batch[str]) -> None:
    print(len(batch))


@lake.event(receives=[Flow(placed, when=lambda event: event.data.total > 100), pushed])
def large(batch: Batch[Order | Push]) -> None:
    print(len(batch))


@lake.event(receives=[others, paid, mentioned, created])
def anything(batch: Batch[Any]) -> None:
    print(len(batch))


blacksmith = Blacksmith(
    sources=[segment, github, stripe, slack, hooks, orders], destinations=[lake]
)
