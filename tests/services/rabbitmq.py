"""RabbitMQ: the test session's own node, with TLS on a second port."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pika

from tests.services import Unavailable, free_port, kill_tree, private_folder, start, unprivileged
from tests.services.tls import make_certificate

_SERVICE = "RabbitMQ"


class RabbitMQServer:
    """A node that the test starts, stops and kills; user and password are guest."""

    def __init__(self) -> None:
        self._sbin = _binaries()
        self.port, self.tls_port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = private_folder("rabbitmq")
        self.certificate, key = make_certificate(self._folder)
        (self._folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.certfile = {self.certificate}\n"
            f"ssl_options.keyfile = {key}\n"
            "disk_free_limit.absolute = 1MB\n"
        )
        (self._folder / "env.conf").touch()
        (self._folder / "plugins").write_text("[].")
        epmd_port = free_port()
        self._environment = {
            "HOME": str(self._folder),
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"blacksmith_{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_PID_FILE": str(self._folder / "pid"),
            "RABBITMQ_CONF_ENV_FILE": str(self._folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "plugins"),
            # One scheduler that does not spin: the node shares two cores with the tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none"
            " -kernel inet_dist_use_interface {127,0,0,1}",
        }
        # Otherwise the node starts it as a daemon, which outlives the tests.
        self._epmd = start(
            ["epmd", "-port", str(epmd_port), "-address", "127.0.0.1"],
            folder=self._folder,
            env=self._environment,
            log=self._folder / "epmd.log",
        )

    def start(self) -> None:
        """Start the node and wait until it accepts connections."""
        assert self.process is None, "already started"
        log = self._folder / "output"
        self.process = start(
            [self._sbin / "rabbitmq-server"],
            folder=self._folder,
            env=self._environment,
            log=log,
        )
        deadline = time.monotonic() + 60
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{_SERVICE} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the node cleanly and wait until it has ended."""
        if self.process is not None:
            os.kill(int((self._folder / "pid").read_text()), signal.SIGTERM)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                kill_tree(self.process)
            self.process = None

    def kill(self) -> None:
        """SIGKILL to the node and all its children."""
        if self.process is not None:
            kill_tree(self.process)
            self.process = None

    def close(self) -> None:
        """End the node and remove its data."""
        self.kill()
        kill_tree(self._epmd)
        shutil.rmtree(self._folder, ignore_errors=True)

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
            env=self._environment,
            cwd=self._folder,
        ).stdout

    def connection(self) -> pika.BlockingConnection:
        """A connection for the test itself."""
        return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", self.port))

    def _ready(self) -> bool:
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
        raise Unavailable(_SERVICE, "no server found; run `apt-get install rabbitmq-server`")
    if shutil.which("openssl") is None:
        raise Unavailable(_SERVICE, "no `openssl` for a certificate; run `apt-get install openssl`")
    return folders[-1]
