"""Webhooks of known senders: GitHub, Stripe, Slack, Standard Webhooks; and the base of their sources."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias, TypeVar, Unpack, overload

import msgspec

from blacksmith_dagster.errors import BadRequest, DeclarationError, Reject, ValidationError
from blacksmith_dagster.pipeline.access import Auth
from blacksmith_dagster.pipeline.limits import DEFAULT, Limits
from blacksmith_dagster.pipeline.model import JSONSchema, check_json
from blacksmith_dagster.pipeline.signatures import (
    GitHubSignature,
    SlackSignature,
    StandardWebhooksSignature,
    StripeSignature,
)
from blacksmith_dagster.pipeline.source import (
    AnySourceEvent,
    Source,
    SourceEvent,
    SourceProperties,
    WebhookResult,
)
from blacksmith_dagster.pipeline.triggers import HTTP, Reply, Request, decode_body
from blacksmith_dagster.redaction import Secret

T = TypeVar("T")
_Signature: TypeAlias = (
    GitHubSignature | SlackSignature | StandardWebhooksSignature | StripeSignature
)

_OTHERS = "*"
# GitHub sends up to 25 MB, of any number of keys: a key takes four bytes at least.
_GITHUB_BYTES = 25 * 1024 * 1024
_DECODED_BYTES = 1024 * 1024
_GITHUB_LIMITS = Limits(_GITHUB_BYTES, _GITHUB_BYTES, keys=_GITHUB_BYTES // 4).inherit(DEFAULT)

_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_FORM = "application/x-www-form-urlencoded"
_GITHUB_PREFIX = "x-github-"


TEXT: Mapping[str, Any] = {
    "type": "string",
    "minLength": 1,
    "pattern": "^[^\\u0000]+$",
}
"""JSON Schema of a text that a database can store."""
KEY: Mapping[str, Any] = {**TEXT, "maxLength": 512}
TIME: Mapping[str, Any] = {"type": "string", "format": "date-time"}
NOTHING: Mapping[str, Any] = {"not": {}}
"""What a source accepts for which no type is declared."""
_MILLISECONDS = 100_000_000_000  # as seconds, the year 5138
_LAST_SECOND = _MILLISECONDS - 1


def json_object(required: Sequence[str], **properties: Any) -> Mapping[str, Any]:
    """The JSON Schema of an object, which may have other fields too."""
    return {"type": "object", "required": [*required], "properties": properties}


def operation_fields(
    content: Mapping[str, Any], headers: Mapping[str, Any] = MappingProxyType({})
) -> Mapping[str, Any]:
    """Schemas of bodies by media type, and of headers, as fields of an OpenAPI Operation Object."""
    return {
        "parameters": [
            {"name": name, "in": "header", "required": True, "schema": schema}
            for name, schema in headers.items()
        ],
        "requestBody": {
            "required": True,
            "content": {media: {"schema": schema} for media, schema in content.items()},
        },
    }


class TypedSource(Source, ABC):
    """A source whose events come to one path, `POST /v1/<name>`, each with its sender's type.

    `on` declares the types that are accepted. A subclass reads the requests of one sender.

    Raises `DeclarationError`.
    """

    _response: ClassVar[Reply | None] = None

    def __init__(self, name: str, **properties: Unpack[SourceProperties]) -> None:
        super().__init__(name, **properties)
        self._types: dict[str, AnySourceEvent] = {}
        on = HTTP(f"/v1/{self.name}")
        self.webhook(on, response=self._response, describe=self._describe)(self._receive)

    @overload
    def on(
        self,
        type: str,
        *,
        name: str | None = None,
        model: type[T],
        description: str | None = None,
        **own: Unpack[SourceProperties],
    ) -> SourceEvent[T, Any, Any]: ...
    @overload
    def on(
        self,
        type: str,
        *,
        name: str | None = None,
        model: JSONSchema = ...,
        description: str | None = None,
        **own: Unpack[SourceProperties],
    ) -> AnySourceEvent: ...
    def on(
        self,
        type: str,
        *,
        name: str | None = None,
        model: Any = Any,
        description: str | None = None,
        **own: Unpack[SourceProperties],
    ) -> AnySourceEvent:
        """A source event for this type; `'*'` is for every type that is not declared.

        Its default name is the type in lower case, with `_` for characters that a name cannot have
        (`invoice.paid` becomes `invoice_paid`). Data that does not fit `model` is rejected with 422 and
        the place of the fault. A type that is not declared is rejected with 422 and the list of the
        declared types.

        Raises `DeclarationError`.
        """
        if type in self._types:
            raise DeclarationError(
                f"source {self.name!r} has an event on {type!r} already: "
                f"{self._types[type].name}; receive that one"
            )
        if name is None and type == _OTHERS:
            raise DeclarationError(
                f"source {self.name!r}: on('*') needs a name; write on('*', name='other')"
            )
        event_name = _NOT_IN_NAMES.sub("_", type.lower()).strip("_") if name is None else name
        event = self.child(event_name, model=model, description=description, **own)
        self._types[type] = event
        return event

    @abstractmethod
    def _receive(self, request: Request) -> WebhookResult:
        """The events of a request, or a reply. Raises `RequestError`."""

    @abstractmethod
    def _describe(self) -> Mapping[str, Any]:
        """The parameters and the body of a request, in OpenAPI."""

    def _bodies_by_type(
        self, body: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]
    ) -> Sequence[Mapping[str, Any]]:
        """The schemas of the bodies of each type: `body` takes those of the type and of its data."""
        named = [declared for declared in self._types if declared != _OTHERS]
        bodies = [body({"const": name}, self._types[name].schema) for name in named]
        if _OTHERS in self._types:
            others = {**TEXT, "not": {"enum": named}} if named else TEXT
            bodies.append(body(others, self._types[_OTHERS].schema))
        return bodies or [NOTHING]

    def _source_event(self, type: str) -> AnySourceEvent:
        source_event = self._types.get(type) or self._types.get(_OTHERS)
        if source_event is None:
            raise Reject(
                f"{self.name} accepts no events of the type {type!r}; it accepts "
                f"{', '.join(self._types) or 'none at all'}"
            )
        return source_event


class SignedSource(TypedSource):
    """A `TypedSource` whose sender signs its requests with a `secret`.

    Raises `DeclarationError`.
    """

    _signature: ClassVar[type[_Signature]]

    def __init__(
        self,
        name: str,
        *,
        secret: Secret | Sequence[Secret],
        **properties: Unpack[SourceProperties],
    ) -> None:
        signature = self._signature(*as_secrets(secret))
        super().__init__(name, **with_auth(signature, name, properties))


class GitHubSource(SignedSource):
    """The webhooks of repositories, organizations and apps, of GitHub and of GitHub Enterprise.

    - `secret`: the webhook's secret; several while a new one replaces an old one.

    `X-GitHub-Event` is the type, `X-GitHub-Delivery` the key. The event's data is the payload, its
    context the other headers that begin with `X-GitHub-`, as `event`, `hook_id`, `enterprise_host` and
    so on. A `ping` that is not declared gets a 200, and is not stored. Payloads may have 25 MiB, the
    most that GitHub sends.

    >>> github = GitHubSource("github", secret=Secret("GITHUB_SECRET"))
    >>> pushed = github.on("push")
    >>> pushed.path, github.webhooks[0].on.path
    ('github/push', '/v1/github')

    Raises `DeclarationError`.
    """

    _signature = GitHubSignature
    limits = _GITHUB_LIMITS

    def _describe(self) -> Mapping[str, Any]:
        events = [*self._bodies_by_type(lambda type, _: type), {"const": "ping"}]
        payload = json_object(
            ("payload",), payload={"type": "string", "contentMediaType": "application/json"}
        )
        content = {"application/json": json_object(()), _FORM: payload}
        headers = {"X-GitHub-Event": {"anyOf": events}, "X-GitHub-Delivery": KEY}
        return operation_fields(content, headers)

    def _receive(self, request: Request) -> WebhookResult:
        """A delivery of a GitHub webhook."""
        event = _header(request, "X-GitHub-Event")
        delivery = _header(request, "X-GitHub-Delivery")
        if event == "ping" and event not in self._types:
            return Reply(200, "pong")
        source_event = self._source_event(event)
        if request.headers.get("content-type", "").startswith(_FORM):
            payload = request.form().get("payload")
            if payload is None:
                raise Reject("the form has no field payload")
            data = _json_object_in(payload.encode())
        else:
            data = _json_object_in(request.body)
        context = {
            name.removeprefix(_GITHUB_PREFIX).replace("-", "_"): value
            for name, value in request.headers.items()
            if name.startswith(_GITHUB_PREFIX) and name != f"{_GITHUB_PREFIX}delivery"
        }
        return source_event.of(data, key=delivery, context=context)


class StripeSource(SignedSource):
    """The events of a Stripe account.

    - `secret`: the webhook endpoint's secret; several while a new one replaces an old one.

    Stripe's id of the event is the key, `created` is `sent_at`, `api_version` the version. The
    event's data is Stripe's `data` (`object`, and `previous_attributes` of an update), its context the
    other fields. A thin event has no data: its object is named in the context, as `related_object`.

    >>> stripe = StripeSource("stripe", secret=Secret("STRIPE_SECRET"))
    >>> paid = stripe.on("invoice.paid")
    >>> paid.path
    'stripe/invoice_paid'

    Raises `DeclarationError`.
    """

    _signature = StripeSignature

    def _describe(self) -> Mapping[str, Any]:
        bodies = self._bodies_by_type(
            lambda type, data: json_object(
                ("id", "type"),
                id=KEY,
                type=type,
                created={"type": "integer", "minimum": 0, "maximum": _LAST_SECOND},
                api_version=TEXT,
                data=data,
            )
        )
        return operation_fields({"application/json": {"oneOf": bodies}})

    def _receive(self, request: Request) -> WebhookResult:
        """An event of Stripe."""
        event = request.json(dict)
        source_event = self._source_event(text_field(event, "type"))
        version = None if event.get("api_version") is None else text_field(event, "api_version")
        return source_event.of(
            event.pop("data", None),
            key=text_field(event, "id"),
            sent_at=parse_time(event.get("created"), "$.created"),
            version=version,
            context=event,
        )


class SlackSource(SignedSource):
    """The events of a Slack app.

    - `secret`: the app's signing secret; several while a new one replaces an old one.

    The handshake (`url_verification`) is answered. An `event_callback` has the type of its `event`,
    which is the event's data. `event_id`, which Slack's retries repeat, is the key, `event_time` is
    `sent_at`, and the other fields are the context. Other requests of Slack, such as
    `app_rate_limited`, become events without data. The response is always 200.

    >>> slack = SlackSource("slack", secret=Secret("SLACK_SIGNING_SECRET"))
    >>> mentioned = slack.on("app_mention")
    >>> mentioned.path
    'slack/app_mention'

    Raises `DeclarationError`.
    """

    _signature = SlackSignature
    _response = Reply(200)

    def _describe(self) -> Mapping[str, Any]:
        handshake = json_object(
            ("type", "challenge"), type={"const": "url_verification"}, challenge=TEXT
        )
        callbacks = self._bodies_by_type(
            lambda type, data: json_object(
                ("type", "event", "event_id"),
                type={"const": "event_callback"},
                event={"allOf": [json_object(("type",), type=type), data]},
                event_id=KEY,
                event_time={"type": "integer", "minimum": 0, "maximum": _LAST_SECOND},
            )
        )
        return operation_fields({"application/json": {"oneOf": [handshake, *callbacks]}})

    def _receive(self, request: Request) -> WebhookResult:
        """A request of Slack's Events API."""
        body = request.json(dict)
        outer = text_field(body, "type")
        if outer == "url_verification":
            return Reply(200, text_field(body, "challenge"))
        # Slack's older verification token, a secret; the signature replaces it.
        body.pop("token", None)
        if outer != "event_callback":
            return self._source_event(outer).of(None, context=body)
        event: Any = body.pop("event", None)
        if not isinstance(event, dict):
            raise invalid_body("an object is needed", "$.event")
        return self._source_event(text_field(event, "type", "$.event")).of(
            event,
            key=text_field(body, "event_id"),
            sent_at=parse_time(body.get("event_time"), "$.event_time"),
            context=body,
        )


class StandardWebhooksSource(SignedSource):
    """The webhooks of a sender that follows the Standard Webhooks specification.

    - `secret`: in base64, with or without the prefix `whsec_`; several while a new one replaces an old
      one.

    A body is `{"type": ..., "timestamp": ..., "data": ...}`; `webhook-id` is the key, `timestamp` is
    `sent_at` (the header's timestamp if the body has none). The event's data is `data`, its context the
    other fields.

    >>> hooks = StandardWebhooksSource("billing", secret=Secret("BILLING_SECRET"))
    >>> created = hooks.on("user.created")
    >>> created.path
    'billing/user_created'

    Raises `DeclarationError`.
    """

    _signature = StandardWebhooksSignature

    def _describe(self) -> Mapping[str, Any]:
        bodies = self._bodies_by_type(
            lambda type, data: json_object(("type", "data"), type=type, timestamp=TIME, data=data)
        )
        return operation_fields({"application/json": {"oneOf": bodies}})

    def _receive(self, request: Request) -> WebhookResult:
        """A webhook in the format of Standard Webhooks."""
        # As the signature chooses them: the id must be the one that is signed.
        names = request.headers
        is_svix = "svix-signature" in names and "webhook-signature" not in names
        sender = "svix" if is_svix else "webhook"
        body: dict[str, Any] = request.json(dict)
        source_event = self._source_event(text_field(body, "type"))
        if "data" not in body:
            raise invalid_body("a value is needed", "$.data")
        timestamp: Any = body.get("timestamp")
        if not isinstance(timestamp, str):
            timestamp = int(_header(request, f"{sender}-timestamp"))
        return source_event.of(
            body.pop("data"),
            key=_header(request, f"{sender}-id"),
            sent_at=parse_time(timestamp, "$.timestamp"),
            context=body,
        )


def _json_object_in(body: bytes) -> dict[str, Any] | msgspec.Raw:
    """A payload of GitHub: a large one as it was sent, because decoded it takes five times the memory.

    Raises `RequestError`.
    """
    if len(body) <= _DECODED_BYTES or not body.lstrip().startswith(b"{"):
        payload: dict[str, Any] = decode_body(body, dict)
        return payload
    try:
        check_json(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    return msgspec.Raw(body)


def with_auth(auth: Auth, name: str, properties: SourceProperties) -> SourceProperties:
    """The properties of a source whose senders authenticate with `auth`."""
    if properties.get("auth") is not None:
        raise DeclarationError(
            f"source {name!r}: its senders authenticate with {type(auth).__name__}; leave auth= out"
        )
    with_own: SourceProperties = {**properties, "auth": auth}
    return with_own


def as_secrets(secret: Secret | Sequence[Secret]) -> Sequence[Secret]:
    """One secret, or several, as a sequence."""
    return (secret,) if isinstance(secret, Secret) else secret


def _header(request: Request, name: str) -> str:
    """A header that the sender always sends. Raises `BadRequest` without it."""
    value = request.headers.get(name.lower())
    if not value:
        raise BadRequest(
            f"the header {name} is missing; this path accepts only that sender's requests"
        )
    return value


def text_field(body: Mapping[str, Any], field: str, place: str = "$") -> str:
    """A field that must be a text that is not empty. Raises `ValidationError`."""
    value = body.get(field)
    if not isinstance(value, str) or not value:
        raise invalid_body("a text is needed", f"{place}.{field}")
    return value


def parse_time(value: Any, place: str) -> datetime | None:
    """A time from seconds since 1970, ISO 8601 or RFC 1123 text, in UTC if it names no zone; `None` for
    `None`. A number of 12 digits or more is in milliseconds.

    Raises `ValidationError`.
    """
    if value is None:
        return None
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            seconds = value / 1000 if abs(value) >= _MILLISECONDS else value
            return datetime.fromtimestamp(seconds, UTC)
        if isinstance(value, str):
            is_rfc_1123 = value[:3].isalpha()
            time = (
                parsedate_to_datetime(value)
                if is_rfc_1123
                else datetime.fromisoformat(value.upper())
            )
            return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise invalid_body(
        "a time is needed, as seconds since 1970 or as '2026-01-31T12:00:00Z'", place
    )


def invalid_body(reason: str, place: str) -> ValidationError:
    """The error for a body in which something is wrong at `place`."""
    return ValidationError(f"the body does not fit: {reason} - at `{place}`")
