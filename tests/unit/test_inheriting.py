"""Every property is the event's, else its parent's, else the default: field by field."""

import dataclasses
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from blacksmith_dagster import Batch, Bearer, Destination, Limits, Schedule, Secret, Source

departed = Source("airport").accept("departed")


def loaded(of: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """A destination event with properties of its own, of a destination with these."""
    destination = Destination("lake", **of)

    def flights(batch: Batch[Any]) -> None: ...

    return destination.event(receives=departed, **own)(flights)


def accepted(of: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """A source event with properties of its own, of a source with these."""
    return Source("site", **of).accept("clicked", **own)


SCHEDULE_FIELDS = [
    ("interval", "@every 1h", "@every 10m", "@daily"),
    ("realtime", False, True, False),
    ("max_retries", 72, 3, 0),
    ("backoff", None, "10s", "5s"),
]


@pytest.mark.parametrize(("field", "default", "of", "own"), SCHEDULE_FIELDS)
def test_each_field_of_a_schedule_is_inherited(field: str, default: Any, of: Any, own: Any) -> None:
    def schedule(of_destination: Any, of_event: Any) -> Any:
        return getattr(loaded({"schedule": of_destination}, {"schedule": of_event}).schedule, field)

    its, parents = Schedule(**{field: own}), Schedule(**{field: of})
    assert schedule(None, None) == default
    assert schedule(Schedule(), Schedule()) == default
    assert schedule(parents, None) == of
    assert schedule(parents, Schedule()) == of
    assert schedule(None, its) == own
    assert schedule(parents, its) == own


def test_a_schedules_other_fields_stay_when_one_is_given() -> None:
    of = Schedule("@every 10m", realtime=True, max_retries=5, backoff="10s")
    for field, _, _, own in SCHEDULE_FIELDS:
        found = loaded({"schedule": of}, {"schedule": Schedule(**{field: own})}).schedule
        assert found == dataclasses.replace(of, **{field: own})


def test_every_field_of_a_schedule_is_tested() -> None:
    assert [row[0] for row in SCHEDULE_FIELDS] == [
        field.name for field in dataclasses.fields(Schedule)
    ]


def test_only_an_interval_makes_a_schedule_of_its_own() -> None:
    of = {"schedule": Schedule("@every 10m")}
    assert not loaded(of, {}).own_schedule
    assert not loaded(of, {"schedule": Schedule(max_retries=3)}).own_schedule
    assert loaded(of, {"schedule": Schedule("@daily")}).own_schedule


@pytest.mark.parametrize(
    ("field", "default", "of", "own"),
    [
        ("timeout", timedelta(minutes=5), ("10m", timedelta(minutes=10)), ("1s", timedelta(0, 1))),
        ("batch_size", 1000, (50_000, 50_000), (1, 1)),
        ("owners", (), (["team:lake"], ("team:lake",)), (["a@b.org"], ("a@b.org",))),
        ("tags", {}, ({"tier": "1"}, {"tier": "1"}), ({"kind": "raw"}, {"kind": "raw"})),
    ],
)
def test_a_destinations_properties_are_inherited(
    field: str, default: Any, of: tuple[Any, Any], own: tuple[Any, Any]
) -> None:
    parents, its = {field: of[0]}, {field: own[0]}
    assert getattr(loaded({}, {}), field) == default
    assert getattr(loaded(parents, {}), field) == of[1]
    assert getattr(loaded(parents, {field: None}), field) == of[1]
    assert getattr(loaded({}, its), field) == own[1]
    assert getattr(loaded(parents, its), field) == own[1]


LIMITS = [
    ("event_bytes", 1024 * 1024, 5, 7),
    ("request_bytes", 8 * 1024 * 1024, 5, 7),
    ("depth", 64, 5, 7),
    ("keys", 10_000, 5, 7),
    ("body_seconds", 30.0, 5.0, 0.5),
]


@pytest.mark.parametrize(("field", "default", "of", "own"), LIMITS)
def test_each_limit_is_inherited(field: str, default: Any, of: Any, own: Any) -> None:
    def limit(of_source: Limits | None, of_event: Limits | None) -> Any:
        return getattr(accepted({"limits": of_source}, {"limits": of_event}).limits, field)

    its, parents = Limits(**{field: own}), Limits(**{field: of})
    assert limit(None, None) == default
    assert limit(parents, None) == of
    assert limit(parents, Limits()) == of
    assert limit(None, its) == own
    assert limit(parents, its) == own


def test_the_other_limits_stay_when_one_is_given() -> None:
    of = Limits(*(row[2] for row in LIMITS))
    for field, _, _, own in LIMITS:
        found = accepted({"limits": of}, {"limits": Limits(**{field: own})}).limits
        assert found == dataclasses.replace(of, **{field: own})


def test_every_limit_is_tested() -> None:
    assert [row[0] for row in LIMITS] == [field.name for field in dataclasses.fields(Limits)]


@pytest.mark.parametrize(
    ("field", "default", "of", "own"),
    [
        ("auth", None, Bearer(Secret("SITE")), Bearer(Secret("CLICKED"))),
        ("retention", None, "30d", "forever"),
        ("discarded_retention", None, "90d", "forever"),
        ("owners", (), ("team:site",), ("a@b.org",)),
        ("tags", {}, {"tier": "1"}, {"kind": "raw"}),
    ],
)
def test_a_sources_properties_are_inherited(field: str, default: Any, of: Any, own: Any) -> None:
    assert getattr(accepted({}, {}), field) == default
    assert getattr(accepted({field: of}, {}), field) == of
    assert getattr(accepted({field: of}, {field: None}), field) == of
    assert getattr(accepted({}, {field: own}), field) == own
    assert getattr(accepted({field: of}, {field: own}), field) == own


def test_an_event_may_be_without_its_parents_owners_and_tags() -> None:
    of: dict[str, Any] = {"owners": ["team:site"], "tags": {"tier": "1"}}
    none: dict[str, Any] = {"owners": [], "tags": {}}
    for event in (loaded(of, none), accepted(of, none)):
        assert (event.owners, event.tags) == ((), {})


def test_a_parent_does_not_inherit_from_its_events() -> None:
    event = loaded({}, {"schedule": Schedule("@daily"), "batch_size": 7, "timeout": "1s"})
    assert event.destination.schedule == Schedule("@every 1h", realtime=False, max_retries=72)
    assert (event.destination.batch_size, event.destination.timeout) == (1000, timedelta(minutes=5))
    source_event = accepted({}, {"limits": Limits(depth=7)})
    assert source_event.source.limits.depth == 64
