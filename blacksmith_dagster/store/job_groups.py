"""How much of a job group that is due runs in its next load. Pure."""

from __future__ import annotations

from typing import NamedTuple

MAX_LOST_LOADS = 3
MAX_CONSECUTIVE_FAILURES = 10
"""So many isolated jobs of a group that fail in a row mean an outage, not a poisonous job.
"""


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


class Portion(NamedTuple):
    """What of a job group the next load takes: its first `jobs` jobs.

    `lost_loads` and `remainder_lost_loads` are what the two parts count from there on; `discard_reason`
    is why the jobs are not to be run.
    """

    jobs: int
    lost_loads: int
    remainder_lost_loads: int
    discard_reason: str | None = None


def can_join(waiting: WaitingGroup) -> bool:
    """Whether nothing speaks against running this job group together with others."""
    return waiting.raised_in is None and not waiting.isolated and waiting.lost_loads == 0


def portion(waiting: WaitingGroup, limit: int, others_succeeded: bool) -> Portion:
    """How the job group runs next.

    - Three lost loads: halved; each half is halved again at one more, until the job that kills is
      isolated. A single job gets three lost loads of its own before it
      is discarded.
    - Its jobs are isolated: one runs at a time, for its last attempt, until ten of them failed in a
      row.
    - It raised, and another load has succeeded since (`others_succeeded`): halved. If none has, the
      destination is out of order, and halving would only multiply the calls.
    """
    whole, lost_loads = min(limit, waiting.jobs), waiting.lost_loads
    half = min(limit, (waiting.jobs + 1) // 2)
    if lost_loads >= MAX_LOST_LOADS:
        if waiting.jobs == 1:
            return Portion(
                1, lost_loads, lost_loads, f"its load ended without a result {lost_loads} times"
            )
        return Portion(half, _after_halving(half), _after_halving(waiting.jobs - half))
    if waiting.isolated and waiting.consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
        why = f"{waiting.consecutive_failures} isolated jobs of its group failed in a row"
        return Portion(whole, lost_loads, lost_loads, why)
    if waiting.isolated:
        return Portion(1, lost_loads, lost_loads)
    if waiting.raised_in is not None and others_succeeded:
        return Portion(half, lost_loads, lost_loads)
    return Portion(whole, lost_loads, lost_loads)


def _after_halving(jobs: int) -> int:
    return 0 if jobs == 1 else MAX_LOST_LOADS - 1
