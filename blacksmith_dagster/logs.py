"""Logs as lines of JSON, with the event, destination, load and run that a line is about."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import TextIO

import click
import msgspec

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.redaction import hide_passwords, masked, traced

FIELDS = ("event", "destination", "load", "run")
"""What a line may be about: the paths of an event and the name of a destination, a load's number, the
id of a Dagster run."""

_SETTING = "BLACKSMITH_LOG"
_JSON = "json"

_fields: ContextVar[Mapping[str, object]] = ContextVar(
    "blacksmith_log_fields", default=MappingProxyType({})
)
_log = logging.getLogger(__name__)


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Say what the log lines of this block are about, by the names in `FIELDS`; `None` says nothing.

    A single line can have them in logging's own `extra=`.

    >>> with log_fields(destination="warehouse", load=12):
    ...     logging.getLogger("mine").debug("a line of a pipeline's own code has both")
    """
    earlier = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(earlier)


class JSONFormatter(logging.Formatter):
    """A record as one line of JSON, without any secret that was revealed or given to `hide`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _shown(record.getMessage()),
        }
        about = _fields.get()
        for name in FIELDS:
            value = getattr(record, name, None) or about.get(name)
            if value is not None:
                line[name] = value if isinstance(value, int) else _shown(str(value))
        if record.exc_info and record.exc_info[1]:
            line["error"] = _encodable(traced(record.exc_info[1]))
        return msgspec.json.encode(line).decode()


def _shown(text: str) -> str:
    return _encodable(masked(text))


def _encodable(text: str) -> str:
    """The text with lone surrogates escaped: a sender's text may have them, and UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JSONFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Log that a line cannot be formatted. Logging itself would print its arguments, unmasked."""
        where = f"{record.pathname}:{record.lineno}"
        text = f"a log line cannot be written; correct its format or its arguments, in {where}"
        line = {"time": datetime.now(UTC), "level": "error", "logger": record.name, "message": text}
        with suppress(OSError, ValueError):
            sys.stderr.write(msgspec.json.encode(line).decode() + "\n")


def set_up_logs() -> None:
    """For a process of the package's own: write every log line as `BLACKSMITH_LOG` says.

    With `json`, warnings and uncaught errors are such lines too. Unset, nothing changes.

    Raises `SettingsError` for another value.
    """
    _check_format()
    if not _is_json():
        return
    _hide_passwords()
    _write_to_standard_error(logging.getLogger())
    logging.getLogger("blacksmith_dagster").setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )


def set_up_logs_in_dagster() -> None:
    """For a process of Dagster's: write the package's own lines as `BLACKSMITH_LOG` says.

    Dagster's own lines are as its option `--log-format` says. Raises `SettingsError`.
    """
    _check_format()
    if _is_json():
        _hide_passwords()
        package = logging.getLogger("blacksmith_dagster")
        _write_to_standard_error(package)
        package.setLevel(logging.INFO)
        package.propagate = False


def announce(text: str) -> None:
    """Print what a process does once it has started: a line of text or, with `json`, of the log."""
    if _is_json():
        _log.info("%s", text)
    else:
        click.echo(text)


def log_failure(text: str) -> bool:
    """Log why a process ends; `False`, without a line, if its log is not JSON."""
    if not _is_json():
        return False
    _log.critical("%s", text)
    return True


def _is_json() -> bool:
    return os.environ.get(_SETTING) == _JSON


def _check_format() -> None:
    value = os.environ.get(_SETTING) or _JSON
    if value != _JSON:
        raise SettingsError(f"{_SETTING}: unknown format {value!r}; set it to json, or unset it")


def _write_to_standard_error(logger: logging.Logger) -> None:
    if not any(isinstance(handler, _StandardError) for handler in logger.handlers):
        logger.addHandler(_StandardError())


def _hide_passwords() -> None:
    """Hide the passwords in the environment's URLs; a `Secret` is hidden once it is revealed."""
    for name, url in os.environ.items():
        if name.startswith("BLACKSMITH_") and name.endswith("_URL"):
            hide_passwords(url)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, SystemExit):
        return
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _log.critical("an uncaught error ends this thread", exc_info=error)
