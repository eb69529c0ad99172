"""The migrations that an application declares, and the plans for them."""

import cProfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from blacksmith_dagster import (
    Blacksmith,
    DeclarationError,
    Destination,
    Direction,
    Migration,
    Source,
)
from blacksmith_dagster.errors import MigrationError
from blacksmith_dagster.wanderer.files import canonical, chosen_scopes, declared, version_of
from blacksmith_dagster.wanderer.plan import (
    Declared,
    TrackedMigration,
    plan_ack,
    plan_rollback,
    plan_run,
    settled_version,
    waits_for,
)
from blacksmith_dagster.wanderer.records import MigrationRequest, MigrationState

LAKE, ROWS = "destination:lake", "destination/event:lake/rows"
ONE, TWO, THREE = 20260101000000, 20260102000000, 20260103000000


def application(
    *, lake: Path | Sequence[Migration] | None = None, rows: Sequence[Migration] | None = None
) -> Blacksmith:
    airport = Source("airport")
    departed = airport.accept("departed")
    destination = Destination("lake", migrations=lake)
    destination.event(receives=departed, name="rows", migrations=rows)(lambda batch: None)
    return Blacksmith(sources=[airport], destinations=[destination])


def folder(path: Path, **files: str | bytes) -> Path:
    """A folder of migrations; `v1_up` is the file of version ONE."""
    for name, content in files.items():
        version, direction = name.split("_")
        number = {"v1": ONE, "v2": TWO, "v3": THREE}[version]
        data = content if isinstance(content, bytes) else content.encode()
        (path / f"{number}.step.{direction}.sql").write_bytes(data)
    return path


def sql(*versions: int, down: bool = True) -> list[Migration]:
    return [
        Migration(version, "step", up=f"SELECT {version};", down="SELECT 0;" if down else None)
        for version in versions
    ]


def tracked(
    migration: Migration, state: MigrationState, scope: str = LAKE, error: str | None = None
) -> TrackedMigration:
    return TrackedMigration(
        scope, migration.version, migration.name, migration.checksum, state, error=error
    )


def refused(app: Blacksmith, tracked_before: Sequence[TrackedMigration] = ()) -> str:
    """The message with which a run is refused."""
    with pytest.raises(MigrationError) as raised:
        plan_run(declared(app), tracked_before, MigrationRequest())
    return str(raised.value)


# ------------------------------------------------------------------------------------- declaring


def test_a_folder_holds_a_migration_per_pair_of_files(tmp_path: Path) -> None:
    lake = folder(tmp_path, v2_up="SELECT 2;", v2_down="SELECT 0;", v1_up="SELECT 1;")
    (tmp_path / "README.md").write_text("about these files")

    migrations = declared(application(lake=lake))[LAKE]

    assert [(step.version, step.down is not None) for step in migrations] == [
        (ONE, False),
        (TWO, True),
    ]
    assert migrations[1].sql(Direction.UP) == "SELECT 2;"


def test_a_relative_folder_is_beside_the_pyproject_that_names_the_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.blacksmith]\napp = 'a:b'\n")
    (tmp_path / "migrations").mkdir()
    (tmp_path / "elsewhere").mkdir()
    folder(tmp_path / "migrations", v1_up="SELECT 1;")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(declared(application(lake=Path("migrations")))[LAKE]) == 1


def test_a_scope_has_a_short_form() -> None:
    assert canonical("s:crm") == "source:crm"
    assert canonical("s/e:crm/user") == "source/event:crm/user"
    assert canonical("d:lake") == LAKE
    assert canonical("d/e:lake/rows") == ROWS
    assert canonical(ROWS) == ROWS


def test_scopes_are_the_requested_ones_or_all() -> None:
    app = application()
    assert chosen_scopes(app, ["d/e:lake/rows"]) == [ROWS]
    assert chosen_scopes(app, []) == ["source:airport", "source/event:airport/departed", LAKE, ROWS]


def test_a_destinations_version_is_the_newest_of_it_and_its_events() -> None:
    app = application(lake=sql(ONE), rows=sql(TWO))
    assert version_of(app.destinations["lake"]) == TWO
    assert version_of(application().destinations["lake"]) == 0


def test_an_adapter_runs_its_migrations_and_its_events(tmp_path: Path) -> None:
    ran = []
    lake = Destination("lake")
    lake.migrate(Migration(ONE, "go", up=lambda: ran.append("up")), Direction.UP)
    assert ran == ["up"]
    with pytest.raises(DeclarationError, match="override"):
        lake.migrate(sql(ONE)[0], Direction.UP)
    with pytest.raises(MigrationError, match="no down"):
        lake.migrate(Migration(ONE, "go", up=lambda: None), Direction.DOWN)


@pytest.mark.parametrize("migrations", [7, ["20260101000000.a.up.sql"], ""])
def test_migrations_of_another_type_are_refused(migrations: object) -> None:
    with pytest.raises(DeclarationError, match=r"destination 'lake'.*migrations="):
        Destination("lake", migrations=migrations)  # type: ignore[call-overload]


@pytest.mark.parametrize("version", [0, 2026, 20261301000000, "20260101000000"])
def test_a_version_that_is_not_a_time_is_refused(version: object) -> None:
    with pytest.raises(DeclarationError, match=r"YYYYMMDDHHMMSS|as in"):
        Migration(version, "a", up="SELECT 1")  # type: ignore[arg-type]


def test_a_name_with_other_signs_is_refused() -> None:
    with pytest.raises(DeclarationError, match="letters, digits"):
        Migration(ONE, "a b", up="SELECT 1")


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "name",
    ["step.up.sql", "20260101.step.up.sql", "20261341000000.step.up.sql", "20260101000000.up.sql"],
)
def test_bad_file_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("SELECT 1;")
    message = refused(application(lake=tmp_path))
    assert str(tmp_path / name) in message
    assert "name it YYYYMMDDHHMMSS" in message


def test_two_files_of_one_version(tmp_path: Path) -> None:
    (tmp_path / f"{ONE}.this.up.sql").write_text("SELECT 1;")
    (tmp_path / f"{ONE}.that.up.sql").write_text("SELECT 1;")
    message = refused(application(lake=tmp_path))
    assert str(tmp_path) in message
    assert f"that and this have the same version {ONE}; give one of them another version" in message


def test_up_without_down(tmp_path: Path) -> None:
    """It runs, but rolling it back is refused before anything is rolled back."""
    app = application(lake=folder(tmp_path, v1_up="SELECT 1;", v2_up="SELECT 2;", v2_down="--\n;"))
    by_scope = declared(app)
    tracked_before = [
        tracked(migration, MigrationState.SUCCEEDED_UP) for migration in by_scope[LAKE]
    ]
    assert len(plan_run(by_scope, [], MigrationRequest())) == 2
    with pytest.raises(MigrationError, match=rf"{ONE} step of {LAKE}; write the \.down\.sql"):
        plan_rollback(by_scope, tracked_before, MigrationRequest(version=0))


def test_down_without_up(tmp_path: Path) -> None:
    message = refused(application(lake=folder(tmp_path, v1_down="SELECT 1;")))
    assert f"{ONE}.step.down.sql" in message
    assert "write it, or remove" in message


@pytest.mark.parametrize("content", ["", "  \n", "-- nothing\n/* at\nall */ ;;"])
def test_empty_sql(tmp_path: Path, content: str) -> None:
    message = refused(application(lake=folder(tmp_path, v1_up=content)))
    assert str(tmp_path / f"{ONE}.step.up.sql") in message
    assert "holds no statement; write the migration's up, or `SELECT 1;`" in message


def test_not_utf8(tmp_path: Path) -> None:
    message = refused(application(lake=folder(tmp_path, v1_up=b"SELECT '\xe9';")))
    assert str(tmp_path / f"{ONE}.step.up.sql") in message
    assert "(byte 8); save it as UTF-8" in message


def test_version_in_the_future(tmp_path: Path) -> None:
    version = f"{datetime.now(UTC) + timedelta(days=2):%Y%m%d%H%M%S}"
    (tmp_path / f"{version}.soon.up.sql").write_text("SELECT 1;")
    message = refused(application(lake=tmp_path))
    assert str(tmp_path) in message
    assert f"{version} soon is from the future" in message
    assert "`blacksmith migrations new` makes one" in message


def test_unknown_scope() -> None:
    with pytest.raises(MigrationError, match=r"no scope 'destination:sea'; it has source:airport"):
        chosen_scopes(application(), ["d:sea"])


def test_missing_folder(tmp_path: Path) -> None:
    message = refused(application(lake=tmp_path / "no"))
    assert str(tmp_path / "no") in message
    assert "create it, or correct migrations=" in message


def test_changed_after_run(tmp_path: Path) -> None:
    app = application(lake=folder(tmp_path, v1_up="SELECT 1;"))
    tracked_before = [tracked(declared(app)[LAKE][0], MigrationState.SUCCEEDED_UP)]
    assert plan_run(declared(app), tracked_before, MigrationRequest()) == []

    folder(tmp_path, v1_up="SELECT 2;")

    message = refused(app, tracked_before)
    assert f"{tmp_path / f'{ONE}.step.up.sql'} was changed after it ran" in message
    assert "restore it, and write the change as a new migration" in message


def test_late_lower_version() -> None:
    by_scope: Declared = {LAKE: sql(ONE, TWO), ROWS: sql(THREE)}
    tracked_before = [
        tracked(by_scope[LAKE][0], MigrationState.SUCCEEDED_UP),
        tracked(sql(THREE)[0], MigrationState.SUCCEEDED_UP),
    ]
    tracked_before = [tracked_before[0], tracked_before[1]._replace(scope=ROWS)]
    with pytest.raises(MigrationError, match=rf"{TWO} step of {LAKE} \(after {THREE} step\)"):
        plan_run(by_scope, tracked_before, MigrationRequest())
    planned = plan_run(by_scope, tracked_before, MigrationRequest(out_of_order=True))
    assert [step.action.version for step in planned] == [TWO]


# ------------------------------------------------------------------------------------- planning


def test_a_run_goes_from_the_oldest_to_the_newest_across_scopes() -> None:
    by_scope: Declared = {ROWS: sql(TWO), LAKE: sql(ONE, THREE)}
    planned = plan_run(by_scope, [], MigrationRequest())
    assert [(step.action.scope, step.action.version) for step in planned] == [
        (LAKE, ONE),
        (ROWS, TWO),
        (LAKE, THREE),
    ]
    assert {step.action.what for step in planned} == {"up"}
    assert planned[0].action.sql == f"SELECT {ONE};"


def test_a_run_ends_at_a_version_and_skips_the_done_and_the_discarded() -> None:
    by_scope: Declared = {LAKE: sql(ONE, TWO, THREE)}
    tracked_before = [
        tracked(by_scope[LAKE][0], MigrationState.SUCCEEDED_UP),
        tracked(by_scope[LAKE][1], MigrationState.DISCARDED),
    ]
    assert plan_run(by_scope, tracked_before, MigrationRequest(version=TWO)) == []
    planned = plan_run(by_scope, tracked_before, MigrationRequest())
    assert [step.action.version for step in planned] == [THREE]


@pytest.mark.parametrize(
    "state", [MigrationState.ACKNOWLEDGED, MigrationState.FAILED_UP, MigrationState.SUCCEEDED_DOWN]
)
def test_a_migration_that_has_not_run_runs_next_time(state: MigrationState) -> None:
    by_scope: Declared = {LAKE: sql(ONE)}
    assert len(plan_run(by_scope, [tracked(by_scope[LAKE][0], state)], MigrationRequest())) == 1


def test_a_rollback_goes_from_the_newest_down_to_a_version_that_stays() -> None:
    by_scope: Declared = {LAKE: sql(ONE, THREE), ROWS: sql(TWO)}
    tracked_before = [
        tracked(migration, MigrationState.SUCCEEDED_UP) for migration in by_scope[LAKE]
    ]
    tracked_before += [tracked(by_scope[ROWS][0], MigrationState.FAILED_DOWN, scope=ROWS)]
    planned = plan_rollback(by_scope, tracked_before, MigrationRequest(version=ONE))
    assert [(step.action.what, step.action.version) for step in planned] == [
        ("down", THREE),
        ("down", TWO),
    ]
    with pytest.raises(MigrationError, match="the version to roll back to is missing"):
        plan_rollback(by_scope, tracked_before, MigrationRequest())


def test_a_migration_that_the_code_no_longer_declares_cannot_be_rolled_back() -> None:
    tracked_before = [tracked(sql(ONE)[0], MigrationState.SUCCEEDED_UP)]
    with pytest.raises(MigrationError, match=f"no longer declares {ONE} step of {LAKE}"):
        plan_rollback({LAKE: []}, tracked_before, MigrationRequest(version=0))


def test_a_new_migration_is_acknowledged_once() -> None:
    by_scope: Declared = {LAKE: sql(ONE, TWO)}
    tracked_before = [tracked(by_scope[LAKE][0], MigrationState.SUCCEEDED_UP)]
    planned = plan_ack(by_scope, tracked_before, MigrationRequest())
    assert [(step.action.what, step.action.version) for step in planned] == [("acknowledge", TWO)]


def test_a_migration_that_has_not_run_can_be_discarded() -> None:
    by_scope: Declared = {LAKE: sql(ONE, TWO, THREE)}
    tracked_before = [
        tracked(by_scope[LAKE][0], MigrationState.SUCCEEDED_UP),
        tracked(by_scope[LAKE][1], MigrationState.FAILED_UP),
    ]
    planned = plan_ack(by_scope, tracked_before, MigrationRequest(discard=True))
    assert [(step.action.what, step.action.version) for step in planned] == [
        ("discard", TWO),
        ("discard", THREE),
    ]


@pytest.mark.parametrize(
    ("state", "fix"),
    [
        (MigrationState.INTERRUPTED, "repair SCOPE VERSION"),
        (MigrationState.EXECUTING_UP, "by run abc; wait"),
        (MigrationState.EXECUTING_DOWN, "by run abc; wait"),
    ],
)
def test_nothing_is_planned_while_a_result_is_unknown(state: MigrationState, fix: str) -> None:
    by_scope: Declared = {LAKE: sql(ONE, TWO)}
    tracked_before = [tracked(by_scope[LAKE][0], state)._replace(run="abc")]
    for plan in (plan_run, plan_rollback, plan_ack):
        with pytest.raises(MigrationError, match=fix):
            plan(by_scope, tracked_before, MigrationRequest(version=TWO))
    assert fix in (waits_for(by_scope, tracked_before) or "")


def test_the_migration_that_pauses_the_loads_is_named() -> None:
    one, two = sql(ONE, TWO)
    by_scope: Declared = {LAKE: [one, two]}
    assert (
        waits_for(
            by_scope,
            [
                tracked(one, MigrationState.SUCCEEDED_UP),
                tracked(two, MigrationState.SUCCEEDED_DOWN),
            ],
        )
        is None
    )
    message = waits_for(
        by_scope,
        [tracked(one, MigrationState.SUCCEEDED_UP), tracked(two, MigrationState.ACKNOWLEDGED)],
    )
    assert message is not None
    assert message.startswith(f"{TWO} step of {LAKE} has not run; run")
    failed = waits_for(
        by_scope,
        [
            tracked(one, MigrationState.ACKNOWLEDGED),
            tracked(two, MigrationState.FAILED_UP, error="no table"),
        ],
    )
    assert failed is not None
    assert failed.startswith(f"{TWO} step of {LAKE} failed(up): no table; fix it")


def test_the_version_of_a_target_is_the_newest_applied_or_discarded() -> None:
    by_scope: Declared = {LAKE: sql(ONE, TWO, THREE)}
    one, two, three = by_scope[LAKE]
    tracked_before = [
        tracked(one, MigrationState.SUCCEEDED_UP),
        tracked(two, MigrationState.DISCARDED),
    ]
    assert settled_version(by_scope, tracked_before) == TWO
    assert settled_version({LAKE: [one]}, tracked_before) == ONE
    assert (
        settled_version(by_scope, [*tracked_before, tracked(three, MigrationState.SUCCEEDED_DOWN)])
        == TWO
    )


def test_ten_times_as_many_migrations_are_ten_times_as_much_to_plan() -> None:
    def calls(migrations: int) -> int:
        """How many functions are called to plan a run of the last tenth of so many migrations."""
        start = datetime(2020, 1, 1, tzinfo=UTC)
        moments = (start + timedelta(minutes=number) for number in range(migrations))
        by_scope: Declared = {LAKE: sql(*(int(f"{moment:%Y%m%d%H%M%S}") for moment in moments))}
        ran = [
            tracked(migration, MigrationState.SUCCEEDED_UP)
            for migration in by_scope[LAKE][: migrations * 9 // 10]
        ]
        profile = cProfile.Profile()
        planned = profile.runcall(plan_run, by_scope, ran, MigrationRequest())
        assert len(planned) == migrations // 10
        return sum(entry.callcount for entry in profile.getstats())

    assert calls(10_000) < 12 * calls(1_000)
