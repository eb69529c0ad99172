"""Rejects words that the project does not use: `python -m scripts.check_words [PATH ...]`.

Names and prose keep to docs/glossary.md and to plain English. Checked are the identifiers of the
package, and the comments, docstrings, messages and documentation. Prints each finding as
`file:line: found -> write instead` and exits with 1 if there is any.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[1]

# Parts of an identifier (`_` and capitals part them), and the glossary's word for what they named.
IDENTIFIERS = {
    "announcer": "notifier",
    "condemn": "claim for discard",
    "condemned": "discard reason",
    "door": "webhook",
    "doors": "webhooks",
    "each": "the name of the thing",
    "fence": "fencing token",
    "fences": "fencing tokens",
    "floor": "log start",
    "floors": "log starts",
    "gate": "migration barrier",
    "gates": "migration barriers",
    "keeper": "lock holder",
    "kinds": "event types",  # Dagster's own `kinds=` is a parameter of theirs
    "losses": "lost loads",
    "mend": "fix",
    "misfit": "validation error",
    "occurrence": "typed event",
    "retake": "retry",
    "retaken": "replayed",
    "sift": "invalid items",
    "sifted": "invalid items",
    "strikes": "consecutive failures",
    "teller": "reporter",
    "upkeep": "maintenance",
    "wakeup": "notification",
    "wakeups": "notifications",
}

# Patterns of prose, and what to write instead.
PROSE = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\banew\b": "again",
    r"\bfor ever\b": "forever",
    r"(?<!there )\b(is|are|was|were) no(ne)?\b(?! (longer|more|less|later|sooner)\b)": (
        "is not a, has no"
    ),
    r"(^|[.:;] )Who (?![^.]*\?)": "name the subject",
    r"\b(of|by|for|that) who\b": "name the subject",
    r"\b(is|are|was|were|be|been) (told|taken|asked)\b": "an active verb",
    r"\b(goes|go|going|gone|went) on\b": "continue",
    r"(?<!left )(?<!leave )(?<!leaves )\balone\b": "only, by itself",
    r"(^|[.:;] )Of (?!course)[a-z]": "start with the subject",
    r"\bnobody\b": "no one, nothing, not",
    r"\bwake-ups?\b": "notification",
    r"\b(misfit|condemned|retaken|sifted)\b": "the glossary's word",
    r"\bdoors?\b": "webhook endpoint",
}

_PATTERNS = [(re.compile(pattern, re.IGNORECASE), better) for pattern, better in PROSE.items()]
_CASED = re.compile(r"(^|[.:;] )(Of|Who)\b")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_CODE = re.compile(r"`[^`\n]*`")


class Finding(NamedTuple):
    """A rejected word: where it stands, and what to write instead."""

    path: Path
    line: int
    found: str
    better: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.found!r} -> {self.better}"


def prose_findings(path: Path) -> Iterator[Finding]:
    """What is rejected in a file's prose: a Python file's comments and strings, or a Markdown text."""
    lines = _python_prose(path) if path.suffix == ".py" else _markdown_prose(path)
    for number, text in lines:
        plain = _CODE.sub("`code`", text)
        for pattern, better in _PATTERNS:
            for match in pattern.finditer(plain):
                if (
                    match[0][:1].isalpha()
                    and pattern.pattern.startswith("(^")
                    and not _CASED.match(match[0])
                ):
                    continue
                yield Finding(path, number, match[0].strip(), better)


def identifier_findings(path: Path) -> Iterator[Finding]:
    """What is rejected in the names that a Python file binds, of classes, functions and variables."""
    for node in ast.walk(ast.parse(path.read_text())):
        for name in _bound_by(node):
            for part in _PART.findall(name):
                if (better := IDENTIFIERS.get(part.lower())) is not None:
                    yield Finding(path, getattr(node, "lineno", 0), name, better)


def _bound_by(node: ast.AST) -> list[str]:
    match node:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return [node.name]
        case ast.arg():
            return [node.arg]
        case ast.Name(ctx=ast.Store()):
            return [node.id]
        case ast.Attribute(ctx=ast.Store()):
            return [node.attr]
    return []


def _python_prose(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")
        elif token.type in {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}:
            for offset, line in enumerate(token.string.split("\n")):
                yield token.start[0] + offset, line.strip().lstrip("rbfuRBFU").strip("\"'")


def _markdown_prose(path: Path) -> Iterator[tuple[int, str]]:
    in_code = False
    for number, line in enumerate(path.read_text().split("\n"), 1):
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield number, line


def checked_files() -> tuple[list[Path], list[Path]]:
    """The Python files of the package and the example deployment, and the Markdown files."""
    package = [
        *(
            path
            for name in ("blacksmith_dagster", "assets", "sensors")
            for path in (PROJECT / name).rglob("*.py")
        ),
        PROJECT / "definitions.py",
    ]
    documents = [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")]
    return sorted(package), sorted(documents)


def findings(paths: Iterable[Path] = ()) -> list[Finding]:
    """Every finding in `paths`, or in all files that are checked."""
    package, documents = checked_files()
    chosen = [path.resolve() for path in paths]
    found: list[Finding] = []
    for path in chosen or [*package, *documents]:
        found += prose_findings(path)
        if path.suffix == ".py":
            found += identifier_findings(path)
    return found


def main() -> int:
    """Check the files named, or all; returns the exit code."""
    found = findings(Path(argument) for argument in sys.argv[1:])
    for finding in found:
        print(finding._replace(path=finding.path.relative_to(PROJECT)))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
