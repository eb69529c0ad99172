"""Reads the messages of a subscription, and commits their events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from blacksmith_dagster.errors import CursorMoved, FencedOut, SettingsError, Unavailable
from blacksmith_dagster.ingest.ingest import EventsOrRaw, Ingester
from blacksmith_dagster.ingest.quarantine import raw_request_of
from blacksmith_dagster.pipeline.source import AnySourceEvent
from blacksmith_dagster.pipeline.triggers import Subscription
from blacksmith_dagster.pubsub import PubSub, open_pubsub
from blacksmith_dagster.pubsub.interface import Received
from blacksmith_dagster.store.records import Cursor

MESSAGES = 2_000
"""The most messages in one commit."""

_NOT_ITS_DATA = (Unavailable, CursorMoved, FencedOut)  # errors that no message of the commit causes


class Messages:
    """Reads the messages of one subscription, and commits their events.

    Raises `SettingsError` when no broker is configured, and `ImportError` without its client.
    """

    def __init__(self, event: AnySourceEvent, ingester: Ingester, pubsub: PubSub | None) -> None:
        trigger = cast(Subscription, event.trigger)
        name, cursor = subscription_of(event.path, trigger), ingester.store.log.cursor
        self._ingester = ingester
        self._consumer = broker_of(event, pubsub).consumer(trigger.topic, name, cursor)

    def read(self, timeout: float) -> int | None:
        """Commit the next messages; returns how many, or `None` if none arrives for `timeout` seconds.

        Raises `CursorMoved` if another process has read on, and what the broker and the store raise.
        """
        received = self._consumer.receive(MESSAGES, timeout)
        if received:
            self._ingest(received)
            self._consumer.acknowledge()
        return len(received) or None

    def finish(self) -> Iterable[int]:
        """Does nothing: all messages received so far are committed already."""
        return ()

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()

    def lag(self) -> tuple[int | None, str]:
        """How many messages wait at the broker."""
        return self._consumer.lag(), "messages"

    def _ingest(self, received: Sequence[Received]) -> None:
        extracted = [self._ingester.extract_request(message) for message, _ in received]
        try:
            self._commit(received, extracted)
        except _NOT_ITS_DATA:
            raise
        except Exception:  # noqa: BLE001 - the database rejects the data of a message
            for one, events in zip(received, extracted, strict=True):
                self._commit_one(one, events)

    def _commit_one(self, received: Received, extracted: EventsOrRaw) -> None:
        try:
            self._commit([received], [extracted])
        except _NOT_ITS_DATA:
            raise
        except Exception as error:  # noqa: BLE001 - this message; it must not block the topic
            raw = raw_request_of(self._ingester.path, received.message, error)
            self._commit([received], [raw])

    def _commit(self, received: Sequence[Received], extracted: Sequence[EventsOrRaw]) -> None:
        messages = [message for message, _ in received]
        self._ingester.commit(messages, extracted, cursors_of(received))


def cursors_of(received: Sequence[Received]) -> Sequence[Cursor]:
    """The move of each reader's cursor when these messages are committed.

    >>> from blacksmith_dagster import Message
    >>> first, second = Cursor("orders/0", "6", "7"), Cursor("orders/0", "7", "8")
    >>> cursors_of([Received(Message(b""), first), Received(Message(b""), second)])
    [Cursor(reader='orders/0', before='6', after='8')]
    """
    moved: dict[str, Cursor] = {}
    for _, cursor in received:
        if cursor is not None:
            first = moved.get(cursor.reader, cursor)
            moved[cursor.reader] = Cursor(cursor.reader, first.before, cursor.after)
    return list(moved.values())


def subscription_of(path: str, trigger: Subscription) -> str:
    """The name under which the broker knows the reader of a source event.

    >>> subscription_of("shop/ordered", Subscription("orders"))
    'blacksmith_shop_ordered'
    """
    return trigger.subscription or f"blacksmith_{path.replace('/', '_')}"


def broker_of(event: AnySourceEvent, pubsub: PubSub | None) -> PubSub:
    """The broker of a subscription: its own, or `pubsub`, which the settings configure.

    Raises `SettingsError` if neither exists, `MissingSecret`, and `ImportError` without its client.
    """
    own = cast(Subscription, event.trigger).url
    if own is not None:
        pubsub = open_pubsub(own.reveal(), "", variable=own.name)
    if pubsub is None:
        raise SettingsError(
            f"{event.path} subscribes to a broker, but none is configured: set BLACKSMITH_PUBSUB_URL "
            "to kafka://host:9092, nats://host:4222 or amqp://host:5672, or give the subscription its "
            "own url="
        )
    return pubsub
