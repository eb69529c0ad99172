"""`PostgresSource`: the changes and notifications of a PostgreSQL database as source events."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Unpack

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.source import Source, SourceEvent, SourceProperties
from blacksmith_dagster.pipeline.triggers import CDC, Listener
from blacksmith_dagster.redaction import Secret
from blacksmith_dagster.sources.postgres.change import Change, Notification

_SLOT = re.compile(r"[a-z0-9_]{1,63}")
_LONGEST_CHANNEL = 63


class PostgresSource(Source):
    """A PostgreSQL database (14 or newer, with the extra `postgres`).

    - `url`: `postgresql://user:password@host/database`, or a `Secret` that holds it. It is never
      printed. Each listener needs its own session: give a URL that bypasses a pooler.
    - the others are the `SourceProperties` of every source.

    >>> crm = PostgresSource("crm", url=Secret("CRM_URL"))
    >>> customers = crm.changes("customers", tables=["public.customers"], snapshot=True)
    >>> customers.description
    'The changes of public.customers, by the replication slot blacksmith_crm_customers.'

    Raises `DeclarationError`.
    """

    def __init__(
        self, name: str, *, url: Secret | str, **properties: Unpack[SourceProperties]
    ) -> None:
        super().__init__(name, **properties)
        if not isinstance(url, Secret | str):
            raise DeclarationError(
                f"source {name!r}: url= is a Secret that names an environment variable, or the "
                "URL itself"
            )
        self.url = url

    def changes(
        self,
        name: str,
        *,
        tables: Sequence[str],
        snapshot: bool = False,
        slot: str | None = None,
        **properties: Unpack[SourceProperties],
    ) -> SourceEvent[Change, Listener, Iterable[Event[Change]]]:
        """The inserts, updates, deletes and truncates of `tables`, one event per row.

        Each change that is committed after the slot was created arrives once, in commit order, even if
        the database or the listener was down for a while. The server keeps its log until the store has
        the changes.

        - `tables`: their names, with the schema if the user's `search_path` does not include it. Each
          needs a primary key, or REPLICA IDENTITY FULL.
        - `snapshot`: begin with the rows that exist when the slot is created, without a gap or an
          overlap. An interrupted snapshot starts over.
        - `slot`: the name of the replication slot, and of the publication of the tables; missing ones
          are created. `blacksmith_<source>_<event>` by default. A new name starts over.

        The remaining arguments are those of `Source.event`. Listening is retried after it has
        raised `Unavailable` (the database does not respond), `SettingsError` or `DeclarationError`
        (the message says what the server, its user or a table lacks), or `ChangesLost` (the slot or
        its changes are gone).

        Raises `DeclarationError`.
        """
        path = f"{self.name}/{name}"
        if isinstance(tables, str) or not tables or not all(tables):
            raise DeclarationError(
                f"{path}: tables={tables!r}: name at least one, as in tables=['public.customers']"
            )
        slot = f"blacksmith_{self.name}_{name}" if slot is None else slot
        if not _SLOT.fullmatch(slot):
            raise DeclarationError(
                f"{path}: the slot {slot!r}: give a slot= of up to 63 lower-case letters, "
                "digits and underscores"
            )

        def listen(listener: Listener) -> Iterator[Event[Change]]:
            _check_driver(path)
            from blacksmith_dagster.sources.postgres.session import read_in_session
            from blacksmith_dagster.sources.postgres.streams import ChangeStream

            stream = ChangeStream(tuple(tables), slot, snapshot, listener)
            return read_in_session(path, self.url, listener, stream.read, replication=True)

        listen.__doc__ = f"The changes of {', '.join(tables)}, by the replication slot {slot}."
        return self.event(CDC(), name=name, **properties)(listen)

    def notifications(
        self, name: str, *, channel: str, **properties: Unpack[SourceProperties]
    ) -> SourceEvent[Notification, Listener, Iterable[Event[Notification]]]:
        """The notifications on `channel` that are sent while the listener runs: the server keeps none.

        The remaining arguments are those of `Source.event`. Listening is retried after it has
        raised `Unavailable` (the database does not respond) or `SettingsError` (the URL cannot be
        read).

        >>> crm = PostgresSource("crm", url=Secret("CRM_URL"))
        >>> alerts = crm.notifications("alerts", channel="alerts")

        Raises `DeclarationError`.
        """
        path = f"{self.name}/{name}"
        if not 0 < len(channel.encode()) <= _LONGEST_CHANNEL:
            raise DeclarationError(
                f"{path}: channel={channel!r}: PostgreSQL's channels have names of 1 to "
                f"{_LONGEST_CHANNEL} bytes"
            )

        def listen(listener: Listener) -> Iterator[Event[Notification]]:
            _check_driver(path)
            from blacksmith_dagster.sources.postgres.session import read_in_session
            from blacksmith_dagster.sources.postgres.streams import notifications

            read = partial(notifications, channel=channel, listener=listener)
            return read_in_session(path, self.url, listener, read)

        listen.__doc__ = f"The notifications on the channel {channel}."
        return self.event(CDC(), name=name, **properties)(listen)


def _check_driver(path: str) -> None:
    if find_spec("psycopg") is None:
        raise ImportError(
            f"{path} listens to PostgreSQL, which needs psycopg; run "
            "`pip install 'blacksmith-dagster[postgres]'`"
        )
