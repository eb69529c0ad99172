"""A value that is read from the environment when it is first needed, and never printed."""

from __future__ import annotations

import os
from dataclasses import dataclass

from blacksmith_dagster.errors import MissingSecret, hide


@dataclass(frozen=True, slots=True)
class Secret:
    """The value of the environment variable `name`.

    Once revealed, it is cut out of the errors that jobs and requests are kept with.

    A declaration holds the name alone, so that a process that does not use the secret needs not
    have it: the gateway never needs a destination's.

    >>> Secret("WAREHOUSE_URL")
    Secret('WAREHOUSE_URL')
    """

    name: str

    def reveal(self) -> str:
        """The secret's value.

        Raises `MissingSecret` when the environment variable is not set or empty.
        """
        value = os.environ.get(self.name)
        if not value:
            raise MissingSecret(self.name)
        hide(value)
        return value

    def __repr__(self) -> str:
        return f"Secret({self.name!r})"
