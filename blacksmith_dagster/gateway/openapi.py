"""Describes the gateway's endpoints in OpenAPI 3.1: pure."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from itertools import chain, count
from typing import Any

from blacksmith_dagster.pipeline.access import Auth, Bearer, WriteKey
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.model import json_schema
from blacksmith_dagster.pipeline.signatures import (
    HMACSignature,
    Signature,
    StandardWebhooksSignature,
    StripeSignature,
)
from blacksmith_dagster.pipeline.source import AnySourceEvent, SourceEvent, Webhook
from blacksmith_dagster.pipeline.triggers import HTTP, Reply

_PROBLEM = "application/problem+json"
_REJECTIONS = {
    "400": "The request cannot be read.",
    "408": "The body did not arrive in time.",
    "413": "The body, or an event in it, is over its limit.",
    "415": "The Content-Type or Content-Encoding is not supported.",
    "422": "The content is over a limit, does not fit the model, or reuses an idempotency key.",
    "429": "Too many events are waiting to be stored; send the request again.",
    "503": "The store accepts no events now; send the request again with the same key.",
}
_SCHEMAS: Mapping[str, Any] = {
    "Accepted": {
        "type": "object",
        "description": "The ids of the stored events, and of the requests in quarantine.",
        "properties": {
            "ids": {"type": "array", "items": {"type": "string"}},
            "quarantined": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["ids"],
    },
    "Problem": {
        "type": "object",
        "description": "RFC 9457.",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
        },
        "required": ["type", "title", "status", "detail"],
    },
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Within 7 days, requests with the same key are stored once.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 512},
}


def described(app: Blacksmith) -> dict[str, Any]:
    """The description of all endpoints of an application.

    >>> from blacksmith_dagster import Blacksmith, Source
    >>> sources = [Source("airport").accept("departed").source]
    >>> described(Blacksmith(sources=sources, destinations=[]))["openapi"]
    '3.1.0'
    """
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = dict(_SCHEMAS)
    security: dict[str, Any] = {}
    operation_ids: set[str] = set()
    for event, on in http_endpoints(app):
        operation: dict[str, Any] = {
            "operationId": _operation_id(event, on, operation_ids),
            "tags": [event.source.name],
            "parameters": [*_parameters(event)],
            "requestBody": {
                "required": event.function is None,
                "content": _content(event, schemas),
            },
            "responses": _responses(event),
        }
        if on.method == "GET":
            del operation["requestBody"]
        if isinstance(event, Webhook):
            own = event.describe()
            parameters = [*_parameters(event), *own.get("parameters", ())]
            operation |= {**own, "parameters": parameters}
        description = (
            event.description if isinstance(event, SourceEvent) else event.function.__doc__
        )
        if description:
            operation["description"] = inspect.cleandoc(description)
        if event.auth is not None and not is_unsigned(event, on):
            name = f"{event.source.name}.{type(event.auth).__name__}"
            if security.setdefault(name, _scheme(event.auth)) != _scheme(event.auth):
                name = f"{event.path.replace('/', '.')}.{type(event.auth).__name__}"
                security[name] = _scheme(event.auth)
            operation["security"] = [{name: []}]
        paths.setdefault(on.path, {})[on.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Blacksmith gateway", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": security},
    }


def is_unsigned(event: AnySourceEvent | Webhook, on: HTTP) -> bool:
    """Whether requests need no signature although the events of the source are signed: a GET has no
    body that its sender could sign."""
    return on.method == "GET" and isinstance(event.auth, Signature)


def http_endpoints(app: Blacksmith) -> Iterator[tuple[AnySourceEvent | Webhook, HTTP]]:
    """What is received over HTTP, and where."""
    for event in app.source_events.values():
        if isinstance(event.trigger, HTTP):
            yield event, event.trigger
    for webhook in app.webhooks:
        yield webhook, webhook.on


def _operation_id(event: AnySourceEvent | Webhook, on: HTTP, others: set[str]) -> str:
    """An id that code generators accept as a function's name, unlike the `others`; added to these."""
    what = event.path if isinstance(event, SourceEvent) else on.method.lower() + on.path
    name = re.sub("[^A-Za-z0-9]+", "_", what).strip("_")
    numbered = (f"{name}_{number}" for number in count(2))
    chosen = next(one for one in chain([name], numbered) if one not in others)
    others.add(chosen)
    return chosen


def _parameters(event: AnySourceEvent | Webhook) -> Iterator[Mapping[str, Any]]:
    yield _KEY
    events = [event] if isinstance(event, SourceEvent) else event.source.events.values()
    versions = sorted({version for declared in events for version in declared.versions.accepted})
    if versions:
        yield {
            "name": "Api-Version",
            "in": "header",
            "description": "The version of the events that name none.",
            "schema": {"type": "string", "enum": versions},
        }


def _content(event: AnySourceEvent | Webhook, schemas: dict[str, Any]) -> Mapping[str, Any]:
    """Without a function, the body is JSON that fits the model; with one, it may be anything."""
    any_body: Mapping[str, Any] = {"application/json": {"schema": {}}, "*/*": {"schema": {}}}
    if isinstance(event, SourceEvent) and event.function is not None:
        return any_body
    for declared in [event] if isinstance(event, SourceEvent) else event.source.events.values():
        if declared.schema:
            (where,) = declared.schema.values()
            schemas[where.rpartition("/")[2]] = _moved(json_schema(declared.model), where)
    if isinstance(event, Webhook):
        return any_body
    event_schema = event.schema
    several = {"type": "array", "items": event_schema}
    # An array always holds several events, even if the model allows arrays.
    single = {"allOf": [event_schema, {"not": {"type": "array"}}]}
    return {
        "application/json": {"schema": {"anyOf": [single, several]}},
        "application/x-ndjson": {"schema": {"type": "string"}},
    }


def _responses(event: AnySourceEvent | Webhook) -> Mapping[str, Any]:
    problem = {_PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses = {
        "202": {
            "description": "Stored.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Accepted"}}},
        }
    }
    rejections = dict(_REJECTIONS)
    if event.auth is not None:
        rejections["401"] = "The sender's credentials are missing or wrong."
    if event.networks is not None:
        rejections["403"] = "The sender's address is not in an allowed network."
    if isinstance(event, Webhook) and event.response is not None:
        responses = {str(event.response.status): _replied(event.response)}
    responses |= {
        status: {"description": reason, "content": problem} for status, reason in rejections.items()
    }
    if event.function is not None:
        responses["default"] = {"description": "Any other reply of the source's function."}
    return dict(sorted(responses.items()))


def _replied(reply: Reply) -> dict[str, Any]:
    media = reply.content_type.partition(";")[0]
    response: dict[str, Any] = {"description": "Stored."}
    return {**response, "content": {media: {"schema": {}}}} if reply.body else response


def _scheme(auth: Auth) -> dict[str, Any]:
    if isinstance(auth, Bearer):
        return {"type": "http", "scheme": "bearer"}
    if isinstance(auth, WriteKey):
        return {
            "type": "http",
            "scheme": "basic",
            "description": "The key is sent as the user name.",
        }
    header = "Authorization"
    if isinstance(auth, (HMACSignature, StripeSignature, StandardWebhooksSignature)):
        header = auth.header
    description = inspect.getdoc(type(auth)) or ""
    return {
        "type": "apiKey",
        "in": "header",
        "name": header,
        "description": description.partition("\n")[0] or type(auth).__name__,
    }


def _moved(schema: Any, to: str) -> Any:
    """A schema as a part of a larger document: its references point to where it is now."""
    if isinstance(schema, Mapping):
        if "$id" in schema:  # a document of its own
            return schema
        return {
            key: f"{to}{value[1:]}"
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, to)
            for key, value in schema.items()
        }
    return [_moved(item, to) for item in schema] if isinstance(schema, list) else schema
