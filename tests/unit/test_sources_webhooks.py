"""What a webhook of GitHub, Stripe, Slack or Standard Webhooks becomes, or why it is rejected."""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from blacksmith_dagster import Reply, Request, Secret
from blacksmith_dagster.errors import BadRequest, Reject, ValidationError
from blacksmith_dagster.pipeline.event import Event, TypedEvent
from blacksmith_dagster.sources import (
    GitHubSource,
    SlackSource,
    StandardWebhooksSource,
    StripeSource,
)

SECRET = Secret("HOOK_SECRET")
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOON_SECONDS = int(NOON.timestamp())


def receive(source: Any, body: Any, headers: dict[str, str] | None = None) -> Any:
    return source.webhooks[0].function(Request.of(body, headers))


def kept(source: Any, body: Any, headers: dict[str, str] | None = None) -> Event[Any]:
    received = receive(source, body, headers)
    assert isinstance(received, TypedEvent)
    return received.event


# ------------------------------------------------------------------------------------ GitHub


@pytest.fixture
def github() -> GitHubSource:
    source = GitHubSource("github", secret=SECRET)
    source.on("push")
    return source


PUSH = {"X-GitHub-Event": "push", "X-GitHub-Delivery": "72d3162e"}


def test_github_delivery(github: GitHubSource) -> None:
    event = kept(github, {"ref": "refs/heads/main"}, PUSH)
    assert event.data == {"ref": "refs/heads/main"}
    assert (event.key, event.context) == ("72d3162e", {"event": "push"})


def test_headers_of_github_enterprise_are_kept(github: GitHubSource) -> None:
    enterprise = {
        "X-GitHub-Hook-ID": "292430182",
        "X-GitHub-Hook-Installation-Target-Type": "repository",
        "X-GitHub-Enterprise-Host": "github.example.com",
        "X-GitHub-Enterprise-Version": "3.17.1",
        "User-Agent": "GitHub-Hookshot/044aadd",
    }
    assert kept(github, {"ref": "refs/heads/main"}, PUSH | enterprise).context == {
        "event": "push",
        "hook_id": "292430182",
        "hook_installation_target_type": "repository",
        "enterprise_host": "github.example.com",
        "enterprise_version": "3.17.1",
    }


def test_github_payload_in_a_form(github: GitHubSource) -> None:
    """What GitHub sends unless the webhook says application/json."""
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "x-github-event": "push",
        "x-github-delivery": "d",
    }
    function = github.webhooks[0].function
    body = urlencode({"payload": '{"ref": "für & =main"}'}).encode()
    assert function(Request(body, headers)).event.data == {"ref": "für & =main"}
    with pytest.raises(Reject, match="the form has no field payload"):
        function(Request(b"other=1", headers))
    with pytest.raises(BadRequest, match="not JSON"):
        function(Request(b"payload=not json", headers))


def test_github_ping_gets_200_unless_it_is_declared(github: GitHubSource) -> None:
    ping = PUSH | {"X-GitHub-Event": "ping"}
    assert receive(github, {"zen": "Design for failure."}, ping) == Reply(200, "pong")
    github.on("*", name="other")
    assert receive(github, {}, ping) == Reply(200, "pong")
    github.on("ping")
    assert receive(github, {}, ping).event_type == "github/ping"


@pytest.mark.parametrize("body", [[], "push", None, 1])
def test_github_payload_is_an_object(github: GitHubSource, body: Any) -> None:
    with pytest.raises(ValidationError, match="Expected `object`"):
        receive(github, body, PUSH)


# ------------------------------------------------------------------------------------ Stripe


@pytest.fixture
def stripe() -> StripeSource:
    source = StripeSource("stripe", secret=SECRET)
    source.on("invoice.paid")
    source.on("v1.billing.meter.error_report_triggered", name="meter_error")
    return source


def stripe_event(**changed: Any) -> dict[str, Any]:
    whole = {
        "id": "evt_1",
        "object": "event",
        "api_version": "2026-01-28.basil",
        "created": NOON_SECONDS,
        "data": {"object": {"id": "in_1", "amount_paid": 1900}},
        "livemode": False,
        "type": "invoice.paid",
    } | changed
    return {name: value for name, value in whole.items() if value is not msgspec.UNSET}


def test_stripe_event(stripe: StripeSource) -> None:
    received = receive(stripe, stripe_event())
    event = received.event
    assert received.event_type == "stripe/invoice_paid"
    assert event.data == {"object": {"id": "in_1", "amount_paid": 1900}}
    assert (event.key, event.sent_at, event.version) == ("evt_1", NOON, "2026-01-28.basil")
    assert event.context == stripe_event(data=msgspec.UNSET)


def test_stripe_event_without_a_version(stripe: StripeSource) -> None:
    assert kept(stripe, stripe_event(api_version=None)).version is None
    assert kept(stripe, stripe_event(api_version=msgspec.UNSET)).version is None


def test_stripe_thin_event(stripe: StripeSource) -> None:
    thin = {
        "id": "evt_test_65",
        "object": "v2.core.event",
        "type": "v1.billing.meter.error_report_triggered",
        "created": "2026-01-31T12:00:00.000Z",
        "related_object": {"id": "mtr_1", "type": "billing.meter"},
    }
    event = kept(stripe, thin)
    assert (event.data, event.sent_at, event.context) == (None, NOON, thin)


@pytest.mark.parametrize(
    ("changed", "at"),
    [
        ({"type": msgspec.UNSET}, "$.type"),
        ({"type": 7}, "$.type"),
        ({"id": ""}, "$.id"),
        ({"created": "yesterday"}, "$.created"),
        ({"created": 10**20}, "$.created"),
        ({"created": [1]}, "$.created"),
        ({"api_version": 3}, "$.api_version"),
    ],
)
def test_stripe_event_that_is_none(stripe: StripeSource, changed: Any, at: str) -> None:
    with pytest.raises(ValidationError) as rejected:
        receive(stripe, stripe_event(**changed))
    assert f"at `{at}`" in str(rejected.value)


# ------------------------------------------------------------------------------------- Slack


@pytest.fixture
def slack() -> SlackSource:
    source = SlackSource("slack", secret=SECRET)
    source.on("app_mention")
    return source


def slack_callback(**changed: Any) -> dict[str, Any]:
    whole = {
        "token": "a-password",
        "team_id": "T1",
        "api_app_id": "A1",
        "event": {"type": "app_mention", "user": "U1", "text": "hello"},
        "type": "event_callback",
        "event_id": "Ev1",
        "event_time": NOON_SECONDS,
    } | changed
    return {name: value for name, value in whole.items() if value is not msgspec.UNSET}


def test_slack_handshake_gets_its_response(slack: SlackSource) -> None:
    body = {"token": "t", "challenge": "3eZbrw1aB", "type": "url_verification"}
    assert receive(slack, body) == Reply(200, "3eZbrw1aB")
    with pytest.raises(ValidationError, match=r"\$.challenge"):
        receive(slack, {"type": "url_verification"})


def test_slack_callback(slack: SlackSource) -> None:
    event = kept(slack, slack_callback())
    assert event.data == {"type": "app_mention", "user": "U1", "text": "hello"}
    assert (event.key, event.sent_at) == ("Ev1", NOON)
    assert event.context == {
        "team_id": "T1",
        "api_app_id": "A1",
        "type": "event_callback",
        "event_id": "Ev1",
        "event_time": NOON_SECONDS,
    }


def test_slack_gets_200(slack: SlackSource) -> None:
    assert slack.webhooks[0].response == Reply(200)


def test_slack_notice_that_is_no_callback(slack: SlackSource) -> None:
    notice = {"token": "t", "type": "app_rate_limited", "minute_rate_limited": 1518467820}
    with pytest.raises(Reject, match="'app_rate_limited'; it accepts app_mention"):
        receive(slack, notice)
    slack.on("app_rate_limited")
    event = kept(slack, notice)
    assert event.data is None
    assert event.context == {"type": "app_rate_limited", "minute_rate_limited": 1518467820}


@pytest.mark.parametrize(
    ("changed", "at"),
    [
        ({"type": msgspec.UNSET}, "$.type"),
        ({"event": msgspec.UNSET}, "$.event"),
        ({"event": "app_mention"}, "$.event"),
        ({"event": {}}, "$.event.type"),
        ({"event_id": None}, "$.event_id"),
        ({"event_time": {}}, "$.event_time"),
    ],
)
def test_slack_callback_that_is_none(slack: SlackSource, changed: Any, at: str) -> None:
    with pytest.raises(ValidationError) as rejected:
        receive(slack, slack_callback(**changed))
    assert f"at `{at}`" in str(rejected.value)


# ------------------------------------------------------------------------- Standard Webhooks


@pytest.fixture
def hooks() -> StandardWebhooksSource:
    source = StandardWebhooksSource("billing", secret=SECRET)
    source.on("user.created")
    return source


SIGNED = {"webhook-id": "msg_1", "webhook-timestamp": str(NOON_SECONDS + 60)}


def test_standard_webhook(hooks: StandardWebhooksSource) -> None:
    body = {"type": "user.created", "timestamp": "2026-01-31T12:00:00Z", "data": {"id": 7}}
    event = kept(hooks, body | {"environment": "live"}, SIGNED)
    assert (event.data, event.key, event.sent_at) == ({"id": 7}, "msg_1", NOON)
    del body["data"]
    assert event.context == body | {"environment": "live"}


@pytest.mark.parametrize("timestamp", [{}, {"timestamp": None}, {"timestamp": 1769860800123}])
def test_standard_webhook_whose_body_has_no_time(
    hooks: StandardWebhooksSource, timestamp: Any
) -> None:
    event = kept(hooks, {"type": "user.created", "data": None} | timestamp, SIGNED)
    assert event.data is None
    assert event.sent_at == datetime(2026, 1, 31, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({"data": 1}, "$.type"),
        ({"type": "user.created"}, "$.data"),
        ({"type": "user.created", "data": 1, "timestamp": "noon"}, "$.timestamp"),
    ],
)
def test_standard_webhook_that_is_none(hooks: StandardWebhooksSource, body: Any, at: str) -> None:
    with pytest.raises(ValidationError) as rejected:
        receive(hooks, body, SIGNED)
    assert f"at `{at}`" in str(rejected.value)


def test_time_without_a_zone_is_utc(hooks: StandardWebhooksSource) -> None:
    body = {"type": "user.created", "data": 1, "timestamp": "2026-01-31t12:00:00"}
    assert kept(hooks, body, SIGNED).sent_at == NOON
    zulu = body | {"timestamp": "2026-01-31t12:00:00z"}
    assert kept(hooks, zulu, SIGNED).sent_at == NOON
