"""How a request is kept that could not be taken."""

from __future__ import annotations

from urllib.parse import urlencode

from blacksmith_dagster.errors import describe
from blacksmith_dagster.pipeline.trigger import Request
from blacksmith_dagster.store.interface import Raw

# Never kept with a request in quarantine; nor what described the body as it was sent.
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})
_BODY_HEADERS = frozenset({"content-length", "content-encoding", "transfer-encoding"})


def raw_of(kind: str, request: Request, error: Exception) -> Raw:
    """A request as it is kept in quarantine: without its credentials.

    A query is kept in `:path`, as HTTP/2 does.
    """
    kept = {
        name: value
        for name, value in request.headers.items()
        if name not in _SECRET_HEADERS and name not in _BODY_HEADERS
    }
    if request.query:
        kept[":path"] = f"{request.path}?{urlencode(request.query)}"
    return Raw(kind, request.body, kept, describe(error))
