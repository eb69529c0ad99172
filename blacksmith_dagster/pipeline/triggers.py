"""How a source event is extracted: what its function is handed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar, overload
from urllib.parse import parse_qsl

import msgspec

from blacksmith_dagster.errors import DeclarationError, Reject, ValidationError
from blacksmith_dagster.pipeline import model

In = TypeVar("In")
T = TypeVar("T")

_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")
_METHODS = frozenset({"POST", "PUT", "PATCH"})


class Trigger(Generic[In]):
    """The base of all triggers; `In` is what the extract function is handed."""


def decode_body(body: bytes, type: Any) -> Any:
    """A body of JSON decoded into `type`.

    Raises `ValidationError` with the place of the fault, and `Reject` for what is not JSON.
    """
    try:
        return model.decode_json(body, type)
    except msgspec.ValidationError as error:
        raise ValidationError(f"the body does not fit: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Reject(f"the body does not fit: {error}") from error


class Request(msgspec.Struct, frozen=True):
    """An HTTP request, or one item of it if its body is a JSON array or NDJSON.

    - `body`: the item's bytes, as they came.
    - `headers`: names in lower case.
    - `query`: of a name that occurs twice, the last value.
    - `received_at`: when it came, if it is retried from quarantine; else `None`: it comes now.
    """

    body: bytes
    headers: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    method: str = "POST"
    path: str = "/"
    received_at: datetime | None = None

    @classmethod
    def of(cls, data: Any, headers: Mapping[str, str] | None = None) -> Request:
        """A request whose body is `data` as JSON: to call an extract function in a test.

        >>> Request.of({"flight": 1545}).json()
        {'flight': 1545}
        """
        return cls(
            msgspec.json.encode(data),
            {"content-type": "application/json"}
            | {name.lower(): value for name, value in (headers or {}).items()},
        )

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, type: type[T]) -> T: ...
    def json(self, type: Any = Any) -> Any:
        """The body decoded as JSON, into `type` if one is given: a type that msgspec decodes
        (Structs, dataclasses, TypedDicts, ...), or a model of pydantic.

        Raises `Reject` (422) with the place of the fault when it does not fit; see `invalid` of
        `Properties`.
        """
        return decode_body(self.body, type)

    def form(self) -> dict[str, str]:
        """The body of an HTML form (`application/x-www-form-urlencoded`), decoded.

        Of a name that occurs twice, the last value. Raises `Reject` (422) for another body.
        """
        try:
            text = self.body.decode()
            return dict(parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text)))
        except ValueError as error:
            raise Reject(f"the body is no form: {error}") from error


@dataclass(frozen=True, slots=True)
class Reply:
    """Returned by an extract function to respond at once and store nothing (a handshake).

    >>> Reply(200, "challenge").status
    200
    """

    status: int = 200
    body: str | bytes = b""
    content_type: str = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class HTTP(Trigger[Request]):
    """A request to `path`, by one of `POST`, `PUT` and `PATCH`.

    >>> HTTP("/airport/departures")
    HTTP(path='/airport/departures', method='POST')
    """

    path: str
    method: str = "POST"

    def __post_init__(self) -> None:
        if (
            not isinstance(self.path, str)
            or not _PATH.fullmatch(self.path)
            or self.path.startswith("/_")
        ):
            raise DeclarationError(
                f"HTTP({self.path!r}): write a path of letters, digits and ._~- between slashes, as in "
                "'/airport/departures'; clients remove '.' and '..', and '/_...' is the gateway's own"
            )
        if self.method not in _METHODS:
            raise DeclarationError(
                f"HTTP({self.path!r}, method={self.method!r}): write "
                f"one of {', '.join(sorted(_METHODS))}"
            )


@dataclass(frozen=True, slots=True)
class Child(Trigger[Any]):
    """No trigger of its own: the event comes with others; see `Source.child`."""
