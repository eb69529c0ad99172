"""How an application's events appear as assets."""

from datetime import UTC, date, datetime, timedelta
from string import ascii_letters, ascii_lowercase, digits
from typing import Any

import pytest
from dagster import AssetKey, AssetSpec, Definitions, asset
from hypothesis import given
from hypothesis.strategies import from_regex, just, text

from blacksmith_dagster import (
    CDC,
    HTTP,
    Batch,
    Blacksmith,
    Cron,
    DeclarationError,
    Destination,
    Event,
    Secret,
    Source,
    Subscription,
)
from blacksmith_dagster.orchestration import (
    BlacksmithTranslator,
    EventTranslatorData,
    asset_key,
    build_definitions,
)
from tests.support.declaring import refused
from tests.support.pipelines.orchestration import TODAY, Pipeline

NOWHERE = "sqlite:////nowhere/store.db"  # definitions open no store


def specs(definitions: Definitions) -> dict[str, AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}


def test_lineage_goes_from_source_to_destination_to_the_receiver_of_its_outcome() -> None:
    assets = specs(Pipeline(NOWHERE).definitions)
    lineage = {
        key: [dep.asset_key.to_user_string() for dep in spec.deps] for key, spec in assets.items()
    }
    assert lineage == {
        "airport/departed": [],
        "lake/flights": ["airport/departed"],
        "lake/movements": ["airport/departed"],
        "lake/undeliverable": ["lake/flights"],
        "blacksmith": [],
    }


def test_an_asset_shows_what_was_declared() -> None:
    assets = specs(Pipeline(NOWHERE).definitions)
    source, destination = assets["airport/departed"], assets["lake/flights"]
    assert source.group_name == "airport"
    assert list(source.owners) == ["team:flights"]
    assert source.tags["tier"] == "1"
    assert source.kinds == {"blacksmith", "http"}
    assert source.description == "A flight has left."
    assert source.metadata["endpoint"] == "POST /v1/airport/departed"
    assert destination.group_name == "lake"
    assert list(destination.owners) == ["data@example.com"]
    assert destination.kinds == {"blacksmith", "python"}
    assert destination.description == "Each flight,\n\nas it came."
    assert destination.metadata["interval"] == "@every 10m"


def test_a_destination_event_shows_its_version() -> None:
    def loaded(batch: Batch[Any]) -> None:
        """Loads nothing."""

    departed = Source("airport").accept("departed")
    lake = Destination("lake", versions={"2": None, "1": date(2020, 1, 1)}, default_version="2")
    lake.event(receives=departed, name="new")(loaded)
    with pytest.warns(DeprecationWarning, match="lake/old"):
        lake.event(receives=departed, name="old", version="1")(loaded)
    app = Blacksmith(sources=[departed.source], destinations=[lake])
    assets = specs(build_definitions(app, start_date="2026-01-01"))
    new, old = (assets[key].metadata for key in ("lake/new", "lake/old"))
    assert new["version"] == "2"
    assert "deprecated_since" not in new
    assert old["deprecated_since"] == "2020-01-01"


def test_a_source_event_shows_how_it_comes() -> None:
    shop = Source("shop", cron=Cron(timezone="Europe/Berlin"))
    line = shop.child("line")
    shop.webhook(HTTP("/shop"))(lambda request: line.of(request.json()))
    shop.event(Cron("0 3 * * *"), name="polled")(lambda poll: Event(poll.at))
    shop.accept("ordered", on=Subscription("orders", url=Secret("ORDERS_URL")))
    shop.accept("paid", on=Subscription("payments.>", subscription="billing"))
    shop.event(CDC(), name="changed")(lambda listener: iter(()))
    app = Blacksmith(sources=[shop], destinations=[])
    specs = {
        name: BlacksmithTranslator().get_asset_spec(EventTranslatorData(app, event, TODAY))
        for name, event in shop.events.items()
    }
    shown = {name: dict(spec.metadata) for name, spec in specs.items()}
    assert {metadata.pop("webhooks") for metadata in shown.values()} == {"POST /shop"}
    assert shown == {
        "line": {},
        "polled": {"interval": "0 3 * * *", "timezone": "Europe/Berlin"},
        "ordered": {
            "topic": "orders",
            "subscription": "blacksmith_shop_ordered",
            "broker": "ORDERS_URL",
        },
        "paid": {
            "topic": "payments.>",
            "subscription": "billing",
            "broker": "BLACKSMITH_PUBSUB_URL",
        },
        "changed": {},
    }
    kinds = {name: spec.kinds - {"blacksmith"} for name, spec in specs.items()}
    assert kinds == {
        "line": {"child"},
        "polled": {"cron"},
        "ordered": {"subscription"},
        "paid": {"subscription"},
        "changed": {"cdc"},
    }


def test_partitions_are_the_utc_days_from_start_date_to_today() -> None:
    pipeline = Pipeline(NOWHERE)
    for spec in specs(pipeline.definitions).values():
        if spec.key != AssetKey("blacksmith"):
            assert spec.partitions_def
            days = spec.partitions_def.get_partition_keys()
            assert days[0] == (TODAY - timedelta(days=30)).isoformat()
            assert days[-1] == TODAY.isoformat()


def test_an_asset_downstream_depends_on_the_key_of_an_event() -> None:
    pipeline = Pipeline(NOWHERE)

    @asset(deps=[asset_key(pipeline.flights)])
    def delays() -> None: ...

    merged = Definitions.merge(pipeline.definitions, Definitions(assets=[delays]))
    Definitions.validate_loadable(merged)
    (dependency,) = specs(merged)["delays"].deps
    assert dependency.asset_key == AssetKey(["lake", "flights"])


def test_a_translator_changes_a_key_in_the_lineage_as_well() -> None:
    class Prefixed(BlacksmithTranslator):
        def get_asset_spec(self, data: EventTranslatorData) -> AssetSpec:
            spec = super().get_asset_spec(data)
            return spec.replace_attributes(key=spec.key.with_prefix("raw"))

    pipeline = Pipeline(NOWHERE)
    definitions = build_definitions(
        pipeline.app, start_date=TODAY, translator=Prefixed(), resource=pipeline.resource
    )
    Definitions.validate_loadable(definitions)
    assets = specs(definitions)
    (dependency,) = assets["raw/lake/undeliverable"].deps
    assert dependency.asset_key == AssetKey(["raw", "lake", "flights"])


@given(
    name=just("airport") | text(ascii_lowercase + digits + "_", min_size=1, max_size=20),
    owner=just("team:flights")
    | from_regex(r"(team:)?[a-zA-Z0-9_.%+@-]{1,12}", fullmatch=True)
    | from_regex(r"[a-z.]{1,8}@[a-z.-]{1,8}[.][a-z]{1,9}", fullmatch=True),
    key=just("tier") | text(ascii_letters + digits + "_.-/ é", max_size=70),
    value=just("1") | text(ascii_letters + digits + "_.-/: é", max_size=70),
)
def test_dagster_accepts_whatever_can_be_declared(
    name: str, owner: str, key: str, value: str
) -> None:
    try:
        departed = Source(name, owners=[owner], tags={key: value}).accept(name)
        lake = Destination(name + "_lake", owners=[owner], tags={key: value})
        lake.event(receives=departed, name=name)(lambda batch: None)
    except DeclarationError:
        return
    app = Blacksmith(sources=[departed.source], destinations=[lake])
    assert len(specs(build_definitions(app, start_date=TODAY))) == 3


@pytest.mark.parametrize(
    "start_date",
    ["", "yesterday", "2026-13-01", "01/01/2026", None, 20260101, datetime(2026, 1, 1, tzinfo=UTC)],
)
def test_start_date_is_a_day(start_date: Any) -> None:
    refused(
        lambda: build_definitions(Pipeline(NOWHERE).app, start_date=start_date),
        says=f"start_date={start_date!r}",
        fix="as '2026-01-31'",
    )


def test_an_event_with_an_interval_of_its_own_has_a_job_of_its_own() -> None:
    definitions = Pipeline(NOWHERE).definitions
    ops = {
        name: sorted(definitions.resolve_job_def(name).graph.node_dict)
        for name in ("load_lake", "load_lake__movements")
    }
    assert ops == {
        "load_lake": ["lake__flights", "lake__undeliverable"],
        "load_lake__movements": ["lake__movements"],
    }
    assert [schedule.name for schedule in definitions.schedules or ()] == [
        "load_lake__movements_schedule"
    ]
    assert [sensor.name for sensor in definitions.sensors or ()] == [
        "blacksmith_report",
        "load_lake_sensor",
    ]
