"""An archive in a folder: files of JSON lines, packed by gzip."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from typing import Any

import fsspec
import msgspec
from fsspec.implementations.local import LocalFileSystem

from blacksmith_dagster.errors import SettingsError, Unavailable
from blacksmith_dagster.store.interface import ArchivedEvent

_ENCODER = msgspec.json.Encoder()


class FolderArchive:
    """An archive in a folder, on any file system that fsspec knows.

    - `url`: a path, or a URL such as `s3://bucket/events` (install the package that fsspec needs for
      it: `s3fs`).

    Each file is named after its first and its last event, and has an `ArchivedEvent` in a line. It
    is written under another name first: one that is there is whole.

    >>> from tempfile import mkdtemp
    >>> archive = FolderArchive(mkdtemp())

    Raises `SettingsError` if the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        try:
            self._files, folder = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            # What it says may hold the URL, and that a password.
            said = str(error) if isinstance(error, ImportError) else type(error).__name__
            raise SettingsError(
                f"the archive's URL cannot be used ({said}); write a folder, or a URL that fsspec "
                "knows, such as s3://bucket/events"
            ) from None
        self._folder = str(folder).rstrip("/")

    def write(self, events: Sequence[ArchivedEvent]) -> str:
        """Keep events in a file; returns its path, without the URL's host and credentials.

        Raises `Unavailable`.
        """
        path = f"{self._folder}/{events[0].id}-{events[-1].id}.jsonl.gz"
        packed = gzip.compress(_ENCODER.encode_lines(events), compresslevel=6, mtime=0)
        try:
            self._files.makedirs(self._folder, exist_ok=True)
            with self._files.open(f"{path}.part", "wb") as file:
                file.write(packed)
                _sync(self._files, file)
            self._files.mv(f"{path}.part", path)
            if isinstance(self._files, LocalFileSystem):
                _sync_folder(self._folder)
        except Exception as error:  # noqa: BLE001 - each file system has its own
            said = getattr(error, "strerror", None) or type(error).__name__
            raise Unavailable(
                f"the archive cannot write {path}: {said}; what is not archived is not purged: fix "
                "it, and purge again"
            ) from None
        return path


def _sync(files: Any, file: Any) -> None:
    """Let a local file survive a power cut; elsewhere its service sees to it."""
    if isinstance(files, LocalFileSystem):
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: str) -> None:
    """Let the names in a local folder survive a power cut."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
