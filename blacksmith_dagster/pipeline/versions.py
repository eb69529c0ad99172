"""Versions of a source's or a destination's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime

from blacksmith_dagster.errors import DeclarationError, Unprocessable


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions that are accepted, and from which day on each is deprecated (`None`: it is not).

    - `default`: what an event without a version is of; `None` leaves it without.

    With none `known`, every version is accepted as it is.
    """

    known: Mapping[str, date | None]
    default: str | None = None

    def of(self, path: str, version: str | None) -> str | None:
        """The version of an event of `path` that names `version`, or none.

        Raises `Unprocessable` for an unknown one.
        """
        if version is None:
            return self.default
        if self.known and version not in self.known:
            raise Unprocessable(
                f"{path} has no version {version!r}; send one of {', '.join(self.known)}"
            )
        return version

    def deprecated_since(self, version: str | None, today: date) -> date | None:
        """Since when a version is deprecated, or `None` if it is not by `today`."""
        day = self.known.get(version) if version is not None else None
        return day if day is not None and day <= today else None


ANY = Versions({})


def checked_versions(
    where: str, versions: Mapping[str, date | None] | None, default: str | None
) -> Versions | None:
    """The versions that are declared; `None` if none are.

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
                "day from which it is deprecated, a datetime.date, or None"
            )
    if default is not None and default not in versions:
        raise DeclarationError(
            f"{where}: default_version={default!r} is none of its versions: "
            f"{', '.join(versions) or 'it has none'}"
        )
    return Versions(dict(versions), default)
