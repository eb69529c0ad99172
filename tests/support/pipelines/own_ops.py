"""A code location whose own op, asset and sensor use the resource `blacksmith`."""

from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetSpec,
    Definitions,
    EnvVar,
    JobDefinition,
    OpExecutionContext,
    SensorEvaluationContext,
    SkipReason,
    asset,
    define_asset_job,
    job,
    op,
    sensor,
)

from blacksmith_dagster import Batch, Blacksmith, Destination, Source
from blacksmith_dagster.orchestration import (
    BlacksmithResource,
    BlacksmithTranslator,
    EventTranslatorData,
    build_definitions,
)

airport, lake = Source("airport"), Destination("lake")
departed = airport.accept("departed")


@lake.event(receives=departed)
def flights(batch: Batch[Any]) -> None: ...


app = Blacksmith(sources=[airport], destinations=[lake])


class Prefixed(BlacksmithTranslator):
    def get_asset_spec(self, data: EventTranslatorData) -> AssetSpec:
        spec = super().get_asset_spec(data)
        return spec.replace_attributes(key=spec.key.with_prefix("raw"))


@op
def load_now(context: OpExecutionContext, blacksmith: BlacksmithResource) -> None:
    assert blacksmith.app is app
    blacksmith.load(context, flights)


@asset
def loaded(context: AssetExecutionContext, blacksmith: BlacksmithResource) -> None:
    blacksmith.load(context, flights)
    assert blacksmith.wanderer().waits_for("lake") is None
    assert blacksmith.store.counts.of("lake/flights").pending == 0


@sensor(job_name="own")
def watch(context: SensorEvaluationContext, blacksmith: BlacksmithResource) -> SkipReason:
    return SkipReason(f"{blacksmith.store.counts.of('lake/flights').pending} wait")


@job
def own() -> None:
    load_now()


resource = BlacksmithResource(
    store_url=EnvVar("OWN_STORE_URL"), pubsub_url="nats://user:canary@127.0.0.1:1"
)
defs = Definitions.merge(
    build_definitions(app, start_date="2026-01-01", translator=Prefixed(), resource=resource),
    Definitions(
        assets=[loaded], jobs=[own, define_asset_job("own_asset", [loaded])], sensors=[watch]
    ),
)


def own_job() -> JobDefinition:
    return defs.resolve_job_def("own")
