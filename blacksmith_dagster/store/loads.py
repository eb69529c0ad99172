"""`store.loads`: loaders take over a lane, claim its jobs as loads, and record the results."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Connection, select, update

from blacksmith_dagster.errors import FencedOut, UsageError
from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.store import migration_barrier, waiting_groups
from blacksmith_dagster.store.claims import Claim
from blacksmith_dagster.store.database import Database, LaneState
from blacksmith_dagster.store.lanes import close_load, fenced_out, lock_lane
from blacksmith_dagster.store.records import Confirm, FencingToken, Lane, Load, LoadVerdict
from blacksmith_dagster.store.tables import LoadState, fencing_tokens

_ALL_SUCCEEDED = LoadVerdict()


class Loads:
    """The loads of all destination events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take_over(
        self, destination: str, lane: Lane, holder: str, confirm: Confirm
    ) -> FencingToken:
        """Take over a lane: from now on only the returned token may claim and record in it.

        Reads the fencing token, calls `confirm()` to check that the caller still has its lock, and then
        raises the token, but only if no other has raised it meanwhile. An open load of the lane becomes
        unknown, and its jobs are due again.

        Raises `FencedOut` if `confirm()` returns `False`, and `NotFound` if the destination event does
        not exist.
        """
        destination_id = self._database.destination(destination)
        columns = fencing_tokens.c
        of_lane = (columns.destination == destination_id) & (columns.lane == lane)
        while True:
            with self._database.reading() as conn:
                latest = conn.execute(select(columns.token).where(of_lane)).scalar_one()
            if not confirm():
                raise FencedOut(f"{destination}: the lock was lost before it could be used")
            with self._database.writing() as conn:
                raised = update(fencing_tokens).where(of_lane, columns.token == latest)
                if conn.execute(raised.values(token=latest + 1, holder=holder)).rowcount == 1:
                    state = self._database.enter_lane(conn, destination_id, lane, 0)
                    if state.open:
                        close_load(
                            conn, state.last, LoadState.UNKNOWN, state.now, "its loader was lost"
                        )
                        waiting_groups.requeue(conn, state.last, state.now, lost_loads=1)
                    return FencingToken(destination, lane, latest + 1, holder)

    def claim(
        self,
        token: FencingToken,
        limit: int,
        max_attempts: int,
        run: str | None = None,
        version: int | None = None,
    ) -> Load | None:
        """Claim the next load, of at most `limit` jobs, and commit it as executing.

        Returns `None` if nothing is due. Jobs that are due again go first; while new jobs wait, every
        second claim takes new ones. The discard lane claims only jobs marked by `mark_for_discard`.
        `version` is the version of the destination's schema that the caller's code declares; `None` if
        it declares none.

        Raises `FencedOut`; `MigrationPending` if the destination is being migrated, or has not reached
        that version; `CodeOutdated` if it is past it; `UsageError` if the lane's last load is still
        open.
        """
        with self._database.writing() as conn:
            claim = self._begin_claim(conn, token, limit, run)
            if token.lane is Lane.DISCARD:
                return claim.marked()
            migration_barrier.check(conn, token.destination, version)
            if claim.state.first_claim:
                return claim.due(max_attempts) or claim.new()
            return claim.new() or claim.due(max_attempts)

    def mark_for_discard(self, token: FencingToken, event_ids: Sequence[str], reason: str) -> int:
        """Mark the jobs of these events that wait to run again, due now or later; returns how many.

        The next claim of the discard lane, or of the load lane, has `reason` as its `discard_reason`.

        Raises `FencedOut`; `NotFound` for an id that no event has.
        """
        seqs = dict.fromkeys(map(self._database.epochs.seq_of, event_ids))
        with self._database.writing() as conn:
            destination, state = lock_lane(self._database, conn, token)
            return sum(
                waiting_groups.mark(conn, destination, seq, reason, state.now) for seq in seqs
            )

    def claim_for_discard(self, token: FencingToken, reason: str, limit: int) -> Load | None:
        """Claim the next of all waiting jobs, including those never claimed, in order to discard them.

        `reason` becomes the load's `discard_reason`. Returns `None` if none is left.

        Raises `FencedOut`; `UsageError` if the lane's last load is still open, or if it is not the load
        lane.
        """
        if token.lane is not Lane.LOAD:
            raise UsageError("only the load lane can discard all pending jobs; use its token")
        with self._database.writing() as conn:
            return self._begin_claim(conn, token, limit, None).next_for_discard(reason)

    def _begin_claim(
        self, conn: Connection, token: FencingToken, limit: int, run: str | None
    ) -> Claim:
        """Lock the lane for a claim. Raises `UsageError` if its last load is still open."""
        destination, state = lock_lane(self._database, conn, token, limit)
        if state.open:
            raise UsageError(
                f"{token.destination}: load {state.last} is still open; record, release or abandon "
                "it before the next claim"
            )
        return Claim(self._database, conn, token, destination, state, limit, run)

    def record(self, load: Load, verdict: LoadVerdict) -> None:
        """Close a load with its result.

        Raises `FencedOut` if another has taken over the lane, or the load is no longer open.
        """
        if verdict == _ALL_SUCCEEDED and not load.isolated:
            self._record_succeeded(load)
        else:
            self._database.retry_conflicts(lambda: self._record(load, verdict))

    def _record(self, load: Load, verdict: LoadVerdict) -> None:
        discarded = sum(job.result is JobResult.DISCARDED for job in verdict.deviations)
        state = LoadState.SUCCEEDED if verdict.raised is None else LoadState.FAILED
        with self._database.writing() as conn:
            destination, lane = self._close(conn, load, state, verdict.raised, discarded)
            if verdict.raised is not None:
                due = lane.now + timedelta(seconds=verdict.delay)
                waiting_groups.requeue(conn, load.id, due, raised=(load.attempt, verdict.isolated))
            elif verdict.deviations:
                listings = waiting_groups.group_failed_jobs(
                    conn, load, destination, verdict.deviations, lane.now
                )
                self._database.insert_outcomes(
                    conn,
                    waiting_groups.outcome_rows(load, destination, verdict.deviations, listings),
                )
            if load.isolated and load.discard_reason is None:
                waiting_groups.count_consecutive_failures(
                    conn, load.id, failed=bool(verdict.deviations)
                )
            if verdict.outcomes:
                self._database.insert_events(conn, verdict.outcomes, {})

    def _record_succeeded(self, load: Load) -> None:
        """Close a load whose jobs all succeeded: one statement is the whole transaction."""
        destination = self._database.destination(load.token.destination)
        with self._database.one_statement() as conn:
            token, closed = self._database.close_succeeded(conn, destination, load.id, load.token)
        if token != (load.token.number, load.token.holder):
            raise fenced_out(load.token, token[1])
        if not closed:
            raise _no_longer_open(load)

    def release(self, load: Load) -> None:
        """Give back a load before it starts; it does not count as an attempt. Raises `FencedOut`."""
        with self._database.writing() as conn:
            _, lane = self._close(conn, load, LoadState.RELEASED)
            waiting_groups.requeue(conn, load.id, lane.now)

    def abandon(self, load: Load, error: str) -> None:
        """Close a load as unknown, because it ran past its timeout: its jobs are due again.

        A later `record` of it raises `FencedOut`.
        """
        with self._database.writing() as conn:
            _, lane = self._close(conn, load, LoadState.UNKNOWN, error)
            waiting_groups.requeue(conn, load.id, lane.now, lost_loads=1)

    def _close(
        self,
        conn: Connection,
        load: Load,
        state: LoadState,
        error: str | None = None,
        discarded: int = 0,
    ) -> tuple[int, LaneState]:
        """Lock the lane and close its open load; returns what `lock_lane` does.

        Raises `FencedOut` unless the load is open and its token the lane's latest.
        """
        destination, lane = lock_lane(self._database, conn, load.token)
        if not close_load(conn, load.id, state, lane.now, error, discarded):
            raise _no_longer_open(load)
        return destination, lane


def _no_longer_open(load: Load) -> FencedOut:
    return FencedOut(f"{load.token.destination}: load {load.id} is no longer open")
