"""`blacksmith replay` and `blacksmith jobs export`: their output and their effects."""

import contextlib
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from blacksmith_dagster import Batch, Blacksmith, Destination, Event, Request, Schedule, Source
from blacksmith_dagster.cli import main
from blacksmith_dagster.ingest import ingest
from blacksmith_dagster.scheduler import StandardScheduler, load
from blacksmith_dagster.store import open_store
from blacksmith_dagster.store.records import NewEvent
from blacksmith_dagster.supervisor import open_supervisor

shop = Source("shop")
ordered = shop.accept("ordered")
mail = Destination("mail", schedule=Schedule("@every 1h"))


@mail.event(receives=ordered)
def thanks(batch: Batch[dict[str, int]]) -> None:
    for job in batch:
        if job.data["n"] < 2:
            batch.discard(job, f"no address {job.data['n']}")


keys: dict[str, list[str]] = {}  # of the jobs that `news` got, by event


@mail.event(receives=ordered)
def news(batch: Batch[dict[str, int]]) -> None:
    for job in batch:
        keys.setdefault(job.event.id or "", []).append(job.key)


before = Blacksmith(sources=[shop], destinations=[])
blacksmith = Blacksmith(sources=[shop], destinations=[mail])
HERE = "tests.acceptance.test_cli_replay"
THANKS = ("replay", "mail/thanks", "--from", "2026-01-01", f"--app={HERE}:blacksmith")
NEWS = ("replay", "mail/news", *THANKS[2:])


def fixed(event: Event[dict[str, int]]) -> dict[str, int]:
    return {"n": event.data["n"] + 10}


@pytest.fixture
def ids(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three events: `mail/thanks` discarded the jobs of two, and one has no job."""
    keys.clear()
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("BLACKSMITH_STORE_URL", store_url)
    with contextlib.closing(open_store(store_url, upgrade=True)) as store:
        store.register(blacksmith)
        [ids] = ingest(blacksmith, store, ordered, [Request.of([{"n": 0}, {"n": 1}])])
        [more] = ingest(before, store, ordered, [Request.of([{"n": 2}])])
        with contextlib.closing(open_supervisor(None, store.database)) as supervisor:
            for event in (thanks, news):
                load(blacksmith, event, StandardScheduler(), store=store, supervisor=supervisor)
    assert isinstance(ids, list)
    assert isinstance(more, list)
    return ids + more


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_a_dry_run_reports_what_would_be_loaded(ids: list[str]) -> None:
    output = run(*THANKS, "--dry-run").stdout
    assert "3 jobs would be run" in output
    assert "no address 1" in output
    expected = msgspec.json.decode(run(*THANKS, "--dry-run", "--mode=failed", "--json").stdout)
    assert expected["jobs"] == 2
    assert list(expected["days"].values()) == [{"missing": 1, "discarded": 2}]
    assert [job["event_id"] for job in expected["sample"]] == ids[:2]


def test_discarded_jobs_are_exported_edited_and_loaded_again(
    ids: list[str], tmp_path: Path
) -> None:
    lines = run("jobs", "export", "mail/thanks").stdout.splitlines()
    rows = [msgspec.json.decode(line) for line in lines]
    assert [(row["event_id"], row["data"], row["error"]) for row in rows] == [
        (ids[0], {"n": 0}, "no address 0"),
        (ids[1], {"n": 1}, "no address 1"),
    ]
    table = tmp_path / "jobs.csv"
    run("jobs", "export", "mail/thanks", "--format=csv", f"--output={table}")
    head, *written = table.read_text().splitlines()
    assert head.split(",")[-1] == "data.n"
    assert [line.split(",")[-1] for line in written] == ["0", "1"]

    output = run(*THANKS, "--mode=failed", "--edit", f"{HERE}:fixed", "--error", "address 1").stdout
    assert output.startswith("1 succeeded")
    assert run(*THANKS, "--mode=failed").stdout.endswith("1 discarded\n")
    assert run("jobs", "export", "mail/thanks").stdout.count("\n") == 1


def test_a_new_destination_event_is_filled(ids: list[str]) -> None:
    output = run("replay", "mail/news", "--from=2026-01-01T00:00Z", f"--app={HERE}:blacksmith")
    assert output.stdout.startswith("1 succeeded")
    history = run("events", "show", ids[2], "--json").stdout
    assert [transition["state"] for transition in msgspec.json.decode(history)["history"]][
        -1
    ] == "succeeded"


def test_a_job_keeps_its_key_unless_a_new_one_is_requested(ids: list[str]) -> None:
    run(*NEWS, "--mode=all")
    run(*NEWS, "--mode=all", "--new-key")
    for event_id in ids[:2]:
        first, again, new = keys[event_id]
        assert first == again
        assert new not in (first, "")
    assert len({key for event_id in ids for key in keys[event_id]}) == 6


def test_a_rate_is_respected(ids: list[str]) -> None:
    start = time.monotonic()
    assert run(*NEWS, "--mode=all", "--rate=1.5").stdout.startswith("3 succeeded")
    assert time.monotonic() - start >= 2  # seconds, for three jobs
    assert "--rate" in run(*NEWS, "--rate=0", code=2).output


def test_events_of_one_version_only(ids: list[str], store_url: str) -> None:
    with contextlib.closing(open_store(store_url)) as store:
        store.register(blacksmith)
        new = [NewEvent(ordered.path, '{"n":4}', version=version) for version in ("1", "2", "2")]
        [event_ids] = store.log.append([new])
    assert isinstance(event_ids, list)
    assert run(*NEWS, "--version=2").stdout.startswith("2 succeeded")
    assert [event_id in keys for event_id in event_ids] == [False, True, True]
    assert ids[2] not in keys


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("replay", "mail/nothing", "--from=2026-01-01"), "no destination event mail/nothing"),
        ((*THANKS, "--event=shop/paid"), "does not receive shop/paid"),
        ((*THANKS, "--when=nowhere"), "there is no function 'nowhere'"),
    ],
)
def test_what_cannot_be_replayed(ids: list[str], arguments: tuple[str, ...], problem: str) -> None:
    options = arguments if arguments[:2] == THANKS[:2] else (*arguments, THANKS[-1])
    assert problem in run(*options, code=1).output


def test_a_wrong_date(ids: list[str]) -> None:
    assert "write 2026-01-31" in run("replay", "mail/thanks", "--from=yesterday", code=2).output
