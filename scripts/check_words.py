"""Rejects words that the project does not use: `python -m scripts.check_words [PATH ...]`.

Names keep to docs/glossary.md, prose to plain English: the names, comments, docstrings and messages
of the package and the example, and the documentation. Prints `file:line: found -> write instead` for
each finding and exits with code 1 if there are any.
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
CHECKED = [
    PROJECT / "definitions.py",
    *(PROJECT / name for name in ("blacksmith_dagster", "assets", "sensors", "migrations", "docs")),
    *sorted(PROJECT.glob("*.md")),
]

# Words within identifiers, split at `_` and capitals, with their replacements.
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

# Patterns of prose with their replacements. A pattern without capitals ignores case.
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
    r"\btried again\b": "retried",
    r"\b(is|has \w+) no more\b": "no longer",
    r"\b(is|are) handed\b": "gets, passed to",
    r"\bfor want of\b": "because there is no",
    r"\bwake-ups?\b": "notification",
    r"\b(misfit|condemned|retaken|sifted)\b": "the glossary's word",
    r"\bdoors?\b": "webhook endpoint",
}

_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE if pattern.islower() else 0), better)
    for pattern, better in PROSE.items()
]
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
    """What is rejected in a file's prose: comments and strings of code, or the text of Markdown."""
    lines = {".py": _python_prose, ".sql": _sql_prose, ".md": _markdown_prose}[path.suffix]
    for number, text in lines(path):
        plain = _CODE.sub("`code`", text)
        for pattern, better in _PATTERNS:
            for match in pattern.finditer(plain):
                yield Finding(path, number, match[0].strip(), better)


def identifier_findings(path: Path) -> Iterator[Finding]:
    """What is rejected in the names that a Python file binds, and in the words of a SQL file."""
    for number, name in _sql_names(path) if path.suffix == ".sql" else _python_names(path):
        for part in _PART.findall(name):
            if (better := IDENTIFIERS.get(part.lower())) is not None:
                yield Finding(path, number, name, better)


def _sql_names(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text().split("\n"), 1):
        for name in re.findall(r"[A-Za-z_]\w*", line.partition("--")[0]):
            yield number, name


def _python_names(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr


def _python_prose(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")
        elif token.type in {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}:
            for offset, line in enumerate(token.string.split("\n")):
                yield token.start[0] + offset, line.strip().lstrip("rbfuRBFU").strip("\"'")


def _sql_prose(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text().split("\n"), 1):
        yield number, line.partition("--")[2].strip()


def _markdown_prose(path: Path) -> Iterator[tuple[int, str]]:
    in_code = False
    for number, line in enumerate(path.read_text().split("\n"), 1):
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield number, line


def checked_files(paths: Iterable[Path] = CHECKED) -> list[Path]:
    """The Python, SQL and Markdown files among `paths`, and in the folders among them."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    return sorted(file for file in files if file.suffix in {".py", ".sql", ".md"})


def findings(paths: Iterable[Path]) -> list[Finding]:
    """Every finding in these files."""
    found: list[Finding] = []
    for path in paths:
        found += prose_findings(path)
        if path.suffix != ".md":
            found += identifier_findings(path)
    return found


def main() -> int:
    """Check the files named, or all; returns the exit code."""
    paths = [Path(argument).resolve() for argument in sys.argv[1:]]
    found = findings(checked_files(paths or CHECKED))
    for finding in found:
        print(finding._replace(path=finding.path.relative_to(PROJECT)))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
