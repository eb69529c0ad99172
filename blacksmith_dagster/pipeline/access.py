"""Restricts who may send to a source: tokens, networks, and the sites whose pages may send."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Protocol, TypeAlias

from blacksmith_dagster.errors import DeclarationError, MissingSecret, SettingsError, Unauthorized
from blacksmith_dagster.pipeline.validation import Duration, duration
from blacksmith_dagster.redaction import Secret

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_HASHED = "sha256:"
_HASH = re.compile(r"[0-9a-fA-F]{64}")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?")


class Auth(Protocol):
    """Authenticates senders: `admit` runs before a request's body is read, `verify` after."""

    def check(self) -> None:
        """Read the secrets, at the gateway's start. Raises `SettingsError`, `MissingSecret`."""
        ...

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        """Check the headers (names in lower case), and return if they do not rule out the request.

        Raises `Unauthorized`.
        """
        ...

    def verify(self, headers: Mapping[bytes, bytes], body: bytes) -> str | None:
        """Authenticate the sender; returns the signed idempotency key, if there is one.

        That key replaces the `Idempotency-Key` header, which is not signed.

        Raises `Unauthorized`.
        """
        ...


@dataclass(frozen=True, init=False)
class _Token:
    """What the schemes share whose senders know a secret: each of several is accepted."""

    secrets: tuple[Secret, ...]

    def __init__(self, *secrets: Secret) -> None:
        object.__setattr__(self, "secrets", checked_secrets(type(self).__name__, secrets))

    def check(self) -> None:
        """Raises `SettingsError` for one that no header can hold, `MissingSecret` if none is set."""
        for secret, token in in_use(self.secrets):
            if token.startswith(_HASHED) and not _HASH.fullmatch(token, len(_HASHED)):
                raise SettingsError(
                    f"{secret.name} begins with {_HASHED} but is not a SHA-256 of 64 hexadecimal "
                    "digits; run `blacksmith keys new` for a token with its hash"
                )
            check_printable(secret, token)

    def verify(self, headers: Mapping[bytes, bytes], body: bytes) -> str | None:  # noqa: ARG002
        return None

    def _accepts(self, sent: bytes) -> bool:
        """Whether `sent` is a secret, in a time that does not reveal how much of it is right."""
        is_one = False
        digest = sha256(sent).digest()
        for _, token in in_use(self.secrets):
            if token.startswith(_HASHED):
                expected = bytes.fromhex(token.removeprefix(_HASHED))
            else:
                expected = sha256(token.encode()).digest()
            is_one |= hmac.compare_digest(digest, expected)
        return is_one


class Bearer(_Token):
    """A bearer token: `Authorization: Bearer <token>` (RFC 6750, section 2.1).

    Each of the secrets is accepted, so that a new token can be introduced while the old one is still
    in use. Secrets whose environment variable is not set are ignored; at least one must be set. A value
    may be `sha256:<hex>`, the hash of the token: then this machine does not know the token itself.
    `blacksmith keys new` creates both.

    >>> Bearer(Secret("AIRPORT_TOKEN"), Secret("AIRPORT_TOKEN_OLD"))
    Bearer(secrets=(Secret('AIRPORT_TOKEN'), Secret('AIRPORT_TOKEN_OLD')))

    Raises `DeclarationError` for a token that is not a `Secret`.
    """

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthorized(
                "this source requires its token; send it as Authorization: Bearer <token>",
                "Bearer",
            )
        if not self._accepts(credentials.strip()):
            raise Unauthorized(
                "this source does not accept the bearer token, or no longer does; send a current one",
                'Bearer error="invalid_token"',
            )


class WriteKey(_Token):
    """A key as the user name of HTTP basic authentication, without a password (RFC 7617).

    The secrets follow the same rules as those of `Bearer`.

    >>> WriteKey(Secret("SHOP_WRITE_KEY"))
    WriteKey(secrets=(Secret('SHOP_WRITE_KEY'),))

    Raises `DeclarationError` for a key that is not a `Secret`.
    """

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
        user, password = b"", b""
        if scheme.lower() == b"basic":
            try:
                user, _, password = base64.b64decode(credentials.strip(), validate=True).partition(
                    b":"
                )
            except binascii.Error:
                pass
        if password or not self._accepts(user):
            raise Unauthorized(
                "this source requires its write key; send it as the user name of "
                "basic authentication, with an empty password",
                'Basic realm="write key"',
            )


@dataclass(frozen=True, slots=True)
class CORS:
    """The sites whose pages a browser lets send to a source (Cross-Origin Resource Sharing).

    - `origins`: scheme, host and port as browsers send them (`https://shop.example`); `'*'` for all.
    - `max_age`: how long a browser may cache the response to its preflight request ('10m').

    Cookies are never requested. Any header may be sent. CORS restricts only browsers: use `auth` against
    other clients.

    >>> CORS(origins=["https://shop.example"]).max_age
    '10m'

    Raises `DeclarationError`.
    """

    origins: Sequence[str]
    max_age: Duration = "10m"

    def __post_init__(self) -> None:
        origins = self.origins
        if isinstance(origins, str) or not isinstance(origins, Sequence) or not origins:
            raise DeclarationError(
                f"CORS(origins={origins!r}): write a list, as in origins=['https://shop.example']"
            )
        for origin in origins:
            if origin != "*" and not (isinstance(origin, str) and _ORIGIN.fullmatch(origin)):
                raise DeclarationError(
                    f"CORS(origins=...): {origin!r} is not an origin as browsers send it; write scheme, "
                    "host in lower case, and port unless it is the scheme's default, without a "
                    "trailing slash: 'https://shop.example'; or '*' for all"
                )
        duration("CORS: max_age", self.max_age, least=timedelta(0))


def checked_networks(what: str, networks: Sequence[str] | None) -> tuple[Network, ...] | None:
    """`networks` parsed; `None` if it is `None`.

    >>> checked_networks("source 'crm': networks", ["192.0.2.0/24", "2001:db8::1"])
    (IPv4Network('192.0.2.0/24'), IPv6Network('2001:db8::1/128'))

    Raises `DeclarationError`.
    """
    if networks is None:
        return None
    if isinstance(networks, str) or not isinstance(networks, Sequence) or not networks:
        raise DeclarationError(
            f"{what}={networks!r}: write a list of networks, as in ['192.0.2.0/24', '2001:db8::/32']; "
            "use ['0.0.0.0/0', '::/0'] to allow every address"
        )
    parsed = []
    for network in networks:
        try:
            parsed.append(ipaddress.ip_network(network))
        except ValueError as error:
            raise DeclarationError(
                f"{what}: {network!r} is not a network: {error}; write '192.0.2.0/24', '2001:db8::/32', "
                "or an address"
            ) from error
    return tuple(parsed)


@lru_cache(maxsize=4096)
def is_within(networks: tuple[Network, ...], host: str) -> bool:
    """Whether `host` is an address in one of the networks.

    >>> is_within(checked_networks("networks", ["192.0.2.0/24"]), "::ffff:192.0.2.7")
    True
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # A socket for both IPv4 and IPv6 shows an IPv4 address as a mapped IPv6 address.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in networks)


def hashed(token: str) -> str:
    """The hash that a secret may hold instead of the token itself.

    >>> hashed("a token")[:15]
    'sha256:e3316e2b'
    """
    return _HASHED + sha256(token.encode()).hexdigest()


def checked_secrets(what: str, secrets: Sequence[Secret]) -> tuple[Secret, ...]:
    """`secrets` if there is at least one, and all are `Secret`s; else raises `DeclarationError`."""
    if not secrets or not all(isinstance(secret, Secret) for secret in secrets):
        raise DeclarationError(
            f"{what}(...) takes a Secret, or several: put the value into an environment variable and "
            f"write {what}(Secret('ITS_NAME')); the argument is not repeated here"
        )
    return tuple(secrets)


def check_printable(secret: Secret, value: str) -> None:
    """Raise `SettingsError` for a value that no sender uses, as with a line break at its end."""
    if value != value.strip() or not value.isprintable():
        raise SettingsError(
            f"the secret in {secret.name} begins or ends with a space or a line break, or has a control "
            "character, so nothing that its sender sends can match it; remove these characters"
        )


def in_use(secrets: Sequence[Secret]) -> Iterator[tuple[Secret, str]]:
    """The secrets whose environment variable is set, with their values.

    Raises `MissingSecret` if none is set.
    """
    any_is_set = False
    for secret in secrets:
        value = secret.read()
        if value is not None:
            any_is_set = True
            yield secret, value
    if not any_is_set:
        raise MissingSecret(secrets[0].name)
