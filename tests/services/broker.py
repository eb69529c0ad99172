"""What the contract of notifications needs of a broker: each broker's module has it."""

import subprocess
from typing import Protocol


class Broker(Protocol):
    """A running broker that a test may stop, kill and start again, with its data, at its port."""

    process: subprocess.Popen[bytes] | None
    """The server, the parent of all its processes; `None` while it is down."""

    def start(self) -> None:
        """Start the server and wait until it serves."""
        ...

    def stop(self) -> None:
        """Stop the server as an operator does, and wait for its end."""
        ...

    def kill(self) -> None:
        """SIGKILL to the server and all its children."""
        ...

    def urls(
        self, topic: str, *, port: int | None = None, password: str | None = None
    ) -> tuple[str, str]:
        """What `open_pubsub` is given: the URL of the broker and that of a store.

        `port` is another one of the loopback, where something else listens or nothing.
        `password` is another one than the server knows.
        """
        ...

    def send(self, topic: str, destination: str, body: bytes) -> None:
        """Send a message to the subscribers of a destination, whatever its body."""
        ...

    def delete(self, topic: str) -> None:
        """Remove all that the broker keeps for a topic: the topic itself, its queues and the like."""
        ...

    def cut(self) -> None:
        """Let the server end the connections of all clients, as it does with idle ones."""
        ...
