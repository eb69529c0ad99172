"""Events over HTTP, each answered after its commit, beside a server that stores nothing."""

from collections.abc import Iterator

from benchmarks.measure import Effort, Figure, alternate, figure
from benchmarks.pipeline import payload
from benchmarks.stores import Databases, measured_on, postgres
from benchmarks.wrk import ARRAY, Sender, arrays_of, into_nothing, into_store, single

BOUNDS = {"1 worker": 0.50, "2 workers": 0.40}
"""Fractions of the limit."""


@measured_on(postgres)
def gateway(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """Requests per second of one event each, and their 99th percentile."""
    for workers, (title, bound) in enumerate(BOUNDS.items(), 1):
        for connections in (64, 256):
            sender = single(connections, effort.seconds)
            sent, limits = alternate(
                effort.rounds,
                into_store(databases, sender, workers=workers),
                into_nothing(sender, workers),
            )
            rates, _, slowest = zip(*sent, strict=True)
            what = f"gateway, one event a request, {title}, {connections} connections"
            yield figure(
                f"{what}; {databases.name}", rates, "requests/s", limits=limits, at_least=bound
            )
            yield figure(f"{what}, 99th percentile; {databases.name}", slowest, "ms", at_most=40)


@measured_on(postgres)
def arrays(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """Events per second in requests of 100 events."""
    sender = Sender([f"[{array}]" for array in arrays_of(payload)], 64, effort.seconds, ARRAY)
    for workers, title in enumerate(BOUNDS, 1):
        (sent,) = alternate(effort.rounds, into_store(databases, sender, workers=workers))
        what = f"gateway, arrays of {ARRAY}, {title}, 64 connections; {databases.name}"
        yield figure(what, [run.rate for run in sent], "events/s", at_least=60_000)
