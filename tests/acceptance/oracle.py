"""The judge of every test that breaks something.

Per destination event, as sets of event ids: what is *wanted* (the test's own ledger of accepted ids,
with the flows applied by the test) = succeeded + pending + discarded, disjoint; every pending job has
a due time; the destination's own recording holds every id that succeeded; an id that was never
accepted appears nowhere.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from blacksmith_dagster.store import Store

_ALL = 10_000_000


class Found(NamedTuple):
    """What the store says of a destination event's jobs, by event id."""

    succeeded: set[str]
    pending: set[str]
    discarded: set[str]


def judge(
    store: Store,
    destination: str,
    wanted: Iterable[str],
    recorded: Collection[str],
    *,
    accepted: Iterable[str] | None = None,
    histories: int = 50,
) -> Found:
    """Hold the store and a destination's recording against the ledger; returns what was found.

    `accepted`: all ids with a 2xx, if more than `wanted`. The history of so many jobs is read too:
    it must end as the store says that the job did.
    """
    ledger = set(wanted)
    allowed = ledger if accepted is None else set(accepted)
    counts = store.counts(destination)
    states = {
        state: store.jobs(state, destination, _ALL)
        for state in ("discarded", "retrying", "executing", "awaiting")
    }
    found = {state: {job.event_id for job in jobs} for state, jobs in states.items()}
    for state, jobs in states.items():
        assert len(jobs) == len(found[state]), f"a job is twice {state}"
    parts = list(found.values())
    assert len(set().union(*parts)) == sum(map(len, parts)), "a job is in two states at once"
    discarded = found["discarded"]
    pending = found["retrying"] | found["executing"] | found["awaiting"]

    assert pending | discarded <= ledger, "a job that nobody wanted"
    assert set(recorded) <= allowed, "an id that was never accepted was loaded"
    succeeded = ledger - pending - discarded
    missing = succeeded - set(recorded)
    assert not missing, f"{len(missing)} jobs are neither loaded nor pending nor discarded"
    assert (counts.succeeded, counts.pending, counts.discarded) == (
        len(succeeded),
        len(pending),
        len(discarded),
    ), f"the counts are {counts}"

    assert all(job.due_at is not None for job in states["retrying"]), "pending, and never due"
    if found["awaiting"]:
        assert store.next_due(destination) == 0, "jobs await, and nothing is due"
    ends = [(succeeded, {"succeeded"}), (discarded, {"discarded"})]
    ends += [(found["retrying"], {"failed", "unknown"})]
    for ids, last in ends:
        for event_id in sorted(ids)[:histories]:
            own = [each for each in store.history(event_id) if each.destination == destination]
            assert own[-1].state in last, own
    return Found(succeeded, pending, discarded)
