"""What an application declares: its scopes, and the migrations of each, from folders and from code."""

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
_KINDS = {
    "s": "source",
    "s/e": "source/event",
    "d": "destination",
    "d/e": "destination/event",
}
# A version is the writer's local time, which may be ahead of this machine's by the width of a day.
_AHEAD = timedelta(days=1)

Given: TypeAlias = "Path | tuple[Migration, ...]"
"""What a scope was declared with: a folder, or the migrations themselves."""


def canonical(scope: str) -> str:
    """A scope in its long form.

    >>> canonical("d/e:warehouse/flights")
    'destination/event:warehouse/flights'
    """
    kind, colon, name = scope.partition(":")
    return f"{_KINDS.get(kind, kind)}{colon}{name}"


def target_of(scope: str) -> str:
    """What a scope's migrations change: an adapter and its events share it.

    >>> target_of("destination/event:warehouse/flights")
    'destination/warehouse'
    """
    kind, _, name = scope.partition(":")
    return f"{kind.partition('/')[0]}/{name.partition('/')[0]}"


def scopes_of(adapter: Source | Destination[Any]) -> Mapping[str, Given]:
    """What a source or destination, and each of its events, have as migrations, by scope."""
    kind = "source" if isinstance(adapter, Source) else "destination"
    found: dict[str, Given] = {f"{kind}:{adapter.name}": adapter.migrations}
    events: Iterable[Any] = adapter.events.values()
    return found | {f"{kind}/event:{event.path}": event.migrations for event in events}


def adapters(app: Blacksmith) -> Mapping[str, Source | Destination[Any]]:
    """The sources and destinations, by the name of the target that their migrations change."""
    return {f"source/{name}": each for name, each in app.sources.items()} | {
        f"destination/{name}": each for name, each in app.destinations.items()
    }


def chosen_scopes(app: Blacksmith, asked: Sequence[str]) -> Sequence[str]:
    """The scopes that are asked for, in their long form; all if none is.

    Raises `MigrationError` for one that the application does not have.
    """
    known = [scope for adapter in adapters(app).values() for scope in scopes_of(adapter)]
    chosen = list(dict.fromkeys(map(canonical, asked)))
    for scope in chosen:
        if scope not in known:
            raise MigrationError(
                f"this application has no scope {scope!r}; it has {', '.join(known) or 'none'} "
                "(s:, s/e:, d: and d/e: are short for source:, source/event: and so on)"
            )
    return chosen or known


def declared(
    app: Blacksmith, scopes: Collection[str] | None = None
) -> Mapping[str, list[Migration]]:
    """The migrations of the scopes (all if `None`), oldest first.

    Raises `MigrationError` for a folder or a file that breaks a rule.
    """
    now = datetime.now(UTC)
    return {
        scope: read_scope(scope, given, now)
        for adapter in adapters(app).values()
        for scope, given in scopes_of(adapter).items()
        if scopes is None or scope in scopes
    }


def version_of(destination: Destination[Any]) -> int:
    """The newest version that a destination and its events declare; 0 if they have no migration.

    Raises `MigrationError`.
    """
    now = datetime.now(UTC)
    return max(
        (
            migration.version
            for scope, given in scopes_of(destination).items()
            for migration in read_scope(scope, given, now)
        ),
        default=0,
    )


def read_scope(scope: str, given: Given, now: datetime) -> list[Migration]:
    """A scope's migrations, oldest first, held against the rules. The files' contents are not read.

    Raises `MigrationError`.
    """
    where = scope
    if isinstance(given, Path):
        folder = _found(scope, given)
        where, given = str(folder), tuple(_in_folder(folder))
    migrations = sorted(given, key=lambda each: each.version)
    for one, other in pairwise(migrations):
        if one.version == other.version:
            raise MigrationError(
                f"{where}: two migrations are of version {one.version}, {one.name} and {other.name}; "
                "give one of them another version"
            )
    latest = int((now + _AHEAD).strftime("%Y%m%d%H%M%S"))
    if migrations and migrations[-1].version > latest:
        raise MigrationError(
            f"{where}: {migrations[-1]} is from the future; a version is the time at which a "
            "migration was written: `blacksmith migrations new` makes one"
        )
    return migrations


def _found(scope: str, given: Path) -> Path:
    folder = project_folder() / given
    if not folder.is_dir():
        raise MigrationError(
            f"{scope}: its folder of migrations, {folder}, is not there; make it, or correct "
            "migrations="
        )
    return folder


def new_files(app: Blacksmith, scope: str, name: str, now: datetime) -> Sequence[Path]:
    """Make the files of a migration of this moment, up and down, in the folder of a scope.

    Raises `MigrationError` if the scope's migrations are in no folder, `DeclarationError` for a name
    that breaks the rule.
    """
    [scope] = chosen_scopes(app, [scope])
    given = scopes_of(adapters(app)[target_of(scope)])[scope]
    if not isinstance(given, Path):
        raise MigrationError(
            f"{scope} has no folder of migrations; give it one, as in "
            f"migrations='migrations/{target_of(scope).partition('/')[2]}'"
        )
    folder = project_folder() / given
    made = Migration(int(f"{now:%Y%m%d%H%M%S}"), name, up=folder, down=folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{made.version}.{name}.{way}.sql" for way in ("up", "down")]
    for path in paths:
        with path.open("x", encoding="utf-8") as file:
            file.write(f"-- {name}: {path.suffixes[-2][1:]}\n")
    return paths


def project_folder() -> Path:
    """What a relative folder is relative to: the folder of the pyproject.toml that names the
    application, or the current one."""
    try:
        return find_project()
    except SettingsError:
        return Path.cwd()


def _in_folder(folder: Path) -> Iterable[Migration]:
    steps: dict[tuple[int, str], dict[str, Path]] = {}
    for name in sorted(path.name for path in folder.iterdir()):
        if not name.lower().endswith(".sql") or name.startswith("."):
            continue
        match, path = _FILE.fullmatch(name), folder / name
        if match is None or not is_version(int(match[1])):
            raise MigrationError(
                f"{path}: no migration is named so; name it YYYYMMDDHHMMSS.name.up.sql or .down.sql, "
                "as in 20260131120000.add_gate.up.sql"
            )
        steps.setdefault((int(match[1]), match[2]), {})[match[3]] = path
    for (version, title), found in steps.items():
        if "up" not in found:
            raise MigrationError(
                f"{found['down']}: there is no {version}.{title}.up.sql beside it; write it, or remove "
                "this one"
            )
        yield Migration(version, title, found["up"], found.get("down"))
