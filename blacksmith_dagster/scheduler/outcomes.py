"""What became of jobs, as events for the destination events that receive it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec

from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.pipeline.event import Cause, Event, Job
from blacksmith_dagster.pipeline.flow import Flow, Outcome
from blacksmith_dagster.redaction import describe
from blacksmith_dagster.scheduler.decoding import Decoded
from blacksmith_dagster.scheduler.verdict import Decision
from blacksmith_dagster.store.interface import JobRow, Load, LoadVerdict, NewEvent, NewJob

_Receivers = Sequence[tuple[DestinationEvent[Any], Flow[Any]]]


def outcomes(
    app: Blacksmith,
    event: DestinationEvent[Any],
    load: Load,
    decoded: Decoded,
    decision: Decision,
    now: datetime,
) -> list[NewEvent]:
    """The events of a load's outcomes that someone receives.

    Each failed attempt is a `.failed`, the last one too, which is followed by a `.discarded`. A
    flow's `when` is asked with the data that the original job was given. If that cannot be had (the
    transform raised, or the load was claimed for discard and users' code must not run), or if
    `when` raises, the job is made and fails once with that error: nothing is dropped by a bug.
    """
    received = {outcome: app.receivers.get(outcome.path, ()) for outcome in event.outcomes}
    if not any(received.values()):
        return []
    given = {job.key: job for job in decoded.jobs}
    # A lost attempt has no number of its own, but the job was tried. What is discarded for its lost
    # loads is claimed as one attempt more; by hand (without lost loads) as the last one.
    tried = (
        load.attempt + load.lost_loads - (load.discard_reason is not None and load.lost_loads > 0)
    )
    made: list[NewEvent] = []
    for row, outcome, error in _decided(event, load, decision):
        if not received[outcome]:
            continue
        jobs = _wanting(received[outcome], row, given.get(load.key_of(row.id)), error)
        if jobs:
            cause = Cause(outcome.name, error, tried, load.id, now)
            payload = msgspec.json.encode(cause).decode()
            made.append(NewEvent(outcome.path, payload, jobs, parent=row.id))
    return made


def _decided(
    event: DestinationEvent[Any], load: Load, decision: Decision
) -> Iterator[tuple[JobRow, Outcome[Any], str | None]]:
    verdict: LoadVerdict = decision.verdict
    deviating = {each.seq: each for each in verdict.deviations}
    for row in load.rows:
        if verdict.raised is not None:
            yield row, event.failed, verdict.raised
        elif (deviation := deviating.get(row.seq)) is None:
            yield row, event.succeeded, None
        elif deviation.delay is not None:
            yield row, event.failed, deviation.error
        else:
            if row.seq in decision.exhausted:
                yield row, event.failed, deviation.error
            yield row, event.discarded, deviation.error


def _wanting(
    receivers: _Receivers, row: JobRow, original: Job[Any] | None, error: str | None
) -> list[NewJob]:
    jobs: list[NewJob] = []
    outcome: Event[Any] | None = None
    for receiver, flow in receivers:
        if flow.when is None:
            jobs.append(NewJob(receiver.path))
            continue
        if original is None:
            jobs.append(NewJob(receiver.path, f"when was not asked, for want of data: {error}"))
            continue
        if outcome is None:
            outcome = msgspec.structs.replace(
                original.event, data=original.data, id=None, received_at=None, parent=row.id
            )
        try:
            wanted = flow.when(outcome)
        except Exception as raised:  # noqa: BLE001 - users' code
            jobs.append(NewJob(receiver.path, describe(raised)))
        else:
            if wanted:
                jobs.append(NewJob(receiver.path))
    return jobs
