"""The interface of a broker that tests start, stop and break; each broker's module implements it."""

import subprocess
from typing import Protocol


class Broker(Protocol):
    """A broker that a test may stop, kill and start again with its data at its port."""

    process: subprocess.Popen[bytes] | None
    """The server, the parent of all its processes; `None` while it is down."""

    def start(self) -> None:
        """Start the server and wait until it serves."""
        ...

    def stop(self) -> None:
        """Stop the server as an operator does, and wait until it has ended."""
        ...

    def kill(self) -> None:
        """SIGKILL to the server and all its children."""
        ...

    def urls(
        self, topic: str, *, port: int | None = None, password: str | None = None
    ) -> tuple[str, str]:
        """The arguments of `open_pubsub`: the URL of the broker and the URL of a store.

        `port`: another port of the loopback instead, where something else listens, or nothing.
        `password`: a wrong password instead.
        """
        ...

    def send(self, topic: str, destination: str, body: bytes) -> None:
        """Send a message to the subscribers of a destination, whatever its body."""
        ...

    def delete(self, topic: str) -> None:
        """Remove everything that the broker keeps for a topic: the topic itself, its queues, etc."""
        ...

    def cut(self) -> None:
        """Make the server end the connections of all clients, as it does with idle ones."""
        ...
