"""The settings of a process, read once from its environment, and the parser of their URLs.

- `BLACKSMITH_HOME`: the folder of the default store; by default `.blacksmith/` beside the
  pyproject.toml that names the application, wherever a command runs.
- `BLACKSMITH_STORE_URL`: `postgresql://...` or `sqlite:///path`; by default SQLite in the home.
- `BLACKSMITH_PUBSUB_URL`: `kafka://...`, `nats://...`, `amqp://...` or `postgres`; unset, the
  schedules load realtime events too.
- `BLACKSMITH_SUPERVISOR_URL`: `consul://host:8500`; unset, the store keeps the locks.
- `BLACKSMITH_WANDERER_URL`: where migrations are tracked, a store's URL; by default the store.
- `BLACKSMITH_GATEWAY_URL`: where Dagster's check reaches the gateway; by default on this machine.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from dotenv import dotenv_values

from blacksmith_dagster.errors import SettingsError

_LAST_PORT = 65_535
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][\w+.-]*)://"
    r"(?P<login>(?P<username>[^:/?@]*)(?::(?P<password>[^@]*))?@)?"
    r"(?P<hosts>[^/?]*)(?P<path>/[^?]*)?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*(?=:)")
_HOST = re.compile(r"(?P<host>\[[^\[\]]+\]|[^:\[\]]+)(?::(?P<port>[^:]*))?")


@dataclass(frozen=True, slots=True, repr=False)  # the URLs may contain passwords
class Settings:
    """The URLs of this process's store, broker, supervisor, wanderer and gateway."""

    store_url: str
    pubsub_url: str | None = None
    supervisor_url: str | None = None
    wanderer_url: str | None = None
    gateway_url: str = "http://127.0.0.1:8420"

    @classmethod
    def read(cls, project: Path | None = None, **urls: str | None) -> Settings:
        """The settings of the project in (or above) the folder `project`, the current one if `None`.

        `urls`: those that count before the environment's, by the names of the fields.

        Raises `SettingsError` if no URL of a store is given, and neither `BLACKSMITH_HOME` nor a
        pyproject.toml with `[tool.blacksmith]` says where the home is.
        """
        given = {
            name: urls.get(name) or os.environ.get(f"BLACKSMITH_{name.upper()}")
            for name in (field.name for field in fields(cls))
        }
        given["store_url"] = given["store_url"] or f"sqlite:///{find_home(project) / 'store.db'}"
        return cls(**{name: url for name, url in given.items() if url})


def find_home(project: Path | None = None) -> Path:
    """`BLACKSMITH_HOME`, or `.blacksmith` in the folder of `find_project`, whose errors it raises."""
    folder = os.environ.get("BLACKSMITH_HOME")
    if folder:
        return Path(folder).expanduser().resolve()
    return find_project(project) / ".blacksmith"


def find_project(start: Path | None = None) -> Path:
    """The nearest folder, from `start` upwards, whose pyproject.toml has `[tool.blacksmith]`.

    Raises `SettingsError`.
    """
    folder = (start or Path.cwd()).resolve()
    for candidate in (folder, *folder.parents):
        if project_table(candidate) is not None:
            return candidate
    raise SettingsError(
        f"no pyproject.toml with a [tool.blacksmith] table in {folder} or above it; add one with "
        'app = "package.module:name", or set BLACKSMITH_HOME and give --app'
    )


def read_env_file() -> None:
    """Set the environment variables in `.env` beside the project's pyproject.toml, if there is one.

    Its values replace those that are set, as in Dagster, which reads the same file: otherwise the
    gateway and Dagster's runs could open different stores.
    """
    try:
        folder = find_project()
    except SettingsError:  # a command that needs the project reports it
        return
    values = dotenv_values(folder / ".env")
    os.environ.update({name: value for name, value in values.items() if value is not None})


@dataclass(frozen=True, slots=True)
class ParsedURL:
    """The parts of a URL.

    - `username`, `password`: percent-decoded; `None` if missing or empty.
    - `hosts`: each host with its port, which is `None` if the URL has none.
    - `path`, `query`: as they were written.
    - `name`, `hint`: see `parse_url`; they begin and end each error.
    """

    scheme: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    hosts: tuple[tuple[str, int | None], ...] = ()
    path: str = ""
    query: str = ""
    name: str = field(default="", compare=False)
    hint: str = field(default="", compare=False)

    @property
    def options(self) -> dict[str, str]:
        """The options of the query, percent-decoded; the last value of one that is repeated."""
        return dict(parse_qsl(self.query, keep_blank_values=True))

    def choice(self, option: str, allowed: Sequence[str], default: str) -> str:
        """The value of an option that must be one of `allowed`. Raises `SettingsError`."""
        value = self.options.get(option, default)
        if value not in allowed:
            raise self.invalid(f"{option}= is {', '.join(allowed[:-1])} or {allowed[-1]}")
        return value

    def invalid(self, reason: str) -> SettingsError:
        """The error to raise for this URL."""
        return SettingsError(f"{self.name}: {reason}. {self.hint}")


def parse_url(
    url: str, name: str, hint: str, options: Mapping[str, Collection[str]] | None = None
) -> ParsedURL:
    """Parse `scheme://username:password@host:port,host:port/path?option=value`.

    Everything after the scheme may be missing.

    - `name`: where the URL comes from, usually its environment variable; an error begins with it.
    - `hint`: what to write instead, a sentence; an error ends with it.
    - `options`: the supported schemes, each with its options; `None` accepts all.

    Raises `SettingsError`, which never shows the password.

    >>> parse_url("nats://me:secret@one,two:4223?topic=orders", "ORDERS_URL", "").hosts
    (('one', None), ('two', 4223))
    """
    match = _URL.fullmatch(url)
    scheme_match = _SCHEME.match(url)
    scheme = scheme_match[0] if scheme_match else "?"
    parsed = ParsedURL(scheme, name=name, hint=hint)
    if options is not None and scheme not in options:
        raise parsed.invalid(f"unsupported scheme {scheme}://")
    if match is None:
        raise parsed.invalid("it cannot be read")
    # Otherwise a part of the password would be used, and shown, as the host.
    if match["login"] and "@" in url[match.end("login") :]:
        raise parsed.invalid("it has more than one @; percent-encode those in the password, as %40")
    hosts = []
    for server in match["hosts"].split(",") if match["hosts"] else ():
        host = _HOST.fullmatch(server)
        if host is None:
            raise parsed.invalid("a host is missing or invalid")
        port = host["port"] or None
        if port and not (port.isdecimal() and int(port) <= _LAST_PORT):
            raise parsed.invalid(f"the port is not a number up to {_LAST_PORT}")
        hosts.append((host["host"].strip("[]"), int(port) if port else None))
    parsed = replace(
        parsed,
        username=unquote(match["username"] or "") or None,
        password=unquote(match["password"] or "") or None,
        hosts=tuple(hosts),
        path=match["path"] or "",
        query=match["query"] or "",
    )
    if options is not None and (unknown := sorted(parsed.options.keys() - set(options[scheme]))):
        supported = ", ".join(sorted(options[scheme])) or "none"
        raise parsed.invalid(f"{scheme} has no option {', '.join(unknown)}; it has {supported}")
    return parsed


def project_table(folder: Path) -> dict[str, object] | None:
    """The `[tool.blacksmith]` table of the folder's pyproject.toml, `None` if there is none.

    Raises `SettingsError` if the file cannot be read.
    """
    path = folder / "pyproject.toml"
    if not path.is_file():
        return None
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not TOML, or not UTF-8
        raise SettingsError(f"{path} cannot be read: {error}; fix it") from error
    tool = document.get("tool")
    table = tool.get("blacksmith") if isinstance(tool, dict) else None
    return table if isinstance(table, dict) else None
