"""The commands that migrate sources, destinations and their events."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from blacksmith_dagster.cli.common import app_option, json_option, opened, show, table
from blacksmith_dagster.errors import MigrationError
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.supervisor import here
from blacksmith_dagster.wanderer import (
    CompletedAction,
    MigrationReport,
    MigrationRequest,
    Wanderer,
)
from blacksmith_dagster.wanderer.files import new_files

_HEAD = ["scope", "version", "name", "action", "state", "seconds", "error"]

_scopes: Callable[[Any], Any] = click.argument("scopes", nargs=-1, metavar="[SCOPE]...")
_to: Callable[[Any], Any] = click.option(
    "--to", type=int, metavar="VERSION", help="Up to this version. Default: all."
)
_dry_run: Callable[[Any], Any] = click.option(
    "--dry-run", is_flag=True, help="Show what would be done, with its SQL, and change nothing."
)


@click.group()
def migrations() -> None:
    """Migrations of sources, destinations and their events.

    A SCOPE is source:crm, source/event:crm/user, destination:warehouse or
    destination/event:warehouse/flights; s:, s/e:, d: and d/e: are short forms. Without a SCOPE, the
    command applies to all of them.
    """


@migrations.command("new")
@app_option
@click.argument("scope")
@click.argument("name")
def new_migration(app: Blacksmith, scope: str, name: str) -> None:
    """Create the two empty files of a migration in the folder of SCOPE."""
    for path in new_files(app, scope, name, datetime.now(UTC)):
        click.echo(path)


@migrations.command()
@app_option
@_scopes
@_to
@click.option("--discard", is_flag=True, help="Discard them instead, so that they never run.")
@_dry_run
def ack(
    app: Blacksmith, scopes: tuple[str, ...], to: int | None, discard: bool, dry_run: bool
) -> None:
    """Acknowledge new migrations. Their destinations' jobs wait until they have run."""
    request = MigrationRequest(scopes, to, discard=discard, dry_run=dry_run)
    with _wanderer(app) as wanderer:
        _print_report(wanderer.ack(request), sql=dry_run)


@migrations.command("run")
@app_option
@_scopes
@_to
@click.option(
    "--out-of-order", is_flag=True, help="Also run migrations older than one that has run."
)
@_dry_run
def run_migrations(
    app: Blacksmith, scopes: tuple[str, ...], to: int | None, out_of_order: bool, dry_run: bool
) -> None:
    """Run pending migrations, oldest to newest. Ctrl-C lets the current one finish."""
    request = MigrationRequest(scopes, to, dry_run=dry_run, out_of_order=out_of_order)
    with _wanderer(app) as wanderer:
        _print_report(wanderer.run(request), sql=dry_run)


@migrations.command()
@app_option
@_scopes
@click.option(
    "--to",
    type=int,
    metavar="VERSION",
    required=True,
    help="Keep this version and older ones; 0 rolls back all.",
)
@click.option(
    "--discard", is_flag=True, help="Discard what was rolled back, so that it never runs again."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@_dry_run
def rollback(
    app: Blacksmith, scopes: tuple[str, ...], to: int, discard: bool, yes: bool, dry_run: bool
) -> None:
    """Roll back what is newer than a version, newest to oldest, after confirmation."""
    request = MigrationRequest(scopes, to, discard=discard)
    if dry_run or not yes:
        with _wanderer(app) as wanderer:
            report = wanderer.rollback(MigrationRequest(scopes, to, discard=discard, dry_run=True))
        _print_report(report, sql=dry_run)
        if dry_run or not report.planned:
            return
        click.confirm("Roll these back?", abort=True)  # outside of _wanderer: Ctrl-C means no
    with _wanderer(app) as wanderer:
        _print_report(wanderer.rollback(request))


@migrations.command("status")
@app_option
@_scopes
@json_option
def migration_status(app: Blacksmith, scopes: tuple[str, ...], json: bool) -> None:
    """Show the state of each migration, oldest first."""
    with _wanderer(app) as wanderer:
        statuses = wanderer.status(scopes)
    rows = [
        [
            status.scope,
            str(status.version),
            status.name if status.declared else f"{status.name} (not declared)",
            status.state.value if status.state else "new",
            status.at,
            status.run or status.by,
            status.error,
        ]
        for status in statuses
    ]
    head = ["scope", "version", "name", "state", "at (UTC)", "by", "error"]
    show(statuses, json=json, text=table(head, rows))


@migrations.command("repair")
@app_option
@click.argument("scope")
@click.argument("version", type=int)
@click.option(
    "--applied/--not-applied",
    default=None,
    help="What you found in the target: the migration's effect is there, or it is not.",
)
def repair_migration(app: Blacksmith, scope: str, version: int, applied: bool | None) -> None:
    """Record the true state of a migration that was interrupted, has failed, or was run by hand."""
    if applied is None:
        raise MigrationError("look into the target, then say --applied or --not-applied")
    with _wanderer(app) as wanderer:
        completed = wanderer.repair(scope, version, applied=applied)
    _print_report(MigrationReport([completed.action], [completed]))


@contextmanager
def _wanderer(app: Blacksmith) -> Iterator[Wanderer]:
    """The wanderer of this process's settings, which SIGINT and SIGTERM stop."""
    stop = threading.Event()
    with on_stop(stop.set), opened() as backends:
        yield Wanderer(
            app,
            database=backends.store.database,
            supervisor=backends.supervisor,
            tracking=backends.tracking,
            holder=f"{os.environ.get('USER', 'someone')}@{here()}",
            stop=stop,
            report=_print_action,
        )


def _print_action(completed: CompletedAction) -> None:
    click.echo(f"{completed.action}: {completed.state.value}", err=True)


def _print_report(report: MigrationReport, *, sql: bool = False) -> None:
    """Print what was planned and what was done; exits with code 1 if an action failed."""
    rows = [row.values() for row in report.rows()]
    click.echo(table(_HEAD, rows) if rows else "nothing to do")
    if sql and report.sql():
        click.echo(f"\n{report.sql()}")
    if report.error is not None:
        click.echo(f"Error: {report.error}", err=True)
        sys.exit(1)
