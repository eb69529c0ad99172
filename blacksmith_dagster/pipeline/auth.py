"""Who may send to a source."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from blacksmith_dagster.errors import DeclarationError, NotAllowed, SettingsError
from blacksmith_dagster.pipeline.secret import Secret


class Auth(Protocol):
    """Who may send: it is asked before a request's body is read, and once more when it has come."""

    def check(self) -> None:
        """Read the secrets, at the gateway's start. Raises `SettingsError`, `MissingSecret`."""
        ...

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        """Return if the headers alone (names in lower case) do not forbid the request.

        Raises `NotAllowed`.
        """
        ...

    def verify(self, headers: Mapping[bytes, bytes], body: bytes) -> str | None:
        """Return if the sender has proved who they are; with the idempotency key that the proof
        holds, if it does and the request has none of its own.

        Raises `NotAllowed`.
        """
        ...


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

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        expected = self.token.reveal().encode()
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), expected):
            raise NotAllowed(
                "this source takes requests with its token alone; send it as "
                "Authorization: Bearer <token>"
            )

    def verify(self, headers: Mapping[bytes, bytes], body: bytes) -> str | None:  # noqa: ARG002
        return None
