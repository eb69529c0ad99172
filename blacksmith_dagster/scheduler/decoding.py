"""From the rows of the log to the jobs that a destination event is handed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from blacksmith_dagster.errors import StoreError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.pipeline.event import Cause, Event, Job, JobResult
from blacksmith_dagster.pipeline.flow import Flow
from blacksmith_dagster.pipeline.model import decoder
from blacksmith_dagster.redaction import describe
from blacksmith_dagster.store.interface import JobRow, Load

_CONTEXT = msgspec.json.Decoder(dict[str, Any])
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_CAUSE = msgspec.json.Decoder(Cause)

NO_LONGER_WANTED = "the flow's when no longer wants this event"


class DecodeFailure(NamedTuple):
    """What became of a job that is not handed to the function: it failed, or is discarded."""

    result: JobResult
    error: str


class Decoded(NamedTuple):
    """The jobs of a load that are handed to the function; by seq, those that are not."""

    jobs: Sequence[Job[Any]]
    failures: Mapping[int, DecodeFailure]


class JobDecoder:
    """Makes the jobs of one destination event. Keeps a decoder per event type."""

    def __init__(self, app: Blacksmith, event: DestinationEvent[Any]) -> None:
        self._event = event
        self._origins = {
            outcome.path: each
            for each in app.destination_events.values()
            for outcome in each.outcomes
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
        """The events that the outcomes among `rows` came of, and those that they came of, by id."""
        found: dict[str, JobRow] = {}
        wanted = self._parents(rows)
        while wanted:
            fetched = fetch(sorted(wanted))
            found |= fetched
            wanted = self._parents(fetched.values()) - found.keys()
        return found

    def decode(self, load: Load, originals: Mapping[str, JobRow]) -> Decoded:
        """The jobs of a load, in its order.

        A job whose data cannot be made (its event type is no longer received, it does not fit the model,
        `transform` or `when` raises) fails alone.
        """
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
                asked,
            ) = row
            try:
                if (
                    asked is None and event_type in self._plain
                ):  # almost all are, and each call counts
                    read, transform = self._plain[event_type]
                    around = _NOTHING if context is None else _CONTEXT.decode(context)
                    event = Event(
                        read(payload), key, sent_at, around, version, id_, received_at, parent
                    )
                    data = event.data if transform is None else transform(event)
                    jobs.append(Job(data, event, id_ + suffix, attempt))
                else:
                    made = self._job(row, attempt, suffix, originals)
                    if isinstance(made, Job):
                        jobs.append(made)
                    else:
                        failures[seq] = made
            except Exception as error:  # noqa: BLE001 - users' code: whatever it raises fails the job
                failures[seq] = DecodeFailure(JobResult.FAILED, describe(error))
        return Decoded(jobs, failures)

    def event(self, row: JobRow, originals: Mapping[str, JobRow]) -> Event[Any]:
        """The event of a row, as a flow's `when` is asked about it."""
        return self._event_and_cause(row, originals)[0]

    def _job(
        self, row: JobRow, attempt: int, suffix: str, originals: Mapping[str, JobRow]
    ) -> Job[Any] | DecodeFailure:
        flow = self._event.flows.get(row.event_type)
        if flow is None:
            raise StoreError(
                f"{self._event.path} does not receive {row.event_type} (any more); add it to its "
                "receives=, or discard the job"
            )
        event, cause = self._event_and_cause(row, originals)
        if row.when_error is not None:
            # It fails once for a `when` that raised at ingest, and is asked again at each retry.
            if attempt == 1:
                return DecodeFailure(JobResult.FAILED, row.when_error)
            if flow.when is not None and not flow.when(event):
                return DecodeFailure(JobResult.DISCARDED, NO_LONGER_WANTED)
        return Job(_given(flow, event), event, row.id + suffix, attempt, cause)

    def _event_and_cause(
        self, row: JobRow, originals: Mapping[str, JobRow]
    ) -> tuple[Event[Any], Cause | None]:
        """The event of a row; for an outcome, with the data that the original job was given."""
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
                f"{origin.path} does not receive {original.event_type} (any more), so that the data "
                "which the original job was given cannot be made; discard the job"
            )
        before, _ = self._event_and_cause(original, originals)
        event = msgspec.structs.replace(
            before,
            data=_given(flow, before),
            id=row.id,
            received_at=row.received_at,
            parent=row.parent,
        )
        return event, _CAUSE.decode(row.payload)

    def _event_of(self, row: JobRow) -> Event[Any]:
        read = self._data.get(row.event_type)
        if read is None:
            raise StoreError(
                f"the application has no source event {row.event_type} (any more); declare it, or "
                "discard the job"
            )
        return Event(
            read(row.payload),
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


def _given(flow: Flow[Any], event: Event[Any]) -> Any:
    return event.data if flow.transform is None else flow.transform(event)
