"""Runs several processes as one: their lines on one terminal, and one end for all of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import click

_STOP_SECONDS = 30.0
_ABORT_SECONDS = 5.0  # a process that is still starting has nothing to finish
_LOOK_SECONDS = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The message of a command, or the last line of a traceback.
_MESSAGE = re.compile(r"Error: (.*)|([\w.]+(?:Error|Exception): .*)")
# What uvicorn prints when it cannot listen. Dagster's UI does not end then.
_CANNOT_LISTEN = re.compile(r"ERROR: +\[Errno \d+\] (.+)")


def run_together(
    commands: Mapping[str, Sequence[str]],
    folder: Path,
    environment: Mapping[str, str],
    *,
    has_started: Callable[[], bool],
    started: str,
    log: Path,
) -> None:
    """Run the commands, by their names, until Ctrl-C, SIGTERM, SIGHUP or the end of one; stop all.

    What they print until `has_started()` goes to the file `log`. Then `started` is printed, and below
    it their lines, each with its name. Each command has a process group of its own, so that it gets
    Ctrl-C once, from here, and so that nothing that it has started outlives it.

    Raises `click.ClickException` with the message of the one that cannot start or has ended, and what
    `has_started` raises.
    """
    # SIGINT too: a shell starts its background processes with SIGINT ignored.
    for number in _SIGNALS:
        signal.signal(number, signal.default_int_handler)
    children: dict[str, subprocess.Popen[str]] = {}
    is_up = interrupted = False
    with log.open("w") as file:
        output = _Output(commands, file)
        try:
            for name, command in commands.items():
                children[name] = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    process_group=0,
                )
                output.read(name, children[name])
            while all(child.poll() is None for child in children.values()) and not output.failed:
                if not is_up and has_started():
                    is_up = True
                    output.show(started)
                time.sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            interrupted = True
            output.stop("stopping")
        finally:
            output.stop()
            ended = [name for name, child in children.items() if child.poll() is not None]
            _stop(children.values(), _STOP_SECONDS if is_up or interrupted else _ABORT_SECONDS)
            output.join()
    if interrupted:
        return
    name = [*output.failed, *ended][0]
    code = f"{name} ended with exit code {children[name].returncode}"
    if is_up:
        raise click.ClickException(f"{code}; see its last lines above")
    message = output.message(name)
    raise click.ClickException(
        f"{name}: {message}; all that it printed is in {log}" if message else code
    )


class _Output:
    """What the processes print: to a file until they have all started, then to the terminal."""

    def __init__(self, names: Collection[str], file: IO[str]) -> None:
        self._width = max(map(len, names))
        self._file = file
        self._lock = threading.Lock()
        self._shown = self._stopped = False
        self._threads: list[threading.Thread] = []
        self._messages: dict[str, str] = {}
        self._with_errors: set[str] = set()
        self.failed: list[str] = []
        """Those that cannot start, but have not ended."""

    def read(self, name: str, child: subprocess.Popen[str]) -> None:
        """Read the lines of a process, in a thread."""
        thread = threading.Thread(target=self._read, args=(name, child.stdout), daemon=True)
        thread.start()
        self._threads.append(thread)

    def show(self, text: str) -> None:
        """Print `text`, and from now on all lines below it."""
        with self._lock:
            click.echo(text, err=True)
            self._shown = True

    def stop(self, text: str | None = None) -> None:
        """Print `text`, and no line after it."""
        with self._lock:
            if text is not None:
                click.echo(text, err=True)
            self._stopped = True

    def join(self) -> None:
        """Wait until all is read; the processes have ended."""
        for thread in self._threads:
            thread.join(_STOP_SECONDS)

    def message(self, name: str) -> str | None:
        """The last line of a process that is an error's, else its last line."""
        return self._messages.get(name)

    def _read(self, name: str, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._lock:
                    self._add(name, line.rstrip())

    def _add(self, name: str, line: str) -> None:
        plain, prefix = click.unstyle(line).strip(), f"{name:{self._width}} |"
        match = _MESSAGE.fullmatch(plain)
        # Once all have started, such a line is another one's: of the user's own code, say.
        if not self._shown and (cannot_listen := _CANNOT_LISTEN.fullmatch(plain)):
            match = cannot_listen
            self.failed.append(name)
        if match:
            self._messages[name] = next(filter(None, match.groups()), plain)
            self._with_errors.add(name)
        elif plain and name not in self._with_errors:
            self._messages[name] = plain
        if not self._shown:
            self._file.write(f"{prefix} {plain}\n")
        elif not self._stopped:
            click.echo(f"{click.style(prefix, fg='cyan')} {line}", err=True)


def _stop(children: Collection[subprocess.Popen[str]], seconds: float) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
    deadline = time.monotonic() + seconds
    try:
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(deadline - time.monotonic(), 0))
    finally:  # a second Ctrl-C waits no longer
        for child in children:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
