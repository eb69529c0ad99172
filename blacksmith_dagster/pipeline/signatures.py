"""Who may send to a source: those who sign what they send."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple, NoReturn

from blacksmith_dagster.errors import DeclarationError, SettingsError, Unauthorized
from blacksmith_dagster.pipeline.access import checked_secrets, in_use
from blacksmith_dagster.pipeline.validation import duration
from blacksmith_dagster.redaction import Secret

TOLERANCE = "5m"

_ALGORITHMS = ("sha1", "sha256", "sha384", "sha512")
_DECODERS = {"hex": binascii.unhexlify, "base64": binascii.a2b_base64}
_HEADER = re.compile(r"[A-Za-z0-9-]+")
_SECONDS = re.compile(rb"[0-9]{1,12}")
_LONGEST = timedelta(days=7)  # keys are kept as long: an older repetition would be a new event
_STANDARD_PREFIX = "whsec_"


class _SignatureHeaders(NamedTuple):
    """What a request's headers say of its signature.

    - `before`: what is signed before the body.
    - `signatures`: those given, decoded; one of them must be right.
    - `timestamp`: in seconds, if the scheme has one.
    - `key`: what the sender calls the request, if the scheme has that.
    """

    before: bytes
    signatures: Sequence[bytes]
    timestamp: int | None = None
    key: str | None = None


class _Signature(ABC):
    """What the schemes share: a claim in the headers, and a keyed hash that proves it."""

    secrets: tuple[Secret, ...]
    tolerance: str
    header: str
    algorithm = "sha256"

    def __init__(self, *secrets: Secret, tolerance: str = TOLERANCE) -> None:
        what = type(self).__name__
        _set(
            self,
            secrets=checked_secrets(what, secrets),
            tolerance=_checked_tolerance(what, tolerance),
        )

    def check(self) -> None:
        """Raises `SettingsError` for a secret that cannot be one, `MissingSecret` for none."""
        for secret, value in in_use(self.secrets):
            self._key(secret, value)

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        sent = self._claim(headers).timestamp
        if sent is None:
            return
        late = time.time() - sent
        if abs(late) > _seconds_of(self.tolerance):
            self._reject(
                f"the signature's timestamp is {abs(late):.0f} seconds "
                f"{'old' if late > 0 else 'ahead'}, and {self.tolerance} are tolerated; sign it when "
                "it is sent, by a clock that is right"
            )

    def verify(self, headers: Mapping[bytes, bytes], body: bytes) -> str | None:
        claim = self._claim(headers)
        content = claim.before + body
        genuine = False
        for secret, value in in_use(self.secrets):
            expected = hmac.digest(self._key(secret, value), content, self.algorithm)
            for given in claim.signatures:
                genuine |= hmac.compare_digest(expected, given)
        if not genuine:
            self._reject(
                f"the signature in {self.header} is not that of this body under a secret that this "
                "source knows; sign the very bytes that are sent, with a present secret"
            )
        if claim.key is None and claim.timestamp is not None:
            # Of what is signed, not of a signature: two secrets may have signed the same.
            return sha256(content).hexdigest()
        return claim.key

    @abstractmethod
    def _claim(self, headers: Mapping[bytes, bytes]) -> _SignatureHeaders:
        """What the headers say; rejects those that say too little."""

    def _key(self, secret: Secret, value: str) -> bytes:  # noqa: ARG002
        return value.encode()

    def _header(self, headers: Mapping[bytes, bytes], name: str) -> bytes:
        given = headers.get(name.lower().encode())
        if not given:
            self._reject(
                f"this source accepts signed requests only, and {name} is missing; send it"
            )
        return given

    def _seconds(self, given: bytes, name: str) -> int:
        if not _SECONDS.fullmatch(given):
            self._reject(f"the timestamp in {name} is no whole number of seconds since 1970")
        return int(given)

    def _reject(self, why: str) -> NoReturn:
        raise Unauthorized(why, f'Signature header="{self.header}"')


@dataclass(frozen=True, init=False)
class HMACSignature(_Signature):
    """A keyed hash (RFC 2104) of the body, in a header of the sender's own.

    - `header`: where the signature is. `prefix` stands before it there, and is not a part of it.
    - `algorithm`: 'sha1', 'sha256' (the default), 'sha384' or 'sha512'.
    - `encoding`: of the signature, 'hex' (the default) or 'base64'.
    - `timestamp_header`: where the seconds since 1970 are at which it was signed, if they are signed
      too: then a request older than `tolerance` ('5m', of both directions) is rejected, and one that
      is sent again within it makes no second event.
    - `signed`: what is signed: '{body}', or '{timestamp}.{body}' with a `timestamp_header`, unless
      it is written otherwise here.

    Without a timestamp nothing tells a request that is sent again from another with the same body:
    give such events a key of their own, from something in the body.

    The secrets are used as they are, encoded as UTF-8; each is tried, those not set are out of use.

    >>> HMACSignature(Secret("SHOP_SECRET"), header="X-Shop-Signature", encoding="base64").algorithm
    'sha256'

    Raises `DeclarationError`.
    """

    secrets: tuple[Secret, ...]
    header: str
    algorithm: str
    encoding: str
    prefix: str
    timestamp_header: str | None
    signed: str
    tolerance: str

    def __init__(
        self,
        *secrets: Secret,
        header: str,
        algorithm: str = "sha256",
        encoding: str = "hex",
        prefix: str = "",
        timestamp_header: str | None = None,
        signed: str | None = None,
        tolerance: str = TOLERANCE,
    ) -> None:
        what = type(self).__name__
        if signed is None:
            signed = "{timestamp}.{body}" if timestamp_header else "{body}"
        for name in (header, timestamp_header):
            if name is not None and not (isinstance(name, str) and _HEADER.fullmatch(name)):
                raise DeclarationError(
                    f"{what}: {name!r} is no header's name; write letters, digits and '-', as in "
                    "'X-Signature'"
                )
        if algorithm not in _ALGORITHMS or encoding not in _DECODERS:
            raise DeclarationError(
                f"{what}(algorithm={algorithm!r}, encoding={encoding!r}): write one of "
                f"{', '.join(_ALGORITHMS)}, and one of {', '.join(_DECODERS)}"
            )
        before, body, after = signed.partition("{body}")
        timed = before.count("{timestamp}")
        if not body or after or timed != (timestamp_header is not None):
            raise DeclarationError(
                f"{what}(signed={signed!r}, timestamp_header={timestamp_header!r}): what is signed "
                "ends with '{body}', and has '{timestamp}' once if there is a timestamp_header"
            )
        _set(
            self,
            secrets=checked_secrets(what, secrets),
            header=header,
            algorithm=algorithm,
            encoding=encoding,
            prefix=prefix,
            timestamp_header=timestamp_header,
            signed=signed,
            tolerance=_checked_tolerance(what, tolerance),
        )

    def _claim(self, headers: Mapping[bytes, bytes]) -> _SignatureHeaders:
        given = self._header(headers, self.header)
        prefix = self.prefix.encode()
        signatures = _decoded(self.encoding, [given.removeprefix(prefix)])
        if not signatures or not given.startswith(prefix):
            self._reject(f"{self.header} is not '{self.prefix}' and a signature in {self.encoding}")
        before = self.signed.removesuffix("{body}").encode()
        if self.timestamp_header is None:
            return _SignatureHeaders(before, signatures)
        sent = self._header(headers, self.timestamp_header)
        seconds = self._seconds(sent, self.timestamp_header)
        return _SignatureHeaders(before.replace(b"{timestamp}", sent), signatures, seconds)


class GitHubSignature(HMACSignature):
    """GitHub's: the body's HMAC-SHA256 in `X-Hub-Signature-256`.

    The delivery's id, `X-GitHub-Delivery`, is not signed: who has got hold of a signed request can
    send it again under another. Take the key from the body where that matters.

    >>> GitHubSignature(Secret("GITHUB_SECRET")).header
    'X-Hub-Signature-256'

    Raises `DeclarationError`.
    """

    def __init__(self, *secrets: Secret) -> None:
        super().__init__(*secrets, header="X-Hub-Signature-256", prefix="sha256=")


class SlackSignature(HMACSignature):
    """Slack's: `v0=` and an HMAC-SHA256 in `X-Slack-Signature`, of the timestamp and the body.

    >>> SlackSignature(Secret("SLACK_SIGNING_SECRET")).tolerance
    '5m'

    Raises `DeclarationError`.
    """

    def __init__(self, *secrets: Secret, tolerance: str = TOLERANCE) -> None:
        super().__init__(
            *secrets,
            header="X-Slack-Signature",
            prefix="v0=",
            timestamp_header="X-Slack-Request-Timestamp",
            signed="v0:{timestamp}:{body}",
            tolerance=tolerance,
        )


@dataclass(frozen=True, init=False)
class StripeSignature(_Signature):
    """Stripe's: `Stripe-Signature: t=<seconds>,v1=<hex>`, of the timestamp and the body.

    While Stripe rolls a secret it signs with both, and one `v1` that is right is enough.

    >>> StripeSignature(Secret("STRIPE_SECRET"), tolerance="10m").tolerance
    '10m'

    Raises `DeclarationError`.
    """

    secrets: tuple[Secret, ...]
    tolerance: str
    header = "Stripe-Signature"

    def _claim(self, headers: Mapping[bytes, bytes]) -> _SignatureHeaders:
        parts = [
            part.strip().partition(b"=") for part in self._header(headers, self.header).split(b",")
        ]
        signatures = _decoded("hex", [value for name, _, value in parts if name == b"v1"])
        sent = [value for name, _, value in parts if name == b"t"]
        if len(sent) != 1 or not signatures:
            self._reject(f"{self.header} is not t=<seconds>,v1=<hexadecimal signature>")
        seconds = self._seconds(sent[0], self.header)
        return _SignatureHeaders(sent[0] + b".", signatures, seconds)


@dataclass(frozen=True, init=False)
class StandardWebhooksSignature(_Signature):
    """That of Standard Webhooks: `webhook-id`, `webhook-timestamp` and `webhook-signature`.

    The id is signed, and is the request's idempotency key: whoever sends it again, at whatever time,
    makes no second event. For senders of your own it is the one to choose.

    The secrets are in base64, with `whsec_` before or without.

    >>> StandardWebhooksSignature(Secret("SHOP_WEBHOOK_SECRET")).header
    'webhook-signature'

    Raises `DeclarationError`.
    """

    secrets: tuple[Secret, ...]
    tolerance: str
    header = "webhook-signature"

    def _claim(self, headers: Mapping[bytes, bytes]) -> _SignatureHeaders:
        id_ = self._header(headers, "webhook-id")
        sent = self._header(headers, "webhook-timestamp")
        parts = [part.partition(b",") for part in self._header(headers, self.header).split()]
        signatures = _decoded("base64", [value for name, _, value in parts if name == b"v1"])
        if not signatures:
            self._reject(f"{self.header} has no v1,<base64 signature>")
        seconds = self._seconds(sent, "webhook-timestamp")
        return _SignatureHeaders(
            b"%s.%s." % (id_, sent), signatures, seconds, id_.decode("latin-1")
        )

    def _key(self, secret: Secret, value: str) -> bytes:
        text = value.removeprefix(_STANDARD_PREFIX).rstrip("=")
        try:
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except ValueError:
            key = b""
        if not key:
            raise SettingsError(
                f"{secret.name} is no secret of Standard Webhooks: {_STANDARD_PREFIX} and base64"
            )
        return key


def _decoded(encoding: str, given: Iterable[bytes]) -> list[bytes]:
    """Those of the signatures that can be decoded."""
    found = []
    for each in given:
        try:
            found.append(_DECODERS[encoding](each))
        except ValueError:
            continue
    return found


@lru_cache(maxsize=64)
def _seconds_of(tolerance: str) -> float:
    return duration("tolerance", tolerance).total_seconds()


def _checked_tolerance(what: str, tolerance: str) -> str:
    if duration(f"{what}: tolerance", tolerance) > _LONGEST:
        raise DeclarationError(
            f"{what}: tolerance={tolerance!r}: write {_LONGEST.days}d at most; what is older than the "
            "keys that are kept would be accepted again"
        )
    return tolerance


def _set(record: object, **fields: Any) -> None:
    for name, value in fields.items():
        object.__setattr__(record, name, value)
