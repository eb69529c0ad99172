"""The address and options of Consul, from the supervisor's URL and Consul's environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.settings import ParsedURL, parse_url

_OPTIONS = frozenset({"scheme", "dc", "namespace", "ttl", "lock_delay"})
_HINT = "Write consul://host:8500?ttl=10&lock_delay=5, or unset it, and the store keeps the locks"
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s?")
_TRUE, _FALSE = {"1", "t", "true"}, {"0", "f", "false"}


@dataclass(frozen=True, slots=True)
class ConsulAddress:
    """How to reach a Consul agent, and the options of its locks.

    - `token`: the ACL token, `None` without access control.
    - `dc`: the datacenter that keeps the locks; the agent's own if `None`.
    - `namespace`: a namespace of Consul Enterprise.
    - `verify`: whether to verify the agent's certificate, or the path of the CA's certificate.
    - `certificate`: the paths of the client's certificate and its key.
    - `ttl`: seconds for which a lock is held without a renewal.
    - `lock_delay`: seconds for which Consul withholds a lock after its holder has vanished.
    """

    host: str
    port: int
    scheme: str = "http"
    token: str | None = field(default=None, repr=False)
    dc: str | None = None
    namespace: str | None = None
    verify: bool | str = True
    certificate: tuple[str, str] | None = None
    ttl: float = 10.0
    lock_delay: float = 5.0

    @property
    def label(self) -> str:
        """The URL without the token.

        >>> parse_consul_url("consul://:secret@agent?scheme=https", {}).label
        'consul://agent:8500'
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"consul://{host}:{self.port}"


def parse_consul_url(url: str, environment: Mapping[str, str] = os.environ) -> ConsulAddress:
    """Parse `consul://:token@host:port?options`; each part may be missing.

    The options are `scheme` (http or https), `dc`, `namespace`, `ttl` and `lock_delay` (in
    seconds). What the URL leaves out is read from the variables that Consul's own tools use:
    `CONSUL_HTTP_ADDR` (127.0.0.1:8500), `CONSUL_HTTP_TOKEN`, `CONSUL_HTTP_TOKEN_FILE`,
    `CONSUL_HTTP_SSL`, `CONSUL_HTTP_SSL_VERIFY`, `CONSUL_CACERT`, `CONSUL_CLIENT_CERT`,
    `CONSUL_CLIENT_KEY`, `CONSUL_NAMESPACE`.

    Raises `SettingsError`, which never shows the token.

    >>> parse_consul_url("consul://agent?ttl=20s", {}).ttl
    20.0
    """
    parsed = parse_url(url, "BLACKSMITH_SUPERVISOR_URL", _HINT, {"consul": _OPTIONS})
    options, agent = parsed.options, parsed
    if not agent.hosts:
        address = environment.get("CONSUL_HTTP_ADDR", "")
        agent = parse_url(
            address if "://" in address else f"http://{address}",
            "CONSUL_HTTP_ADDR",
            "Write host:port, http://host:port or https://host:port",
            {"http": (), "https": ()},
        )
    if len(agent.hosts) > 1:
        raise agent.invalid("it names several hosts; name one agent")
    host, port = agent.hosts[0] if agent.hosts else ("127.0.0.1", None)
    is_https = _boolean(environment, "CONSUL_HTTP_SSL", default=False) or agent.scheme == "https"
    scheme = parsed.choice("scheme", ("http", "https"), "https" if is_https else "http")
    certificate, key = environment.get("CONSUL_CLIENT_CERT"), environment.get("CONSUL_CLIENT_KEY")
    verifies = _boolean(environment, "CONSUL_HTTP_SSL_VERIFY", default=True)
    ttl = _seconds(parsed, "ttl", 10.0, least=1.0)
    return ConsulAddress(
        host,
        port or 8500,
        scheme,
        parsed.password or parsed.username or _token(environment),
        options.get("dc"),
        options.get("namespace") or environment.get("CONSUL_NAMESPACE"),
        (environment.get("CONSUL_CACERT") or True) if verifies else False,
        (certificate, key) if certificate and key else None,
        ttl,
        _seconds(parsed, "lock_delay", ttl / 2, least=0.0),
    )


def _token(environment: Mapping[str, str]) -> str | None:
    if token := environment.get("CONSUL_HTTP_TOKEN"):
        return token
    if path := environment.get("CONSUL_HTTP_TOKEN_FILE"):
        try:
            return Path(path).read_text().strip()
        except OSError as error:
            raise SettingsError(
                f"CONSUL_HTTP_TOKEN_FILE: {path} cannot be read ({error.strerror}); correct the path"
            ) from None
    return None


def _boolean(environment: Mapping[str, str], name: str, *, default: bool) -> bool:
    value = environment.get(name, "").lower()
    if value and value not in _TRUE | _FALSE:
        raise SettingsError(f"{name} is true or false")
    return value in _TRUE if value else default


def _seconds(url: ParsedURL, name: str, default: float, *, least: float) -> float:
    if name not in url.options:
        return default
    match = _SECONDS.fullmatch(url.options[name])
    seconds = float(match[1]) if match else -1.0
    if not least <= seconds <= 60:  # Consul's limit for a lock-delay
        reason = f"{name}= is seconds, from {least:g} to 60, for example {name}={default:g}"
        raise url.invalid(reason)
    return seconds
