"""The `blacksmith` command: what it prints, what it ends with."""

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from sqlalchemy.engine import make_url

from blacksmith_dagster import (
    Batch,
    Bearer,
    Blacksmith,
    Destination,
    Request,
    Schedule,
    Secret,
    Source,
)
from blacksmith_dagster.cli import main
from blacksmith_dagster.ingest import ingest
from blacksmith_dagster.scheduler import StandardScheduler, load
from blacksmith_dagster.store import open_store
from blacksmith_dagster.supervisor import open_supervisor
from scripts.demo import free_port

shop = Source("shop")
ordered = shop.accept("ordered")
mail = Destination("mail", schedule=Schedule("@every 1h"))


@mail.event(receives=ordered)
def thanks(batch: Batch[dict[str, int]]) -> None:
    for job in batch:
        if job.data["n"] == 1:
            batch.fail(job, "the server\nis away")
        if job.data["n"] == 2:
            batch.discard(job, "no address")


blacksmith = Blacksmith(sources=[shop], destinations=[mail])
closed = Blacksmith(
    sources=[
        Source("till", auth=Bearer(Secret("BLACKSMITH_TEST_SHOP_TOKEN"))).accept("paid").source
    ],
    destinations=[],
)
README = Path(__file__).parents[2] / "README.md"
APP = "--app=tests.acceptance.test_cli:blacksmith"


@pytest.fixture
def ids(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of three events that were loaded in the run `run-1`: one of them succeeded, one is due
    again, one was discarded."""
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("BLACKSMITH_STORE_URL", store_url)
    with contextlib.closing(open_store(store_url, upgrade=True)) as store:
        store.register(blacksmith)
        [ids] = ingest(blacksmith, store, ordered, [Request.of([{"n": n} for n in range(3)])])
        with contextlib.closing(open_supervisor(None, store.database)) as supervisor:
            load(
                blacksmith,
                thanks,
                StandardScheduler(),
                store=store,
                supervisor=supervisor,
                run="run-1",
            )
    return ids


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def words(line: str) -> list[str]:
    return line.split()


def test_status_counts_by_state(ids: list[str]) -> None:
    result = run("status", APP)
    head, row = result.stdout.splitlines()
    assert words(row)[:6] == ["mail/thanks", "0", "0", "1", "1", "1"]
    assert words(head)[2:7] == ["awaiting", "executing", "retrying", "succeeded", "discarded"]
    assert head.index("awaiting") + len("awaiting") == row.index("0") + 1  # aligned


def test_status_in_json(ids: list[str]) -> None:
    output = msgspec.json.decode(run("status", APP, "--json").stdout)
    [row] = output["destinations"]
    assert row["counts"]["succeeded"] == row["counts"]["discarded"] == 1
    assert output["orphans"] == []


def test_status_reports_orphans(ids: list[str]) -> None:
    result = run("status", "--app=tests.support.pipelines.own_adapters:blacksmith")
    assert "No longer declared" in result.stdout
    assert ["mail/thanks", "1"] in map(words, result.stdout.splitlines())


def test_an_event_type_that_is_not_there_is_reported_with_those_that_are(ids: list[str]) -> None:
    result = run("events", "list", "--event-type=shop/nope", code=1)
    assert "no event 'shop/nope'; it has shop/ordered" in result.stderr


def test_gateway_refuses_a_key_without_its_certificate(ids: list[str], tmp_path: Path) -> None:
    (tmp_path / "key.pem").touch()
    result = run("gateway", APP, f"--tls-key={tmp_path / 'key.pem'}", code=1)
    assert "pass tls_certificate too" in result.stderr


@pytest.mark.parametrize("token", ["hunter2\n", " hunter2", "hunter\x072"])
def test_gateway_refuses_a_token_that_no_header_can_hold(
    token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("BLACKSMITH_TEST_SHOP_TOKEN", token)
    result = run("gateway", "--app=tests.acceptance.test_cli:closed", code=1)
    assert "BLACKSMITH_TEST_SHOP_TOKEN" in result.stderr
    assert "remove these characters" in result.stderr
    assert "hunter" not in result.output


def test_store_is_named_without_its_password(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(postgres_url).set(password="canary")
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("BLACKSMITH_STORE_URL", url.render_as_string(hide_password=False))
    run("store", "upgrade")
    result = run("events", "list")
    assert result.stderr.startswith(f"store: postgresql://{url.host}:{url.port}/")
    assert "canary" not in result.output


def test_store_that_does_not_respond_is_one_line_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    url = f"postgresql://someone:canary@127.0.0.1:{free_port(0)}/nothing"
    monkeypatch.setenv("BLACKSMITH_STORE_URL", url)
    result = run("events", "list", code=1)
    assert result.stderr.startswith("Error: ")
    assert "canary" not in result.output


def test_store_that_went_back_is_refused_until_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    monkeypatch.setenv("BLACKSMITH_STORE_URL", f"sqlite:///{path}")
    with contextlib.closing(open_store(f"sqlite:///{path}")) as store:
        store.register(blacksmith)
        ingest(blacksmith, store, ordered, [Request.of([{"n": n} for n in range(3)])])
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("update sqlite_sequence set seq = 1 where name = 'events'")
        database.commit()
    assert "blacksmith store repair" in run("events", "list", code=1).stderr
    assert "accepts events again" in run("store", "repair").stdout
    assert len(run("events", "list").stdout.splitlines()) == 4


def test_events_show_reports_every_transition_and_its_run(ids: list[str]) -> None:
    lines = run("events", "show", ids[1]).stdout.splitlines()
    assert ["event", ids[1]] in map(words, lines)
    assert "job of mail/thanks" in lines
    states = [words(line)[2] for line in lines if line.startswith("20")]
    assert states == ["acknowledged", "awaiting", "executing", "failed"]
    assert "run-1" in lines[-1]
    assert lines[-1].endswith("the server is away")


def test_events_show_in_json(ids: list[str]) -> None:
    output = msgspec.json.decode(run("events", "show", ids[2], "--json").stdout)
    assert output["event"]["payload"] == '{"n":2}'
    assert output["history"][-1]["state"] == "discarded"
    assert output["history"][-1]["run"] == "run-1"


def test_unknown_event_is_one_line_and_exit_code_1(ids: list[str]) -> None:
    result = run("events", "show", "evt_nothing", code=1)
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_usage_is_exit_code_2() -> None:
    run("events", "show", code=2)
    run("jobs", "list", "--state", "lost", code=2)


def test_application_that_is_not_there_is_one_line(ids: list[str]) -> None:
    result = run("status", "--app=nowhere:blacksmith", code=1)
    assert "nowhere:blacksmith" in result.stderr


def test_jobs_list_discarded(ids: list[str]) -> None:
    [job] = msgspec.json.decode(run("jobs", "list", "--state", "discarded", "--json").stdout)
    assert (job["event_id"], job["error"]) == (ids[2], "no address")
    assert ids[1] in run("jobs", "list", "--state", "retrying").stdout


def test_jobs_discard_ends_a_retry(ids: list[str]) -> None:
    result = run("jobs", "discard", "mail/thanks", ids[1], "--why", "closed shop", APP)
    assert "1 of 1" in result.stdout
    lines = run("events", "show", ids[1]).stdout.splitlines()
    assert words(lines[-1])[2] == "discarded"
    assert lines[-1].endswith("closed shop")


def test_a_row_is_one_line_however_wide_it_is(
    ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    reason = " ".join(f"reason-{n}" for n in range(50))
    run("jobs", "discard", "mail/thanks", ids[1], "--why", reason, APP)
    lines = run("jobs", "list").stdout.splitlines()
    assert len(lines) == 3
    assert any(line.endswith(reason) for line in lines)


def test_retire_refuses_what_is_declared(ids: list[str]) -> None:
    assert "still declared" in run("destinations", "retire", "mail/thanks", APP, code=1).stderr


def test_retire_discards_what_waits(ids: list[str]) -> None:
    other = "--app=tests.support.pipelines.own_adapters:blacksmith"
    run("destinations", "retire", "mail/thanks", other)
    assert "No longer declared" not in run("status", other).stdout
    assert len(msgspec.json.decode(run("jobs", "list", "--json").stdout)) == 2


def test_gateway_never_imports_dagster(tmp_path: Path) -> None:
    code = (
        "import sys, blacksmith_dagster.cli, blacksmith_dagster.gateway.app;"
        "from blacksmith_dagster.importer import load_application;"
        "load_application('assets.application:blacksmith');"
        "sys.exit('dagster' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path.cwd()).returncode == 0
