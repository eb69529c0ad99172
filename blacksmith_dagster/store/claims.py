"""Chooses the jobs of a lane's next load, and opens it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from blacksmith_dagster.store import lanes, waiting_groups
from blacksmith_dagster.store.database import Database, LaneState
from blacksmith_dagster.store.job_groups import WaitingGroup, can_join, portion
from blacksmith_dagster.store.records import FencingToken, JobRow, Load


class Claim:
    """The ways to choose a lane's next load, in the transaction that has locked the lane."""

    def __init__(
        self,
        database: Database,
        conn: Connection,
        token: FencingToken,
        destination: int,
        state: LaneState,
        limit: int,
        run: str | None,
    ) -> None:
        self.database, self.conn, self.token = database, conn, token
        self.destination, self.state = destination, state
        self.limit, self.run = limit, run

    def new(self, discard_reason: str | None = None) -> Load | None:
        """The next jobs of the log that were never claimed."""
        after, upto = self.state.position, self.state.new_upto
        if not upto:
            return None
        rows = self.database.jobs_between(self.conn, self.destination, after, upto)
        load_id = self._open(1, upto, len(rows), seq_from=after + 1)
        return self._load(load_id, rows, attempt=1, first_claim=True, discard_reason=discard_reason)

    def due(self, max_attempts: int) -> Load | None:
        """The job group that has been due longest, or the part of it that `portion` allows.

        Groups that may run together are claimed together.
        """
        if not self.state.due:
            return None
        lane = self.token.lane
        waiting = waiting_groups.waiting_groups(
            self.conn, self.destination, due_by=self.state.now, lane=lane
        )
        if not waiting:
            return None
        groups = _joined(waiting, self.limit)
        first = groups[0]
        if first.discard_reason is not None:
            return self._claim_marked(groups)
        attempt = min(first.attempts + 1, max_attempts)
        if len(groups) > 1:
            return self._claim_whole(groups, attempt)
        raised_in = first.raised_in
        others_succeeded = raised_in is not None and lanes.succeeded_since(
            self.conn, self.destination, raised_in
        )
        part = portion(first, self.limit, others_succeeded)
        if part.jobs == first.jobs:
            return self._claim_whole(groups, attempt, part.lost_loads, part.discard_reason)
        load_id = self._open(attempt, None, part.jobs)
        waiting_groups.assign_part(self.conn, first, part, load_id)
        return self._load_of_groups(load_id, groups, attempt, part.lost_loads, part.discard_reason)

    def next_for_discard(self, reason: str) -> Load | None:
        """The next waiting jobs, due or not, and then the new ones."""
        waiting = waiting_groups.waiting_groups(self.conn, self.destination)
        if waiting:
            return self._claim_whole(waiting[:1], waiting[0].attempts, discard_reason=reason)
        return self.new(discard_reason=reason)

    def marked(self) -> Load | None:
        """The next jobs that are marked to be discarded."""
        waiting = waiting_groups.waiting_groups(self.conn, self.destination, marked=True)
        return self._claim_marked(_joined(waiting, self.limit)) if waiting else None

    def _claim_marked(self, groups: Sequence[WaitingGroup]) -> Load:
        first = groups[0]
        attempt = first.attempts + (first.lost_loads > 0)  # as of a job discarded for lost loads
        return self._claim_whole(groups, attempt, first.lost_loads, first.discard_reason)

    def _claim_whole(
        self,
        groups: Sequence[WaitingGroup],
        attempt: int,
        lost_loads: int = 0,
        discard_reason: str | None = None,
    ) -> Load:
        load_id = self._open(attempt, None, sum(group.jobs for group in groups))
        waiting_groups.assign(self.conn, groups, load_id)
        return self._load_of_groups(load_id, groups, attempt, lost_loads, discard_reason)

    def _load_of_groups(
        self,
        load_id: int,
        groups: Sequence[WaitingGroup],
        attempt: int,
        lost_loads: int,
        discard_reason: str | None,
    ) -> Load:
        first = groups[0]
        return self._load(
            load_id,
            self.database.jobs_of_groups(self.conn, self.destination, load_id, groups),
            attempt,
            job_key=first.job_key,
            replay=first.replay,
            lost_loads=lost_loads,
            isolated=first.isolated,
            consecutive_failures=first.consecutive_failures,
            discard_reason=discard_reason,
        )

    def _open(
        self, attempt: int, seq_to: int | None, jobs: int, seq_from: int | None = None
    ) -> int:
        first_claim = seq_to is not None
        return lanes.open_load(
            self.conn,
            {
                "destination": self.destination,
                "lane": self.token.lane,
                "token": self.token.number,
                "attempt": attempt,
                "seq_from": seq_from,
                "seq_to": seq_to,
                "jobs": jobs,
                "position": seq_to if first_claim else self.state.position,
                "claimed": self.state.claimed + (jobs if first_claim else 0),
                "started_at": self.state.now,
                "run": self.run,
            },
        )

    def _load(
        self,
        load_id: int,
        rows: Sequence[JobRow],
        attempt: int,
        *,
        first_claim: bool = False,
        job_key: str | None = None,
        **state: Any,
    ) -> Load:
        job_key = job_key or str(self.destination)
        return Load(load_id, self.token, rows, job_key, attempt, first_claim, **state)


def _joined(waiting: Sequence[WaitingGroup], limit: int) -> Sequence[WaitingGroup]:
    """The first job group, and the later ones that can run in one load with it.

    Only listings and jobs to be discarded are joined, and only those of the same attempt, replay, job
    key and reason.
    """
    first = waiting[0]
    groups, jobs = [first], first.jobs
    for group in waiting[1:]:
        if _are_alike(first, group) and jobs + group.jobs <= limit:
            groups.append(group)
            jobs += group.jobs
    return groups


def _are_alike(first: WaitingGroup, other: WaitingGroup) -> bool:
    if first.discard_reason is None and not all(
        can_join(group) and group.listing is not None for group in (first, other)
    ):
        return False
    return all(
        getattr(first, name) == getattr(other, name)
        for name in ("attempts", "lost_loads", "replay", "job_key", "discard_reason")
    )
