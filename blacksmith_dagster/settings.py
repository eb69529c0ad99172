"""The settings of a process, read from the environment once.

- `BLACKSMITH_HOME`: where the default store lives; `.blacksmith/` beside the pyproject.toml that
  names the application, so never the folder a command happens to run in.
- `BLACKSMITH_STORE_URL`: `postgresql://...` or `sqlite:///path`; by default SQLite in the home.
"""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.pipeline.application import Blacksmith


@dataclass(frozen=True, slots=True)
class Settings:
    """Where this process finds its home and its store. `store_url` may hold a password."""

    home: Path
    store_url: str

    @classmethod
    def read(cls, project: Path | None = None) -> Settings:
        """The settings of the project in (or above) the folder `project`, the current one if `None`.

        Raises `SettingsError` if neither `BLACKSMITH_HOME` nor a pyproject.toml with
        `[tool.blacksmith]` says where the home is.
        """
        given = os.environ.get("BLACKSMITH_HOME")
        home = (
            Path(given).expanduser().resolve() if given else find_project(project) / ".blacksmith"
        )
        url = os.environ.get("BLACKSMITH_STORE_URL") or f"sqlite:///{home / 'store.db'}"
        return cls(home, url)

    def __repr__(self) -> str:
        return f"Settings(home={self.home})"


def find_project(start: Path | None = None) -> Path:
    """The nearest folder, from `start` upwards, whose pyproject.toml has `[tool.blacksmith]`.

    Raises `SettingsError`.
    """
    folder = (start or Path.cwd()).resolve()
    for candidate in (folder, *folder.parents):
        if _table(candidate) is not None:
            return candidate
    raise SettingsError(
        f"no pyproject.toml with a [tool.blacksmith] table in {folder} or above it; add one with "
        'app = "package.module:name", or set BLACKSMITH_HOME and give --app'
    )


def load_application(app: str | None = None) -> Blacksmith:
    """The application that `app` names as `package.module:attribute`, or that pyproject.toml does.

    Raises `SettingsError` if it is not there.
    """
    project = None if app else find_project()
    named = app or (_table(project) or {}).get("app")
    if not isinstance(named, str) or ":" not in named:
        raise SettingsError(
            f"[tool.blacksmith] app = {named!r}: write 'package.module:name', for example "
            "'assets.application:blacksmith'"
        )
    folder = str(project or Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module, _, attribute = named.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise SettingsError(f"the application {named!r} cannot be found: {error}") from error
    if not isinstance(found, Blacksmith):
        raise SettingsError(f"{named!r} is a {type(found).__name__}, not a Blacksmith application")
    return found


def _table(folder: Path | None) -> dict[str, object] | None:
    if folder is None or not (folder / "pyproject.toml").is_file():
        return None
    read = tomllib.loads((folder / "pyproject.toml").read_text())
    table = read.get("tool", {}).get("blacksmith")
    return table if isinstance(table, dict) else None
