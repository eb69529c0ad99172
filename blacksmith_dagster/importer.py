"""Imports the application, and single functions, by names such as `assets.application:blacksmith`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.settings import find_project, project_table

_NAME = re.compile(r"\w+(\.\w+)*:\w+")


def load_application(app: str | None = None) -> Blacksmith:
    """The application that `app` names as `package.module:attribute`, or that pyproject.toml does.

    Modules are looked for in the current folder if `app` is given, else beside pyproject.toml.

    Raises `SettingsError` if it is not there, and whatever its module raises.
    """
    named: object = app
    folder, where = Path.cwd(), "the application"
    if app is None:
        folder = find_project()
        named = (project_table(folder) or {}).get("app")
        where = f"app in [tool.blacksmith] of {folder / 'pyproject.toml'}"
    if not isinstance(named, str) or not _NAME.fullmatch(named):
        given = "is missing" if named is None else f"is {named!r}"
        raise SettingsError(
            f"{where} {given}; write 'package.module:name', for example "
            "'assets.application:blacksmith'"
        )
    module, _, attribute = named.partition(":")
    imported = _imported(module, folder, f"{where} is {named!r}, and")
    found = getattr(imported, attribute, None)
    if not isinstance(found, Blacksmith):
        kind = "nothing" if found is None else f"a {type(found).__name__}"
        raise SettingsError(
            f"{where} is {named!r}, and {attribute!r} in {imported.__file__} is {kind}; name the "
            "Blacksmith(...) itself"
        )
    return found


def load_function(name: str) -> Callable[..., Any]:
    """The function that `name` names as `package.module:function`, in the application's folder too.

    Raises `SettingsError` if it is not there, and whatever its module raises.
    """
    found = None
    if _NAME.fullmatch(name):
        module, _, attribute = name.partition(":")
        imported = _imported(module, Path.cwd(), f"there is no function {name!r}:")
        found = getattr(imported, attribute, None)
    if not callable(found):
        raise SettingsError(
            f"there is no function {name!r}; write 'package.module:function', and run this where the "
            "module is"
        )
    return cast("Callable[..., Any]", found)


def _imported(module: str, folder: Path, problem: str) -> ModuleType:
    """A module, looked for in `folder` first; `problem` begins what is said if it is not there."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # its module is there; what that imports is not
        raise SettingsError(
            f"{problem} there is no module {error.name!r} in {folder}; correct the name, or run this "
            "where the module is"
        ) from error
