"""What receives events. A team can write its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from blacksmith_dagster.pipeline.application import Blacksmith
    from blacksmith_dagster.settings import Settings


class Gateway(Protocol):
    """Receives events and keeps them in the store, until the process is asked to stop."""

    def serve(self, app: Blacksmith, settings: Settings) -> None:
        """Receive until SIGTERM or SIGINT; what was accepted is committed before it returns."""
        ...
