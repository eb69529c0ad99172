"""Restricts who may send to a source: signatures of requests."""

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
from hashlib import sha256
from typing import Any, NamedTuple, NoReturn

from blacksmith_dagster.errors import DeclarationError, SettingsError, Unauthorized
from blacksmith_dagster.pipeline.access import check_printable, checked_secrets, in_use
from blacksmith_dagster.pipeline.validation import Duration, duration, seconds
from blacksmith_dagster.redaction import Secret

TOLERANCE = "5m"

_ALGORITHMS = ("sha1", "sha256", "sha384", "sha512")
_DECODERS = {"hex": binascii.unhexlify, "base64": binascii.a2b_base64}
_HEADER = re.compile(r"[A-Za-z0-9-]+")
_SECONDS = re.compile(rb"[0-9]{1,12}")
_LONGEST = timedelta(days=7)  # how long keys are stored: an older repetition would be a new event
_STANDARD_PREFIX = "whsec_"


class _SignatureHeaders(NamedTuple):
    """The signature in a request's headers.

    - `before`: the bytes that are signed before the body.
    - `signatures`: decoded; one of them must be right.
    - `timestamp`: in seconds, if the scheme has one.
    - `key`: the sender's id of the request, if the scheme has one.
    """

    before: bytes
    signatures: Sequence[bytes]
    timestamp: int | None = None
    key: str | None = None


@dataclass(frozen=True, init=False)
class Signature(ABC):
    """What the schemes share: a signature in the headers, checked with a keyed hash (HMAC)."""

    secrets: tuple[Secret, ...]
    tolerance: Duration
    header: str
    algorithm: str = "sha256"

    def __init__(self, *secrets: Secret, tolerance: Duration = TOLERANCE) -> None:
        what = type(self).__name__
        if duration(f"{what}: tolerance", tolerance) > _LONGEST:
            raise DeclarationError(
                f"{what}: tolerance={tolerance!r}: write {_LONGEST.days}d at most; keys are stored "
                "that long, and an older request would be accepted again"
            )
        _set(self, secrets=checked_secrets(what, secrets), tolerance=tolerance)

    def check(self) -> None:
        """Raises `SettingsError` for a secret with a wrong format, `MissingSecret` if none is set."""
        for secret, value in in_use(self.secrets):
            check_printable(secret, value)
            self._key(secret, value)

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        signed_at = self._signature(headers).timestamp
        if signed_at is None:
            return
        age = time.time() - signed_at
        if abs(age) > seconds(self.tolerance):
            self._reject(
                f"the signature's timestamp is {abs(age):.0f} seconds "
                f"{'old' if age > 0 else 'ahead'}, more than the allowed {self.tolerance}; sign the "
                "request when it is sent, with a correct clock"
            )

    def verify(self, headers: Mapping[bytes, bytes], body: bytes) -> str | None:
        signature = self._signature(headers)
        content = signature.before + body
        genuine = False
        for secret, value in in_use(self.secrets):
            expected = hmac.digest(self._key(secret, value), content, self.algorithm)
            for sent in signature.signatures:
                genuine |= hmac.compare_digest(expected, sent)
        if not genuine:
            self._reject(
                f"the signature in {self.header} does not match this body and a secret of this source; "
                "sign exactly the bytes that are sent, with a current secret"
            )
        if signature.key is None and signature.timestamp is not None:
            # Hash the signed content, not a signature: two secrets may have signed the same content.
            return sha256(content).hexdigest()
        return signature.key

    @abstractmethod
    def _signature(self, headers: Mapping[bytes, bytes]) -> _SignatureHeaders:
        """The signature in the headers. Raises `Unauthorized` if it is missing or incomplete."""

    def _key(self, secret: Secret, value: str) -> bytes:  # noqa: ARG002
        return value.encode()

    def _header(self, headers: Mapping[bytes, bytes], name: str) -> bytes:
        value = headers.get(name.lower().encode())
        if not value:
            self._reject(
                f"this source accepts only signed requests, and {name} is missing; send it"
            )
        return value

    def _seconds(self, timestamp: bytes, name: str) -> int:
        if not _SECONDS.fullmatch(timestamp):
            self._reject(f"the timestamp in {name} is not a whole number of seconds since 1970")
        return int(timestamp)

    def _reject(self, reason: str) -> NoReturn:
        raise Unauthorized(reason, f'Signature header="{self.header}"')


@dataclass(frozen=True, init=False)
class HMACSignature(Signature):
    """A keyed hash (HMAC, RFC 2104) of the body, in a header that the sender chose.

    - `header`: the header with the signature, after `prefix`, which is not part of the signature.
    - `algorithm`: 'sha1', 'sha256' (the default), 'sha384' or 'sha512'.
    - `encoding`: how the signature is encoded, 'hex' (the default) or 'base64'.
    - `timestamp_header`: the header with the time of signing, in seconds since 1970, if that is signed
      too. Then a request whose time differs from now by more than `tolerance` ('5m') is rejected, and
      a request that is sent again within it creates no second event.
    - `signed`: what is signed, by default '{body}', or '{timestamp}.{body}' with a `timestamp_header`.

    Without a timestamp, a repeated request looks like a new one with the same body: give such events a
    key of their own, from something in the body.

    The secrets are used as they are, encoded as UTF-8. All that are set are tried.

    >>> HMACSignature(Secret("SHOP_SECRET"), header="X-Shop-Signature", encoding="base64").algorithm
    'sha256'

    Raises `DeclarationError`.
    """

    encoding: str = "hex"
    prefix: str = ""
    timestamp_header: str | None = None
    signed: str = "{body}"

    def __init__(
        self,
        *secrets: Secret,
        header: str,
        algorithm: str = "sha256",
        encoding: str = "hex",
        prefix: str = "",
        timestamp_header: str | None = None,
        signed: str | None = None,
        tolerance: Duration = TOLERANCE,
    ) -> None:
        super().__init__(*secrets, tolerance=tolerance)
        what = type(self).__name__
        if signed is None:
            signed = "{timestamp}.{body}" if timestamp_header else "{body}"
        for name in (header, timestamp_header):
            if name is not None and not (isinstance(name, str) and _HEADER.fullmatch(name)):
                raise DeclarationError(
                    f"{what}: {name!r} cannot name a header; write letters, digits and '-', as in "
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
                f"{what}(signed={signed!r}, timestamp_header={timestamp_header!r}): signed must "
                "end with '{body}', and have '{timestamp}' once if there is a timestamp_header"
            )
        _set(
            self,
            header=header,
            algorithm=algorithm,
            encoding=encoding,
            prefix=prefix,
            timestamp_header=timestamp_header,
            signed=signed,
        )

    def _signature(self, headers: Mapping[bytes, bytes]) -> _SignatureHeaders:
        value = self._header(headers, self.header)
        prefix = self.prefix.encode()
        signatures = _decoded(self.encoding, [value.removeprefix(prefix)])
        if not signatures or not value.startswith(prefix):
            self._reject(f"{self.header} is not '{self.prefix}' and a signature in {self.encoding}")
        before = self.signed.removesuffix("{body}").encode()
        if self.timestamp_header is None:
            return _SignatureHeaders(before, signatures)
        timestamp = self._header(headers, self.timestamp_header)
        seconds = self._seconds(timestamp, self.timestamp_header)
        return _SignatureHeaders(before.replace(b"{timestamp}", timestamp), signatures, seconds)


class GitHubSignature(HMACSignature):
    """GitHub's: the body's HMAC-SHA256 in `X-Hub-Signature-256`.

    The delivery's id, `X-GitHub-Delivery`, is not signed: an attacker who has a signed request can send
    it again with another id. Take the key from the body where that matters.

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

    def __init__(self, *secrets: Secret, tolerance: Duration = TOLERANCE) -> None:
        super().__init__(
            *secrets,
            header="X-Slack-Signature",
            prefix="v0=",
            timestamp_header="X-Slack-Request-Timestamp",
            signed="v0:{timestamp}:{body}",
            tolerance=tolerance,
        )


class StripeSignature(Signature):
    """Stripe's: `Stripe-Signature: t=<seconds>,v1=<hex>`, of the timestamp and the body.

    While Stripe rolls a secret, it signs with both; one matching `v1` is enough.

    >>> StripeSignature(Secret("STRIPE_SECRET"), tolerance="10m").tolerance
    '10m'

    Raises `DeclarationError`.
    """

    header = "Stripe-Signature"

    def _signature(self, headers: Mapping[bytes, bytes]) -> _SignatureHeaders:
        parts = [
            part.strip().partition(b"=") for part in self._header(headers, self.header).split(b",")
        ]
        signatures = _decoded("hex", [value for name, _, value in parts if name == b"v1"])
        timestamps = [value for name, _, value in parts if name == b"t"]
        if len(timestamps) != 1 or not signatures:
            self._reject(f"{self.header} is not t=<seconds>,v1=<hexadecimal signature>")
        seconds = self._seconds(timestamps[0], self.header)
        return _SignatureHeaders(timestamps[0] + b".", signatures, seconds)


class StandardWebhooksSignature(Signature):
    """Standard Webhooks': `webhook-id`, `webhook-timestamp` and `webhook-signature`.

    Svix, where the specification comes from, names them `svix-id`, `svix-timestamp` and
    `svix-signature`; these are accepted too.

    The id is signed, and is the request's idempotency key: a request that is sent again, at any time,
    creates no second event. Choose this scheme for senders of your own.

    The secrets are in base64, with or without the prefix `whsec_`.

    >>> StandardWebhooksSignature(Secret("SHOP_WEBHOOK_SECRET")).header
    'webhook-signature'

    Raises `DeclarationError`.
    """

    header = "webhook-signature"

    def _signature(self, headers: Mapping[bytes, bytes]) -> _SignatureHeaders:
        sender = "webhook"
        if b"svix-signature" in headers and b"webhook-signature" not in headers:
            sender = "svix"
        id_ = self._header(headers, f"{sender}-id")
        timestamp = self._header(headers, f"{sender}-timestamp")
        sent = self._header(headers, f"{sender}-signature")
        parts = [part.partition(b",") for part in sent.split()]
        signatures = _decoded("base64", [value for name, _, value in parts if name == b"v1"])
        if not signatures:
            self._reject(f"{sender}-signature has no v1,<base64 signature>")
        seconds = self._seconds(timestamp, f"{sender}-timestamp")
        return _SignatureHeaders(
            b"%s.%s." % (id_, timestamp), signatures, seconds, id_.decode("latin-1")
        )

    def _key(self, secret: Secret, value: str) -> bytes:
        text = value.removeprefix(_STANDARD_PREFIX).rstrip("=")
        try:
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except ValueError:
            key = b""
        if not key:
            raise SettingsError(
                f"{secret.name} is not a secret of Standard Webhooks; set it to {_STANDARD_PREFIX} and "
                "base64"
            )
        return key


def _decoded(encoding: str, signatures: Iterable[bytes]) -> list[bytes]:
    """The signatures, without those that cannot be decoded."""
    decoded = []
    for signature in signatures:
        try:
            decoded.append(_DECODERS[encoding](signature))
        except ValueError:
            continue
    return decoded


def _set(record: object, **fields: Any) -> None:
    for name, value in fields.items():
        object.__setattr__(record, name, value)
