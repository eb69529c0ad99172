"""Translates a database's errors.

A driver's message may contain values: only its first line is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from blacksmith_dagster.errors import OutcomeUnknown, StoreError, Unavailable

# psycopg calls these internal errors: a read-only standby, an idle transaction that was ended, and one
# that took too long.
_AWAY = frozenset({"25006", "25P03", "25P04"})


@contextmanager
def translate_errors(label: str) -> Iterator[None]:
    """Raise `Unavailable` when the database does not respond, `StoreError` when it rejects the data."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        if _is_away(error):
            raise Unavailable(
                f"the store {label} does not respond, and nothing was changed: {reason(error)}"
            ) from None
        raise StoreError(f"the store {label} rejected the data: {reason(error)}") from None


def _is_away(error: DBAPIError | PoolTimeout) -> bool:
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _AWAY


@contextmanager
def committing(label: str) -> Iterator[None]:
    """Raise `OutcomeUnknown` when the connection breaks and the server has not reported an abort."""
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated and not getattr(error.orig, "sqlstate", None):
            raise OutcomeUnknown(
                f"the connection to the store {label} broke during a commit, which may or may not have "
                f"happened: {reason(error)}"
            ) from None
        raise


def reason(error: Exception) -> str:
    """The first line of the driver's message."""
    message = str(getattr(error, "orig", None) or error).strip()
    return message.splitlines()[0] if message else type(error).__name__
