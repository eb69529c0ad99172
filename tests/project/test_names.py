"""One name, one meaning: no two classes of the package share a name, nor do two public functions."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import blacksmith_dagster

PACKAGE = Path(blacksmith_dagster.__file__).parent

# The same operation at two layers: a command and what it calls, or the interface that is Alembic's.
SHARED = {
    "drop": "of requests in quarantine: the command, and the statement of the store",
    "purge": "the command, and the scheduler's call",
    "replay": "the command, and the scheduler's call",
    "upgrade": "of the store's tables: the command, the call, and Alembic's function in each version",
}


def test_no_two_classes_share_a_name() -> None:
    places = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, line in _classes_and_functions(ast.parse(path.read_text())):
            places[name].append(f"{path.relative_to(PACKAGE)}:{line}")
    several = {name: where for name, where in places.items() if len(where) > 1}
    shared = {name: where for name, where in several.items() if name not in SHARED}
    assert not shared, "give each a name of its own, or say in SHARED why they share it"
    assert sorted(several) == sorted(SHARED), "a name in SHARED is not shared any more: take it out"


def _classes_and_functions(module: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef):
            yield node.name.lstrip("_"), node.lineno
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            overloads = any(ast.unparse(each) == "overload" for each in node.decorator_list)
            if not node.name.startswith("_") and not overloads:
                yield node.name, node.lineno
