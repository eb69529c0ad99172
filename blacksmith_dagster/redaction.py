"""Removes secrets from what errors, logs and pages show."""

from __future__ import annotations

import logging
import os
import re
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlencode

from blacksmith_dagster.errors import BlacksmithError, DeclarationError, MissingSecret

CREDENTIAL_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Headers, in lower case, that are never stored with a request."""

_MASK = "***"
_LONGEST_TEXT = 4000
_SHORTEST_SECRET = 4

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Senders put credentials into more headers and query parameters than CREDENTIAL_HEADERS.
_SECRET_NAME = re.compile(
    r"auth|cookie|credential|key|passw|secret|session|signature|token", re.IGNORECASE
)
_NOT_SECRET_NAMES = frozenset({":key", "idempotency-key"})

# Drivers differ in where a password with an @ or a / ends.
_PASSWORDS = (re.compile(r"://[^:/@]*:([^@]+)@"), re.compile(r"://[^:/@]*:(.+)@"))

_hidden: tuple[str, ...] = ()  # longest first: one secret may be a part of another
_hiding = threading.Lock()


@dataclass(frozen=True, slots=True)
class Secret:
    """The value of the environment variable `name`, read when it is first needed and never printed.

    Once revealed, it is cut out of the errors that are stored with jobs and requests.

    A declaration holds only the name, so a process that does not use the secret need not have it: the
    gateway never needs a destination's.

    >>> Secret("WAREHOUSE_URL")
    Secret('WAREHOUSE_URL')

    Raises `DeclarationError` if `name` cannot be a variable's.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _VARIABLE.fullmatch(self.name):
            raise DeclarationError(
                "Secret(...) takes the name of an environment variable (letters, digits and "
                "underscores), never the secret itself; the argument is not repeated here"
            )

    def read(self) -> str | None:
        """The secret's value, or `None` if the environment variable is not set or empty.

        Unlike `reveal`, this does not hide the value from errors: use it to compare and discard it.
        """
        return os.environ.get(self.name) or None

    def reveal(self) -> str:
        """The secret's value.

        Raises `MissingSecret` if the environment variable is not set or empty.
        """
        value = self.read()
        if value is None:
            raise MissingSecret(self.name)
        hide(value)
        return value

    def __repr__(self) -> str:
        return f"Secret({self.name!r})"


def hide(secret: str) -> None:
    """From now on, `clean`, `describe`, `traced` and `masked` mask this value, and a password in it.

    Values shorter than 4 characters are not masked: they occur in harmless texts.
    """
    global _hidden
    if len(secret) >= _SHORTEST_SECRET and secret not in _hidden:
        forms = {
            form for value in (secret, *_passwords(secret)) for form in (value, repr(value)[1:-1])
        }
        # Other threads read the tuple, so it is replaced.
        with _hiding:
            forms = {*_hidden, *(form for form in forms if len(form) >= _SHORTEST_SECRET)}
            _hidden = tuple(sorted(forms, key=len, reverse=True))


def hide_passwords(url: str) -> None:
    """From now on, mask the password of a URL, but not the URL itself."""
    for password in _passwords(url):
        hide(password)


def _passwords(url: str) -> Iterator[str]:
    """What may be a password in a URL, as it is written there and as a driver repeats it."""
    for pattern in _PASSWORDS:
        for password in pattern.findall(url):
            yield password
            yield unquote(password)


def describe(error: BaseException) -> str:
    """An error of a user's code as one text that every database can store.

    >>> describe(KeyError("flight"))
    "KeyError: 'flight'"
    """
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the error itself
        text = "(it cannot be shown)"
    return clean(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def explain(error: BaseException) -> str:
    """The message of one of this package's errors, which says what to do; another error's description.

    >>> explain(MissingSecret("TOKEN")).startswith("MissingSecret"), explain(ValueError("13th month"))
    (False, 'ValueError: 13th month')
    """
    return clean(str(error)) if isinstance(error, BlacksmithError) else describe(error)


def clean(text: str) -> str:
    """`text` as it may be stored and shown.

    Revealed secrets are masked, what PostgreSQL or UTF-8 cannot hold (NUL, lone surrogates) is
    escaped, and only the first 4000 characters are left.
    """
    text = _mask(text, _hidden)
    if len(text) > _LONGEST_TEXT:
        text = text[: _LONGEST_TEXT - 2] + " …"
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def one_line(text: str, limit: int | None = None) -> str:
    """`text` on one line: its first `limit` characters, then "…" if there are more.

    Characters that cannot be printed, which may control a terminal, become spaces.

    >>> one_line("no such\\n\\x1b hook", 10)
    'no such ho…'
    """
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(printable.split())
    return line if limit is None or len(line) <= limit else f"{line[:limit]}…"


def traced(error: BaseException) -> str:
    """An error of a user's code with its traceback, for a log: revealed secrets are masked."""
    return masked("".join(traceback.format_exception(error)))


def masked(text: str) -> str:
    """`text` with the secrets masked that were revealed or given to `hide`.

    >>> hide("s3cret-of-the-docs")
    >>> masked("no such key: s3cret-of-the-docs")
    'no such key: ***'
    """
    return _mask(text, _hidden)


def redacted(text: str, secrets: Iterable[str]) -> str:
    """`text` with each of `secrets` masked.

    >>> redacted("no such hook: /T0/secret", ["/T0/secret"])
    'no such hook: ***'
    """
    return _mask(text, sorted(secrets, key=len, reverse=True))


def redacted_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """A stored request's headers, and the query in its `:path`, with possible credentials masked.

    >>> redacted_headers({"x-api-key": "k7f", ":path": "/hook?token=t&page=2"})
    {'x-api-key': '***', ':path': '/hook?token=***&page=2'}
    """
    shown = {name: _redacted_value(name, value) for name, value in headers.items()}
    path, question_mark, query = headers.get(":path", "").partition("?")
    if question_mark:
        parameters = [
            (name, _redacted_value(name, value))
            for name, value in parse_qsl(query, keep_blank_values=True)
        ]
        shown[":path"] = f"{path}?{urlencode(parameters, safe='*')}"
    return shown


class RedactingFilter(logging.Filter):
    """Masks `secrets` in the records of a logger."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = tuple(secrets)

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage(), self._secrets), None
        return True


def _mask(text: str, longest_first: Iterable[str]) -> str:
    for secret in longest_first:
        text = text.replace(secret, _MASK)
    return text


def _redacted_value(name: str, value: str) -> str:
    return _MASK if _SECRET_NAME.search(name) and name not in _NOT_SECRET_NAMES else value
