"""Signed events that the gateway validates against a model, beside the same events unchecked."""

import hmac
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pydantic

from benchmarks.measure import Effort, Figure, alternate, figure
from benchmarks.pipeline import application, payload
from benchmarks.stores import Databases, measured_on, postgres
from benchmarks.wrk import Sender, into_store
from blacksmith_dagster import GitHubSignature, JSONSchema, Secret, Source

KEY = "benchmark-signing-secret"
ENV = {"BENCH_SIGNING_SECRET": KEY}


def _model(make: Callable[[str, dict[str, Any]], Any], name: str, document: Any) -> Any:
    """A model of the document that `pipeline.payload` makes."""
    types = {list: list[str], type(None): str | None}
    fields = {
        key: _model(make, key, value)
        if isinstance(value, dict)
        else types.get(type(value), type(value))
        for key, value in document.items()
    }
    return make(name, fields)


def _struct(name: str, fields: dict[str, Any]) -> type[msgspec.Struct]:
    return msgspec.defstruct(name, fields.items())


def _pydantic(name: str, fields: dict[str, Any]) -> type[pydantic.BaseModel]:
    required: dict[str, Any] = {key: (field, ...) for key, field in fields.items()}
    model: type[pydantic.BaseModel] = pydantic.create_model(name, **required)
    return model


_document = json.loads(payload(0))
_track = _model(_struct, "Track", _document)
_models = {
    "no model": Any,
    "a msgspec.Struct": _track,
    "a pydantic.BaseModel": _model(_pydantic, "Track", _document),
    "a JSON Schema": JSONSchema(msgspec.json.schema(_track)),
}
_source = Source("trust", auth=GitHubSignature(Secret("BENCH_SIGNING_SECRET")))
_events = [_source.accept(f"event{n}", model=model) for n, model in enumerate(_models.values())]


def _is_even(event: Any) -> bool:
    number = event.data["n"] if isinstance(event.data, dict) else event.data.n
    return bool(number % 2 == 0)


app = application(_source, _events, _is_even)


@measured_on(postgres)
def trust(databases: Databases, effort: Effort) -> Iterator[Figure]:
    """Requests per second of one event each, with a signature and each kind of model."""
    body = payload(8)  # the same in all requests, so that one signature fits all
    digest = hmac.digest(KEY.encode(), body.encode(), "sha256").hex()
    header = f"X-Hub-Signature-256: sha256={digest}"
    plain = Sender([body], 64, effort.seconds)
    signed = [replace(plain, path=f"/v1/{event.path}", header=header) for event in _events]
    limits, *checked = alternate(
        effort.rounds,
        into_store(databases, plain),
        *(into_store(databases, sender, "benchmarks.trust:app", env=ENV) for sender in signed),
    )
    for model, runs in zip(_models, checked, strict=True):
        yield figure(
            f"gateway, 1 worker, 64 connections, a signature and {model}; {databases.name}",
            [run.rate for run in runs],
            "requests/s",
            limits=[run.rate for run in limits],
            at_least=0.70,
        )
