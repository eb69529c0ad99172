"""Data decoded into models and checked, alike with msgspec, pydantic and JSON Schema."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest

from blacksmith_dagster import (
    HTTP,
    Batch,
    Blacksmith,
    DeclarationError,
    Destination,
    Event,
    Flow,
    JSONSchema,
    Message,
    Request,
    Source,
    SourceEvent,
    testing,
)
from blacksmith_dagster.destinations.rows import fit_rows
from blacksmith_dagster.errors import BadRequest, ValidationError
from blacksmith_dagster.pipeline.model import checked_model, decoder, encode, json_schema


class Leg(msgspec.Struct):
    to: str
    miles: int


class Flight(msgspec.Struct):
    id: str
    legs: list[Leg] = []


class PydanticLeg(pydantic.BaseModel):
    to: str
    miles: int


class PydanticFlight(pydantic.BaseModel):
    id: str
    legs: list[PydanticLeg] = []
    at: datetime | None = pydantic.Field(None, alias="departedAt")


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "legs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"to": {"type": "string"}, "miles": {"type": "integer"}},
                "required": ["to", "miles"],
            },
        },
    },
    "required": ["id"],
}
MODELS: dict[str, Any] = {
    "msgspec": Flight,
    "pydantic": PydanticFlight,
    "jsonschema": JSONSchema(SCHEMA),
}
GOOD = b'{"id": "UA1545", "legs": [{"to": "IAH", "miles": 1400}]}'


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]


def test_what_fits_is_decoded(model: Any) -> None:
    data = decoder(model)(GOOD)
    assert decoder(model)(encode(data)) == data
    assert json.loads(encode(data))["legs"] == [{"to": "IAH", "miles": 1400}]
    assert decoder(model)(GOOD.decode()) == data


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"id": "UA1545", "legs": [{"to": "IAH", "miles": "many"}]}', "$.legs[0].miles"),
        (b'{"id": "UA1545", "legs": [{"to": "IAH", "miles": 1}, {"to": 2}]}', "$.legs[1]"),
        (b'{"id": null}', "$.id"),
        (b'{"legs": []}', "$"),
        (b"[]", "$"),
    ],
)
def test_what_does_not_fit_is_reported_with_its_place(model: Any, body: bytes, place: str) -> None:
    with pytest.raises(msgspec.ValidationError) as raised:
        decoder(model)(body)
    assert f"`{place}" in str(raised.value) or place == "$"
    assert "many" not in str(raised.value)  # it may be a secret


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"id": NaN}',
        b'{"id": "\\ud800"}',
        b'{"id": 01}',
        b'{"id": "1"} {}',
    ],
)
def test_what_is_not_json_is_not_a_validation_error(model: Any, body: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)) as raised:
        decoder(model)(body)
    assert not isinstance(raised.value, msgspec.ValidationError)


@pytest.mark.parametrize("handed", [Request, Message])
def test_a_function_may_decode_its_body(handed: Callable[..., Any]) -> None:
    for type_ in (Flight, PydanticFlight):
        assert handed(GOOD).json(type_) == decoder(type_)(GOOD)
        with pytest.raises(ValidationError, match=r"\$\.id"):
            handed(b'{"id": 7}').json(type_)
        for malformed in (b"{", b'{"id": 7'):
            with pytest.raises(BadRequest, match="not JSON"):
                handed(malformed).json(type_)
    assert handed(b"[%s]" % GOOD).json(list[PydanticFlight])[0].id == "UA1545"


def test_pydantic_goes_all_the_way_to_a_destination() -> None:
    """Extracted, stored, decoded for `when` and `transform`, and shown as rows and frames."""
    airport = Source("airport")

    @airport.event(HTTP("/departures"))
    def departed(request: Request) -> Event[PydanticFlight]:
        return Event(request.json(PydanticFlight))

    @airport.event(HTTP("/several"))
    def several(request: Request) -> Event[list[PydanticFlight] | None]:
        return Event(request.json(list[PydanticFlight]))

    lake = Destination("lake")

    @lake.event(receives=[Flow(departed, when=lambda event: event.data.at is not None), several])
    def flights(batch: Batch[Any]) -> None:
        """Loads nothing."""

    app = Blacksmith(sources=[airport], destinations=[lake])
    sent = {"id": "UA1545", "departedAt": "2026-01-31T12:00:00Z"}
    one_of_several = Event([PydanticFlight.model_validate(sent)])
    given: list[tuple[SourceEvent[Any, Any, Any], Any]]
    given = [(departed, sent), (departed, {"id": "late"}), (several, one_of_several)]
    one, list_of = testing.run(app, given)["lake/flights"]
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert one.data == PydanticFlight.model_validate(sent)
    assert list_of.data == [one.data]
    assert Batch("lake/flights", [one]).to_pandas()["departedAt"].tolist() == [noon]
    rows, invalid = fit_rows([one], frozenset({"id", "legs", "departedAt"}), "flights", ["id"])
    assert not invalid
    assert rows[0].values == {"id": "UA1545", "legs": [], "departedAt": noon}


class Priced(pydantic.BaseModel):
    model_config = {"extra": "forbid"}
    net: float = pydantic.Field(alias="netPrice")
    options: pydantic.Json[Any] = None

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def gross(self) -> float:
        return self.net * 1.2


def test_what_pydantic_writes_it_reads_again() -> None:
    priced = Priced.model_validate({"netPrice": 100.0, "options": '{"wrapped": true}'})
    assert decoder(Priced)(encode(priced)) == priced


def test_a_json_schema_leaves_the_data_as_it_is() -> None:
    airport = Source("airport")
    departed = airport.accept("departed", model=JSONSchema(SCHEMA))
    lake = Destination("lake")
    lake.event(receives=departed, name="flights")(lambda batch: None)
    app = Blacksmith(sources=[airport], destinations=[lake])
    (job,) = testing.run(app, [(departed, {"id": "1", "more": 1.50})])["lake/flights"]
    assert job.data == {"id": "1", "more": 1.5}
    with pytest.raises(ValidationError, match=r"event 1 does not fit airport/departed"):
        testing.run(app, [(departed, {"id": 1})])


def test_what_was_kept_once_is_not_judged_again() -> None:
    assert decoder(JSONSchema(SCHEMA), stored=True)(b'{"id": 1}') == {"id": 1}


def test_a_json_schema_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "flight.json"
    path.write_text(json.dumps(SCHEMA))
    assert JSONSchema(path).decode(GOOD) == json.loads(GOOD)
    path.write_text("{")
    with pytest.raises(DeclarationError, match=r"flight\.json.* cannot be read"):
        JSONSchema(path)
    with pytest.raises(DeclarationError, match="cannot be read"):
        JSONSchema(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "nonsense"}, "is not a JSON Schema"),
        ({"properties": {"id": {"$ref": "#/$defs/nowhere"}}}, "is not a JSON Schema"),
        ({"$ref": "http://127.0.0.1:9/schema"}, "nothing is fetched"),
        ({"$ref": "file:///etc/hostname"}, "nothing is fetched"),
        ({"pattern": "("}, "is not a JSON Schema"),
        (["type"], "is a dict"),
        (None, "is a dict"),
    ],
)
def test_a_json_schema_is_checked_when_it_is_declared(schema: Any, says: str) -> None:
    with pytest.raises(DeclarationError, match=says.replace("$", r"\$")):
        JSONSchema(schema)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    with pytest.raises(ImportError, match=r"pip install 'blacksmith-dagster\[jsonschema\]'"):
        JSONSchema(SCHEMA)


class Opaque:
    pass


class PydanticOpaque(pydantic.BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    other: Opaque


@pytest.mark.parametrize("model", [Opaque, {"type": "object"}, 7])
def test_a_model_is_checked_when_it_is_declared(model: Any) -> None:
    with pytest.raises(DeclarationError, match="cannot be decoded into") as raised:
        checked_model("airport/departed", model)
    assert "a JSONSchema" in str(raised.value)


def test_what_cannot_be_written_is_reported() -> None:
    for data in (Opaque(), [Opaque()], PydanticOpaque(other=Opaque())):
        with pytest.raises((TypeError, ValueError)):
            encode(data)


def test_a_model_has_a_json_schema() -> None:
    for known in MODELS.values():
        schema = json.dumps(json_schema(known))
        assert "legs" in schema
        assert "miles" in schema
    for untold in (Any, PydanticOpaque, Callable[[], None]):
        assert json_schema(untold) == {}
