"""Receive events, keep every one of them, deliver each to every destination that wants it."""

from blacksmith_dagster.errors import BlacksmithError, DeclarationError, Reject
from blacksmith_dagster.pipeline.access import CORS, Auth, Bearer, WriteKey
from blacksmith_dagster.pipeline.application import Blacksmith
from blacksmith_dagster.pipeline.destination import Destination, DestinationEvent
from blacksmith_dagster.pipeline.event import Batch, Cause, Event, Job, TypedEvent
from blacksmith_dagster.pipeline.flow import Flow, Outcome
from blacksmith_dagster.pipeline.limits import Limits
from blacksmith_dagster.pipeline.migration import Direction, Migration
from blacksmith_dagster.pipeline.model import JSONSchema
from blacksmith_dagster.pipeline.schedule import RetryPolicy, Schedule
from blacksmith_dagster.pipeline.signatures import (
    GitHubSignature,
    HMACSignature,
    SlackSignature,
    StandardWebhooksSignature,
    StripeSignature,
)
from blacksmith_dagster.pipeline.source import Source, SourceEvent
from blacksmith_dagster.pipeline.triggers import (
    CDC,
    HTTP,
    Cron,
    Listener,
    Message,
    Poll,
    Reply,
    Request,
    Subscription,
)
from blacksmith_dagster.redaction import Secret

__all__ = [
    "CDC",
    "CORS",
    "HTTP",
    "Auth",
    "Batch",
    "Bearer",
    "Blacksmith",
    "BlacksmithError",
    "Cause",
    "Cron",
    "DeclarationError",
    "Destination",
    "DestinationEvent",
    "Direction",
    "Event",
    "Flow",
    "GitHubSignature",
    "HMACSignature",
    "JSONSchema",
    "Job",
    "Limits",
    "Listener",
    "Message",
    "Migration",
    "Outcome",
    "Poll",
    "Reject",
    "Reply",
    "Request",
    "RetryPolicy",
    "Schedule",
    "Secret",
    "SlackSignature",
    "Source",
    "SourceEvent",
    "StandardWebhooksSignature",
    "StripeSignature",
    "Subscription",
    "TypedEvent",
    "WriteKey",
]
