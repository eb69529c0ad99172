"""The events of `pipeline`, signed, and validated against a model of each kind."""

from typing import Any

import msgspec
import pydantic

from benchmarks.pipeline import is_even
from blacksmith_dagster import (
    Batch,
    Blacksmith,
    Destination,
    Flow,
    GitHubSignature,
    JSONSchema,
    Secret,
    Source,
)

KEY = "benchmark-signing-secret"
ENV = {"BENCH_SIGNING_SECRET": KEY}


class User(msgspec.Struct):
    """The user of a track event."""

    id: str
    plan: str
    seats: int
    trial: bool


class Page(msgspec.Struct):
    """The page that the user saw."""

    path: str
    title: str
    referrer: str | None


class Viewed(msgspec.Struct):
    """The product that the user saw."""

    sku: str
    price: float
    quantity: int
    tags: list[str]


class Library(msgspec.Struct):
    """The library that sent the event."""

    name: str
    version: str


class Track(msgspec.Struct):
    """The document that `pipeline.payload` makes."""

    n: int
    type: str
    event: str
    anonymous_id: str
    user: User
    page: Page
    properties: Viewed
    library: Library
    sent_at: str
    note: str


def _pydantic(model: type[msgspec.Struct]) -> type[pydantic.BaseModel]:
    fields: dict[str, Any] = {
        field.name: (
            _pydantic(field.type)
            if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
            else field.type,
            ...,
        )
        for field in msgspec.structs.fields(model)
    }
    return pydantic.create_model(model.__name__, **fields)


MODELS: dict[str, Any] = {
    "any": Any,
    "msgspec": Track,
    "pydantic": _pydantic(Track),
    "jsonschema": JSONSchema(msgspec.json.schema(Track)),
}

source = Source("trust", auth=GitHubSignature(Secret("BENCH_SIGNING_SECRET")))
sink = Destination("sink")
EVENTS = [source.accept(name, model=model) for name, model in MODELS.items()]


@sink.event(receives=EVENTS)
def full(batch: Batch[Any]) -> None:
    """Do nothing."""


def _is_even(event: Any) -> bool:
    data = event.data
    return is_even(event) if isinstance(data, dict) else data.n % 2 == 0


@sink.event(receives=[Flow(event, when=_is_even) for event in EVENTS])
def half(batch: Batch[Any]) -> None:
    """Do nothing."""


app = Blacksmith(sources=[source], destinations=[sink])
