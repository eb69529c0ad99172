"""Kafka: the test session's own broker, with passwords, and TLS on a second port."""

import base64
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from tests.support.services import Unavailable, free_port, unprivileged
from tests.support.services.broker import Broker
from tests.support.services.tls import make_certificate

USER = "blacksmith"
PASSWORD = "knows-all"
GUEST, GUESTS_PASSWORD = "guest", "sees-nothing"
"""Another user, whose only rights are those that a test grants."""

_IDLE = 2.0


class KafkaServer(Broker):
    """A broker that the test starts, stops and kills; its topics are kept in a folder.

    It does not create topics automatically, and ends connections that were idle for two seconds.
    Clients connect at `port`, or with TLS at `tls_port`.
    """

    service = "Kafka"
    marker = "kafka"

    def __init__(self) -> None:
        self._java, jars = _java(), _jars()
        super().__init__()
        self.port, self.tls_port, self._controller = free_port(), free_port(), free_port()
        try:
            shutil.copytree(
                jars, self.folder / "lib"
            )  # the server's user may not be able to read ours
            self.certificate, key = make_certificate(self.folder)
            pem = self.folder / "server.pem"
            pem.write_text(key.read_text() + self.certificate.read_text())
            self._configure(pem)
            cluster = base64.urlsafe_b64encode(b"blacksmith-tests").decode().rstrip("=")
            subprocess.run(
                unprivileged(
                    [
                        *self._jvm("kafka.tools.StorageTool"),
                        *("format", "-t", cluster, "-c", self.folder / "server.properties"),
                    ]
                ),
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=self._environment(),
                cwd=self.folder,
            )
        except BaseException:
            self.close()
            raise

    def urls(
        self, topic: str, *, port: int | None = None, password: str | None = None
    ) -> tuple[str, str]:
        """The URL for `open_pubsub`, and the URL of a store, which Kafka does not use."""
        login = f"{USER}:{password or PASSWORD}"
        return f"kafka://{login}@127.0.0.1:{port or self.port}?topic={topic}", "sqlite://"

    def send(self, topic: str, destination: str, body: bytes) -> None:
        """Send a message to the subscribers of a destination, whatever its body."""
        from confluent_kafka import Producer

        producer = Producer(self._settings())
        producer.produce(topic, body, destination, 0)
        assert producer.flush(10) == 0

    def delete(self, topic: str) -> None:
        """Delete the topic."""
        admin = self.admin()  # a local: when the client is collected, its request is cancelled
        admin.delete_topics([topic])[topic].result(10)

    def cut(self) -> None:
        """Wait until the broker has ended the idle connections of all clients."""
        before = self._connections()
        time.sleep(_IDLE + 1)  # it checks now and then, at no known moment
        assert before - self._connections(), "nothing was idle"

    def admin(self) -> Any:
        """A client with all rights."""
        from confluent_kafka.admin import AdminClient

        return AdminClient(self._settings())

    def allow(self, kind: Any, name: str, *operations: Any) -> None:
        """Grant the guest rights on the resources of a kind whose names begin with `name`."""
        from confluent_kafka.admin import AclBinding, AclPermissionType, ResourcePatternType

        admin = self.admin()
        prefixed, allowed = ResourcePatternType.PREFIXED, AclPermissionType.ALLOW
        bindings = [
            AclBinding(kind, name, prefixed, f"User:{GUEST}", "*", operation, allowed)
            for operation in operations
        ]
        for creation in admin.create_acls(bindings).values():
            creation.result(10)

    def _connections(self) -> set[int]:
        """The ports of the connected clients."""
        assert self.process is not None, "not started"
        connections = psutil.Process(self.process.pid).net_connections("tcp")
        return {
            connection.raddr.port
            for connection in connections
            if connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == self.port
        }

    def ready(self) -> bool:
        from confluent_kafka import KafkaException

        try:
            return bool(self.admin().list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    def _settings(self) -> dict[str, Any]:
        return {
            "bootstrap.servers": f"127.0.0.1:{self.port}",
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": USER,
            "sasl.password": PASSWORD,
            "log_level": 0,
        }

    def _command(self) -> list[str | Path]:
        return [*self._jvm("kafka.Kafka"), self.folder / "server.properties"]

    def _jvm(self, main: str) -> list[str | Path]:
        # A fast start matters more than long-term speed: two cores serve all tests.
        options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        return [self._java, *options, quiet, "-cp", f"{self.folder}/lib/*", main]

    def _configure(self, pem: Path) -> None:
        plain, tls = "listener.name.sasl_plaintext", "listener.name.sasl_ssl"
        login = (
            "org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'user_{USER}="{PASSWORD}" user_{GUEST}="{GUESTS_PASSWORD}";'
        )
        clients = f"SASL_PLAINTEXT://127.0.0.1:{self.port},SASL_SSL://127.0.0.1:{self.tls_port}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{clients},CONTROLLER://127.0.0.1:{self._controller}",
            "advertised.listeners": clients,
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,"
            "SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL",
            "inter.broker.listener.name": "SASL_PLAINTEXT",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            f"{plain}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
            f"{tls}.sasl.enabled.mechanisms": "PLAIN",
            f"{plain}.plain.sasl.jaas.config": f"{login[:-1]} username={USER} password={PASSWORD};",
            f"{tls}.plain.sasl.jaas.config": login,
            f"{plain}.scram-sha-256.sasl.jaas.config": "org.apache.kafka.common.security.scram."
            "ScramLoginModule required;",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{USER};User:ANONYMOUS",  # the controller has no name
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": pem,
            "log.dirs": self.folder / "data",
            "auto.create.topics.enable": "false",
            "connections.max.idle.ms": int(1000 * _IDLE),
            "connection.failed.authentication.delay.ms": 0,
            # After a kill, the controller lets the broker rejoin only once this time is over.
            "broker.session.timeout.ms": 2000,
            "broker.heartbeat.interval.ms": 500,
            "offsets.topic.num.partitions": 1,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "num.network.threads": 1,
            "num.io.threads": 2,
        }
        (self.folder / "server.properties").write_text(
            "".join(f"{name}={value}\n" for name, value in settings.items())
        )


def _java() -> str:
    java = shutil.which("java")
    if java is None:
        raise Unavailable("Kafka", "no Java found; run `apt-get install default-jre-headless`")
    return java


def _jars() -> Path:
    jars = Path(__file__).parents[3] / ".cache" / "kafka" / "lib"
    if not jars.is_dir():
        raise Unavailable("Kafka", "no jars found; `scripts/services` downloads them with Maven")
    return jars
