"""Who may send to a source: those who hold a token."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from blacksmith_dagster.errors import DeclarationError, MissingSecret, SettingsError, Unauthorized
from blacksmith_dagster.redaction import Secret

_HASHED = "sha256:"
_HASH = re.compile(r"[0-9a-fA-F]{64}")


class Auth(Protocol):
    """Who may send: it is asked before a request's body is read, and once more when it has come."""

    def check(self) -> None:
        """Read the secrets, at the gateway's start. Raises `SettingsError`, `MissingSecret`."""
        ...

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        """Return if the headers alone (names in lower case) do not forbid the request.

        Raises `Unauthorized`.
        """
        ...

    def verify(self, headers: Mapping[bytes, bytes], body: bytes) -> str | None:
        """Return if the sender has proved who they are; with the idempotency key that the proof
        holds, if it does. It counts in place of the `Idempotency-Key`, which nobody has signed.

        Raises `Unauthorized`.
        """
        ...


@dataclass(frozen=True, slots=True, init=False)
class Bearer:
    """A bearer token: `Authorization: Bearer <token>` (RFC 6750, section 2.1).

    Each of the secrets is accepted, so that a new token can be brought in while the old one is still
    in use; those whose environment variable is not set are out of use, one must be set. A value may
    be `sha256:<hex>`, the hash of the token: then this machine does not know the token itself.
    `blacksmith keys new` makes both.

    >>> Bearer(Secret("AIRPORT_TOKEN"), Secret("AIRPORT_TOKEN_OLD"))
    Bearer(secrets=(Secret('AIRPORT_TOKEN'), Secret('AIRPORT_TOKEN_OLD')))

    Raises `DeclarationError` for a token that is no `Secret`.
    """

    secrets: tuple[Secret, ...]

    def __init__(self, *secrets: Secret) -> None:
        object.__setattr__(self, "secrets", checked_secrets("Bearer", secrets))

    def check(self) -> None:
        """Raises `SettingsError` for a token that no header can carry, `MissingSecret` for none."""
        _check_tokens(self.secrets)

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthorized(
                "this source accepts requests with its token only; send it as "
                "Authorization: Bearer <token>",
                "Bearer",
            )
        if not _is_one_of(self.secrets, given.strip()):
            raise Unauthorized(
                "the bearer token is not one that this source accepts (any more); send a current one",
                'Bearer error="invalid_token"',
            )

    def verify(self, headers: Mapping[bytes, bytes], body: bytes) -> str | None:  # noqa: ARG002
        return None


@dataclass(frozen=True, slots=True, init=False)
class WriteKey:
    """A key as the user name of HTTP basic authentication, without a password (RFC 7617).

    The secrets are those of `Bearer`.

    >>> WriteKey(Secret("SHOP_WRITE_KEY"))
    WriteKey(secrets=(Secret('SHOP_WRITE_KEY'),))

    Raises `DeclarationError` for a key that is no `Secret`.
    """

    secrets: tuple[Secret, ...]

    def __init__(self, *secrets: Secret) -> None:
        object.__setattr__(self, "secrets", checked_secrets("WriteKey", secrets))

    def check(self) -> None:
        """Raises `SettingsError` for a key that no header can carry, `MissingSecret` for none."""
        _check_tokens(self.secrets)

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        user, password = b"", b""
        if scheme.lower() == b"basic":
            try:
                user, _, password = base64.b64decode(given.strip(), validate=True).partition(b":")
            except binascii.Error:
                pass
        if password or not _is_one_of(self.secrets, user):
            raise Unauthorized(
                "this source accepts requests with its write key only; send it as the user name of "
                "basic authentication, with an empty password",
                'Basic realm="write key"',
            )

    def verify(self, headers: Mapping[bytes, bytes], body: bytes) -> str | None:  # noqa: ARG002
        return None


def hashed(token: str) -> str:
    """What stands for a token where the token itself is not to be known.

    >>> hashed("a token")[:15]
    'sha256:e3316e2b'
    """
    return _HASHED + sha256(token.encode()).hexdigest()


def checked_secrets(what: str, secrets: Sequence[Secret]) -> tuple[Secret, ...]:
    """`secrets` if there is one at least, and each is a `Secret`."""
    if not secrets or not all(isinstance(each, Secret) for each in secrets):
        raise DeclarationError(
            f"{what}(...) takes a Secret, or several: put the value into an environment variable and "
            f"write {what}(Secret('ITS_NAME')); what it was given is not repeated here"
        )
    return tuple(secrets)


def in_use(secrets: Sequence[Secret]) -> Iterator[tuple[Secret, str]]:
    """The secrets whose environment variable is set, with their values.

    Raises `MissingSecret` if none is.
    """
    found = False
    for secret in secrets:
        value = secret.read()
        if value is not None:
            found = True
            yield secret, value
    if not found:
        raise MissingSecret(secrets[0].name)


def _check_tokens(secrets: Sequence[Secret]) -> None:
    for secret, token in in_use(secrets):
        if token.startswith(_HASHED) and not _HASH.fullmatch(token, len(_HASHED)):
            raise SettingsError(
                f"{secret.name} begins with {_HASHED} and is no SHA-256: 64 hexadecimal digits "
                "follow; `blacksmith keys new` makes a token with its hash"
            )
        if token != token.strip() or not token.isprintable():
            raise SettingsError(
                f"the token in {secret.name} begins or ends with a space or a line break, or has "
                "a control character, and no Authorization header matches it; set it without"
            )


def _is_one_of(secrets: Sequence[Secret], given: bytes) -> bool:
    """Whether it is, found out in a time that tells nothing of how much of it is right."""
    found = False
    digest = sha256(given).digest()
    for _, token in in_use(secrets):
        if token.startswith(_HASHED):
            expected = bytes.fromhex(token.removeprefix(_HASHED))
        else:
            expected = sha256(token.encode()).digest()
        found |= hmac.compare_digest(digest, expected)
    return found
