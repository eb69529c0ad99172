"""The oracle: checks the store and a destination's recording after every test that breaks something.

Per destination event, as sets of event ids: *wanted* (the test's ledger of accepted ids, after the
flows) = succeeded + pending + discarded, which are disjoint. Every pending job has a due time, the
recording has every id that succeeded, and no id appears that was not accepted.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from blacksmith_dagster.store import Store

_ALL = 10_000_000


class JobSets(NamedTuple):
    """The jobs of a destination event by state, as event ids."""

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
) -> JobSets:
    """Check the store and a destination's recording against the ledger; returns the jobs by state.

    `accepted`: all ids with a 2xx, if more than `wanted`. `histories`: how many jobs per state are
    also checked for a history that ends in that state.
    """
    ledger = set(wanted)
    allowed = ledger if accepted is None else set(accepted)
    counts = store.counts.of(destination)
    states = {
        state: store.history.jobs(state, destination, _ALL)
        for state in ("discarded", "retrying", "executing", "awaiting")
    }
    ids_in = {state: {job.event_id for job in jobs} for state, jobs in states.items()}
    for state, jobs in states.items():
        assert len(jobs) == len(ids_in[state]), f"a job is {state} twice"
    parts = list(ids_in.values())
    assert len(set().union(*parts)) == sum(map(len, parts)), "a job is in two states at once"
    discarded = ids_in["discarded"]
    pending = ids_in["retrying"] | ids_in["executing"] | ids_in["awaiting"]

    assert pending | discarded <= ledger, "a job that is not wanted"
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
    if ids_in["awaiting"]:
        assert store.counts.next_due(destination) == 0, "jobs await, and nothing is due"
    ends = [(succeeded, {"succeeded"}), (discarded, {"discarded"})]
    ends += [(ids_in["retrying"], {"failed", "unknown"})]
    for ids, last in ends:
        for event_id in sorted(ids)[:histories]:
            entries = [
                entry
                for entry in store.history.transitions(event_id)
                if entry.destination == destination
            ]
            assert entries[-1].state in last, entries
    return JobSets(succeeded, pending, discarded)
