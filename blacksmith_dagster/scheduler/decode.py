"""From the rows of the log to the jobs that a destination event is handed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from blacksmith_dagster.errors import StoreError, describe
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.batch import Said
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.pipeline.event import Cause, Event, Job
from blacksmith_dagster.pipeline.flow import Flow
from blacksmith_dagster.store.interface import JobRow, Load

_CONTEXT = msgspec.json.Decoder(dict[str, Any])
_CAUSE = msgspec.json.Decoder(Cause)

NO_LONGER_WANTED = "the flow's when no longer wants this event"


class Refused(NamedTuple):
    """What became of a job that is not handed to the function: it failed, or is discarded."""

    said: Said
    error: str


class Decoded(NamedTuple):
    """The jobs of a load that are handed to the function; by seq, those that are not."""

    jobs: Sequence[Job[Any]]
    refused: Mapping[int, Refused]


class Decoder:
    """Makes the jobs of one destination event. Keeps a msgspec decoder per kind of event."""

    def __init__(self, app: Blacksmith, event: DestinationEvent[Any]) -> None:
        self._event = event
        self._app = app
        self._origins = {
            outcome.path: each
            for each in app.destination_events.values()
            for outcome in each.outcomes
        }
        self._data: dict[str, msgspec.json.Decoder[Any]] = {}

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

        A job whose data cannot be made (its kind is no longer received, it does not fit the model,
        `transform` or `when` raises) fails alone.
        """
        jobs: list[Job[Any]] = []
        refused: dict[int, Refused] = {}
        flows, attempt, suffix = self._event.flows, load.attempt, f"-{load.job_key}"
        for row in load.rows:
            try:
                flow = flows.get(row.kind)
                if flow is None:
                    refused[row.seq] = self._not_received(row)
                    continue
                event, cause = self._kept(row, originals)
                if row.when_error is not None:
                    refusal = _asked_again(row.when_error, flow, event, attempt)
                    if refusal is not None:
                        refused[row.seq] = refusal
                        continue
                data = event.data if flow.transform is None else _transformed(flow, event)
            except Exception as error:  # noqa: BLE001 - users' code: whatever it raises fails the job
                refused[row.seq] = Refused(Said.FAILED, describe(error))
                continue
            jobs.append(Job(data, event, row.id + suffix, attempt, cause))
        return Decoded(jobs, refused)

    def _parents(self, rows: Iterable[JobRow]) -> set[str]:
        return {row.parent for row in rows if row.parent is not None and row.kind in self._origins}

    def _not_received(self, row: JobRow) -> Refused:
        return Refused(
            Said.FAILED,
            f"{self._event.path} does not receive {row.kind} (any more); add it to its receives=, "
            "or discard the job",
        )

    def _kept(
        self, row: JobRow, originals: Mapping[str, JobRow]
    ) -> tuple[Event[Any], Cause | None]:
        """The event of a row; for an outcome, with the data that the original job was given."""
        origin = self._origins.get(row.kind)
        if origin is None:
            return self._event_of(row), None
        original = None if row.parent is None else originals.get(row.parent)
        if original is None:
            raise StoreError(
                f"the event {row.parent}, whose {row.kind} this is, is not in the store (any more); "
                "discard the job"
            )
        flow = origin.flows.get(original.kind)
        if flow is None:
            raise StoreError(
                f"{origin.path} does not receive {original.kind} (any more), so that the data which "
                "the original job was given cannot be made; discard the job"
            )
        given, _ = self._kept(original, originals)
        data = given.data if flow.transform is None else _transformed(flow, given)
        event = msgspec.structs.replace(
            given, data=data, id=row.id, received_at=row.received_at, parent=row.parent
        )
        return event, _CAUSE.decode(row.payload)

    def _event_of(self, row: JobRow) -> Event[Any]:
        decoder = self._data.get(row.kind)
        if decoder is None:
            decoder = self._data[row.kind] = self._decoder(row.kind)
        if row.context is None:
            return Event(
                decoder.decode(row.payload),
                row.key,
                row.sent_at,
                version=row.version,
                id=row.id,
                received_at=row.received_at,
                parent=row.parent,
            )
        return Event(
            decoder.decode(row.payload),
            row.key,
            row.sent_at,
            _CONTEXT.decode(row.context),
            row.version,
            row.id,
            row.received_at,
            row.parent,
        )

    def _decoder(self, kind: str) -> msgspec.json.Decoder[Any]:
        source_event = self._app.source_events.get(kind)
        if source_event is None:
            raise StoreError(
                f"the application has no source event {kind} (any more); declare it, or discard the job"
            )
        return msgspec.json.Decoder(source_event.model)


def _transformed(flow: Flow[Any], event: Event[Any]) -> Any:
    assert flow.transform is not None
    return flow.transform(event)


def _asked_again(
    when_error: str, flow: Flow[Any], event: Event[Any], attempt: int
) -> Refused | None:
    """A `when` that raised at ingest fails its job once, and is asked again at each retry."""
    if attempt == 1:
        return Refused(Said.FAILED, when_error)
    if flow.when is None or flow.when(event):
        return None
    return Refused(Said.DISCARDED, NO_LONGER_WANTED)
