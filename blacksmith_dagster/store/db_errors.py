"""A database's errors as ours. A driver's message may hold values: only its first line is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from blacksmith_dagster.errors import OutcomeUnknown, StoreError, Unavailable

_AWAY = frozenset({"25006", "25P03", "25P04"})


@contextmanager
def translate_errors(label: str) -> Iterator[None]:
    """Raise `Unavailable` when the database does not respond, `StoreError` when it refuses the data."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        if _is_away(error):
            raise Unavailable(
                f"the store {label} does not respond, and nothing was changed: {reason(error)}"
            ) from None
        raise StoreError(f"the store {label} refused: {reason(error)}") from None


def _is_away(error: DBAPIError | PoolTimeout) -> bool:
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    # What psycopg calls internal errors: a standby that only reads, a pause that was too long.
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _AWAY


@contextmanager
def committing(label: str) -> Iterator[None]:
    """Raise `OutcomeUnknown` when the connection breaks and the server has not said that it aborted."""
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated and not getattr(error.orig, "sqlstate", None):
            raise OutcomeUnknown(
                f"the connection to the store {label} broke during a commit, which may have happened "
                f"or not: {reason(error)}"
            ) from None
        raise


def reason(error: Exception) -> str:
    """The first line of what the driver said."""
    said = str(getattr(error, "orig", None) or error).strip()
    return said.splitlines()[0] if said else type(error).__name__
