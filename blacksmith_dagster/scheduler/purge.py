"""Purging: what is past its time goes, one process at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.store.interface import Archive, Store
from blacksmith_dagster.supervisor.interface import Supervisor

ARCHIVE_URL = "BLACKSMITH_ARCHIVE_URL"
"""The environment variable that says where events are archived, for those who are not told."""

_LOCK = "purge"
_WAIT = 20.0  # seconds: who was killed holds the lock for 15
_PAUSE = 0.01  # seconds after each transaction: others get to write


class PurgeReport(msgspec.Struct, frozen=True):
    """What a purge has done.

    - `events`: how many were deleted; those of partitions that were dropped whole are not counted.
    - `partitions`: how many were dropped, each of at most 5,000,000 events.
    - `files`: what the archive has written.
    - `postponed`: tables that a reader keeps from being dropped. The next purge drops them.
    - `skipped`: why nothing was done (another is at it), `None` if it was.
    - `stopped`: whether its lock was lost before it came to the end. The next purge goes on.
    """

    events: int = 0
    partitions: int = 0
    files: Sequence[str] = ()
    postponed: Sequence[str] = ()
    skipped: str | None = None
    stopped: bool = False


def purge(
    app: Blacksmith,
    *,
    store: Store,
    supervisor: Supervisor,
    holder: str,
    archive: str | None = None,
) -> PurgeReport:
    """Remove the events that are past their `keep` and that nothing needs any more.

    - `holder`: names the caller to others.
    - `archive`: the folder, or the URL that fsspec knows, to which events are written before they go;
      the one of `BLACKSMITH_ARCHIVE_URL` if `None`, none if that is not set.

    Raises `SettingsError` for a URL that cannot be used, `Unavailable`.

    >>> purge(app, store=store, supervisor=locks, holder="me")  # doctest: +SKIP
    PurgeReport(events=2641, partitions=1, files=(), postponed=(), skipped=None, stopped=False)
    """
    opened = _opened(archive or os.environ.get(ARCHIVE_URL))
    lease = supervisor.acquire(_LOCK, holder, wait=_WAIT)
    if lease is None:
        return PurgeReport(skipped=f"held by {supervisor.status(_LOCK).held_by}")
    events, partitions = 0, 0
    files: list[str] = []
    postponed: Sequence[str] = ()
    with lease:
        for step in store.purge(app.retention(), opened):
            events += step.events
            partitions += step.partitions
            files += [step.file] if step.file else []
            postponed = postponed if step.postponed is None else step.postponed
            if lease.lost.wait(_PAUSE):
                return PurgeReport(events, partitions, files, postponed, stopped=True)
    return PurgeReport(events, partitions, files, postponed)


def _opened(url: str | None) -> Archive | None:
    if not url:
        return None
    from blacksmith_dagster.store.archive import FolderArchive  # fsspec takes its time to import

    return FolderArchive(url)
