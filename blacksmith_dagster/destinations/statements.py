"""Splits a SQL script into its statements, as `psql` and SQLite's shell do."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""--[^\n]*
      | /\*
      | [eE]'(?:[^'\\]|\\.|'')*'
      | '[^']*'
      | "[^"]*"
      | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$
      | (?P<word>[^\W\d][\w$]*)
      | [;()]""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT = re.compile(r"/\*|\*/")


def split_postgresql(script: str) -> Iterator[str]:
    """The statements of a script, without their semicolons.

    A semicolon within quotes, dollar quotes, comments, parentheses or `BEGIN ATOMIC` does not end one.

    >>> list(split_postgresql("SELECT ';'; SELECT $a$;$a$ -- ;"))
    ["SELECT ';'", 'SELECT $a$;$a$ -- ;']
    """
    start = position = inside = body = 0
    before, empty = "", True
    while token := _TOKEN.search(script, position):
        # Text without a token, such as `$1`, is part of the statement too.
        empty = empty and not script[position : token.start()].strip()
        position = token.end()
        word = (token["word"] or "").upper()
        if token[0] == "/*":
            position = _after_comment(script, position)
        elif token[0].startswith("--"):
            pass
        elif token[0] != ";":
            empty = False
            inside += (token[0] == "(") - (token[0] == ")")
            if word == "ATOMIC" and before == "BEGIN":
                body = 1
            elif body:
                body += (word in ("BEGIN", "CASE")) - (word == "END")
            before = word
        elif inside <= 0 and not body:
            if not empty:
                yield script[start : token.start()].strip()
            start, inside, before, empty = position, 0, "", True
    if not empty or script[position:].strip():
        yield script[start:].strip()


def split_sqlite(script: str) -> Iterator[str]:
    """The statements of a script, with their semicolons; a trigger's body is part of its statement.

    >>> list(split_sqlite("SELECT ';'; SELECT 1"))
    ["SELECT ';';", 'SELECT 1']
    """
    start = 0
    for end in (match.end() for match in re.finditer(";", script)):
        if sqlite3.complete_statement(script[start:end]):
            yield script[start:end].strip()
            start = end
    if script[start:].strip():
        yield script[start:].strip()


def _after_comment(script: str, position: int) -> int:
    """The end of the comment that started before `position`; comments can be nested."""
    depth = 1
    while depth and (sign := _COMMENT.search(script, position)):
        depth += 1 if sign[0] == "/*" else -1
        position = sign.end()
    return len(script) if depth else position
