"""Ingest events as the gateway does, without one."""

import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from blacksmith_dagster import (
    Blacksmith,
    Request,
)
from blacksmith_dagster.errors import Unavailable
from blacksmith_dagster.ingest.extract import Extractor
from blacksmith_dagster.pipeline.source import SourceEvent
from blacksmith_dagster.store import Store
from tests.support.pipelines.loading import (
    blacksmith,
    departed,
)
from tests.support.waiting import until


def accept(
    store: Store,
    data: Sequence[Any],
    app: Blacksmith = blacksmith,
    event: SourceEvent[Any, Any, Any] = departed,
) -> list[str]:
    """Ingest an event per item of data, as the gateway does; returns their ids.

    While the store does not respond, it repeats the request with its key, as a client does.
    """
    headers = {"content-type": "application/json", "idempotency-key": uuid.uuid4().hex}
    request = Request(msgspec.json.encode(data), headers)
    events = Extractor(app, event).extract(request).events

    def appended() -> list[str]:
        with suppress(Unavailable):
            (ids,) = store.log.append([events])
            assert isinstance(ids, list)
            return ids
        return []

    return until(appended)
