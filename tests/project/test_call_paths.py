"""The two call paths that docs/architecture.md names: their functions exist, and call each other."""

import ast
import importlib
import inspect
import re
import textwrap
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
STEP = re.compile(r"^\d+\. `(?P<file>[\w/]+)\.py`, `(?P<name>[\w.]+)`", re.MULTILINE)


def documented_path(title: str) -> list[Any]:
    """The functions of the numbered list below a heading, in order."""
    _, _, rest = PAGE.read_text().partition(f"### {title}\n")
    section, _, _ = rest.partition("\n#")
    return [
        attrgetter(step["name"])(
            importlib.import_module(f"blacksmith_dagster.{step['file'].replace('/', '.')}")
        )
        for step in STEP.finditer(section)
    ]


def calls_in(function: Any) -> list[ast.Call]:
    """The calls in a function, in the order of its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sorted(calls, key=lambda call: (call.end_lineno, call.end_col_offset))


def name_of(called: ast.expr | None) -> str:
    return str(getattr(called, "attr", None) or getattr(called, "id", ""))


def calls_of(function: Any) -> list[str]:
    """The names of what a function calls, in the order of its source: itself, in a private helper of
    its class, or, if it puts something into a queue, in the thread that its class starts."""
    owner, _, _ = function.__qualname__.rpartition(".")
    module = importlib.import_module(function.__module__)
    methods = vars(attrgetter(owner)(module)) if owner else {}
    names: list[str] = []
    for call in calls_in(function):
        name = name_of(call.func)
        if name.startswith("_") and name in methods:
            names += [name_of(inner.func) for inner in calls_in(methods[name])]
        elif name == "put":
            started = [
                argument for begun in calls_in(methods["__init__"]) for argument in begun.keywords
            ]
            names += [name_of(argument.value) for argument in started if argument.arg == "target"]
        names.append(name)
    return names


PATHS = [("From the request to the store", 7), ("From the op to the destination's function", 9)]


@pytest.mark.parametrize(("title", "at_most"), PATHS)
def test_call_paths_are_as_documented(title: str, at_most: int) -> None:
    """Each function is called by the one before it or, as a further step, by that one's caller."""
    first, *others = documented_path(title)
    assert others
    assert 1 + len(others) <= at_most
    callers = [(first, calls_of(first))]
    for function in others:
        while callers and function.__name__ not in callers[-1][1]:
            callers.pop()
        assert callers, f"{function.__qualname__} is not called by the functions before it"
        caller, calls = callers.pop()
        callers.append((caller, calls[calls.index(function.__name__) + 1 :]))
        callers.append((function, calls_of(function)))
