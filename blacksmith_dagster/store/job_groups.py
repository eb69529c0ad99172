"""How much of a job group that is due runs in its next load. Pure."""

from __future__ import annotations

from typing import NamedTuple

LOST_TOO_OFTEN = 3
STRIKES = 10
"""So many jobs of a job group failing alone, one after the other, tell an outage from a poisonous
job.
"""


class Waiting(NamedTuple):
    """A job group that waits to run again; the columns of its row in `job_groups`."""

    id: int
    listing: int | None
    seq_from: int
    seq_to: int
    jobs: int
    attempts: int
    losses: int
    raised_in: int | None
    alone: bool
    strikes: int
    replay: int | None = None
    job_key: str | None = None


class Portion(NamedTuple):
    """What of a job group the next load takes: its first `jobs` jobs.

    `losses` and `rest_losses` are what the two parts count from there on; `condemned` is why the
    jobs are not to be run.
    """

    jobs: int
    losses: int
    rest_losses: int
    condemned: str | None = None


def is_plain(waiting: Waiting) -> bool:
    """Whether nothing speaks against running this job group together with others."""
    return waiting.raised_in is None and not waiting.alone and waiting.losses == 0


def portion(waiting: Waiting, limit: int, others_succeeded: bool) -> Portion:
    """How the job group runs next.

    - Lost three times (its loads ended without a word): halved; each half is halved again at one
      more loss, until the job that kills is alone. A single job gets its own three losses before it
      is condemned.
    - Its jobs run alone for their last attempt, until ten of them failed in a row.
    - It raised, and another load has succeeded since (`others_succeeded`): halved. If none has, the
      destination is out of order, and halving would only multiply the calls.
    """
    whole, losses = min(limit, waiting.jobs), waiting.losses
    half = min(limit, (waiting.jobs + 1) // 2)
    if losses >= LOST_TOO_OFTEN:
        if waiting.jobs == 1:
            return Portion(1, losses, losses, f"its load ended without a word {losses} times")
        return Portion(half, _after_halving(half), _after_halving(waiting.jobs - half))
    if waiting.alone and waiting.strikes >= STRIKES:
        why = f"{waiting.strikes} jobs of its group failed alone, one after the other"
        return Portion(whole, losses, losses, why)
    if waiting.alone:
        return Portion(1, losses, losses)
    if waiting.raised_in is not None and others_succeeded:
        return Portion(half, losses, losses)
    return Portion(whole, losses, losses)


def _after_halving(jobs: int) -> int:
    return 0 if jobs == 1 else LOST_TOO_OFTEN - 1
