"""The commands that show what could not be ingested, retry it, or drop it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

from blacksmith_dagster.cli.common import app_option, json_option, limit_option, opened
from blacksmith_dagster.cli.tables import as_json, table
from blacksmith_dagster.errors import BlacksmithError, SchemaOutdated, Unavailable
from blacksmith_dagster.importer import load_application
from blacksmith_dagster.ingest.quarantine import retry_quarantined
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pubsub.notifier import Notify
from blacksmith_dagster.redaction import clean, describe, redacted_headers
from blacksmith_dagster.store import Store

_ERROR = 100  # characters of it in a list
_HEX = 32  # bytes a line

_event_option: Callable[[Any], Any] = click.option(
    "--event",
    metavar="SOURCE/EVENT",
    help="Only what came to this one, or through a source's webhook endpoints.",
)


@click.group()
def quarantine() -> None:
    """Requests and messages that could not be ingested."""


@quarantine.command("list")
@_event_option
@limit_option
@json_option
def list_quarantine(event: str | None, limit: int, json: bool) -> None:
    """List the oldest in quarantine."""
    with opened() as backends:
        found = backends.store.quarantined(event, limit)
    if json:
        click.echo(as_json(found))
        return
    rows = [
        [each.id, each.received_at, each.event_type, each.size, _short(each.error)]
        for each in found
    ]
    click.echo(table(["id", "received (UTC)", "event", "bytes", "error"], rows))


@quarantine.command()
@click.argument("quarantine_id", metavar="ID")
@click.option("--body", is_flag=True, help="Write the body alone, byte for byte.")
@json_option
def show(quarantine_id: str, body: bool, json: bool) -> None:
    """Show one whole: its error, its headers, its body as text, or in hex if it is none.

    Values of headers and of a query that may be credentials are left out.
    """
    with opened() as backends:
        raw = backends.store.in_quarantine(quarantine_id)
    if body:
        click.echo(raw.body, nl=False)
        return
    headers = redacted_headers(raw.headers)
    if json:
        shown = msgspec.structs.asdict(raw) | {"id": quarantine_id, "headers": headers}
        click.echo(as_json(shown))
        return
    lines = [f"{quarantine_id} of {raw.event_type}", *_text(raw.error).splitlines(), ""]
    lines += [f"{name}: {_text(value)}" for name, value in headers.items()]
    click.echo("\n".join([*lines, "", _body_text(raw.body)]))


@quarantine.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_event_option
@click.option("--all", "everything", is_flag=True, help="All that is in quarantine.")
@app_option
def retry(ids: tuple[str, ...], event: str | None, everything: bool, app: str | None) -> None:
    """Retry requests and messages with the application's current functions.

    What is ingested leaves quarantine in the commit of its events; what fails stays, and its error is
    printed. Exit code 1 if some failed.
    """
    if [bool(ids), event is not None, everything].count(True) != 1:
        raise click.UsageError("name the IDs, or give --event or --all")
    application = load_application(app)
    with opened() as backends:
        store, notify = backends.store, backends.notify(application)
        store.register(application)
        if not ids:
            there = sum(store.quarantine_sizes().values())
            ids = tuple(each.id for each in store.quarantined(event, there))
        failed = [each for each in ids if not _retried(application, store, each, notify)]
    click.echo(f"{len(ids) - len(failed)} of {len(ids)} ingested")
    if failed:
        sys.exit(1)


@quarantine.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(ids: tuple[str, ...], yes: bool) -> None:
    """Remove requests and messages for good, after asking: nobody else has kept them."""
    with opened() as backends:
        if not yes:
            click.confirm(f"Drop {', '.join(ids)} for good?", abort=True)
        backends.store.drop_quarantined(ids)
    click.echo(f"{len(ids)} dropped")


def _retried(app: Blacksmith, store: Store, quarantine_id: str, notify: Notify) -> bool:
    try:
        made = retry_quarantined(app, store, quarantine_id, notify)
    except (Unavailable, SchemaOutdated):
        raise
    except Exception as error:  # noqa: BLE001 - the user's code, or what it was given
        why = clean(str(error)) if isinstance(error, BlacksmithError) else describe(error)
        click.echo(f"{quarantine_id} stays: {_line(why)}")
        return False
    click.echo(f"{quarantine_id} ingested: {', '.join(made) or 'it makes no event'}")
    return True


def _short(error: str) -> str:
    line = _line(error)
    return line if len(line) <= _ERROR else f"{line[: _ERROR - 1]}…"


def _line(text: str) -> str:
    return " ".join(_text(text).split())


def _body_text(body: bytes) -> str:
    try:
        return _text(body.decode())
    except UnicodeDecodeError:
        lines: Sequence[bytes] = [body[at : at + _HEX] for at in range(0, len(body), _HEX)]
        return "\n".join(line.hex(" ") for line in lines)


def _text(text: str) -> str:
    """A stranger's text as it may be written to a terminal: without what would control it."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in text
    )
