"""Who may send to a source: by token, by network, and from pages of which other sites."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Protocol, TypeAlias

from blacksmith_dagster.errors import DeclarationError, MissingSecret, SettingsError, Unauthorized
from blacksmith_dagster.redaction import Secret

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_HASHED = "sha256:"
_HASH = re.compile(r"[0-9a-fA-F]{64}")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?")


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


@dataclass(frozen=True, slots=True)
class CORS:
    """The sites whose pages a browser lets send to a source (Cross-Origin Resource Sharing).

    - `origins`: as browsers send them, scheme, host and port: `https://shop.example`; `'*'` for all.
    - `max_age`: for how many seconds a browser may remember the response (600).

    Cookies are never asked for. Any header may be sent. It keeps nobody out who is no browser: that is
    what `auth` is for.

    >>> CORS(origins=["https://shop.example"]).max_age
    600

    Raises `DeclarationError`.
    """

    origins: Sequence[str]
    max_age: int = 600

    def __post_init__(self) -> None:
        origins = self.origins
        if isinstance(origins, str) or not isinstance(origins, Sequence) or not origins:
            raise DeclarationError(
                f"CORS(origins={origins!r}): write a list, as in origins=['https://shop.example']"
            )
        for origin in origins:
            if origin != "*" and not (isinstance(origin, str) and _ORIGIN.fullmatch(origin)):
                raise DeclarationError(
                    f"CORS(origins=...): {origin!r} is no origin as browsers send it; write scheme, "
                    "host in lower case, and port if it is another than the scheme's, without a "
                    "slash at the end: 'https://shop.example'; or '*' for all"
                )
        if not (isinstance(self.max_age, int) and self.max_age >= 0):
            raise DeclarationError(f"CORS(max_age={self.max_age!r}): a whole number of seconds")


def checked_networks(what: str, networks: Sequence[str] | None) -> tuple[Network, ...] | None:
    """The networks that are declared; `None` if none are.

    >>> checked_networks("source 'crm': networks", ["192.0.2.0/24", "2001:db8::1"])
    (IPv4Network('192.0.2.0/24'), IPv6Network('2001:db8::1/128'))

    Raises `DeclarationError`.
    """
    if networks is None:
        return None
    if isinstance(networks, str) or not isinstance(networks, Sequence) or not networks:
        raise DeclarationError(
            f"{what}={networks!r}: write a list of networks, as in ['192.0.2.0/24', '2001:db8::/32']; "
            "everyone is ['0.0.0.0/0', '::/0']"
        )
    found = []
    for network in networks:
        try:
            found.append(ipaddress.ip_network(network))
        except ValueError as error:
            raise DeclarationError(
                f"{what}: {network!r} is no network: {error}; write '192.0.2.0/24', '2001:db8::/32', "
                "or an address"
            ) from error
    return tuple(found)


@lru_cache(maxsize=4096)
def is_within(networks: tuple[Network, ...], host: str) -> bool:
    """Whether an address is of one of the networks; what is no address is of none.

    >>> is_within(checked_networks("networks", ["192.0.2.0/24"]), "::ffff:192.0.2.7")
    True
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # As a socket for both families shows an address of the older one.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in networks)


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
