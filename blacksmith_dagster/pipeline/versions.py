"""Versions of a source's or a destination's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime

from blacksmith_dagster.errors import DeclarationError, Unprocessable


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


ANY = Versions({})


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
