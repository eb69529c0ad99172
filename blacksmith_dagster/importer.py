"""Imports the application, and single functions, by names such as `assets.application:blacksmith`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.settings import find_project, project_table

_NAME = re.compile(r"\w+(\.\w+)*:\w+")


def load_application(app: str | None = None) -> Blacksmith:
    """The application that `app`, or else pyproject.toml, names; see `load_named`."""
    value, found = load_named("app", app, "the application", "assets.application:blacksmith")
    if not isinstance(value, Blacksmith):
        raise SettingsError(f"{found}; name the Blacksmith(...) itself")
    return value


def load_named(key: str, name: object, what: str, example: str) -> tuple[object, str]:
    """What `name`, or else `key` in pyproject.toml, names as `package.module:attribute`.

    The second value says what was found where; an error begins with it. Modules are imported from the
    current folder if `name` is given, else from that of pyproject.toml.

    Raises `SettingsError` if the name or its module is missing, and whatever the module raises.
    """
    folder, origin = Path.cwd(), what
    if name is None:
        folder, name = find_project(), project_entry(key)
        origin = f"{key} in [tool.blacksmith] of {folder / 'pyproject.toml'}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problem = "is missing" if name is None else f"is {name!r}"
        raise SettingsError(
            f"{origin} {problem}; write 'package.module:name', for example {example!r}"
        )
    module_name, _, attribute = name.partition(":")
    module = _import_module(module_name, folder, f"{origin} is {name!r}, and")
    value = getattr(module, attribute, None)
    description = "nothing" if value is None else f"a {type(value).__name__}"
    return value, f"{origin} is {name!r}, and {attribute!r} in {module.__file__} is {description}"


def project_entry(key: str) -> object:
    """The value of a key in `[tool.blacksmith]` of the current project; `None` if it is not set."""
    with suppress(SettingsError):
        return (project_table(find_project()) or {}).get(key)
    return None


def load_function(name: str) -> Callable[..., Any]:
    """The function that `name` names as `package.module:function`, imported from the current folder too.

    Raises `SettingsError` if the function is missing, and whatever its module raises.
    """
    function = None
    if _NAME.fullmatch(name):
        module_name, _, attribute = name.partition(":")
        module = _import_module(module_name, Path.cwd(), f"there is no function {name!r}:")
        function = getattr(module, attribute, None)
    if not callable(function):
        raise SettingsError(
            f"there is no function {name!r}; write 'package.module:function', and run this where the "
            "module is"
        )
    return cast("Callable[..., Any]", function)


def _import_module(module: str, folder: Path, problem: str) -> ModuleType:
    """Import a module, from `folder` first; the error for a missing one begins with `problem`."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, but a module that it imports does not
        raise SettingsError(
            f"{problem} there is no module {error.name!r} in {folder}; correct the name, or run this "
            "where the module is"
        ) from error
