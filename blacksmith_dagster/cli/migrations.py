"""The commands that migrate sources, destinations and their events."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from blacksmith_dagster.cli.common import app_option, json_option, opened
from blacksmith_dagster.cli.tables import as_json, table
from blacksmith_dagster.errors import MigrationError
from blacksmith_dagster.importer import load_application
from blacksmith_dagster.settings import Settings
from blacksmith_dagster.signals import on_stop
from blacksmith_dagster.supervisor import here
from blacksmith_dagster.wanderer import (
    CompletedAction,
    MigrationReport,
    MigrationRequest,
    StandardWanderer,
    Wanderer,
    open_tracking,
)
from blacksmith_dagster.wanderer.files import new_files

_HEAD = ["scope", "version", "name", "action", "state", "seconds", "error"]

_scopes: Callable[[Any], Any] = click.argument("scopes", nargs=-1, metavar="[SCOPE]...")
_dry_run: Callable[[Any], Any] = click.option(
    "--dry-run", is_flag=True, help="Only show what would be done, and its SQL."
)


@click.group()
def migrations() -> None:
    """Migrations of sources, destinations and their events.

    A SCOPE is source:crm, source/event:crm/user, destination:warehouse or
    destination/event:warehouse/flights; s:, s/e:, d: and d/e: are short for the kinds. Without any,
    all are meant.
    """


@migrations.command("new")
@app_option
@click.argument("scope")
@click.argument("name")
def new_migration(app: str | None, scope: str, name: str) -> None:
    """Make the two files of a migration in the folder of SCOPE, for you to write."""
    for path in new_files(load_application(app), scope, name, datetime.now(UTC)):
        click.echo(path)


@migrations.command()
@app_option
@_scopes
@click.option("--to", type=int, metavar="VERSION", help="Up to this one; all if not given.")
@click.option("--discard", is_flag=True, help="Discard them instead: they never run.")
@_dry_run
def ack(
    app: str | None, scopes: tuple[str, ...], to: int | None, discard: bool, dry_run: bool
) -> None:
    """Acknowledge migrations that are new: until they have run, their destinations' jobs wait."""
    request = MigrationRequest(scopes, to, discard=discard, dry_run=dry_run)
    with _wanderer(app) as wanderer:
        _print_report(wanderer.ack(request), dry_run)


@migrations.command("run")
@app_option
@_scopes
@click.option("--to", type=int, metavar="VERSION", help="Up to this one; all if not given.")
@click.option("--out-of-order", is_flag=True, help="Also what is older than one that has run.")
@_dry_run
def run_migrations(
    app: str | None, scopes: tuple[str, ...], to: int | None, out_of_order: bool, dry_run: bool
) -> None:
    """Run what has not run, oldest to newest. Ctrl-C lets the migration under way finish."""
    request = MigrationRequest(scopes, to, dry_run=dry_run, out_of_order=out_of_order)
    with _wanderer(app) as wanderer:
        _print_report(wanderer.run(request), dry_run)


@migrations.command()
@app_option
@_scopes
@click.option(
    "--to", type=int, metavar="VERSION", required=True, help="This one stays; 0: none does."
)
@click.option("--discard", is_flag=True, help="What was rolled back shall never run again.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_dry_run
def rollback(
    app: str | None, scopes: tuple[str, ...], to: int, discard: bool, yes: bool, dry_run: bool
) -> None:
    """Roll back what is newer than a version, newest to oldest, after asking."""
    request = MigrationRequest(scopes, to, discard=discard)
    plan = MigrationRequest(scopes, to, discard=discard, dry_run=True)
    if dry_run or not yes:
        with _wanderer(app) as wanderer:
            planned = wanderer.rollback(plan)
        _print_report(planned, dry_run=True, sql=dry_run)
        if dry_run or not planned.planned:
            return
        click.confirm("Roll these back?", abort=True)  # where Ctrl-C is a no
    with _wanderer(app) as wanderer:
        _print_report(wanderer.rollback(request), dry_run=False)


@migrations.command("status")
@app_option
@_scopes
@json_option
def migration_status(app: str | None, scopes: tuple[str, ...], json: bool) -> None:
    """Show how each migration stands, the oldest first."""
    with _wanderer(app) as wanderer:
        found = wanderer.status(scopes)
    if json:
        click.echo(as_json(found))
        return
    rows = [
        [
            each.scope,
            str(each.version),
            each.name if each.declared else f"{each.name} (not declared)",
            each.state.value if each.state else "new",
            each.at,
            each.run or each.by,
            each.error,
        ]
        for each in found
    ]
    click.echo(table(["scope", "version", "name", "state", "at (UTC)", "by", "error"], rows))


@migrations.command("repair")
@app_option
@click.argument("scope")
@click.argument("version", type=int)
@click.option(
    "--applied/--not-applied",
    default=None,
    help="What you have found in the target: the migration's effect is there, or it is not.",
)
def repair_migration(app: str | None, scope: str, version: int, applied: bool | None) -> None:
    """Record what is true of a migration that was interrupted, has failed, or was done by hand."""
    if applied is None:
        raise MigrationError("look into the target, then say --applied or --not-applied")
    with _wanderer(app) as wanderer:
        done = wanderer.repair(scope, version, applied=applied)
    click.echo(table(_HEAD, [_row(done)]))


@contextmanager
def _wanderer(app: str | None) -> Iterator[Wanderer]:
    """The wanderer of this process's settings, which SIGINT and SIGTERM stop."""
    application, stop = load_application(app), threading.Event()
    with (
        on_stop(stop.set),
        opened() as backends,
        open_tracking(Settings.read().wanderer_url, backends.store) as tracking,
    ):
        yield StandardWanderer(
            application,
            store=backends.store,
            supervisor=backends.supervisor,
            tracking=tracking,
            holder=f"{os.environ.get('USER', 'someone')}@{here()}",
            stop=stop,
            report=lambda done: click.echo(_line(done), err=True),
        )


def _line(done: CompletedAction) -> str:
    action = done.action
    return f"{action.scope} {action.version} {action.name}: {done.state.value}"


def _print_report(report: MigrationReport, dry_run: bool, *, sql: bool = True) -> None:
    """Show what was planned and done; ends the process with 1 if not all of it was."""
    if not report.planned:
        click.echo("nothing to do")
    else:
        click.echo(table(_HEAD, _rows(report, "planned" if dry_run else "not done")))
    if dry_run and sql:
        for action in report.planned:
            if action.sql is not None:
                click.echo(f"\n-- {action.scope} {action.version} {action.name} ({action.what})")
                click.echo(action.sql.strip())
    if report.error is not None:
        click.echo(f"Error: {report.error}", err=True)
        sys.exit(1)


def _rows(report: MigrationReport, otherwise: str) -> list[Sequence[object]]:
    done = [_row(each) for each in report.done]
    rest = report.planned[len(done) :]
    return done + [
        [each.scope, str(each.version), each.name, each.what, otherwise, "", ""] for each in rest
    ]


def _row(done: CompletedAction) -> Sequence[object]:
    action, seconds = done.action, f"{done.seconds:.3f}" if done.seconds else ""
    named = [action.scope, str(action.version), action.name, action.what]
    return [*named, done.state.value, seconds, done.error]
