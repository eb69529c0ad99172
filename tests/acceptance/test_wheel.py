"""The built package, installed alone in a fresh environment, outside of the repository."""

import contextlib
import json
import re
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from blacksmith_dagster.store import open_store
from tests.support.process_trees import kill_tree
from tests.support.processes.blacksmith import ROOT_FOLDER
from tests.support.services import free_port
from tests.support.waiting import until, until_ready
from tests.support.wheel import Built, Environment, build

# What needs an extra, by the extra.
EXTRAS = {
    "postgres": """
from blacksmith_dagster.store import open_store
open_store("postgresql://127.0.0.1:9/none")
---
from blacksmith_dagster.destinations.dialects import open_engine
open_engine("warehouse", "postgresql://127.0.0.1:9/none")
---
from blacksmith_dagster import Secret
from blacksmith_dagster.sources import PostgresSource
PostgresSource("crm", url=Secret("CRM_URL")).changes("customers", tables=["public.customers"])(None)
""",
    "kafka": """
from blacksmith_dagster.pubsub import open_pubsub
open_pubsub("kafka://127.0.0.1:9", "sqlite:////store.db")
""",
    "nats": """
from blacksmith_dagster.pubsub import open_pubsub
open_pubsub("nats://127.0.0.1:9", "sqlite:////store.db")
""",
    "rabbitmq": """
from blacksmith_dagster.pubsub import open_pubsub
open_pubsub("amqp://127.0.0.1:9", "sqlite:////store.db")
""",
    "consul": """
from blacksmith_dagster.supervisor import open_supervisor
open_supervisor("consul://127.0.0.1:9", None)
""",
    "jsonschema": """
from blacksmith_dagster import JSONSchema
JSONSchema({"type": "object"})
""",
    "pandas": """
from blacksmith_dagster import Batch
Batch("warehouse/flights", []).to_pandas()
""",
}
TRY_ALL = """
import json, pathlib, sys
raised = {}
for extra, scripts in json.loads(pathlib.Path("scripts.json").read_text()).items():
    raised[extra] = []
    for script in scripts:
        try:
            exec(script, {})
        except Exception as error:
            raised[extra].append(f"{type(error).__name__}: {error}")
json.dump(raised, sys.stdout)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def environment(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel, with the webserver and pytest, which the README and `blacksmith init` install."""
    folder = tmp_path_factory.mktemp("environment")
    return Environment(folder, built.wheel, ["dagster-webserver", "pytest"])


def test_wheel_and_sdist_are_complete(built: Built) -> None:
    """The wheel has the package with its types and its licence; the sdist all that the tests need."""
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"blacksmith_dagster"}
    assert files("blacksmith_dagster") <= names
    assert "blacksmith_dagster/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    with tarfile.open(built.sdist) as sdist:
        packed = {name.split("/", 1)[-1] for name in sdist.getnames()}
    for folder in ("blacksmith_dagster", "tests", "docs", "assets", "migrations", "scripts"):
        assert files(folder) <= packed
    assert {"LICENSE", "CHANGELOG.md", "Makefile", "definitions.py"} <= packed


def files(folder: str) -> set[str]:
    """The files below a folder of the repository, by their paths from its root."""
    return {
        path.relative_to(ROOT_FOLDER).as_posix()
        for path in (ROOT_FOLDER / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_wheel_runs_the_first_pipeline(environment: Environment, tmp_path: Path) -> None:
    """From `blacksmith init` to an event that Dagster has loaded, with nothing of the source tree."""
    version = tomllib.loads((ROOT_FOLDER / "pyproject.toml").read_text())["project"]["version"]
    assert version in environment.run("blacksmith", "--version", folder=tmp_path).stdout
    assert environment.run("blacksmith", "init", "first", folder=tmp_path).returncode == 0
    project = tmp_path / "first"
    tested = environment.run("python", "-m", "pytest", "-q", folder=project)
    assert "1 passed" in tested.stdout, tested.stdout
    (project / "pipeline.py").write_text(first_pipeline())
    with dev(environment, project) as url:
        order = {"id": "1", "email": "ada@example.com", "total": 250}
        response = httpx.post(f"{url}/shop/orders", json=order, trust_env=False)
        assert response.status_code == 202, response.text
        with contextlib.closing(open_store(f"sqlite:///{project}/.blacksmith/store.db")) as store:
            until(lambda: store.counts.of("mail/thanks").succeeded == 1, 120)
    [event_id] = response.json()["ids"]
    shown = environment.run("blacksmith", "events", "show", event_id, folder=project)
    assert re.search(r"(?s)job of mail/thanks\n.* succeeded ", shown.stdout), (
        shown.stdout + shown.stderr
    )


def first_pipeline() -> str:
    """The module `pipeline.py` of the README."""
    found = re.search(
        r"^```python\n(# pipeline\.py\n.*?)^```$",
        (ROOT_FOLDER / "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert found
    return found[1]


@contextlib.contextmanager
def dev(environment: Environment, project: Path) -> Iterator[str]:
    """Run `blacksmith dev`; yields the gateway's URL. A test that fails shows what was printed."""
    port = free_port()
    command: list[str | Path] = [environment.bin / "blacksmith", "dev", f"--port={port}"]
    process = subprocess.Popen(
        [*command, f"--ui-port={free_port()}"],
        cwd=project,
        env=environment.variables(project),
        stdin=subprocess.DEVNULL,
    )

    def ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/_health", trust_env=False).status_code == 200
        return False

    url = f"http://127.0.0.1:{port}"
    try:
        until_ready(process, ready)
        yield url
        process.terminate()
        assert process.wait(60) == 0
    finally:
        kill_tree(process)


def test_missing_extras_say_how_to_install_them(environment: Environment, tmp_path: Path) -> None:
    project = tomllib.loads((ROOT_FOLDER / "pyproject.toml").read_text())["project"]
    assert EXTRAS.keys() == project["optional-dependencies"].keys() - {"all", "demo", "dev", "docs"}
    scripts = {extra: script.split("---\n") for extra, script in EXTRAS.items()}
    (tmp_path / "scripts.json").write_text(json.dumps(scripts))
    tried = environment.run("python", "-c", TRY_ALL, folder=tmp_path)
    assert tried.returncode == 0, tried.stderr
    raised = json.loads(tried.stdout)
    for extra in EXTRAS:
        assert len(raised[extra]) == len(scripts[extra])
        for error in raised[extra]:
            assert error.startswith("ImportError: ")
            assert f"pip install 'blacksmith-dagster[{extra}]'" in error
    url = {"BLACKSMITH_STORE_URL": "postgresql://127.0.0.1:9/none"}
    status = environment.run("blacksmith", "store", "upgrade", folder=tmp_path, env=url)
    assert status.returncode == 1
    assert re.fullmatch(r"Error: .*pip install 'blacksmith-dagster\[postgres\]'.*\n", status.stderr)
