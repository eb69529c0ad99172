"""How long events of each type are kept, as it is declared."""

from datetime import timedelta
from typing import Any

import pytest

from blacksmith_dagster import Batch, Blacksmith, DeclarationError, Destination, Source
from blacksmith_dagster.pipeline.retention import Retention

WEEK, MONTH, QUARTER = timedelta(days=7), timedelta(days=30), timedelta(days=90)


def load(batch: Batch[Any]) -> None: ...


def kept(source: Source) -> Retention:
    """How long its event `seen` is kept."""
    app = Blacksmith(sources=[source], destinations=[])
    return app.retention()[f"{source.name}/seen"]


@pytest.mark.parametrize(
    ("of", "own", "events", "discarded"),
    [
        ({}, {}, None, None),
        ({"retention": "30d"}, {}, MONTH, MONTH),
        ({"retention": "30d", "discarded_retention": "90d"}, {}, MONTH, QUARTER),
        ({"retention": "30d"}, {"retention": "7d"}, WEEK, WEEK),
        ({"retention": "30d", "discarded_retention": "90d"}, {"retention": "7d"}, WEEK, QUARTER),
        ({"retention": "30d"}, {"discarded_retention": "forever"}, MONTH, None),
        ({"retention": "30d"}, {"retention": "forever"}, None, None),
    ],
)
def test_discarded_jobs_are_kept_as_long_as_events_unless_it_is_said(
    of: dict[str, str],
    own: dict[str, str],
    events: timedelta | None,
    discarded: timedelta | None,
) -> None:
    source = Source("site", **of)  # type: ignore[arg-type]
    source.accept("seen", **own)  # type: ignore[call-overload]
    assert kept(source) == Retention(events, discarded, events)


def test_an_outcome_is_kept_as_long_as_what_it_may_have_come_of() -> None:
    site = Source("site")
    short, long = site.accept("short", retention="7d"), site.accept("long", retention="30d")
    lake = Destination("lake")
    both = lake.event(receives=[short, long], name="both")(load)
    one = lake.event(receives=short, name="one")(load)
    second = lake.event(receives=[one.failed, both.discarded], name="second")(load)
    endless = lake.event(receives=[short, site.accept("kept")], name="endless")(load)
    retention = Blacksmith(sources=[site], destinations=[lake]).retention()
    assert retention[one.failed.path].events == WEEK
    assert retention[both.discarded.path].events == MONTH
    assert retention[second.succeeded.path].events == MONTH
    assert retention[endless.failed.path] == Retention(None, None)


@pytest.mark.parametrize("wrong", ["30", "a month", "", "0s", 30])
def test_what_is_no_duration_is_refused(wrong: Any) -> None:
    with pytest.raises(DeclarationError, match="retention"):
        Source("site", retention=wrong)
    with pytest.raises(DeclarationError, match="site/seen: discarded_retention"):
        Source("site").accept("seen", discarded_retention=wrong)
