"""Decodes the rows of the log into the jobs that a destination event's function gets. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from blacksmith_dagster.errors import StoreError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import AnyDestinationEvent
from blacksmith_dagster.pipeline.event import Cause, Event, Job, JobResult
from blacksmith_dagster.pipeline.flow import Flow
from blacksmith_dagster.pipeline.model import decoder
from blacksmith_dagster.redaction import describe
from blacksmith_dagster.store.records import JobRow, Load

_CONTEXT = msgspec.json.Decoder(dict[str, Any])
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_CAUSE = msgspec.json.Decoder(Cause)

NO_LONGER_WANTED = "the flow's when no longer wants this event"


class DecodeFailure(NamedTuple):
    """Why a job does not reach the function: it failed, or is discarded."""

    result: JobResult
    error: str


class Decoded(NamedTuple):
    """The jobs of a load that the function gets; and, by seq, the failures of those that it does not."""

    jobs: Sequence[Job[Any]]
    failures: Mapping[int, DecodeFailure]


class JobDecoder:
    """Decodes the jobs of one destination event, with a decoder for each event type."""

    def __init__(self, app: Blacksmith, event: AnyDestinationEvent) -> None:
        self._event = event
        self._origins = {
            outcome.path: origin
            for origin in app.destination_events.values()
            for outcome in origin.outcomes
        }
        self._data = {
            path: decoder(source_event.model, stored=True)
            for path, source_event in app.source_events.items()
        }
        self._plain = {
            path: (self._data[path], flow.transform)
            for path, flow in event.flows.items()
            if path in self._data
        }

    def originals(
        self,
        rows: Iterable[JobRow],
        fetch: Callable[[Sequence[str]], Mapping[str, JobRow]],
    ) -> Mapping[str, JobRow]:
        """The parents of the outcomes among `rows`, and those parents' own parents, by id."""
        originals: dict[str, JobRow] = {}
        missing = self._parents(rows)
        while missing:
            fetched = fetch(sorted(missing))
            originals |= fetched
            missing = self._parents(fetched.values()) - originals.keys()
        return originals

    def decode(self, load: Load, originals: Mapping[str, JobRow]) -> Decoded:
        """The jobs of a load, in its order.

        A job that cannot be decoded (its event type is no longer received, its data does not fit the
        model, `transform` or `when` raises) fails; the others do not. None is decoded if the load is to
        be discarded after lost loads: users' code may have killed those.
        """
        if load.discard_reason is not None and load.lost_loads:
            return Decoded((), {})
        jobs: list[Job[Any]] = []
        failures: dict[int, DecodeFailure] = {}
        attempt, suffix = load.attempt, load.key_of("")  # a call per load, not per job
        for row in load.rows:
            (
                seq,
                id_,
                event_type,
                payload,
                received_at,
                key,
                context,
                version,
                sent_at,
                parent,
                when_error,
            ) = row
            try:
                # Almost all jobs are plain; a call for each would cost more than the decoding.
                if when_error is None and event_type in self._plain:
                    decode, transform = self._plain[event_type]
                    fields = _NOTHING if context is None else _CONTEXT.decode(context)
                    event = Event(
                        decode(payload), key, sent_at, fields, version, id_, received_at, parent
                    )
                    data = event.data if transform is None else transform(event)
                    jobs.append(Job(data, event, id_ + suffix, attempt))
                else:
                    job = self._job(row, attempt, suffix, originals)
                    if isinstance(job, Job):
                        jobs.append(job)
                    else:
                        failures[seq] = job
            except Exception as error:  # noqa: BLE001 - users' code: whatever it raises fails the job
                failures[seq] = DecodeFailure(JobResult.FAILED, describe(error))
        return Decoded(jobs, failures)

    def event(self, row: JobRow, originals: Mapping[str, JobRow]) -> Event[Any]:
        """The event of a row, as a flow's `when` gets it."""
        return self._event_and_cause(row, originals)[0]

    def _job(
        self, row: JobRow, attempt: int, suffix: str, originals: Mapping[str, JobRow]
    ) -> Job[Any] | DecodeFailure:
        flow = self._event.flows.get(row.event_type)
        if flow is None:
            raise StoreError(
                f"{self._event.path} does not receive {row.event_type} (any more); add that to its "
                "receives=, or discard the job"
            )
        event, cause = self._event_and_cause(row, originals)
        if row.when_error is not None:
            # It fails once, because `when` raised at ingest; each retry calls `when` again.
            if attempt == 1:
                return DecodeFailure(JobResult.FAILED, row.when_error)
            if flow.when is not None and not flow.when(event):
                return DecodeFailure(JobResult.DISCARDED, NO_LONGER_WANTED)
        return Job(_transformed(flow, event), event, row.id + suffix, attempt, cause)

    def _event_and_cause(
        self, row: JobRow, originals: Mapping[str, JobRow]
    ) -> tuple[Event[Any], Cause | None]:
        """The event of a row; for an outcome, with its cause and the data of the original job."""
        origin = self._origins.get(row.event_type)
        if origin is None:
            return self._event_of(row), None
        original = None if row.parent is None else originals.get(row.parent)
        if original is None:
            raise StoreError(
                f"the event {row.parent}, whose {row.event_type} this is, is not in the store (any "
                "more); discard the job"
            )
        flow = origin.flows.get(original.event_type)
        if flow is None:
            raise StoreError(
                f"{origin.path} does not receive {original.event_type} (any more), so the data of the "
                "original job cannot be decoded; discard the job"
            )
        original_event, _ = self._event_and_cause(original, originals)
        event = msgspec.structs.replace(
            original_event,
            data=_transformed(flow, original_event),
            id=row.id,
            received_at=row.received_at,
            parent=row.parent,
        )
        return event, _CAUSE.decode(row.payload)

    def _event_of(self, row: JobRow) -> Event[Any]:
        decode = self._data.get(row.event_type)
        if decode is None:
            raise StoreError(
                f"the application has no source event {row.event_type} (any more); declare it, or "
                "discard the job"
            )
        return Event(
            decode(row.payload),
            row.key,
            row.sent_at,
            _NOTHING if row.context is None else _CONTEXT.decode(row.context),
            row.version,
            row.id,
            row.received_at,
            row.parent,
        )

    def _parents(self, rows: Iterable[JobRow]) -> set[str]:
        return {
            row.parent for row in rows if row.parent is not None and row.event_type in self._origins
        }


def _transformed(flow: Flow[Any], event: Event[Any]) -> Any:
    return event.data if flow.transform is None else flow.transform(event)
