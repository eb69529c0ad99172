"""Sources whose senders give each event a type: how they are declared, and which event it becomes."""

from typing import Any

import pytest

from blacksmith_dagster import Bearer, Request, Secret
from blacksmith_dagster.errors import BadRequest, DeclarationError, Reject
from blacksmith_dagster.sources import (
    CloudEventsSource,
    GitHubSource,
    SegmentSource,
    SlackSource,
    StandardWebhooksSource,
    StripeSource,
)

OLD, NEW = Secret("OLD"), Secret("NEW")


def delivery(type: str, data: Any = None, key: str = "d-1") -> Request:
    headers = {"X-GitHub-Event": type, "X-GitHub-Delivery": key}
    return Request.of({} if data is None else data, headers)


def receive(source: Any, request: Request) -> Any:
    return source.webhooks[0].function(request)


@pytest.mark.parametrize(
    ("type", "name"),
    [
        ("push", "push"),
        ("invoice.paid", "invoice_paid"),
        ("com.example.Order-Placed", "com_example_order_placed"),
        ("user..created!", "user_created"),
        ("Order Completed", "order_completed"),
    ],
)
def test_events_are_named_after_their_types(type: str, name: str) -> None:
    source = GitHubSource("hub", secret=OLD)
    event = source.on(type, description="Told.")
    assert (event.name, event.path, event.description) == (name, f"hub/{name}", "Told.")
    assert source.on("another", name="own").name == "own"
    assert receive(source, delivery(type)).event_type == event.path


def test_what_is_not_named_goes_to_the_others() -> None:
    source = GitHubSource("hub", secret=OLD)
    source.on("push")
    source.on("*", name="other")
    assert receive(source, delivery("push")).event_type == "hub/push"
    assert receive(source, delivery("star")).event_type == "hub/other"


def test_type_that_nobody_declared_is_rejected_with_those_that_are() -> None:
    source = GitHubSource("hub", secret=OLD)
    with pytest.raises(
        Reject, match="hub accepts no events of the type 'star'; it accepts none at all"
    ):
        receive(source, delivery("star"))
    source.on("push")
    source.on("issues")
    with pytest.raises(Reject, match="'star'; it accepts push, issues"):
        receive(source, delivery("star"))


@pytest.mark.parametrize(
    ("types", "says"),
    [
        ([("push", None), ("push", "again")], "has an event on 'push' already: push"),
        ([("a.b", None), ("a-b", None)], "two events named 'a_b'; rename one, or give name="),
        ([("*", None)], r"write on\('\*', name='other'\)"),
        ([("2fa.enabled", None)], "a name is a lower-case letter"),
        ([("...", None)], "a name is a lower-case letter"),
    ],
)
def test_wrong_declarations_are_rejected(types: list[Any], says: str) -> None:
    source = GitHubSource("hub", secret=OLD)
    *first, (last, name) = types
    for earlier, _ in first:
        source.on(earlier)
    with pytest.raises(DeclarationError, match=says):
        source.on(last, name=name)


SIGNED = [GitHubSource, SlackSource, StandardWebhooksSource, StripeSource]


@pytest.mark.parametrize("kind", SIGNED)
def test_secrets_may_be_several_while_one_is_replaced(kind: Any) -> None:
    assert kind("hub", secret=[NEW, OLD]).auth.secrets == (NEW, OLD)
    with pytest.raises(DeclarationError, match="Secret"):
        kind("hub", secret="in the code")
    with pytest.raises(DeclarationError, match="leave auth= out"):
        kind("hub", secret=NEW, auth=Bearer(OLD))


def test_properties_are_those_of_any_source() -> None:
    source = StripeSource("money", secret=NEW, owners=["team:money"], retention="30d")
    assert source.on("invoice.paid").owners == ("team:money",)
    assert [(webhook.on.path, webhook.auth) for webhook in source.webhooks] == [
        ("/v1/money", source.auth)
    ]
    events = CloudEventsSource("orders", auth=Bearer(NEW))
    assert events.webhooks[0].auth == Bearer(NEW)
    with pytest.raises(DeclarationError, match="leave auth= out"):
        SegmentSource("shop", write_key=NEW, auth=Bearer(OLD))


@pytest.mark.parametrize("missing", ["X-GitHub-Event", "X-GitHub-Delivery"])
def test_header_that_is_missing_is_named(missing: str) -> None:
    source = GitHubSource("hub", secret=OLD)
    source.on("push")
    headers = {"X-GitHub-Event": "push", "X-GitHub-Delivery": "d"}
    del headers[missing]
    with pytest.raises(BadRequest, match=f"the header {missing} is missing"):
        receive(source, Request.of({}, headers))
