"""Docstrings as the docs site shows them.

Examples are code, public names are links to their reference, and a record begins with its fields.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from griffe import Attribute, Class, Docstring, Extension, Object

PROJECT = Path(__file__).resolve().parents[1]
MODULES = (
    "blacksmith_dagster.errors",
    "blacksmith_dagster",
    "blacksmith_dagster.orchestration",
    "blacksmith_dagster.destinations",
    "blacksmith_dagster.sources",
    "blacksmith_dagster.testing",
)
# Not exported with the others, but in the reference.
_MORE = {
    name: f"blacksmith_dagster.{module}.{name}"
    for name, module in {
        "SourceProperties": "pipeline.source",
        "DestinationProperties": "pipeline.destination",
        "DestinationEventProperties": "pipeline.destination",
        "StandardGateway": "gateway",
        "StandardScheduler": "scheduler",
        "Summary": "scheduler",
        "Wanderer": "wanderer.run",
    }.items()
}
# Bases whose classes get their signature when they are defined.
_RECORDS = frozenset({"Struct", "NamedTuple", "TypedDict", "Config"})
_EXAMPLE = re.compile(r"^>>>.*(?:\n(?!\n).*)*", re.MULTILINE)
_NAME = re.compile(r"(?<!\[)`(\w+)`(?!\])")


def public_names() -> dict[str, str]:
    """The full path of each public name, by the name. Nothing is imported."""
    names: dict[str, str] = {}
    for module in MODULES:
        path = PROJECT / module.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for name in _public(ast.parse(file.read_text())):
            names.setdefault(name, f"{module}.{name}")
    return names


def _public(module: ast.Module) -> list[str]:
    """The names in `__all__`, or the classes and functions of a module that has none."""
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported: list[str] = ast.literal_eval(node.value)
            return exported
    defined = (node for node in module.body if isinstance(node, ast.ClassDef | ast.FunctionDef))
    return [node.name for node in defined if not node.name.startswith("_")]


class MarkdownDocstrings(Extension):
    """Turns the text of each docstring into the Markdown that the site renders."""

    def __init__(self) -> None:
        super().__init__()
        self._names = public_names() | _MORE

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = markdown(obj.docstring.value, self._names, obj.name)
            if isinstance(obj, Class) and _is_record(obj):
                arguments = "".join(f"    {field},\n" for field in _fields(obj).values())
                text = f"```python\n{obj.name}(\n{arguments})\n```\n\n{text}"
            obj.docstring = Docstring(text, parent=obj)


def markdown(text: str, names: dict[str, str], own: str) -> str:
    """A docstring with its examples fenced, and the `names` linked, except its `own` one."""
    parts = []
    end = 0
    for example in _EXAMPLE.finditer(text):
        parts.append(_linked(text[end : example.start()], names, own))
        parts.append(f"```pycon\n{example[0]}\n```")
        end = example.end()
    return "".join([*parts, _linked(text[end:], names, own)])


def _bases(record: Class) -> list[Class]:
    """The bases of a class that its own module defines."""
    names = [str(base).partition("[")[0] for base in record.bases]
    found = [record.module.members.get(name) for name in names]
    return [base for base in found if isinstance(base, Class)]


def _is_record(record: Class) -> bool:
    """Whether the class has fields, but no signature in its source."""
    bases = {str(base).partition("[")[0].rpartition(".")[2] for base in record.bases}
    return bool(bases & _RECORDS) or any(map(_is_record, _bases(record)))


def _fields(record: Class) -> dict[str, str]:
    """The fields of a record and of its bases, by their names, as in a signature."""
    fields = {name: field for base in _bases(record) for name, field in _fields(base).items()}
    for name, member in record.members.items():
        if isinstance(member, Attribute) and member.annotation is not None and name[0] != "_":
            default = re.sub(r"^Field\(default=(.*?), description=.*", r"\1", str(member.value))
            default = "..." if default.startswith("_") else default  # a private constant
            value = "" if member.value is None else f" = {default}"
            fields[name] = f"{name}: {member.annotation}{value}"
    return fields


def _linked(text: str, names: dict[str, str], own: str) -> str:
    return _NAME.sub(
        lambda name: (
            f"[`{name[1]}`][{names[name[1]]}]" if name[1] in names and name[1] != own else name[0]
        ),
        text,
    )
