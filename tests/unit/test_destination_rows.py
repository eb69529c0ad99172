"""Which rows a batch of jobs becomes, and in what order they are written."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from blacksmith_dagster import Event, Job
from blacksmith_dagster.destinations.rows import TableRow, fit_rows, group_rows
from tests.support import randomness


class Flight(msgspec.Struct):
    id: str
    time_hour: datetime
    delay: float | None = None


@dataclass
class Gate:
    id: str


def job(data: Any, key: str = "k") -> Job[Any]:
    return Job(data, Event(data), key, 1)


def why(data: Any) -> str:
    rows, invalid = fit_rows([job(data)], {"id", "delay"}, "flights", ["id"])
    assert not rows
    return invalid[0][1]


@pytest.mark.parametrize(
    ("data", "values"),
    [
        ({"id": "a"}, {"id": "a"}),
        (Gate("a"), {"id": "a"}),
        (
            Flight("a", datetime(2026, 1, 1, tzinfo=UTC)),
            {"id": "a", "time_hour": datetime(2026, 1, 1, tzinfo=UTC), "delay": None},
        ),
    ],
)
def test_dicts_structs_and_dataclasses_are_rows(data: Any, values: dict[str, Any]) -> None:
    rows, invalid = fit_rows([job(data)], values.keys(), "flights", ["id"])
    assert not invalid
    assert rows[0].values == values


def test_unknown_fields_are_named_with_the_fix() -> None:
    said = why({"id": "a", "gate": 1, "altitude": 2})
    assert "no column 'altitude', 'gate'" in said
    assert "add it to the table, or give the flow a transform" in said


def test_many_unknown_fields_are_not_all_named() -> None:
    said = why({f"field{n}": n for n in range(10_000)})
    assert "and 9995 more" in said
    assert len(said) < 300


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"delay": 1}, "'id' is missing or null"),
        ({"id": None}, "'id' is missing or null"),
        ({"id": ["a"]}, "'id' is a list"),
        ({"id": {"a": 1}}, "'id' is an object"),
        ({}, "its data is empty"),
        (["a"], "its data is a list"),
        ("a", "its data is a str"),
        (None, "its data is missing or null"),
        (object(), "its data cannot be written"),
    ],
)
def test_what_cannot_be_a_row_says_why(data: Any, said: str) -> None:
    assert said in why(data)


def test_an_invalid_row_leaves_the_others_alone() -> None:
    jobs = [job({"id": "a"}, "1"), job({"id": None}, "2"), job({"id": "c"}, "3")]
    rows, invalid = fit_rows(jobs, {"id"}, "flights", ["id"])
    assert [row.job.key for row in rows] == ["1", "3"]
    assert [each.key for each, _ in invalid] == ["2"]


def test_rows_with_the_same_columns_are_one_statement() -> None:
    rows = [TableRow(job({}), {"id": n, "delay": n}) for n in range(1000)]
    assert [len(group) for group in group_rows(rows, ["id"])] == [1000]


def test_statements_have_the_outcome_of_writing_row_by_row() -> None:
    chance = randomness.seeded()
    for _ in range(100):
        rows = [
            TableRow(
                job({}),
                {"id": chance.randrange(8)} | {name: n for name in "abc" if chance.random() < 0.5},
            )
            for n in range(40)
        ]
        one_by_one: dict[int, dict[str, Any]] = {}
        for row in rows:
            one_by_one.setdefault(row.values["id"], {}).update(row.values)
        grouped: dict[int, dict[str, Any]] = {}
        for group in group_rows(rows, ["id"]):
            assert len({row.values["id"] for row in group}) == len(group), "a key twice"
            assert len({frozenset(row.values) for row in group}) == 1, "different columns"
            for row in group:
                grouped.setdefault(row.values["id"], {}).update(row.values)
        assert grouped == one_by_one


def test_without_a_key_rows_keep_their_order() -> None:
    rows = [TableRow(job({}), {"id": 1}) for _ in range(5)]
    assert group_rows(rows, []) == [rows]
