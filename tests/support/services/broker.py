"""A broker that tests start, stop and break; each broker's module implements it."""

from abc import abstractmethod

from tests.support.services.server import Server


class Broker(Server):
    """A broker that a test may stop, kill and start again with its data at its port."""

    @abstractmethod
    def urls(
        self, topic: str, *, port: int | None = None, password: str | None = None
    ) -> tuple[str, str]:
        """The arguments of `open_pubsub`: the URL of the broker and the URL of a store.

        `port`: another port of the loopback instead, where something else listens, or nothing.
        `password`: a wrong password instead.
        """

    @abstractmethod
    def send(self, topic: str, destination: str, body: bytes) -> None:
        """Send a message to the subscribers of a destination, whatever its body."""

    @abstractmethod
    def delete(self, topic: str) -> None:
        """Remove everything that the broker keeps for a topic: the topic itself, its queues, etc."""

    @abstractmethod
    def cut(self) -> None:
        """Make the server end the connections of all clients, as it does with idle ones."""
