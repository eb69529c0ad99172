"""Ready-made sources, built only with what your own sources can use too."""

from blacksmith_dagster.sources.cloudevents import CloudEventsSource
from blacksmith_dagster.sources.postgres import Change, Notification, PostgresSource
from blacksmith_dagster.sources.segment import SegmentSource
from blacksmith_dagster.sources.senders import (
    GitHubSource,
    SlackSource,
    StandardWebhooksSource,
    StripeSource,
)

__all__ = [
    "Change",
    "CloudEventsSource",
    "GitHubSource",
    "Notification",
    "PostgresSource",
    "SegmentSource",
    "SlackSource",
    "StandardWebhooksSource",
    "StripeSource",
]
