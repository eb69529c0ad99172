"""How a lane's next load is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection

from blacksmith_dagster.store import loads
from blacksmith_dagster.store.interface import FencingToken, JobRow, Lane, Load
from blacksmith_dagster.store.job_groups import WaitingGroup, can_join, portion

if TYPE_CHECKING:
    from datetime import datetime

    from blacksmith_dagster.store.sql import SQLStore

LANES = {Lane.LOAD: 0, Lane.DISCARD: 1, Lane.REPLAY: 2}


class LaneState(NamedTuple):
    """A lane as its fencing token and its last load tell: where its next claim begins.

    `open` and `first_claim` tell of the last load whether it is executing, and whether it was a
    first one (so that the next claim takes what is due). `next` is the last of the new jobs that a
    claim would take, 0 if there are none; `due` whether a job group is due.
    """

    token: int
    holder: str
    now: datetime
    last: int
    open: bool
    first_claim: bool
    position: int
    claimed: int
    next: int
    due: bool

    @classmethod
    def read(
        cls,
        token: int,
        holder: str,
        now: datetime,
        last: int | None,
        opened: bool | None,
        first_claim: bool | None,
        position: int | None,
        claimed: int | None,
        following: int | None,
        due: bool,
    ) -> LaneState:
        """The state as the database has it: NULLs where the lane has had no load yet."""
        return cls(
            token,
            holder,
            now,
            last or 0,
            bool(opened),
            last is None or bool(first_claim),
            position or 0,
            claimed or 0,
            following or 0,
            bool(due),
        )


class Claim:
    """The ways in which a lane's next load is chosen, within one transaction."""

    def __init__(
        self,
        store: SQLStore,
        conn: Connection,
        token: FencingToken,
        of: int,
        state: LaneState,
        limit: int,
        run: str | None,
    ) -> None:
        self.store, self.conn, self.token, self.of, self.state = store, conn, token, of, state
        self.limit, self.run = limit, run

    def new(self, discard_reason: str | None = None) -> Load | None:
        """The next jobs of the log that were never claimed."""
        after, upto = self.state.position, self.state.next
        if not upto:
            return None
        rows = self.store._jobs_between(self.conn, self.of, after, upto)
        load_id = self._open(1, upto, len(rows), seq_from=after + 1)
        return self._load(load_id, rows, attempt=1, first_claim=True, discard_reason=discard_reason)

    def due(self, max_attempts: int) -> Load | None:
        """The job group that is longest due, or what its state allows of it; plain listings together."""
        if not self.state.due:
            return None
        lane = LANES[self.token.lane]
        waiting = loads.waiting_groups(self.conn, self.of, due_by=self.state.now, lane=lane)
        if not waiting:
            return None
        groups = _together(waiting, self.limit)
        first = groups[0]
        attempt = min(first.attempts + 1, max_attempts)
        if len(groups) > 1:
            return self._claim_whole(groups, attempt)
        since = first.raised_in
        recovered = since is not None and loads.succeeded_since(self.conn, self.of, since)
        part = portion(first, self.limit, recovered)
        if part.jobs == first.jobs:
            return self._claim_whole(groups, attempt, part.lost_loads, part.discard_reason)
        load_id = self._open(attempt, None, part.jobs)
        loads.assign_part(self.conn, first, part, self.of, load_id)
        return self._load_of(load_id, groups, attempt, part.lost_loads, part.discard_reason)

    def next_for_discard(self, reason: str) -> Load | None:
        """The next of all that waits, due or not."""
        waiting = loads.waiting_groups(self.conn, self.of)
        if waiting:
            return self._claim_whole(waiting[:1], waiting[0].attempts, discard_reason=reason)
        return self.new(discard_reason=reason)

    def listed_for_discard(self, seqs: Sequence[int], reason: str) -> Load | None:
        """Those of the jobs that wait to run again."""
        groups = []
        for seq in seqs[: self.limit]:
            group = loads.waiting_group_of(self.conn, self.of, seq)
            if group is not None:
                groups.append(loads.separate_job(self.conn, group, seq, self.of))
        return (
            self._claim_whole(groups, groups[0].attempts, discard_reason=reason) if groups else None
        )

    def _claim_whole(
        self,
        groups: Sequence[WaitingGroup],
        attempt: int,
        lost_loads: int = 0,
        discard_reason: str | None = None,
    ) -> Load:
        load_id = self._open(attempt, None, sum(group.jobs for group in groups))
        loads.assign(self.conn, groups, load_id)
        return self._load_of(load_id, groups, attempt, lost_loads, discard_reason)

    def _load_of(
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
            self.store._jobs_of_groups(self.conn, self.of, load_id, groups),
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
        return loads.open_load(
            self.conn,
            {
                "destination": self.of,
                "lane": LANES[self.token.lane],
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
        return Load(
            load_id, self.token, rows, job_key or str(self.of), attempt, first_claim, **state
        )


def _together(waiting: Sequence[WaitingGroup], limit: int) -> Sequence[WaitingGroup]:
    """The job groups that the next load takes: the first, with others like it if all are plain
    listings.
    """
    first = waiting[0]
    if not can_join(first) or first.listing is None:
        return [first]
    groups, total = [first], first.jobs
    for group in waiting[1:]:
        alike = can_join(group) and group.listing is not None and group.attempts == first.attempts
        alike = alike and (group.replay, group.job_key) == (first.replay, first.job_key)
        if alike and total + group.jobs <= limit:
            groups.append(group)
            total += group.jobs
    return groups
