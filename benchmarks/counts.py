"""Counts by state per destination event, in a store of ten million jobs."""

import time
from collections.abc import Iterator
from contextlib import closing

from benchmarks.measure import Effort, Figure, alternate, at_most, shown
from benchmarks.pipeline import full, half, requests
from benchmarks.stores import BATCH, BOTH, fill, opened, postgres

JOBS = 10_000_000
UNCOUNTED = 1_000_000
"""Jobs that arrive between two calls of `maintain`, a minute apart."""


def counts(effort: Effort) -> Iterator[Figure]:
    """Milliseconds for all destination events, after maintenance and just before the next one."""
    events, late = effort.of(JOBS * 2 // 3), effort.of(UNCOUNTED * 2 // 3)
    for backend in BOTH:
        with backend() as databases:
            url = databases.create()
            fill(url, events, payload="{}", discarded=2)
            with closing(opened(url)) as store:
                started = time.perf_counter()
                store.maintain()
                rate = events / (time.perf_counter() - started)
                counted = store.counts.of(full.path)
                assert counted.succeeded + counted.discarded == events, counted

                def milliseconds(store=store) -> float:
                    started = time.perf_counter()
                    for path in (full.path, half.path):
                        store.counts.of(path)
                    return (time.perf_counter() - started) * 1000

                fresh = alternate(effort.rounds, milliseconds)[0]
                new = requests(BATCH)
                for _ in range(late // BATCH):
                    store.log.append(new)
                behind = alternate(effort.rounds, milliseconds)[0]
            what = f"counts by state of both destination events, {events * 3 // 2:,} jobs"
            for when, figures in (
                ("", fresh),
                (f", {late * 3 // 2:,} of them not counted yet", behind),
            ):
                title = f"{what}{when}; {databases.name}"
                if backend is postgres:
                    yield at_most(title, figures, 50, "ms")
                else:
                    yield Figure(title, shown(figures, "ms"))
            yield Figure(f"counters follow the log; {databases.name}", shown([rate], "events/s"))
