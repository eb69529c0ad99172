"""Dagster's own scheduler, by a clock that the test sets; its runs are executed in this process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from dagster import DagsterInstance
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._scheduler.scheduler import launch_scheduled_runs

from tests.support.dagster_home import new_instance

AT_ONCE = {
    "run_coordinator": {
        "module": "dagster._core.run_coordinator",
        "class": "DefaultRunCoordinator",
    },
    "run_launcher": {
        "module": "dagster._core.launcher.sync_in_memory_run_launcher",
        "class": "SyncInMemoryRunLauncher",
    },
}


class Scheduler:
    """The scheduler's loop, one step at a time."""

    def __init__(self, instance: DagsterInstance, workspace: WorkspaceProcessContext) -> None:
        self.instance = instance
        self._workspace = workspace
        self._iterations: dict[str, Any] = {}

    def look(self, now: datetime) -> None:
        """What the daemon does when it looks at this time."""
        log = logging.getLogger("scheduler")
        for error in launch_scheduled_runs(self._workspace, log, now, self._iterations):
            assert error is None, error

    def look_until(self, now: datetime, end: datetime, step: timedelta) -> None:
        """Look again and again."""
        while now <= end:
            self.look(now)
            now += step

    def restart(self) -> None:
        """What it knew is what Dagster's storage knows."""
        self._iterations = {}


@contextmanager
def scheduler(module: str, attribute: str) -> Iterator[Scheduler]:
    """A scheduler of the definitions that `attribute` of a module names."""
    loadable = LoadableTargetOrigin(module_name=module, attribute=attribute)
    target = InProcessWorkspaceLoadTarget(
        InProcessCodeLocationOrigin(loadable, location_name="here")
    )
    with (
        new_instance(AT_ONCE) as instance,
        create_test_daemon_workspace_context(target, instance) as workspace,
    ):
        yield Scheduler(instance, workspace)
