"""Functions, and the types that they name, are checked against the arguments of their calls."""

from collections.abc import Iterator
from functools import partial, wraps
from typing import Any

import msgspec
import pytest

from blacksmith_dagster import (
    HTTP,
    Destination,
    Event,
    Flow,
    Reply,
    Request,
    Source,
)
from tests.support.declaring import pair, refused


class Flight(msgspec.Struct):
    id: str


class Tagged(msgspec.Struct, tag=True):
    id: str


class TaggedToo(msgspec.Struct, tag=True):
    id: str


# ------------------------------------------------------------------------------------- functions
def nothing() -> None: ...
def one(batch: Any) -> None: ...
def two(batch: Any, connection: Any) -> None: ...
def one_and_more(batch: Any, *more: Any) -> None: ...
def one_and_an_option(batch: Any, option: int = 1) -> None: ...
def three(batch: Any, connection: Any, other: Any) -> None: ...
def by_name(batch: Any, *, other: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "unconnected", "connected"),
    [
        (nothing, False, False),
        (one, True, False),
        (two, False, True),
        (one_and_more, True, True),
        (one_and_an_option, True, True),
        (three, False, False),
        (by_name, False, False),
        (partial(three, other=1), False, True),
        (print, True, True),
    ],
)
def test_a_function_takes_what_it_is_given(
    function: Any, unconnected: bool, connected: bool
) -> None:
    _, departed, lake = pair()
    house: Destination[Any] = Destination("house", connect=dict)
    for destination, fits, shown in (
        (lake, unconnected, "(batch)"),
        (house, connected, "(batch, connection)"),
    ):
        declare: Any = destination.event(receives=departed, name="flights")
        if fits:
            declare(function)
        else:
            refused(declare, function, says=f"called with {shown}", fix="change its parameters")
            assert destination.events == {}


def test_a_decorated_function_is_asked_what_it_takes_not_what_it_wraps() -> None:
    _, departed, lake = pair()

    def timed(function: Any) -> Any:
        @wraps(function)
        def wrapper(batch: Any) -> None:
            function(batch, "a connection of its own")

        return wrapper

    lake.event(receives=departed)(timed(two))
    declare: Any = Destination("house", connect=dict).event(receives=departed)
    refused(declare, timed(two), says="house/two", fix="change its parameters")


def test_an_extract_function_takes_a_request() -> None:
    source: Any = Source("airport")
    declare = source.event(HTTP("/departed"), name="departed")
    for function in (nothing, two):
        refused(declare, function, says="called with (request)", fix="change its parameters")
    refused(declare, 7, says="airport/departed: 7 is not a function", fix="write one that takes")
    declare(one)


def test_what_a_flow_asks_takes_an_event() -> None:
    _, departed, _ = pair()
    flow: Any = Flow
    for role in ("when", "transform"):
        for function in (nothing, two):
            declare = partial(flow, departed, **{role: function})
            refused(declare, says=f"Flow(airport/departed): {role}", fix="change its parameters")
        flow(departed, **{role: one})


def test_connect_takes_nothing() -> None:
    connect: Any = one
    refused(partial(Destination, "lake", connect=connect), says="called with ()", fix="change its")
    refused(partial(Destination, "lake", connect="duckdb"), says="'duckdb'", fix="write one")


async def coroutine(*given: Any) -> None: ...


async def asynchronous_generator(*given: Any) -> Any:
    yield given


class Asynchronous:
    async def __call__(self, *given: Any) -> None: ...


@pytest.mark.parametrize(
    "function", [coroutine, asynchronous_generator, Asynchronous(), partial(coroutine)]
)
def test_an_asynchronous_function_is_refused(function: Any) -> None:
    """It returns before it has done anything: its jobs would all have succeeded."""
    _, departed, lake = pair()
    source = Source("site")
    for declare in (
        partial(source.event(HTTP("/x"), name="clicked"), function),
        partial(lake.event(receives=departed, name="flights"), function),
        partial(Flow, departed, when=function),
        partial(Flow, departed, transform=function),
        partial(Destination, "house", connect=function),
    ):
        refused(declare, says="asynchronous", fix="write `def`")


def test_a_function_that_yields_is_refused_where_nobody_asks() -> None:
    _, departed, lake = pair()
    source = Source("site")

    def yields(given: Any = None) -> Iterator[Any]:
        yield given

    anything: Any = yields
    for declare in (
        partial(lake.event(receives=departed, name="flights"), anything),
        partial(Flow, departed, when=anything),
        partial(Flow, departed, transform=anything),
    ):
        refused(declare, says="yields", fix="return instead")
    source.event(HTTP("/x"), name="clicked")(anything)
    Destination("house", connect=anything)


# ------------------------------------------------------------------------------------- types
def test_annotations_that_cannot_be_read_are_refused() -> None:
    source: Any = Source("airport")

    def unknown(request: "Request") -> "Event[NotImported]":  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError

    def no_attribute(request: Request) -> "Event[msgspec.Nope]":  # type: ignore[name-defined]
        raise NotImplementedError

    def broken(request: Request) -> Event[Any]:
        raise NotImplementedError

    broken.__annotations__["return"] = "Event[Flight"
    for function, undefined in (
        (unknown, "NotImported"),
        (no_attribute, "Nope"),
        (broken, "Flight"),
    ):
        declare = source.event(HTTP("/x"))
        refused(declare, function, says=undefined, fix="at the top of the module")
        refused(declare, function, says=f"airport/{function.__name__}", fix="import")
    assert source.events == {}


class Handmade:
    def __init__(self, id: str) -> None:
        self.id = id


class Unresolvable(msgspec.Struct):
    other: "NotImported"  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("model", [Handmade, Unresolvable, Flight | Tagged, complex, "Flight"])
def test_a_model_that_nothing_can_be_decoded_into_is_refused(model: Any) -> None:
    source = Source("airport")
    fix = "give a msgspec.Struct, a dataclass, a TypedDict"
    refused(source.accept, "departed", model=model, says="airport/departed", fix=fix)

    def departed(request: Request) -> Any: ...

    departed.__annotations__["return"] = Event[model]
    if model != "Flight":  # which an annotation may say so
        refused(source.event(HTTP("/x")), departed, says="airport/departed", fix=fix)
    assert source.events == {}


@pytest.mark.parametrize(
    ("returned", "model"),
    [
        (Event[Flight], Flight),
        (Event, Any),
        (Event[Any], Any),
        (Event[Flight] | Reply, Flight),
        (Reply, Any),
        (list[Event[Flight]], Flight),
        (Iterator[Event[Flight]] | Reply, Flight),
        (Event[Tagged] | Event[TaggedToo], Tagged | TaggedToo),
        (Event[Tagged] | Event[Any], Any),
        (Event[int] | Event[str], int | str),
        (Event[object], object),
        ("Event[Flight]", Flight),
    ],
)
def test_an_extract_functions_return_type_says_what_its_data_is(returned: Any, model: Any) -> None:
    def departed(request: Request) -> Any: ...

    departed.__annotations__["return"] = returned
    event: Any = Source("airport").event(HTTP("/x"))(departed)
    assert event.model == model


def test_a_function_without_annotations_makes_data_of_any_type() -> None:
    named: Any = partial(Source("airport").event(HTTP("/x"), name="departed"))
    assert named(partial(one)).model is Any
