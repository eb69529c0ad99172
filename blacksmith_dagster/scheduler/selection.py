"""Which events of a window a replay runs, by the flows as they are today and by the request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.importer import load_function
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import DestinationEvent
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.model import decoder, encode
from blacksmith_dagster.redaction import describe
from blacksmith_dagster.scheduler.decoding import JobDecoder
from blacksmith_dagster.store.interface import (
    JobRow,
    ReplayCandidate,
    ReplayMode,
    ReplayRequest,
    SelectedJob,
    Store,
)

Originals = Mapping[str, JobRow]

_MODES = {
    "missing": {ReplayMode.MISSING, ReplayMode.ALL},
    "discarded": {ReplayMode.FAILED, ReplayMode.ALL},
    "succeeded": {ReplayMode.ALL},
    "pending": set[ReplayMode](),
}


class ReplaySelector:
    """Selects among the candidates of one replay.

    - `event_types`: the events that it goes through.

    Raises `UsageError` for an event type that the destination event does not receive, and
    `SettingsError` for a function that is not there.
    """

    def __init__(
        self, app: Blacksmith, event: DestinationEvent[Any], request: ReplayRequest
    ) -> None:
        strangers = [
            event_type for event_type in request.event_types if event_type not in event.flows
        ]
        if strangers:
            raise UsageError(
                f"{event.path} does not receive {', '.join(strangers)}; it receives "
                f"{', '.join(event.flows)}"
            )
        self.event_types: Sequence[str] = request.event_types or tuple(event.flows)
        self._app = app
        self._event = event
        self._request = request
        modes = set(request.modes)
        self._states = {state for state, meant_by in _MODES.items() if meant_by & modes}
        self._decoder = JobDecoder(app, event)
        self._when: Callable[[Event[Any]], Any] | None = _function(request.when)
        self._edit: Callable[[Event[Any]], Any] | None = _function(request.edit)
        self._plain = self._when is self._edit is None and all(
            flow.when is None for flow in event.flows.values()
        )

    def select(self, candidates: Sequence[ReplayCandidate], store: Store) -> list[SelectedJob]:
        """The jobs to be run. The store is asked for the events only if something is asked of them.

        Raises `UsageError` if the request's own function raises: nothing is left out by a bug.
        """
        wanted = [each for each in candidates if self.is_asked_for(each)]
        if self._plain:
            return [SelectedJob(each.seq, each.state) for each in wanted]
        rows = store.job_rows(self._event.path, [each.seq for each in wanted])
        originals = self._decoder.originals(rows, store.originals)
        state_of = {each.seq: each.state for each in wanted}
        selected = (self._select_job(row, state_of[row.seq], originals) for row in rows)
        return [each for each in selected if each is not None]

    def is_asked_for(self, candidate: ReplayCandidate) -> bool:
        """Whether the request's modes and its error mean this job."""
        if candidate.state not in self._states:
            return False
        return self._request.error is None or self._request.error in (candidate.error or "")

    def _select_job(self, row: JobRow, state: str, originals: Originals) -> SelectedJob | None:
        flow = self._event.flows[row.event_type]
        raised: str | None = None
        payload: str | None = None
        try:
            event = self._decoder.event(row, originals)
            # An existing job has passed `when`, unless `when` raised and it was created anyway.
            asked = flow.when is not None and (state == "missing" or row.when_error is not None)
            if asked and flow.when is not None and not flow.when(event):
                return None
        except Exception as error:  # noqa: BLE001 - users' code; the job fails with it, alone
            raised = describe(error)
        else:
            if self._when is not None and not self._asked(self._when, event):
                return None
            if self._edit is not None:
                payload = self._edited(self._edit, event, row)
        return SelectedJob(row.seq, state, raised, payload)

    def _edited(self, edit: Callable[[Event[Any]], Any], event: Event[Any], row: JobRow) -> str:
        source_event = self._app.source_events.get(row.event_type)
        if source_event is None:
            raise UsageError(
                f"{row.event_type} is an outcome and has no data of its own to edit; edit the jobs of "
                f"{row.event_type.rpartition('.')[0]}"
            )
        try:
            payload = encode(self._asked(edit, event))
            decoder(source_event.model)(payload)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise UsageError(
                f"{self._request.edit}: what it made of event {row.id} does not fit {row.event_type}: "
                f"{describe(error)}; nothing more is replayed until it does"
            ) from error
        return payload.decode()

    def _asked(self, function: Callable[[Event[Any]], Any], event: Event[Any]) -> Any:
        try:
            return function(event)
        except Exception as error:
            raise UsageError(
                f"{getattr(function, '__name__', function)} raised for event {event.id}: "
                f"{describe(error)}; fix it, and launch the replay again: it goes on from here"
            ) from error


def _function(name: str | None) -> Callable[[Event[Any]], Any] | None:
    return None if name is None else load_function(name)
