"""An application as a component: for projects that are made and scaffolded by `dg`."""

# Dagster reads the component's fields as they stand: no `from __future__ import annotations`.

from dataclasses import dataclass
from typing import Any

from dagster import (
    Component,
    ComponentLoadContext,
    Definitions,
    Resolvable,
    Scaffolder,
    ScaffoldRequest,
    scaffold_with,
)
from dagster.components import scaffold_component

from blacksmith_dagster.orchestration.definitions import build_definitions
from blacksmith_dagster.settings import load_application


class _Scaffolder(Scaffolder[Any]):
    def scaffold(self, request: ScaffoldRequest[Any]) -> None:
        scaffold_component(request, {"app": "my_package.application:blacksmith"})


@scaffold_with(_Scaffolder)
@dataclass
class BlacksmithComponent(Component, Resolvable):
    """The definitions of the application that `app` names as `package.module:name`.

    ```yaml
    type: blacksmith_dagster.orchestration.BlacksmithComponent
    attributes:
      app: my_package.application:blacksmith
    ```
    """

    app: str

    def build_defs(self, context: ComponentLoadContext) -> Definitions:  # noqa: ARG002
        """Called by Dagster. Raises `SettingsError` if the application is not there."""
        return build_definitions(load_application(self.app))
