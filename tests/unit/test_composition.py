"""What is put together when a process starts, and which gateways and schedulers are rejected."""

from collections.abc import Callable
from typing import Any

import pytest

from blacksmith_dagster import Blacksmith
from blacksmith_dagster.composition import gateway_of, scheduler_of
from blacksmith_dagster.errors import DeclarationError
from blacksmith_dagster.gateway import StandardGateway
from blacksmith_dagster.scheduler import StandardScheduler


def app(**adapters: Any) -> Blacksmith:
    return Blacksmith(sources=[], destinations=[], **adapters)


def test_an_application_without_its_own_has_the_standard_ones() -> None:
    assert gateway_of(app()) is None
    assert scheduler_of(app()) is None


def test_an_applications_own_are_used() -> None:
    gateway, scheduler = StandardGateway(), StandardScheduler()
    assert gateway_of(app(gateway=gateway)) is gateway
    assert scheduler_of(app(scheduler=scheduler)) is scheduler
    scheduler.close()


@pytest.mark.parametrize(
    ("name", "check", "method", "standard"),
    [
        ("gateway", gateway_of, "serve(app, settings)", StandardGateway),
        ("scheduler", scheduler_of, "drain(app, event, *, store, token, ", StandardScheduler),
    ],
)
def test_one_that_cannot_serve_is_rejected(
    name: str, check: Callable[[Blacksmith], object], method: str, standard: type
) -> None:
    with pytest.raises(DeclarationError) as error:
        check(app(**{name: "mine"}))
    assert f"Blacksmith({name}=...): str has no method {method.partition('(')[0]}; " in str(
        error.value
    )
    assert f"write {method}" in str(error.value)
    assert f"{standard.__name__} has it, or leave {name}= out" in str(error.value)
    with pytest.raises(DeclarationError, match=rf"write {name}={standard.__name__}\(\.\.\.\)"):
        check(app(**{name: standard}))
