"""What senders and operators learn of versions that go away."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, date, datetime, time
from typing import Any

from blacksmith_dagster.pipeline.source import SourceEvent
from blacksmith_dagster.store.interface import NewEvent

_log = logging.getLogger(__name__)


class Deprecations:
    """Knows the deprecated versions of some source events; logs each once."""

    def __init__(self, events: Iterable[SourceEvent[Any, Any, Any]]) -> None:
        self._versions = {
            event.path: event.versions
            for event in events
            if any(day is not None for day in event.versions.known.values())
        }
        self._logged: set[tuple[str, str]] = set()

    def header(self, events: Iterable[NewEvent]) -> str | None:
        """The `Deprecation` of a response (RFC 9745), if one of its events is of such a version."""
        if not self._versions:
            return None
        today = datetime.now(UTC).date()
        found: list[date] = []
        for event in events:
            versions = self._versions.get(event.event_type)
            since = versions and versions.deprecated_since(event.version, today)
            if since:
                found.append(since)
                self._log_once(event.event_type, str(event.version), since)
        if not found:
            return None
        return f"@{datetime.combine(min(found), time.min, UTC).timestamp():.0f}"

    def _log_once(self, path: str, version: str, since: date) -> None:
        if (path, version) not in self._logged:
            self._logged.add((path, version))
            _log.warning(
                "%s is still sent in version %s, which is deprecated since %s", path, version, since
            )
