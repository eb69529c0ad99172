"""Every property is the event's, else its parent's, else the default: field by field."""

import dataclasses
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from blacksmith_dagster import (
    Batch,
    Bearer,
    Destination,
    Limits,
    RetryPolicy,
    Schedule,
    Secret,
    Source,
)

departed = Source("airport").accept("departed")


def loaded(of: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """A destination event with properties of its own, of a destination with these."""
    destination = Destination("lake", **of)

    def flights(batch: Batch[Any]) -> None: ...

    return destination.event(receives=departed, **own)(flights)


def accepted(of: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """A source event with properties of its own, of a source with these."""
    return Source("site", **of).accept("clicked", **own)


FIELDS = [
    ("schedule", Schedule, "interval", "@every 1h", "@every 10m", "@daily"),
    ("schedule", Schedule, "realtime", False, True, False),
    ("retry", RetryPolicy, "max_retries", 72, 3, 0),
    ("retry", RetryPolicy, "delay", None, "10s", timedelta(seconds=5)),
    ("retry", RetryPolicy, "backoff", None, 3, 1.5),
    ("retry", RetryPolicy, "max_delay", None, "1h", "2h"),
    ("retry", RetryPolicy, "jitter", None, 0.5, 0.0),
]


@pytest.mark.parametrize(("name", "record", "field", "default", "of", "own"), FIELDS)
def test_each_field_of_a_schedule_and_of_a_retry_policy_is_inherited(
    name: str, record: Any, field: str, default: Any, of: Any, own: Any
) -> None:
    def found(of_destination: Any, of_event: Any) -> Any:
        return getattr(getattr(loaded({name: of_destination}, {name: of_event}), name), field)

    its, parents = record(**{field: own}), record(**{field: of})
    assert found(None, None) == default
    assert found(record(), record()) == default
    assert found(parents, None) == of
    assert found(parents, record()) == of
    assert found(None, its) == own
    assert found(parents, its) == own


def test_the_other_fields_stay_when_one_is_given() -> None:
    of: dict[str, Any] = {
        "schedule": Schedule("@every 10m", realtime=True),
        "retry": RetryPolicy(5, "10s", 3, "1h", 0.1),
    }
    for name, record, field, _, _, own in FIELDS:
        event = loaded(of, {name: record(**{field: own})})
        assert getattr(event, name) == dataclasses.replace(of[name], **{field: own})


def test_every_field_is_tested() -> None:
    records = (Schedule, RetryPolicy)
    fields = [(record, field.name) for record in records for field in dataclasses.fields(record)]
    assert [(record, field) for _, record, field, *_ in FIELDS] == fields


def test_only_an_interval_makes_a_schedule_of_its_own() -> None:
    of = {"schedule": Schedule("@every 10m")}
    assert not loaded(of, {}).own_schedule
    assert not loaded(of, {"schedule": Schedule(realtime=True)}).own_schedule
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


LIMITS: list[tuple[str, Any, Any, Any]] = [
    ("event_bytes", 1024 * 1024, 5, 7),
    ("request_bytes", 8 * 1024 * 1024, 5, 7),
    ("depth", 64, 5, 7),
    ("keys", 10_000, 5, 7),
    ("body_timeout", "30s", "5s", timedelta(seconds=0.5)),
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
    assert event.destination.schedule == Schedule("@every 1h", realtime=False)
    assert (event.destination.batch_size, event.destination.timeout) == (1000, timedelta(minutes=5))
    source_event = accepted({}, {"limits": Limits(depth=7)})
    assert source_event.source.limits.depth == 64
