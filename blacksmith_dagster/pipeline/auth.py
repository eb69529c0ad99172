"""Who may send to a source."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from blacksmith_dagster.errors import DeclarationError, SettingsError
from blacksmith_dagster.pipeline.secret import Secret


@dataclass(frozen=True, slots=True)
class Bearer:
    """A bearer token: `Authorization: Bearer <token>` (RFC 6750, section 2.1).

    >>> Bearer(Secret("AIRPORT_TOKEN"))
    Bearer(token=Secret('AIRPORT_TOKEN'))

    Raises `DeclarationError` for a token that is no `Secret`.
    """

    token: Secret

    def __post_init__(self) -> None:
        if not isinstance(self.token, Secret):
            raise DeclarationError(
                "Bearer(...) takes a Secret: put the token into an environment variable and write "
                "Bearer(Secret('ITS_NAME')); what it was given is not repeated here"
            )

    def check(self) -> None:
        """Raises `SettingsError` for a token that no header can carry, `MissingSecret` for none."""
        token = self.token.reveal()
        if token != token.strip() or not token.isprintable():
            raise SettingsError(
                f"the token in {self.token.name} begins or ends with a space or a line break, or has "
                "a control character, and no Authorization header matches it; set it without"
            )

    def allows(self, authorization: str | None) -> bool:
        """Whether the header's value carries the token; compared in constant time.

        Raises `MissingSecret` when the token's environment variable is not set.
        """
        scheme, _, given = (authorization or "").partition(" ")
        expected = self.token.reveal().encode()
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), expected)
