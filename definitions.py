"""What `dagster dev` opens: the application as Dagster sees it, and the assets downstream of it."""

from dagster import AutomationConditionSensorDefinition, DefaultSensorStatus, Definitions

from assets.application import blacksmith
from assets.delays import daily_delays
from blacksmith_dagster.orchestration import build_definitions
from sensors.landing import landing

defs = Definitions.merge(
    build_definitions(blacksmith, start_date="2026-01-01"),
    Definitions(
        assets=[daily_delays],
        sensors=[
            landing,
            AutomationConditionSensorDefinition(
                "automation",
                target=[daily_delays],
                default_status=DefaultSensorStatus.RUNNING,
            ),
        ],
    ),
)
