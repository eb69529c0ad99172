"""What declarations share: the rules that they must follow, how they inherit, and their versions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, Self, TypeAlias, TypeVar

from blacksmith_dagster.errors import DeclarationError, Unprocessable

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_OWNER = re.compile(
    r"team:[A-Za-z0-9_]+|[A-Za-z0-9_][A-Za-z0-9._%+-]*@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}"
)
_TAG = re.compile(r"[A-Za-z0-9_.-]{1,63}(/[A-Za-z0-9_.-]{1,63})?")
_TAG_VALUE = re.compile(r"[A-Za-z0-9_.-]{0,63}")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST = timedelta(days=3650)

Duration: TypeAlias = str | timedelta
"""A `timedelta`, or numbers with ms, s, m, h or d: '90s', '1h30m'."""


class Inheriting:
    """A dataclass whose fields are inherited where they are `None`."""

    __slots__ = ()

    def inherit(self, parent: Self) -> Self:
        """A copy of this with the parent's value in each field that is `None`."""
        own: Any = self
        inherited: Self = replace(
            own,
            **{
                field.name: getattr(parent, field.name)
                for field in fields(own)
                if getattr(own, field.name) is None
            },
        )
        return inherited


T = TypeVar("T")
Record = TypeVar("Record", bound=Inheriting)


def either(own: T | None, inherited: T) -> T:
    """`own`, or what is inherited if that is `None`."""
    return inherited if own is None else own


def inherited(where: str, own: Record | None, parent: Record) -> Record:
    """`own` with the parent's value in each field that it does not set; `parent` if it is `None`.

    Raises `DeclarationError` if `own` is of another class.
    """
    if own is None:
        return parent
    if not isinstance(own, type(parent)):
        raise DeclarationError(f"{where}={own!r}: write a {type(parent).__name__}(...)")
    return own.inherit(parent)


@dataclass(frozen=True, slots=True)
class Versions:
    """The accepted versions, each with the day from which it is deprecated (`None`: it is not).

    - `default`: the version of an event that names none; it has none if this is `None` too.

    If `accepted` is empty, every version is accepted.
    """

    accepted: Mapping[str, date | None]
    default: str | None = None

    def of(self, path: str, version: str | None) -> str | None:
        """The version of an event of `path` that names `version` or no version.

        Raises `Unprocessable` for an unknown version.
        """
        if version is None:
            return self.default
        if self.accepted and version not in self.accepted:
            raise Unprocessable(
                f"{path} has no version {version!r}; send one of {', '.join(self.accepted)}"
            )
        return version

    def deprecated_since(self, version: str | None, today: date) -> date | None:
        """The day since which a version is deprecated, or `None` if it is not deprecated on `today`."""
        day = self.accepted.get(version) if version is not None else None
        return day if day is not None and day <= today else None


ANY_VERSION = Versions({})
"""Every version is accepted."""


def checked_name(what: str, name: str) -> str:
    """`name` if it is valid for a source, a destination or an event; else raises `DeclarationError`.

    Names become parts of URLs, of Dagster's asset keys and of its job names (`^[A-Za-z0-9_]+$`), in
    which `__` joins a destination and its event.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "__" in name:
        raise DeclarationError(
            f"{what} {name!r}: a name is a lower-case letter, then lower-case letters, digits and "
            "single underscores; rename it, for example to 'flight_departed'"
        )
    return name


def checked_keywords(where: str, given: Mapping[str, Any], properties: type) -> None:
    """Raise `DeclarationError` if a `given` keyword is not one of the `properties`.

    `properties` is a TypedDict, which only type checkers enforce.
    """
    known = properties.__annotations__
    unknown = sorted(given.keys() - known)
    if unknown:
        raise DeclarationError(
            f"{where} has no property {', '.join(unknown)}; write one of {', '.join(sorted(known))}"
        )


def checked_number(where: str, number: Any, low: float, high: float, *, whole: bool = True) -> None:
    """Raise `DeclarationError` unless `number` is one from `low` to `high`."""
    is_number = isinstance(number, int if whole else (int, float)) and not isinstance(number, bool)
    if not (is_number and low <= number <= high):
        raise DeclarationError(
            f"{where}={number!r}: write a {'whole ' if whole else ''}number from {low} to {high}"
        )


def checked_owners(where: str, owners: Sequence[str] | None) -> tuple[str, ...] | None:
    """`owners` if each is an e-mail address or `team:name`, as Dagster requires."""
    if owners is None:
        return None
    for owner in owners:
        if not isinstance(owner, str) or not _OWNER.fullmatch(owner):
            raise DeclarationError(
                f"{where}: owner {owner!r} is neither an e-mail address nor 'team:<name>'; write "
                "owners=['team:flights'], for example"
            )
    return tuple(owners)


def checked_tags(where: str, tags: Mapping[str, str] | None) -> dict[str, str] | None:
    """`tags` if Dagster accepts each key and value."""
    if tags is None:
        return None
    for key, value in tags.items():
        is_valid = isinstance(value, str) and _TAG_VALUE.fullmatch(value)
        if not is_valid or not isinstance(key, str) or not _TAG.fullmatch(key):
            raise DeclarationError(
                f"{where}: tag {key!r}={value!r}: write key and value with letters, digits and _.- "
                "(63 at most; a key may be two such parts with a '/' between)"
            )
    return dict(tags)


def checked_versions(
    where: str, versions: Mapping[str, date | None] | None, default: str | None
) -> Versions | None:
    """The declared versions; `None` if there are none.

    >>> checked_versions("source 'crm'", {"2": None, "1": date(2026, 1, 1)}, "2").default
    '2'

    Raises `DeclarationError`.
    """
    if versions is None and default is None:
        return None
    versions = versions or {}
    for version, day in versions.items():
        is_day = isinstance(day, date) and not isinstance(day, datetime)
        if not (isinstance(version, str) and version and (day is None or is_day)):
            raise DeclarationError(
                f"{where}: versions={{{version!r}: {day!r}}}: write each version as text, with the "
                "datetime.date from which it is deprecated, or None"
            )
    if default is not None and default not in versions:
        raise DeclarationError(
            f"{where}: default_version={default!r} is not one of its versions "
            f"({', '.join(versions) or 'it has none'}); declare it in versions="
        )
    return Versions(dict(versions), default)


def duration(where: str, value: Duration, *, least: timedelta | None = None) -> timedelta:
    """`value` as a `timedelta`: longer than 0 or, if given, `least` at least; 3650 days at most.

    >>> duration("timeout", "1h30m")
    datetime.timedelta(seconds=5400)

    Raises `DeclarationError`.
    """
    if isinstance(value, timedelta):
        length = value
    elif isinstance(value, str) and _DURATION.fullmatch(value):
        total = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(value))
        length = timedelta(seconds=min(total, 2 * _LONGEST.total_seconds()))
    else:
        raise DeclarationError(
            f"{where}: {value!r} is not a duration; write numbers with ms, s, m, h or d, as in '90s' "
            "or '1h30m', or a timedelta"
        )
    if length > _LONGEST or (length <= timedelta(0) if least is None else length < least):
        at_least = "longer than 0" if least is None else f"of {least.total_seconds():g}s at least"
        raise DeclarationError(
            f"{where}: {value!r}: write a duration {at_least} and {_LONGEST.days}d at most"
        )
    return length


@lru_cache(maxsize=256)
def seconds(declared: Duration) -> float:
    """A duration that was declared, in seconds."""
    return duration("duration", declared, least=timedelta(0)).total_seconds()


def checked_function(where: str, function: Any, *arguments: str, may_yield: bool = False) -> Any:
    """`function` if it can be called with `arguments` and its work is done when it returns.

    Calling a coroutine function only creates a coroutine; calling a generator function only creates a
    generator, which is accepted if the caller iterates over it (`may_yield`).
    """
    shown = f"({', '.join(arguments)})"
    if not callable(function):
        raise DeclarationError(
            f"{where}: {function!r} is not a function; write one that takes {shown}"
        )
    # An instance of a class with __call__ is accepted too.
    bodies = (function, getattr(type(function), "__call__", None))  # noqa: B004
    if any(map(inspect.iscoroutinefunction, bodies)) or any(
        map(inspect.isasyncgenfunction, bodies)
    ):
        raise DeclarationError(
            f"{where}: its function is asynchronous and would not be awaited; write `def` "
            "without `async`"
        )
    if not may_yield and any(map(inspect.isgeneratorfunction, bodies)):
        raise DeclarationError(
            f"{where}: its function yields, but what it yields would not be used; return instead"
        )
    try:
        # The function that is called, not a function that it wraps.
        signature = inspect.signature(function, follow_wrapped=False)
    except ValueError:
        return function  # a function written in C may have no signature
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise DeclarationError(
            f"{where}: its function is called with {shown}, but it takes {signature}; change its "
            "parameters"
        ) from error
    return function
