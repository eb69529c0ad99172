"""Supervisors with their own connections, as in several processes."""

import contextlib
from collections.abc import Iterator

from blacksmith_dagster.store import open_store
from blacksmith_dagster.supervisor import StoreSupervisor, Supervisor
from blacksmith_dagster.supervisor.address import parse_consul_url
from blacksmith_dagster.supervisor.consul import ConsulSupervisor


@contextlib.contextmanager
def connected(url: str, ttl: float) -> Iterator[Supervisor]:
    """The supervisor at `url`: a store's own, or Consul, whose URL holds the time to live."""
    with contextlib.ExitStack() as opened:
        supervisor: Supervisor
        if url.startswith("consul:"):
            supervisor = ConsulSupervisor(parse_consul_url(url, {}))
        else:
            store = opened.enter_context(contextlib.closing(open_store(url, upgrade=True)))
            supervisor = StoreSupervisor(store.database, ttl=ttl)
        opened.enter_context(contextlib.closing(supervisor))
        yield supervisor
