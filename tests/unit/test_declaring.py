"""A wrong declaration fails where it is written, with the rule and the fix."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, cast

import pytest

from blacksmith_dagster import (
    CORS,
    HTTP,
    Batch,
    Bearer,
    Blacksmith,
    DeclarationError,
    Destination,
    Event,
    Flow,
    HMACSignature,
    Job,
    Limits,
    Outcome,
    Request,
    RetryPolicy,
    Schedule,
    Secret,
    Source,
    StripeSignature,
)
from blacksmith_dagster.destinations import HTTPDestination
from blacksmith_dagster.gateway import StandardGateway
from blacksmith_dagster.pipeline.validation import duration
from tests.support.declaring import WRONG_DURATIONS, check_duration, load, pair, refused


def application(*parts: Source | Destination[Any]) -> Blacksmith:
    return Blacksmith(
        sources=[part for part in parts if isinstance(part, Source)],
        destinations=[part for part in parts if isinstance(part, Destination)],
    )


# ------------------------------------------------------------------------------------- names
WRONG_NAMES = [
    "",
    "Airport",
    "air-port",
    "air port",
    "1st",
    "_hidden",
    "air__port",
    "flughäfen",
    "air.port",
    "air/port",
    "airport\n",
    "a;drop table events",
    None,
    7,
]


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_a_wrong_name_is_refused(name: Any) -> None:
    source, departed, lake = pair()
    places: list[Callable[[], Any]] = [
        lambda: Source(name),
        lambda: Destination(name),
        lambda: source.accept(name),
        lambda: event_named(source, name),
        lambda: lake.event(receives=departed, name="flights", renamed_from=name)(load),
        lambda: lake.event(receives=departed, name=name)(load),
    ]
    if name is None:  # which leaves them out
        places = places[:3]
    for place in places:
        refused(place, says=repr(name), fix="lower-case letters, digits and single underscores")


def event_named(source: Source, name: str) -> Any:
    @source.event(HTTP("/named"), name=name)
    def function(request: Request) -> Event[Any]:
        return Event(request.json())

    return function


@pytest.mark.parametrize("name", ["a", "airport", "a1_b2", "t_", "drop_table"])
def test_a_right_name_is_accepted(name: str) -> None:
    lake = Destination(name)
    lake.event(receives=Source(name).accept(name), name="other", renamed_from=name)(load)
    assert list(lake.events) == ["other"]


def test_a_lambda_needs_a_name() -> None:
    _, departed, lake = pair()
    refused(lake.event(receives=departed), lambda batch: None, says="'<lambda>'", fix="rename it")
    refused(lake.event(receives=departed), partial(load), says="event ''", fix="rename it")
    lake.event(receives=departed, name="flights")(lambda batch: None)
    lake.event(receives=departed, name="others")(partial(load))


def test_two_of_one_name_are_refused() -> None:
    source, departed, lake = pair()
    lake.event(receives=departed)(load)
    event = lake.event(receives=departed)
    refused(event, load, says="destination 'lake' has two events named 'load'", fix="rename one")
    refused(
        source.accept,
        "departed",
        says="source 'airport' has two events named 'departed'",
        fix="rename one",
    )
    refused(
        application,
        source,
        Source("airport"),
        says="two sources are named 'airport'",
        fix="rename",
    )
    refused(
        application,
        source,
        lake,
        Destination("lake"),
        says="two destinations are named 'lake'",
        fix="rename one",
    )
    assert lake.events["load"].function is load  # what was declared first stays


def test_a_source_and_a_destination_event_cannot_share_a_path() -> None:
    hub_in, hub_out = Source("hub"), Destination("hub")
    hub_out.event(receives=hub_in.accept("flights"), name="flights")(load)
    refused(application, hub_in, hub_out, says="hub/flights", fix="rename one")
    hub_in, hub_out = Source("hub"), Destination("hub")
    hub_out.event(receives=hub_in.accept("flights"), name="loaded")(load)
    application(hub_in, hub_out)


def test_a_new_name_is_taken_from_one_that_is_gone() -> None:
    def declare(**renamed: str) -> None:
        source, departed, lake = pair()
        for name, old in renamed.items():
            lake.event(receives=departed, name=name, renamed_from=old or None)(load)
        application(source, lake)

    refused(partial(declare, new="new"), says="lake/new", fix="a name that is no longer declared")
    refused(
        partial(declare, new="old", old=""),
        says="still declared",
        fix="a name that is no longer declared",
    )
    refused(
        partial(declare, old="", new="old"),
        says="still declared",
        fix="a name that is no longer declared",
    )
    refused(
        partial(declare, new="old", newer="old"),
        says="lake/new already does",
        fix="one event can take over a name that is no longer declared",
    )
    declare(new="old", newer="older")


# ------------------------------------------------------------------------------------- receiving
def test_receiving_nothing_is_refused() -> None:
    lake = Destination("lake")
    refused(lake.event(receives=[]), load, says="lake/load receives nothing", fix="name an event")


def test_receiving_twice_is_refused() -> None:
    _, departed, lake = pair()
    both = [departed, Flow(departed, when=lambda event: True)]
    event = lake.event(receives=both)
    refused(event, load, says="receives airport/departed twice", fix="join the two flows")


@pytest.mark.parametrize("wrapped", [False, True])
def test_receiving_a_destination_event_is_refused(wrapped: bool) -> None:
    _, departed, lake = pair()
    flights: Any = lake.event(receives=departed)(load)
    refused(
        lambda: lake.event(receives=Flow(flights) if wrapped else flights),
        says="lake/load",
        fix="an outcome such as `flights.discarded`",
    )
    lake.event(receives=[flights.succeeded, flights.failed, flights.discarded], name="reported")(
        load
    )


@pytest.mark.parametrize("received", ["airport/departed", None, 7, {1}, load])
def test_receiving_what_is_no_event_is_refused(received: Any) -> None:
    lake = Destination("lake")
    declare = partial(lake.event, receives=received)
    refused(declare, says="destination 'lake' receives", fix="name an event of a source")
    refused(partial(Flow, received), says=repr(received), fix="name one")


def test_receiving_what_the_application_does_not_have_is_refused() -> None:
    source, departed, lake = pair()
    flights = lake.event(receives=departed, name="flights")(load)
    reported = Destination("reported")
    reported.event(receives=flights.discarded)(load)
    missing = "which this application does not have"
    refused(
        application,
        lake,
        says=f"lake/flights receives airport/departed, {missing}",
        fix="add 'air",
    )
    refused(
        application,
        source,
        reported,
        says=f"reported/load receives lake/flights.discarded, {missing}",
        fix="add 'lake' to its sources or destinations",
    )
    application(source, lake, reported)


def test_receiving_the_event_of_a_second_source_of_that_name_is_refused() -> None:
    _, departed, lake = pair()
    lake.event(receives=departed)(load)
    again, _, _ = pair()
    refused(
        application,
        again,
        lake,
        says="receives airport/departed, but not the application's own",
        fix="declare 'airport' once",
    )


def test_outcomes_cannot_go_in_circles() -> None:
    """An outcome exists after its event, whose flows are fixed by then; one made by hand, or put
    where another was, is not the application's."""
    source, departed, lake = pair()
    received: list[Any] = [departed]
    flights = lake.event(receives=received, name="flights")(load)
    reported = lake.event(receives=flights.discarded, name="reported")(load)
    received.append(reported.discarded)
    assert list(flights.flows) == [departed.path]
    flows: Any = flights.flows
    with pytest.raises(TypeError):
        flows[reported.discarded.path] = Flow(reported.discarded)
    application(source, lake)

    source, departed, lake = pair()
    by_hand: Outcome[Any] = Outcome("lake/flights", "discarded", Any)
    lake.event(receives=[departed, by_hand], name="flights")(load)
    refused(
        application,
        source,
        lake,
        says="receives lake/flights.discarded, but not the application's own",
        fix="receive its events",
    )

    source, departed, lake = pair()
    flow = Flow(departed)
    lake.event(receives=flow, name="flights")(load)
    flow.on = lake.event(receives=departed, name="reported")(load).discarded
    refused(
        application,
        source,
        lake,
        says="receives airport/departed, but not the application's own",
        fix="declare",
    )


# ---------------------------------------------------------------------------------- webhooks
def test_two_webhooks_on_one_path_are_refused() -> None:
    source = Source("airport")
    source.accept("departed", on=HTTP("/flights"))
    source.accept("arrived", on=HTTP("/flights", method="PUT"))
    application(source)
    source.accept("cancelled", on=HTTP("/flights"))
    refused(
        application,
        source,
        says="airport/departed and airport/cancelled are both sent to POST /flights",
        fix="another path",
    )
    by_default, chosen = Source("airport"), Source("other")
    by_default.accept("departed")
    chosen.accept("departed", on=HTTP("/v1/airport/departed"))
    refused(application, by_default, chosen, says="POST /v1/airport/departed", fix="another path")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "flights",
        "/flights/",
        "//flights",
        "/flights?all=1",
        "/flights#top",
        "/{flight}",
        "/flights/..",
        "/./flights",
        "/a/../b",
        "/%2e",
        "/flüge",
        "/a b",
        "/flights\n",
        "/_health",
        "/_",
        "http://localhost/flights",
        None,
    ],
)
def test_a_wrong_path_is_refused(path: Any) -> None:
    refused(HTTP, path, says=f"HTTP({path!r})", fix="'/airport/departures'")


@pytest.mark.parametrize("path", ["/f", "/v1.0/a-b_c~d", "/...", "/.well-known", "/a/_b"])
def test_a_right_path_is_accepted(path: str) -> None:
    assert HTTP(path).path == path


@pytest.mark.parametrize("method", ["HEAD", "DELETE", "post", "", None])
def test_a_wrong_method_is_refused(method: Any) -> None:
    refused(HTTP, "/flights", method, says=f"method={method!r}", fix="one of GET, PATCH, POST, PUT")


def test_an_event_on_a_get_needs_a_function() -> None:
    where = HTTP("/departed", method="GET")
    refused(
        Source("airport").accept, "departed", on=where, says="needs a function", fix="decorate one"
    )


def test_an_event_needs_a_trigger() -> None:
    source: Any = Source("airport")

    def departed(request: Request) -> Event[Any]:
        return Event(request.json())

    for on in ("/airport/departures", departed, HTTP, None):
        refused(source.event, on, says=repr(on), fix="@source.event(HTTP('/airport/departures'))")
    assert source.events == {}


# ------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize("field", ["event_bytes", "request_bytes", "depth", "keys"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), 2.0, "64"])
def test_limits_are_above_nothing(field: str, value: Any) -> None:
    limits: Any = Limits
    refused(
        partial(limits, **{field: value}), says=f"{field}={value!r}", fix="whole number above 0"
    )


@pytest.mark.parametrize("jobs", [0, -1, 1_000_001, 2.5, "all"])
def test_a_batch_is_a_number_of_jobs(jobs: Any) -> None:
    _, departed, lake = pair()
    says, fix = f"batch_size={jobs!r}", "from 1 to 1000000"
    refused(partial(Destination, "lake", batch_size=jobs), says=says, fix=fix)
    refused(
        lake.event(receives=departed, batch_size=jobs), load, says=f"lake/load: {says}", fix=fix
    )


DURATIONS: dict[str, Callable[[Any], Any]] = {
    "destination 'lake': timeout": lambda given: Destination("lake", timeout=given),
    "lake/load: timeout": lambda given: declared_event(timeout=given),
    "RetryPolicy: delay": lambda given: RetryPolicy(delay=given),
    "RetryPolicy: max_delay": lambda given: RetryPolicy(max_delay=given),
    "source 'shop': retention": lambda given: Source("shop", retention=given),
    "shop/seen: discarded_retention": lambda given: Source("shop").accept(
        "seen", discarded_retention=given
    ),
    "Limits: body_timeout": lambda given: Limits(body_timeout=given),
    "CORS: max_age": lambda given: CORS(["*"], max_age=given),
    "StripeSignature: tolerance": lambda given: StripeSignature(Secret("S"), tolerance=given),
    "HMACSignature: tolerance": lambda given: HMACSignature(
        Secret("S"), header="X", tolerance=given
    ),
    "mail/sent: request_timeout": lambda given: HTTPDestination(
        "mail", url="https://mail.example"
    ).post("sent", receives=pair()[1], request_timeout=given),
    "lake/load: retry_after": lambda given: BATCH.fail(BATCH[0], "busy", retry_after=given),
}
BATCH: Batch[Any] = Batch("lake/load", [Job({}, Event({}), "k", 1)])
MAY_BE_ZERO = {"CORS: max_age", "lake/load: retry_after"}


def declared_event(**properties: Any) -> Any:
    _, departed, lake = pair()
    return lake.event(receives=departed, **properties)(load)


@pytest.mark.parametrize("place", DURATIONS)
def test_durations_as_text_or_timedelta(place: str) -> None:
    right = ("9s",) if "mail" in place else ("70s", "1m10s", timedelta(seconds=70))
    check_duration(place, DURATIONS[place], right, may_be_zero=place in MAY_BE_ZERO)


@pytest.mark.parametrize("text", [text for text in WRONG_DURATIONS if isinstance(text, str)])
def test_a_wrong_interval_is_refused(text: str) -> None:
    refused(partial(Schedule, f"@every {text}"), says="Schedule", fix="write")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1h30m", 5400), ("250ms", 0.25), ("1.5h", 5400), ("3650d", 315360000)],
)
def test_a_right_duration_is_accepted(text: str, seconds: float) -> None:
    assert duration("timeout", text).total_seconds() == seconds


@pytest.mark.parametrize("retries", [-1, 10_001, 2.5, "3"])
def test_max_retries_is_a_number(retries: Any) -> None:
    refused(
        partial(RetryPolicy, max_retries=retries), says=f"max_retries={retries!r}", fix="from 0 to"
    )


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (
            partial(cast(Any, Source), "shop", keep="30d"),
            "source 'shop' has no property keep; write one of auth,",
        ),
        (partial(Source("shop").accept, "seen", key="id"), "shop/seen has no property key; write"),
        (partial(Destination, "lake", batch=5), "destination 'lake' has no property batch; write"),
        (
            partial(declared_event, batch=5),
            "lake/load has no property batch; write one of backfill",
        ),
    ],
)
def test_an_unknown_property_is_refused(declare: Callable[[], Any], says: str) -> None:
    refused(declare, says=says, fix="owners")


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (
            partial(Destination, "lake", schedule="@daily"),
            "schedule='@daily': write a Schedule(...)",
        ),
        (partial(declared_event, retry=3), "lake/load: retry=3: write a RetryPolicy(...)"),
        (
            partial(cast(Any, Source), "shop", limits=7),
            "source 'shop': limits=7: write a Limits(...)",
        ),
    ],
)
def test_a_record_is_not_written_as_text(declare: Callable[[], Any], says: str) -> None:
    refused(declare, says=says, fix="write")


# ------------------------------------------------------------------------------------- the rest
@pytest.mark.parametrize(
    "owner", ["", "flights", "team:", "team:a b", "a@b", "@example.com", "a@b.c", 7, "team:x\n"]
)
def test_a_wrong_owner_is_refused(owner: Any) -> None:
    source, departed, lake = pair()
    for declare, where in (
        (partial(Source, "site", owners=[owner]), "source 'site'"),
        (partial(Destination, "lake", owners=[owner]), "destination 'lake'"),
        (partial(source.accept, "late", owners=[owner]), "airport/late"),
        (partial(lake.event(receives=departed, owners=[owner]), load), "lake/load"),
    ):
        refused(declare, says=f"{where}: owner {owner!r}", fix="write owners=['team:flights']")


@pytest.mark.parametrize(
    "tags",
    [{"": "x"}, {"a b": "x"}, {"a/b/c": "x"}, {"k": "a b"}, {"k": 1}, {"k": "x" * 64}, {1: "x"}],
)
def test_wrong_tags_are_refused(tags: Any) -> None:
    source, departed, lake = pair()
    for declare, where in (
        (partial(Source, "site", tags=tags), "source 'site'"),
        (partial(Destination, "lake", tags=tags), "destination 'lake'"),
        (partial(source.accept, "late", tags=tags), "airport/late"),
        (partial(lake.event(receives=departed, tags=tags), load), "lake/load"),
    ):
        refused(declare, says=f"{where}: tag", fix="write key and value with letters")


def test_an_application_is_made_of_sources_and_destinations() -> None:
    source, departed, lake = pair()
    make: Any = Blacksmith
    for sources, destinations, says in (
        ([lake], [], "sources=: <Destination lake> is not a Source"),
        ([departed], [], "sources=: <SourceEvent airport/departed> is not a Source"),
        ([source], [source], "destinations=: <Source airport> is not a Destination"),
    ):
        declare = partial(make, sources=sources, destinations=destinations)
        refused(declare, says=says, fix="itself")


def test_a_secret_is_named_not_written() -> None:
    bearer: Any = Bearer
    for written in ("postgresql://app:hunter2@db/events", "s3cr3t!", "", "9lives", None):
        with pytest.raises(DeclarationError, match="the name of an environment variable") as raised:
            Secret(written)  # type: ignore[arg-type]
        assert not written or written not in str(raised.value)
        with pytest.raises(DeclarationError, match="takes a Secret") as raised:
            bearer(written)
        assert not written or written not in str(raised.value)


@pytest.mark.parametrize("wrap", [lambda part: part, iter, "{}".format])
def test_an_applications_parts_are_lists(wrap: Callable[[Any], Any]) -> None:
    source, _, lake = pair()
    given: Any = wrap(source) if wrap is not iter else iter([source])
    refused(
        partial(Blacksmith, sources=given, destinations=[lake]),
        says=f"sources={given!r}",
        fix="write sources=[...]",
    )


def test_a_gateways_key_belongs_to_a_certificate() -> None:
    refused(partial(StandardGateway, tls_key="key.pem"), says="tls_key", fix="tls_certificate")
