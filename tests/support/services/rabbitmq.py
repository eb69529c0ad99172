"""RabbitMQ: the test session's own node, with TLS on a second port."""

import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pika

from tests.support.process_trees import kill_tree
from tests.support.services import Unavailable, free_port, start, unprivileged
from tests.support.services.broker import Broker
from tests.support.services.tls import make_certificate


class RabbitMQServer(Broker):
    """A node that the test starts, stops and kills; user and password are guest."""

    service = "RabbitMQ"
    marker = "rabbitmq"

    def __init__(self) -> None:
        self._sbin = _binaries()
        self.port, self.tls_port = free_port(), free_port()
        super().__init__()
        self.certificate, key = make_certificate(self.folder)
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.certfile = {self.certificate}\n"
            f"ssl_options.keyfile = {key}\n"
            "disk_free_limit.absolute = 1MB\n"
        )
        (self.folder / "env.conf").touch()
        (self.folder / "plugins").write_text("[].")
        epmd_port = free_port()
        self._settings = {
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"blacksmith_{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            # One scheduler that does not spin: the node shares two cores with the tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none"
            " -kernel inet_dist_use_interface {127,0,0,1}",
        }
        # Otherwise the node starts it as a daemon, which outlives the tests.
        self._epmd = start(
            ["epmd", "-port", str(epmd_port), "-address", "127.0.0.1"],
            folder=self.folder,
            env=self._environment(),
            log=self.folder / "epmd.log",
        )

    def stop(self) -> None:
        """Stop the node cleanly and wait until it has ended."""
        if self.process is not None:
            self._end(int((self.folder / "pid").read_text()), signal.SIGTERM)

    def close(self) -> None:
        self.kill()
        kill_tree(self._epmd)
        super().close()

    def urls(
        self, topic: str, *, port: int | None = None, password: str | None = None
    ) -> tuple[str, str]:
        login = f"guest:{password}@" if password else ""
        return f"amqp://{login}127.0.0.1:{port or self.port}?topic={topic}", "sqlite://"

    def send(self, topic: str, destination: str, body: bytes) -> None:
        with self.connection() as connection:
            connection.channel().basic_publish("amq.direct", f"{topic}.{destination}", body)

    def delete(self, topic: str) -> None:
        """Delete the queues of the topic's subscribers; they are exclusive, so clients cannot."""
        bindings = self.control("list_bindings", "--silent", "destination_name", "routing_key")
        for queue, key in (line.split("\t") for line in bindings.splitlines()):
            if key.startswith(f"{topic}."):
                self.control("delete_queue", queue)

    def cut(self) -> None:
        self.control("close_all_connections", "idle")

    def queues(self) -> dict[str, int]:
        """The number of messages per queue, by its name."""
        queues = self.control("list_queues", "--silent", "name", "messages")
        return {name: int(n) for name, n in (line.split("\t") for line in queues.splitlines())}

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl`; returns its output."""
        return subprocess.run(
            unprivileged([self._sbin / "rabbitmqctl", *arguments]),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment(),
            cwd=self.folder,
        ).stdout

    def connection(self) -> pika.BlockingConnection:
        """A connection for the test itself."""
        return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", self.port))

    def _command(self) -> list[str | Path]:
        return [self._sbin / "rabbitmq-server"]

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), **self._settings}

    def ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as s:
                s.sendall(b"AMQP\0\0\x09\x01")
                return s.recv(1) == b"\x01"
        except OSError:
            return False


def _binaries() -> Path:
    # On PATH is Debian's wrapper, which switches to the package's user.
    folders = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin"))
    if not folders or shutil.which("epmd") is None:
        raise Unavailable("RabbitMQ", "no server found; run `apt-get install rabbitmq-server`")
    if shutil.which("openssl") is None:
        raise Unavailable(
            "RabbitMQ", "no `openssl` for a certificate; run `apt-get install openssl`"
        )
    return folders[-1]
