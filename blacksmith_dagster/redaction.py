"""A value that is read from the environment when it is first needed, and never printed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from blacksmith_dagster.errors import DeclarationError, MissingSecret, hide

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Secret:
    """The value of the environment variable `name`.

    Once revealed, it is cut out of the errors that jobs and requests are kept with.

    A declaration holds the name alone, so that a process that does not use the secret needs not
    have it: the gateway never needs a destination's.

    >>> Secret("WAREHOUSE_URL")
    Secret('WAREHOUSE_URL')

    Raises `DeclarationError` if `name` cannot be a variable's.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _VARIABLE.fullmatch(self.name):
            raise DeclarationError(
                "Secret(...) is given the name of an environment variable, letters, digits and "
                "underscores, never the secret itself; what it was given is not repeated here"
            )

    def read(self) -> str | None:
        """The secret's value, or `None` when the environment variable is not set or empty.

        Unlike a revealed one it is not cut out of errors: for what is compared and let go.
        """
        return os.environ.get(self.name) or None

    def reveal(self) -> str:
        """The secret's value.

        Raises `MissingSecret` when the environment variable is not set or empty.
        """
        value = self.read()
        if value is None:
            raise MissingSecret(self.name)
        hide(value)
        return value

    def __repr__(self) -> str:
        return f"Secret({self.name!r})"
