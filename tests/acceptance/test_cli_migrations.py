"""`blacksmith migrations`: its output, its exit codes and its effects."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from blacksmith_dagster import Blacksmith, Secret, Source
from blacksmith_dagster.cli import main
from blacksmith_dagster.destinations import SQLDestination
from blacksmith_dagster.store import open_store
from tests.support.migrating import tables

airport = Source("airport")
departed = airport.accept("departed")
warehouse = SQLDestination("warehouse", url=Secret("WAREHOUSE_URL"), migrations="migrations")
flights = warehouse.table("flights", receives=departed)
blacksmith = Blacksmith(sources=[airport], destinations=[warehouse])

APP = "--app=tests.acceptance.test_cli_migrations:blacksmith"
ONE, TWO = 20260101000000, 20260102000000


@pytest.fixture
def target(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the warehouse, with two migrations in the current folder."""
    url = f"sqlite:///{tmp_path}/warehouse.db"
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("BLACKSMITH_STORE_URL", store_url)
    monkeypatch.setenv("WAREHOUSE_URL", url)
    monkeypatch.chdir(tmp_path)
    open_store(store_url, upgrade=True).close()
    folder = tmp_path / "migrations"
    folder.mkdir()
    for version in (ONE, TWO):
        table = f"t{version // 1_000_000 % 100}"
        (folder / f"{version}.{table}.up.sql").write_text(f"CREATE TABLE {table} (n INTEGER);")
        (folder / f"{version}.{table}.down.sql").write_text(f"DROP TABLE {table};")
    return url


def run(command: str, *arguments: str, code: int = 0, answer: str | None = None) -> Result:
    result = CliRunner().invoke(main, ["migrations", command, APP, *arguments], input=answer)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output  # no colours where there is no terminal
    return result


def states() -> list[str | None]:
    rows = msgspec.json.decode(run("status", "--json").stdout)
    return [row["state"] for row in rows]


def test_they_are_acknowledged_run_and_rolled_back(target: str) -> None:
    assert "acknowledged" in run("ack").stdout
    assert states() == ["acknowledged", "acknowledged"]
    done = run("run", "d:warehouse", "--to", str(ONE)).stdout.splitlines()
    assert done[1].split()[:5] == ["destination:warehouse", str(ONE), "t1", "up", "succeeded(up)"]
    assert "t2" in run("run").stdout
    assert run("run").stdout == "nothing to do\n"
    assert tables(target) == {"t1", "t2"}
    assert "succeeded(down)" in run("rollback", "--to", str(ONE), "--yes").stdout
    assert tables(target) == {"t1"}
    rows = run("status").stdout.splitlines()
    assert rows[0].split()[:4] == ["scope", "version", "name", "state"]
    assert [row.split()[3] for row in rows[1:]] == ["succeeded(up)", "succeeded(down)"]


def test_a_dry_run_prints_the_plan_and_the_sql(target: str) -> None:
    output = run("run", "--dry-run").stdout
    assert "planned" in output
    assert f"-- destination:warehouse {ONE} t1 (up)\nCREATE TABLE t1 (n INTEGER);" in output
    assert tables(target) == set()
    assert states() == [None, None]


def test_a_rollback_asks(target: str) -> None:
    run("run")
    refused = run("rollback", "--to", "0", answer="n\n", code=1)
    assert "Roll these back?" in refused.output
    assert "CREATE TABLE" not in refused.output
    assert tables(target) == {"t1", "t2"}
    run("rollback", "--to", "0", answer="y\n")
    assert tables(target) == set()
    assert run("rollback", "--to", "0", answer="").stdout == "nothing to do\n"
    assert "Missing option '--to'" in run("rollback", code=2).output


def test_a_failure_ends_with_1_and_its_error(target: str, tmp_path: Path) -> None:
    (tmp_path / "migrations" / f"{ONE}.t1.up.sql").write_text("SELECT nowhere;")
    result = run("run", code=1)
    assert "Error: OperationalError: no such column: nowhere" in result.stderr
    assert [row.split()[4] for row in result.stdout.splitlines()[1:]] == ["failed(up)", "not"]
    assert "failed(up)" in run("status").stdout


@pytest.mark.parametrize(
    ("scope", "reason"),
    [("d:sea", "has no scope 'destination:sea'"), ("warehouse", "has no scope 'warehouse'")],
)
def test_an_unknown_scope_is_one_line(target: str, scope: str, reason: str) -> None:
    result = run("run", scope, code=1)
    assert result.stderr.startswith("Error: ") or "\nError: " in result.stderr
    assert reason in result.stderr


def test_new_creates_two_files_to_fill_in(target: str, tmp_path: Path) -> None:
    files = [Path(line) for line in run("new", "d:warehouse", "add_gate").stdout.splitlines()]
    assert [path.name.split(".", 1)[1] for path in files] == [
        "add_gate.up.sql",
        "add_gate.down.sql",
    ]
    assert "holds no statement" in run("run", "--dry-run", code=1).output
    files[0].write_text("CREATE TABLE t3 (n INTEGER);")
    run("run")
    assert tables(target) == {"t1", "t2", "t3"}
    assert "has no folder" in run("new", "d/e:warehouse/flights", "x", code=1).output
    assert "letters, digits" in run("new", "d:warehouse", "a b", code=1).output


def test_a_migration_that_did_not_fail_is_not_repaired(target: str) -> None:
    assert "say --applied or --not-applied" in run("repair", "d:warehouse", str(ONE), code=1).output
    assert "is unknown" in run("repair", "d:warehouse", str(ONE), "--applied", code=1).output


def test_a_failed_migration_is_repaired(target: str, tmp_path: Path) -> None:
    (tmp_path / "migrations" / f"{ONE}.t1.up.sql").write_text("SELECT nowhere;")
    run("run", code=1)
    assert "succeeded(up)" in run("repair", "d:warehouse", str(ONE), "--applied").stdout
    assert "t2" in run("run").stdout
    assert states() == ["succeeded(up)", "succeeded(up)"]


def test_a_migration_that_is_not_applied_runs_again(target: str, tmp_path: Path) -> None:
    file = tmp_path / "migrations" / f"{ONE}.t1.up.sql"
    file.write_text("SELECT nowhere;")
    run("run", code=1)
    assert "acknowledged" in run("repair", "d:warehouse", str(ONE), "--not-applied").stdout
    assert states() == ["acknowledged", None]
    file.write_text("CREATE TABLE t1 (n INTEGER);")
    run("run")
    assert tables(target) == {"t1", "t2"}
    assert states() == ["succeeded(up)", "succeeded(up)"]


def test_a_discarded_migration_never_runs(target: str) -> None:
    assert "discarded" in run("ack", "--discard", "--to", str(ONE)).stdout
    assert states() == ["discarded", None]
    assert "t2" in run("run").stdout
    assert tables(target) == {"t2"}
    assert states() == ["discarded", "succeeded(up)"]


def test_a_late_migration_runs_out_of_order(target: str, tmp_path: Path) -> None:
    run("run")
    late = ONE + 1
    (tmp_path / "migrations" / f"{late}.t3.up.sql").write_text("CREATE TABLE t3 (n INTEGER);")
    error = run("run", code=1).stderr
    assert f"{late} t3 of destination:warehouse (after {TWO} t2)" in error
    assert "--out-of-order" in error
    assert tables(target) == {"t1", "t2"}
    run("run", "--out-of-order")
    assert tables(target) == {"t1", "t2", "t3"}
    assert states() == ["succeeded(up)"] * 3


def test_they_are_tracked_where_the_wanderers_url_says(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("run")
    monkeypatch.setenv("BLACKSMITH_WANDERER_URL", f"sqlite:///{tmp_path}/wanderer.db")
    assert states() == [None, None]
