"""The demo's history: flights of past days, and a table that is declared after them.

The flights are imported with the times when they were received. A backfill of those days, launched
the way Dagster's UI does it, fills the table.
"""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, time, timedelta
from typing import Any

import httpx
import msgspec
import pandas

from assets.flights import airport, alerts, departed, desk, warehouse
from blacksmith_dagster import Blacksmith, Request
from blacksmith_dagster.ingest import ingest
from blacksmith_dagster.store import open_store

DAYS = 3
TABLE = "reports/cancellations"

_BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
_STATUS = """
query Status($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } }
}
"""


def partitions() -> list[str]:
    """The days on which the history was received: the last ones before today."""
    today = datetime.now(UTC).date()
    return [(today - timedelta(days=n)).isoformat() for n in range(DAYS, 0, -1)]


def import_history(
    store_url: str, rows: list[dict[str, Any]], days: pandas.Series[int]
) -> list[dict[str, Any]]:
    """Import the flights of the first days, before the table is declared; returns the others.

    `days` has the day of the month of each row.
    """
    before = Blacksmith(sources=[airport], destinations=[warehouse, alerts, desk])
    numbered = list(zip(days, rows, strict=True))
    with closing(open_store(store_url, upgrade=True)) as store:
        store.register(before)
        for number, partition in enumerate(partitions(), 1):
            body = msgspec.json.encode([row for day, row in numbered if day == number])
            request = Request(body, {"content-type": "application/json"})
            noon = datetime.combine(datetime.fromisoformat(partition), time(12), UTC)
            ingest(before, store, departed, [request], received_at=noon)
    return [row for day, row in numbered if day > DAYS]


def launch_backfill(ui: str) -> str:
    """Launch the backfill of the table; returns its id."""
    params = {"assetSelection": [{"path": TABLE.split("/")}], "partitionNames": partitions()}
    response = _graphql(ui, _BACKFILL, params=params)["launchPartitionBackfill"]
    if "backfillId" not in response:
        raise RuntimeError(f"Dagster did not launch the backfill: {response}")
    return str(response["backfillId"])


def has_ended_well(ui: str, backfill: str) -> bool:
    """Whether the backfill has materialized all its days. Raises `RuntimeError` if it has failed."""
    status = _graphql(ui, _STATUS, id=backfill)["partitionBackfillOrError"]["status"]
    if "FAIL" in status or "CANCEL" in status:
        raise RuntimeError(f"the backfill of {TABLE} ended as {status}")
    return bool(status == "COMPLETED_SUCCESS")


def _graphql(ui: str, query: str, **variables: Any) -> Any:
    response = httpx.post(
        f"{ui}/graphql", json={"query": query, "variables": variables}, timeout=60
    )
    body = response.raise_for_status().json()
    if body.get("errors"):
        raise RuntimeError(f"Dagster's API returned {body['errors']}")
    return body["data"]
