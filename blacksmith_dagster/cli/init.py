"""The command that starts a project: `blacksmith init`.

A project is made of the files in `templates/`. To offer another source or destination, add its
template and its line in `SOURCES` or `DESTINATIONS`.
"""

from __future__ import annotations

import ast
import re
import secrets
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import click

from blacksmith_dagster.errors import UsageError

_LINE_LENGTH = 88
_LISTED_FILES = 3
_TEMPLATES = files("blacksmith_dagster.cli") / "templates"


@dataclass(frozen=True, slots=True)
class SourceTemplate:
    """A source that `blacksmith init` offers: `templates/sources/<name>.py.tmpl`.

    - `source`, `event`: the names that the template gives to the source and to its event.
    - `sample`: the data of an event, for the project's test.
    - `to_try`: how to send an event.
    - `secrets`: the environment variables that it needs, with what each is.
    """

    source: str
    event: str
    sample: Mapping[str, Any]
    to_try: str
    secrets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DestinationTemplate:
    """A destination that `blacksmith init` offers: `<file>.py.tmpl` in `templates/destinations/`.

    `templates/tests/` has the project's test under the same name.

    - `destination`: the name that the template gives to the destination.
    - `file`: the name of its two templates.
    - `extra`: the extra of this package that it needs.
    - `settings`: the environment variables that it needs, with what each is, and its first value.
    """

    destination: str
    file: str
    extra: str | None = None
    settings: Mapping[str, tuple[str, str]] = field(default_factory=dict)


_WEBHOOK = "let {sender} send its webhooks to http://127.0.0.1:8420{path}, through a tunnel"
_WAREHOUSE = "The database that events are loaded to."

SOURCES = {
    "http": SourceTemplate(
        "shop",
        "ordered",
        {"id": "1", "email": "ada@example.com", "total": 250.0},
        "curl 127.0.0.1:8420/shop/orders -H 'Content-Type: application/json' "
        '-d \'{"id": "1", "email": "ada@example.com", "total": 250}\'',
    ),
    "github": SourceTemplate(
        "github",
        "pushed",
        {"ref": "refs/heads/main", "repository": {"full_name": "ada/engine"}},
        _WEBHOOK.format(sender="GitHub", path="/v1/github"),
        {"GITHUB_SECRET": "The secret of the webhook, which you enter at GitHub too."},
    ),
    "stripe": SourceTemplate(
        "stripe",
        "paid",
        {"object": {"id": "in_1", "amount_paid": 25000}},
        _WEBHOOK.format(sender="Stripe", path="/v1/stripe"),
        {"STRIPE_SECRET": "The signing secret of the webhook endpoint, from Stripe (whsec_...)."},
    ),
    "segment": SourceTemplate(
        "site",
        "tracked",
        {"type": "track", "event": "Order Completed", "userId": "ada"},
        "give Segment's library the host http://127.0.0.1:8420 and the key in .env",
        {"SEGMENT_KEY": "The write key, which you give to Segment's library too."},
    ),
}
DESTINATIONS = {
    "sqlite": DestinationTemplate(
        "warehouse", "sql", None, {"WAREHOUSE_URL": (_WAREHOUSE, "sqlite:///warehouse.db")}
    ),
    "postgres": DestinationTemplate(
        "warehouse",
        "sql",
        "postgres",
        {"WAREHOUSE_URL": (_WAREHOUSE, "postgresql://postgres@127.0.0.1:5432/postgres")},
    ),
    "http": DestinationTemplate(
        "crm",
        "http",
        None,
        {"CRM_URL": ("Where events are sent.", "http://127.0.0.1:8000/events")},
    ),
    "python": DestinationTemplate("console", "python"),
}


@click.command()
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@click.option(
    "--source",
    type=click.Choice(list(SOURCES)),
    default="http",
    show_default=True,
    help="Where events come from.",
)
@click.option(
    "--destination",
    type=click.Choice(list(DESTINATIONS)),
    default="sqlite",
    show_default=True,
    help="Where they are loaded.",
)
def init(folder: Path, source: str, destination: str) -> None:
    """Write a small project that works, with a test, into FOLDER (the current one by default).

    The folder may be new, or empty but for a virtual environment and Git's files. Its `.env`, which
    Git ignores, gets new secrets.
    """
    project = project_files(source, destination, folder.resolve().name, datetime.now(UTC).date())
    _check_empty(folder)
    try:
        for name, text in project.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        _write_private(folder / ".env", with_new_secrets(project[".env.example"]))
    except OSError as error:
        raise UsageError(
            f"the project cannot be written to {folder} ({error.strerror}); choose another folder"
        ) from error
    click.echo(f"wrote {', '.join([*project, '.env'])}\n")
    steps = [] if folder.resolve() == Path.cwd() else [f"cd {folder}"]
    steps += ["pip install -e '.[dev]'", "pytest", "blacksmith dev", SOURCES[source].to_try]
    click.echo("\n".join(["next:", *(f"  {step}" for step in steps)]))


def project_files(
    source: str, destination: str, folder: str, start_date: date
) -> Mapping[str, str]:
    """The text of each file of a new project, by its name; pure.

    - `folder`: the name of the project's folder, of which its own is made.
    - `start_date`: the first day of its partitions in Dagster.
    """
    from_, to = SOURCES[source], DESTINATIONS[destination]
    extra = f"[{to.extra}]" if to.extra else ""
    values = {
        "event": from_.event,
        "sample": _literal(from_.sample),
        "name": re.sub(r"[^a-z0-9]+", "-", folder.lower()).strip("-") or "events",
        "package": f"blacksmith-dagster{extra}>={version('blacksmith-dagster')}",
        "start_date": start_date.isoformat(),
    }

    def filled(name: str) -> str:
        return Template((_TEMPLATES / f"{name}.tmpl").read_text("utf-8")).substitute(values)

    application = (
        "from blacksmith_dagster import Blacksmith\n\n"
        f"blacksmith = Blacksmith(sources=[{from_.source}], destinations=[{to.destination}])\n"
    )
    parts = [filled(f"sources/{source}.py"), filled(f"destinations/{to.file}.py"), application]
    return {
        "pipeline.py": joined_module("What comes in, and where it is loaded.", parts),
        "definitions.py": filled("project/definitions.py"),
        "test_pipeline.py": filled(f"tests/{to.file}.py"),
        "pyproject.toml": filled("project/pyproject.toml"),
        ".env.example": _env_example(from_, to),
        "dagster.yaml": filled("project/dagster.yaml"),
        ".gitignore": filled("project/gitignore"),
        ".dockerignore": ".git/\n" + filled("project/gitignore"),
    }


def joined_module(docstring: str, parts: Iterable[str]) -> str:
    """One module of several, with the imports of all at its top.

    >>> module = joined_module("Two in one.", ["import abc\\n\\na = 1\\n", "import ast\\n\\nb = 2\\n"])
    >>> module.splitlines()
    ['\"\"\"Two in one.\"\"\"', '', 'import abc', 'import ast', '', 'a = 1', '', '', 'b = 2']
    """
    imports: list[ast.Import | ast.ImportFrom] = []
    bodies = []
    for part in parts:
        own = [
            node for node in ast.parse(part).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        imports += own
        bodies.append("\n".join(part.splitlines()[own[-1].end_lineno :]).strip("\n"))
    gap = "\n\n\n" if bodies[0].startswith(("class ", "def ", "@")) else "\n\n"
    body = "\n\n\n".join(bodies)
    return f'"""{docstring}"""\n\n{_import_lines(imports)}{gap}{body}\n'


def _import_lines(nodes: Iterable[ast.Import | ast.ImportFrom]) -> str:
    """The imports in the order and form that ruff gives them."""
    plain: set[str] = set()
    names: defaultdict[str, set[str]] = defaultdict(set)
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names[node.module or ""] |= {alias.name for alias in node.names}
        else:
            plain |= {ast.unparse(alias) for alias in node.names}
    groups: dict[bool, list[str]] = {True: [], False: []}
    for module in sorted(plain):
        groups[_is_standard(module)].append(f"import {module}")
    for module in sorted(names):
        groups[_is_standard(module)].append(_from_line(module, sorted(names[module], key=_rank)))
    return "\n\n".join("\n".join(group) for group in groups.values() if group)


def _is_standard(module: str) -> bool:
    return re.split(r"\W", module)[0] in sys.stdlib_module_names


def _rank(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def _from_line(module: str, names: Sequence[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= _LINE_LENGTH:
        return line
    return "\n".join([f"from {module} import (", *(f"    {name}," for name in names), ")"])


def _literal(sample: Mapping[str, Any]) -> str:
    """A dict as ruff writes it: its quotes are double ones."""
    return repr(dict(sample)).replace("'", '"')


def _env_example(source: SourceTemplate, destination: DestinationTemplate) -> str:
    """The environment variables of a project; a secret has no value here."""
    variables = [(name, description, "") for name, description in source.secrets.items()]
    variables += [(name, *setting) for name, setting in destination.settings.items()]
    head = "# Copy this file to .env, which `blacksmith` and Dagster read.\n"
    return head + "".join(
        f"\n# {description}\n{name}={value}\n" for name, description, value in variables
    )


def with_new_secrets(example: str) -> str:
    """The `.env` of an example: each variable without a value gets a random one."""
    lines = example.splitlines(keepends=True)[2:]  # without what it says about itself
    return "".join(
        f"{line[:-1]}{secrets.token_urlsafe(32)}\n" if line.endswith("=\n") else line
        for line in lines
    )


def _check_empty(folder: Path) -> None:
    """Raise `UsageError` unless the folder is new or empty, or has what comes before a project."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give the name of a new folder")
    found = sorted(
        path.name
        for path in (folder.iterdir() if folder.exists() else ())
        if path.name != ".git" and not (path / "pyvenv.cfg").exists()
    )
    if found:
        more = len(found) - _LISTED_FILES
        listed = ", ".join(found[:_LISTED_FILES]) + (f" and {more} more" if more > 0 else "")
        raise UsageError(
            f"{folder.resolve()} already has files ({listed}), and nothing was written; give a new "
            "folder: blacksmith init FOLDER"
        )


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its user may read."""
    path.touch(mode=0o600)
    path.write_text(text, "utf-8")
