"""The gateway's limit: a server that reads and decodes requests and stores nothing."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_decode = msgspec.json.Decoder().decode
_ID = "evt_0123abcd0123456789ab"


async def happened(request: Request) -> Response:
    """Respond as the gateway does."""
    body = _decode(await request.body())
    ids = [_ID] * (len(body) if isinstance(body, list) else 1)
    return Response(msgspec.json.encode({"ids": ids}), 202, media_type="application/json")


@asynccontextmanager
async def _settled(_: Starlette) -> AsyncIterator[None]:
    gc.collect()
    gc.freeze()  # as the gateway does
    yield


app = Starlette(routes=[Route("/v1/bench/happened", happened, methods=["POST"])], lifespan=_settled)
