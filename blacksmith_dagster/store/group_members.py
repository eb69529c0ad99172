"""Which jobs are in a job group, and the columns that are read of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, func, select, text, union_all

from blacksmith_dagster.store.job_groups import WaitingGroup
from blacksmith_dagster.store.tables import (
    edits,
    events,
    group_jobs,
    job_groups,
    jobs,
    loads,
    outcomes,
)

JOB_COLUMNS = (
    events.c.seq,
    events.c.event_type,
    events.c.payload,
    events.c.received_at,
    events.c.key,
    events.c.context,
    events.c.version,
    events.c.sent_at,
    events.c.parent,
    jobs.c.when_error,
)


def select_members(
    columns_of: Callable[[Any, Any], Sequence[Any]], *conditions: Any
) -> list[Select[Any]]:
    """The jobs of the job groups that meet the conditions, as the SELECTs of a UNION ALL.

    Each job is a row of `columns_of(seq, when_error)`. It belongs to a group in one of three ways: the
    group is a range of the log, the job failed into the group's listing (`outcomes`), or a replay put
    it there (`group_jobs`). A job that a replay created has its `when_error` in `group_jobs`.
    """
    created = group_jobs.alias("created")
    is_created = and_(
        created.c.destination == job_groups.c.destination,
        created.c.seq == outcomes.c.seq,
        created.c.created,
    )
    in_log = and_(jobs.c.destination == job_groups.c.destination, jobs.c.seq == outcomes.c.seq)
    when_error = func.coalesce(jobs.c.when_error, created.c.when_error)
    in_listing = and_(
        group_jobs.c.destination == job_groups.c.destination,
        group_jobs.c.listing == job_groups.c.listing,
        group_jobs.c.seq.between(job_groups.c.seq_from, job_groups.c.seq_to),
    )
    in_range = and_(
        jobs.c.destination == job_groups.c.destination,
        jobs.c.seq.between(job_groups.c.seq_from, job_groups.c.seq_to),
    )
    return [
        select(*columns_of(jobs.c.seq, jobs.c.when_error))
        .select_from(job_groups.join(jobs, in_range).join(events, events.c.seq == jobs.c.seq))
        .where(*conditions, job_groups.c.listing.is_(None)),
        select(*columns_of(outcomes.c.seq, when_error))
        .select_from(
            job_groups.join(outcomes, outcomes.c.listing == job_groups.c.listing)
            .join(events, events.c.seq == outcomes.c.seq)
            .outerjoin(jobs, in_log)
            .outerjoin(created, is_created)
        )
        .where(*conditions, outcomes.c.seq.between(job_groups.c.seq_from, job_groups.c.seq_to)),
        select(*columns_of(group_jobs.c.seq, group_jobs.c.when_error))
        .select_from(
            job_groups.join(group_jobs, in_listing).join(events, events.c.seq == group_jobs.c.seq)
        )
        .where(*conditions),
    ]


_group_error = select(loads.c.error).where(loads.c.id == job_groups.c.raised_in).scalar_subquery()
_failure = outcomes.alias("failure")
_job_error = (
    select(_failure.c.error)
    .where(_failure.c.listing == job_groups.c.listing, _failure.c.seq == events.c.seq)
    .scalar_subquery()
)
RETRY_ERROR = func.coalesce(_group_error, _job_error).label("error")
"""Why a job waits to run again: the error that its whole group raised last, else its own failure."""


def seqs_of(group: WaitingGroup, destination: int) -> Select[Any]:
    """The sequence numbers of a job group's jobs, in order."""
    seq_range = (group.seq_from, group.seq_to)
    if group.listing is None:
        of_destination = jobs.c.destination == destination
        in_range = jobs.c.seq.between(*seq_range)
        return select(jobs.c.seq).where(of_destination, in_range).order_by(jobs.c.seq)
    failed = outcomes.c.listing == group.listing
    replayed = (group_jobs.c.destination == destination, group_jobs.c.listing == group.listing)
    listed = union_all(
        select(outcomes.c.seq).where(failed, outcomes.c.seq.between(*seq_range)),
        select(group_jobs.c.seq).where(*replayed, group_jobs.c.seq.between(*seq_range)),
    ).subquery()
    return select(listed.c.seq).order_by(listed.c.seq)


def jobs_of_load(conn: Connection, load_id: int, destination: int) -> Any:
    """The jobs of the job groups assigned to a load, as rows of JOB_COLUMNS."""
    return conn.execute(_JOBS_OF_LOAD, {"load": load_id, "destination": destination}).all()


def _job_columns(seq: Any, when_error: Any) -> Sequence[Any]:
    edited_payload = (
        select(edits.c.payload)
        .where(edits.c.destination == job_groups.c.destination, edits.c.seq == seq)
        .scalar_subquery()
    )
    replaced: dict[Any, Any] = {
        events.c.payload: func.coalesce(edited_payload, events.c.payload),
        jobs.c.when_error: when_error,
    }
    return [replaced.get(column, column) for column in JOB_COLUMNS]


_JOBS_OF_LOAD = union_all(
    *select_members(
        _job_columns,
        job_groups.c.load == bindparam("load"),
        job_groups.c.destination == bindparam("destination"),
    )
).order_by(text("1"))
