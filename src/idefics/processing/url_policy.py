"""Which addresses may be fetched: how they are spelled, whose they are, and where they lead.

Knows names and numbers of hosts; opens no connection.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from idefics.errors import BadPicture, BadSetting
from idefics.validation import short_repr

if TYPE_CHECKING:
    import httpx

UrlPolicy = str
NAMED_POLICIES = ("any", "public", "off")
PORT_BY_SCHEME = {"http": 80, "https": 443}

# A name has two parts at least, and its last part begins with a letter: what ends in a number is read as an address by
# some and as a name by others (127.1, 2130706433, 0x7f.1).
HOSTNAME_PATTERN = re.compile(
    r"(?=.{4,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])", re.ASCII
)

# IANA's registries of special-purpose addresses, and those beside them that lead to a neighbour.
BLOCKED_IPV4_NETWORKS = [
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
PUBLIC_IPV6_NETWORK = ipaddress.IPv6Network("2000::/3")
BLOCKED_IPV6_NETWORKS = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo and other protocols' own
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",
        "3fff::/20",
    )
]


def parse_allowed_hosts(policy: UrlPolicy, setting_name: str = "remote_images") -> tuple[str, ...]:
    """The hosts that a policy lists: names, and `*.example.com` for all names below one; none for `NAMED_POLICIES`.

    Args:
        setting_name: what the setting is called where it was given.

    Raises:
        BadSetting: neither a policy nor a list of hosts.
    """
    value: object = policy
    if not isinstance(value, str):
        raise BadSetting(
            f"{setting_name} is {short_repr(value)}; give any, public, off, or names of hosts in a text"
        )
    if policy in NAMED_POLICIES:
        return ()
    hosts = tuple(host.strip().lower() for host in policy.split(","))
    for host in hosts:
        if not HOSTNAME_PATTERN.fullmatch(host.removeprefix("*.")):
            raise BadSetting(
                f"{setting_name} is {policy!r}; give any, public or off, or names of hosts with commas between them "
                "(images.example.com,*.example.org)"
            )
    return hosts


def is_allowed_host(host: str, patterns: Sequence[str]) -> bool:
    """Whether a name is among the hosts of a list."""
    return any(
        host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern for pattern in patterns
    )


def validate_url_host(url: httpx.URL, raw_url: str) -> str:
    """The host of an address that can be read in one way only, as it is connected to.

    Args:
        url: as the one parser reads it, which also reads it for the connection.
        raw_url: as the stranger wrote it.

    Raises:
        BadPicture: a user's name, a port, a backslash, a space or other characters than ASCII's before the path; a host
            that is no full name and no usual spelling of an IP address.
    """
    host = url.raw_host.decode("ascii")
    authority = re.split(r"[/?#]", raw_url.partition("//")[2], maxsplit=1)[0]
    if "\\" in raw_url or not authority.isascii() or url.userinfo:
        raise BadPicture("an address with a user's name, a backslash or letters beyond ASCII is not fetched")
    if url.port not in {None, PORT_BY_SCHEME[url.scheme]}:
        raise BadPicture(f"an address with the port {url.port} is not fetched: only the usual ports are")
    if not HOSTNAME_PATTERN.fullmatch(host) and _parse_ip(host) is None:
        raise BadPicture(
            "an address whose host is no full name is not fetched: write it as https://images.example.com/cat.jpg"
        )
    return host


def resolve_public_address(host: str, port: int) -> str:
    """The address to connect to: the first of a host all of whose addresses are on the open internet.

    The caller connects to this very address: a second look-up could give another one.

    Raises:
        BadPicture: no such host, or not on the open internet. Where it is instead is not said: whoever asks may be a
            stranger to this network.
    """
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise BadPicture(f"{host}: no such host") from None
    addresses = [str(entry[4][0]) for entry in entries]
    if not addresses or not all(map(is_public_ip, addresses)):
        raise BadPicture(f"{host} is not on the open internet")
    return addresses[0]


def is_public_ip(text: str) -> bool:
    """Whether an IP address is one of the open internet's, and nothing else in other clothes."""
    address = _parse_ip(text)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in BLOCKED_IPV4_NETWORKS)
    return (
        address is not None
        and address in PUBLIC_IPV6_NETWORK
        and not any(address in net for net in BLOCKED_IPV6_NETWORKS)
    )


def _parse_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An IP address as it is usually written: no octal, no hexadecimal, no short form, no zone."""
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None
