"""Which addresses may be fetched: how they are spelled, whose they are, and where they lead.

Knows names and numbers of hosts; opens no connection.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from idefics.calls import short
from idefics.errors import BadPicture, BadSetting

if TYPE_CHECKING:
    import httpx

Policy = str
POLICIES = ("any", "public", "off")
PORTS = {"http": 80, "https": 443}

# A name has two parts at least, and its last part begins with a letter: what ends in a number is read as an address by
# some and as a name by others (127.1, 2130706433, 0x7f.1).
NAME = re.compile(
    r"(?=.{4,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])", re.ASCII
)

# IANA's registries of special-purpose addresses, and those beside them that lead to a neighbour.
CLOSED_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # behind a provider's NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's keeper of each machine's secrets: a public number, seen from inside only
        "169.254.0.0/16",  # link-local; where clouds keep their machines' secrets
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast and reserved
    )
]
# All that is given out of IPv6. Outside are loopback, link-local, private and multicast addresses, IPv4 addresses
# that are mapped or embedded, and NAT64's prefixes.
OPEN_V6 = ipaddress.IPv6Network("2000::/3")
CLOSED_V6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo and other protocols' own
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",
        "3fff::/20",
    )
]


def allowed_hosts(policy: Policy, called: str = "remote_images") -> tuple[str, ...]:
    """The hosts that a policy lists: names, and `*.example.com` for all names below one; none for `POLICIES`.

    Args:
        called: what the setting is called where it was given.

    Raises:
        BadSetting: neither a policy nor a list of hosts.
    """
    given: object = policy
    if not isinstance(given, str):
        raise BadSetting(f"{called} is {short(given)}; give any, public, off, or names of hosts in a text")
    if policy in POLICIES:
        return ()
    hosts = tuple(host.strip().lower() for host in policy.split(","))
    for host in hosts:
        if not NAME.fullmatch(host.removeprefix("*.")):
            raise BadSetting(
                f"{called} is {policy!r}; give any, public or off, or names of hosts with commas between them "
                "(images.example.com,*.example.org)"
            )
    return hosts


def is_allowed(host: str, hosts: Sequence[str]) -> bool:
    """Whether a name is among the hosts of a list."""
    return any(
        host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed for allowed in hosts
    )


def spelled_plainly(url: httpx.URL, written: str) -> str:
    """The host of an address that can be read in one way only, as it is connected to.

    Args:
        url: as the one parser reads it, which also reads it for the connection.
        written: as the stranger wrote it.

    Raises:
        BadPicture: a user's name, a port, a backslash, a space or other characters than ASCII's before the path; a host
            that is no full name and no usual spelling of an IP address.
    """
    host = url.raw_host.decode("ascii")
    authority = re.split(r"[/?#]", written.partition("//")[2], maxsplit=1)[0]
    if "\\" in written or not authority.isascii() or url.userinfo:
        raise BadPicture("an address with a user's name, a backslash or letters beyond ASCII is not fetched")
    if url.port not in {None, PORTS[url.scheme]}:
        raise BadPicture(f"an address with the port {url.port} is not fetched: only the usual ports are")
    if not NAME.fullmatch(host) and _number(host) is None:
        raise BadPicture(
            "an address whose host is no full name is not fetched: write it as https://images.example.com/cat.jpg"
        )
    return host


def look_up(host: str, port: int) -> str:
    """The address to connect to: the first of a host all of whose addresses are on the open internet.

    The caller connects to this very address: a second look-up could give another one.

    Raises:
        BadPicture: no such host, or not on the open internet. Where it is instead is not said: whoever asks may be a
            stranger to this network.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise BadPicture(f"{host}: no such host") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise BadPicture(f"{host} is not on the open internet")
    return addresses[0]


def is_public(text: str) -> bool:
    """Whether an IP address is one of the open internet's, and nothing else in other clothes."""
    address = _number(text)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in CLOSED_V4)
    return address is not None and address in OPEN_V6 and not any(address in net for net in CLOSED_V6)


def _number(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An IP address as it is usually written: no octal, no hexadecimal, no short form, no zone."""
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None
