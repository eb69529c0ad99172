"""Helpers of the tests of wrong declarations."""

from collections.abc import Callable
from typing import Any

import pytest

from blacksmith_dagster import (
    Batch,
    DeclarationError,
    Destination,
    Source,
)


def refused(
    declare: Callable[..., Any], *arguments: Any, says: str, fix: str, **named: Any
) -> None:
    """Assert that declaring fails, and that the error states the rule and the fix."""
    with pytest.raises(DeclarationError) as raised:
        declare(*arguments, **named)
    assert says in str(raised.value)
    assert fix in str(raised.value)


def load(batch: Batch[Any]) -> None: ...


def pair() -> tuple[Source, Any, Destination[None]]:
    source = Source("airport")
    return source, source.accept("departed"), Destination("lake")
