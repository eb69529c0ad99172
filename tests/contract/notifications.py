"""What every broker of notifications does: the suite that each adapter's tests inherit."""

import contextlib
import logging
import statistics
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub import Publisher, PubSub, Subscriber
from tests.support import randomness
from tests.support.notifying import (
    DELAYS,
    FLIGHTS,
    LATE,
    SOON,
    Subscribe,
    assert_recovers,
    down,
    frozen,
    heard,
    listener,
    opening,
)
from tests.support.services.broker import Broker
from tests.support.waiting import until

A_FEW_SECONDS = 8.0


def wait_until_raised(subscriber: Subscriber) -> None:
    """Wait until it fails; the first wait may still hear what came before."""
    for _ in range(3):
        subscriber.wait(A_FEW_SECONDS)


class NotificationsContract:
    """The suite; a broker's module inherits it and has the fixture `broker`: a running server."""

    def test_heard_by_the_subscriber_of_the_destination_and_no_other(
        self, publisher: Publisher, subscribe: Subscribe
    ) -> None:
        warehouse, alerts = subscribe("warehouse"), subscribe("alerts")
        publisher.publish([FLIGHTS])
        assert heard(warehouse, [FLIGHTS]) == {FLIGHTS}
        assert not alerts.wait(0.2)

    def test_heard_by_every_subscriber(self, publisher: Publisher, subscribe: Subscribe) -> None:
        subscribers = [subscribe("warehouse") for _ in range(3)]
        publisher.publish([FLIGHTS])
        # The first one takes its time: it takes nothing away from the others.
        for subscriber in reversed(subscribers):
            assert heard(subscriber, [FLIGHTS]) == {FLIGHTS}

    def test_several_destinations_and_events_at_once(
        self, publisher: Publisher, subscribe: Subscribe
    ) -> None:
        warehouse, alerts = subscribe("warehouse"), subscribe("alerts")
        publisher.publish([FLIGHTS, LATE, DELAYS])
        assert heard(warehouse, [FLIGHTS, DELAYS]) == {FLIGHTS, DELAYS}
        assert heard(alerts, [LATE]) == {LATE}

    def test_names_that_resemble_each_other_are_kept_apart(
        self, publisher: Publisher, subscribe: Subscribe
    ) -> None:
        warehouse, other = subscribe("warehouse"), subscribe("warehouse_2")
        publisher.publish(["warehouse_2/flights"])
        assert heard(other, ["warehouse_2/flights"]) == {"warehouse_2/flights"}
        assert not warehouse.wait(0.2)

    def test_topics_are_apart(
        self, broker: Broker, topic: str, subscribe: Subscribe, opened: contextlib.ExitStack
    ) -> None:
        ours = subscribe("warehouse")
        elsewhere = opening(broker.urls(f"{topic}-other")).publisher()
        opened.enter_context(contextlib.closing(elsewhere))
        elsewhere.publish([FLIGHTS])
        assert not ours.wait(0.3)

    def test_what_came_between_two_waits_is_heard(
        self, publisher: Publisher, subscribe: Subscribe
    ) -> None:
        subscriber = subscribe("warehouse")
        publisher.publish([FLIGHTS])
        publisher.publish([DELAYS])
        assert heard(subscriber, [FLIGHTS, DELAYS]) == {FLIGHTS, DELAYS}

    def test_nothing_old_is_heard(self, publisher: Publisher, subscribe: Subscribe) -> None:
        subscribe("warehouse")
        publisher.publish([FLIGHTS])
        assert not subscribe("warehouse").wait(0.3)

    def test_publishing_needs_no_subscriber(
        self, publisher: Publisher, subscribe: Subscribe
    ) -> None:
        for _ in range(3):
            publisher.publish([FLIGHTS, LATE])
        subscriber = subscribe("warehouse")
        publisher.publish([DELAYS])
        assert heard(subscriber, [DELAYS]) == {DELAYS}

    def test_a_publisher_sends_nothing_for_nothing(
        self, publisher: Publisher, subscribe: Subscribe
    ) -> None:
        subscriber = subscribe("warehouse")
        publisher.publish([])
        assert not subscriber.wait(0.2)

    def test_wait_ends_after_its_timeout(self, subscribe: Subscribe) -> None:
        subscriber = subscribe("warehouse")
        for timeout in (0.5, 0.0):
            began = time.monotonic()
            assert not subscriber.wait(timeout)
            assert timeout - 0.02 <= time.monotonic() - began < timeout + A_FEW_SECONDS

    def test_wait_ends_with_the_first_message(
        self, publisher: Publisher, subscribe: Subscribe
    ) -> None:
        subscriber = subscribe("warehouse")
        took = []
        with ThreadPoolExecutor(1) as pool:
            for _ in range(40):
                waiting = pool.submit(lambda: (subscriber.wait(SOON), time.perf_counter()))
                time.sleep(0.005)  # it waits by now
                sent = time.perf_counter()
                publisher.publish([FLIGHTS])
                paths, ended = waiting.result()
                assert set(paths) == {FLIGHTS}
                took.append(ended - sent)
        # Far above what it takes, and far below what looking from time to time would make of it. The
        # fastest quarter, as the others may wait for a core.
        assert statistics.quantiles(took, n=4)[0] < 0.02

    def test_close_ends_a_wait(self, pubsub: PubSub, subscribe: Subscribe) -> None:
        subscriber = subscribe("warehouse")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(subscriber.wait, 60.0)
            time.sleep(0.1)  # it waits by now
            began = time.monotonic()
            subscriber.close()
            assert not waiting.result(timeout=SOON)
            assert time.monotonic() - began < 2
        subscriber.close()  # once more changes nothing

    def test_close_at_any_moment_ends_a_wait(self, pubsub: PubSub) -> None:
        moments = randomness.seeded()
        with ThreadPoolExecutor(1) as pool:
            for _ in range(10):
                subscriber = pubsub.subscriber("warehouse")
                closing = threading.Event()

                def wait(
                    subscriber: Subscriber = subscriber, end: threading.Event = closing
                ) -> None:
                    while not end.is_set():
                        subscriber.wait(0.002)

                waiting = pool.submit(wait)
                time.sleep(moments.uniform(0, 0.04))  # it connects, or has done so and waits
                closing.set()
                subscriber.close()
                waiting.result(timeout=SOON)

    def test_an_idle_subscriber_costs_next_to_nothing(
        self, publisher: Publisher, subscribe: Subscribe
    ) -> None:
        publisher.publish([LATE])
        subscriber = subscribe("warehouse")
        subscriber.wait(0.5)
        began = time.process_time()
        subscriber.wait(3.0)
        # A tenth of what was seen would do on a quiet machine; polling costs far more than this.
        assert time.process_time() - began < 0.03

    @pytest.mark.parametrize("how", ["stop", "kill"])
    def test_an_outage_is_reported_and_survived(
        self,
        broker: Broker,
        publisher: Publisher,
        subscribe: Subscribe,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
        how: str,
    ) -> None:
        caplog.set_level(logging.WARNING)
        subscriber = subscribe("warehouse")
        publisher.publish([FLIGHTS])
        with down(broker, how):
            for _ in range(3):
                began = time.monotonic()
                with pytest.raises(Unavailable):
                    publisher.publish([FLIGHTS])
                assert time.monotonic() - began < A_FEW_SECONDS
            with pytest.raises(Unavailable):
                wait_until_raised(subscriber)
        assert_recovers(publisher, subscriber)
        # Whoever publishes logs the outage: the client's library is quiet.
        assert [record.name for record in caplog.records] == []
        assert capfd.readouterr().err == ""

    def test_a_wait_under_way_lives_through_a_restart(
        self, broker: Broker, publisher: Publisher, subscribe: Subscribe
    ) -> None:
        subscriber = subscribe("warehouse")
        publisher.publish([LATE])
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(subscriber.wait, 3 * SOON)
            with down(broker, "kill"):
                pass
            # It ends because it has connected again, or fails because it could not: it never just waits.
            with contextlib.suppress(Unavailable):
                assert not waiting.result(timeout=SOON)
        assert_recovers(publisher, subscriber)

    def test_topic_deleted(
        self, broker: Broker, topic: str, publisher: Publisher, subscribe: Subscribe
    ) -> None:
        subscriber = subscribe("warehouse")
        publisher.publish([FLIGHTS])
        assert heard(subscriber, [FLIGHTS]) == {FLIGHTS}
        broker.delete(topic)
        assert_recovers(publisher, subscriber)

    def test_a_connection_that_was_cut_while_idle_fails_no_publish(
        self, broker: Broker, publisher: Publisher, subscribe: Subscribe
    ) -> None:
        subscriber = subscribe("warehouse")
        publisher.publish([FLIGHTS])
        broker.cut()
        publisher.publish([FLIGHTS])
        assert_recovers(publisher, subscriber)

    def test_a_broker_that_hangs_is_reported_within_seconds(
        self, broker: Broker, publisher: Publisher, subscribe: Subscribe
    ) -> None:
        subscriber = subscribe("warehouse")
        publisher.publish([FLIGHTS])
        with frozen(broker):
            began = time.monotonic()
            with pytest.raises(Unavailable):
                publisher.publish([FLIGHTS])
            assert time.monotonic() - began < A_FEW_SECONDS
            began = time.monotonic()
            publisher.close()
            subscriber.close()
            assert time.monotonic() - began < 2

    @pytest.mark.parametrize("silent", [True, False], ids=["silent", "closed"])
    def test_what_does_not_respond_is_reported_within_seconds(
        self, broker: Broker, topic: str, opened: contextlib.ExitStack, silent: bool
    ) -> None:
        with listener(silent=silent) as port:
            pubsub = opening(broker.urls(topic, port=port))
            publisher, subscriber = pubsub.publisher(), pubsub.subscriber("warehouse")
            opened.enter_context(contextlib.closing(publisher))
            opened.enter_context(contextlib.closing(subscriber))
            began = time.monotonic()
            with pytest.raises(Unavailable, match=str(port)):
                publisher.publish([FLIGHTS])
            assert time.monotonic() - began < A_FEW_SECONDS
            began = time.monotonic()
            with pytest.raises(Unavailable, match=str(port)):
                subscriber.wait(30)
            assert time.monotonic() - began < A_FEW_SECONDS

    def test_wrong_credentials_fail_clearly(
        self,
        broker: Broker,
        topic: str,
        opened: contextlib.ExitStack,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        pubsub = opening(broker.urls(topic, password="open-sesame"))
        publisher, subscriber = pubsub.publisher(), pubsub.subscriber("warehouse")
        opened.enter_context(contextlib.closing(publisher))
        opened.enter_context(contextlib.closing(subscriber))
        with pytest.raises(Unavailable, match=r"refused.*BLACKSMITH_PUBSUB_URL") as raised:
            publisher.publish([FLIGHTS])
        with pytest.raises(Unavailable, match=r"refused.*BLACKSMITH_PUBSUB_URL") as raised_too:
            subscriber.wait(A_FEW_SECONDS)
        shown = [
            *traceback.format_exception(raised.value),
            *traceback.format_exception(raised_too.value),
        ]
        assert "open-sesame" not in "".join([*shown, pubsub.label, repr(pubsub), caplog.text])

    @pytest.mark.parametrize("body", [b"", b"\xff\x00", b"{}", b"[1]", b'{"a": ["flights"]}'])
    def test_a_message_that_cannot_be_read_is_ignored(
        self, broker: Broker, topic: str, publisher: Publisher, subscribe: Subscribe, body: bytes
    ) -> None:
        subscriber = subscribe("warehouse")
        broker.send(topic, "warehouse", body)
        publisher.publish([FLIGHTS])
        assert heard(subscriber, [FLIGHTS]) == {FLIGHTS}

    def test_closing_before_connecting_and_twice(self, pubsub: PubSub) -> None:
        publisher, subscriber = pubsub.publisher(), pubsub.subscriber("warehouse")
        for _ in range(2):
            publisher.close()
            subscriber.close()

    def test_nothing_is_left_of_a_connection(
        self, pubsub: PubSub, publisher: Publisher, subscribe: Subscribe
    ) -> None:
        def have() -> tuple[int, int]:
            return threading.active_count(), len([*Path("/proc/self/fd").iterdir()])

        def once() -> None:
            publisher, subscriber = pubsub.publisher(), pubsub.subscriber("warehouse")
            publisher.publish([FLIGHTS])
            subscriber.wait(SOON)
            publisher.close()
            subscriber.close()

        once()
        before = have()
        for _ in range(3):
            once()
        until(lambda: have() == before)  # some libraries end their threads in their own time
