"""Which jobs are in a job group: the one rule that all queries use, and the columns read of jobs."""

from __future__ import annotations

from collections.abc import Sequence

from blacksmith_dagster.store.job_groups import WaitingGroup
from blacksmith_dagster.store.statements import query
from blacksmith_dagster.store.tables import events, job_groups, jobs, outcomes

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

# A job belongs to a group in one of three ways. CROSS JOIN is an ordinary join, but SQLite keeps its
# order: without statistics it began with all jobs of the destination event instead of the groups, and
# then took minutes instead of 14 ms for 1,000 jobs of a log of a million.
_IN_RANGE = """
SELECT {columns}
  FROM job_groups g CROSS JOIN jobs m {joins}
 WHERE g.listing IS NULL
   AND m.destination = g.destination AND m.seq BETWEEN g.seq_from AND g.seq_to AND {condition}
"""
_FAILED = """
SELECT {columns}
  FROM job_groups g CROSS JOIN outcomes m {joins}
 WHERE m.listing = g.listing AND m.seq BETWEEN g.seq_from AND g.seq_to AND {condition}
"""
_REPLAYED = """
SELECT {columns}
  FROM job_groups g CROSS JOIN group_jobs m {joins}
 WHERE m.destination = g.destination AND m.listing = g.listing
   AND m.seq BETWEEN g.seq_from AND g.seq_to AND {condition}
"""
# A job that a replay created has its `when_error` in `group_jobs`.
_FAILED_WHEN_ERROR = """coalesce(
       (SELECT j.when_error FROM jobs j WHERE j.destination = g.destination AND j.seq = m.seq),
       (SELECT c.when_error FROM group_jobs c
         WHERE c.destination = g.destination AND c.seq = m.seq AND c.created))"""
_EVENTS = """CROSS JOIN events e
  LEFT JOIN edits x ON x.destination = g.destination AND x.seq = m.seq"""


def select_members(
    columns: str, condition: str, *, with_events: bool = False, only_replayed: bool = False
) -> str:
    """The SQL of the jobs in the job groups that meet a condition.

    `columns` and `condition` name a group `g`, a job `m.seq` and its `{when_error}`, and, if
    `with_events`, its event `e` and what a replay has made of its payload, `x`. `only_replayed` leaves
    out the jobs that no replay has put into a listing.

    This is not a view, because PostgreSQL 15 cannot estimate a join with a view of a UNION ALL: for one
    load it sorted all events (5 s instead of 60 ms).
    """
    if with_events:
        condition = f"e.seq = m.seq AND {condition}"
    joins = _EVENTS if with_events else ""
    ways = [(_REPLAYED, "m.when_error")]
    if not only_replayed:
        ways += [(_IN_RANGE, "m.when_error"), (_FAILED, _FAILED_WHEN_ERROR)]
    return "UNION ALL".join(
        way.format(
            columns=columns.replace("{when_error}", when_error), joins=joins, condition=condition
        )
        for way, when_error in ways
    )


SEQS_OF_GROUP = query(select_members("m.seq", "g.id = :group") + "ORDER BY 1", jobs.c.seq)
"""The sequence numbers of the jobs of a `group`, in order."""

NTH_SEQ_OF_GROUP = query(
    select_members("m.seq", "g.id = :group") + "ORDER BY 1 LIMIT 1 OFFSET :before", jobs.c.seq
)
"""The sequence number of the job of a `group` that has `before` jobs before it."""

_UNFINISHED_IN_GROUPS = select_members(
    "m.seq",
    "g.destination = :destination AND g.seq_to > :after AND g.seq_from <= :upto"
    " AND (g.load IS NULL OR g.load IN :open)",
)
UNFINISHED_JOBS = f"""
SELECT m.seq
  FROM loads l CROSS JOIN jobs m
 WHERE l.id IN :open AND m.destination = l.destination AND m.seq BETWEEN l.seq_from AND l.seq_to
UNION ALL
{_UNFINISHED_IN_GROUPS}"""
"""The SQL of the jobs of a `destination` in one of its `open` loads, or in a job group that waits.

The groups are those that overlap the range above `after` and up to `upto`. Jobs that were never claimed
are not among them."""

STATE_COLUMNS = (
    events.c.seq,
    events.c.event_type,
    events.c.received_at,
    job_groups.c.attempts,
    outcomes.c.error,
    job_groups.c.due_at,
)
"""What is read of the state of a job."""

_RETRYING_COLUMNS = """e.seq, e.event_type, e.received_at, g.attempts,
       coalesce((SELECT l.error FROM loads l WHERE l.id = g.raised_in),
                (SELECT o.error FROM outcomes o WHERE o.listing = g.listing AND o.seq = m.seq)),
       g.due_at"""


def select_retrying(condition: str) -> str:
    """The SQL of the jobs of a `destination` that wait to run again, as rows of STATE_COLUMNS.

    Their error is what their whole group raised last, else their own failure.
    """
    waiting = f"g.destination = :destination AND g.load IS NULL AND {condition}"
    return select_members(_RETRYING_COLUMNS, waiting, with_events=True)


def jobs_of_load(groups: Sequence[WaitingGroup], condition: str = "") -> str:
    """The SQL of the jobs in the `groups` assigned to a load, as rows of JOB_COLUMNS, in order.

    Its parameter is `load`; `condition` is a further one, after AND. In the first attempt of a replay,
    each job is in its listing: to look for others would double the time.
    """
    columns = ", ".join(_COLUMNS.get(column.name, f"e.{column.name}") for column in JOB_COLUMNS)
    sql = select_members(
        columns,
        f"g.load = :load {condition}",
        with_events=True,
        only_replayed=all(group.replay is not None and not group.attempts for group in groups),
    )
    return f"{sql}ORDER BY 1"


_COLUMNS = {"payload": "coalesce(x.payload, e.payload)", "when_error": "{when_error}"}
