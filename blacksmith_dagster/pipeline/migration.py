"""Migrations of a source, a destination or one of their events: up, and down again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

from blacksmith_dagster.errors import DeclarationError, MigrationError

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_NO_TRANSACTION = re.compile(r"^\s*--\s*blacksmith:\s*no transaction\s*$", re.MULTILINE)


class Direction(Enum):
    """Which way a migration goes."""

    UP = "up"
    DOWN = "down"


Step: TypeAlias = "Callable[..., None] | str | Path"
"""What a migration runs: a function, SQL, or a file of SQL."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One change of a target's schema.

    - `version`: when it was written, as the number YYYYMMDDHHMMSS; migrations run in this order.
    - `name`: letters, digits, `_` and `-`.
    - `up`, `down`: a function, SQL, or the path of an SQL file; without `down` it cannot be rolled back.
      The `migrate` method of its source or destination defines a function's arguments.

    >>> Migration(20260131120000, "add_gate", up="ALTER TABLE flights ADD COLUMN gate TEXT").down

    Raises `DeclarationError`.
    """

    version: int
    name: str
    up: Step
    down: Step | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise DeclarationError(
                f"migration {self.name!r}: a name is letters, digits, '_' and '-'; rename it, to "
                "'add_gate' for example"
            )
        if not is_version(self.version):
            raise DeclarationError(
                f"migration {self.name!r}: version={self.version!r}: write the time it was written, "
                "as in 20260131120000"
            )

    @property
    def checksum(self) -> str | None:
        """The SHA-256 of the SQL of `up`; `None` for a function, which may be rewritten.

        Raises `MigrationError`.
        """
        if callable(self.up):
            return None
        return hashlib.sha256(self.sql(Direction.UP).encode()).hexdigest()

    def step(self, direction: Direction) -> Step:
        """What runs in a direction. Raises `MigrationError` if there is no `down`."""
        step = self.up if direction is Direction.UP else self.down
        if step is None:
            raise MigrationError(f"{self} has no down and cannot be rolled back; write one")
        return step

    def sql(self, direction: Direction) -> str:
        """The SQL that runs in a direction.

        Raises `MigrationError` if there is none: no `down`, a function, a file that is missing,
        empty or not UTF-8.
        """
        step = self.step(direction)
        if isinstance(step, str):
            return step
        if not isinstance(step, Path):
            raise MigrationError(f"{self}: its {direction.value} is a function and has no SQL")
        try:
            text = step.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise MigrationError(
                f"{step} is not UTF-8 (byte {error.start}); save it as UTF-8"
            ) from None
        except OSError as error:
            raise MigrationError(
                f"{step} cannot be read: {error.strerror}; restore the file"
            ) from None
        if not without_comments(text):
            raise MigrationError(
                f"{step} holds no statement; write the migration's {direction.value}, or `SELECT 1;` "
                "if there is nothing to do"
            )
        return text

    def in_transaction(self, direction: Direction) -> bool:
        """Whether it may run in a transaction: its SQL has no line `-- blacksmith: no transaction`."""
        step = self.step(direction)
        return callable(step) or not _NO_TRANSACTION.search(self.sql(direction))

    def __str__(self) -> str:
        return f"{self.version} {self.name}"


Migrations: TypeAlias = "str | Path | Sequence[Migration]"
"""A folder of `YYYYMMDDHHMMSS.name.up.sql` and `.down.sql`, or the migrations themselves. A relative
folder is next to the pyproject.toml that names the application, else in the current folder."""


def is_version(number: Any) -> bool:
    """Whether `number` is a time as YYYYMMDDHHMMSS."""
    text = str(number)
    if not isinstance(number, int) or len(text) != 14:
        return False
    try:
        datetime.strptime(text, "%Y%m%d%H%M%S")  # noqa: DTZ007 - only checks that it is a time
    except ValueError:
        return False
    return True


def without_comments(sql: str) -> str:
    """`sql` without comments, spaces and semicolons: '' if it does nothing."""
    return re.sub(r"--[^\n]*|/\*.*?\*/|[\s;]+", "", sql, flags=re.DOTALL)


def checked_migrations(where: str, migrations: Migrations | None) -> Path | tuple[Migration, ...]:
    """`migrations=` as a folder or as the migrations; an empty tuple if it is `None`."""
    if migrations is None:
        return ()
    if isinstance(migrations, (str, Path)):
        if not str(migrations).strip():
            raise DeclarationError(
                f"{where}: migrations='' names no folder; name one, or leave migrations= out"
            )
        return Path(migrations)
    listed: Any = migrations
    if not isinstance(listed, Sequence) or not all(isinstance(item, Migration) for item in listed):
        raise DeclarationError(
            f"{where}: migrations={migrations!r}: write a folder, such as 'migrations/warehouse', or a "
            "list of Migration(version, name, up=..., down=...)"
        )
    return tuple(listed)


def run_function(where: str, migration: Migration, direction: Direction, *arguments: Any) -> None:
    """Call a migration's function. Raises `DeclarationError` if the migration is SQL."""
    step = migration.step(direction)
    if not callable(step):
        raise DeclarationError(
            f"{where} does not know how to run the SQL of {migration}; override "
            "migrate(migration, direction), or give functions as its up and down"
        )
    step(*arguments)
