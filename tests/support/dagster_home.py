"""A DAGSTER_HOME of the test's own, copied from one whose storage has its tables already.

Dagster takes half a second to create them, whenever a process first uses a home.
"""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, instance_for_test


@functools.cache
def _template() -> Path:
    home = Path(tempfile.mkdtemp(prefix="blacksmith-dagster-home-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    with instance_for_test(temp_dir=str(home), set_dagster_home=False) as instance:
        instance.get_runs()
        instance.all_instigator_state()
    (home / "dagster.yaml").unlink()
    return home


def make_home(home: Path, settings: str = "") -> None:
    """Make `home` a DAGSTER_HOME without telemetry; `settings` are further lines of its dagster.yaml."""
    shutil.copytree(_template(), home, dirs_exist_ok=True)
    (home / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\n{settings}")


@contextmanager
def new_instance(overrides: Mapping[str, Any] | None = None) -> Iterator[DagsterInstance]:
    """An instance in a temporary DAGSTER_HOME, which the environment names meanwhile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        make_home(Path(home))
        with instance_for_test(overrides, temp_dir=home) as instance:
            yield instance
