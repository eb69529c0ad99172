"""Wrong declarations of a source: subscriptions, versions, children and webhooks."""

from datetime import UTC, date, datetime
from typing import Any

import pytest

from blacksmith_dagster import (
    CDC,
    HTTP,
    Blacksmith,
    DeclarationError,
    Event,
    Listener,
    Message,
    Poll,
    Request,
    Secret,
    Source,
    Subscription,
)
from tests.support.declaring import refused


@pytest.mark.parametrize("name", ["", "two words", "naïve", "x" * 250, 7])
def test_a_topic_and_a_subscription_are_one_word(name: Any) -> None:
    refused(Subscription, name, says="Subscription(topic=", fix="printable ASCII")
    refused(Subscription, "orders", name, says="Subscription(subscription=", fix="printable ASCII")


def test_a_brokers_url_is_a_secret_and_not_repeated() -> None:
    url: Any = "nats://user:hunter2@broker"
    with pytest.raises(DeclarationError, match=r"takes a Secret.*Secret\('ITS_NAME'\)") as raised:
        Subscription("orders", url=url)
    assert "hunter2" not in str(raised.value)
    assert Subscription("orders", url=Secret("ORDERS_URL")).url == Secret("ORDERS_URL")


@pytest.mark.parametrize(
    "versions",
    [{"": None}, {1: None}, {"1": "2026-01-01"}, {"1": datetime(2026, 1, 1, tzinfo=UTC)}],
)
def test_a_version_is_text_with_a_day(versions: Any) -> None:
    refused(Source, "shop", versions=versions, says="source 'shop': versions=", fix="datetime.date")
    shop = Source("shop")
    refused(shop.accept, "ordered", versions=versions, says="shop/ordered: ", fix="datetime.date")


def test_the_default_version_is_one_of_the_versions() -> None:
    fix = "not one of its versions (2, 1); declare it in versions="
    known = {"2": None, "1": date(2026, 1, 1)}
    refused(Source, "shop", versions=known, default_version="3", says="='3'", fix=fix)
    refused(Source, "shop", default_version="3", says="='3'", fix="it has none")


def test_an_event_has_the_versions_of_its_source_or_its_own() -> None:
    shop = Source("shop", versions={"1": None}, default_version="1")
    assert shop.accept("ordered").versions == shop.versions
    assert shop.accept("paid", versions={"2": None}).versions.accepted == {"2": None}


@pytest.mark.parametrize(
    ("on", "handed"), [(Subscription("orders"), "message"), (CDC(), "listener")]
)
def test_a_function_takes_what_its_trigger_hands_over(on: Any, handed: str) -> None:
    declare: Any = Source("shop").event(on, name="ordered")
    refused(declare, lambda: None, says=f"called with ({handed})", fix="change its parameters")


def test_a_function_stays_callable_with_what_it_is_handed() -> None:
    shop = Source("shop")

    @shop.event(Subscription("orders"))
    def ordered(message: Message) -> Event[int]:
        return Event(message.json(int))

    @shop.event(CDC())
    def changed(listener: Listener) -> list[Event[Any]]:
        return [Event(listener.cursor)]

    assert ordered(Message.of(7)) == Event(7)
    assert changed(Listener(cursor=8)) == [Event(8)]
    assert Poll(cursor=9).cursor == 9


def test_a_webhook_is_served_over_http() -> None:
    wrong: Any = Subscription("orders")
    refused(
        Source("shop").webhook, wrong, says="a webhook needs an HTTP trigger", fix="HTTP('/shop')"
    )
    declare: Any = Source("shop").webhook(HTTP("/shop"))
    refused(declare, lambda: None, says="called with (request)", fix="change its parameters")


def test_a_path_is_served_once() -> None:
    shop = Source("shop")
    shop.accept("ordered", on=HTTP("/shop"))

    @shop.webhook(HTTP("/shop"))
    def arrived(request: Request) -> list[Any]:
        return []

    refused(
        Blacksmith,
        sources=[shop],
        destinations=[],
        says="shop/ordered and shop are both sent to POST /shop",
        fix="another path",
    )
    assert arrived(Request.of(1)) == []


def test_a_subscription_is_read_by_one_event() -> None:
    shop = Source("shop")
    shop.accept("ordered", on=Subscription("orders", "readers"))
    shop.accept("paid", on=Subscription("payments", "readers", Secret("PAYMENTS_URL")))
    shop.accept("shipped", on=Subscription("orders"))
    Blacksmith(sources=[shop], destinations=[])
    shop.accept("returned", on=Subscription("returns", "readers"))
    refused(
        Blacksmith,
        sources=[shop],
        destinations=[],
        says="shop/ordered and shop/returned both read the subscription 'readers'",
        fix="rename one",
    )
