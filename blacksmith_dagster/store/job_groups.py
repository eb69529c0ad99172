"""Decides how many jobs of a due job group run in its next load. Pure."""

from __future__ import annotations

from typing import NamedTuple

MAX_LOST_LOADS = 3
"""A job group is halved after this many lost loads, until the job that kills its loads is isolated."""

MAX_CONSECUTIVE_FAILURES = 10
"""If this many isolated jobs fail in a row, no single job is the cause: the rest of the group, at its
last attempt too, is discarded without being run."""


class WaitingGroup(NamedTuple):
    """A job group that waits to run again; the columns of its row in `job_groups`."""

    id: int
    listing: int | None
    seq_from: int
    seq_to: int
    jobs: int
    attempts: int
    lost_loads: int
    raised_in: int | None
    isolated: bool
    consecutive_failures: int
    replay: int | None = None
    job_key: str | None = None
    discard_reason: str | None = None


class Portion(NamedTuple):
    """The part of a job group that the next load claims: its first `jobs` jobs.

    `lost_loads` and `remainder_lost_loads` are the counts from which the two parts continue.
    `discard_reason` is why the jobs are discarded without being run, if they are.
    """

    jobs: int
    lost_loads: int
    remainder_lost_loads: int
    discard_reason: str | None = None


def can_join(waiting: WaitingGroup) -> bool:
    """Whether this job group may run together with others: no load of it raised or was lost."""
    return waiting.raised_in is None and not waiting.isolated and waiting.lost_loads == 0


def portion(waiting: WaitingGroup, limit: int, others_succeeded: bool) -> Portion:
    """How the job group runs next.

    - If it has lost three loads, it is halved. Each half is halved again after one more lost load,
      until the job that kills its loads is isolated. An isolated job is discarded after three lost
      loads of its own.
    - If its jobs are isolated, they run one at a time, each for its last attempt. Once ten have failed
      in a row, the rest are discarded.
    - If it raised and another load has succeeded since (`others_succeeded`), it is halved. If none has,
      the destination is down, and halving would only multiply the calls.
    """
    claimable, lost_loads = min(limit, waiting.jobs), waiting.lost_loads
    half = min(limit, (waiting.jobs + 1) // 2)
    if lost_loads >= MAX_LOST_LOADS:
        if waiting.jobs == 1:
            return Portion(
                1, lost_loads, lost_loads, f"its load ended without a result {lost_loads} times"
            )
        return Portion(half, _after_halving(half), _after_halving(waiting.jobs - half))
    if waiting.isolated and waiting.consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
        reason = f"{waiting.consecutive_failures} isolated jobs of its group failed in a row"
        return Portion(claimable, lost_loads, lost_loads, reason)
    if waiting.isolated:
        return Portion(1, lost_loads, lost_loads)
    if waiting.raised_in is not None and others_succeeded:
        return Portion(half, lost_loads, lost_loads)
    return Portion(claimable, lost_loads, lost_loads)


def _after_halving(jobs: int) -> int:
    return 0 if jobs == 1 else MAX_LOST_LOADS - 1
