"""From LISTEN to what is notified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from psycopg.sql import SQL, Identifier

from blacksmith_dagster.pipeline.event import Event
from blacksmith_dagster.pipeline.triggers import Listener
from blacksmith_dagster.redaction import Secret
from blacksmith_dagster.sources.postgres.change import Notification
from blacksmith_dagster.sources.postgres.session import ListenerStopped, Session, SourceDatabase

_TICK = 0.5


@dataclass(frozen=True, slots=True)
class Channel:
    """What is notified on a channel of a database."""

    where: str
    url: Secret | str
    channel: str

    def listen(self, listener: Listener) -> Iterator[Event[Notification]]:
        """Yield what is notified from now on, until the listener is asked to stop.

        Raises `SettingsError`, `Unavailable`.
        """
        database = SourceDatabase(self.where, self.url)
        try:
            with database.translate_errors(), closing(Session(database, listener)) as session:
                session.execute(SQL("LISTEN {}").format(Identifier(self.channel)))
                while not listener.stopping:
                    for heard in session.connection.notifies(timeout=_TICK):
                        yield Event(Notification(heard.channel, heard.payload, heard.pid))
        except ListenerStopped:
            return
