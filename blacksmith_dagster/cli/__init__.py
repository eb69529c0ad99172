"""The `blacksmith` command."""

from __future__ import annotations

from typing import Any

import click

from blacksmith_dagster.cli.develop import dev
from blacksmith_dagster.cli.history import purge, replay
from blacksmith_dagster.cli.init import init
from blacksmith_dagster.cli.inspect import destinations, events, jobs, status
from blacksmith_dagster.cli.migrations import migrations
from blacksmith_dagster.cli.quarantine import quarantine
from blacksmith_dagster.cli.serve import gateway, keys, store, worker
from blacksmith_dagster.errors import BlacksmithError
from blacksmith_dagster.logs import log_failure, set_up_logs
from blacksmith_dagster.settings import read_env_file

__all__ = ["main"]


class _Commands(click.Group):
    """Prints the package's own errors as one line, without a traceback, and exits with code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BlacksmithError as error:
            raise _ended(" ".join(str(error).split()) or type(error).__name__) from error
        except ImportError as error:
            if error.name is not None:  # a module is missing: the traceback says where
                raise
            raise _ended(str(error)) from error  # an extra is missing


def _ended(message: str) -> Exception:
    """What ends the command with exit code 1; the message is printed or, if logs are JSON, logged."""
    return click.exceptions.Exit(1) if log_failure(message) else click.ClickException(message)


@click.group(
    cls=_Commands,
    commands=[
        init,
        dev,
        gateway,
        worker,
        status,
        events,
        jobs,
        destinations,
        keys,
        migrations,
        quarantine,
        replay,
        purge,
        store,
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="blacksmith-dagster")
def main() -> None:
    """Receive events, keep every one of them, deliver each to every destination that wants it.

    Each command sets the environment variables in .env beside pyproject.toml, as Dagster does.
    """
    read_env_file()
    set_up_logs()
