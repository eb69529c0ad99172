"""The OpenAPI description of an application. No I/O."""

import re
from typing import Any

from blacksmith_dagster import HTTP, Blacksmith, Reply, Source
from blacksmith_dagster.gateway.openapi import described


def test_operation_ids_are_names_for_code_generators() -> None:
    sources = [Source(name) for name in ("airport", "shop", "shop_a")]
    airport, shop, shop_a = sources
    airport.accept("departed")
    shop.accept("a_b")
    shop_a.accept("b")
    for path in ("/shop/hook-1", "/shop/hook_1", "/v1/x.~y", "/hook"):
        for method in ("POST", "PUT"):
            shop.webhook(HTTP(path, method))(lambda _: Reply())
    paths: dict[str, Any] = described(Blacksmith(sources=sources, destinations=[]))["paths"]
    ids = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert [name for name in ids if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name)] == []
    assert len(set(ids)) == len(ids) == 3 + 8
    assert {"airport_departed", "shop_a_b", "shop_a_b_2", "post_shop_hook_1", "put_hook"} <= set(
        ids
    )
