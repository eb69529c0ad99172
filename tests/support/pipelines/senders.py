"""A pipeline with an endpoint that is verified by a GET, and a webhook for every ready-made source."""

import os

from blacksmith_dagster import (
    HTTP,
    Blacksmith,
    Event,
    HMACSignature,
    Reject,
    Reply,
    Request,
    Secret,
    Source,
    TypedEvent,
)
from blacksmith_dagster.sources import (
    CloudEventsSource,
    GitHubSource,
    SegmentSource,
    SlackSource,
    StandardWebhooksSource,
    StripeSource,
)

meta = Source("meta", auth=HMACSignature(Secret("META_SECRET"), header="X-Hub-Signature-256"))


@meta.webhook(HTTP("/meta", method="GET"))
def verified(request: Request) -> Reply:
    """The challenge, to a sender that knows the token."""
    if request.query.get("hub.verify_token") != os.environ["META_TOKEN"]:
        raise Reject("this is not the verify token")
    return Reply(200, request.query["hub.challenge"])


@meta.event(HTTP("/meta"))
def changed(request: Request) -> Event[dict[str, object]]:
    """A change, signed."""
    return Event(request.json(dict))


@meta.webhook(HTTP("/meta/unsigned", method="GET"))
def unsigned(request: Request) -> list[TypedEvent]:
    """What a GET must not do where events are signed."""
    if "raise" in request.query:
        raise ValueError("a bug")
    return [changed_by_get.of({"by": "GET"})]


changed_by_get = meta.child("changed_by_get")
plain = Source("plain")


@plain.event(HTTP("/pixel", method="GET"))
def opened(request: Request) -> Event[dict[str, str]]:
    """A pixel of an e-mail that was opened: no signature was declared."""
    return Event(dict(request.query))


segment = SegmentSource("segment", write_key=Secret("SEGMENT_KEY"))
github = GitHubSource("github", secret=Secret("GITHUB_SECRET"))
github.on("push")
stripe = StripeSource("stripe", secret=Secret("STRIPE_SECRET"))
stripe.on("invoice.paid")
slack = SlackSource("slack", secret=Secret("SLACK_SECRET"))
slack.on("app_mention")
hooks = StandardWebhooksSource("hooks", secret=Secret("HOOKS_SECRET"))
hooks.on("user.created")
hooks.on("*", name="other")
orders = CloudEventsSource("orders")
orders.on("com.example.order.placed", name="placed")

blacksmith = Blacksmith(
    sources=[meta, plain, segment, github, stripe, slack, hooks, orders], destinations=[]
)
