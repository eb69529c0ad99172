"""The store: events and jobs in a database, as a log and a queue."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from blacksmith_dagster.errors import SequenceWentBack
from blacksmith_dagster.store import maintenance, schema, tables
from blacksmith_dagster.store.counts import Counts
from blacksmith_dagster.store.database import Database
from blacksmith_dagster.store.history import History
from blacksmith_dagster.store.loads import Loads
from blacksmith_dagster.store.log import Log
from blacksmith_dagster.store.quarantine import Quarantine
from blacksmith_dagster.store.replays import Replays

if TYPE_CHECKING:
    from blacksmith_dagster.pipeline.application import Blacksmith


class Store:
    """A store, in six parts over one database. Threads may share it.

    - `log`: appends events with their jobs; reads and purges them.
    - `loads`: claims jobs, and records what became of them.
    - `replays`: plans what is loaded again.
    - `quarantine`: requests that could not be ingested.
    - `history`: every transition of a job.
    - `counts`: how many jobs are in each state, and when some are due.

    Every call is one transaction, or a few short ones. Any may raise `Unavailable`, when the database
    does not respond and nothing was changed. Those that write may raise `OutcomeUnknown`, when the
    connection broke during the commit.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.log = Log(database)
        self.loads = Loads(database)
        self.replays = Replays(database)
        self.quarantine = Quarantine(database)
        self.history = History(database)
        self.counts = Counts(database)

    @property
    def label(self) -> str:
        """The store's URL without credentials, for messages."""
        return self.database.label

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    def ready(self) -> None:
        """Check that the store can accept events now.

        Raises `SchemaOutdated`, `SequenceWentBack` or `Unavailable`.
        """
        with self.database.reading() as conn:
            schema.check_version(conn, self.label)  # another process may have upgraded it
        self.database.read_names()  # another process may have begun a new epoch
        with self.database.reading() as conn:
            highest, last = maintenance.highest_seq(conn), self.database.sequence(conn)
        if last < highest:
            raise SequenceWentBack(
                f"{self.label}: its sequence is at {last}, but {highest} was used already; was the "
                "store restored or promoted? Run `blacksmith store repair`: it moves the sequence past "
                "the numbers used and begins a new epoch of ids"
            )

    def register(self, app: Blacksmith) -> None:
        """Add the application's event types and destination events; rename those with `renamed_from`.

        Every process calls it at its start; several may do so at once.
        """
        with self.database.writing() as conn:
            maintenance.register(conn, app)
        self.database.read_names()

    def repair(self) -> str:
        """Repair a restored or promoted store: move the sequence past every number used, and begin a new
        epoch, so that no new event gets the id of a lost one. Returns the epoch."""
        database, epoch = self.database, secrets.token_hex(4)
        with database.writing() as conn:
            last = max(maintenance.highest_seq(conn), database.sequence(conn))
            database.set_sequence(conn, last + 1)
            values = {"first_seq": last + 2, "epoch": epoch, "began_at": database.now(conn)}
            conn.execute(tables.epochs.insert(), values)
        database.read_names()
        return epoch

    def maintain(self) -> None:
        """Do the regular maintenance: add a row per minute to the time index, update the totals, create
        table partitions ahead, and delete keys older than 7 days. The gateway calls it every few
        seconds."""
        maintenance.maintain(self.database)
