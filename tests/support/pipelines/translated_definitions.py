"""Definitions with a translator, whose asset keys a worker reports under."""

from dagster import AssetSpec, Definitions, definitions

from blacksmith_dagster.orchestration import (
    BlacksmithTranslator,
    EventTranslatorData,
    build_definitions,
)
from tests.support.pipelines.realtime import blacksmith


class Prefixed(BlacksmithTranslator):
    def get_asset_spec(self, data: EventTranslatorData) -> AssetSpec:
        spec = super().get_asset_spec(data)
        return spec.replace_attributes(key=spec.key.with_prefix("raw"))


@definitions
def defs() -> Definitions:
    return build_definitions(blacksmith, start_date="2026-01-01", translator=Prefixed())


others = Definitions()
