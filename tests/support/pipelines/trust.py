"""A pipeline whose endpoints are protected in every possible way."""

from datetime import date
from typing import Any

import msgspec
import pydantic

from blacksmith_dagster import (
    CORS,
    HTTP,
    Auth,
    Bearer,
    Blacksmith,
    Event,
    GitHubSignature,
    HMACSignature,
    JSONSchema,
    Request,
    Secret,
    SlackSignature,
    Source,
    StandardWebhooksSignature,
    StripeSignature,
    TypedEvent,
    WriteKey,
)

PIPELINE = "tests.support.pipelines.trust:blacksmith"
NEW, OLD = "BLACKSMITH_TEST_NEW", "BLACKSMITH_TEST_OLD"
WHSEC_NEW, WHSEC_OLD = "BLACKSMITH_TEST_WHSEC_NEW", "BLACKSMITH_TEST_WHSEC_OLD"
BOTH = Secret(NEW), Secret(OLD)
SHOP = "https://shop.example"

AUTHS: dict[str, Auth] = {
    "bearer": Bearer(*BOTH),
    "write_key": WriteKey(*BOTH),
    "standard": StandardWebhooksSignature(Secret(WHSEC_NEW), Secret(WHSEC_OLD)),
    "github": GitHubSignature(*BOTH),
    "stripe": StripeSignature(*BOTH),
    "slack": SlackSignature(*BOTH),
    "shop": HMACSignature(
        *BOTH, header="X-Shop", algorithm="sha512", encoding="base64", timestamp_header="X-Shop-At"
    ),
}
signed = Source("signed")
for _name, _auth in AUTHS.items():
    signed.accept(_name, auth=_auth)


@signed.event(HTTP("/signed/headers"), auth=AUTHS["bearer"])
def headers(request: Request) -> Event[dict[str, str]]:
    """The headers that a function gets."""
    return Event(dict(request.headers))


class Line(msgspec.Struct):
    """A line of an order."""

    sku: str
    count: int


class Order(msgspec.Struct):
    """An order, decoded by msgspec."""

    id: int
    lines: list[Line] = []


class PydanticLine(pydantic.BaseModel):
    """A line of an order."""

    sku: str
    count: int


class PydanticOrder(pydantic.BaseModel):
    """An order, decoded by pydantic."""

    id: int
    lines: list[PydanticLine] = []


SCHEMA = JSONSchema(
    {
        "title": "Order",
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
        },
        "required": ["id"],
        "$defs": {
            "line": {
                "type": "object",
                "properties": {"sku": {"type": "string"}, "count": {"type": "integer"}},
                "required": ["sku", "count"],
            }
        },
    }
)
MODELS: dict[str, Any] = {"msgspec": Order, "pydantic": PydanticOrder, "jsonschema": SCHEMA}

orders = Source("orders")
lenient = Source("lenient", on_invalid="quarantine")
for _name, _model in MODELS.items():
    orders.accept(_name, model=_model)
    lenient.accept(_name, model=_model)


@orders.event(HTTP("/orders/read"))
def read(request: Request) -> Event[PydanticOrder]:
    """An order that the function decodes itself."""
    return Event(request.json(PydanticOrder))


@lenient.event(HTTP("/lenient/read"))
def leniently_read(request: Request) -> Event[PydanticOrder]:
    """An order that the function decodes itself."""
    return Event(request.json(PydanticOrder))


line = orders.child("line", model=PydanticLine)


@orders.webhook(HTTP("/orders/lines"))
def lines(request: Request) -> list[TypedEvent]:
    """The lines of an order, one event per line."""
    return [line.of(item) for item in request.json()["lines"]]


crm = Source(
    "crm",
    versions={"2021-01-01": None, "2020-10-01": date(2020, 12, 31), "2020-06-01": date(2020, 7, 1)},
    default_version="2021-01-01",
)
user = crm.accept("user")


@crm.event(HTTP("/crm/named"))
def named(request: Request) -> Event[Any]:
    """An event that names its version itself."""
    data = request.json()
    return Event(data, version=data.get("version"))


near = Source("near", networks=["127.0.0.0/8", "192.0.2.0/24"])
near.accept("event")
far = Source("far", networks=["198.51.100.0/24", "2001:db8::/32"])
far.accept("event")

web = Source("web", cors=CORS(origins=[SHOP], max_age="1m"))
web.accept("clicked")
web.accept("locked", auth=AUTHS["bearer"])
web.accept("own", cors=CORS(origins=["*"]))
web.accept("clicked_otherwise", on=HTTP("/v1/web/clicked", method="PUT"), cors=CORS(origins=["*"]))
plain = Source("plain").accept("event").source

blacksmith = Blacksmith(
    sources=[signed, orders, lenient, crm, near, far, web, plain], destinations=[]
)
