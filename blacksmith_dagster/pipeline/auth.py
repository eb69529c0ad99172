"""Who may send to a source."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from blacksmith_dagster.pipeline.secret import Secret


@dataclass(frozen=True, slots=True)
class Bearer:
    """A bearer token: `Authorization: Bearer <token>` (RFC 6750, section 2.1).

    >>> Bearer(Secret("AIRPORT_TOKEN"))
    Bearer(token=Secret('AIRPORT_TOKEN'))
    """

    token: Secret

    def allows(self, authorization: str | None) -> bool:
        """Whether the header's value carries the token; compared in constant time.

        Raises `MissingSecret` when the token's environment variable is not set.
        """
        scheme, _, given = (authorization or "").partition(" ")
        expected = self.token.reveal().encode()
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), expected)
