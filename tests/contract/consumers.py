"""What every broker's consumer does: the suite that each adapter's tests inherit."""

import contextlib
import logging
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.pubsub import Consumer
from tests.support import randomness
from tests.support.consuming import (
    SENT_AT,
    VARIABLE,
    Feed,
    KafkaFeed,
    Kept,
    NATSFeed,
    bodies,
    consumer_of,
    keep_receiving,
    numbered,
    opened,
    received,
    until_reported,
)
from tests.support.notifying import SOON, down, frozen, listener
from tests.support.waiting import until

A_FEW_SECONDS = 8.0
PROJECT = Path(__file__).parents[2]

Consume = Callable[[], Consumer]


class ConsumerContract:
    """The suite; a broker's module inherits it and adds `missing_feed`, a topic yet to be made."""

    @pytest.fixture
    def feed(self, missing_feed: Feed) -> Feed:
        """A topic without messages."""
        missing_feed.make()
        return missing_feed

    @pytest.fixture
    def consume(self, missing_feed: Feed, kept: Kept) -> Iterator[Consume]:
        """Makes consumers of the topic that continue from what is kept."""
        with contextlib.ExitStack() as stack:

            def consume() -> Consumer:
                return stack.enter_context(consumer_of(missing_feed, kept))

            yield consume

    def test_messages_come_in_order_from_the_oldest(self, feed: Feed, consume: Consume) -> None:
        feed.send(*numbered(300))
        consumer = consume()
        assert bodies(received(consumer, 300)) == numbered(300)
        feed.send(*numbered(300, 300))
        assert bodies(received(consumer, 300)) == numbered(300, 300)

    def test_no_more_come_than_the_limit(self, feed: Feed, consume: Consume) -> None:
        feed.send(*numbered(10))
        consumer = consume()
        texts: list[bytes] = []
        while len(texts) < 10:
            some = consumer.receive(3, SOON)
            assert 1 <= len(some) <= 3
            texts += bodies(some)
        assert texts == numbered(10)
        assert bodies(consumer.receive(1, 0.1)) == []

    def test_receive_ends_after_its_timeout(self, feed: Feed, consume: Consume) -> None:
        consumer = consume()
        consumer.receive(10, 0.1)  # it connects
        for timeout in (0.5, 0.0):
            began = time.monotonic()
            assert not consumer.receive(10, timeout)
            assert timeout - 0.02 <= time.monotonic() - began < timeout + A_FEW_SECONDS

    def test_receive_ends_with_the_first_message(self, feed: Feed, consume: Consume) -> None:
        consumer = consume()
        consumer.receive(10, 0.1)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(consumer.receive, 10, 60.0)
            feed.send(b"first")
            assert bodies(waiting.result(timeout=SOON)) == [b"first"]

    def test_reading_goes_on_behind_what_is_kept(
        self, feed: Feed, consume: Consume, kept: Kept
    ) -> None:
        feed.send(*numbered(20))
        consumer = consume()
        kept.keep(received(consumer, 7))
        consumer.acknowledge()
        received(consumer, 6)  # these are not kept
        consumer.close()
        kept.keep(received(consume(), 13))
        assert kept.bodies == numbered(20)

    def test_killed_after_receive(self, feed: Feed, consume: Consume, kept: Kept) -> None:
        feed.send(*numbered(20))
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.support.consuming"),
                *(feed.server.urls("notifications")[0], feed.topic, feed.subscription, "12"),
            ],
            stdout=subprocess.PIPE,
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"12\n"
            process.kill()
        keep_receiving(consume(), kept, 20)
        assert kept.bodies == numbered(20)

    def test_what_is_acknowledged_the_broker_forgets(self, feed: Feed, consume: Consume) -> None:
        feed.send(*numbered(20))
        consumer = consume()
        received(consumer, 12)
        consumer.acknowledge()
        consumer.receive(1, 0.5)
        consumer.close()
        until(lambda: feed.left() == 8)

    def test_what_is_not_acknowledged_the_broker_keeps(self, feed: Feed, consume: Consume) -> None:
        feed.send(*numbered(20))
        consumer = consume()
        received(consumer, 12)
        consumer.close()
        until(lambda: feed.left() == 20)

    def test_what_was_kept_and_not_acknowledged_is_known(
        self, feed: Feed, consume: Consume, kept: Kept
    ) -> None:
        feed.send(*numbered(20))
        for _ in range(3):  # each time it is killed between the commit and the acknowledgement
            consumer = consume()
            kept.keep(received(consumer, 5))
            consumer.close()
        consumer = consume()
        keep_receiving(consumer, kept, 20)
        assert kept.bodies == numbered(20)
        until(lambda: not consumer.receive(10, 0.2) and consumer.lag() == 0)

    def test_acknowledging_before_anything_came_changes_nothing(
        self, feed: Feed, consume: Consume
    ) -> None:
        consumer = consume()
        consumer.acknowledge()
        consumer.receive(1, 0.1)
        consumer.acknowledge()
        feed.send(b"one")
        assert bodies(received(consumer, 1)) == [b"one"]

    def test_bodies_are_bytes_whatever_they_hold(self, feed: Feed, consume: Consume) -> None:
        seed = randomness.new_seed()
        big = random.Random(seed).randbytes(900_000)
        sent = [b"", b"\0", b"\xff\xfe", bytes(range(256)), "ü\u2028".encode(), big]
        feed.send(*sent)
        assert bodies(received(consume(), len(sent))) == sent

    def test_large_messages_do_not_pile_up(self, feed: Feed, consume: Consume) -> None:
        sent = [bytes([n]) * 900_000 for n in range(150)]  # 135 MB
        feed.send(*sent)
        consumer = consume()
        texts: list[bytes] = []
        while len(texts) < 150:
            some = bodies(consumer.receive(1000, SOON))
            assert 1 <= len(some) < 120
            texts += some
            consumer.acknowledge()
        assert texts == sent

    def test_headers_times_and_places(self, feed: Feed, consume: Consume) -> None:
        feed.send(b"one", headers={"kind": "order", "place": "Köln"}, ids=["id-1"])
        ((message, cursor),) = received(consume(), 1)
        headers = dict(message.headers)
        assert (headers["kind"], headers["place"]) == ("order", "Köln")
        assert message.sent_at is not None
        assert datetime.fromtimestamp(SENT_AT, UTC) <= message.sent_at <= datetime.now(UTC)
        assert message.place
        assert message.topic.startswith(feed.topic.rstrip(".#>"))
        assert message.id in ("id-1", None)
        assert message.id or cursor

    def test_lag_is_what_was_not_received(self, feed: Feed, consume: Consume) -> None:
        consumer = consume()
        assert consumer.lag() is None
        consumer.receive(1, 0.1)
        assert consumer.lag() == 0
        feed.send(*numbered(50))
        received(consumer, 20)
        until(lambda: consumer.lag() == 30)
        received(consumer, 30)
        until(lambda: not consumer.receive(1, 0.1) and consumer.lag() == 0)

    def test_a_topic_that_is_missing_is_reported_and_used_once_it_is_there(
        self, missing_feed: Feed, kept: Kept
    ) -> None:
        pubsub = opened(missing_feed.server)
        with contextlib.closing(
            pubsub.consumer(missing_feed.missing(), missing_feed.subscription, kept.cursors.get)
        ) as consumer:
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(Unavailable, match=rf"(?s)there is no|no JetStream.*{VARIABLE}"):
                    consumer.receive(1, 60)
                assert time.monotonic() - began < A_FEW_SECONDS
            if missing_feed.missing() == missing_feed.topic:
                missing_feed.make()
                missing_feed.send(b"one")
                keep_receiving(consumer, kept, 1)

    def test_wrong_credentials_fail_clearly(
        self, feed: Feed, kept: Kept, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        pubsub = opened(feed.server, password="open-sesame")
        with contextlib.closing(
            pubsub.consumer(feed.topic, feed.subscription, kept.cursors.get)
        ) as consumer:
            with pytest.raises(Unavailable, match=rf"refused.*{VARIABLE}") as raised:
                consumer.receive(1, 60)
            assert consumer.lag() is None
        shown = traceback.format_exception(raised.value)
        assert "open-sesame" not in "".join([*shown, repr(consumer), caplog.text])

    @pytest.mark.parametrize("silent", [True, False], ids=["silent", "closed"])
    def test_what_does_not_respond_is_reported_within_seconds(
        self, feed: Feed, kept: Kept, silent: bool
    ) -> None:
        with listener(silent=silent) as port:
            consumer = opened(feed.server, port=port).consumer(
                feed.topic, feed.subscription, kept.cursors.get
            )
            with contextlib.closing(consumer):
                began = time.monotonic()
                with pytest.raises(Unavailable, match=str(port)):
                    consumer.receive(1, 60)
                assert time.monotonic() - began < A_FEW_SECONDS

    @pytest.mark.parametrize("how", ["stop", "kill"])
    def test_broker_restarted(
        self,
        feed: Feed,
        consume: Consume,
        kept: Kept,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
        how: str,
    ) -> None:
        caplog.set_level(logging.WARNING)
        feed.send(*numbered(20), ids=[f"before-{n}" for n in range(20)])
        consumer = consume()
        kept.keep(received(consumer, 10))
        with down(feed.server, how):
            began = time.monotonic()
            with pytest.raises(Unavailable):
                until_reported(consumer)
            assert time.monotonic() - began < A_FEW_SECONDS
            consumer.acknowledge()
            assert consumer.lag() is None
        feed.send(*numbered(20, 20), ids=[f"after-{n}" for n in range(20)])
        keep_receiving(consumer, kept, 40)
        assert kept.bodies == numbered(40)
        assert [record.name for record in caplog.records] == []
        assert capfd.readouterr().err == ""

    def test_a_receive_under_way_lives_through_a_restart(
        self, feed: Feed, consume: Consume, kept: Kept
    ) -> None:
        consumer = consume()
        consumer.receive(1, 0.1)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(consumer.receive, 10, 3 * SOON)
            with down(feed.server, "kill"):
                pass
            feed.send(*numbered(3))
            # It continues, or fails because it could not connect: it never just waits.
            with contextlib.suppress(Unavailable):
                kept.keep(waiting.result(timeout=SOON))
        keep_receiving(consumer, kept, 3)
        assert kept.bodies == numbered(3)

    def test_a_connection_that_was_cut_while_idle_loses_nothing(
        self, feed: Feed, consume: Consume, kept: Kept
    ) -> None:
        feed.send(*numbered(10), ids=[f"before-{n}" for n in range(10)])
        consumer = consume()
        kept.keep(received(consumer, 10))
        feed.server.cut()
        feed.send(*numbered(10, 10), ids=[f"after-{n}" for n in range(10)])
        keep_receiving(consumer, kept, 20)
        assert kept.bodies == numbered(20)

    def test_a_broker_that_hangs_is_reported_within_seconds(
        self, feed: Feed, consume: Consume
    ) -> None:
        feed.send(*numbered(10))
        consumer = consume()
        received(consumer, 5)
        with frozen(feed.server):
            began = time.monotonic()
            with pytest.raises(Unavailable):
                until_reported(consumer)
            assert time.monotonic() - began < 2 * A_FEW_SECONDS
            began = time.monotonic()
            consumer.close()
            assert time.monotonic() - began < 2

    def test_closing_while_a_broker_hangs_does_not_wait(self, feed: Feed, consume: Consume) -> None:
        feed.send(*numbered(10))
        consumer = consume()
        received(consumer, 5)
        with frozen(feed.server):
            consumer.acknowledge()
            began = time.monotonic()
            consumer.close()
            assert time.monotonic() - began < 2

    def test_close_ends_a_receive(self, feed: Feed, consume: Consume) -> None:
        consumer = consume()
        consumer.receive(1, 0.1)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(consumer.receive, 1, 60.0)
            time.sleep(0.1)  # it waits by now
            began = time.monotonic()
            consumer.close()
            assert not waiting.result(timeout=SOON)
            assert time.monotonic() - began < 2
        consumer.close()  # once more changes nothing
        assert not consumer.receive(1, 0.0)
        assert consumer.lag() is None
        consumer.acknowledge()

    def test_close_at_any_moment_ends_a_receive(self, feed: Feed, consume: Consume) -> None:
        moments = randomness.seeded()
        feed.send(*numbered(100))
        with ThreadPoolExecutor(1) as pool:
            for _ in range(10):
                consumer, closing = consume(), threading.Event()

                def receive(consumer: Consumer = consumer, end: threading.Event = closing) -> None:
                    while not end.is_set():
                        consumer.receive(10, 0.002)

                waiting = pool.submit(receive)
                time.sleep(moments.uniform(0, 0.04))  # it connects, or has done so and reads
                closing.set()
                consumer.close()
                waiting.result(timeout=SOON)

    def test_closing_before_connecting(self, consume: Consume) -> None:
        consumer = consume()
        consumer.close()
        assert not consumer.receive(1, 60)

    def test_nothing_is_left_of_a_connection(self, feed: Feed, consume: Consume) -> None:
        def have() -> tuple[int, int]:
            return threading.active_count(), len([*Path("/proc/self/fd").iterdir()])

        def once() -> None:
            consumer = consume()
            received(consumer, 1)
            consumer.close()

        feed.send(*numbered(10))
        once()
        before = have()
        for _ in range(3):
            once()
        until(lambda: have() == before)  # some libraries end their threads in their own time

    def test_an_idle_consumer_costs_next_to_nothing(self, feed: Feed, consume: Consume) -> None:
        consumer = consume()
        consumer.receive(1, 0.5)
        began = time.process_time()
        consumer.receive(1, 3.0)
        # Polling costs far more than this.
        assert time.process_time() - began < 0.06


class LogConsumerContract(ConsumerContract):
    """And of a broker that keeps a log, which its consumers read by a cursor: Kafka and NATS."""

    @pytest.mark.parametrize("reading", [True, False], ids=["reading", "closed"])
    def test_a_topic_created_again_is_read_from_its_beginning(
        self, feed: KafkaFeed | NATSFeed, kept: Kept, reading: bool
    ) -> None:
        def create_again() -> None:
            feed.delete()
            feed.make()
            feed.send(*numbered(5, 20))

        feed.send(*numbered(20))
        with consumer_of(feed, kept) as consumer:
            kept.keep(received(consumer, 20))
            if reading:
                create_again()
                keep_receiving(consumer, kept, 25)
        if not reading:
            create_again()
            with consumer_of(feed, kept) as consumer:
                keep_receiving(consumer, kept, 25)
        assert kept.bodies == numbered(25)
        assert len(kept.cursors) == 2

    def test_a_topic_that_has_lost_its_end_is_reported_and_read_again(
        self, feed: Feed, kept: Kept, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        feed.send(*numbered(3))
        with consumer_of(feed, kept) as consumer:
            kept.keep(received(consumer, 3))
        (reader,) = kept.cursors
        kept.cursors[reader] = (
            "1000"  # as after a restore, or a power cut that took what was not on disk
        )
        kept.bodies.clear()
        with consumer_of(feed, kept) as consumer:
            keep_receiving(consumer, kept, 3)
        assert kept.bodies == numbered(3)
        (warning,) = (record.getMessage() for record in caplog.records)
        assert "was read up to 1000 and ends at 3" in warning
