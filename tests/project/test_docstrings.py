"""The examples in docstrings hold."""

import doctest
import importlib
import pkgutil

import pytest

import blacksmith_dagster

MODULES = [
    each.name
    for each in pkgutil.walk_packages(blacksmith_dagster.__path__, "blacksmith_dagster.")
    if ".store.schema." not in each.name  # they run in Alembic's environment alone
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    public = {name: getattr(blacksmith_dagster, name) for name in blacksmith_dagster.__all__}
    failed = doctest.testmod(
        importlib.import_module(name), extraglobs=public, optionflags=doctest.ELLIPSIS
    ).failed
    assert failed == 0
