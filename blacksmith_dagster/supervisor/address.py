"""Where Consul is and how it is spoken to, from a URL and the usual environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from blacksmith_dagster.errors import SettingsError

_OPTIONS = frozenset({"scheme", "dc", "namespace", "ttl", "lock_delay"})
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s?")
_YES, _NO = {"1", "t", "true"}, {"0", "f", "false"}


@dataclass(frozen=True, slots=True)
class ConsulAddress:
    """An agent of Consul, and what is asked of it.

    - `token`: of its access control, `None` if it has none.
    - `dc`: the datacenter that keeps the locks, the agent's own if `None`.
    - `namespace`: of Consul Enterprise.
    - `verify`: whether the agent's certificate is checked, or the path of the authority's.
    - `certificate`: the client's own, as the paths of the certificate and of its key.
    - `ttl`: seconds for which a lock is held without a renewal.
    - `lock_delay`: seconds for which Consul keeps a lock from others whose holder has vanished.
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
    """Take `consul://:token@host:port?options` apart; each part may be missing.

    The options are `scheme` (http or https), `dc`, `namespace`, `ttl` and `lock_delay` (in
    seconds). What the URL does not say is read from the variables that Consul's own tools know:
    `CONSUL_HTTP_ADDR` (127.0.0.1:8500), `CONSUL_HTTP_TOKEN`, `CONSUL_HTTP_TOKEN_FILE`,
    `CONSUL_HTTP_SSL`, `CONSUL_HTTP_SSL_VERIFY`, `CONSUL_CACERT`, `CONSUL_CLIENT_CERT`,
    `CONSUL_CLIENT_KEY`, `CONSUL_NAMESPACE`.

    Raises `SettingsError`, in which no token is shown.

    >>> parse_consul_url("consul://agent?ttl=20s", {}).ttl
    20.0
    """
    parts = _split(url, "BLACKSMITH_SUPERVISOR_URL")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(options.keys() - _OPTIONS):
        raise _wrong(f"no option {', '.join(unknown)}; there are {', '.join(sorted(_OPTIONS))}")
    given = environment.get("CONSUL_HTTP_ADDR", "")
    fallback = _split(given if "://" in given else f"//{given}", "CONSUL_HTTP_ADDR")
    where = parts if parts.hostname else fallback
    if where is fallback and where.scheme not in ("", "http", "https"):
        raise SettingsError("CONSUL_HTTP_ADDR is host:port, http://host:port or https://host:port")
    scheme = options.get("scheme") or _scheme(where, environment)
    if scheme not in ("http", "https"):
        raise _wrong("scheme= is http or https")
    certificate, key = environment.get("CONSUL_CLIENT_CERT"), environment.get("CONSUL_CLIENT_KEY")
    checked = _truth(environment, "CONSUL_HTTP_SSL_VERIFY", default=True)
    ttl = _seconds(options, "ttl", 10.0, least=1.0)
    return ConsulAddress(
        where.hostname or "127.0.0.1",
        where.port or 8500,
        scheme,
        unquote(parts.password or parts.username or "") or _token(environment),
        options.get("dc"),
        options.get("namespace") or environment.get("CONSUL_NAMESPACE"),
        (environment.get("CONSUL_CACERT") or True) if checked else False,
        (certificate, key) if certificate and key else None,
        ttl,
        _seconds(options, "lock_delay", ttl / 2, least=0.0),
    )


def _split(url: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # read now: it is what fails
    except ValueError:
        raise SettingsError(f"{name}: the port is not a number; write consul://host:8500") from None
    return parts


def _scheme(where: SplitResult, environment: Mapping[str, str]) -> str:
    if _truth(environment, "CONSUL_HTTP_SSL", default=False):
        return "https"
    return where.scheme if where.scheme in ("http", "https") else "http"


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


def _truth(environment: Mapping[str, str], name: str, *, default: bool) -> bool:
    said = environment.get(name, "").lower()
    if said and said not in _YES | _NO:
        raise SettingsError(f"{name} is true or false")
    return said in _YES if said else default


def _seconds(options: Mapping[str, Any], name: str, default: float, *, least: float) -> float:
    if name not in options:
        return default
    read = _SECONDS.fullmatch(options[name])
    seconds = float(read[1]) if read else -1.0
    if not least <= seconds <= 60:  # Consul accepts no longer lock-delay
        raise _wrong(f"{name}= is seconds, from {least:g} to 60, for example {name}={default:g}")
    return seconds


def _wrong(why: str) -> SettingsError:
    return SettingsError(
        f"BLACKSMITH_SUPERVISOR_URL: {why}. Write consul://host:8500?ttl=10&lock_delay=5, or unset "
        "it, and the store keeps the locks"
    )
