"""A pipeline whose own code logs every setting and secret, and raises errors that name them."""

import logging
import os
from typing import Any

from blacksmith_dagster import (
    HTTP,
    Batch,
    Bearer,
    Blacksmith,
    Destination,
    Event,
    Request,
    RetryPolicy,
    Schedule,
    Secret,
    Source,
)

TOKEN = "BLACKSMITH_TEST_TOKEN"
WAREHOUSE = "BLACKSMITH_TEST_WAREHOUSE_KEY"

_log = logging.getLogger("pipeline")

inbox = Source("inbox", auth=Bearer(Secret(TOKEN)))
lake = Destination(
    "lake", schedule=Schedule(realtime=True), retry=RetryPolicy(max_retries=0), timeout="20s"
)


def everything() -> str:
    """Every setting of the process, and the secret of `lake`."""
    settings = [value for name, value in os.environ.items() if name.startswith("BLACKSMITH_")]
    return " ".join([*settings, Secret(WAREHOUSE).reveal(), Secret(TOKEN).reveal()])


@inbox.event(HTTP("/inbox/told"))
def told(request: Request) -> Event[Any]:
    """An event; without a number it fails, and its error says everything."""
    number = request.json().get("n")
    if number is None:
        raise ValueError(everything())
    return Event({"n": number})


@lake.event(receives=told)
def rows(batch: Batch[Any]) -> None:
    """Tell the log everything, then fail."""
    _log.warning("loading %d jobs with %s", len(batch), everything())
    try:
        raise ConnectionError(everything())
    except ConnectionError:
        _log.exception("not loaded")
        raise


blacksmith = Blacksmith(sources=[inbox], destinations=[lake])
