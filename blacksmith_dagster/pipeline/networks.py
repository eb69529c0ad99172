"""From where requests may come."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from blacksmith_dagster.errors import DeclarationError

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def checked_networks(what: str, networks: Sequence[str] | None) -> tuple[Network, ...] | None:
    """The networks that are declared; `None` if none are.

    >>> checked_networks("source 'crm': networks", ["192.0.2.0/24", "2001:db8::1"])
    (IPv4Network('192.0.2.0/24'), IPv6Network('2001:db8::1/128'))

    Raises `DeclarationError`.
    """
    if networks is None:
        return None
    if isinstance(networks, str) or not isinstance(networks, Sequence) or not networks:
        raise DeclarationError(
            f"{what}={networks!r}: write a list of networks, as in ['192.0.2.0/24', '2001:db8::/32']; "
            "everyone is ['0.0.0.0/0', '::/0']"
        )
    found = []
    for network in networks:
        try:
            found.append(ipaddress.ip_network(network))
        except ValueError as error:
            raise DeclarationError(
                f"{what}: {network!r} is no network: {error}; write '192.0.2.0/24', '2001:db8::/32', "
                "or an address"
            ) from error
    return tuple(found)


@lru_cache(maxsize=4096)
def is_within(networks: tuple[Network, ...], host: str) -> bool:
    """Whether an address is of one of the networks; what is no address is of none.

    >>> is_within(checked_networks("networks", ["192.0.2.0/24"]), "::ffff:192.0.2.7")
    True
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # As a socket for both families shows an address of the older one.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return any((mapped or address) in network for network in networks)
