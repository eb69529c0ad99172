"""A PostgreSQL database as a source: the changes of its tables, and what it notifies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Unpack

from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.source import Properties, Source, SourceEvent
from blacksmith_dagster.pipeline.triggers import CDC, Listener
from blacksmith_dagster.redaction import Secret
from blacksmith_dagster.sources.postgres.change import Change, Notification

_SLOT = re.compile(r"[a-z0-9_]{1,63}")
_LONGEST_CHANNEL = 63


class PostgresSource(Source):
    """A PostgreSQL database (13 or newer, with the extra `postgres`).

    - `url`: `postgresql://user:password@host/database`, or a `Secret` that holds one. It is never
      printed. Listening takes sessions of its own: give a URL that goes around a pooler.
    - the rest are `Properties`, as of every source.

    >>> crm = PostgresSource("crm", url=Secret("CRM_URL"))
    >>> customers = crm.changes("customers", tables=["public.customers"], snapshot=True)
    >>> customers.description
    'The changes of public.customers, by the replication slot blacksmith_crm_customers.'

    Raises `DeclarationError`.
    """

    def __init__(self, name: str, *, url: Secret | str, **given: Unpack[Properties]) -> None:
        super().__init__(name, **given)
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
        **own: Unpack[Properties],
    ) -> SourceEvent[Change, Listener, Iterable[Event[Change]]]:
        """What is inserted, updated, deleted and truncated in `tables`, as an event per row.

        Each change that is committed from when the slot was made comes once, in the order of the
        commits, also after any of the two sides was away. The server keeps its log until the changes
        are in the store.

        - `tables`: their names, with the schema if the user's `search_path` does not have it. Each
          needs a primary key, or REPLICA IDENTITY FULL.
        - `snapshot`: begin with the rows that are there when the slot is made, without a gap or an
          overlap. One that is broken off is begun anew.
        - `slot`: the name of the replication slot, and of the publication with the tables: both are
          made if they are missing. `blacksmith_<source>_<event>` by default. Another name than
          before begins anew.

        The remaining arguments are those of `Source.event`. Listening raises, and is tried again,
        `Unavailable` when the database does not respond, `SettingsError` and `DeclarationError` with
        what the server, its user or a table lacks, `ChangesLost` when the slot is gone.

        Raises `DeclarationError`.
        """
        where = f"{self.name}/{name}"
        if isinstance(tables, str) or not tables or not all(tables):
            raise DeclarationError(
                f"{where}: tables={tables!r}: name one or several, as in tables=['public.customers']"
            )
        named = f"blacksmith_{self.name}_{name}" if slot is None else slot
        if not _SLOT.fullmatch(named):
            raise DeclarationError(
                f"{where}: the slot {named!r}: name it with slot=, by up to 63 lower-case letters, "
                "digits and underscores"
            )

        def listen(listener: Listener) -> Iterator[Event[Change]]:
            _check_driver(where)
            from blacksmith_dagster.sources.postgres.streams import ChangeStream

            return ChangeStream(where, self.url, tuple(tables), named, snapshot).listen(listener)

        listen.__doc__ = f"The changes of {', '.join(tables)}, by the replication slot {named}."
        return self.event(CDC(), name=name, **own)(listen)

    def notifications(
        self, name: str, *, channel: str, **own: Unpack[Properties]
    ) -> SourceEvent[Notification, Listener, Iterable[Event[Notification]]]:
        """What is sent by NOTIFY on `channel` while someone listens: nothing is kept at the server.

        The remaining arguments are those of `Source.event`. Listening raises, and is tried again,
        `Unavailable` when the database does not respond, and `SettingsError` for a URL that cannot be
        read.

        >>> crm = PostgresSource("crm", url=Secret("CRM_URL"))
        >>> alerts = crm.notifications("alerts", channel="alerts")

        Raises `DeclarationError`.
        """
        where = f"{self.name}/{name}"
        if not 0 < len(channel.encode()) <= _LONGEST_CHANNEL:
            raise DeclarationError(
                f"{where}: channel={channel!r}: PostgreSQL's channels have names of 1 to "
                f"{_LONGEST_CHANNEL} bytes"
            )

        def listen(listener: Listener) -> Iterator[Event[Notification]]:
            _check_driver(where)
            from blacksmith_dagster.sources.postgres.streams import Channel

            return Channel(where, self.url, channel).listen(listener)

        listen.__doc__ = f"What is notified on the channel {channel}."
        return self.event(CDC(), name=name, **own)(listen)


def _check_driver(where: str) -> None:
    if find_spec("psycopg") is None:
        raise ImportError(
            f"{where} listens to PostgreSQL, which needs psycopg: "
            "pip install 'blacksmith-dagster[postgres]'"
        )
