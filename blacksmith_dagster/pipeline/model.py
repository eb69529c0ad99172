"""The models of an event's data: decode, encode, and JSON Schema, with msgspec or pydantic."""

from __future__ import annotations

import codecs
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import msgspec
from msgspec import inspect

from blacksmith_dagster.errors import DeclarationError

if TYPE_CHECKING:
    import pydantic

Decode: TypeAlias = Callable[[bytes | str], Any]

_UNKNOWN = "objects of type {} cannot be written as JSON"
_PLAIN = frozenset({type(None), bool, int, float, str, list, dict, msgspec.Raw})
# Raised for an annotation that is invalid or uses undefined names.
_NOT_THERE = (NameError, AttributeError, SyntaxError, TypeError, ValueError)

# A byte order mark and the encoding that it shows. UTF-32's contain UTF-16's, so they come first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
ANY_MARK = tuple(mark for mark, _ in _MARKS)

_check_json = msgspec.json.Decoder(msgspec.Raw).decode
_any = msgspec.json.Decoder().decode


class JSONSchema:
    """A JSON Schema that data must fit; the data itself stays as it is, dicts and lists.

    Pass a dict, or the path of a file. Its draft is the one that `$schema` names, else 2020-12. It must
    contain whatever it refers to: nothing is fetched.

    >>> order = JSONSchema({"type": "object", "required": ["id"]})
    >>> order.decode(b'{"id": 7}')
    {'id': 7}

    Raises `DeclarationError` if it is not a JSON Schema, and `ImportError` without the extra
    `jsonschema`.
    """

    def __init__(self, schema: Mapping[str, Any] | Path) -> None:
        try:
            import jsonschema_rs
        except ImportError as error:
            raise ImportError(
                "JSONSchema needs jsonschema-rs; run `pip install 'blacksmith-dagster[jsonschema]'`"
            ) from error
        where = f"JSONSchema({schema})" if isinstance(schema, Path) else "JSONSchema(...)"
        self.schema: dict[str, Any] = _read(where, schema)
        try:
            validator = jsonschema_rs.validator_for(
                self.schema, mask="the value", retriever=_fetch_nothing
            )
        except ValueError as error:
            raise DeclarationError(
                f"{where} is not a JSON Schema: {str(error).partition(chr(10))[0]}"
            ) from error
        self._is_valid = validator.is_valid
        self._faults = validator.iter_errors

    def decode(self, body: bytes | str) -> Any:
        """The data of a JSON body.

        Raises `msgspec.ValidationError` with the place where the data does not fit, and
        `msgspec.DecodeError` if the body is not JSON.
        """
        data = _any(body)
        if not self._is_valid(data):
            faults = [(fault.message, fault.instance_path) for fault in self._faults(data)]
            _raise_invalid(faults)
        return data

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.schema.get('title', '')}>"


def decoder(model: Any, *, stored: bool = False) -> Decode:
    """A decoder of JSON into `model`: a type that msgspec or pydantic knows, or a `JSONSchema`.

    It raises `msgspec.ValidationError` with the place where the data does not fit, and another
    `msgspec.DecodeError`, or `UnicodeDecodeError`, if it is not JSON. Data that is `stored` already is
    not checked against a JSON Schema again.
    """
    if isinstance(model, JSONSchema):
        return _any if stored else model.decode
    if _has_pydantic(model):
        return _Pydantic(model).decode
    decode: Decode = msgspec.json.Decoder(model).decode
    return decode


def without_mark(text: bytes) -> bytes:
    """Text in UTF-8 without a byte order mark: one in UTF-8, UTF-16 or UTF-32 says how to decode it.

    Text without a mark is returned as it is.

    >>> without_mark('\ufeff{"a": 1}'.encode("utf-16-le"))
    b'{"a": 1}'

    Raises `UnicodeDecodeError` for text that is not in the encoding of its mark.
    """
    if text.startswith(ANY_MARK):
        mark, encoding = next(found for found in _MARKS if text.startswith(found[0]))
        text = text[len(mark) :].decode(encoding).encode()
    return text


def decode_json(body: bytes | str, model: Any) -> Any:
    """A body decoded into `model`. To decode many, use a `decoder`."""
    if _has_pydantic(model):
        return _of_pydantic(model).decode(body)
    return msgspec.json.decode(body, type=model)


def check_json(body: bytes | str) -> None:
    """Raise `msgspec.DecodeError`, `UnicodeDecodeError` or `RecursionError` if a body is not JSON.

    A decoder may find that a body does not fit before it comes to where it is not JSON.
    """
    if isinstance(body, bytes):
        body.decode()  # which msgspec leaves out for `Raw`
    _check_json(body)


def encode(data: Any) -> bytes:
    """Data as JSON: anything that msgspec can write, and pydantic's models within it.

    Raises `TypeError`, `ValueError`, `OverflowError` or `RecursionError` if it cannot be written.
    """
    return _encode(data)


def to_builtins(data: Any, unchanged: Sequence[type]) -> Any:
    """Data as dicts, lists, numbers and texts; values of the types `unchanged` stay as they are."""
    return msgspec.to_builtins(data, builtin_types=unchanged, enc_hook=_dumped)


def is_plain(data: Any) -> bool:
    """Whether data is a type of JSON itself, or JSON that is not decoded, and no object of a model."""
    return type(data) in _PLAIN


def checked_model(path: str, model: Any) -> Any:
    """`model` if data can be decoded into it. Raises `DeclarationError`."""
    if isinstance(model, JSONSchema):
        return model
    reason = "msgspec cannot decode JSON into it"
    try:
        if _has_pydantic(model):
            _Pydantic(model)
            return model
        if model is object or not isinstance(inspect.type_info(model), inspect.CustomType):
            return model
    except _NOT_THERE as error:
        reason = str(error)
    raise DeclarationError(
        f"{path}: its data cannot be decoded into {model!r}: {reason}; give a msgspec.Struct, a "
        "dataclass, a TypedDict or another type that msgspec decodes, a pydantic.BaseModel, or a "
        "JSONSchema"
    )


def json_schema(model: Any) -> dict[str, Any]:
    """The JSON Schema of `model`; `{}`, which accepts everything, if it cannot be expressed as one."""
    if isinstance(model, JSONSchema):
        return model.schema
    try:
        if _has_pydantic(model):
            return _of_pydantic(model).json_schema()
        return msgspec.json.schema(model)
    except (TypeError, ValueError):  # msgspec and pydantic cannot express every type
        return {}


class _Pydantic:
    """A pydantic model, or a type that contains some. Creating its adapter is expensive."""

    def __init__(self, model: Any) -> None:
        from pydantic import PydanticUserError, TypeAdapter, ValidationError

        self._adapter: pydantic.TypeAdapter[Any] = TypeAdapter(model)
        self._invalid = ValidationError
        self._unknown = PydanticUserError

    def decode(self, body: bytes | str) -> Any:
        _check_json(body)  # pydantic also accepts NaN, which is not JSON
        try:
            return self._adapter.validate_json(body)
        except self._invalid as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            if faults[0]["type"] == "json_invalid":
                raise msgspec.DecodeError(faults[0]["msg"]) from error
            _raise_invalid([(fault["msg"], fault["loc"]) for fault in faults])

    def json_schema(self) -> dict[str, Any]:
        try:
            return self._adapter.json_schema()
        except self._unknown as error:
            raise ValueError(str(error)) from error


_of_pydantic = lru_cache(maxsize=256)(_Pydantic)


def _has_pydantic(model: Any) -> bool:
    # If there is a pydantic model, pydantic has been imported.
    pydantic = sys.modules.get("pydantic")
    if pydantic is None:
        return False
    if isinstance(model, type) and issubclass(model, pydantic.BaseModel):
        return True
    return any(map(_has_pydantic, typing.get_args(model)))


def _dumped(value: Any) -> Any:
    if _has_pydantic(type(value)):
        return value.model_dump(by_alias=True)
    raise TypeError(_UNKNOWN.format(type(value).__qualname__))


def _written(value: Any) -> Any:
    if _has_pydantic(type(value)):
        # round_trip: computed fields are left out, as the model cannot read them again.
        return msgspec.Raw(value.model_dump_json(by_alias=True, round_trip=True).encode())
    raise TypeError(_UNKNOWN.format(type(value).__qualname__))


_encode = msgspec.json.Encoder(enc_hook=_written).encode


def _raise_invalid(faults: Sequence[tuple[str, Sequence[Any]]]) -> NoReturn:
    """Raise for the first fault, in msgspec's words."""
    message, place = faults[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    raise msgspec.ValidationError(f"{message} - at `${path}`{more}")


def _read(where: str, schema: Any) -> dict[str, Any]:
    if isinstance(schema, Path):
        try:
            schema = _any(schema.read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            raise DeclarationError(f"{where} cannot be read: {error}; name a JSON file") from error
    if not isinstance(schema, Mapping):
        raise DeclarationError(f"{where}: a JSON Schema is a dict, or the path of a file with one")
    return dict(schema)


def _fetch_nothing(uri: str) -> NoReturn:
    raise ValueError(f"{uri} is not in the schema, and nothing is fetched; put it into its $defs")
