"""The resource in a team's own ops, assets and sensors, and its URLs."""

import os
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetKey,
    DagsterInstance,
    DagsterResourceFunctionError,
    EnvVar,
    build_sensor_context,
    execute_job,
    reconstructable,
)
from dagster._core.remote_representation.external_data import RepositorySnap

from blacksmith_dagster import (
    Blacksmith,
    DeclarationError,
    Destination,
    DestinationEvent,
    Request,
    Source,
)
from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.ingest import ingest
from blacksmith_dagster.orchestration import BlacksmithResource, build_definitions
from blacksmith_dagster.store import open_store
from tests.support.pipelines.own_ops import (
    app,
    defs,
    departed,
    own,
    own_job,
    resource,
    watch,
)

TODAY = datetime.now(UTC).date().isoformat()
TRANSLATED = AssetKey(["raw", "lake", "flights"])


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store with two events that wait, named by the variable that the resource names."""
    store_url = f"sqlite:///{tmp_path}/own.db"
    monkeypatch.setenv("OWN_STORE_URL", store_url)
    monkeypatch.setenv("BLACKSMITH_STORE_URL", "sqlite:////nowhere/store.db")
    with closing(open_store(store_url, upgrade=True)) as store:
        store.register(app)
        ingest(app, store, departed, [Request.of([{}, {}])])


@pytest.mark.parametrize("how", ["op in a process of its own", "asset"])
def test_an_own_op_or_asset_loads_under_the_translated_key(
    stored: None, instance: DagsterInstance, how: str
) -> None:
    if how == "asset":
        assert defs.resolve_job_def("own_asset").execute_in_process(instance=instance).success
    else:
        with execute_job(reconstructable(own_job), instance) as result:
            assert result.success
            (started,) = result.filter_events(lambda event: event.event_type_value == "STEP_START")
        assert started.pid != os.getpid()
    event = instance.get_latest_materialization_event(TRANSLATED)
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.partition == TODAY
    assert event.asset_materialization.metadata["events_loaded"].value == 2
    assert instance.get_latest_materialization_event(AssetKey(["lake", "flights"])) is None


def test_an_own_sensor_sees_the_store(stored: None, instance: DagsterInstance) -> None:
    with build_sensor_context(instance=instance, resources={"blacksmith": resource}) as context:
        assert watch.evaluate_tick(context).skip_message == "2 wait"


def test_a_resource_without_an_application_says_what_to_do(
    stored: None, instance: DagsterInstance
) -> None:
    unbound = BlacksmithResource(store_url=EnvVar("OWN_STORE_URL"))
    with pytest.raises(DagsterResourceFunctionError) as error:
        own.execute_in_process(instance=instance, resources={"blacksmith": unbound})
    assert isinstance(error.value.user_exception, UsageError)
    assert "give it to build_definitions(app, resource=...)" in str(error.value.user_exception)


def test_outside_of_a_run_the_store_is_closed() -> None:
    with pytest.raises(UsageError, match="only in a run or a tick: in an op, asset"):
        defs.resources["blacksmith"].store  # type: ignore[index]  # noqa: B018


def test_a_resource_belongs_to_one_application() -> None:
    other = Blacksmith(sources=[Source("shop")], destinations=[])
    used = BlacksmithResource()
    build_definitions(app, start_date=TODAY, resource=used)
    build_definitions(app, start_date=TODAY, resource=used)
    with pytest.raises(DeclarationError, match="belongs to another application"):
        build_definitions(other, start_date=TODAY, resource=used)


def test_an_event_of_another_application_is_not_loaded(stored: None) -> None:
    lake: Destination[Any] = Destination("lake")
    strange: DestinationEvent[Any] = lake.event(receives=departed, name="flights")(
        lambda batch: None
    )
    with pytest.raises(UsageError, match="lake/flights is not in this application"):
        defs.resources["blacksmith"].load(None, strange)  # type: ignore[index]


def test_dagster_shows_no_url() -> None:
    snap = RepositorySnap.from_def(defs.get_repository_def())
    (shown,) = [resource for resource in snap.resources or [] if resource.name == "blacksmith"]
    secret = {field.name for field in shown.config_field_snaps if field.is_secret}
    assert secret == {"store_url", "pubsub_url", "supervisor_url", "wanderer_url", "gateway_url"}
