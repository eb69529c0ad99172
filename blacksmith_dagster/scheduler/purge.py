"""Purges events past their retention, in one process at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import Archive
from blacksmith_dagster.supervisor import Supervisor

ARCHIVE_URL = "BLACKSMITH_ARCHIVE_URL"
"""The environment variable with the archive's URL, used where none is passed."""

_LOCK = "purge"
_WAIT = 20.0  # seconds; longer than the 15 s lease of a killed process
_PAUSE = 0.01  # seconds after each transaction, in which others can write


class PurgeReport(msgspec.Struct, frozen=True):
    """What a purge has done.

    - `events`: how many were deleted, without those of table partitions that were dropped whole.
    - `partitions`: how many table partitions were dropped, each of at most 5,000,000 events.
    - `files`: what the archive has written.
    - `postponed`: tables that could not be dropped because a reader uses them; the next purge drops
      them.
    - `skipped`: why it did nothing (another purge is running); `None` if it ran.
    - `stopped`: whether it lost its lock before its end; the next purge continues.
    - `quarantined`: how many requests and messages were removed from quarantine.
    """

    events: int = 0
    partitions: int = 0
    files: Sequence[str] = ()
    postponed: Sequence[str] = ()
    skipped: str | None = None
    stopped: bool = False
    quarantined: int = 0


def purge(
    app: Blacksmith,
    *,
    store: Store,
    supervisor: Supervisor,
    holder: str,
    archive: str | None = None,
) -> PurgeReport:
    """Remove the events that are past their retention and that no job, outcome or replay needs, and
    what is past it in quarantine.

    - `holder`: the name under which it holds the lock, for people.
    - `archive`: the folder, or the fsspec URL, to which events are written before they are removed. If
      `None`, it is `BLACKSMITH_ARCHIVE_URL`; if that is not set, nothing is archived.

    Raises `SettingsError` for a URL that cannot be used, `Unavailable`.

    >>> purge(app, store=store, supervisor=locks, holder="me")  # doctest: +SKIP
    PurgeReport(events=2641, partitions=1, files=(), postponed=(), skipped=None, stopped=False,
                quarantined=0)
    """
    opened_archive = _open_archive(archive or os.environ.get(ARCHIVE_URL))
    lease = supervisor.acquire(_LOCK, holder, wait=_WAIT)
    if lease is None:
        return PurgeReport(skipped=f"held by {supervisor.status(_LOCK).held_by}")
    events, partitions, quarantined = 0, 0, 0
    files: list[str] = []
    postponed: Sequence[str] = ()
    with lease:
        for step in store.log.purge(app.retention(), opened_archive):
            events += step.events
            partitions += step.partitions
            files += [step.file] if step.file else []
            postponed = postponed if step.postponed is None else step.postponed
            if lease.lost.wait(_PAUSE):
                return PurgeReport(events, partitions, files, postponed, stopped=True)
        for expired in store.quarantine.expired(app.retention()).values():
            for dropped in store.quarantine.drop_selected(expired):
                quarantined += dropped
                if lease.lost.wait(_PAUSE):
                    return PurgeReport(
                        events, partitions, files, postponed, None, True, quarantined
                    )
    return PurgeReport(events, partitions, files, postponed, quarantined=quarantined)


def _open_archive(url: str | None) -> Archive | None:
    if not url:
        return None
    from blacksmith_dagster.store.archive import FolderArchive  # importing fsspec takes time

    return FolderArchive(url)
