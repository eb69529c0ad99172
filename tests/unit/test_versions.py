"""The versions of a destination's API that its events are written for."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from blacksmith_dagster import Batch, DeclarationError, Destination, Source
from blacksmith_dagster.destinations import HTTPDestination, SQLDestination
from blacksmith_dagster.pipeline.validation import Versions

departed = Source("airport").accept("departed")


def lake(**given: Any) -> Destination[None]:
    versions = {"2021": None, "2020": date(2020, 12, 31), "2019": date(2999, 1, 1)}
    return Destination("lake", **{"versions": versions, "default_version": "2021", **given})


def loaded(batch: Batch[Any]) -> None:
    """Loads nothing."""


def test_an_event_is_written_for_a_version() -> None:
    event = lake().event(receives=departed)(loaded)
    assert (event.version, event.deprecated) == ("2021", None)
    # It will be deprecated one day.
    event = lake().event(receives=departed, version="2019")(loaded)
    assert (event.version, event.deprecated) == ("2019", None)
    event = Destination("lake").event(receives=departed)(loaded)
    assert (event.version, event.deprecated) == (None, None)


def test_unknown_version() -> None:
    with pytest.raises(DeclarationError, match="write one of 2021, 2020, 2019"):
        lake().event(receives=departed, version="1999")(loaded)
    with pytest.raises(DeclarationError, match="is not one of its versions"):
        lake(default_version="1999")


def test_deprecated_version_warns() -> None:
    with pytest.warns(DeprecationWarning, match="lake/loaded .* since 2020-12-31") as raised:
        event = lake().event(receives=departed, version="2020")(loaded)
    assert event.deprecated == date(2020, 12, 31)
    assert raised[0].filename == __file__


def test_a_version_is_deprecated_from_its_day_on_in_a_running_process() -> None:
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    destination = lake(versions={"1": tomorrow}, default_version="1")
    event = destination.event(receives=departed)(loaded)
    assert event.deprecated is None
    destination.versions = Versions({"1": tomorrow - timedelta(days=1)})
    assert event.deprecated == tomorrow - timedelta(days=1)


def test_ready_made_destinations_have_versions_too() -> None:
    given: Any = {"versions": {"2021": None, "2020": None}, "default_version": "2021"}
    alerts = HTTPDestination("alerts", url="https://alerts.example", **given)
    assert alerts.post("late", receives=departed).version == "2021"
    assert alerts.post("early", receives=departed, version="2020").version == "2020"
    warehouse = SQLDestination("warehouse", url="sqlite://", **given)
    assert warehouse.table("flights", receives=departed, version="2020").version == "2020"
    with pytest.raises(DeclarationError, match="write one of 2021, 2020"):
        warehouse.table("delays", receives=departed, version="1999")
