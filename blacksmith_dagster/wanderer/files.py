"""Reads the migrations that an application declares, from folders and code, by scope."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from blacksmith_dagster.errors import MigrationError, SettingsError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import Destination
from blacksmith_dagster.pipeline.migration import Migration, is_version
from blacksmith_dagster.pipeline.source import Source
from blacksmith_dagster.settings import find_project

_FILE = re.compile(r"(\d{14})\.([A-Za-z0-9_-]+)\.(up|down)\.sql")
_SCOPES = {
    "s": "source",
    "s/e": "source/event",
    "d": "destination",
    "d/e": "destination/event",
}
# A version is the author's local time, which may be up to a day ahead of this machine's.
_AHEAD = timedelta(days=1)

MigrationSource: TypeAlias = "Path | tuple[Migration, ...]"
"""The `migrations=` of a scope: a folder, or the migrations themselves."""


def canonical(scope: str) -> str:
    """A scope in its long form.

    >>> canonical("d/e:warehouse/flights")
    'destination/event:warehouse/flights'
    """
    prefix, colon, name = scope.partition(":")
    return f"{_SCOPES.get(prefix, prefix)}{colon}{name}"


def target_of(scope: str) -> str:
    """The target of a scope's migrations, which an adapter shares with its events.

    >>> target_of("destination/event:warehouse/flights")
    'destination/warehouse'
    """
    prefix, _, name = scope.partition(":")
    return f"{prefix.partition('/')[0]}/{name.partition('/')[0]}"


def scopes_of(adapter: Source | Destination[Any]) -> Mapping[str, MigrationSource]:
    """The `migrations=` of a source or destination and of each of its events, by scope."""
    prefix = "source" if isinstance(adapter, Source) else "destination"
    own: dict[str, MigrationSource] = {f"{prefix}:{adapter.name}": adapter.migrations}
    events: Iterable[Any] = adapter.events.values()
    return own | {f"{prefix}/event:{event.path}": event.migrations for event in events}


def adapters(app: Blacksmith) -> Mapping[str, Source | Destination[Any]]:
    """The sources and destinations, by the target that their migrations change."""
    return {f"source/{name}": source for name, source in app.sources.items()} | {
        f"destination/{name}": destination for name, destination in app.destinations.items()
    }


def chosen_scopes(app: Blacksmith, requested: Sequence[str]) -> Sequence[str]:
    """The requested scopes in their long form; all scopes if none is requested.

    Raises `MigrationError` for a scope that the application does not have.
    """
    scopes = [scope for adapter in adapters(app).values() for scope in scopes_of(adapter)]
    chosen = list(dict.fromkeys(map(canonical, requested)))
    for scope in chosen:
        if scope not in scopes:
            raise MigrationError(
                f"this application has no scope {scope!r}; it has {', '.join(scopes) or 'none'} "
                "(s:, s/e:, d: and d/e: are short for source:, source/event: and so on)"
            )
    return chosen or scopes


def declared(
    app: Blacksmith, scopes: Collection[str] | None = None
) -> Mapping[str, list[Migration]]:
    """The migrations of the scopes (all if `None`), oldest first.

    Raises `MigrationError` for a folder or a file that breaks a rule.
    """
    return {
        scope: read_scope(scope, source)
        for adapter in adapters(app).values()
        for scope, source in scopes_of(adapter).items()
        if scopes is None or scope in scopes
    }


def version_of(destination: Destination[Any]) -> int:
    """The newest version that a destination and its events declare; 0 without a migration.

    Raises `MigrationError`.
    """
    return max(
        (
            migration.version
            for scope, source in scopes_of(destination).items()
            for migration in read_scope(scope, source)
        ),
        default=0,
    )


def read_scope(scope: str, source: MigrationSource) -> list[Migration]:
    """A scope's migrations, oldest first, checked against the rules. The files are not opened.

    Raises `MigrationError`.
    """
    origin = scope
    if isinstance(source, Path):
        folder = project_folder() / source
        if not folder.is_dir():
            raise MigrationError(
                f"{scope}: its folder of migrations, {folder}, does not exist; create it, or "
                "correct migrations="
            )
        origin, source = str(folder), tuple(_read_folder(folder))
    migrations = sorted(source, key=lambda migration: migration.version)
    for first, second in pairwise(migrations):
        if first.version == second.version:
            raise MigrationError(
                f"{origin}: {first.name} and {second.name} have the same version {first.version}; "
                "give one of them another version"
            )
    latest = int((datetime.now(UTC) + _AHEAD).strftime("%Y%m%d%H%M%S"))
    if migrations and migrations[-1].version > latest:
        raise MigrationError(
            f"{origin}: {migrations[-1]} is from the future; a version is the time at which a "
            "migration was written: `blacksmith migrations new` makes one"
        )
    return migrations


def new_files(app: Blacksmith, scope: str, name: str, now: datetime) -> Sequence[Path]:
    """Create the up and down files of a new migration in the folder of a scope.

    Raises `MigrationError` if the scope has no folder of migrations, and `DeclarationError` for an
    invalid name.
    """
    [scope] = chosen_scopes(app, [scope])
    source = scopes_of(adapters(app)[target_of(scope)])[scope]
    if not isinstance(source, Path):
        raise MigrationError(
            f"{scope} has no folder of migrations; give it one, as in "
            f"migrations='migrations/{target_of(scope).partition('/')[2]}'"
        )
    folder = project_folder() / source
    migration = Migration(int(f"{now:%Y%m%d%H%M%S}"), name, up=folder, down=folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{migration.version}.{name}.{step}.sql" for step in ("up", "down")]
    for path in paths:
        with path.open("x", encoding="utf-8") as file:
            file.write(f"-- {name}: {path.suffixes[-2][1:]}\n")
    return paths


def project_folder() -> Path:
    """The folder that relative paths start from: that of the pyproject.toml that names the application,
    or the current one."""
    try:
        return find_project()
    except SettingsError:
        return Path.cwd()


def _read_folder(folder: Path) -> Iterable[Migration]:
    files: dict[tuple[int, str], dict[str, Path]] = {}
    for name in sorted(path.name for path in folder.iterdir()):
        if not name.lower().endswith(".sql") or name.startswith("."):
            continue
        match, path = _FILE.fullmatch(name), folder / name
        if match is None or not is_version(int(match[1])):
            raise MigrationError(
                f"{path}: not a migration's name; name it YYYYMMDDHHMMSS.name.up.sql or .down.sql, as "
                "in 20260131120000.add_gate.up.sql"
            )
        files.setdefault((int(match[1]), match[2]), {})[match[3]] = path
    for (version, title), steps in files.items():
        if "up" not in steps:
            raise MigrationError(
                f"{steps['down']}: there is no {version}.{title}.up.sql beside it; write it, or remove "
                "this one"
            )
        yield Migration(version, title, steps["up"], steps.get("down"))
