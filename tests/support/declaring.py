"""Helpers of the tests of wrong declarations."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest

from blacksmith_dagster import (
    Batch,
    DeclarationError,
    Destination,
    Source,
)
from blacksmith_dagster.errors import UsageError


def refused(
    declare: Callable[..., Any], *arguments: Any, says: str, fix: str, **named: Any
) -> None:
    """Assert that declaring fails, and that the error states the rule and the fix."""
    with pytest.raises(DeclarationError) as raised:
        declare(*arguments, **named)
    assert says in str(raised.value)
    assert fix in str(raised.value)


WRONG_DURATIONS: list[Any] = ["", "5", "five minutes", "5 m", "-5m", "5m ", "1e3s", "5M", "3651d"]
WRONG_DURATIONS += ["9" * 400 + "d", 300, 0.5, timedelta(-1), timedelta(3651)]


def check_duration(
    place: str,
    declare: Callable[[Any], Any],
    right: Iterable[Any] = ("70s", "1m10s", timedelta(seconds=70)),
    *,
    may_be_zero: bool = False,
) -> None:
    """Assert that `declare` takes durations, and names `place` in the error for anything else."""
    for duration in right:
        declare(duration)
    zeros = [] if may_be_zero else ["0s", "0.0001ms", timedelta(0)]
    for wrong in (*WRONG_DURATIONS, *zeros):
        with pytest.raises((DeclarationError, UsageError)) as raised:
            declare(wrong)
        assert f"{place}: {wrong!r}" in str(raised.value)
        assert "write" in str(raised.value)


def load(batch: Batch[Any]) -> None: ...


def pair() -> tuple[Source, Any, Destination[None]]:
    source = Source("airport")
    return source, source.accept("departed"), Destination("lake")
