"""Counts by state per destination event, in a store of ten million jobs."""

from collections.abc import Iterator

from benchmarks.drain import receive
from benchmarks.measure import Effort, Figure, alternate, figure, timed
from benchmarks.pipeline import full, half
from benchmarks.stores import Databases, fill, measured_on, opened, postgres, sqlite


@measured_on(postgres, sqlite)
def counts(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """Milliseconds for all destination events, after maintenance and just before the next one."""
    events, late = effort.of(10_000_000 * 2 // 3), effort.of(1_000_000 * 2 // 3)
    with databases.new() as url, opened(url) as store:

        def milliseconds() -> float:
            return 1000 * timed(lambda: [store.counts.of(event.path) for event in (full, half)])[0]

        fill(store, events, payload="{}", discarded=2)
        seconds, _ = timed(store.maintain)
        counted = store.counts.of(full.path)
        assert counted.succeeded + counted.discarded == events, counted
        (fresh,) = alternate(effort.rounds, milliseconds)
        receive(databases, store, late)
        (behind,) = alternate(effort.rounds, milliseconds)
    what = f"counts by state of both destination events, {events * 3 // 2:,} jobs"
    bound, name = databases.bound(50), databases.name
    yield figure(f"{what}; {name}", fresh, "ms", at_most=bound)
    uncounted = f"{late * 3 // 2:,} of them not counted yet"
    yield figure(f"{what}, {uncounted}; {name}", behind, "ms", at_most=bound)
    yield figure(f"counters follow the log; {name}", [events / seconds], "events/s")
