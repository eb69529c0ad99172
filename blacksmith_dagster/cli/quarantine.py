"""The commands that show, retry and drop what is in quarantine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click
import msgspec

from blacksmith_dagster.cli.common import (
    app_option,
    json_option,
    limit_option,
    opened,
    show,
    table,
    utc_time,
)
from blacksmith_dagster.errors import SchemaOutdated, Unavailable
from blacksmith_dagster.ingest.ingest import retry_quarantined
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.redaction import explain, one_line, redacted_headers
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.quarantine import Selection

_ERROR_LIMIT = 100  # characters of an error in a list
_HEX_BYTES = 32  # in a line

_event_option: Callable[[Any], Any] = click.option(
    "--event",
    metavar="SOURCE/EVENT",
    help="Only what was sent to this source event or webhook endpoint.",
)


@click.group()
def quarantine() -> None:
    """Requests and messages that could not be ingested."""


@quarantine.command("list")
@_event_option
@limit_option
@json_option
def list_quarantine(event: str | None, limit: int, json: bool) -> None:
    """List what is in quarantine, oldest first."""
    with opened() as backends:
        quarantined = backends.store.quarantine.oldest(event, limit)
    rows = [
        [item.id, item.received_at, item.event_type, item.size, _line(item.error, _ERROR_LIMIT)]
        for item in quarantined
    ]
    head = ["id", "received (UTC)", "event", "bytes", "error"]
    show(quarantined, json=json, text=table(head, rows))


@quarantine.command("show")
@click.argument("quarantine_id", metavar="ID")
@click.option("--body", is_flag=True, help="Write only the body, byte for byte.")
@json_option
def show_quarantined(quarantine_id: str, body: bool, json: bool) -> None:
    """Show one request or message: its error, its headers, and its body (in hex if it is not text).

    Leaves out the values of headers and of a query that may be credentials.
    """
    with opened() as backends:
        raw = backends.store.quarantine.get(quarantine_id)
    if body:
        click.echo(raw.body, nl=False)
        return
    headers = redacted_headers(raw.headers)
    lines = [f"{quarantine_id} of {raw.event_type}", *_text(raw.error).splitlines(), ""]
    lines += [f"{name}: {_text(value)}" for name, value in headers.items()]
    fields = msgspec.structs.asdict(raw) | {"id": quarantine_id, "headers": headers}
    show(fields, json=json, text="\n".join([*lines, "", _body_text(raw.body)]))


@quarantine.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_event_option
@click.option("--all", "everything", is_flag=True, help="Everything that is in quarantine.")
@app_option
def retry(ids: tuple[str, ...], event: str | None, everything: bool, app: Blacksmith) -> None:
    """Retry requests and messages with the application's current functions.

    What is ingested leaves the quarantine with the commit of its events; what fails stays, and its
    error is printed. The exit code is 1 if some failed.
    """
    if [bool(ids), event is not None, everything].count(True) != 1:
        raise click.UsageError("name the IDs, or give --event or --all")
    with opened(app) as backends:
        store, notify = backends.store, backends.notify(app)
        if not ids:
            size = sum(store.quarantine.sizes().values())
            ids = tuple(item.id for item in store.quarantine.oldest(event, size))
        failed = [item for item in ids if not _is_ingested(app, store, item, notify)]
    click.echo(f"{len(ids) - len(failed)} of {len(ids)} ingested")
    if failed:
        sys.exit(1)


@quarantine.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--source", metavar="SOURCE", help="Only what was sent to this source.")
@click.option(
    "--before", type=utc_time, metavar="TIME", help="Only what was received before this time (UTC)."
)
@click.option("--error", metavar="TEXT", help="Only what has this text in its error.")
@click.option("--all", "everything", is_flag=True, help="Everything that is in quarantine.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def drop(
    ids: tuple[str, ...],
    source: str | None,
    before: datetime | None,
    error: str | None,
    everything: bool,
    yes: bool,
) -> None:
    """Remove requests and messages for good, after confirmation: there is no other copy.

    Name the IDs, or select by --source, --before and --error, which can be combined.
    """
    selects = any(option is not None for option in (source, before, error))
    if [bool(ids), selects, everything].count(True) != 1 or "" in (source, error):
        raise click.UsageError("name the IDs, or give --source, --before, --error, or --all")
    selected = Selection(source=source, before=before, error=error)
    with opened() as backends:
        quarantined = backends.store.quarantine
        numbers = () if ids else quarantined.numbers(selected)
        if not yes:
            what = ", ".join(ids) or f"{len(numbers)} requests and messages"
            click.confirm(f"Drop {what} for good?", abort=True)
        if ids:
            quarantined.drop(ids)
        dropped = len(ids) or sum(quarantined.drop_numbers(numbers))
    click.echo(f"{dropped} dropped")


def _is_ingested(app: Blacksmith, store: Store, quarantine_id: str, notify: Notify) -> bool:
    """Retry one item; prints what came of it."""
    try:
        event_ids = retry_quarantined(app, store, quarantine_id, notify)
    except (Unavailable, SchemaOutdated):
        raise
    except Exception as error:  # noqa: BLE001 - raised by the user's code, or by its result
        click.echo(f"{quarantine_id} stays: {_line(explain(error))}")
        return False
    click.echo(f"{quarantine_id} ingested: {', '.join(event_ids) or 'it makes no event'}")
    return True


def _line(error: str, limit: int | None = None) -> str:
    return one_line(_text(error), limit)


def _body_text(body: bytes) -> str:
    try:
        return _text(body.decode())
    except UnicodeDecodeError:
        starts = range(0, len(body), _HEX_BYTES)
        return "\n".join(body[start : start + _HEX_BYTES].hex(" ") for start in starts)


def _text(text: str) -> str:
    """A sender's text, safe for a terminal: control characters are escaped."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else ascii(character)[1:-1]
        for character in text
    )
