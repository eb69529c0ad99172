"""A pipeline with a secret in every possible place, and a failure at each."""

from typing import Any

from blacksmith_dagster import HTTP, Bearer, Blacksmith, Event, Request, RetryPolicy, Secret, Source
from blacksmith_dagster.destinations import HTTPDestination, SQLDestination
from blacksmith_dagster.orchestration import build_definitions

TOKEN = "BLACKSMITH_TEST_TOKEN"
WAREHOUSE = "BLACKSMITH_TEST_WAREHOUSE_URL"
ALERTS = "BLACKSMITH_TEST_ALERTS_URL"
ALERTS_KEY = "BLACKSMITH_TEST_ALERTS_KEY"

ONCE = RetryPolicy(max_retries=0)

vault = Source("vault", auth=Bearer(Secret(TOKEN)))


@vault.event(HTTP("/vault/opened"))
def opened(request: Request) -> Event[Any]:
    """An opening; fails without a number."""
    return Event({"number": request.json()["number"]})


warehouse = SQLDestination("warehouse", url=Secret(WAREHOUSE), retry=ONCE)
warehouse.table("openings", receives=opened)

alerts = HTTPDestination(
    "alerts", url=Secret(ALERTS), headers={"X-Api-Key": Secret(ALERTS_KEY)}, retry=ONCE
)
alerts.post("openings", receives=opened)

blacksmith = Blacksmith(sources=[vault], destinations=[warehouse, alerts])
defs = build_definitions(blacksmith, start_date="2026-01-01")
