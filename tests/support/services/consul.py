"""Consul: a single server, or a cluster of three servers on the loopback."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.support.services import Unavailable, free_port
from tests.support.services.server import Server

_DOWNLOADED = Path(__file__).parents[3] / ".cache/consul/consul"


class ConsulServer(Server):
    """A server that the test starts, stops and kills; it keeps its data while it is down.

    - `members`: the servers of its cluster, itself included; empty for a single server.
    - `acl_token`: the management token; with it, calls without a token are rejected.
    - `certificate`: a certificate and its key; with it, the server speaks TLS at `https_port`.
    """

    service = "Consul"
    marker = "consul"
    drop = False

    def __init__(
        self,
        members: "Sequence[ConsulServer]" = (),
        *,
        acl_token: str | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        self._binary = _binary()
        super().__init__()
        self._members = members
        self._acl_token = acl_token
        self._certificate = certificate
        self.https_port = free_port() if certificate else -1
        self.port, self.rpc_port, self.serf_port = free_port(), free_port(), free_port()
        self.name = f"server-{self.port}"

    @property
    def url(self) -> str:
        """The value for BLACKSMITH_SUPERVISOR_URL."""
        return f"consul://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not been killed since."""
        return self.process is not None

    def _command(self) -> list[str | Path]:
        (self.folder / "config.json").write_text(json.dumps(self._configuration()))
        return [self._binary, "agent", "-config-file", self.folder / "config.json"]

    def call(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """Call the HTTP API without our own client, by default with the management token if any."""
        token = token or self._acl_token
        response = httpx.request(
            method,
            f"http://127.0.0.1:{self.port}/v1/{path}",
            json=body,
            headers={"X-Consul-Token": token} if token else {},
            timeout=10,
            trust_env=False,
        )
        return response.raise_for_status().json() if response.content else None

    def clear(self) -> None:
        """Remove every session, key and service."""
        for session in self.call("GET", "session/list"):
            self.call("PUT", f"session/destroy/{session['ID']}")
        self.call("DELETE", "kv/?recurse=true")
        for service in self.call("GET", "agent/services"):
            self.call("PUT", f"agent/service/deregister/{service}")

    def ready(self) -> bool:
        """Whether it has a leader and accepts writes."""
        try:
            return bool(self.call("GET", "status/leader")) and bool(
                self.call("PUT", f"kv/ready/{self.name}", 1)
            )
        except httpx.HTTPError:
            return False

    def leader_is(self, other: "ConsulServer") -> bool:
        """Whether this server considers another one the leader."""
        return bool(self.call("GET", "status/leader") == f"127.0.0.1:{other.rpc_port}")

    def _configuration(self) -> dict[str, Any]:
        peers = [f"127.0.0.1:{member.serf_port}" for member in self._members if member is not self]
        acl = {
            "enabled": True,
            "default_policy": "deny",
            "tokens": {"master": self._acl_token, "agent": self._acl_token},
        }
        cert, key = self._certificate or ("", "")
        tls = {"cert_file": str(cert), "key_file": str(key)}
        return {
            "server": True,
            "node_name": self.name,
            "data_dir": str(self.folder / "data"),
            "bootstrap_expect": max(len(self._members), 1),
            "retry_join": peers,
            "retry_interval": "1s",
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": {
                "http": self.port,
                "server": self.rpc_port,
                "serf_lan": self.serf_port,
                "serf_wan": -1,
                "https": self.https_port,
                "dns": -1,
                "grpc": -1,
            },
            "performance": {"raft_multiplier": 1},
            "session_ttl_min": "1s",
            "connect": {"enabled": False},
            "disable_update_check": True,
            "leave_on_terminate": False,
            "skip_leave_on_interrupt": True,
            "log_level": "WARN",
            **({"acl": acl} if self._acl_token else {}),
            **(tls if self._certificate else {}),
        }


class ConsulCluster:
    """Three servers, each of which is an agent that accepts calls."""

    def __init__(self) -> None:
        self.servers: list[ConsulServer] = []
        for _ in range(3):
            self.servers.append(ConsulServer(self.servers))

    def start(self) -> None:
        """Start the servers and wait until each has a leader and accepts writes."""
        for server in self.servers:
            server.launch()
        for server in self.servers:
            server.until_ready()

    def leader(self) -> ConsulServer:
        """The server that all of them consider the leader."""
        for server in self.servers:
            if all(other.leader_is(server) for other in self.servers):
                return server
        raise RuntimeError("the servers do not agree on a leader")

    def close(self) -> None:
        """End all servers and remove their data."""
        for server in self.servers:
            server.close()


def _binary() -> Path:
    binary = os.environ.get("CONSUL_BIN") or (_DOWNLOADED if _DOWNLOADED.is_file() else None)
    if binary is None:
        binary = shutil.which("consul")
    if binary is None:
        raise Unavailable("Consul", "no server found; run `scripts/get-consul`")
    return Path(binary).resolve()
