"""The rules that every declaration is held against, each with its mend."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta

from blacksmith_dagster.errors import DeclarationError

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_OWNER = re.compile(
    r"team:[A-Za-z0-9_]+|[A-Za-z0-9_][A-Za-z0-9._%+-]*@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}"
)
_TAG = re.compile(r"[A-Za-z0-9_.-]{1,63}(/[A-Za-z0-9_.-]{1,63})?")
_TAG_VALUE = re.compile(r"[A-Za-z0-9_.-]{0,63}")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def checked_name(what: str, name: str) -> str:
    """`name` if it may name a source, a destination or an event; else a `DeclarationError`.

    Names become parts of URLs, of Dagster's asset keys and of its job names
    (`^[A-Za-z0-9_]+$`), where `__` joins a destination and its event.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "__" in name:
        raise DeclarationError(
            f"{what} {name!r}: a name is a lower-case letter, then lower-case letters, digits and "
            "single underscores; rename it, to 'flight_departed' for example"
        )
    return name


def checked_owners(where: str, owners: Sequence[str] | None) -> tuple[str, ...] | None:
    """`owners` if each is an e-mail address or `team:name`, as Dagster wants them."""
    if owners is None:
        return None
    for owner in owners:
        if not _OWNER.fullmatch(owner):
            raise DeclarationError(
                f"{where}: owner {owner!r} is neither an e-mail address nor 'team:<name>'"
            )
    return tuple(owners)


def checked_tags(where: str, tags: Mapping[str, str] | None) -> dict[str, str] | None:
    """`tags` if each key and value is one that Dagster takes."""
    if tags is None:
        return None
    for key, value in tags.items():
        taken = isinstance(value, str) and _TAG_VALUE.fullmatch(value)
        if not taken or not _TAG.fullmatch(key):
            raise DeclarationError(
                f"{where}: tag {key!r}={value!r}: key and value are letters, digits and _.- (63 at "
                "most; in a key also one '/' between two such)"
            )
    return dict(tags)


def duration(where: str, text: str) -> timedelta:
    """The duration that `text` says: numbers with ms, s, m, h or d, as in '90s' or '1h30m'."""
    if not isinstance(text, str) or not _DURATION.fullmatch(text):
        raise DeclarationError(
            f"{where}: {text!r} is no duration; write numbers with ms, s, m, h or d: '90s', '1h30m'"
        )
    found = timedelta(
        seconds=sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    )
    if found <= timedelta(0):
        raise DeclarationError(f"{where}: {text!r} must be longer than nothing")
    return found
